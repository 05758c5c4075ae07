//! Blobs: bytes that are named by their hash, and how any piece of them is checked by itself.
//!
//! ```text
//! name    BLAKE3 of the bytes, as `b3sum` prints it
//! pieces  64 KiB each, the last one 1 byte to 64 KiB; an empty blob has one empty piece
//! values  of a blob of two pieces or more: for each piece its chaining value, the root of the part of
//!         BLAKE3's tree that is over it; all of them together merge to the name
//! ```
//! Whoever has a name takes a length and values from anybody, since only the right ones merge to it,
//! and then each piece in any order. A wrong length may merge, where values of larger parts are taken
//! for those of pieces; but no bytes fit these, so that such a blob never becomes whole.

use std::{fmt, str::FromStr};

use blake3::{
    Hasher,
    hazmat::{HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root},
};
use data_encoding::HEXLOWER;
use thiserror::Error;

/// Bytes of each piece but the last: small enough that messages beside it do not wait for long, and a
/// part of the tree by itself, which wants a power of two of its chunks of 1 KiB.
pub const PIECE_BYTES: usize = 64 << 10;
/// The longest blob: its values fit into one frame of a trunk.
pub const MAX_BLOB_BYTES: u64 = 1 << 30;
/// Bytes of a name, and of a value.
pub const BLOB_ID_BYTES: usize = 32;

/// The name of a blob: BLAKE3 of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId([u8; BLOB_ID_BYTES]);

/// A text that names no blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a blob's name has 64 hexadecimal digits")]
pub struct ParseBlobIdError;

/// What each piece of a blob is checked by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobTree {
    id: BlobId,
    length: u64,
    /// Empty: the one piece is checked by the name.
    values: Vec<[u8; BLOB_ID_BYTES]>,
}

/// Names bytes as they come.
#[derive(Debug, Clone)]
pub struct BlobHasher {
    values: Vec<[u8; BLOB_ID_BYTES]>,
    /// Of the piece that is not full, or may be the last one.
    piece: Hasher,
    piece_bytes: usize,
}

impl BlobId {
    /// The name of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// A name that was told.
    pub const fn from_bytes(bytes: [u8; BLOB_ID_BYTES]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; BLOB_ID_BYTES] {
        &self.0
    }
}

impl BlobTree {
    /// What was told of the blob with this name, if it is true of it.
    pub fn new(id: BlobId, length: u64, values: &[u8]) -> Option<Self> {
        if length > MAX_BLOB_BYTES {
            return None;
        }
        let (values, rest) = values.as_chunks();
        let expected = match n_pieces(length) {
            1 => 0,
            pieces => pieces as usize,
        };
        if !rest.is_empty() || values.len() != expected {
            return None;
        }
        let is_its = values.is_empty() || merged(values) == id;
        is_its.then(|| Self {
            id,
            length,
            values: values.to_vec(),
        })
    }

    /// The blob's name.
    pub fn id(&self) -> BlobId {
        self.id
    }

    /// How many bytes the blob has; true once every piece was checked.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// How many pieces it has, at least one.
    pub fn pieces(&self) -> u32 {
        n_pieces(self.length)
    }

    /// Where a piece begins, and how many bytes it has; `None`: there is no such piece.
    pub fn piece(&self, index: u32) -> Option<(u64, usize)> {
        let from = u64::from(index) * PIECE_BYTES as u64;
        let left = usize::try_from(self.length.checked_sub(from)?).ok()?;
        (index < self.pieces()).then_some((from, left.min(PIECE_BYTES)))
    }

    /// Whether these bytes are that piece.
    pub fn is_piece(&self, index: u32, bytes: &[u8]) -> bool {
        let Some((from, length)) = self.piece(index) else {
            return false;
        };
        if bytes.len() != length {
            return false;
        }
        match self.values.get(index as usize) {
            Some(value) => {
                let mut piece = piece_hasher(from);
                piece.update(bytes);
                piece.finalize_non_root() == *value
            }
            None => BlobId::of(bytes) == self.id,
        }
    }

