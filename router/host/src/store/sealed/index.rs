//! Which sealed rows there are, in the order of their keys. Copies share what does not change: one is
//! made for each commit that changes a sealed row, and each snapshot keeps its own.

use std::{
    collections::BTreeMap,
    ops::{Bound, Range},
    sync::Arc,
};

use super::{super::Span, seal::Key};

/// Of a key: rows with the same beginning, those of one space of one principal, are copied together.
const GROUP_BYTES: usize = 10;

type Group = BTreeMap<Vec<u8>, Arc<Entry>>;

#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    groups: BTreeMap<Vec<u8>, Arc<Group>>,
}

/// Where a row lies below, and what opens it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) place: Vec<u8>,
    pub(super) slot: u32,
    pub(super) key: Key,
}

impl Index {
    pub(super) fn get(&self, key: &[u8]) -> Option<&Entry> {
        let entry = self.groups.get(group(key))?.get(key)?;
        Some(entry)
    }

    pub(super) fn insert(&mut self, key: Vec<u8>, entry: Entry) {
        let group = self.groups.entry(group(&key).to_vec()).or_default();
        Arc::make_mut(group).insert(key, Arc::new(entry));
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> Option<Arc<Entry>> {
        let rows = self.groups.get_mut(group(key))?;
        if !rows.contains_key(key) {
            return None;
        }
        let rows = Arc::make_mut(rows);
        let entry = rows.remove(key);
        if rows.is_empty() {
            self.groups.remove(group(key));
        }
        entry
    }

    pub(super) fn remove_range(&mut self, range: &Range<Vec<u8>>) -> Vec<Arc<Entry>> {
        if range.start >= range.end {
            return Vec::new();
        }
        let bounds = (
            Bound::Included(range.start.as_slice()),
            Bound::Excluded(range.end.as_slice()),
        );
        let keys: Vec<_> = self.within(bounds).map(|(key, _)| key.to_vec()).collect();
        keys.iter().filter_map(|key| self.remove(key)).collect()
    }

    /// The rows of `span`, in its direction.
    pub(super) fn rows<'a>(
        &'a self,
        span: &'a Span,
    ) -> Box<dyn Iterator<Item = (&'a [u8], &'a Entry)> + 'a> {
        let rows = self.within(span.bounds());
        if span.is_backwards() {
            Box::new(rows.rev())
        } else {
            Box::new(rows)
        }
    }

    fn within<'a>(
        &'a self,
        (start, end): (Bound<&'a [u8]>, Bound<&'a [u8]>),
    ) -> impl DoubleEndedIterator<Item = (&'a [u8], &'a Entry)> {
        let first = match start {
            Bound::Included(key) | Bound::Excluded(key) => Bound::Included(group(key)),
            Bound::Unbounded => Bound::Unbounded,
        };
        let groups = self.groups.range::<[u8], _>((first, end));
        groups.flat_map(move |(_, rows)| {
            let rows = rows.range::<[u8], _>((start, end));
            rows.map(|(key, entry)| (key.as_slice(), &**entry))
        })
    }
}

fn group(key: &[u8]) -> &[u8] {
    key.get(..GROUP_BYTES).unwrap_or(key)
}
