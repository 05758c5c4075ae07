//! A blob that comes from another node: what of it was checked is there after a crash, and is checked
//! again, since nothing says how much of it had reached the disk.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
};

use wormholes_proto::blob::{BlobId, BlobTree};

use super::{Blobs, Pin, file};

/// The file of a blob that comes.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    blobs: Blobs,
    path: PathBuf,
}

impl Part {
    pub(super) fn new(blobs: Blobs, path: PathBuf) -> Self {
        Self { blobs, path }
    }

    /// What is there of this blob: its tree, and how many of the first pieces. Blocks.
    pub(crate) fn resume(&self, id: BlobId) -> Option<(BlobTree, u32)> {
        let file = File::open(&self.path).ok()?;
        let tree = file::read_tree(&file, id).ok()?;
        let there = file::right_pieces(&file, &tree);
        Some((tree, there))
    }

    /// Makes room for a blob. Blocks.
    pub(crate) fn begin(&self, tree: &BlobTree) -> io::Result<File> {
        // What is there may be a blob's file as well, which keeps its bytes.
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let file = file::create(&self.path)?;
        file::write_end(&file, tree)?;
        Ok(file)
    }

    /// The file of a blob that was begun. Blocks.
    pub(crate) fn open(&self) -> io::Result<File> {
        file::open(&self.path)
    }

    /// All pieces are there: it is a blob, on disk. Blocks.
    pub(crate) fn finish(&self, id: BlobId) -> io::Result<Pin> {
        let file = self.open()?;
        file::read_tree(&file, id)?;
        file.sync_all()?;
        let pin = self.blobs.pin(id);
        // Another name for it: what was fetched stays until its row is gone.
        file::link(&self.path, &self.blobs.path(id), id)?;
        self.blobs.sync()?;
        Ok(pin)
    }
}
