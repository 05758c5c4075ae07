//! The records that a node holds: of each node the one with the highest sequence.

use std::collections::BTreeMap;

use super::{MAX_SET_RECORDS, NodeRecord, RecordError, SignedRecord, encode_set};
use crate::id::NodeId;

/// Signed records by node id, at most [`MAX_SET_RECORDS`].
///
/// Overflow rule: a full book refuses nodes that it does not know and takes newer records of those
/// that it does, so that a flood of invented nodes pushes nobody out.
#[derive(Debug, Clone, Default)]
pub struct RecordBook {
    records: BTreeMap<NodeId, SignedRecord>,
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordOutcome {
    /// The first of its node.
    New,
    /// It replaced one with a lower sequence.
    Newer,
    /// One with the same or a higher sequence stays.
    Old,
    /// The book is full and does not know the node.
    Full,
}

impl RecordBook {
    /// Starts empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a record unless it is old or the book is full.
    pub fn handle_record(&mut self, record: SignedRecord) -> RecordOutcome {
        let outcome = self.judge(&record.id(), record.record().sequence);
        if matches!(outcome, RecordOutcome::New | RecordOutcome::Newer) {
            self.records.insert(record.id(), record);
        }
        outcome
    }

    /// Takes an encoded record. One that the book would not take anyway is not verified, which is
    /// what makes whole sets, told again and again, cheap.
    ///
    /// # Errors
    /// [`RecordError`] when it is not to be believed.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<RecordOutcome, RecordError> {
        let (id, sequence) = SignedRecord::peek(bytes)?;
        match self.judge(&id, sequence) {
            RecordOutcome::New | RecordOutcome::Newer => {
                Ok(self.handle_record(SignedRecord::decode(bytes)?))
            }
            outcome @ (RecordOutcome::Old | RecordOutcome::Full) => Ok(outcome),
        }
    }

    fn judge(&self, id: &NodeId, sequence: u64) -> RecordOutcome {
        match self.records.get(id) {
            Some(known) if known.record().sequence >= sequence => RecordOutcome::Old,
            Some(_) => RecordOutcome::Newer,
            None if self.records.len() >= MAX_SET_RECORDS => RecordOutcome::Full,
            None => RecordOutcome::New,
        }
    }

    /// Drops the record of a node; whether there was one.
    pub fn forget(&mut self, id: &NodeId) -> bool {
        self.records.remove(id).is_some()
    }

    /// The newest record of a node.
    pub fn get(&self, id: &NodeId) -> Option<&SignedRecord> {
        self.records.get(id)
    }

    /// What the newest record of a node says.
    pub fn record(&self, id: &NodeId) -> Option<&NodeRecord> {
        self.get(id).map(SignedRecord::record)
    }

    /// All records, by id.
    pub fn iter(&self) -> impl Iterator<Item = &SignedRecord> {
        self.records.values()
    }

    /// How many nodes have a record here.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// All records as one set.
    pub fn encode_set(&self) -> Vec<u8> {
        encode_set(self.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestNode;

    fn sequence_of(book: &RecordBook, node: &TestNode) -> Option<u64> {
        book.record(&node.id()).map(|record| record.sequence)
    }

    #[test]
    fn the_highest_sequence_stays() {
        let (node, mut book) = (TestNode::new(1), RecordBook::new());
        for (sequence, outcome) in [
            (5, RecordOutcome::New),
            (4, RecordOutcome::Old),
            (5, RecordOutcome::Old),
            (9, RecordOutcome::Newer),
        ] {
            assert_eq!(book.handle_record(node.signed(sequence)), outcome);
        }
        assert_eq!(sequence_of(&book, &node), Some(9));
        assert!(book.forget(&node.id()) && book.is_empty());
    }

    #[test]
    fn a_forged_record_changes_nothing() {
        let (node, mut book) = (TestNode::new(1), RecordBook::new());
        book.handle_record(node.signed(5));
        let mut forged = node.signed(6).bytes().to_vec();
        // The last byte of the sequence.
        forged[40] = 7;
        assert_eq!(book.handle_bytes(&forged), Err(RecordError::Signature));
        assert_eq!(sequence_of(&book, &node), Some(5));
        assert_eq!(
            book.handle_bytes(node.signed(5).bytes()),
            Ok(RecordOutcome::Old)
        );
        assert_eq!(
            book.handle_bytes(node.signed(6).bytes()),
            Ok(RecordOutcome::Newer)
        );
    }

    #[test]
    fn a_full_book_keeps_whom_it_knows() {
        let (known, mut book) = (TestNode::new(1), RecordBook::new());
        book.handle_record(known.signed(1));
        let filler = known.signed(1);
        for number in 1..MAX_SET_RECORDS {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&number.to_be_bytes());
            book.records.insert(NodeId::from_bytes(id), filler.clone());
        }
        assert_eq!(book.len(), MAX_SET_RECORDS);
        let stranger = TestNode::new(2).signed(1);
        assert_eq!(book.handle_bytes(stranger.bytes()), Ok(RecordOutcome::Full));
        assert_eq!(book.handle_record(stranger), RecordOutcome::Full);
        assert_eq!(book.handle_record(known.signed(2)), RecordOutcome::Newer);
    }
}
