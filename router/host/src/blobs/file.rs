//! A blob's file: its bytes, then what its pieces are checked by.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use wormholes_proto::blob::{BLOB_ID_BYTES, BlobId, BlobTree};

/// The length at the end.
const LENGTH_BYTES: u64 = 8;

pub(super) fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path)
}

/// Opens a file that grows, or makes it.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.mode(0o600).open(path)
}

/// Writes all of a blob; on disk when this returns.
pub(super) fn write_new(path: &Path, tree: &BlobTree, bytes: &[u8]) -> io::Result<()> {
    let file = create(path)?;
    file.write_all_at(bytes, 0)?;
    write_end(&file, tree)?;
    file.sync_all()
}

/// Writes what is behind the bytes, and nothing follows.
pub(super) fn write_end(file: &File, tree: &BlobTree) -> io::Result<()> {
    let (length, values) = (tree.length(), tree.values());
    let end = [values, &length.to_be_bytes()].concat();
    file.set_len(length + end.len() as u64)?;
    file.write_all_at(&end, length)
}

/// Reads what is behind the bytes.
///
/// # Errors
/// It is not of this blob.
pub(super) fn read_tree(file: &File, id: BlobId) -> io::Result<BlobTree> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a blob's file is damaged");
    let all = file.metadata()?.len();
    let end = all.checked_sub(LENGTH_BYTES).ok_or_else(damaged)?;
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact_at(&mut length, end)?;
    let length = u64::from_be_bytes(length);
    let values = end.checked_sub(length).ok_or_else(damaged)?;
    let most = wormholes_proto::blob::MAX_BLOB_BYTES / wormholes_proto::blob::PIECE_BYTES as u64;
    if values > most * BLOB_ID_BYTES as u64 {
        return Err(damaged());
    }
    let mut read = vec![0; usize::try_from(values).unwrap_or_default()];
    file.read_exact_at(&mut read, length)?;
    BlobTree::new(id, length, &read).ok_or_else(damaged)
}
