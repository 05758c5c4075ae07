//! An authority of the network: who it is, from the fixture, and a certificate of today.

use std::{
    fs::{self, DirBuilder, Permissions},
    io::Write as _,
    net::Ipv4Addr,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::{process, relay_ip, torrc};
use crate::workspace;

const NAMES: [&str; Authority::COUNT] = ["auth0", "auth1", "auth2"];

/// What authorities and clients know of it.
#[derive(Debug)]
pub(super) struct Authority {
    pub(super) name: &'static str,
    pub(super) ip: Ipv4Addr,
    /// Who it is as a relay, in hex.
    fingerprint: String,
    /// The same by its other key, in base64.
    ed25519: String,
    /// Who it is as an authority, in hex.
    v3ident: String,
    certificate: String,
}

impl Authority {
    pub(super) const COUNT: usize = 3;

    /// Reads the keys of authority `number`, and has it sign a certificate.
    pub(super) fn read(number: u8) -> Result<Self> {
        let name = *NAMES
            .get(usize::from(number))
            .context("no such authority")?;
        let certificate = certificate(name)?;
        let v3ident = certificate
            .lines()
            .find_map(|line| line.strip_prefix("fingerprint "));
        Ok(Self {
            name,
            ip: relay_ip(number),
            fingerprint: fingerprint(name, "fingerprint")?,
            ed25519: fingerprint(name, "fingerprint-ed25519")?,
            v3ident: v3ident.context("a certificate of nobody")?.to_owned(),
            certificate,
        })
    }

    /// As clients are told of it: the rest of torrc's line `DirAuthority`.
    pub(super) fn contact(&self) -> String {
        let Self {
            name,
            ip,
            v3ident,
            fingerprint,
            ..
        } = self;
        let (or_port, dir_port) = (torrc::OR_PORT, torrc::DIR_PORT);
        format!("{name} orport={or_port} v3ident={v3ident} {ip}:{dir_port} {fingerprint}")
    }

    /// As clients that do not know a directory yet are told of it.
    pub(super) fn fallback(&self) -> String {
        let Self {
            ip,
            fingerprint,
            ed25519,
            ..
        } = self;
        format!("{ip}:{} id={fingerprint} ed25519={ed25519}", torrc::OR_PORT)
    }

    /// As its torrc names relays.
    pub(super) fn as_relay(&self) -> String {
        format!("${}", self.fingerprint)
    }

    /// Puts its keys where a tor in `folder` looks for them.
    pub(super) fn write_keys(&self, folder: &TempDir) -> Result<()> {
        let keys = process::data(folder.path()).join("keys");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&keys)?;
        for key in [
            "authority_signing_key",
            "secret_id_key",
            "ed25519_master_id_secret_key",
        ] {
            fs::copy(fixture(self.name, key), keys.join(key))?;
            fs::set_permissions(keys.join(key), Permissions::from_mode(0o600))?;
        }
        fs::write(keys.join("authority_certificate"), &self.certificate)?;
        Ok(())
    }
}

fn fixture(name: &str, file: &str) -> PathBuf {
    workspace::root()
        .join("tests/tor-keys")
        .join(name)
        .join(file)
}

/// The second word of such a file; the first is the relay's name.
fn fingerprint(name: &str, file: &str) -> Result<String> {
    let text = fs::read_to_string(fixture(name, file))?;
    let word = text.split_whitespace().nth(1);
    Ok(word.context("no fingerprint")?.to_owned())
}

/// What says until when the signing key may be used; it is used for less than an hour.
fn certificate(name: &str) -> Result<String> {
    let folder = TempDir::with_prefix("wormholes-tor-")?;
    let made = folder.path().join("certificate");
    let mut gencert = Command::new("tor-gencert")
        .args(["--reuse", "-m", "12", "--passphrase-fd", "0", "-i"])
        .arg(fixture(name, "authority_identity_key"))
        .arg("-s")
        .arg(fixture(name, "authority_signing_key"))
        .arg("-c")
        .arg(&made)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start tor-gencert")?;
    let mut passphrase = gencert.stdin.take().context("no standard input")?;
    passphrase.write_all(b"x\n")?;
    drop(passphrase);
    let ended = gencert.wait_with_output()?;
    if !ended.status.success() {
        bail!("tor-gencert: {}", String::from_utf8_lossy(&ended.stderr));
    }
    fs::read_to_string(made).context("no certificate")
}
