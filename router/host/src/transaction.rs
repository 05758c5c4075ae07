//! All that one event reads and does. Nothing of it is real before the principal takes it over,
//! and nothing leaves before the batch that it is in is durable.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::{
    event::{ErrorCode, Event, Refusal, Stamp},
    manifest::Limits,
    memory::{Memory, Timer},
    rows::{Home, Space, own_key},
    store::{Snapshot, Span, StoreError, View, Writes},
};

/// The longest key of a row.
const MAX_KEY_BYTES: usize = 512;
/// The longest value of a row.
const MAX_VALUE_BYTES: usize = 1 << 20;
/// The longest answer.
pub(crate) const MAX_ANSWER_BYTES: usize = 1 << 20;
/// The longest payload of a timer: all that are open are in memory.
const MAX_PAYLOAD_BYTES: usize = 4 << 10;
/// What a row takes in memory beside its key and its value.
const ROW_BYTES: usize = 64;
/// Rows that one `scan` lists, and their bytes.
const MAX_SCAN_ROWS: usize = 4096;
const MAX_SCAN_BYTES: usize = 1 << 20;
/// Names of timers.
const MAX_NAME_BYTES: usize = 128;
/// What `random` gives at once.
const MAX_RANDOM_BYTES: usize = 4096;

/// A limit that an event ran into, as metrics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// Bytes that one event writes.
    Write,
    /// Bytes that a plugin keeps.
    State,
    /// Bytes that a principal keeps in memory.
    Scratch,
    /// Open timers.
    Timers,
    /// Bytes of log lines of one event.
    Log,
}

/// What a transaction needs to know of its principal and its plugin.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) home: Home,
    pub(crate) limits: Arc<Limits>,
    /// Bytes that the other principals of this plugin keep.
    pub(crate) others_keep: u64,
}

/// One event's reads and writes.
pub(crate) struct Transaction {
    stamp: Stamp,
    ground: Ground,
    snapshot: Arc<Snapshot>,
    /// As the events before left it.
    memory: Memory,
    rows: Writes,
    written_bytes: usize,
    kept_bytes: i64,
    scratch: Written,
    scratch_bytes: i64,
    timers: BTreeMap<Arc<str>, Option<Timer>>,
    /// Set before, and in this event.
    open_timers: usize,
    answers: BTreeMap<u64, Result<Vec<u8>, Refusal>>,
    progress: Vec<Progress>,
    logged_bytes: usize,
    hits: BTreeSet<Limit>,
    random: ChaCha20Rng,
    /// Nothing becomes real of it.
    reads_only: bool,
}

/// How far a request is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The request's id.
    pub request: u64,
    /// 0 to 100.
    pub percent: Option<u8>,
    /// For people.
    pub text: String,
}

/// Rows in memory that an event wrote: deleted where there is no value.
type Written = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// What an event did, to be made real.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Rows for the store; empty: nothing to make durable.
    pub(crate) writes: Writes,
    /// By how much the principal's rows grew.
    pub(crate) kept_bytes: i64,
    pub(crate) answers: BTreeMap<u64, Result<Vec<u8>, Refusal>>,
    pub(crate) progress: Vec<Progress>,
}

/// Rows in the order of their keys.
pub(crate) type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// Which rows to list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scan {
    pub(crate) prefix: Vec<u8>,
    pub(crate) after: Option<Vec<u8>>,
    pub(crate) backwards: bool,
    pub(crate) limit: u32,
}

impl Transaction {
    pub(crate) fn new(
        stamp: Stamp,
        ground: Ground,
        snapshot: Arc<Snapshot>,
        memory: Memory,
    ) -> Self {
        let random = ChaCha20Rng::from_seed(stamp.seed);
        Self {
            stamp,
            ground,
            snapshot,
            rows: Writes::default(),
            written_bytes: 0,
            kept_bytes: 0,
            scratch: BTreeMap::new(),
            scratch_bytes: 0,
            timers: BTreeMap::new(),
            open_timers: memory.timers.len(),
            answers: BTreeMap::new(),
            progress: Vec::new(),
            logged_bytes: 0,
            hits: BTreeSet::new(),
            random,
            memory,
            reads_only: false,
        }
    }

