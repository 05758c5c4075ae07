//! What the lower half of the node counts; `metrics` exports it, the control socket shows it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use wormholes_proto::Reason;

use crate::{
    network::PunchFailure,
    pipe::{CopyStop, PipeError},
};

/// Times of punches that nobody has looked at so far. Overflow rule: what is newer is not kept, but
/// counted.
const MAX_PUNCH_TIMES: usize = 1024;

/// All counters of a network.
#[derive(Debug, Default)]
pub struct Counters {
    /// Ciphertext carried between two peers.
    pub relay: RoleCounters,
    /// Onion layers peeled for others.
    pub hop: RoleCounters,
    /// Targets dialled for others.
    pub exit: RoleCounters,
    /// Services of this node used by others.
    pub service: RoleCounters,
    /// Calls, in or out, whose handshake broke by the other node's fault or for want of room.
    pub handshakes_failed: AtomicU64,
    /// Calls that were sent back to prove their address first.
    pub calls_sent_back: AtomicU64,
    /// Calls that were turned away after the handshake.
    pub links_refused: AtomicU64,
    /// Streams whose first frame was no request that this node serves.
    pub streams_refused: AtomicU64,
    /// Onion circuits of this node's own that were built.
    pub circuits_built: AtomicU64,
    /// Onion circuits of this node's own that could not be built.
    pub circuits_failed: AtomicU64,
    /// Records that did not verify or broke their format.
    pub records_refused: AtomicU64,
    /// Answers to this node that broke their format, did not verify, or were cut off.
    pub answers_refused: AtomicU64,
    /// Flows that ended because a frame or cell broke its format, did not verify, or was missing.
    pub frames_refused: AtomicU64,
    /// Datagrams that went nowhere.
    pub dropped: DroppedDatagrams,
    /// Sessions at an I2P router.
    pub i2p: I2pCounters,
    /// Direct paths that were to be made through NATs.
    pub punches: PunchCounters,
}

/// Sessions of this node at an I2P router.
#[derive(Debug, Default)]
pub struct I2pCounters {
    /// That came to be.
    pub sessions_made: AtomicU64,
    /// That could not be made.
    pub sessions_failed: AtomicU64,
    /// That the router ended.
    pub sessions_lost: AtomicU64,
}

/// Punches, whichever end asked for them.
#[derive(Debug, Default)]
pub struct PunchCounters {
    made: AtomicU64,
    /// In the order of [`PunchFailure::CODES`].
    failed: [AtomicU64; PunchFailure::CODES.len()],
    took: Mutex<Vec<Duration>>,
}

