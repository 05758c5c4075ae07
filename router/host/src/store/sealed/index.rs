//! Which sealed rows there are, in the order of their keys. Copies share what does not change: one is
//! made for each commit that changes a sealed row, and each snapshot keeps its own.

use std::{
    ops::{Bound, Range},
    sync::Arc,
};

use rpds::RedBlackTreeMapSync;

use super::{super::Span, seal::Key};

#[derive(Debug, Clone, Default)]
pub(super) struct Index(RedBlackTreeMapSync<Vec<u8>, Arc<Entry>>);

/// Where a row lies below, and what opens it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) place: Vec<u8>,
    pub(super) slot: u32,
    pub(super) key: Key,
}

impl Index {
    pub(super) fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.0.get(key).map(|entry| &**entry)
    }

    pub(super) fn insert(&mut self, key: Vec<u8>, entry: Entry) {
        self.0.insert_mut(key, Arc::new(entry));
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> Option<Arc<Entry>> {
        let entry = self.0.get(key).cloned();
        self.0.remove_mut(key);
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
        bounds: (Bound<&'a [u8]>, Bound<&'a [u8]>),
    ) -> impl DoubleEndedIterator<Item = (&'a [u8], &'a Entry)> {
        let rows = self.0.range::<[u8], _>(bounds);
        rows.map(|(key, entry)| (key.as_slice(), &**entry))
    }
}
