//! What one event reads and does: the node's functions, with its limits and its words.

mod messages;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    mem,
    ops::Bound,
    rc::Rc,
};

use wormholes_plugin::{
    Address, Error, ErrorCode, Identity, Letter, Level, Principal, Result,
    host::{Host, Range, Row, Space},
};

use crate::{
    event::cut,
    faults::Faults,
    mail::OutKey,
    manifest::Limits,
    memory::{Memory, Rows, Timer, bytes},
    net::{Parcel, alias_key},
    random::Random,
};

/// What a row takes in memory beside its key and its value.
const ROW_BYTES: usize = 64;
const MAX_KEY_BYTES: usize = 512;
const MAX_VALUE_BYTES: usize = 1 << 20;
const MAX_SCAN_ROWS: usize = 4096;
const MAX_SCAN_BYTES: usize = 1 << 20;
const MAX_PAYLOAD_BYTES: usize = 4 << 10;
const MAX_TIMER_NAME_BYTES: usize = 128;
const MAX_RANDOM_BYTES: usize = 4096;
/// The longest answer.
pub(crate) const MAX_ANSWER_BYTES: usize = 1 << 20;

/// How far a request is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// 0 to 100.
    pub percent: Option<u8>,
    /// For people.
    pub text: String,
}

/// What an event stands on.
#[derive(Debug, Clone)]
pub(crate) struct Ground {
    pub(crate) limits: Limits,
    /// Bytes that the other principals of this plugin keep.
    pub(crate) others_keep: u64,
    pub(crate) now_ms: u64,
    pub(crate) config: BTreeMap<String, String>,
    pub(crate) node_id: [u8; 32],
    pub(crate) principal: Principal,
    pub(crate) protocols: BTreeSet<String>,
    pub(crate) instance: String,
    /// Nothing becomes real of a query.
    pub(crate) reads_only: bool,
}

/// One event's reads and writes. `memory` is the principal's, with all of it applied.
pub(crate) struct Transaction {
    ground: Ground,
    pub(crate) memory: Memory,
    pub(crate) answers: BTreeMap<u64, Result<Vec<u8>>>,
    pub(crate) progress: Vec<(u64, Progress)>,
    pub(crate) log: Vec<(Level, String)>,
    /// What leaves the node and is not kept.
    pub(crate) parcels: Vec<Parcel>,
    /// Whether something is to be made durable.
    pub(crate) writes: bool,
    /// Messages of all kinds.
    sent: usize,
    written_bytes: usize,
    logged_bytes: usize,
    random: Random,
    faults: Rc<RefCell<Faults>>,
}

/// A transaction that a handler runs over; it is taken back even when the handler panics.
pub(crate) struct Shared(pub(crate) Rc<RefCell<Transaction>>);

impl Transaction {
    pub(crate) fn new(
        ground: Ground,
        memory: Memory,
        random: Random,
        faults: Rc<RefCell<Faults>>,
    ) -> Self {
        Self {
            ground,
            memory,
            answers: BTreeMap::new(),
            progress: Vec::new(),
            log: Vec::new(),
            parcels: Vec::new(),
            writes: false,
            sent: 0,
            written_bytes: 0,
            logged_bytes: 0,
            random,
            faults,
        }
    }

    pub(crate) fn remove_timer(&mut self, name: &str) {
        let removed = self.memory.timers.remove(name);
        self.writes |= removed.is_some_and(|timer| timer.durable);
    }

    fn check_writable(&self) -> Result<()> {
        if self.ground.reads_only {
            return Err(Error::denied("a query changes nothing"));
        }
        Ok(())
    }

    fn charge(&mut self, bytes: usize) -> Result<()> {
        let written = self.written_bytes + bytes;
        if written > self.ground.limits.write_bytes() {
            return Err(quota(
                "one event writes too much; raise limits.write_kib or write in parts",
            ));
        }
        self.written_bytes = written;
        Ok(())
    }

    fn charge_log(&mut self, bytes: usize) -> Result<()> {
        self.logged_bytes = self.logged_bytes.saturating_add(bytes + 16);
        if self.logged_bytes > self.ground.limits.log_bytes() {
            return Err(quota(
                "one event logs too much; raise limits.log_kib or log less",
            ));
        }
        Ok(())
    }

    fn rows(&self, space: Space) -> &Rows {
        match space {
            Space::State => &self.memory.state,
            Space::Scratch => &self.memory.scratch,
        }
    }

