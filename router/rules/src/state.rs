//! What scripts remember between calls: small values, rates and quotas.
//!
//! Bounded in every direction, in memory only, and kept over a reload: a new generation of scripts
//! goes on where the old one was. Time is an argument.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

/// Keys that one script may keep. Overflow: the key written longest ago goes.
pub const MAX_KEYS: usize = 256;
/// Bytes of one kept value, its key included.
pub const MAX_VALUE_BYTES: usize = 1024;
/// Scripts that may keep anything; more than any config names.
const MAX_SCRIPTS: usize = 64;
/// Keys of rates and of quotas, each, all scripts together. Overflow: keys that count nothing any
/// more go; when all still count, a new key is over its limit from the start.
const MAX_COUNTERS: usize = 16_384;

/// The state of all scripts of a node.
#[derive(Debug, Default)]
pub struct RuleState {
    inner: Mutex<Inner>,
}

/// A value that a script may keep.
#[derive(Debug, Clone, PartialEq)]
pub enum KeptValue {
    /// true or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(String),
}

#[derive(Debug, Default)]
struct Inner {
    kept: HashMap<String, HashMap<String, Kept>>,
    writes: u64,
    rates: HashMap<CounterKey, SystemTime>,
    quotas: HashMap<CounterKey, Quota>,
}

/// The script and its key.
type CounterKey = (String, String);

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
    fn len(&self) -> usize {
        match self {
            Self::Bool(_) => 1,
            Self::Int(_) | Self::Float(_) => 8,
            Self::Text(text) => text.len(),
        }
    }
}

impl RuleState {
    /// What `script` keeps under `key`.
    pub fn get(&self, now: SystemTime, script: &str, key: &str) -> Option<KeptValue> {
        let inner = self.lock();
        let kept = inner.kept.get(script)?.get(key)?;
        kept.expires
            .is_none_or(|expires| now < expires)
            .then(|| kept.value.clone())
    }

    /// Keeps `value` for `script`; none removes it, a `ttl` of none keeps it until the node ends.
    /// Returns whether it fits.
    pub fn set(
        &self,
        now: SystemTime,
        script: &str,
        key: &str,
        value: Option<KeptValue>,
        ttl: Option<Duration>,
    ) -> bool {
        let mut inner = self.lock();
        inner.writes += 1;
        let written = inner.writes;
        if !inner.kept.contains_key(script) && inner.kept.len() >= MAX_SCRIPTS {
            return false;
        }
        let keys = inner.kept.entry(script.to_owned()).or_default();
        let Some(value) = value else {
            keys.remove(key);
            return true;
        };
        if key.len() + value.len() > MAX_VALUE_BYTES {
            return false;
        }
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
        true
    }

    /// Counts one event under `key`: true while there are at most `limit` in any `window`, counted
    /// as a bucket of `limit` that fills up again evenly.
    pub fn rate(
        &self,
        now: SystemTime,
        script: &str,
        key: &str,
        limit: u32,
        window: Duration,
    ) -> bool {
        let mut inner = self.lock();
        let rates = &mut inner.rates;
        let key = (script.to_owned(), key.to_owned());
        if !has_place(rates, &key, |full_at| *full_at > now) {
            return false;
        }
        let Some(each) = window.checked_div(limit) else {
            return false;
        };
        // The generic cell rate algorithm: the moment at which the bucket is full again.
        let full_at = rates.get(&key).copied().unwrap_or(now).max(now) + each;
        let fits = full_at <= now + window;
        if fits {
            rates.insert(key, full_at);
        }
        fits
    }

