//! Whole sets of records, as a stream: how nodes tell each other of all the others at once, so
//! that nobody learns which record the asker is after.
//!
//! ```text
//! SET  any number of: length u16 (1 to 1024) | RECORD     the stream's end ends the set
//! ```

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

use super::{MAX_RECORD_BYTES, SignedRecord};

/// Records in one set, and in a book: at 1 KiB each, 4 MiB.
pub const MAX_SET_RECORDS: usize = 4096;

const LENGTH_BYTES: usize = 2;

/// Cuts a stream into encoded records. It verifies nothing: that is for
/// [`RecordBook::handle_bytes`](super::RecordBook::handle_bytes), which knows what is old news.
#[derive(Debug, Default)]
pub struct RecordSetReader {
    pending: BytesMut,
    n_records: usize,
}

/// A stream that is no set. Drop it; the records before are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RecordSetError {
    /// A length outside 1 to [`MAX_RECORD_BYTES`].
    #[error("record of {0} bytes in a set, at most {MAX_RECORD_BYTES} are allowed")]
    Length(usize),
    /// More than [`MAX_SET_RECORDS`].
    #[error("more than {MAX_SET_RECORDS} records in a set")]
    TooMany,
    /// The stream ended inside a record.
    #[error("the set ends inside a record")]
    Cut,
}

/// Encodes records as a set; those beyond [`MAX_SET_RECORDS`] are left out.
pub fn encode_set<'a>(records: impl IntoIterator<Item = &'a SignedRecord>) -> Vec<u8> {
    let mut set = Vec::new();
    for record in records.into_iter().take(MAX_SET_RECORDS) {
        let len = u16::try_from(record.bytes().len()).unwrap_or(u16::MAX);
        set.extend_from_slice(&len.to_be_bytes());
        set.extend_from_slice(record.bytes());
    }
    set
}

impl RecordSetReader {
    /// Starts at the first byte of a set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream. To be drained by [`RecordSetReader::poll_record`]
    /// before more is given, which keeps what is pending below the caller's chunk and one record.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next encoded record; `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`RecordSetError`], again on every later call.
    pub fn poll_record(&mut self) -> Result<Option<Bytes>, RecordSetError> {
        let Some(length) = self.pending.first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let len = usize::from(u16::from_be_bytes(*length));
        if !(1..=MAX_RECORD_BYTES).contains(&len) {
            return Err(RecordSetError::Length(len));
        }
        if self.n_records == MAX_SET_RECORDS {
            return Err(RecordSetError::TooMany);
        }
        if self.pending.len() < LENGTH_BYTES + len {
            return Ok(None);
        }
        self.n_records += 1;
        self.pending.advance(LENGTH_BYTES);
        Ok(Some(self.pending.split_to(len).freeze()))
    }

    /// To be called when the stream has ended and nothing more is polled.
    ///
    /// # Errors
    /// [`RecordSetError::Cut`] when it ended inside a record.
    pub fn handle_end(&self) -> Result<(), RecordSetError> {
        if self.pending.is_empty() {
            Ok(())
        } else {
            Err(RecordSetError::Cut)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestNode, for_mutations};

    fn read(set: &[u8], chunk: usize) -> Result<Vec<Bytes>, RecordSetError> {
        let mut reader = RecordSetReader::new();
        let mut records = Vec::new();
        for bytes in set.chunks(chunk) {
            reader.handle_bytes(bytes);
            while let Some(record) = reader.poll_record()? {
                records.push(record);
            }
        }
        reader.handle_end().map(|()| records)
    }

    #[test]
    fn a_set_is_read_however_it_is_cut() {
        let records = [TestNode::new(1).signed(1), TestNode::new(2).signed(7)];
        let set = encode_set(&records);
        for chunk in [1, 7, 1000] {
            let expected = records.iter().map(|r| r.bytes().clone()).collect();
            assert_eq!(read(&set, chunk), Ok(expected), "by {chunk}");
        }
        assert_eq!(read(&[], 1), Ok(Vec::new()));
    }

    /// Frozen: other builds speak these bytes.
    #[test]
    fn a_set_keeps_its_bytes() {
        let record = TestNode::new(1).signed(1);
        let len = u16::try_from(record.bytes().len()).unwrap();
        let expected = [&len.to_be_bytes()[..], record.bytes()].concat().repeat(2);
        assert_eq!(encode_set([&record, &record]), expected);
    }

    #[test]
    fn what_is_no_set_is_refused() {
        assert_eq!(read(&[0, 0], 2), Err(RecordSetError::Length(0)));
        assert_eq!(read(&[4, 1, 9], 3), Err(RecordSetError::Length(1025)));
        assert_eq!(read(&[0, 2, 9], 3), Err(RecordSetError::Cut));
        assert_eq!(read(&[0], 3), Err(RecordSetError::Cut));
        let many = [0, 1, 9].repeat(MAX_SET_RECORDS);
        assert_eq!(read(&many, 4096).map(|r| r.len()), Ok(MAX_SET_RECORDS));
        let more = [many, vec![0, 1, 9]].concat();
        assert_eq!(read(&more, 4096), Err(RecordSetError::TooMany));
    }

    #[test]
    fn damaged_sets_yield_an_error_or_bounded_records() {
        let set = encode_set(&[TestNode::new(1).signed(1), TestNode::new(2).signed(7)]);
        for_mutations(&set, |bytes| {
            let read = read(bytes, 64).unwrap_or_default();
            assert!(read.iter().all(|r| r.len() <= MAX_RECORD_BYTES));
        });
    }
}
