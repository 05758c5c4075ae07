//! What scripts remember between calls: small values, rates and quotas.
//!
//! Bounded in every direction, in memory only, and kept over a reload: a new generation of scripts
//! goes on where the old one was. Time is an argument.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::recording::wire;

/// Values that one script may keep. Overflow: the one written longest ago goes.
pub const MAX_KEYS: usize = 256;
/// Bytes of one kept value, its key included.
pub const MAX_VALUE_BYTES: usize = 1024;
/// Bytes of the key of a rate or a quota: four node ids.
pub const MAX_KEY_BYTES: usize = 256;
/// Scripts that may keep or count anything; more than any config names. Overflow: those that hold
/// nothing any more go; when all still do, a new one is refused.
const MAX_SCRIPTS: usize = 64;
/// Keys of rates and of quotas, each, of one script, so that none starves another. Overflow: keys
/// that count nothing any more go; when all still count, a new key is over its limit from the start.
const MAX_COUNTERS: usize = 4096;

/// The state of all scripts of a node.
#[derive(Debug, Default)]
pub struct RuleState {
    inner: Mutex<Inner>,
}

/// A value that a script may keep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeptValue {
    /// true or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(#[serde(with = "wire::exact")] f64),
    /// Text.
    Text(String),
}

/// What cannot be kept or counted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StateError {
    /// The key of a rate or a quota.
    #[error("a key has at most {MAX_KEY_BYTES} bytes, not {bytes}: write hash(key) instead")]
    Key {
        /// How long it is.
        bytes: usize,
    },
    /// A value to keep.
    #[error(
        "a kept value has at most {MAX_VALUE_BYTES} bytes with its key, not {bytes}: keep less, or \
         parts under keys of their own"
    )]
    Value {
        /// How large it is, its key included.
        bytes: usize,
    },
    /// Too many scripts keep something.
    #[error("at most {MAX_SCRIPTS} scripts keep values, rates and quotas: run fewer, or restart")]
    Scripts,
}

#[derive(Debug, Default)]
struct Inner {
    shares: HashMap<String, Share>,
    writes: u64,
}

/// What one script holds.
#[derive(Debug, Default)]
struct Share {
    kept: HashMap<String, Kept>,
    /// When each bucket is full again.
    rates: HashMap<String, SystemTime>,
    quotas: HashMap<String, Quota>,
}

#[derive(Debug)]
struct Kept {
    value: KeptValue,
    expires: Option<SystemTime>,
    written: u64,
}

#[derive(Debug)]
struct Quota {
    used: u64,
    ends: SystemTime,
}

impl KeptValue {
    /// Bytes that it takes.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Bool(_) => 1,
            Self::Int(_) | Self::Float(_) => 8,
            Self::Text(text) => text.len(),
        }
    }
}

impl Kept {
    fn is_there(&self, now: SystemTime) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

impl RuleState {
    /// What `script` keeps under `key`.
    pub fn get(&self, now: SystemTime, script: &str, key: &str) -> Option<KeptValue> {
        let inner = self.lock();
        let kept = inner.shares.get(script)?.kept.get(key)?;
        kept.is_there(now).then(|| kept.value.clone())
    }

    /// Keeps `value` for `script`; none removes it, a `ttl` of none keeps it until the node ends.
    ///
    /// # Errors
    /// [`StateError`] when it is too large.
    pub fn set(
        &self,
        now: SystemTime,
        script: &str,
        key: &str,
        value: Option<KeptValue>,
        ttl: Option<Duration>,
    ) -> Result<(), StateError> {
        check_value(key, value.as_ref())?;
        let mut inner = self.lock();
        inner.writes += 1;
        let written = inner.writes;
        let keys = &mut inner.share(now, script)?.kept;
        let Some(value) = value else {
            keys.remove(key);
            return Ok(());
        };
        if !keys.contains_key(key) && keys.len() >= MAX_KEYS {
            make_room(keys, now);
        }
        let expires = ttl.and_then(|ttl| now.checked_add(ttl));
        let kept = Kept {
            value,
            expires,
            written,
        };
        keys.insert(key.to_owned(), kept);
        Ok(())
    }

