//! A draft: bytes that events append, until one seals them.
//!
//! The row says how many bytes there are. What is behind them in the file is of events that never
//! became real, and is written over.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
};

use wormholes_proto::blob::BlobTree;

use super::{draft_name, file, part::link};
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
        let path = folder.join(draft_name(self.home, self.number));
        let mut file = file::open(&path)?;
        if file.metadata()?.nlink() > 1 {
            // It was sealed by an event that never became real: the blob keeps its bytes.
            let beside = path.with_extension("new");
            fs::copy(&path, &beside)?;
            fs::rename(&beside, &path)?;
            file = file::open(&path)?;
        }
        file.write_all_at(bytes, self.length)?;
        file.sync_all()
    }

    pub(super) fn read(&self, folder: &Path, from: u64) -> io::Result<Vec<u8>> {
        let left = usize::try_from(self.length.saturating_sub(from)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left];
        if left > 0 {
            let file = File::open(folder.join(draft_name(self.home, self.number)))?;
            file.read_exact_at(&mut bytes, from)?;
        }
        Ok(bytes)
    }

    /// Its file is the blob's as well, until the event is real.
    pub(super) fn seal(&self, folder: &Path, tree: &BlobTree, name: &Path) -> io::Result<()> {
        let path = folder.join(draft_name(self.home, self.number));
        let file = file::open(&path)?;
        file::write_end(&file, tree)?;
        file.sync_all()?;
        link(&path, name)
    }
}
