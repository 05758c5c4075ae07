//! The node's secret keys: made once, kept in files that only their owner reads.
//!
//! Nothing but this module sees the Ed25519 secret; others ask it to sign. Each key is generated
//! by itself, so that a leak of one says nothing of another.

use std::{
    fmt, fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use ring::{
    hmac,
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use rustls::{
    crypto::aws_lc_rs::sign::any_eddsa_type,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};
use thiserror::Error;
use wormholes_proto::{NodeId, SIGNATURE_BYTES, StaticKeypair};
use zeroize::Zeroizing;

use crate::private_file;

/// Its file in the data folder.
pub(crate) const IDENTITY_FILE: &str = "identity.key";
const NOISE_FILE: &str = "noise.key";
/// A key file has less than 100 bytes; more is not one of ours.
const MAX_KEY_FILE_BYTES: u64 = 1024;

/// Who this node is.
pub(crate) struct Identity {
    id: NodeId,
    pair: Ed25519KeyPair,
    certified: Arc<CertifiedKey>,
    reset: hmac::Key,
    derived: hmac::Key,
    noise: StaticKeypair,
}

/// Keys that could not be read or made.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// Others may read the file or folder.
    #[error("{path} is open to others (mode {mode:04o}); run: chmod {wanted:04o} {path}")]
    Mode {
        /// What is open.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode that it needs.
        wanted: u32,
    },
    /// Somebody else owns the file or folder.
    #[error("{path} belongs to user {owner}, not to the daemon's; run: chown {wanted} {path}")]
    Owner {
        /// What it is.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs the daemon.
        wanted: u32,
    },
    /// Reading or writing failed.
    #[error("cannot {what} {path}")]
    File {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file holds no key.
    #[error(
        "{path} holds no valid key; restore it from a backup, or remove it to become a new node"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
    },
    /// The system's randomness failed.
    #[error("the system gave no randomness")]
    Random,
}

impl Identity {
    /// Reads the keys in `data_dir`, and makes those that are missing.
    ///
    /// # Errors
    /// [`IdentityError`]; when a mode is too lax its text is the command that mends it.
    pub(crate) fn load(data_dir: &Path) -> Result<Self, IdentityError> {
        private_dir(data_dir)?;
        let pkcs8 = load_or_make(&data_dir.join(IDENTITY_FILE), || {
            let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
                .map_err(|_| IdentityError::Random)?;
            Ok(Zeroizing::new(pkcs8.as_ref().to_vec()))
        })?;
        let noise_path = data_dir.join(NOISE_FILE);
        let noise = load_or_make(&noise_path, || {
            Ok(Zeroizing::new(new_noise()?.private().to_vec()))
        })?;
        let noise = <[u8; 32]>::try_from(noise.as_slice())
            .ok()
            .and_then(|private| StaticKeypair::from_private(private).ok())
            .ok_or(IdentityError::Corrupt { path: noise_path })?;
        Self::from_keys(&pkcs8, noise).ok_or_else(|| IdentityError::Corrupt {
            path: data_dir.join(IDENTITY_FILE),
        })
    }

    /// Makes keys that exist in memory only: a caller who shall not be known again.
    ///
    /// # Errors
    /// [`IdentityError::Random`].
    pub(crate) fn throw_away() -> Result<Self, IdentityError> {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| IdentityError::Random)?;
        Self::from_keys(pkcs8.as_ref(), new_noise()?).ok_or(IdentityError::Random)
    }

    fn from_keys(pkcs8: &[u8], noise: StaticKeypair) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).ok()?;
        let id = NodeId::from_bytes(pair.public_key().as_ref().try_into().ok()?);
        let key = any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.to_vec())).ok()?;
        let spki = key.public_key()?.to_vec();
        let certified = CertifiedKey::new(vec![CertificateDer::from(spki)], key);
        // Derived from a signature, which only the key's owner can make: a restarted node then
        // resets the connections of its former life instead of leaving them to time out.
        let secret = |what: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, pair.sign(what).as_ref());
        let reset = secret(b"wormholes stateless reset v1");
        let derived = secret(b"wormholes derived secrets v1");
        Some(Self {
            id,
            pair,
            certified: Arc::new(certified),
            reset,
            derived,
            noise,
        })
    }

    /// The public key, which is the node's name.
    pub(crate) fn id(&self) -> NodeId {
        self.id
    }

    /// Signs `message`, whose first bytes say what it is for.
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut bytes = [0; SIGNATURE_BYTES];
        bytes.copy_from_slice(self.pair.sign(message).as_ref());
        bytes
    }

    /// A secret for `purpose`, which says nothing about those for others.
    pub(crate) fn derive(&self, purpose: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut secret = Zeroizing::new([0; 32]);
        secret.copy_from_slice(hmac::sign(&self.derived, purpose).as_ref());
        secret
    }

    /// The key as TLS presents it: a raw public key (RFC 7250).
    pub(crate) fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }

    /// Keys QUIC's stateless resets.
    pub(crate) fn reset_key(&self) -> hmac::Key {
        self.reset.clone()
    }

    /// The static key of relayed ends.
    pub(crate) fn noise(&self) -> &StaticKeypair {
        &self.noise
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

fn new_noise() -> Result<StaticKeypair, IdentityError> {
    StaticKeypair::generate(&mut rand::rng()).map_err(|_| IdentityError::Random)
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::File { what, path, source }
}

/// Makes the folder with mode 0700, or checks the one that is there.
fn private_dir(path: &Path) -> Result<(), IdentityError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("create", path))?;
    check_private(
        path,
        &fs::metadata(path).map_err(failed("read", path))?,
        0o700,
    )
}