    /// The values, one behind the other, as [`BlobTree::new`] takes them.
    pub fn values(&self) -> &[u8] {
        self.values.as_flattened()
    }
}

impl BlobHasher {
    /// Begins with nothing.
    pub fn new() -> Self {
        Self::resume(&[])
    }

    /// Goes on behind pieces whose values are known: see [`BlobHasher::values`].
    pub fn resume(values: &[[u8; BLOB_ID_BYTES]]) -> Self {
        Self {
            values: values.to_vec(),
            piece: piece_hasher((values.len() * PIECE_BYTES) as u64),
            piece_bytes: 0,
        }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.piece_bytes == PIECE_BYTES {
                self.end_piece();
            }
            let room = PIECE_BYTES - self.piece_bytes;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.piece.update(now);
            self.piece_bytes += now.len();
            bytes = later;
        }
    }

    /// How many bytes it took.
    pub fn length(&self) -> u64 {
        (self.values.len() * PIECE_BYTES + self.piece_bytes) as u64
    }

    /// The values of all pieces but the last one: whoever keeps these, and the last piece, can go on.
    pub fn values(&self) -> &[[u8; BLOB_ID_BYTES]] {
        &self.values
    }

    /// The blob of all bytes that it took.
    pub fn finish(mut self) -> BlobTree {
        let length = self.length();
        let id = if self.values.is_empty() {
            BlobId(*self.piece.finalize().as_bytes())
        } else {
            self.end_piece();
            merged(&self.values)
        };
        Self::tree(id, length, self.values)
    }

    fn tree(id: BlobId, length: u64, values: Vec<[u8; BLOB_ID_BYTES]>) -> BlobTree {
        BlobTree { id, length, values }
    }

    fn end_piece(&mut self) {
        self.values.push(self.piece.finalize_non_root());
        self.piece = piece_hasher((self.values.len() * PIECE_BYTES) as u64);
        self.piece_bytes = 0;
    }
}

impl Default for BlobHasher {
    fn default() -> Self {
        Self::new()
    }
}

/// Pieces of so many bytes.
fn n_pieces(length: u64) -> u32 {
    u32::try_from(length.div_ceil(PIECE_BYTES as u64).max(1)).unwrap_or(u32::MAX)
}

fn piece_hasher(from: u64) -> Hasher {
    let mut piece = Hasher::new();
    piece.set_input_offset(from);
    piece
}

/// The name that the values of two pieces or more merge to; of less, none that a blob has.
fn merged(values: &[[u8; BLOB_ID_BYTES]]) -> BlobId {
    let (left, right) = halves(values);
    let root = merge_subtrees_root(&value(left), &value(right), Mode::Hash);
    BlobId(*root.as_bytes())
}

fn value(values: &[[u8; BLOB_ID_BYTES]]) -> [u8; BLOB_ID_BYTES] {
    match values {
        [] => [0; BLOB_ID_BYTES],
        [only] => *only,
        _ => {
            let (left, right) = halves(values);
            merge_subtrees_non_root(&value(left), &value(right), Mode::Hash)
        }
    }
}

