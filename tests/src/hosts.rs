//! Names for one process: an /etc/hosts and an /etc/resolv.conf of its own, in a mount namespace of
//! its own.

use std::{ffi::OsString, fmt::Write, fs, net::IpAddr, path::Path};

use anyhow::Result;

/// The words that run a program with these names, and this name server for others: `unshare …
/// program`. Without a name server the machine's own are asked.
///
/// # Errors
/// When the files cannot be written into `folder`.
pub(crate) fn with_names(
    folder: &Path,
    names: &[(String, IpAddr)],
    name_server: Option<IpAddr>,
) -> Result<Vec<OsString>> {
    let mut mounts = String::new();
    if !names.is_empty() {
        let mut text = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
        for (name, address) in names {
            writeln!(text, "{address} {name}")?;
        }
        fs::write(folder.join("hosts"), text)?;
        mounts += "mount --bind \"$0\"/hosts /etc/hosts && ";
    }
    if let Some(name_server) = name_server {
        let text = format!("nameserver {name_server}\n");
        fs::write(folder.join("resolv.conf"), text)?;
        mounts += "mount --bind \"$0\"/resolv.conf /etc/resolv.conf && ";
    }
    if mounts.is_empty() {
        return Ok(Vec::new());
    }
    let mut words: Vec<OsString> = vec!["unshare".into(), "--mount".into()];
    if !rustix::process::geteuid().is_root() {
        words.push("--map-root-user".into());
    }
    let script = mounts + "exec \"$@\"";
    words.extend(["sh".into(), "-c".into(), script.into(), folder.into()]);
    Ok(words)
}
