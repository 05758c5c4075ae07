//! A blob's file: its bytes, then what its pieces are checked by.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use wormholes_proto::blob::{BLOB_ID_BYTES, BlobId, BlobTree, PIECE_BYTES};

/// The length at the end.
const LENGTH_BYTES: u64 = 8;

pub(super) fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path)
}

/// Opens a file that is there: a new one in its place would be all holes.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Opens a file that grows, or makes it.
pub(super) fn open_or_create(path: &Path) -> io::Result<File> {
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

/// How many of a blob's first pieces are there and right.
pub(super) fn right_pieces(file: &File, tree: &BlobTree) -> u32 {
    let mut bytes = vec![0; PIECE_BYTES];
    let mut there = 0;
    while let Some((from, length)) = tree.piece(there) {
        let piece = bytes.get_mut(..length).unwrap_or_default();
        let is_read = file.read_exact_at(piece, from).is_ok();
        if !is_read || !tree.is_piece(there, piece) {
            break;
        }
        there += 1;
    }
    there
}

/// Gives a file of a blob the blob's name as well.
pub(super) fn link(from: &Path, to: &Path, id: BlobId) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        linked => return linked,
    }
    if is_whole(to, id) {
        return Ok(());
    }
    tracing::warn!(%id, "a blob's file is damaged and is written anew");
    let beside = from.with_extension("link");
    let _ = fs::remove_file(&beside);
    fs::hard_link(from, &beside)?;
    fs::rename(&beside, to)
}

fn is_whole(path: &Path, id: BlobId) -> bool {
    let check = || {
        let file = File::open(path)?;
        let tree = read_tree(&file, id)?;
        Ok::<_, io::Error>(tree.piece(right_pieces(&file, &tree)).is_none())
    };
    check().unwrap_or(false)
}
