//! The few nodes that this node's onion paths begin with.
//!
//! Who meets a new first hop for every path meets a hostile one before long, and then that one
//! sees both who asks and, with a hostile last hop, for what. So there is one primary guard and
//! two spares, each kept for 60 to 120 days. Only time, and a week of silence or absence, change
//! them; a guard that cannot be reached, or says itself that it will not serve, lets a spare one go
//! first for a minute. Failures behind a guard have no way in here, or hostile hops could steer the
//! choice.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};

use crate::{id::NodeId, suite::Suite};

use super::path::{Candidate, Holder, shuffle, usable_hop};

/// One primary and two spares.
const MAX_GUARDS: usize = 3;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// A guard is kept for at least that.
const MIN_LIFETIME: Duration = Duration::from_secs(60 * DAY.as_secs());
/// The end is drawn from so long after that, so that an observer cannot await it.
const LIFETIME_SPREAD: Duration = Duration::from_secs(60 * DAY.as_secs());
/// How long a guard may be unreachable or unlisted before another takes its place.
const PATIENCE: Duration = Duration::from_secs(7 * DAY.as_secs());
/// A guard that could not be reached, or refused, stands behind the others for so long.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// The guards, to be kept on disk. At most three; spare ones in a file are dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guards {
    /// The primary first.
    guards: Vec<Guard>,
}

/// One guard. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    id: NodeId,
    until_seconds: u64,
    unlisted_since_seconds: Option<u64>,
    unreachable_since_seconds: Option<u64>,
    #[serde(skip)]
    last_failure: Option<SystemTime>,
}

impl Guards {
    /// Starts without guards; [`handle_candidates`](Self::handle_candidates) finds some.
    pub fn new() -> Self {
        Self::default()
    }

    /// The guards, the primary first.
    pub fn guards(&self) -> &[Guard] {
        &self.guards
    }

    /// Takes the nodes that are known now: lets go of guards whose time is over and fills up.
    /// True when the state on disk is out of date.
    pub fn handle_candidates(
        &mut self,
        candidates: &[Candidate<'_>],
        own: NodeId,
        now: SystemTime,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> bool {
        let before = self.guards.clone();
        let mut usable: Vec<_> = candidates
            .iter()
            .map(|candidate| candidate.record)
            .filter(|record| record.id != own && usable_hop(record, Suite::AesGcm, now).is_some())
            .collect();
        for guard in &mut self.guards {
            let listed = usable.iter().any(|record| record.id == guard.id);
            let since = guard.unlisted_since_seconds.unwrap_or(seconds(now));
            guard.unlisted_since_seconds = (!listed).then_some(since);
        }
        self.guards.retain(|guard| guard.is_kept(now));
        self.guards.truncate(MAX_GUARDS);

        shuffle(&mut usable, rng);
        let mut taken: Vec<_> = usable
            .iter()
            .filter(|record| self.guards.iter().any(|guard| guard.id == record.id))
            .map(|record| Holder::of(record))
            .collect();
        for record in usable {
            if self.guards.len() >= MAX_GUARDS {
                break;
            }
            let holder = Holder::of(record);
            if taken.iter().all(|other| !holder.conflicts(other)) {
                taken.push(holder);
                self.guards.push(Guard::new(record.id, now, rng));
            }
        }
        self.guards != before
    }

    /// A connection to the node as first hop failed.
    pub fn handle_unreachable(&mut self, id: &NodeId, now: SystemTime) {
        for guard in self.guards.iter_mut().filter(|guard| guard.id == *id) {
            guard.last_failure = Some(now);
            guard.unreachable_since_seconds.get_or_insert(seconds(now));
        }
    }

    /// The node itself, as first hop, refused to serve: it stands behind the others for a while,
    /// and stays a guard.
    pub fn handle_refused(&mut self, id: &NodeId, now: SystemTime) {
        for guard in self.guards.iter_mut().filter(|guard| guard.id == *id) {
            guard.last_failure = Some(now);
        }
    }

    /// A connection to the node as first hop stands.
    pub fn handle_reached(&mut self, id: &NodeId) {
        for guard in self.guards.iter_mut().filter(|guard| guard.id == *id) {
            guard.last_failure = None;
            guard.unreachable_since_seconds = None;
        }
    }

    /// Whom to begin a path with: the primary, then the spares; who failed just now comes last.
    pub fn first_hops(&self, now: SystemTime) -> Vec<NodeId> {
        let mut guards: Vec<&Guard> = self.guards.iter().take(MAX_GUARDS).collect();
        guards.sort_by_key(|guard| guard.failed_lately(now));
        guards.iter().map(|guard| guard.id).collect()
    }
}

impl Guard {
    fn new(id: NodeId, now: SystemTime, rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let spread = rng.next_u64() % LIFETIME_SPREAD.as_secs();
        Self {
            id,
            until_seconds: seconds(now) + MIN_LIFETIME.as_secs() + spread,
            unlisted_since_seconds: None,
            unreachable_since_seconds: None,
            last_failure: None,
        }
    }

    /// The node.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// When it is let go.
    pub fn until(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.until_seconds)
    }

    fn is_kept(&self, now: SystemTime) -> bool {
        let now = seconds(now);
        let patience = PATIENCE.as_secs();
        let waits = |since: Option<u64>| since.is_none_or(|since| now < since + patience);
        // A clock that was wrong must not keep a guard for ever.
        let longest = now + MIN_LIFETIME.as_secs() + LIFETIME_SPREAD.as_secs();
        (now..=longest).contains(&self.until_seconds)
            && waits(self.unlisted_since_seconds)
            && waits(self.unreachable_since_seconds)
    }

    fn failed_lately(&self, now: SystemTime) -> bool {
        self.last_failure
            .and_then(|failure| now.duration_since(failure).ok())
            .is_some_and(|age| age < RETRY_AFTER)
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests;