    /// Takes one from a bucket of `limit` that fills up again evenly over `window`: true `limit`
    /// times at once, then once every `window / limit`; less than twice `limit` in any `window`.
    ///
    /// # Errors
    /// [`StateError`] when the key is too long.
    pub fn rate(
        &self,
        now: SystemTime,
        script: &str,
        key: &str,
        limit: u32,
        window: Duration,
    ) -> Result<bool, StateError> {
        check_key(key)?;
        let mut inner = self.lock();
        let rates = &mut inner.share(now, script)?.rates;
        if !has_place(rates, key, |full_at| *full_at > now) {
            return Ok(false);
        }
        let Some(each) = window.checked_div(limit) else {
            return Ok(false);
        };
        // The generic cell rate algorithm.
        let full_at = rates.get(key).copied().unwrap_or(now).max(now) + each;
        let fits = full_at <= now + window;
        if fits {
            rates.insert(key.to_owned(), full_at);
        }
        Ok(fits)
    }

    /// Takes `amount` from a quota of `limit` a `window`, which begins with the first use. Returns
    /// false, and takes nothing, when less is left.
    ///
    /// # Errors
    /// [`StateError`] when the key is too long.
    pub fn quota(
        &self,
        now: SystemTime,
        script: &str,
        key: &str,
        amount: u64,
        limit: u64,
        window: Duration,
    ) -> Result<bool, StateError> {
        check_key(key)?;
        let mut inner = self.lock();
        let quotas = &mut inner.share(now, script)?.quotas;
        if !has_place(quotas, key, |quota| quota.ends > now) {
            return Ok(false);
        }
        let ends = now + window;
        let quota = quotas.entry(key.to_owned());
        let quota = quota.or_insert(Quota { used: 0, ends });
        if quota.ends <= now {
            *quota = Quota { used: 0, ends };
        }
        let used = quota.used.saturating_add(amount);
        if used <= limit {
            quota.used = used;
        }
        Ok(used <= limit)
    }

    /// How much of the quota `key` is used in its running window.
    pub fn quota_used(&self, now: SystemTime, script: &str, key: &str) -> u64 {
        let inner = self.lock();
        let quota = inner
            .shares
            .get(script)
            .and_then(|share| share.quotas.get(key));
        quota
            .filter(|quota| quota.ends > now)
            .map_or(0, |quota| quota.used)
    }

    /// Every change is one insertion or removal: a panic elsewhere leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn share(&mut self, now: SystemTime, script: &str) -> Result<&mut Share, StateError> {
        if !self.shares.contains_key(script) && self.shares.len() >= MAX_SCRIPTS {
            self.shares.retain(|_, share| share.holds_something(now));
            if self.shares.len() >= MAX_SCRIPTS {
                return Err(StateError::Scripts);
            }
        }
        Ok(self.shares.entry(script.to_owned()).or_default())
    }
}

impl Share {
    fn holds_something(&self, now: SystemTime) -> bool {
        self.kept.values().any(|kept| kept.is_there(now))
            || self.rates.values().any(|full_at| *full_at > now)
            || self.quotas.values().any(|quota| quota.ends > now)
    }
}

/// Whether a rate or a quota may have this key.
pub(crate) fn check_key(key: &str) -> Result<(), StateError> {
    let bytes = key.len();
    if bytes > MAX_KEY_BYTES {
        return Err(StateError::Key { bytes });
    }
    Ok(())
}

/// Whether a script may keep `value` under `key`; removing one is always allowed.
pub(crate) fn check_value(key: &str, value: Option<&KeptValue>) -> Result<(), StateError> {
    let bytes = value.map_or(0, |value| key.len() + value.len());
    if bytes > MAX_VALUE_BYTES {
        return Err(StateError::Value { bytes });
    }
    Ok(())
}

/// Whether `key` may count: it does already, or there is a place for it when those that count
/// nothing any more are gone.
fn has_place<T>(counters: &mut HashMap<String, T>, key: &str, counts: impl Fn(&T) -> bool) -> bool {
    if !counters.contains_key(key) && counters.len() >= MAX_COUNTERS {
        counters.retain(|_, counter| counts(counter));
        return counters.len() < MAX_COUNTERS;
    }
    true
}

