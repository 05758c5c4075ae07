//! Circuits that were built ahead and wait for a flow.
//!
//! Each holds a place at every hop of its path, so that they are few and go soon.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use wormholes_proto::onion::{PathHop, PathKey};

use crate::pipe::Pipe;

/// Circuits that wait, one per key: a quarter of the places that a hop gives one client. Overflow:
/// none is built ahead.
const MAX_SPARES: usize = 16;
/// Below the time after which a last hop lets go of a circuit that nobody uses.
const LIFETIME: Duration = Duration::from_secs(60);

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Spares(Mutex<BTreeMap<PathKey, Spare>>);

/// A circuit that was built ahead.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) path: Vec<PathHop>,
    pub(super) pipe: Pipe,
    pub(super) built: Instant,
}

impl Spares {
    /// The circuit that waits for `key`, if it takes that path.
    pub(super) fn take(&self, key: &PathKey, path: &[PathHop], now: Instant) -> Option<Pipe> {
        let spare = self.fresh(now).remove(key)?;
        (spare.path == path).then_some(spare.pipe)
    }

    /// Whether one shall be built for `key`.
    pub(super) fn wants(&self, key: &PathKey, now: Instant) -> bool {
        let spares = self.fresh(now);
        spares.len() < MAX_SPARES && !spares.contains_key(key)
    }

    /// Keeps one, if there is room. True when it is alone: then it is the caller's to have all let
    /// go in time.
    pub(super) fn keep(&self, key: PathKey, spare: Spare) -> bool {
        let mut spares = self.fresh(spare.built);
        let alone = spares.is_empty();
        if spares.len() < MAX_SPARES {
            spares.insert(key, spare);
        }
        alone
    }

    /// Lets each go when its time is over, until none waits.
    pub(super) async fn let_go_in_time(&self) {
        while let Some(over) = self.next_over() {
            tokio::time::sleep_until(over.into()).await;
        }
    }

    fn next_over(&self) -> Option<Instant> {
        let spares = self.fresh(Instant::now());
        spares.values().map(|spare| spare.built + LIFETIME).min()
    }

    fn fresh(&self, now: Instant) -> MutexGuard<'_, BTreeMap<PathKey, Spare>> {
        let mut spares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spares.retain(|_, spare| now.saturating_duration_since(spare.built) < LIFETIME);
        spares
    }
}

#[cfg(test)]
mod tests {
    use wormholes_proto::{
        NodeId, Suite,
        onion::{LastHop, PathRequest},
    };

    use super::*;

    fn key(number: usize) -> PathKey {
        PathKey {
            isolation: number.to_string(),
            request: PathRequest {
                own: NodeId::from_bytes([0; 32]),
                hops: 3,
                via: None,
                to: None,
                friends_only: false,
                last: LastHop::Exit(443),
                suite: Suite::AesGcm,
            },
        }
    }

    fn spare(built: Instant) -> Spare {
        Spare {
            path: Vec::new(),
            pipe: Pipe::memory().0,
            built,
        }
    }

    #[test]
    fn those_whose_time_is_over_make_room_and_are_dropped() {
        let start = Instant::now();
        let spares = Spares::default();
        for number in 0..MAX_SPARES {
            spares.keep(key(number), spare(start));
        }
        assert!(!spares.wants(&key(MAX_SPARES), start), "it is full");
        let over = start + LIFETIME;
        assert!(spares.take(&key(0), &[], over).is_none());
        assert!(spares.fresh(start).is_empty(), "each held places at hops");
        assert!(spares.wants(&key(0), over));
    }

    #[test]
    fn one_waits_for_a_key_and_serves_its_path_only() {
        let start = Instant::now();
        let spares = Spares::default();
        assert!(spares.keep(key(1), spare(start)));
        assert!(
            !spares.keep(key(2), spare(start)),
            "somebody watches already"
        );
        assert!(!spares.wants(&key(1), start));
        assert!(spares.take(&key(1), &[], start).is_some());
        assert!(spares.take(&key(1), &[], start).is_none());
    }

    #[tokio::test]
    async fn the_last_goes_without_another_flow() {
        let spares = Spares::default();
        let long_ago = Instant::now() - LIFETIME + Duration::from_millis(1);
        assert!(spares.keep(key(1), spare(long_ago)));
        spares.let_go_in_time().await;
        assert!(spares.0.lock().unwrap().is_empty());
    }
}
