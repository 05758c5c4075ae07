//! The end of a trunk that wants a blob: which frames it takes, and in which order. What it took and
//! checked stays, over any number of trunks.

use bytes::Bytes;
use thiserror::Error;

use super::{BlobFrame, Failure, MAX_PIECES_AHEAD};
use crate::blob::{BlobId, BlobTree};

/// Pieces that are on the way: half a MiB, which leaves room for messages at the same trunk's end.
const PIECES_AHEAD: u16 = MAX_PIECES_AHEAD / 2;

/// A blob that comes.
#[derive(Debug)]
pub struct BlobFetch {
    id: BlobId,
    max_bytes: u64,
    /// Known once some trunk gave it.
    tree: Option<BlobTree>,
    /// The first piece that is not there.
    next: u32,
    /// Whether this trunk gave anything yet.
    is_given: bool,
    /// How many pieces the other end may send without MORE.
    ahead: u16,
}

/// What a frame came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// The blob's length and pieces are known: make room for it.
    Begun(BlobTree),
    /// Nothing new.
    Nothing,
    /// A piece that is right: to be written there.
    Piece {
        /// Where it begins.
        from: u64,
        /// All of it.
        bytes: Bytes,
    },
}

/// Why a blob does not come from there.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FetchError {
    /// It is not given.
    #[error("{0}")]
    NotGiven(Failure),
    /// It is longer than it may be.
    #[error("the blob has {0} bytes, which is more than it may have")]
    TooLong(u64),
    /// What came is not the blob.
    #[error("the other node gave other bytes than those of that hash")]
    OtherBytes,
    /// What no honest other end sends.
    #[error("the other node broke the order of pieces")]
    Order,
}

impl BlobFetch {
    /// Of a blob of which nothing is there.
    pub fn new(id: BlobId, max_bytes: u64) -> Self {
        Self {
            id,
            max_bytes,
            tree: None,
            next: 0,
            is_given: false,
            ahead: 0,
        }
    }

    /// Of a blob of which all pieces before `next` are there, and right.
    pub fn resume(tree: BlobTree, next: u32, max_bytes: u64) -> Self {
        let next = next.min(tree.pieces());
        Self {
            next,
            tree: Some(tree),
            ..Self::new(BlobId::from_bytes([0; 32]), max_bytes)
        }
    }

    /// Which blob.
    pub fn id(&self) -> BlobId {
        self.tree.as_ref().map_or(self.id, BlobTree::id)
    }

    /// What is known of it.
    pub fn tree(&self) -> Option<&BlobTree> {
        self.tree.as_ref()
    }

    /// How many pieces are there.
    pub fn pieces(&self) -> u32 {
        self.next
    }

    /// Whether all of it is there.
    pub fn is_whole(&self) -> bool {
        let tree = self.tree.as_ref();
        tree.is_some_and(|tree| self.next >= tree.pieces())
    }

    /// A new trunk: from which piece on it is wanted, how many may be on the way, and whether its
    /// values are wanted.
    pub fn handle_trunk_up(&mut self) -> (u32, u16, bool) {
        (self.is_given, self.ahead) = (false, PIECES_AHEAD);
        (self.next, self.ahead, self.tree.is_none())
    }

    /// Takes a frame of the trunk that is up.
    ///
    /// # Errors
    /// [`FetchError`]: this trunk's other end is of no more use for it.
    pub fn handle_frame(&mut self, frame: BlobFrame) -> Result<Fetched, FetchError> {
        match frame {
            BlobFrame::Given { length, values, .. } => self.given(length, &values),
            BlobFrame::Piece { index, bytes, .. } => self.piece(index, bytes),
            BlobFrame::NotGiven { failure, .. } => Err(FetchError::NotGiven(failure)),
            BlobFrame::Want(_) | BlobFrame::More { .. } | BlobFrame::Unwant { .. } => {
                Err(FetchError::Order)
            }
        }
    }

    fn given(&mut self, length: u64, values: &[u8]) -> Result<Fetched, FetchError> {
        if self.is_given {
            return Err(FetchError::Order);
        }
        self.is_given = true;
        if let Some(tree) = &self.tree {
            let is_same = tree.length() == length && values.is_empty();
            return is_same
                .then_some(Fetched::Nothing)
                .ok_or(FetchError::OtherBytes);
        }
        if length > self.max_bytes {
            return Err(FetchError::TooLong(length));
        }
        let tree = BlobTree::new(self.id, length, values).ok_or(FetchError::OtherBytes)?;
        self.tree = Some(tree.clone());
        Ok(Fetched::Begun(tree))
    }

