//! Paths in use: one per isolation key and kind of path, for ten minutes.
//!
//! Flows of one key share a path, so that they meet few nodes; flows of different keys never do.
//! Each flow still gets a circuit of its own on it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{client::PathHop, path::PathRequest};

/// How long a path serves new flows.
pub const PATH_LIFETIME: Duration = Duration::from_secs(10 * 60);
/// Paths that are kept. Overflow: the oldest goes, and its key gets a new path.
pub const MAX_CACHED_PATHS: usize = 1024;

/// What a path is shared by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathKey {
    /// From the entrance and the rule: who may be told apart from whom.
    pub isolation: String,
    /// What path was asked for.
    pub request: PathRequest,
}

/// The paths in use.
#[derive(Debug, Default)]
pub struct PathCache {
    paths: BTreeMap<PathKey, CachedPath>,
}

#[derive(Debug)]
struct CachedPath {
    hops: Vec<PathHop>,
    chosen: Instant,
}

impl PathCache {
    /// Starts empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// The path for `key`, unless its time is over.
    pub fn get(&self, key: &PathKey, now: Instant) -> Option<&[PathHop]> {
        self.paths
            .get(key)
            .filter(|path| path.is_fresh(now))
            .map(|path| &path.hops[..])
    }

    /// Keeps a path that was chosen just now.
    pub fn insert(&mut self, key: PathKey, hops: Vec<PathHop>, now: Instant) {
        self.paths.retain(|_, path| path.is_fresh(now));
        if self.paths.len() >= MAX_CACHED_PATHS && !self.paths.contains_key(&key) {
            let oldest = self.paths.iter().min_by_key(|(_, path)| path.chosen);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.paths.remove(&oldest);
            }
        }
        self.paths.insert(key, CachedPath { hops, chosen: now });
    }

    /// Whether some key has, or had of late, a path over the same nodes in the same order.
    pub fn holds(&self, hops: &[PathHop]) -> bool {
        let wanted = hops.iter().map(|hop| hop.id);
        let mut paths = self.paths.values();
        paths.any(|path| path.hops.iter().map(|hop| hop.id).eq(wanted.clone()))
    }

    /// Forgets a path on which no circuit could be built; one that replaced it stays.
    pub fn remove(&mut self, key: &PathKey, hops: &[PathHop]) {
        if self.paths.get(key).is_some_and(|path| path.hops == hops) {
            self.paths.remove(key);
        }
    }

    /// How many paths are kept.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Whether no path is kept.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }
}

impl CachedPath {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.chosen) < PATH_LIFETIME
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an Instant has no other source")]
mod tests {
    use std::{net::SocketAddr, time::SystemTime};

    use super::*;
    use crate::{NodeId, OnionKey, Suite, onion::LastHop};

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

    fn hop() -> PathHop {
        PathHop {
            id: NodeId::from_bytes([1; 32]),
            address: SocketAddr::from(([192, 0, 2, 1], 1)),
            key: OnionKey {
                key_id: [1; 8],
                suite: Suite::AesGcm,
                public: [1; 32],
                expires: SystemTime::UNIX_EPOCH,
            },
        }
    }

    #[test]
    fn a_path_is_kept_ten_minutes_for_its_key_only() {
        let start = Instant::now();
        let mut cache = PathCache::new();
        cache.insert(key(1), Vec::new(), start);
        let end = start + PATH_LIFETIME;
        assert!(cache.get(&key(1), end - Duration::from_nanos(1)).is_some());
        assert!(cache.get(&key(1), end).is_none());
        assert!(cache.get(&key(2), start).is_none());
        let mut other_port = key(1);
        other_port.request.last = LastHop::Exit(22);
        assert!(cache.get(&other_port, start).is_none());
        cache.remove(&key(1), &[hop()]);
        assert_eq!(
            cache.len(),
            1,
            "another flow's new path is not the one that failed"
        );
        cache.remove(&key(1), &[]);
        assert!(cache.is_empty());
    }

    #[test]
    fn a_path_is_the_same_whose_nodes_are() {
        let start = Instant::now();
        let mut cache = PathCache::new();
        cache.insert(key(1), vec![hop()], start);
        let mut renewed = hop();
        renewed.key.key_id = [2; 8];
        assert!(cache.holds(&[renewed]));
        assert!(!cache.holds(&[hop(), renewed]));
        assert!(!cache.holds(&[]));
    }

    #[test]
    fn the_oldest_path_makes_room() {
        let start = Instant::now();
        let mut cache = PathCache::new();
        for number in 0..=MAX_CACHED_PATHS {
            let at = start + Duration::from_millis(u64::try_from(number).unwrap());
            cache.insert(key(number), Vec::new(), at);
        }
        assert_eq!(cache.len(), MAX_CACHED_PATHS);
        assert!(cache.get(&key(0), start).is_none());
        assert!(cache.get(&key(1), start).is_some());
    }

    #[test]
    fn paths_that_are_over_make_room_first() {
        let start = Instant::now();
        let mut cache = PathCache::new();
        cache.insert(key(1), Vec::new(), start);
        cache.insert(key(2), Vec::new(), start + PATH_LIFETIME);
        assert_eq!(cache.len(), 1);
    }
}