    fn write(&mut self, space: Space, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        check_row(key, value.unwrap_or_default())?;
        self.check_writable()?;
        // A row in memory costs more than its bytes.
        let more = match space {
            Space::State => 0,
            Space::Scratch => ROW_BYTES,
        };
        let before = self.rows(space).get(key);
        let before = before.map_or(0, |value| key.len() + value.len() + more);
        let after = value.map_or(0, |value| key.len() + value.len() + more);
        if after > before {
            self.check_room(space, after - before)?;
        }
        self.charge(key.len() + value.map_or(0, <[u8]>::len) + ROW_BYTES)?;
        let rows = match space {
            Space::State => &mut self.memory.state,
            Space::Scratch => &mut self.memory.scratch,
        };
        match value {
            Some(value) => rows.insert(key.to_vec(), value.to_vec()),
            None => rows.remove(key),
        };
        self.writes |= space == Space::State;
        Ok(())
    }

    fn check_room(&self, space: Space, more: usize) -> Result<()> {
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        let limits = &self.ground.limits;
        match space {
            Space::State => {
                let own = self.memory.kept_bytes().saturating_add(more);
                let is_user = self.ground.principal != Principal::Node;
                if is_user && own > limits.user_state_bytes()
                    || own + self.ground.others_keep > limits.state_bytes()
                {
                    let full = "the plugin keeps too much; raise limits.state_mib or \
                                limits.user_state_mib, or delete rows";
                    return Err(quota(full));
                }
            }
            Space::Scratch => {
                let rows = self.memory.scratch.len() * ROW_BYTES;
                let rows = u64::try_from(rows).unwrap_or(u64::MAX);
                let kept = bytes(&self.memory.scratch).saturating_add(rows);
                if kept.saturating_add(more) > limits.scratch_bytes() {
                    let full = "scratch is full; raise limits.scratch_mib or delete rows";
                    return Err(quota(full));
                }
            }
        }
        Ok(())
    }

    fn scan(&self, space: Space, range: &Range) -> Vec<Row> {
        let limit = (range.limit as usize).min(MAX_SCAN_ROWS);
        let rows = self.rows(space);
        let mut found = Vec::new();
        let mut bytes = 0;
        let from = (Bound::Included(range.prefix.as_slice()), Bound::Unbounded);
        let mut ahead = rows.range::<[u8], _>(from);
        let beyond = |key: &[u8]| match &range.after {
            Some(after) if range.backwards => key < after.as_slice(),
            Some(after) => key > after.as_slice(),
            None => true,
        };
        let with_prefix = ahead
            .by_ref()
            .take_while(|(key, _)| key.starts_with(&range.prefix));
        let mut all: Vec<_> = with_prefix.filter(|(key, _)| beyond(key)).collect();
        if range.backwards {
            all.reverse();
        }
        for (key, value) in all.into_iter().take(limit) {
            bytes += key.len() + value.len();
            if bytes > MAX_SCAN_BYTES && !found.is_empty() {
                break;
            }
            found.push((key.clone(), value.clone()));
        }
        found
    }

    fn set_timer(&mut self, name: &str, timer: Timer) -> Result<()> {
        self.check_writable()?;
        check_timer_name(name)?;
        if timer.payload.len() > MAX_PAYLOAD_BYTES {
            let long = "a timer's payload has at most 4 KiB; keep more in a row";
            return Err(Error::invalid(long));
        }
        let timers = &self.memory.timers;
        if !timers.contains_key(name) && timers.len() >= self.ground.limits.timers {
            return Err(quota(
                "too many open timers; raise limits.timers or cancel some",
            ));
        }
        self.charge(name.len() + timer.payload.len() + ROW_BYTES)?;
        self.writes |= timer.durable;
        let before = self.memory.timers.insert(name.to_owned(), timer);
        self.writes |= before.is_some_and(|timer| timer.durable);
        Ok(())
    }

    fn finish(&mut self, request: u64, answer: Result<Vec<u8>>) -> Result<()> {
        let length = answer.as_ref().map_or(0, Vec::len);
        if length > MAX_ANSWER_BYTES {
            let long = "an answer has at most 1 MiB; give a blob's hash instead";
            return Err(Error::invalid(long));
        }
        if !self.memory.requests.contains(&request) || self.answers.contains_key(&request) {
            let nobody = "nobody waits for an answer to this request";
            return Err(Error::not_found(nobody));
        }
        self.charge(length + ROW_BYTES)?;
        if self.memory.operations.open.contains_key(&request) && length > 0 {
            self.check_room(Space::State, length)?;
        }
        self.answers.insert(request, answer.map_err(cut));
        Ok(())
    }

    fn progress(&mut self, request: u64, percent: Option<u8>, text: &str) -> Result<()> {
        if percent.is_some_and(|percent| percent > 100) {
            return Err(Error::invalid("percent is 0 to 100"));
        }
        self.check_writable()?;
        self.charge_log(text.len())?;
        let text = text.to_owned();
        self.progress.push((request, Progress { percent, text }));
        Ok(())
    }