    /// For a query: whatever it writes is refused.
    pub(crate) fn reading(stamp: Stamp, ground: Ground, snapshot: Arc<Snapshot>) -> Self {
        Self {
            reads_only: true,
            ..Self::new(stamp, ground, snapshot, Memory::default())
        }
    }

    fn check_writable(&self) -> Result<(), Refusal> {
        if self.reads_only {
            return Err(Refusal::new(ErrorCode::Denied, "a query changes nothing"));
        }
        Ok(())
    }

    /// A timer is gone when its event is real, if its handler does not set it again.
    pub(crate) fn consume(&mut self, event: &Event) {
        if let Event::Timer { name, .. } = event {
            self.remove_timer(Arc::clone(name));
        }
    }

    pub(crate) fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// The limits that it ran into.
    pub(crate) fn hits(&self) -> &BTreeSet<Limit> {
        &self.hits
    }

    /// A row of the principal's own; none for a key that no row can have.
    pub(crate) fn state_get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.view().get(&self.ground.home.key(Space::State, key))
    }

    pub(crate) fn state_set(
        &mut self,
        key: &[u8],
        value: Vec<u8>,
    ) -> Result<Result<(), Refusal>, StoreError> {
        if let Err(refusal) = check_row(key, &value) {
            return Ok(Err(refusal));
        }
        self.state_write(key, Some(value))
    }

    pub(crate) fn state_delete(&mut self, key: &[u8]) -> Result<Result<(), Refusal>, StoreError> {
        if let Err(refusal) = check_row(key, &[]) {
            return Ok(Err(refusal));
        }
        self.state_write(key, None)
    }

    pub(crate) fn state_scan(&self, scan: &Scan) -> Result<Rows, StoreError> {
        let home = self.ground.home;
        let after = scan.after.as_deref().map(|key| home.key(Space::State, key));
        let mut rows = self.view().scan(
            &home.key(Space::State, &scan.prefix),
            after.as_deref(),
            scan.backwards,
            scan_limit(scan),
            MAX_SCAN_BYTES,
        )?;
        for (key, _) in &mut rows {
            *key = own_key(key).to_vec();
        }
        Ok(rows)
    }

    fn state_write(
        &mut self,
        key: &[u8],
        value: Option<Vec<u8>>,
    ) -> Result<Result<(), Refusal>, StoreError> {
        if let Err(refusal) = self.check_writable() {
            return Ok(Err(refusal));
        }
        let row = self.ground.home.key(Space::State, key);
        let size = |value: &Vec<u8>| row_bytes(key, value);
        let before = self.view().get(&row)?.as_ref().map_or(0, size);
        let after = value.as_ref().map_or(0, size);
        let kept = self.kept_bytes + after - before;
        if after > before && self.keeps_too_much(kept) {
            return Ok(Err(self.hit(Limit::State)));
        }
        if let Err(refusal) =
            self.charge(key.len() + value.as_ref().map_or(0, Vec::len) + ROW_BYTES)
        {
            return Ok(Err(refusal));
        }
        self.kept_bytes = kept;
        self.rows.put(row, value);
        Ok(Ok(()))
    }

    fn keeps_too_much(&self, change: i64) -> bool {
        let own = self.memory.kept_bytes.saturating_add_signed(change);
        own.saturating_add(self.ground.others_keep) > self.ground.limits.state_bytes()
    }

    pub(crate) fn scratch_get(&self, key: &[u8]) -> Option<Vec<u8>> {
        match self.scratch.get(key) {
            Some(own) => own.clone(),
            None => self.memory.scratch.get(key).cloned(),
        }
    }

    pub(crate) fn scratch_set(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), Refusal> {
        check_row(key, &value)?;
        self.scratch_write(key, Some(value))
    }

    pub(crate) fn scratch_delete(&mut self, key: &[u8]) -> Result<(), Refusal> {
        check_row(key, &[])?;
        self.scratch_write(key, None)
    }

    pub(crate) fn scratch_scan(&self, scan: &Scan) -> Rows {
        merge(&self.memory.scratch, &self.scratch, scan)
    }

    fn scratch_write(&mut self, key: &[u8], value: Option<Vec<u8>>) -> Result<(), Refusal> {
        self.check_writable()?;
        let before = self.scratch_get(key);
        let size = |value: &Option<Vec<u8>>| {
            value
                .as_ref()
                .map_or(0, |value| row_bytes(key, value) + ROW_BYTES as i64)
        };
        let change = self.scratch_bytes + size(&value) - size(&before);
        let kept = self.memory.scratch_bytes.saturating_add_signed(change);
        if size(&value) > size(&before) && kept > self.ground.limits.scratch_bytes() {
            return Err(self.hit(Limit::Scratch));
        }
        self.charge(key.len() + value.as_ref().map_or(0, Vec::len) + ROW_BYTES)?;
        self.scratch_bytes = change;
        self.scratch.insert(key.to_vec(), value);
        Ok(())
    }

    pub(crate) fn timer_set(
        &mut self,
        name: &str,
        at_ms: u64,
        payload: Vec<u8>,
        durable: bool,
    ) -> Result<(), Refusal> {
        self.check_writable()?;
        check_name(name)?;
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(invalid(
                "a timer's payload has at most 4 KiB; keep more in a row",
            ));
        }
        let is_new = self.timer(name).is_none();
        if is_new && self.open_timers >= self.ground.limits.timers as usize {
            return Err(self.hit(Limit::Timers));
        }
        self.charge(name.len() + payload.len() + ROW_BYTES)?;
        let timer = Timer {
            // One that is due at once comes after what waits.
            due_ms: at_ms.max(self.stamp.now_ms + 1),
            payload: payload.into(),
            durable,
        };
        self.timers.insert(name.into(), Some(timer));
        self.open_timers += usize::from(is_new);
        Ok(())
    }

    pub(crate) fn timer_cancel(&mut self, name: &str) -> Result<(), Refusal> {
        self.check_writable()?;
        check_name(name)?;
        self.remove_timer(name.into());
        Ok(())
    }

    pub(crate) fn timer_due(&self, name: &str) -> Option<u64> {
        self.timer(name).map(|timer| timer.due_ms)
    }

    fn timer(&self, name: &str) -> Option<&Timer> {
        match self.timers.get(name) {
            Some(own) => own.as_ref(),
            None => self.memory.timers.get(name),
        }
    }

    fn remove_timer(&mut self, name: Arc<str>) {
        if self.timer(&name).is_some() {
            self.timers.insert(name, None);
            self.open_timers -= 1;
        }
    }

    pub(crate) fn finish(
        &mut self,
        request: u64,
        answer: Result<Vec<u8>, Refusal>,
    ) -> Result<(), Refusal> {
        if answer
            .as_ref()
            .is_ok_and(|body| body.len() > MAX_ANSWER_BYTES)
        {
            return Err(invalid(
                "an answer has at most 1 MiB; give a blob's hash instead",
            ));
        }
        if !self.memory.requests.contains(&request) || self.answers.contains_key(&request) {
            return Err(Refusal::new(
                ErrorCode::NotFound,
                "nobody waits for an answer to this request",
            ));
        }
        self.charge(answer.as_ref().map_or(0, Vec::len) + ROW_BYTES)?;
        self.answers.insert(request, answer);
        Ok(())
    }

    pub(crate) fn progress(
        &mut self,
        request: u64,
        percent: Option<u8>,
        text: String,
    ) -> Result<(), Refusal> {
        if percent.is_some_and(|percent| percent > 100) {
            return Err(invalid("percent is 0 to 100"));
        }
        self.check_writable()?;
        self.charge_log(text.len())?;
        self.progress.push(Progress {
            request,
            percent,
            text,
        });
        Ok(())
    }

    /// Whether so many more bytes may be logged.
    pub(crate) fn charge_log(&mut self, bytes: usize) -> Result<(), Refusal> {
        // A line costs something, however short it is.
        self.logged_bytes = self.logged_bytes.saturating_add(bytes + 16);
        if self.logged_bytes > self.ground.limits.log_bytes() {
            return Err(self.hit(Limit::Log));
        }
        Ok(())
    }

    pub(crate) fn random(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length.min(MAX_RANDOM_BYTES)];
        self.random.fill_bytes(&mut bytes);
        bytes
    }

    fn charge(&mut self, bytes: usize) -> Result<(), Refusal> {
        let written = self.written_bytes + bytes;
        if written > self.ground.limits.write_bytes() {
            return Err(self.hit(Limit::Write));
        }
        self.written_bytes = written;
        Ok(())
    }

    fn hit(&mut self, limit: Limit) -> Refusal {
        self.hits.insert(limit);
        Refusal::new(ErrorCode::Quota, limit.mend())
    }

    fn view(&self) -> View<'_> {
        View::new(&self.rows, &self.memory.overlay, &self.snapshot)
    }

    /// Takes what it did, and gives the principal's memory back with all of it applied.
    pub(crate) fn take_effect(mut self) -> (Memory, Effects) {
        let mut effects = Effects {
            writes: mem::take(&mut self.rows),
            answers: mem::take(&mut self.answers),
            progress: mem::take(&mut self.progress),
            ..Effects::default()
        };
        let memory = &mut self.memory;
        for (key, value) in mem::take(&mut self.scratch) {
            match value {
                Some(value) => memory.scratch.insert(key, value),
                None => memory.scratch.remove(&key),
            };
        }
        memory.scratch_bytes = memory
            .scratch_bytes
            .saturating_add_signed(self.scratch_bytes);
        for (name, timer) in mem::take(&mut self.timers) {
            memory.apply_timer(self.ground.home, name, timer, &mut effects);
        }
        for request in effects.answers.keys() {
            memory.requests.remove(request);
        }
        if self.kept_bytes != 0 {
            effects.kept_bytes = self.kept_bytes;
            memory.kept_bytes = memory.kept_bytes.saturating_add_signed(self.kept_bytes);
            memory.write_head(self.ground.home, &mut effects.writes);
        }
        (self.memory, effects)
    }

    /// Gives the principal's memory back as it was.
    pub(crate) fn undo(self) -> Memory {
        self.memory
    }
}

