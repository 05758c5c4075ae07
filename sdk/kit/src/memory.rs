//! What a principal keeps: on disk, and for as long as the node runs.

use std::collections::{BTreeMap, BTreeSet};

use wormholes_plugin::{Error, Result};

use crate::{blobs::Blobs, keys::Secret, mail::Mailbox};

pub(crate) type Rows = BTreeMap<Vec<u8>, Vec<u8>>;
/// By kind and peer: the value, and until when.
pub(crate) type Facts = BTreeMap<(String, [u8; 32]), (i64, u64)>;

#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    pub(crate) state: Rows,
    pub(crate) scratch: Rows,
    pub(crate) facts: Facts,
    pub(crate) secret: Rows,
    /// Those that were created, by name.
    pub(crate) keys: BTreeMap<String, Secret>,
    pub(crate) timers: BTreeMap<String, Timer>,
    /// Without an answer.
    pub(crate) requests: BTreeSet<u64>,
    /// Those of them that came by HTTP.
    pub(crate) http: BTreeSet<u64>,
    /// Questions that were made by HTTP.
    pub(crate) fetches: BTreeSet<u64>,
    pub(crate) sockets: BTreeMap<u64, Wire>,
    /// Those of them that a start of the node is told of.
    pub(crate) kept_sockets: BTreeSet<u64>,
    pub(crate) operations: Operations,
    pub(crate) mail: Mailbox,
    pub(crate) blobs: Blobs,
    /// Which version woke it last; `None`: it was never woken.
    pub(crate) woken_by: Option<Version>,
}

/// Requests that go on over a start of the node, and what they came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Operations {
    /// With their deadlines.
    pub(crate) open: BTreeMap<u64, Option<u64>>,
    /// What nobody collected.
    pub(crate) results: BTreeMap<u64, Result<Vec<u8>>>,
    /// Those whose handler is being told; a start of the node forgets it.
    pub(crate) canceled: BTreeMap<u64, Error>,
}

impl Operations {
    /// Of those that ended, the oldest goes where there are too many.
    pub(crate) fn begin(&mut self, id: u64, deadline_ms: Option<u64>, most: usize) {
        while self.open.len() + self.results.len() >= most && self.results.pop_first().is_some() {}
        self.open.insert(id, deadline_ms);
    }
}

/// A connection, as the principal knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wire {
    pub(crate) credit: u32,
    pub(crate) room: u32,
    pub(crate) wants_room: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) schema: u32,
    pub(crate) code: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Timer {
    pub(crate) due_ms: u64,
    pub(crate) payload: Vec<u8>,
    pub(crate) durable: bool,
}

impl Memory {
    /// Keys and values of all rows on disk, and the results of operations.
    pub(crate) fn kept_bytes(&self) -> u64 {
        let keys = self.keys.iter();
        let keys: usize = keys.map(|(name, key)| name.len() + key.length()).sum();
        let keys = u64::try_from(keys).unwrap_or(u64::MAX);
        let results = self.operations.results.values();
        let results = results.flatten().map(|body| body.len() as u64);
        bytes(&self.state) + bytes(&self.secret) + keys + results.sum::<u64>()
    }

    /// What a start of the node leaves.
    pub(crate) fn forget(&mut self) {
        self.scratch.clear();
        self.facts.clear();
        let operations = &self.operations.open;
        self.requests = operations.keys().copied().collect();
        self.operations.canceled.clear();
        self.http.clear();
        self.sockets.clear();
        self.mail.forget();
        let questions = &self.mail.questions;
        self.fetches.retain(|id| questions.contains_key(id));
        self.timers.retain(|_, timer| timer.durable);
    }

    /// The first timer: when it is due, and its name.
    pub(crate) fn next_timer(&self) -> Option<(u64, &str)> {
        let timers = self.timers.iter();
        timers
            .map(|(name, timer)| (timer.due_ms, name.as_str()))
            .min()
    }
}

pub(crate) fn bytes(rows: &Rows) -> u64 {
    let sizes = rows.iter().map(|(key, value)| key.len() + value.len());
    u64::try_from(sizes.sum::<usize>()).unwrap_or(u64::MAX)
}
