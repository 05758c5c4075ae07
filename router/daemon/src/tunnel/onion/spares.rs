//! Circuits that were built ahead and wait for a flow.
//!
//! Each holds a place at every hop of its path, so that they are few and go soon.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use wormholes_proto::onion::{PathHop, PathKey};

/// Circuits that wait, one per key: a quarter of the places that a hop gives one client. Overflow:
/// none is built ahead.
const MAX_SPARES: usize = 16;
/// Below the time after which a last hop lets go of a circuit that nobody uses.
const LIFETIME: Duration = Duration::from_secs(60);

/// What waits.
#[derive(Debug)]
pub(super) struct Spares<C>(Mutex<Kept<C>>);

#[derive(Debug)]
struct Kept<C> {
    waiting: BTreeMap<PathKey, Spare<C>>,
    /// Flows that come together have one built, not one each.
    being_built: BTreeSet<PathKey>,
    /// Somebody lets them go in time.
    watched: bool,
}

/// A circuit that was built ahead.
#[derive(Debug)]
pub(super) struct Spare<C> {
    pub(super) path: Vec<PathHop>,
    pub(super) circuit: C,
    pub(super) built: Instant,
}

impl<C> Spares<C> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Kept {
            waiting: BTreeMap::new(),
            being_built: BTreeSet::new(),
            watched: false,
        }))
    }

    /// The circuit that waits for `key`, if it takes that path.
    pub(super) fn take(&self, key: &PathKey, path: &[PathHop], now: Instant) -> Option<C> {
        let spare = self.fresh(now).waiting.remove(key)?;
        (spare.path == path).then_some(spare.circuit)
    }

    /// Whether one shall be built for `key`; whoever is told so builds it, and keeps or releases.
    pub(super) fn claim(&self, key: &PathKey, now: Instant) -> bool {
        let mut kept = self.fresh(now);
        let room = kept.waiting.len() + kept.being_built.len() < MAX_SPARES;
        room && !kept.waiting.contains_key(key) && kept.being_built.insert(key.clone())
    }

    /// None came of what was claimed.
    pub(super) fn release(&self, key: &PathKey) {
        self.fresh(Instant::now()).being_built.remove(key);
    }

    /// Keeps what was claimed. True when nobody watches: then it is the caller's to have all let go
    /// in time.
    pub(super) fn keep(&self, key: PathKey, spare: Spare<C>) -> bool {
        let mut kept = self.fresh(spare.built);
        kept.being_built.remove(&key);
        kept.waiting.insert(key, spare);
        !std::mem::replace(&mut kept.watched, true)
    }

    /// Lets each go when its time is over, until none waits.
    pub(super) async fn let_go_in_time(&self) {
        while let Some(over) = self.next_over() {
            tokio::time::sleep_until(over.into()).await;
        }
    }

    fn next_over(&self) -> Option<Instant> {
        let mut kept = self.fresh(Instant::now());
        let over = kept.waiting.values().map(|spare| spare.built + LIFETIME);
        let next = over.min();
        kept.watched = next.is_some();
        next
    }

    fn fresh(&self, now: Instant) -> MutexGuard<'_, Kept<C>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.waiting
            .retain(|_, spare| now.saturating_duration_since(spare.built) < LIFETIME);
        kept
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

    fn spare(built: Instant) -> Spare<()> {
        Spare {
            path: Vec::new(),
            circuit: (),
            built,
        }
    }

    #[test]
    fn those_whose_time_is_over_make_room_and_are_dropped() {
        let start = Instant::now();
        let spares = Spares::new();
        for number in 0..MAX_SPARES {
            assert!(spares.claim(&key(number), start));
        }
        assert!(!spares.claim(&key(MAX_SPARES), start), "all are claimed");
        for number in 0..MAX_SPARES {
            spares.keep(key(number), spare(start));
        }
        assert!(!spares.claim(&key(MAX_SPARES), start), "it is full");
        let over = start + LIFETIME;
        assert!(spares.take(&key(0), &[], over).is_none());
        let kept = spares.fresh(start).waiting.len();
        assert_eq!(kept, 0, "each held places at hops");
        assert!(spares.claim(&key(0), over));
    }

    #[test]
    fn one_waits_for_a_key_and_serves_its_path_only() {
        let start = Instant::now();
        let spares = Spares::new();
        assert!(spares.claim(&key(1), start));
        assert!(!spares.claim(&key(1), start), "it is being built");
        spares.release(&key(1));
        assert!(spares.claim(&key(1), start), "nothing came of it");
        assert!(spares.keep(key(1), spare(start)));
        assert!(!spares.claim(&key(1), start));
        assert!(spares.take(&key(1), &[], start).is_some());
        assert!(spares.take(&key(1), &[], start).is_none());
        assert!(!spares.keep(key(1), spare(start)), "one watches already");
    }

    #[tokio::test]
    async fn the_last_goes_without_another_flow() {
        let spares = Spares::new();
        let long_ago = Instant::now() - LIFETIME + Duration::from_millis(1);
        assert!(spares.keep(key(1), spare(long_ago)));
        spares.let_go_in_time().await;
        assert!(!spares.0.lock().unwrap().watched);
        assert!(spares.0.lock().unwrap().waiting.is_empty());
    }
}
