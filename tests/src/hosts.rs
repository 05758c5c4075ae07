//! Names for one process: an /etc/hosts of its own, in a mount namespace of its own.

use std::{ffi::OsString, fmt::Write, fs, net::IpAddr, path::Path};

use anyhow::Result;

/// The words that run a program with these names: `unshare … program`.
///
/// # Errors
/// When the file cannot be written into `folder`.
pub(crate) fn with_names(folder: &Path, names: &[(String, IpAddr)]) -> Result<Vec<OsString>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut text = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
    for (name, address) in names {
        writeln!(text, "{address} {name}")?;
    }
    let file = folder.join("hosts");
    fs::write(&file, text)?;
    let mut words: Vec<OsString> = vec!["unshare".into(), "--mount".into()];
    if !rustix::process::geteuid().is_root() {
        words.push("--map-root-user".into());
    }
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    words.extend(["sh".into(), "-c".into(), script.into(), file.into()]);
    Ok(words)
}
