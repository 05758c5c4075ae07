//! Rows of one space, in the order of their keys.

use std::ops::Bound;

use wormholes_plugin::host::{Range, Row};

use crate::table::Table;

const MAX_SCAN_ROWS: usize = 4096;
const MAX_SCAN_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Default)]
pub(crate) struct Rows {
    rows: Table<Vec<u8>, Vec<u8>>,
    bytes: u64,
}

impl Rows {
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Vec<u8>> {
        self.rows.get(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Of all keys and values.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts a row; `None` deletes it.
    pub(crate) fn put(&mut self, key: &[u8], value: Option<&[u8]>) {
        let size = |value: &[u8]| u64::try_from(key.len() + value.len()).unwrap_or(u64::MAX);
        let before = self.rows.get(key).map_or(0, |value| size(value));
        self.bytes = self.bytes - before + value.map_or(0, size);
        match value {
            Some(value) => self.rows.insert(key.to_vec(), value.to_vec()),
            None => {
                self.rows.discard(key);
            }
        }
    }

    /// Those that a scan lists.
    pub(crate) fn scan(&self, range: &Range) -> Vec<Row> {
        let limit = (range.limit as usize).min(MAX_SCAN_ROWS);
        let prefix = range.prefix.as_slice();
        let after = range.after.as_deref();
        if !range.backwards {
            let start = match after {
                Some(after) if after >= prefix => Bound::Excluded(after),
                Some(_) | None => Bound::Included(prefix),
            };
            let rows = self.rows.range((start, Bound::Unbounded));
            return take(rows.take_while(|(key, _)| key.starts_with(prefix)), limit);
        }
        let behind = behind(prefix);
        let end = [after, behind.as_deref()].into_iter().flatten().min();
        if end.is_some_and(|end| end <= prefix) {
            return Vec::new();
        }
        let end = end.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = self.rows.range((Bound::Included(prefix), end));
        take(rows.rev(), limit)
    }
}

/// As many as one scan gives.
fn take<'a>(rows: impl Iterator<Item = (&'a Vec<u8>, &'a Vec<u8>)>, limit: usize) -> Vec<Row> {
    let mut found = Vec::new();
    let mut bytes = 0;
    for (key, value) in rows.take(limit) {
        bytes += key.len() + value.len();
        if bytes > MAX_SCAN_BYTES && !found.is_empty() {
            break;
        }
        found.push((key.clone(), value.clone()));
    }
    found
}

/// The first key behind all that begin so; `None`: there is none.
fn behind(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut key = prefix.get(..=last)?.to_vec();
    *key.last_mut()? += 1;
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a scan is defined.
    fn listed(keys: &[&[u8]], range: &Range) -> Vec<Vec<u8>> {
        let beyond = |key: &[u8]| match &range.after {
            Some(after) if range.backwards => key < after.as_slice(),
            Some(after) => key > after.as_slice(),
            None => true,
        };
        let keys = keys.iter().filter(|key| key.starts_with(&range.prefix));
        let mut keys: Vec<_> = keys
            .filter(|key| beyond(key))
            .map(|key| key.to_vec())
            .collect();
        keys.sort();
        if range.backwards {
            keys.reverse();
        }
        keys.truncate(range.limit as usize);
        keys
    }

    #[test]
    fn a_scan_lists_what_begins_so_beyond_a_key() {
        let keys: [&[u8]; 9] = [
            b"a",
            b"ab",
            b"ab\0",
            b"ab\xff",
            b"ab\xff\xff",
            b"ac",
            b"b",
            b"\xff",
            b"\xff\xff",
        ];
        let mut rows = Rows::default();
        for key in keys {
            rows.put(key, Some(b"value"));
        }
        let prefixes: [&[u8]; 7] = [b"", b"a", b"ab", b"ab\xff", b"\xff", b"\xff\xff", b"x"];
        let mut afters = vec![None];
        afters.extend(keys.map(|key| Some(key.to_vec())));
        afters.extend([Some(Vec::new()), Some(b"aa".to_vec()), Some(b"z".to_vec())]);
        for prefix in prefixes {
            for after in &afters {
                for (backwards, limit) in [(false, 2), (false, 99), (true, 2), (true, 99)] {
                    let range = Range {
                        prefix: prefix.to_vec(),
                        after: after.clone(),
                        backwards,
                        limit,
                    };
                    let found = rows.scan(&range).into_iter();
                    let found: Vec<_> = found.map(|(key, _)| key).collect();
                    assert_eq!(found, listed(&keys, &range), "{range:?}");
                }
            }
        }
    }

    #[test]
    fn bytes_are_those_of_the_rows_that_are_there() {
        let mut rows = Rows::default();
        rows.put(b"one", Some(b"1"));
        rows.put(b"two", Some(b"22"));
        rows.put(b"one", Some(b"111"));
        assert_eq!((rows.len(), rows.bytes()), (2, 11));
        rows.put(b"one", None);
        rows.put(b"three", None);
        assert_eq!((rows.len(), rows.bytes()), (1, 5));
    }
}