    /// Takes what it did; the transaction itself is of no more use.
    pub(crate) fn take(&mut self) -> Self {
        let faults = Rc::clone(&self.faults);
        let empty = Self::new(
            self.ground.clone(),
            Memory::default(),
            Random::new(0),
            faults,
        );
        mem::replace(self, empty)
    }
}

impl Shared {
    /// Each call of the plugin: here it traps when the world says so.
    fn call<T>(&self, call: impl FnOnce(&mut Transaction) -> T) -> T {
        let faults = Rc::clone(&self.0.borrow().faults);
        faults.borrow_mut().host_call();
        call(&mut self.0.borrow_mut())
    }
}

impl Host for Shared {
    fn get(&mut self, space: Space, key: &[u8]) -> Option<Vec<u8>> {
        self.call(|event| event.rows(space).get(key).cloned())
    }

    fn set(&mut self, space: Space, key: &[u8], value: &[u8]) -> Result<()> {
        self.call(|event| event.write(space, key, Some(value)))
    }

    fn delete(&mut self, space: Space, key: &[u8]) -> Result<()> {
        self.call(|event| event.write(space, key, None))
    }

    fn scan(&mut self, space: Space, range: &Range) -> Vec<Row> {
        self.call(|event| event.scan(space, range))
    }

    fn set_timer(&mut self, name: &str, at_ms: u64, payload: &[u8], durable: bool) -> Result<()> {
        self.call(|event| {
            let timer = Timer {
                due_ms: at_ms.max(event.ground.now_ms + 1),
                payload: payload.to_vec(),
                durable,
            };
            event.set_timer(name, timer)
        })
    }

    fn cancel_timer(&mut self, name: &str) -> Result<()> {
        self.call(|event| {
            event.check_writable()?;
            check_timer_name(name)?;
            event.remove_timer(name);
            Ok(())
        })
    }

    fn timer_due(&mut self, name: &str) -> Option<u64> {
        self.call(|event| event.memory.timers.get(name).map(|timer| timer.due_ms))
    }

    fn finish(&mut self, request: u64, answer: Result<Vec<u8>>) -> Result<()> {
        self.call(|event| event.finish(request, answer))
    }

    fn progress(&mut self, request: u64, percent: Option<u8>, text: &str) -> Result<()> {
        self.call(|event| event.progress(request, percent, text))
    }

    fn send(&mut self, letter: Letter) -> Result<u64> {
        self.call(|event| event.send(letter))
    }

    fn post(&mut self, letter: Letter) -> Result<()> {
        self.call(|event| event.post(letter))
    }

    fn ask(&mut self, letter: Letter, deadline_ms: u64) -> Result<u64> {
        self.call(|event| event.question(letter, deadline_ms))
    }

    fn waiting(&mut self, to: &Address, protocol: &str, sender: &Identity) -> u64 {
        self.call(|event| event.waiting(OutKey::new(to, protocol, sender)))
    }

    fn reopen(&mut self, peer: &Address, protocol: &str, sender: &Identity) -> Result<()> {
        self.call(|event| event.reopen(OutKey::new(peer, protocol, sender)))
    }

    fn alias_key(&mut self, name: &str) -> [u8; 32] {
        self.call(|event| alias_key(&event.ground.node_id, &event.ground.principal, name))
    }

    fn log(&mut self, level: Level, message: &str) {
        self.call(|event| {
            if event.charge_log(message.len()).is_ok() {
                event.log.push((level, message.to_owned()));
            }
        });
    }

    fn random(&mut self, length: u32) -> Vec<u8> {
        self.call(|event| event.random.bytes((length as usize).min(MAX_RANDOM_BYTES)))
    }

    fn config(&mut self, key: &str) -> Option<String> {
        self.call(|event| event.ground.config.get(key).cloned())
    }

    fn node_id(&mut self) -> [u8; 32] {
        self.call(|event| event.ground.node_id)
    }

    fn instance(&mut self) -> String {
        self.call(|event| event.ground.instance.clone())
    }
}

fn check_row(key: &[u8], value: &[u8]) -> Result<()> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(Error::invalid("a key has 1 to 512 bytes"));
    }
    if value.len() > MAX_VALUE_BYTES {
        let long = "a value has at most 1 MiB; keep more as a blob";
        return Err(Error::invalid(long));
    }
    Ok(())
}

fn check_timer_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_TIMER_NAME_BYTES {
        return Err(Error::invalid("a timer's name has 1 to 128 bytes"));
    }
    Ok(())
}

fn quota(mend: &str) -> Error {
    Error::new(ErrorCode::Quota, mend)
}
