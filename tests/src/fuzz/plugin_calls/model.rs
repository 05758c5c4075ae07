//! What a principal has, in ordinary maps.

use std::{collections::BTreeMap, sync::Arc};

use wormholes_host::trial::words::state::Range;

/// Rows, in the order of their keys.
pub(super) type Table = BTreeMap<Vec<u8>, Arc<[u8]>>;

/// What one scan lists at most.
const MAX_SCAN_ROWS: usize = 4096;
const MAX_SCAN_BYTES: usize = 1 << 20;

/// A timer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Timer {
    pub(super) due_ms: u64,
    pub(super) durable: bool,
}

/// What survives the node, but for timers that are not durable.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    pub(super) state: Table,
    pub(super) secret: Table,
    pub(super) timers: BTreeMap<String, Timer>,
    /// Blobs that it holds: their lengths, and how often.
    pub(super) blobs: BTreeMap<Vec<u8>, (u64, u32)>,
    /// What is in each of those that this principal wrote.
    pub(super) contents: Table,
    pub(super) drafts: BTreeMap<String, Vec<u8>>,
}

/// A principal.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    pub(super) kept: Kept,
    pub(super) scratch: Table,
}

/// One of its tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    State,
    Secret,
    Scratch,
}

impl Kept {
    /// The timer that is due first.
    pub(super) fn first_timer(&self) -> Option<&str> {
        let timers = self.timers.iter();
        let first = timers.min_by_key(|(name, timer)| (timer.due_ms, *name))?;
        Some(first.0)
    }

    pub(super) fn forget_volatile(&mut self) {
        self.timers.retain(|_, timer| timer.durable);
    }

    /// A blob is held once more.
    pub(super) fn hold(&mut self, id: &[u8], length: u64) {
        let held = self.blobs.entry(id.to_vec()).or_insert((length, 0));
        assert_eq!(held.0, length, "one name, two lengths");
        held.1 += 1;
    }

    /// And once less.
    pub(super) fn release(&mut self, id: &[u8]) {
        let (_, holds) = self.blobs.get_mut(id).unwrap();
        *holds -= 1;
        if *holds == 0 {
            self.blobs.remove(id);
        }
    }
}

impl Model {
    pub(super) fn table(&mut self, of: Of) -> &mut Table {
        match of {
            Of::State => &mut self.kept.state,
            Of::Secret => &mut self.kept.secret,
            Of::Scratch => &mut self.scratch,
        }
    }
}

impl From<Kept> for Model {
    fn from(kept: Kept) -> Self {
        let scratch = Table::new();
        Self { kept, scratch }
    }
}

/// What a scan has to list; each row counts `about` beside its key and its value.
pub(super) fn listed(table: &Table, range: &Range, about: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let is_behind = |key: &Vec<u8>| match &range.after {
        Some(after) if range.backwards => key < after,
        Some(after) => key > after,
        None => true,
    };
    let rows = table.iter();
    let rows = rows.filter(|(key, _)| key.starts_with(&range.prefix) && is_behind(key));
    let mut rows: Vec<_> = rows.collect();
    if range.backwards {
        rows.reverse();
    }
    let mut bytes = 0;
    let fits = |(n, (key, value)): &(usize, (&Vec<u8>, &Arc<[u8]>))| {
        bytes += key.len() + value.len() + about;
        *n == 0 || bytes <= MAX_SCAN_BYTES
    };
    let limit = MAX_SCAN_ROWS.min(range.limit as usize);
    let rows = rows.into_iter().take(limit).enumerate().take_while(fits);
    rows.map(|(_, (key, value))| (key.clone(), value.to_vec()))
        .collect()
}
