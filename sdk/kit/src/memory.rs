//! What a principal keeps: on disk, and for as long as the node runs.

use wormholes_plugin::{Error, Result};

use crate::{
    blobs::Blobs,
    keys::Secret,
    mail::Mailbox,
    rows::Rows,
    table::{Agenda, Set, Table},
};

/// By kind and peer: the value, and until when.
pub(crate) type Facts = Table<(String, [u8; 32]), (i64, u64)>;

/// An event works on a copy of it, which shares with it what does not change.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    pub(crate) state: Rows,
    pub(crate) scratch: Rows,
    pub(crate) facts: Facts,
    pub(crate) secret: Rows,
    /// Those that were created, by name.
    pub(crate) keys: Table<String, Secret>,
    pub(crate) timers: Agenda<String, Timer>,
    /// Without an answer.
    pub(crate) requests: Set<u64>,
    /// Those of them that came by HTTP.
    pub(crate) http: Set<u64>,
    /// Questions that were made by HTTP.
    pub(crate) fetches: Set<u64>,
    pub(crate) sockets: Table<u64, Wire>,
    /// Those of them that a start of the node is told of.
    pub(crate) kept_sockets: Set<u64>,
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
    pub(crate) open: Table<u64, Option<u64>>,
    /// What nobody collected.
    pub(crate) results: Table<u64, Result<Vec<u8>>>,
    /// Those whose handler is being told; a start of the node forgets it.
    pub(crate) canceled: Table<u64, Error>,
}

impl Operations {
    /// Of those that ended, the oldest goes where there are too many.
    pub(crate) fn begin(&mut self, id: u64, deadline_ms: Option<u64>, most: usize) {
        while self.open.len() + self.results.len() >= most {
            if self.results.remove_first().is_none() {
                break;
            }
        }
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
        self.state.bytes() + self.secret.bytes() + keys + results.sum::<u64>()
    }

    /// What a start of the node leaves.
    pub(crate) fn forget(&mut self) {
        self.scratch = Rows::default();
        self.facts = Facts::default();
        let operations = &self.operations.open;
        self.requests = operations.keys().copied().collect();
        self.operations.canceled = Table::default();
        self.http = Set::default();
        self.sockets = Table::default();
        self.mail.forget();
        let questions = &self.mail.questions;
        self.fetches.retain(|id| questions.contains_key(id));
        self.timers.retain(|timer| timer.durable);
    }
}
