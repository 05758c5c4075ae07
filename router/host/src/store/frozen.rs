//! Rows in memory that no store has, whose copies share what did not change.

use std::{
    collections::VecDeque,
    fmt,
    ops::{Bound, ControlFlow},
    sync::{Arc, Weak},
};

use rpds::RedBlackTreeMapSync;

use super::{BatchId, Rows, Snapshot, Span, StoreError, Visit, Writes};

/// Rows at one moment.
#[derive(Clone, Default)]
pub(crate) struct Frozen(RedBlackTreeMapSync<Vec<u8>, Vec<u8>>);

/// A store without a disk and without a thread: batches are durable when its owner says so.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    rows: Frozen,
    /// Batches that are not durable, the oldest first; its owner bounds them.
    open: VecDeque<Writes>,
    /// How many were.
    durable: u64,
}

impl Frozen {
    /// Puts a row; `None` deletes it.
    pub(crate) fn put(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        match value {
            Some(value) => self.0.insert_mut(key, value),
            None => {
                self.0.remove_mut(&key);
            }
        }
    }

    /// Does what a commit does.
    fn apply(&mut self, writes: &Writes) {
        for range in writes.removed() {
            let bounds = (
                Bound::Included(range.start.as_slice()),
                Bound::Excluded(range.end.as_slice()),
            );
            let gone = self.0.range::<[u8], _>(bounds);
            let gone: Vec<_> = gone.map(|(key, _)| key.clone()).collect();
            for key in gone {
                self.0.remove_mut(&key);
            }
        }
        for (key, value) in writes.rows() {
            self.put(key.to_vec(), value.map(<[u8]>::to_vec));
        }
    }
}

impl Shelf {
    /// What is durable.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        let rows = Box::new(self.rows.clone());
        Arc::new(Snapshot::new(batch(self.durable), rows, Weak::new()))
    }

    /// Opens a batch with these writes alone.
    pub(crate) fn append(&mut self, writes: Writes) -> BatchId {
        self.open.push_back(writes);
        batch(self.durable + self.open.len() as u64)
    }

    /// The oldest batch is durable; false: all are.
    pub(crate) fn commit(&mut self) -> bool {
        let Some(writes) = self.open.pop_front() else {
            return false;
        };
        self.rows.apply(&writes);
        self.durable += 1;
        true
    }

    /// What is not durable is gone.
    pub(crate) fn lose(&mut self) {
        self.open.clear();
    }
}

fn batch(number: u64) -> BatchId {
    BatchId { epoch: 0, number }
}

impl Rows for Frozen {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, span: &Span, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let mut rows = self.0.range::<[u8], _>(span.bounds());
        while let Some((key, value)) = match span.is_backwards() {
            true => rows.next_back(),
            false => rows.next(),
        } {
            if visit(key, value) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }
}

/// Without the rows: they are somebody's.
impl fmt::Debug for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Frozen").field(&self.0.size()).finish()
    }
}
