//! A draft: bytes that events append, until one seals them.
//!
//! The row says how many bytes there are. What is behind them in the file is of events that never
//! became real, and is written over.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use wormholes_proto::blob::BlobTree;

use super::{draft_name, file};
use crate::rows::Home;

/// A draft's file, as the rows know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DraftFile {
    pub(crate) home: Home,
    /// Unlike all others of this principal.
    pub(crate) number: u64,
    /// How many bytes it has.
    pub(crate) length: u64,
}

impl DraftFile {
    pub(super) fn append(&self, folder: &Path, bytes: &[u8]) -> io::Result<()> {
        let file = self.own(&self.path(folder))?;
        file.write_all_at(bytes, self.length)?;
        file.sync_all()
    }

    pub(super) fn read(&self, folder: &Path, from: u64) -> io::Result<Vec<u8>> {
        let left = usize::try_from(self.length.saturating_sub(from)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left];
        if left > 0 {
            let file = File::open(self.path(folder))?;
            file.read_exact_at(&mut bytes, from)?;
        }
        Ok(bytes)
    }

    /// Its file is the blob's as well, until the event is real.
    pub(super) fn seal(&self, folder: &Path, tree: &BlobTree, name: &Path) -> io::Result<()> {
        let path = self.path(folder);
        let file = self.own(&path)?;
        file::write_end(&file, tree)?;
        file.sync_all()?;
        file::link(&path, name, tree.id())
    }

    pub(super) fn path(&self, folder: &Path) -> PathBuf {
        folder.join(draft_name(self.home, self.number))
    }

    /// Opens its file, which is made when it begins, and is no blob's then.
    fn own(&self, path: &Path) -> io::Result<File> {
        let open = match self.length {
            0 => file::open_or_create,
            _ => file::open,
        };
        let file = open(path)?;
        if file.metadata()?.nlink() == 1 {
            return Ok(file);
        }
        // It was sealed by an event that never became real: the blob keeps its bytes.
        let beside = path.with_extension("new");
        let copied = fs::copy(path, &beside).and_then(|_| fs::rename(&beside, path));
        if copied.is_err() {
            let _ = fs::remove_file(&beside);
        }
        copied.and_then(|()| file::open(path))
    }
}
