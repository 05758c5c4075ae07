//! Writes: rows that are put and deleted, in the order of their keys.

use std::{
    collections::BTreeMap,
    fmt,
    ops::{Bound, Range},
};

pub(super) type RowMap = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Rows to put and to delete as one. What is written later hides what was written earlier.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Writes {
    /// Removed before any of `rows` is put.
    removed: Vec<Range<Vec<u8>>>,
    rows: RowMap,
}

impl Writes {
    /// Puts a row; `None` deletes it.
    pub fn put(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.rows.insert(key, value);
    }

    /// Deletes all rows of a range of keys, those of the store and those put here before.
    pub fn remove_range(&mut self, range: Range<Vec<u8>>) {
        self.rows.retain(|key, _| !range.contains(key));
        if range.start < range.end && !self.removed.contains(&range) {
            self.removed.push(range);
        }
    }

    /// Whether there is nothing to make durable.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.removed.is_empty()
    }

    /// The ranges to delete, before any row is put.
    pub fn removed(&self) -> impl Iterator<Item = &Range<Vec<u8>>> {
        self.removed.iter()
    }

    /// The rows in the order of their keys; `None` is a deletion.
    pub fn rows(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let rows = self.rows.iter();
        rows.map(|(key, value)| (key.as_slice(), value.as_deref()))
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        let removed = self.removed.iter();
        let removed = removed.map(|range| range.start.len() + range.end.len());
        let rows = self.rows.iter();
        let rows = rows.map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len));
        removed.chain(rows).sum()
    }

    /// Adds what was written after this.
    pub fn extend(&mut self, later: Self) {
        for range in later.removed {
            self.remove_range(range);
        }
        self.rows.extend(later.rows);
    }

    /// Whether a row or a range of these keys is among them.
    pub(super) fn touches(&self, from: &[u8], before: &[u8]) -> bool {
        let bounds = (Bound::Included(from), Bound::Excluded(before));
        let is_removed =
            |range: &Range<Vec<u8>>| range.start.as_slice() < before && range.end.as_slice() > from;
        self.rows.range::<[u8], _>(bounds).next().is_some() || self.removed.iter().any(is_removed)
    }

    pub(super) fn map(&self) -> &RowMap {
        &self.rows
    }

    /// Whether a row that was there before is deleted with a range.
    pub(super) fn hides(&self, key: &[u8]) -> bool {
        self.removed.iter().any(|range| contains(range, key))
    }

    pub(super) fn into_parts(self) -> (Vec<Range<Vec<u8>>>, RowMap) {
        (self.removed, self.rows)
    }
}

/// Without the rows: some are secret.
impl fmt::Debug for Writes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writes")
            .field("rows", &self.rows.len())
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

pub(super) fn contains(range: &Range<Vec<u8>>, key: &[u8]) -> bool {
    range.start.as_slice() <= key && key < range.end.as_slice()
}
