//! Tables whose copies share what did not change: an event works on a copy of its principal's memory,
//! which costs nothing, and a change what it touches.

use std::{borrow::Borrow, fmt, ops::Bound};

use rpds::RedBlackTreeMap;

/// Values by key, in the order of the keys.
pub(crate) struct Table<K: Ord, V>(RedBlackTreeMap<K, V>);

/// Things in their order.
pub(crate) struct Set<K: Ord>(Table<K, ()>);

/// Things that are due once each, found by their names and by which is first.
#[derive(Debug, Clone)]
pub(crate) struct Agenda<K: Ord, V> {
    things: Table<K, (u64, V)>,
    order: Table<(u64, K), ()>,
}

impl<K: Ord, V> Table<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.0.size()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0.get(key)
    }

    /// With the key as it is there.
    fn find<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        self.0.get_key_value(key)
    }

    pub(crate) fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.0.contains_key(key)
    }

    pub(crate) fn first(&self) -> Option<(&K, &V)> {
        self.0.first()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// Those between two keys, of which the first must not be the larger one.
    pub(crate) fn range<'a, Q: Ord + ?Sized>(
        &'a self,
        bounds: (Bound<&'a Q>, Bound<&'a Q>),
    ) -> impl DoubleEndedIterator<Item = (&'a K, &'a V)>
    where
        K: Borrow<Q>,
    {
        self.0.range::<Q, _>(bounds)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.0.insert_mut(key, value);
    }

    /// Whether it was there.
    pub(crate) fn discard<Q: Ord + ?Sized>(&mut self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        // Looking for nothing would copy the way there.
        self.contains_key(key) && self.0.remove_mut(key)
    }
}

impl<K: Ord + Clone, V: Clone> Table<K, V> {
    pub(crate) fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        if !self.contains_key(key) {
            return None;
        }
        self.0.get_mut(key)
    }

    pub(crate) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let value = self.get(key).cloned();
        self.discard(key);
        value
    }

    pub(crate) fn remove_first(&mut self) -> Option<V> {
        let key = self.first()?.0.clone();
        self.remove(&key)
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&K, &V) -> bool) {
        let gone = self.iter().filter(|(key, value)| !keep(key, value));
        let gone: Vec<K> = gone.map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.discard(&key);
        }
    }
}

impl<K: Ord> Set<K> {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.0.contains_key(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }

    pub(crate) fn insert(&mut self, key: K) {
        self.0.insert(key, ());
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, key: &K) -> bool {
        self.0.discard(key)
    }

    pub(crate) fn extend(&mut self, keys: impl IntoIterator<Item = K>) {
        keys.into_iter().for_each(|key| self.insert(key));
    }
}

impl<K: Ord + Clone> Set<K> {
    pub(crate) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.0.retain(|key, _| keep(key));
    }
}

impl<K: Ord + Clone, V: Clone> Agenda<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.things.len()
    }

    pub(crate) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.things.get(key).map(|(_, value)| value)
    }

    /// When it is due.
    pub(crate) fn due_ms<Q: Ord + ?Sized>(&self, key: &Q) -> Option<u64>
    where
        K: Borrow<Q>,
    {
        self.things.get(key).map(|(due_ms, _)| *due_ms)
    }

    pub(crate) fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.things.contains_key(key)
    }

    /// What is first, and when.
    pub(crate) fn first(&self) -> Option<(u64, &K)> {
        let ((due_ms, key), _) = self.order.first()?;
        Some((*due_ms, key))
    }

    /// Those whose time has come, in their order.
    pub(crate) fn late(&self, now_ms: u64) -> Vec<K> {
        let order = self.order.keys();
        let late = order.take_while(|(due_ms, _)| *due_ms <= now_ms);
        late.map(|(_, key)| key.clone()).collect()
    }

    pub(crate) fn insert(&mut self, key: K, due_ms: u64, value: V) {
        self.remove(&key);
        self.order.insert((due_ms, key.clone()), ());
        self.things.insert(key, (due_ms, value));
    }

    pub(crate) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let (name, (due_ms, value)) = self.things.find(key)?;
        let (place, value) = ((*due_ms, name.clone()), value.clone());
        self.order.discard(&place);
        self.things.discard(key);
        Some(value)
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&V) -> bool) {
        let gone = self.things.iter().filter(|(_, (_, value))| !keep(value));
        let gone: Vec<K> = gone.map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.remove(&key);
        }
    }
}

impl<K: Ord, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Ord, V> Default for Table<K, V> {
    fn default() -> Self {
        Self(RedBlackTreeMap::new())
    }
}

impl<K: Ord + fmt::Debug, V: fmt::Debug> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord> Clone for Set<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Ord> Default for Set<K> {
    fn default() -> Self {
        Self(Table::default())
    }
}

impl<K: Ord + fmt::Debug> fmt::Debug for Set<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl<K: Ord> FromIterator<K> for Set<K> {
    fn from_iter<I: IntoIterator<Item = K>>(keys: I) -> Self {
        let mut set = Self::default();
        set.extend(keys);
        set
    }
}

impl<K: Ord, V> Default for Agenda<K, V> {
    fn default() -> Self {
        Self {
            things: Table::default(),
            order: Table::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_does_not_change_with_what_it_was_copied_from() {
        let mut table = Table::default();
        for number in 0..100_u32 {
            table.insert(number, vec![number]);
        }
        let copy = table.clone();
        table.get_mut(&7).unwrap().push(8);
        assert_eq!(table.remove(&9), Some(vec![9]));
        assert_eq!(table.remove(&9), None);
        table.retain(|key, _| key % 2 == 1);
        assert_eq!((table.len(), table.get(&7)), (49, Some(&vec![7, 8])));
        assert_eq!((copy.len(), copy.get(&7)), (100, Some(&vec![7])));
        assert_eq!(copy.get(&9), Some(&vec![9]));
        assert_eq!(table.remove_first(), Some(vec![1]));
        let bounds = (Bound::Included(&5), Bound::Excluded(&9));
        let between: Vec<u32> = copy.range(bounds).rev().map(|(key, _)| *key).collect();
        assert_eq!(between, [8, 7, 6, 5]);
    }

    #[test]
    fn an_agenda_knows_what_is_first() {
        let mut agenda = Agenda::<String, u8>::default();
        for (name, due_ms, value) in [("a", 30, 1), ("b", 10, 2), ("c", 20, 3), ("b", 40, 4)] {
            agenda.insert(name.to_owned(), due_ms, value);
        }
        assert_eq!(agenda.first(), Some((20, &"c".to_owned())));
        assert_eq!(agenda.late(30), ["c", "a"]);
        assert_eq!((agenda.due_ms("b"), agenda.get("b")), (Some(40), Some(&4)));
        assert_eq!((agenda.remove("c"), agenda.remove("c")), (Some(3), None));
        agenda.retain(|value| *value == 4);
        assert_eq!(
            (agenda.len(), agenda.first()),
            (1, Some((40, &"b".to_owned())))
        );
    }
}