impl Limit {
    fn mend(self) -> &'static str {
        match self {
            Self::Write => "one event writes too much; raise limits.write_kib or write in parts",
            Self::State => "the plugin keeps too much; raise limits.state_mib or delete rows",
            Self::Scratch => "scratch is full; raise limits.scratch_mib or delete rows",
            Self::Timers => "too many open timers; raise limits.timers or cancel some",
            Self::Log => "one event logs too much; raise limits.log_kib or log less",
        }
    }
}

fn check_row(key: &[u8], value: &[u8]) -> Result<(), Refusal> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(invalid("a key has 1 to 512 bytes"));
    }
    if value.len() > MAX_VALUE_BYTES {
        return Err(invalid("a value has at most 1 MiB; keep more as a blob"));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), Refusal> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(invalid("a timer's name has 1 to 128 bytes"));
    }
    Ok(())
}

fn invalid(rule: &str) -> Refusal {
    Refusal::new(ErrorCode::Invalid, rule)
}

fn row_bytes(key: &[u8], value: &[u8]) -> i64 {
    i64::try_from(key.len() + value.len()).unwrap_or(i64::MAX)
}

fn scan_limit(scan: &Scan) -> usize {
    (scan.limit as usize).min(MAX_SCAN_ROWS)
}

/// Lists rows of `below`, hidden by those of `above`.
fn merge(below: &BTreeMap<Vec<u8>, Vec<u8>>, above: &Written, scan: &Scan) -> Rows {
    let Some(span) = Span::new(&scan.prefix, scan.after.as_deref(), scan.backwards) else {
        return Rows::new();
    };
    let mut below = below.range::<[u8], _>(span.bounds());
    let mut above = above.range::<[u8], _>(span.bounds());
    let (mut low, mut high) = if scan.backwards {
        (below.next_back(), above.next_back())
    } else {
        (below.next(), above.next())
    };
    let (mut rows, mut bytes) = (Rows::new(), 0);
    while rows.len() < scan_limit(scan) {
        let order = match (low, high) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((low, _)), Some((high, _))) if scan.backwards => high.cmp(low),
            (Some((low, _)), Some((high, _))) => low.cmp(high),
        };
        let row = match order {
            Ordering::Less => low,
            Ordering::Equal | Ordering::Greater => {
                high.and_then(|(key, value)| Some((key, value.as_ref()?)))
            }
        };
        if let Some((key, value)) = row {
            bytes += key.len() + value.len();
            if bytes > MAX_SCAN_BYTES && !rows.is_empty() {
                break;
            }
            rows.push((key.clone(), value.clone()));
        }
        if order != Ordering::Greater {
            low = if scan.backwards {
                below.next_back()
            } else {
                below.next()
            };
        }
        if order != Ordering::Less {
            high = if scan.backwards {
                above.next_back()
            } else {
                above.next()
            };
        }
    }
    rows
}
