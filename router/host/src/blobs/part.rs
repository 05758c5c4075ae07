//! A blob that comes from another node: what of it was checked is there after a crash, and is checked
//! again, since nothing says how much of it had reached the disk.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
};

use wormholes_proto::blob::{BlobId, BlobTree, PIECE_BYTES};

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
        let mut bytes = vec![0; PIECE_BYTES];
        let mut there = 0;
        while let Some((from, length)) = tree.piece(there) {
            let piece = bytes.get_mut(..length)?;
            let is_read = file.read_exact_at(piece, from).is_ok();
            if !is_read || !tree.is_piece(there, piece) {
                break;
            }
            there += 1;
        }
        Some((tree, there))
    }

    /// Makes room for a blob. Blocks.
    pub(crate) fn begin(&self, tree: &BlobTree) -> io::Result<File> {
        let file = file::open(&self.path)?;
        file.set_len(0)?;
        file::write_end(&file, tree)?;
        Ok(file)
    }

    /// The file of a blob that was begun. Blocks.
    pub(crate) fn open(&self) -> io::Result<File> {
        file::open(&self.path)
    }

    /// All pieces are there: it is a blob, on disk. Blocks.
    pub(crate) fn finish(&self, id: BlobId) -> io::Result<Pin> {
        self.open()?.sync_all()?;
        let pin = self.blobs.pin(id);
        // Another name for it: what was fetched stays until its row is gone.
        link(&self.path, &self.blobs.path(id))?;
        self.blobs.sync()?;
        Ok(pin)
    }
}

/// Gives a file one more name; where there is a blob of this name, it has the same bytes.
pub(super) fn link(from: &std::path::Path, to: &std::path::Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    }
}