/// BLAKE3 has the largest power of two on the left that leaves something on the right.
fn halves(values: &[[u8; BLOB_ID_BYTES]]) -> (&[[u8; BLOB_ID_BYTES]], &[[u8; BLOB_ID_BYTES]]) {
    let left = values.len().saturating_sub(1).checked_ilog2();
    let left = left.map_or(0, |power| 1 << power);
    values.split_at(left.min(values.len()))
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BlobId {
    type Err = ParseBlobIdError;

    fn from_str(text: &str) -> Result<Self, ParseBlobIdError> {
        let bytes = HEXLOWER.decode(text.as_bytes());
        let bytes = bytes.map_err(|_| ParseBlobIdError)?;
        bytes.try_into().map(Self).map_err(|_| ParseBlobIdError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n * 7 % 251) as u8).collect()
    }

    fn tree(bytes: &[u8]) -> BlobTree {
        let mut hasher = BlobHasher::new();
        for part in bytes.chunks(100_000) {
            hasher.update(part);
        }
        hasher.finish()
    }

    const LENGTHS: [usize; 9] = [
        0,
        1,
        PIECE_BYTES - 1,
        PIECE_BYTES,
        PIECE_BYTES + 1,
        2 * PIECE_BYTES,
        3 * PIECE_BYTES,
        5 * PIECE_BYTES + 17,
        8 * PIECE_BYTES,
    ];

    #[test]
    fn a_name_is_the_hash_of_all_bytes_however_they_come() {
        for length in LENGTHS {
            let bytes = bytes(length);
            let tree = tree(&bytes);
            assert_eq!(tree.id(), BlobId::of(&bytes), "{length}");
            assert_eq!(tree.length(), length as u64);
            let told = BlobTree::new(tree.id(), tree.length(), tree.values());
            assert_eq!(told, Some(tree), "{length}");
        }
        let empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(BlobId::of(&[]).to_string(), empty, "as b3sum has it");
        assert_eq!(empty.parse(), Ok(BlobId::of(&[])));
        assert_eq!("af13".parse::<BlobId>(), Err(ParseBlobIdError));
    }

    #[test]
    fn each_piece_is_checked_by_itself() {
        for length in LENGTHS {
            let mut bytes = bytes(length);
            let tree = tree(&bytes);
            for index in 0..tree.pieces() {
                let (from, length) = tree.piece(index).unwrap();
                let piece = &mut bytes[usize::try_from(from).unwrap()..][..length];
                assert!(tree.is_piece(index, piece));
                assert!(!tree.is_piece(index + 1, piece));
                if let Some(last) = piece.last_mut() {
                    *last ^= 1;
                    assert!(!tree.is_piece(index, piece));
                    assert!(!tree.is_piece(index, &piece[1..]));
                }
            }
            assert_eq!(tree.piece(tree.pieces()), None);
        }
    }

    #[test]
    fn nothing_else_is_taken_for_a_tree() {
        let tree = tree(&bytes(5 * PIECE_BYTES));
        let (id, length) = (tree.id(), tree.length());
        let mut values = tree.values().to_vec();
        assert_eq!(BlobTree::new(id, length + 1, &values), None);
        assert_eq!(BlobTree::new(id, MAX_BLOB_BYTES + 1, &values), None);
        assert_eq!(BlobTree::new(id, length, &values[1..]), None);
        assert_eq!(BlobTree::new(BlobId::of(b"x"), length, &values), None);
        values[40] ^= 1;
        assert_eq!(BlobTree::new(id, length, &values), None);
    }

    #[test]
    fn values_of_larger_parts_merge_and_no_bytes_fit_them() {
        let bytes = bytes(4 * PIECE_BYTES);
        let values = tree(&bytes);
        let (pieces, _) = values.values().as_chunks();
        let halves = [value(&pieces[..2]), value(&pieces[2..])].concat();
        let lie = BlobTree::new(values.id(), 2 * PIECE_BYTES as u64, &halves).unwrap();
        assert!(!lie.is_piece(0, &bytes[..PIECE_BYTES]));
    }

    #[test]
    fn a_hasher_goes_on_where_another_one_was() {
        for length in LENGTHS {
            let bytes = bytes(length);
            let mut first = BlobHasher::new();
            first.update(&bytes);
            let known = first.values().len() * PIECE_BYTES;
            let mut second = BlobHasher::resume(first.values());
            second.update(&bytes[known..]);
            second.update(b"more");
            let all = [&bytes[..], b"more"].concat();
            assert_eq!(second.finish().id(), BlobId::of(&all), "{length}");
        }
    }
}
