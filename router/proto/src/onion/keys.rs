//! A hop's onion keys: in memory only, new at start and daily, so that what is recorded today
//! cannot be opened tomorrow.
//!
//! Per suite there is the current key and at most one old one, which is good for another hour:
//! clients with yesterday's record need no second try. Each key remembers the CREATEs it opened;
//! when that memory is full the key goes at once and a new one comes.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rand_core::CryptoRng;

use crate::{
    id::NodeId,
    noise::{HandshakeError, StaticKeypair},
    record::OnionKey,
    suite::Suite,
};

use super::{
    build::{CREATE_BYTES, EPHEMERAL_BYTES},
    hop::{CreateOutcome, open_create},
    seen::SeenKeys,
};

/// CREATEs that one key opens: six a second for a day, in about 8 MiB. Overflow: a new key.
pub const SEEN_PER_KEY: usize = 1 << 19;

/// How long a key is the current one.
const KEY_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// How long an old key is good beyond that: records take a while to spread.
const OLD_KEY_GRACE: Duration = Duration::from_secs(60 * 60);

/// The onion keys of one node.
pub struct OnionKeys {
    id: NodeId,
    /// One entry per suite, each once.
    rings: Vec<Ring>,
    revision: u64,
    max_seen: usize,
}

/// The keys of one suite.
struct Ring {
    current: Key,
    old: Option<Key>,
}

struct Key {
    public: OnionKey,
    keypair: StaticKeypair,
    made: SystemTime,
    seen: SeenKeys,
}

