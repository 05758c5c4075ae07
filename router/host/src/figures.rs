//! What a plugin did, counted: the daemon turns it into metrics.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{event::EventKind, guest::Fault, transaction::Limit};

/// How an event ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ending {
    /// Well.
    Done,
    /// Its handler said no.
    Refused,
    /// Its instance broke.
    Trapped,
    /// It ran too long.
    TimedOut,
    /// The store could not be read.
    Host,
}

impl Ending {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Done,
        Self::Refused,
        Self::Trapped,
        Self::TimedOut,
        Self::Host,
    ];
}

/// Upper bounds of the buckets of handler times.
pub const HANDLER_BOUNDS: [Duration; 10] = [
    Duration::from_micros(5),
    Duration::from_micros(10),
    Duration::from_micros(25),
    Duration::from_micros(100),
    Duration::from_micros(500),
    Duration::from_millis(2),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(500),
    Duration::from_secs(10),
];

/// Counts of one plugin since it was loaded.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    counts: Mutex<Counts>,
    kept_bytes: AtomicU64,
    held_bytes: AtomicU64,
    waiting_messages: AtomicU64,
}

/// Counts of one plugin since it was loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events by kind and ending.
    pub events: BTreeMap<(EventKind, Ending), u64>,
    /// Events by the first of [`HANDLER_BOUNDS`] that their handler kept; the last: none.
    pub handler_times: [u64; HANDLER_BOUNDS.len() + 1],
    /// What all handlers took together.
    pub handler_time: Duration,
    /// Questions by ending.
    pub queries: BTreeMap<Ending, u64>,
    /// Events and requests that ran into a limit, by limit.
    pub limits: BTreeMap<Limit, u64>,
    /// Events that were given up.
    pub given_up: u64,
    /// Volatile messages for which there was no room, or no way.
    pub dropped: u64,
    /// Bytes of blobs that came from other nodes, each piece once it was checked.
    pub blob_bytes_in: u64,
    /// Bytes of blobs that were given to other nodes.
    pub blob_bytes_out: u64,
}

impl Ending {
    pub(crate) fn of<T>(outcome: &Result<T, Fault>) -> Self {
        match outcome {
            Ok(_) => Self::Done,
            Err(Fault::Refused(_)) => Self::Refused,
            Err(Fault::Trapped(_)) => Self::Trapped,
            Err(Fault::TimedOut(_)) => Self::TimedOut,
            Err(Fault::Host(_) | Fault::GivenUp) => Self::Host,
        }
    }
}

impl Figures {
    pub(crate) fn handled(&self, kind: EventKind, ending: Ending, time: Duration) {
        let bucket = HANDLER_BOUNDS.partition_point(|bound| *bound < time);
        let mut counts = self.lock();
        *counts.events.entry((kind, ending)).or_default() += 1;
        counts.handler_time += time;
        if let Some(bucket) = counts.handler_times.get_mut(bucket) {
            *bucket += 1;
        }
    }

    pub(crate) fn answered(&self, ending: Ending) {
        *self.lock().queries.entry(ending).or_default() += 1;
    }

    pub(crate) fn hits<'a>(&self, limits: impl IntoIterator<Item = &'a Limit>) {
        let mut limits = limits.into_iter().peekable();
        if limits.peek().is_none() {
            return;
        }
        let mut counts = self.lock();
        for limit in limits {
            *counts.limits.entry(*limit).or_default() += 1;
        }
    }

    pub(crate) fn dropped(&self) {
        self.lock().dropped += 1;
    }

    pub(crate) fn gave_up(&self) {
        self.lock().given_up += 1;
    }

    /// A principal's rows have so many bytes, and had so many before.
    pub(crate) fn keeps(&self, before: u64, after: u64) {
        let change = |kept: u64| Some(kept.saturating_sub(before).saturating_add(after));
        let _ = self
            .kept_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }

    /// A principal's blobs count for so many bytes, and did for so many before.
    pub(crate) fn holds(&self, before: u64, after: u64) {
        let change = |held: u64| Some(held.saturating_sub(before).saturating_add(after));
        let _ = self
            .held_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }

    /// What the blobs of all principals count for.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// So many durable messages wait on one of its channels, and so many did before.
    pub(crate) fn waits(&self, before: u64, after: u64) {
        let change = |waiting: u64| Some(waiting.saturating_sub(before).saturating_add(after));
        let _ = self
            .waiting_messages
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }

    /// Durable messages that their receivers have not confirmed.
    pub(crate) fn waiting_messages(&self) -> u64 {
        self.waiting_messages.load(Ordering::Relaxed)
    }

    /// Bytes of blobs came from other nodes.
    pub(crate) fn blob_came(&self, bytes: usize) {
        self.lock().blob_bytes_in += bytes as u64;
    }

    /// Bytes of blobs were given to other nodes.
    pub(crate) fn blob_went(&self, bytes: usize) {
        self.lock().blob_bytes_out += bytes as u64;
    }

    /// What all principals keep.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.kept_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Trapped => "trapped",
            Self::TimedOut => "timed-out",
            Self::Host => "store",
        })
    }
}
