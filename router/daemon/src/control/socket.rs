//! The socket's file: one daemon at a time, a stale file of a killed one replaced, anything else
//! left alone.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::{
        fs::{FileTypeExt, OpenOptionsExt, PermissionsExt},
        net::{UnixListener as StdListener, UnixStream as StdStream},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use thiserror::Error;
use tokio::net::UnixListener;

/// The bound socket. Dropped, its file goes.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    path: PathBuf,
    /// Locked while the daemon runs; the kernel frees it however the daemon ends.
    _lock: File,
}

/// The control socket cannot be had.
#[derive(Debug, Error)]
pub enum BindControlError {
    /// Another daemon has it.
    #[error("another daemon serves {}; stop it, or set another `socket` in [control]", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{} is there and is no socket; remove it, or set another `socket` in [control]", path.display())]
    NotASocket {
        /// What is there.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {doing} {}", path.display())]
    System {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl ControlSocket {
    /// Binds `path` with `mode`. The file appears under its name only with its mode set.
    ///
    /// # Errors
    /// [`BindControlError`]
    pub(super) fn bind(path: &Path, mode: u32) -> Result<(Self, UnixListener), BindControlError> {
        let lock = lock(path)?;
        clear(path)?;
        let fresh = suffixed(path, ".new");
        let _ = fs::remove_file(&fresh);
        let listener = StdListener::bind(&fresh).map_err(system("bind", path))?;
        fs::set_permissions(&fresh, Permissions::from_mode(mode))
            .and_then(|()| fs::rename(&fresh, path))
            .map_err(system("set the mode of", path))?;
        listener
            .set_nonblocking(true)
            .map_err(system("set up", path))?;
        let listener = UnixListener::from_std(listener).map_err(system("set up", path))?;
        let socket = Self {
            path: path.to_owned(),
            _lock: lock,
        };
        Ok((socket, listener))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn lock(path: &Path) -> Result<File, BindControlError> {
    let name = suffixed(path, ".lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&name)
        .map_err(system("open", &name))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(BindControlError::InUse {
            path: path.to_owned(),
        }),
        Err(error) => Err(system("lock", &name)(error.into())),
    }
}

/// Removes a socket that nobody serves. The lock says that it is not another `wormholed`; that it
/// answers would mean that another program does.
fn clear(path: &Path) -> Result<(), BindControlError> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("look at", path)(error)),
    };
    let path_buf = path.to_owned();
    if !kind.is_socket() {
        return Err(BindControlError::NotASocket { path: path_buf });
    }
    match StdStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(system("remove", path))
        }
        Err(error) => Err(system("try", path)(error)),
        Ok(_) => Err(BindControlError::InUse { path: path_buf }),
    }
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn system(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BindControlError {
    let path = path.to_owned();
    move |source| BindControlError::System {
        doing,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_served_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        drop(StdListener::bind(&path).unwrap());
        let (socket, _listener) = ControlSocket::bind(&path, 0o640).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let again = ControlSocket::bind(&path, 0o600);
        assert!(matches!(again, Err(BindControlError::InUse { .. })));
        assert!(StdStream::connect(&path).is_ok());
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_not_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        fs::write(&path, "text").unwrap();
        let bound = ControlSocket::bind(&path, 0o600);
        assert!(matches!(bound, Err(BindControlError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"text");
        fs::remove_file(&path).unwrap();
        let _foreign = StdListener::bind(&path).unwrap();
        let bound = ControlSocket::bind(&path, 0o600);
        assert!(matches!(bound, Err(BindControlError::InUse { .. })));
    }

    #[tokio::test]
    async fn a_path_that_cannot_be_is_named() {
        let path = Path::new("/tmp").join("a".repeat(120));
        let error = ControlSocket::bind(&path, 0o600).unwrap_err();
        assert!(error.to_string().contains("aaaa"), "{error}");
        let _ = fs::remove_file(suffixed(&path, ".lock"));
    }
}