fn make_room(keys: &mut HashMap<String, Kept>, now: SystemTime) {
    keys.retain(|_, kept| kept.is_there(now));
    if keys.len() < MAX_KEYS {
        return;
    }
    let oldest = keys
        .iter()
        .min_by_key(|(_, kept)| kept.written)
        .map(|(key, _)| key.clone());
    if let Some(oldest) = oldest {
        keys.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    fn after(seconds: u64) -> SystemTime {
        START + Duration::from_secs(seconds)
    }

    #[test]
    fn values_belong_to_a_script_and_expire() {
        let state = RuleState::default();
        let value = KeptValue::Text("r1".into());
        let ttl = Some(Duration::from_secs(10));
        let set = state.set(START, "a", "home", Some(value.clone()), ttl);
        assert_eq!(set, Ok(()));
        assert_eq!(state.get(after(9), "a", "home"), Some(value));
        assert_eq!(state.get(after(10), "a", "home"), None);
        assert_eq!(state.get(after(1), "b", "home"), None);
    }

    #[test]
    fn the_value_written_longest_ago_makes_room() {
        let state = RuleState::default();
        for index in 0..=MAX_KEYS {
            let one = Some(KeptValue::Int(1));
            let set = state.set(START, "a", &index.to_string(), one, None);
            assert_eq!(set, Ok(()));
        }
        assert_eq!(state.get(START, "a", "0"), None);
        assert_eq!(state.get(START, "a", "1"), Some(KeptValue::Int(1)));
        let large = KeptValue::Text("x".repeat(MAX_VALUE_BYTES));
        let set = state.set(START, "a", "large", Some(large), None);
        let error = set.unwrap_err().to_string();
        assert!(
            error.contains("at most 1024 bytes with its key, not 1029"),
            "{error}"
        );
    }

    #[test]
    fn a_script_that_holds_nothing_any_more_makes_room() {
        let state = RuleState::default();
        let one = || Some(KeptValue::Int(1));
        let ttl = Some(Duration::from_secs(10));
        for index in 0..MAX_SCRIPTS {
            let ttl = ttl.filter(|_| index == 0);
            let set = state.set(START, &index.to_string(), "k", one(), ttl);
            assert_eq!(set, Ok(()));
        }
        let set = |now| state.set(now, "new", "k", one(), None);
        assert_eq!(set(after(9)), Err(StateError::Scripts));
        assert_eq!(set(after(10)), Ok(()));
    }

    #[test]
    fn a_long_key_is_refused() {
        let state = RuleState::default();
        let hour = Duration::from_secs(3600);
        let (fits, long) = ("k".repeat(MAX_KEY_BYTES), "k".repeat(MAX_KEY_BYTES + 1));
        let error = Err(StateError::Key { bytes: 257 });
        assert_eq!(state.rate(START, "a", &fits, 1, hour), Ok(true));
        assert_eq!(state.rate(START, "a", &long, 1, hour), error);
        assert_eq!(state.quota(START, "a", &fits, 1, 1, hour), Ok(true));
        assert_eq!(state.quota(START, "a", &long, 1, 1, hour), error);
    }

    #[test]
    fn a_rate_allows_a_burst_and_fills_up_evenly() {
        let state = RuleState::default();
        let minute = Duration::from_secs(60);
        let ask = |now| state.rate(now, "a", "k", 6, minute).unwrap();
        assert_eq!((0..8).filter(|_| ask(START)).count(), 6);
        assert!(!ask(after(9)));
        assert!(ask(after(10)));
        assert!(!ask(after(10)));
        assert_eq!(state.rate(START, "a", "none", 0, minute), Ok(false));
    }

    #[test]
    fn a_rate_is_true_less_than_twice_its_limit_in_any_window() {
        let state = RuleState::default();
        let minute = Duration::from_secs(60);
        let granted: Vec<u64> = (0..600)
            .flat_map(|second| [second; 3])
            .filter(|second| {
                // Idle first, so that the bucket is full when the crowd comes.
                let asks = *second >= 120;
                asks && state.rate(after(*second), "a", "k", 6, minute).unwrap()
            })
            .collect();
        let in_window = |start: u64| {
            let window = start..start + 60;
            granted.iter().filter(|at| window.contains(at)).count()
        };
        assert_eq!((0..540).map(in_window).max(), Some(11));
    }

    #[test]
    fn a_full_share_of_rates_refuses_new_keys_until_old_ones_lapse() {
        let state = RuleState::default();
        let second = Duration::from_secs(1);
        let ask = |now, script, key: &str| state.rate(now, script, key, 1, second).unwrap();
        for index in 0..MAX_COUNTERS {
            assert!(ask(START, "a", &index.to_string()));
        }
        assert!(!ask(START, "a", "new"));
        assert!(ask(START, "b", "new"), "one script starves another");
        assert!(ask(after(2), "a", "new"));
    }

    #[test]
    fn a_quota_takes_all_or_nothing_and_begins_again() {
        let state = RuleState::default();
        let hour = Duration::from_secs(3600);
        let take = |now, amount| state.quota(now, "a", "k", amount, 100, hour).unwrap();
        assert!(take(START, 60));
        assert!(!take(START, 41));
        assert!(take(START, 40));
        assert_eq!(state.quota_used(after(1), "a", "k"), 100);
        assert_eq!(state.quota_used(after(3600), "a", "k"), 0);
        assert!(take(after(3600), 100));
    }
}