fn check_private(path: &Path, meta: &fs::Metadata, wanted: u32) -> Result<(), IdentityError> {
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Mode {
            path: path.to_owned(),
            mode,
            wanted,
        });
    }
    let user = rustix::process::geteuid().as_raw();
    if meta.uid() != user {
        return Err(IdentityError::Owner {
            path: path.to_owned(),
            owner: meta.uid(),
            wanted: user,
        });
    }
    Ok(())
}

fn load_or_make(
    path: &Path,
    make: impl FnOnce() -> Result<Zeroizing<Vec<u8>>, IdentityError>,
) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    match fs::symlink_metadata(path) {
        Ok(meta) => {
            check_private(path, &meta, 0o600)?;
            if !meta.is_file() || meta.len() > MAX_KEY_FILE_BYTES {
                return Err(IdentityError::Corrupt {
                    path: path.to_owned(),
                });
            }
            fs::read(path)
                .map(Zeroizing::new)
                .map_err(failed("read", path))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let bytes = make()?;
            private_file::write(path, &bytes).map_err(failed("write", path))?;
            Ok(bytes)
        }
        Err(error) => Err(failed("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn keys_are_made_once_and_signatures_hold() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        let first = Identity::load(&data_dir).unwrap();
        let second = Identity::load(&data_dir).unwrap();
        assert_eq!(first.id(), second.id());
        assert_eq!(first.noise().public(), second.noise().public());
        assert!(first.id().verifies(b"text", &second.sign(b"text")));
        assert_eq!(fs::metadata(&data_dir).unwrap().mode() & 0o777, 0o700);
        let file = fs::metadata(data_dir.join(IDENTITY_FILE)).unwrap();
        assert_eq!(file.mode() & 0o777, 0o600);
    }

    #[test]
    fn lax_modes_are_refused_with_the_command_that_mends_them() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        Identity::load(&data_dir).unwrap();
        let key = data_dir.join(IDENTITY_FILE);
        set_mode(&key, 0o640);
        let error = Identity::load(&data_dir).unwrap_err().to_string();
        assert!(
            error.ends_with(&format!("chmod 0600 {}", key.display())),
            "{error}"
        );
        set_mode(&key, 0o600);
        set_mode(&data_dir, 0o755);
        let error = Identity::load(&data_dir).unwrap_err().to_string();
        assert!(
            error.ends_with(&format!("chmod 0700 {}", data_dir.display())),
            "{error}"
        );
    }

    #[test]
    fn a_damaged_key_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        Identity::load(&data_dir).unwrap();
        for (file, bytes) in [
            (IDENTITY_FILE, &b"x"[..]),
            (NOISE_FILE, b"short"),
            (IDENTITY_FILE, &[0; 2000]),
        ] {
            fs::write(data_dir.join(file), bytes).unwrap();
            let error = Identity::load(&data_dir).unwrap_err();
            assert!(matches!(error, IdentityError::Corrupt { .. }), "{error}");
            assert_eq!(fs::read(data_dir.join(file)).unwrap(), bytes);
        }
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let identity = Identity::throw_away().unwrap();
        let text = format!("{identity:?}");
        assert_eq!(text, format!("Identity {{ id: {:?}, .. }}", identity.id()));
    }
}
