//! What was durable at one moment.

use std::sync::Weak;

use super::{BatchId, Rows, Span, StoreError, Visit, queue::Queue};

/// The rows that were durable when a batch was. Later commits do not change it.
#[derive(Debug)]
pub struct Snapshot {
    batch: BatchId,
    rows: Box<dyn Rows>,
    /// Hears when it cannot be read.
    queue: Weak<Queue>,
}

impl Snapshot {
    pub(super) fn new(batch: BatchId, rows: Box<dyn Rows>, queue: Weak<Queue>) -> Self {
        Self { batch, rows, queue }
    }

    /// Rows that no store has, for what is run again.
    pub(crate) fn fixed(rows: Box<dyn Rows>) -> Self {
        let batch = BatchId {
            epoch: 0,
            number: 0,
        };
        Self::new(batch, rows, Weak::new())
    }

    /// The last batch that it holds.
    pub fn batch(&self) -> BatchId {
        self.batch
    }

    /// The epoch that it belongs to.
    pub fn epoch(&self) -> u64 {
        self.batch.epoch
    }

    /// A row's value.
    ///
    /// # Errors
    /// When it cannot be read; the store is opened anew then, see
    /// [`Store::lost`](super::Store::lost).
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.heed(self.rows.get(key))
    }

    /// Shows key and value of the rows of `span` in its direction, until `visit` breaks.
    ///
    /// # Errors
    /// As of [`Snapshot::get`].
    pub fn scan(&self, span: &Span, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.heed(self.rows.scan(span, visit))
    }

    fn heed<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error) = &result
            && let Some(queue) = self.queue.upgrade()
        {
            queue.doubt(self.batch.epoch, error);
        }
        result
    }
}