    /// Takes `amount` from a quota of `limit` a `window`, which begins with the first use. Returns
    /// false, and takes nothing, when less is left.
    pub fn quota(
        &self,
        now: SystemTime,
        script: &str,
        key: &str,
        amount: u64,
        limit: u64,
        window: Duration,
    ) -> bool {
        let mut inner = self.lock();
        let quotas = &mut inner.quotas;
        let key = (script.to_owned(), key.to_owned());
        if !has_place(quotas, &key, |quota| quota.ends > now) {
            return false;
        }
        let ends = now + window;
        let quota = quotas.entry(key).or_insert(Quota { used: 0, ends });
        if quota.ends <= now {
            *quota = Quota { used: 0, ends };
        }
        let used = quota.used.saturating_add(amount);
        if used <= limit {
            quota.used = used;
        }
        used <= limit
    }

    /// How much of the quota `key` is used in its running window.
    pub fn quota_used(&self, now: SystemTime, script: &str, key: &str) -> u64 {
        self.lock()
            .quotas
            .get(&(script.to_owned(), key.to_owned()))
            .filter(|quota| quota.ends > now)
            .map_or(0, |quota| quota.used)
    }

    /// Every change is one insertion or removal: a panic elsewhere leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether `key` may count: it does already, or there is a place for it when those that count
/// nothing any more are gone.
fn has_place<T>(
    counters: &mut HashMap<CounterKey, T>,
    key: &CounterKey,
    counts: impl Fn(&T) -> bool,
) -> bool {
    if !counters.contains_key(key) && counters.len() >= MAX_COUNTERS {
        counters.retain(|_, counter| counts(counter));
        return counters.len() < MAX_COUNTERS;
    }
    true
}

fn make_room(keys: &mut HashMap<String, Kept>, now: SystemTime) {
    keys.retain(|_, kept| kept.expires.is_none_or(|expires| now < expires));
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
        assert!(state.set(START, "a", "home", Some(value.clone()), ttl));
        assert_eq!(state.get(after(9), "a", "home"), Some(value));
        assert_eq!(state.get(after(10), "a", "home"), None);
        assert_eq!(state.get(after(1), "b", "home"), None);
    }

    #[test]
    fn the_value_written_longest_ago_makes_room() {
        let state = RuleState::default();
        for index in 0..=MAX_KEYS {
            assert!(state.set(
                START,
                "a",
                &index.to_string(),
                Some(KeptValue::Int(1)),
                None
            ));
        }
        assert_eq!(state.get(START, "a", "0"), None);
        assert_eq!(state.get(START, "a", "1"), Some(KeptValue::Int(1)));
        let large = KeptValue::Text("x".repeat(MAX_VALUE_BYTES));
        assert!(!state.set(START, "a", "large", Some(large), None));
    }

    #[test]
    fn a_rate_allows_a_burst_and_fills_up_evenly() {
        let state = RuleState::default();
        let minute = Duration::from_secs(60);
        let ask = |now| state.rate(now, "a", "k", 6, minute);
        assert_eq!((0..8).filter(|_| ask(START)).count(), 6);
        assert!(!ask(after(9)));
        assert!(ask(after(10)));
        assert!(!ask(after(10)));
        assert!(!state.rate(START, "a", "none", 0, minute));
    }

    #[test]
    fn a_full_table_of_rates_refuses_new_keys_until_old_ones_lapse() {
        let state = RuleState::default();
        let second = Duration::from_secs(1);
        for index in 0..MAX_COUNTERS {
            assert!(state.rate(START, "a", &index.to_string(), 1, second));
        }
        assert!(!state.rate(START, "a", "new", 1, second));
        assert!(state.rate(after(2), "a", "new", 1, second));
    }

    #[test]
    fn a_quota_takes_all_or_nothing_and_begins_again() {
        let state = RuleState::default();
        let hour = Duration::from_secs(3600);
        let take = |now, amount| state.quota(now, "a", "k", amount, 100, hour);
        assert!(take(START, 60));
        assert!(!take(START, 41));
        assert!(take(START, 40));
        assert_eq!(state.quota_used(after(1), "a", "k"), 100);
        assert_eq!(state.quota_used(after(3600), "a", "k"), 0);
        assert!(take(after(3600), 100));
    }
}
