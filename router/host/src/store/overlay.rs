//! What one principal wrote that is not durable yet.

use std::{
    collections::BTreeMap,
    fmt,
    ops::{Bound, Range},
};

use super::{BatchId, Writes, writes::contains};

/// A principal's own writes that no snapshot holds yet. It grows no larger than what one writer
/// may have open and in flight, if whoever writes waits for room in the store and prunes.
#[derive(Default)]
pub struct Overlay {
    removed: Vec<(BatchId, Range<Vec<u8>>)>,
    rows: BTreeMap<Vec<u8>, (BatchId, Option<Vec<u8>>)>,
    pruned: Option<BatchId>,
}

impl Overlay {
    /// Adds what was appended to a batch.
    pub fn write(&mut self, batch: BatchId, writes: Writes) {
        let (removed, rows) = writes.into_parts();
        for range in removed {
            self.rows.retain(|key, _| !range.contains(key));
            self.removed.push((batch, range));
        }
        let rows = rows.into_iter();
        self.rows
            .extend(rows.map(|(key, value)| (key, (batch, value))));
    }

    /// Forgets what a snapshot of this batch holds.
    pub fn prune(&mut self, durable: BatchId) {
        if self.pruned.is_some_and(|pruned| pruned >= durable) {
            return;
        }
        self.pruned = Some(durable);
        self.removed.retain(|(batch, _)| *batch > durable);
        self.rows.retain(|_, (batch, _)| *batch > durable);
    }

    /// A row; `None`: it says nothing about this key, `Some(None)`: deleted.
    pub fn get(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        match self.rows.get(key) {
            Some((_, value)) => Some(value.as_deref()),
            None => self.hides(key).then_some(None),
        }
    }

    /// Its rows within bounds, in the order of their keys; `None` is a deletion. The bounds must not
    /// be crossed.
    pub fn range<'a>(
        &'a self,
        bounds: (Bound<&'a [u8]>, Bound<&'a [u8]>),
    ) -> impl DoubleEndedIterator<Item = (&'a [u8], Option<&'a [u8]>)> {
        let rows = self.rows.range::<[u8], _>(bounds);
        rows.map(|(key, (_, value))| (key.as_slice(), value.as_deref()))
    }

    /// Whether a row that was there before is deleted with a range.
    pub(super) fn hides(&self, key: &[u8]) -> bool {
        self.removed.iter().any(|(_, range)| contains(range, key))
    }
}

/// Without the rows: some are secret.
impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlay")
            .field("rows", &self.rows.len())
            .finish_non_exhaustive()
    }
}
