//! The keys of kept destinations: a file for each, which only its owner reads.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use wormholes_proto::{
    ServiceName,
    sam::{DestinationKeys, MAX_DESTINATION_KEYS_BYTES},
};
use zeroize::Zeroizing;

use super::I2pError;
use crate::private_file;

/// `i2p` in the data folder.
#[derive(Debug, Clone)]
pub(super) struct KeyFolder(PathBuf);

impl KeyFolder {
    pub(super) fn below(data_dir: &Path) -> Self {
        Self(data_dir.join("i2p"))
    }

    /// The keys of the destination that is kept by this name; none when there are none so far.
    ///
    /// # Errors
    /// [`I2pError::Key`], with what mends it where that is known.
    pub(super) async fn load(
        &self,
        name: &ServiceName,
    ) -> Result<Option<DestinationKeys>, I2pError> {
        let file = self.file(name);
        done(tokio::task::spawn_blocking(move || load(&file)).await)
    }

    /// Keeps keys, durably.
    ///
    /// # Errors
    /// [`I2pError::Key`].
    pub(super) async fn save(
        &self,
        name: &ServiceName,
        keys: &DestinationKeys,
    ) -> Result<(), I2pError> {
        let (folder, file) = (self.0.clone(), self.file(name));
        let text = Zeroizing::new(keys.secret_text().as_bytes().to_vec());
        let save = move || save(&folder, &file, &text);
        done(tokio::task::spawn_blocking(save).await)
    }

    /// The names are labels: none leads out of the folder.
    fn file(&self, name: &ServiceName) -> PathBuf {
        self.0.join(format!("{name}.key"))
    }
}

fn done<T>(done: Result<Result<T, String>, tokio::task::JoinError>) -> Result<T, I2pError> {
    match done {
        Ok(done) => done.map_err(I2pError::Key),
        Err(_) => Err(I2pError::Stopping),
    }
}

fn load(file: &Path) -> Result<Option<DestinationKeys>, String> {
    let shown = file.display();
    let failed = |error: io::Error| format!("{shown}: {error}");
    let metadata = match fs::metadata(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        metadata => metadata.map_err(failed)?,
    };
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        let mend = format!("run: chmod 0600 {shown}");
        return Err(format!(
            "{shown} is open to others (mode {mode:04o}); {mend}"
        ));
    }
    if metadata.len() > MAX_DESTINATION_KEYS_BYTES as u64 {
        return Err(format!("{shown} is too long for keys"));
    }
    let text = Zeroizing::new(fs::read_to_string(file).map_err(failed)?);
    let keys = DestinationKeys::parse(text.trim_end());
    keys.map(Some).map_err(|error| format!("{shown}: {error}"))
}

fn save(folder: &Path, file: &Path, text: &[u8]) -> Result<(), String> {
    let failed = |error: io::Error| format!("{}: {error}", file.display());
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(folder).map_err(failed)?;
    private_file::write(file, text).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn keys() -> DestinationKeys {
        let text = format!("{}BQAEAAcAAA{}==", "A".repeat(512), "A".repeat(384));
        DestinationKeys::parse(&text).unwrap()
    }

    #[tokio::test]
    async fn keys_are_kept_for_their_owner_alone() {
        let data = tempfile::tempdir().unwrap();
        let folder = KeyFolder::below(data.path());
        let name = ServiceName::parse("blog").unwrap();
        assert_eq!(folder.load(&name).await.unwrap(), None);
        folder.save(&name, &keys()).await.unwrap();
        assert_eq!(folder.load(&name).await.unwrap(), Some(keys()));
        let mode = |path: &str| fs::metadata(data.path().join(path)).unwrap().mode() & 0o777;
        assert_eq!((mode("i2p"), mode("i2p/blog.key")), (0o700, 0o600));
        let other = ServiceName::parse("other").unwrap();
        assert_eq!(folder.load(&other).await.unwrap(), None);
    }

    #[tokio::test]
    async fn files_that_are_open_to_others_or_no_keys_are_refused() {
        let data = tempfile::tempdir().unwrap();
        let folder = KeyFolder::below(data.path());
        let name = ServiceName::parse("blog").unwrap();
        folder.save(&name, &keys()).await.unwrap();
        let file = data.path().join("i2p/blog.key");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let error = folder.load(&name).await.unwrap_err().to_string();
        assert!(error.contains("chmod 0600"), "{error}");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        for text in ["", "nonsense", &"A".repeat(5000)] {
            fs::write(&file, text).unwrap();
            assert!(matches!(folder.load(&name).await, Err(I2pError::Key(_))));
        }
    }
}