    fn piece(&mut self, index: u32, bytes: Bytes) -> Result<Fetched, FetchError> {
        let tree = self.tree.as_ref().filter(|_| self.is_given);
        let tree = tree.ok_or(FetchError::Order)?;
        let (from, _) = tree.piece(index).ok_or(FetchError::Order)?;
        if index != self.next || self.ahead == 0 {
            return Err(FetchError::Order);
        }
        if !tree.is_piece(index, &bytes) {
            return Err(FetchError::OtherBytes);
        }
        self.ahead -= 1;
        self.next += 1;
        Ok(Fetched::Piece { from, bytes })
    }

    /// Pieces are written: how many more the other end may be told to send, if it is time for that.
    pub fn handle_written(&mut self) -> Option<u16> {
        let tree = self.tree.as_ref()?;
        let is_more = self.next.saturating_add(self.ahead.into()) < tree.pieces();
        if !is_more || self.ahead > PIECES_AHEAD / 2 {
            return None;
        }
        let more = PIECES_AHEAD - self.ahead;
        self.ahead = PIECES_AHEAD;
        Some(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        blob::{BlobHasher, PIECE_BYTES},
        trunk::ErrorCode,
    };

    const PIECES: u32 = 21;

    fn blob() -> (Vec<u8>, BlobTree) {
        let length = PIECE_BYTES * (PIECES as usize - 1) + 5;
        let bytes: Vec<u8> = (0..length).map(|n| (n % 241) as u8).collect();
        let mut hasher = BlobHasher::new();
        hasher.update(&bytes);
        (bytes, hasher.finish())
    }

    fn given(tree: &BlobTree, with_values: bool) -> BlobFrame {
        let values = Bytes::copy_from_slice(tree.values());
        BlobFrame::Given {
            want: 1,
            length: tree.length(),
            values: if with_values { values } else { Bytes::new() },
        }
    }

    fn piece(bytes: &[u8], index: u32) -> BlobFrame {
        let piece = bytes.chunks(PIECE_BYTES).nth(index as usize).unwrap();
        BlobFrame::Piece {
            want: 1,
            index,
            bytes: Bytes::copy_from_slice(piece),
        }
    }

    #[test]
    fn a_blob_comes_over_many_trunks_and_no_piece_twice() {
        let (bytes, tree) = blob();
        let mut fetch = BlobFetch::new(tree.id(), 2 << 20);
        let mut written = Vec::new();
        while !fetch.is_whole() {
            let (first, mut may, with_values) = fetch.handle_trunk_up();
            assert_eq!(first as usize * PIECE_BYTES, written.len());
            fetch.handle_frame(given(&tree, with_values)).unwrap();
            // Each trunk breaks after nine pieces.
            for index in first..(first + 9).min(PIECES) {
                assert!(may > 0, "it waits for more");
                may -= 1;
                let Ok(Fetched::Piece { from, bytes }) = fetch.handle_frame(piece(&bytes, index))
                else {
                    panic!("{index}");
                };
                assert_eq!(from, written.len() as u64);
                written.extend_from_slice(&bytes);
                may += fetch.handle_written().unwrap_or_default();
                assert!(may <= MAX_PIECES_AHEAD);
            }
        }
        assert!(written == bytes);
        assert_eq!(fetch.handle_written(), None);
    }

    #[test]
    fn what_is_wrong_or_out_of_turn_is_not_taken() {
        let (mut bytes, tree) = blob();
        let fetch = || {
            let mut fetch = BlobFetch::new(tree.id(), 2 << 20);
            fetch.handle_trunk_up();
            fetch
        };
        let order = Err(FetchError::Order);
        assert_eq!(fetch().handle_frame(piece(&bytes, 0)), order);
        let mut begun = fetch();
        begun.handle_frame(given(&tree, true)).unwrap();
        assert_eq!(begun.handle_frame(given(&tree, true)), order);
        assert_eq!(begun.handle_frame(piece(&bytes, 1)), order);
        for index in 0..u32::from(PIECES_AHEAD) {
            begun.handle_frame(piece(&bytes, index)).unwrap();
        }
        let beyond = piece(&bytes, PIECES_AHEAD.into());
        assert_eq!(begun.handle_frame(beyond), order, "nobody asked for it");
        let mut begun = fetch();
        begun.handle_frame(given(&tree, true)).unwrap();
        bytes[9] ^= 1;
        let other = Err(FetchError::OtherBytes);
        assert_eq!(begun.handle_frame(piece(&bytes, 0)), other);
        assert_eq!(fetch().handle_frame(given(&tree, false)), other);
        let mut short = BlobFetch::new(tree.id(), 9);
        let long = Err(FetchError::TooLong(tree.length()));
        assert_eq!(short.handle_frame(given(&tree, true)), long);
        let failure = Failure::new(ErrorCode::Denied, "no");
        let no = BlobFrame::NotGiven {
            want: 1,
            failure: failure.clone(),
        };
        assert_eq!(fetch().handle_frame(no), Err(FetchError::NotGiven(failure)));
    }
}