impl PunchCounters {
    /// Counts one, and keeps how long it took if it led to a path.
    pub(crate) fn ended(&self, ended: Result<(), PunchFailure>, took: Duration) {
        let Err(failure) = ended else {
            self.made.fetch_add(1, Relaxed);
            let mut times = self.times();
            if times.len() < MAX_PUNCH_TIMES {
                times.push(took);
            }
            return;
        };
        let mut counts = PunchFailure::CODES.iter().zip(&self.failed);
        if let Some((_, count)) = counts.find(|(code, _)| **code == failure.code()) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// How many there were, by the word for how they ended.
    pub fn by_result(&self) -> Vec<(&'static str, u64)> {
        let failed = PunchFailure::CODES.into_iter().zip(&self.failed);
        let all = [("direct", &self.made)].into_iter().chain(failed);
        all.map(|(result, count)| (result, count.load(Relaxed)))
            .collect()
    }

    /// How long those took that led to a path since this was asked last.
    pub(crate) fn take_times(&self) -> Vec<Duration> {
        std::mem::take(&mut *self.times())
    }

    fn times(&self) -> std::sync::MutexGuard<'_, Vec<Duration>> {
        self.took.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counters {
    /// Passes on what another node answered, or why there is no answer, and counts its fault.
    pub(crate) fn answered<T>(&self, answer: Result<T, PipeError>) -> Result<T, PipeError> {
        answer.inspect_err(|error| {
            if error.is_breach() {
                self.answers_refused.fetch_add(1, Relaxed);
            }
        })
    }

    /// Counts the end of a flow, if it was another node's fault.
    pub(crate) fn flow_ended(&self, stop: Option<&CopyStop>) {
        if let Some(CopyStop::Near(error) | CopyStop::Far(error)) = stop
            && error.is_breach()
        {
            self.frames_refused.fetch_add(1, Relaxed);
        }
    }
}

/// Datagrams that were dropped here, by what was in their way.
#[derive(Debug, Default)]
pub struct DroppedDatagrams {
    /// As much waited already: for a tunnel that opens, or behind a slow one.
    pub full: AtomicU64,
    /// Their flow was refused, or has ended.
    pub closed: AtomicU64,
    /// They broke the format of SOCKS5's, or were fragments.
    pub malformed: AtomicU64,
    /// They came to an association from somebody else than its client.
    pub foreign: AtomicU64,
    /// They came on a connection between nodes for no flow that is open.
    pub unknown: AtomicU64,
    /// They are longer than what they had to go through, or the system did not send them.
    pub unsent: AtomicU64,
}

impl DroppedDatagrams {
    /// All of them, with the word for what was in their way.
    pub fn by_reason(&self) -> [(&'static str, u64); 6] {
        [
            ("full", &self.full),
            ("closed", &self.closed),
            ("malformed", &self.malformed),
            ("foreign", &self.foreign),
            ("unknown", &self.unknown),
            ("unsent", &self.unsent),
        ]
        .map(|(reason, count)| (reason, count.load(Relaxed)))
    }
}

/// Counters of one thing that this node does for others.
#[derive(Debug, Default)]
pub struct RoleCounters {
    /// Being served.
    pub active: AtomicUsize,
    /// Served since the start, those that are active included.
    pub opened: AtomicU64,
    /// Bytes copied, both directions, those of flows that live included.
    pub bytes: Arc<AtomicU64>,
    /// In the order of [`Reason::ALL`].
    refused: [AtomicU64; Reason::ALL.len()],
}

impl RoleCounters {
    /// Counts a refusal.
    pub(crate) fn refuse(&self, reason: Reason) {
        let mut counts = Reason::ALL.iter().zip(&self.refused);
        if let Some((_, count)) = counts.find(|(counted, _)| **counted == reason) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Reasons that this was refused for, and how often.
    pub fn refused(&self) -> Vec<(Reason, u64)> {
        Reason::ALL
            .into_iter()
            .zip(&self.refused)
            .map(|(reason, count)| (reason, count.load(Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn punches_are_counted_by_how_they_ended_and_paths_by_how_long_they_took() {
        let (counters, second) = (PunchCounters::default(), Duration::from_secs(1));
        counters.ended(Err(PunchFailure::NoAnswer), second);
        for _ in 0..=MAX_PUNCH_TIMES {
            counters.ended(Ok(()), second);
        }
        let paths = MAX_PUNCH_TIMES as u64 + 1;
        for (result, count) in counters.by_result() {
            let expected = match result {
                "direct" => paths,
                "no-answer" => 1,
                _ => 0,
            };
            assert_eq!(count, expected, "{result}");
        }
        assert_eq!(counters.take_times().len(), MAX_PUNCH_TIMES);
        assert!(counters.take_times().is_empty());
    }

    #[test]
    fn every_reason_has_its_counter() {
        let counters = RoleCounters::default();
        let all: Vec<Reason> = (0..=255).filter_map(Reason::from_number).collect();
        for reason in &all {
            counters.refuse(*reason);
        }
        let expected: Vec<_> = all.into_iter().map(|reason| (reason, 1)).collect();
        assert_eq!(counters.refused(), expected);
    }
}
