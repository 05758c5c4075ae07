//! The files of the versions that run and that ran before: config.toml names a folder, in which an
//! operator puts the files of the next one.
//!
//! ```text
//! <data folder>/plugins/versions/<instance>/<SHA-256 of both files>/
//!   plugin.toml   the manifest
//!   plugin.wasm   the component
//! ```
//! A folder is renamed to its name when both files are on disk: what bears such a name is whole.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use crate::{edition::Digest, source::Source};

const MANIFEST: &str = "plugin.toml";
const COMPONENT: &str = "plugin.wasm";
/// Of a kept file, at once.
const COMPARED_BYTES: usize = 16 << 10;
/// A folder that is being written.
const UNFINISHED: &str = "new";

/// Which version of an instance runs; of the one before no more than one is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Versions {
    pub(crate) now: Digest,
    /// What a rollback returns to.
    pub(crate) before: Option<Digest>,
    /// What a rollback left: if the folder of config.toml still holds it at the next start, it does
    /// not run.
    pub(crate) left: Option<Digest>,
}

/// A folder of versions.
#[derive(Debug, Clone)]
pub(crate) struct Kept(PathBuf);

impl Kept {
    /// In `folder`, which is made when something is kept.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Keeps a version; durable when this returns.
    pub(crate) fn keep(&self, instance: &str, source: &Source) -> io::Result<()> {
        let folder = self.0.join(instance);
        let kept = folder.join(HEXLOWER.encode(&source.digest()));
        let manifest = holds(&kept.join(MANIFEST), source.manifest.as_bytes());
        if manifest.unwrap_or_default()
            && holds(&kept.join(COMPONENT), &source.wasm).unwrap_or_default()
        {
            return Ok(());
        }
        let beside = folder.join(UNFINISHED);
        remove(&beside)?;
        remove(&kept)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&beside)?;
        write(&beside.join(MANIFEST), source.manifest.as_bytes())?;
        write(&beside.join(COMPONENT), &source.wasm)?;
        File::open(&beside)?.sync_all()?;
        fs::rename(&beside, &kept)?;
        File::open(&folder)?.sync_all()
    }

    /// A version, if all of it is there as it was kept.
    pub(crate) fn read(&self, instance: &str, digest: &Digest) -> io::Result<Source> {
        let source = read(&self.0.join(instance).join(HEXLOWER.encode(digest)))?;
        if source.digest() == *digest {
            return Ok(source);
        }
        Err(io::Error::other("the files were changed"))
    }

    /// The version whose component has this SHA-256.
    pub(crate) fn pinned(&self, instance: &str, sha256: &[u8; 32]) -> Option<Source> {
        let folders = fs::read_dir(self.0.join(instance)).ok()?;
        let kept = folders.filter_map(|folder| {
            let path = folder.ok()?.path();
            let source = read(&path).ok()?;
            let is_whole = path.ends_with(HEXLOWER.encode(&source.digest()));
            is_whole.then_some(source)
        });
        kept.into_iter().find(|source| source.sha256() == *sha256)
    }

    /// Deletes all of an instance but these. What cannot be deleted is told, and no error.
    pub(crate) fn forget_others(&self, instance: &str, but: &[Digest]) {
        let folder = self.0.join(instance);
        let names: Vec<_> = but.iter().map(|digest| HEXLOWER.encode(digest)).collect();
        let Ok(folders) = fs::read_dir(&folder) else {
            return;
        };
        let is_other = |path: &PathBuf| !names.iter().any(|name| path.ends_with(name));
        let paths = folders.filter_map(|folder| Some(folder.ok()?.path()));
        for path in paths.filter(is_other) {
            if let Err(error) = remove(&path) {
                tracing::warn!(%error, "the files of an old version cannot be deleted");
            }
        }
        if but.is_empty() {
            let _ = fs::remove_dir(folder);
        }
    }
}

fn read(folder: &Path) -> io::Result<Source> {
    let manifest = fs::read_to_string(folder.join(MANIFEST))?;
    let wasm = fs::read(folder.join(COMPONENT))?;
    Ok(Source::new(folder.join(MANIFEST), manifest, wasm))
}

/// Whether a file has these bytes. It is never in memory whole: most starts look at many megabytes.
fn holds(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() != bytes.len() as u64 {
        return Ok(false);
    }
    let mut buffer = [0; COMPARED_BYTES];
    for chunk in bytes.chunks(COMPARED_BYTES) {
        let (part, _) = buffer.split_at_mut(chunk.len());
        file.read_exact(part)?;
        if part != chunk {
            return Ok(false);
        }
    }
    Ok(true)
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(version: &str) -> Source {
        Source::new(PathBuf::new(), version.to_owned(), vec![7; 1000])
    }

    #[test]
    fn what_is_kept_is_read_as_it_was_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::new(dir.path().join("versions"));
        let (one, two) = (source("one"), source("two"));
        for source in [&one, &two, &one] {
            kept.keep("echo", source).unwrap();
        }
        let read = kept.read("echo", &one.digest()).unwrap();
        assert_eq!(
            (read.manifest, read.wasm),
            (one.manifest.clone(), one.wasm.clone())
        );
        assert!(kept.pinned("echo", &one.sha256()).is_some());
        assert!(kept.pinned("echo", &[0; 32]).is_none());
        assert!(kept.read("other", &one.digest()).is_err());

        let folder = dir.path().join("versions/echo");
        let component = folder.join(HEXLOWER.encode(&one.digest())).join(COMPONENT);
        fs::write(&component, "another").unwrap();
        assert!(kept.read("echo", &one.digest()).is_err());
        kept.keep("echo", &one).unwrap();
        assert!(kept.read("echo", &one.digest()).is_ok(), "mended");

        kept.forget_others("echo", &[two.digest()]);
        assert!(kept.read("echo", &one.digest()).is_err());
        assert!(kept.read("echo", &two.digest()).is_ok());
        kept.forget_others("echo", &[]);
        assert!(!folder.exists());
    }
}
