//! What a principal knows beside its rows, as a recording has it: all of it when a track begins, and
//! before each event what may be another thing since.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use wormholes_proto::NodeId;

use super::Blob;
use crate::{
    event::RequestKind,
    memory::{Memory, Sealed, Timer},
    message::{OutHead, OutKey, text},
    rows::Home,
    transaction::Effects,
};

/// What a principal remembers when its track begins.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Remembered {
    pub(crate) scratch: Vec<(Blob, Blob)>,
    timers: Vec<(Name, Due)>,
    /// Until when they hold.
    facts: Vec<(Name, NodeId, u64)>,
    channels: Vec<(OutKey, OutHead)>,
    known: Known,
}

/// A text that is shared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Name(#[serde(with = "text")] pub(crate) Arc<str>);

/// An open timer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Due {
    pub(crate) due_ms: u64,
    pub(crate) payload: Blob,
    pub(crate) durable: bool,
}

/// What others change between events: who waits for answers, and which are owed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    requests: BTreeSet<u64>,
    /// Those that came by HTTP.
    http: BTreeSet<u64>,
    /// Of the first those that are operations, and go on.
    operations: BTreeSet<u64>,
    questions: BTreeSet<u64>,
}

/// What an event found, as far as what is recorded before it does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) others_keep: u64,
    kept_bytes: u64,
    scratch_bytes: u64,
    secrets: u32,
    keys: u32,
    last_message: u64,
    outbox_bytes: u64,
    requests: Change,
    http: Change,
    operations: Change,
    questions: Change,
    /// Timers whose event was consumed, though its handler did not succeed.
    timers_gone: Vec<Name>,
}

/// Numbers that came and went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    came: Vec<u64>,
    went: Vec<u64>,
}

impl Remembered {
    pub(crate) fn of(memory: &Memory) -> Self {
        let scratch = memory.scratch.iter();
        let scratch = scratch.map(|(key, value)| (key[..].into(), value[..].into()));
        let timers = memory.timers.iter();
        let timers = timers.map(|(name, timer)| (Name(Arc::clone(name)), timer.into()));
        let facts = memory.facts.iter();
        let facts = facts.map(|((kind, peer), until)| (Name(Arc::clone(kind)), *peer, *until));
        let channels = memory.channels.iter();
        Self {
            scratch: scratch.collect(),
            timers: timers.collect(),
            facts: facts.collect(),
            channels: channels
                .map(|(key, head)| (key.clone(), head.clone()))
                .collect(),
            known: Known::of(memory),
        }
    }

    /// The memory that it was, but for sealed rows.
    pub(crate) fn into_memory(self, home: Home) -> Memory {
        let mut memory = Memory::default();
        for (key, value) in self.scratch {
            memory.set_scratch(key.0, Some(value.0));
        }
        for (name, due) in self.timers {
            memory.apply_timer(home, name.0, Some(due.into()), &mut Effects::default());
        }
        let facts = self.facts.into_iter();
        memory.facts = facts
            .map(|(kind, peer, until)| ((kind.0, peer), until))
            .collect();
        memory.channels = self.channels.into_iter().collect();
        self.known.apply(&mut memory);
        memory
    }
}

impl Known {
    pub(crate) fn of(memory: &Memory) -> Self {
        let of = |kind| {
            let open = memory.requests.iter().filter(|(_, known)| **known == kind);
            open.map(|(id, _)| *id).collect()
        };
        Self {
            requests: of(RequestKind::Command),
            http: of(RequestKind::Http),
            operations: memory.operations.open().map(|(id, _)| id).collect(),
            questions: memory.questions.keys().copied().collect(),
        }
    }

    fn apply(self, memory: &mut Memory) {
        memory.operations.pretend(&self.operations);
        let (requests, http) = (self.requests.into_iter(), self.http.into_iter());
        let requests = requests.map(|id| (id, RequestKind::Command));
        let all = requests.chain(http.map(|id| (id, RequestKind::Http)));
        memory.requests = all.collect();
        let questions = self.questions.into_iter();
        memory.questions = questions.map(|id| (id, 0)).collect::<BTreeMap<_, _>>();
    }
}

impl Found {
    /// What an event finds, and `known` from then on.
    pub(crate) fn of(memory: &Memory, known: &mut Known, timers_gone: Vec<Arc<str>>) -> Self {
        let now = Known::of(memory);
        let Sealed { secrets, keys } = memory.sealed;
        let found = Self {
            others_keep: 0,
            kept_bytes: memory.kept_bytes,
            scratch_bytes: memory.scratch_bytes,
            secrets,
            keys,
            last_message: memory.last_message,
            outbox_bytes: memory.outbox_bytes(),
            requests: Change::between(&known.requests, &now.requests),
            http: Change::between(&known.http, &now.http),
            operations: Change::between(&known.operations, &now.operations),
            questions: Change::between(&known.questions, &now.questions),
            timers_gone: timers_gone.into_iter().map(Name).collect(),
        };
        *known = now;
        found
    }

    /// Has a memory be what the event found.
    pub(crate) fn apply(&self, home: Home, memory: &mut Memory) {
        let mut known = Known::of(memory);
        self.requests.apply(&mut known.requests);
        self.operations.apply(&mut known.operations);
        self.questions.apply(&mut known.questions);
        known.apply(memory);
        memory.kept_bytes = self.kept_bytes;
        memory.scratch_bytes = self.scratch_bytes;
        memory.sealed = Sealed {
            secrets: self.secrets,
            keys: self.keys,
        };
        memory.last_message = self.last_message;
        memory.sent_bytes = self.outbox_bytes;
        for name in &self.timers_gone {
            let none = &mut Effects::default();
            memory.apply_timer(home, Arc::clone(&name.0), None, none);
        }
    }
}

impl Change {
    fn between(before: &BTreeSet<u64>, after: &BTreeSet<u64>) -> Self {
        Self {
            came: after.difference(before).copied().collect(),
            went: before.difference(after).copied().collect(),
        }
    }

    fn apply(&self, numbers: &mut BTreeSet<u64>) {
        for gone in &self.went {
            numbers.remove(gone);
        }
        numbers.extend(&self.came);
    }
}

impl From<&Timer> for Due {
    fn from(timer: &Timer) -> Self {
        Self {
            due_ms: timer.due_ms,
            payload: timer.payload[..].into(),
            durable: timer.durable,
        }
    }
}

impl From<Due> for Timer {
    fn from(due: Due) -> Self {
        Self {
            due_ms: due.due_ms,
            payload: due.payload.0.into(),
            durable: due.durable,
        }
    }
}