impl OnionKeys {
    /// Makes the first keys, one per suite; `suites` are those that this processor is fast with.
    ///
    /// # Errors
    /// [`HandshakeError`] when no key can be made, which no input causes.
    pub fn new(
        id: NodeId,
        suites: &[Suite],
        now: SystemTime,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<Self, HandshakeError> {
        Self::with_max_seen(id, suites, SEEN_PER_KEY, now, rng)
    }

    fn with_max_seen(
        id: NodeId,
        suites: &[Suite],
        max_seen: usize,
        now: SystemTime,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<Self, HandshakeError> {
        let rings = Suite::ALL
            .into_iter()
            .filter(|suite| suites.contains(suite))
            .map(|suite| {
                let current = Key::generate(suite, max_seen, now, rng)?;
                Ok(Ring { current, old: None })
            })
            .collect::<Result<_, HandshakeError>>()?;
        Ok(Self {
            id,
            rings,
            revision: 0,
            max_seen,
        })
    }

    /// The keys for the node's record.
    pub fn published(&self) -> Vec<OnionKey> {
        self.rings.iter().map(|ring| ring.current.public).collect()
    }

    /// Grows whenever [`published`](Self::published) changes: time for a new record.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// When [`handle_timeout`](Self::handle_timeout) has work next.
    pub fn poll_timeout(&self) -> Option<SystemTime> {
        self.rings.iter().map(Ring::timeout).min()
    }

    /// Replaces keys that had their day and forgets old ones that had their hour.
    ///
    /// # Errors
    /// [`HandshakeError`] when no key can be made, which no input causes.
    pub fn handle_timeout(
        &mut self,
        now: SystemTime,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<(), HandshakeError> {
        for ring in &mut self.rings {
            ring.old.take_if(|old| now >= old.public.expires);
            if now >= ring.current.made + KEY_LIFETIME {
                let suite = ring.current.public.suite;
                let new = Key::generate(suite, self.max_seen, now, rng)?;
                let old = std::mem::replace(&mut ring.current, new);
                ring.old = Some(old).filter(|old| now < old.public.expires);
                self.revision += 1;
            }
        }
        Ok(())
    }

    /// Opens a CREATE.
    pub fn handle_create(
        &mut self,
        now: SystemTime,
        key_id: &[u8; 8],
        slots: &[u8; CREATE_BYTES],
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> CreateOutcome {
        let Some(key) = self.key_mut(key_id, now) else {
            return CreateOutcome::Stale;
        };
        let Some(ephemeral) = slots.first_chunk::<EPHEMERAL_BYTES>() else {
            return CreateOutcome::Drop;
        };
        if key.seen.contains(ephemeral) {
            return CreateOutcome::Drop;
        }
        let (public, keypair) = (key.public, key.keypair.clone());
        let Ok(outcome) = open_create(&self.id, &public, &keypair, slots, rng) else {
            return CreateOutcome::Drop;
        };
        // Noted only when it opened: rubbish fills no memory.
        if self.note_seen(key_id, ephemeral, now, rng) {
            outcome
        } else {
            CreateOutcome::Drop
        }
    }

    fn key_mut(&mut self, key_id: &[u8; 8], now: SystemTime) -> Option<&mut Key> {
        self.rings
            .iter_mut()
            .flat_map(|ring| std::iter::once(&mut ring.current).chain(&mut ring.old))
            .find(|key| key.public.key_id == *key_id && now < key.public.expires)
    }

    /// False when the key must not be used; a key that is full from this on is replaced.
    fn note_seen(
        &mut self,
        key_id: &[u8; 8],
        ephemeral: &[u8; EPHEMERAL_BYTES],
        now: SystemTime,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> bool {
        for ring in &mut self.rings {
            if let Some(old) = &mut ring.old
                && old.public.key_id == *key_id
            {
                let taken = old.seen.insert(ephemeral);
                ring.old.take_if(|old| old.seen.is_full());
                return taken;
            }
            if ring.current.public.key_id == *key_id {
                let taken = ring.current.seen.insert(ephemeral);
                if ring.current.seen.is_full()
                    && let Ok(new) =
                        Key::generate(ring.current.public.suite, self.max_seen, now, rng)
                {
                    ring.current = new;
                    self.revision += 1;
                }
                return taken;
            }
        }
        false
    }
}

impl Ring {
    fn timeout(&self) -> SystemTime {
        let due = self.current.made + KEY_LIFETIME;
        self.old
            .as_ref()
            .map_or(due, |old| due.min(old.public.expires))
    }
}

impl Key {
    fn generate(
        suite: Suite,
        max_seen: usize,
        now: SystemTime,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<Self, HandshakeError> {
        let mut key_id = [0; 8];
        rng.fill_bytes(&mut key_id);
        let keypair = StaticKeypair::generate(rng)?;
        let public = OnionKey {
            key_id,
            suite,
            public: *keypair.public(),
            expires: whole_seconds(now) + KEY_LIFETIME + OLD_KEY_GRACE,
        };
        Ok(Self {
            public,
            keypair,
            made: now,
            seen: SeenKeys::new(max_seen),
        })
    }
}

/// Records carry whole seconds.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

impl fmt::Debug for OnionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnionKeys")
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        onion::{ClientBuild, PathHop},
        testing::rng,
    };

    const ID: NodeId = NodeId::from_bytes([1; 32]);

    fn keys(max_seen: usize) -> OnionKeys {
        OnionKeys::with_max_seen(ID, &Suite::ALL, max_seen, UNIX_EPOCH, &mut rng(1)).unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// What becomes of a fresh CREATE to `key`.
    fn create(keys: &mut OnionKeys, key: OnionKey, now: SystemTime, seed: u64) -> &'static str {
        let hop = PathHop {
            id: ID,
            address: "127.1.0.1:4433".parse().unwrap(),
            key,
        };
        let (_, create) = ClientBuild::new(&[hop], &mut rng(seed)).unwrap();
        match keys.handle_create(now, &create.key_id, &create.slots, &mut rng(seed + 1000)) {
            CreateOutcome::Stale => "stale",
            CreateOutcome::Drop => "drop",
            CreateOutcome::Forward(_) => "forward",
            CreateOutcome::Last { .. } => "last",
        }
    }

    #[test]
    fn each_suite_has_one_published_key() {
        let published = keys(9).published();
        let suites: Vec<_> = published.iter().map(|key| key.suite).collect();
        assert_eq!(suites, Suite::ALL);
        assert_ne!(published[0].key_id, published[1].key_id);
        let twice = [Suite::AesGcm, Suite::AesGcm];
        let one = OnionKeys::new(ID, &twice, UNIX_EPOCH, &mut rng(1)).unwrap();
        assert_eq!(one.published().len(), 1);
    }

    #[test]
    fn keys_are_replaced_daily_and_kept_for_an_hour_more() {
        let mut keys = keys(9);
        let day = 24 * 3600;
        let first = keys.published()[0];
        assert_eq!(keys.poll_timeout(), Some(at(day)));
        keys.handle_timeout(at(day - 1), &mut rng(2)).unwrap();
        assert_eq!((keys.revision(), keys.published()[0]), (0, first));

        keys.handle_timeout(at(day), &mut rng(2)).unwrap();
        assert_eq!(keys.revision(), 2);
        assert_ne!(keys.published()[0], first);
        assert_eq!(keys.poll_timeout(), Some(at(day + 3600)));
        assert_eq!(create(&mut keys, first, at(day + 3599), 3), "last");
        assert_eq!(create(&mut keys, first, at(day + 3600), 4), "stale");
        keys.handle_timeout(at(day + 3600), &mut rng(5)).unwrap();
        assert_eq!(keys.poll_timeout(), Some(at(2 * day)));
    }

    #[test]
    fn a_key_that_overslept_is_not_kept_as_old() {
        let mut keys = keys(9);
        let first = keys.published()[0];
        keys.handle_timeout(at(26 * 3600), &mut rng(2)).unwrap();
        assert_eq!(create(&mut keys, first, at(26 * 3600), 3), "stale");
    }

    #[test]
    fn a_create_opens_once() {
        let mut keys = keys(9);
        let key = keys.published()[0];
        assert_eq!(create(&mut keys, key, UNIX_EPOCH, 3), "last");
        assert_eq!(create(&mut keys, key, UNIX_EPOCH, 3), "drop");
        assert_eq!(create(&mut keys, key, UNIX_EPOCH, 4), "last");
    }

    #[test]
    fn a_full_memory_means_a_new_key_at_once() {
        let mut keys = keys(2);
        let first = keys.published()[0];
        assert_eq!(create(&mut keys, first, UNIX_EPOCH, 3), "last");
        assert_eq!(keys.revision(), 0);
        assert_eq!(create(&mut keys, first, UNIX_EPOCH, 4), "last");
        assert_eq!(keys.revision(), 1);
        assert_eq!(create(&mut keys, first, UNIX_EPOCH, 5), "stale");
        let second = keys.published()[0];
        assert_eq!(create(&mut keys, second, UNIX_EPOCH, 5), "last");
    }

    #[test]
    fn an_old_key_with_a_full_memory_goes() {
        let mut keys = keys(2);
        let first = keys.published()[0];
        let now = at(24 * 3600);
        keys.handle_timeout(now, &mut rng(2)).unwrap();
        assert_eq!(create(&mut keys, first, now, 3), "last");
        assert_eq!(create(&mut keys, first, now, 4), "last");
        assert_eq!(create(&mut keys, first, now, 5), "stale");
        assert_eq!(keys.revision(), 2, "the published keys stayed");
    }

    #[test]
    fn rubbish_fills_no_memory() {
        let mut keys = keys(1);
        let key = keys.published()[0];
        let slots = [7; CREATE_BYTES];
        for _ in 0..3 {
            let outcome = keys.handle_create(UNIX_EPOCH, &key.key_id, &slots, &mut rng(3));
            assert!(matches!(outcome, CreateOutcome::Drop));
        }
        assert_eq!(create(&mut keys, key, UNIX_EPOCH, 3), "last");
    }

    #[test]
    fn secrets_are_not_printed() {
        assert_eq!(format!("{:?}", keys(1)), "OnionKeys { revision: 0, .. }");
    }
}
