//! What one event reads and does: the node's functions, with its limits and its words.

mod blobs;
mod facts;
mod keys;
mod messages;
mod requests;
mod wires;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    mem,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};

use wormholes_plugin::{
    Address, Algorithm, BlobFetch, Connect, Error, ErrorCode, Fetch, Held, HttpResponse, Identity,
    KeyPair, Letter, Level, Principal, Result, Ruling,
    host::{Form, Host, Range, Row, Space},
};

pub(crate) use self::{
    facts::Rules,
    wires::{ROOM_BYTES, taken_room},
};
use crate::{
    faults::Faults,
    keys::{signed, verifies},
    mail::OutKey,
    manifest::Manifest,
    memory::{Memory, Timer},
    net::{Parcel, alias_key},
    random::Random,
    rows::Rows,
};

/// What a row takes in memory beside its key and its value.
const ROW_BYTES: usize = 64;
const MAX_KEY_BYTES: usize = 512;
const MAX_VALUE_BYTES: usize = 1 << 20;
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
    pub(crate) manifest: Rc<Manifest>,
    /// Bytes that the other principals of this plugin keep.
    pub(crate) others_keep: u64,
    /// What their blobs count for.
    pub(crate) others_hold: u64,
    /// Blobs that the event brings.
    pub(crate) offered: BTreeMap<[u8; 32], Arc<[u8]>>,
    pub(crate) now_ms: u64,
    pub(crate) config: Rc<BTreeMap<String, String>>,
    pub(crate) node_id: [u8; 32],
    pub(crate) node_seed: [u8; 32],
    pub(crate) principal: Principal,
    pub(crate) rules: Rules,
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
    /// Channels that have more to say, and blobs that are wanted.
    pub(crate) channels: BTreeSet<OutKey>,
    pub(crate) wanted: Vec<u64>,
    /// Connections that had too little room, whatever becomes of the event.
    pub(crate) wants_room: BTreeSet<u64>,
    /// Blobs of this event: whether each was sealed, and can be read by later ones alone.
    sealed: BTreeMap<[u8; 32], bool>,
    /// Whether something is to be made durable.
    pub(crate) writes: bool,
    /// Whether this step of a migration wrote rows.
    wrote_rows: bool,
    /// Whether steps of a migration run.
    pub(crate) runs_steps: bool,
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
            channels: BTreeSet::new(),
            wanted: Vec::new(),
            wants_room: BTreeSet::new(),
            sealed: BTreeMap::new(),
            writes: false,
            wrote_rows: false,
            runs_steps: false,
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

    /// Ends one step of a migration: the next one has new limits. Whether it wrote rows.
    pub(crate) fn end_step(&mut self) -> bool {
        (self.written_bytes, self.logged_bytes) = (0, 0);
        std::mem::take(&mut self.wrote_rows)
    }

    fn check_writable(&self) -> Result<()> {
        if self.ground.reads_only {
            return Err(Error::denied("a query changes nothing"));
        }
        Ok(())
    }

    fn charge(&mut self, bytes: usize) -> Result<()> {
        let written = self.written_bytes + bytes;
        if written > self.ground.manifest.limits.write_bytes() {
            return Err(quota(
                "one event writes too much; raise limits.write_kib or write in parts",
            ));
        }
        self.written_bytes = written;
        Ok(())
    }

    fn charge_log(&mut self, bytes: usize) -> Result<()> {
        self.logged_bytes = self.logged_bytes.saturating_add(bytes + 16);
        if self.logged_bytes > self.ground.manifest.limits.log_bytes() {
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
            Space::Secret => &self.memory.secret,
        }
    }

    fn write(&mut self, space: Space, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        check_row(key, value.unwrap_or_default())?;
        self.check_writable()?;
        if space == Space::Secret {
            self.check_no_step()?;
        }
        // A row in memory costs more than its bytes.
        let more = match space {
            Space::State | Space::Secret => 0,
            Space::Scratch => ROW_BYTES,
        };
        let before = self.rows(space).get(key);
        let before = before.map_or(0, |value| key.len() + value.len() + more);
        let after = value.map_or(0, |value| key.len() + value.len() + more);
        let rows = self.memory.secret.len();
        let is_new = before == 0 && after > 0;
        if space == Space::Secret && is_new && rows >= self.ground.manifest.limits.secrets {
            let many = "too many secret rows; raise limits.secrets or delete some";
            return Err(quota(many));
        }
        if after > before {
            self.check_room(space, after - before)?;
        }
        self.charge(key.len() + value.map_or(0, <[u8]>::len) + ROW_BYTES)?;
        let rows = match space {
            Space::State => &mut self.memory.state,
            Space::Scratch => &mut self.memory.scratch,
            Space::Secret => &mut self.memory.secret,
        };
        rows.put(key, value);
        self.writes |= space != Space::Scratch;
        self.wrote_rows |= space == Space::State;
        Ok(())
    }

    fn check_room(&self, space: Space, more: usize) -> Result<()> {
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        let limits = &self.ground.manifest.limits;
        match space {
            Space::State | Space::Secret => self.check_kept(more)?,
            Space::Scratch => {
                let rows = self.memory.scratch.len() * ROW_BYTES;
                let rows = u64::try_from(rows).unwrap_or(u64::MAX);
                let kept = self.memory.scratch.bytes().saturating_add(rows);
                if kept.saturating_add(more) > limits.scratch_bytes() {
                    let full = "scratch is full; raise limits.scratch_mib or delete rows";
                    return Err(quota(full));
                }
            }
        }
        Ok(())
    }

    /// Whether the plugin may keep so many more bytes.
    fn check_kept(&self, more: u64) -> Result<()> {
        let limits = &self.ground.manifest.limits;
        let own = self.memory.kept_bytes().saturating_add(more);
        let is_user = self.ground.principal != Principal::Node;
        if is_user && own > limits.user_state_bytes()
            || own.saturating_add(self.ground.others_keep) > limits.state_bytes()
        {
            let full = "the plugin keeps too much; raise limits.state_mib or \
                        limits.user_state_mib, or delete rows";
            return Err(quota(full));
        }
        Ok(())
    }

    fn set_timer(&mut self, name: &str, due_ms: u64, timer: Timer) -> Result<()> {
        self.check_writable()?;
        check_timer_name(name)?;
        if timer.payload.len() > MAX_PAYLOAD_BYTES {
            let long = "a timer's payload has at most 4 KiB; keep more in a row";
            return Err(Error::invalid(long));
        }
        let timers = &self.memory.timers;
        if !timers.contains_key(name) && timers.len() >= self.ground.manifest.limits.timers {
            return Err(quota(
                "too many open timers; raise limits.timers or cancel some",
            ));
        }
        self.charge(name.len() + timer.payload.len() + ROW_BYTES)?;
        let before = self.memory.timers.get(name);
        self.writes |= timer.durable || before.is_some_and(|timer| timer.durable);
        self.memory.timers.insert(name.to_owned(), due_ms, timer);
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
        self.call(|event| event.rows(space).scan(range))
    }

    fn set_timer(&mut self, name: &str, at_ms: u64, payload: &[u8], durable: bool) -> Result<()> {
        self.call(|event| {
            let payload = payload.to_vec();
            let due_ms = at_ms.max(event.ground.now_ms + 1);
            event.set_timer(name, due_ms, Timer { payload, durable })
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
        self.call(|event| event.memory.timers.due_ms(name))
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

    fn set_fact(&mut self, kind: &str, peer: &[u8; 32], value: i64, ttl_ms: u64) -> Result<()> {
        self.call(|event| event.set_fact(kind, peer, value, ttl_ms))
    }

    fn clear_fact(&mut self, kind: &str, peer: &[u8; 32]) -> Result<()> {
        self.call(|event| event.clear_fact(kind, peer))
    }

    fn ask_rules(&mut self, hook: &str, question: &str) -> Result<Ruling> {
        self.call(|event| event.ask_rules(hook, question))
    }

    fn create_key(&mut self, name: &str, algorithm: Algorithm) -> Result<Vec<u8>> {
        self.call(|event| event.create_key(name, algorithm))
    }

    fn forget_key(&mut self, name: &str) -> Result<()> {
        self.call(|event| event.forget_key(name))
    }

    fn public_key(&mut self, key: &KeyPair, algorithm: Algorithm) -> Result<Vec<u8>> {
        self.call(|event| event.secret(key, algorithm)?.public())
    }

    fn sign(&mut self, key: &KeyPair, form: Form<'_>, message: &[u8]) -> Result<[u8; 64]> {
        self.call(|event| event.sign(key, form, message))
    }

    fn agree(&mut self, key: &KeyPair, theirs: &[u8; 32]) -> Result<[u8; 32]> {
        self.call(|event| event.secret(key, Algorithm::X25519)?.agree(theirs))
    }

    fn decapsulate(&mut self, key: &KeyPair, ciphertext: &[u8]) -> Result<[u8; 32]> {
        self.call(|event| {
            let key = event.secret(key, Algorithm::MlKem768)?;
            key.decapsulate(ciphertext)
        })
    }

    fn verify(
        &mut self,
        by: &[u8; 32],
        form: Form<'_>,
        message: &[u8],
        signature: &[u8; 64],
    ) -> bool {
        self.call(|event| {
            let signed = match form {
                // Whoever signed it, whatever it begins with.
                Form::Raw => Ok(message.to_vec()),
                Form::Domain(_) => signed(&event.ground.manifest.plugin.name, form, message),
            };
            signed.is_ok_and(|signed| verifies(by, &signed, signature))
        })
    }

    fn put_blob(&mut self, bytes: &[u8]) -> Result<[u8; 32]> {
        self.call(|event| event.put_blob(bytes))
    }

    fn append_draft(&mut self, name: &str, bytes: &[u8]) -> Result<u64> {
        self.call(|event| event.append_draft(name, bytes))
    }

    fn seal_draft(&mut self, name: &str) -> Result<[u8; 32]> {
        self.call(|event| event.seal_draft(name))
    }

    fn discard_draft(&mut self, name: &str) -> Result<()> {
        self.call(|event| event.discard_draft(name))
    }

    fn blob_length(&mut self, blob: &[u8; 32]) -> Option<u64> {
        self.call(|event| event.blob(blob).map(|bytes| bytes.len() as u64))
    }

    fn read_blob(&mut self, blob: &[u8; 32], offset: u64, length: u32) -> Result<Vec<u8>> {
        self.call(|event| event.read_blob(blob, offset, length))
    }

    fn hold_blob(&mut self, blob: &[u8; 32]) -> Result<()> {
        self.call(|event| event.hold_blob(blob))
    }

    fn release_blob(&mut self, blob: &[u8; 32]) -> Result<()> {
        self.call(|event| event.release_blob(blob))
    }

    fn blobs(&mut self, after: Option<&[u8; 32]>, limit: u32) -> Vec<Held> {
        self.call(|event| event.list_blobs(after, limit))
    }

    fn fetch_blob(&mut self, fetch: BlobFetch) -> Result<u64> {
        self.call(|event| event.fetch_blob(fetch))
    }

    fn cancel_fetch(&mut self, id: u64) -> Result<()> {
        self.call(|event| event.cancel_fetch(id))
    }

    fn respond(&mut self, request: u64, response: HttpResponse) -> Result<()> {
        self.call(|event| event.respond(request, &response))
    }

    fn fetch(&mut self, wanted: Fetch, deadline_ms: u64) -> Result<u64> {
        self.call(|event| event.fetch(wanted, deadline_ms))
    }

    fn connect(&mut self, wanted: Connect) -> Result<u64> {
        self.call(|event| event.connect(wanted))
    }

    fn socket_credit(&mut self, socket: u64, bytes: u32) -> Result<()> {
        self.call(|event| event.socket_credit(socket, bytes))
    }

    fn socket_write(&mut self, socket: u64, data: &[u8]) -> Result<()> {
        self.call(|event| event.socket_write(socket, data))
    }

    fn socket_room(&mut self, socket: u64) -> u32 {
        self.call(|event| event.socket_room(socket))
    }

    fn socket_close(&mut self, socket: u64) -> Result<()> {
        self.call(|event| event.socket_close(socket))
    }

    fn send_to(&mut self, port: u16, to: SocketAddr, data: &[u8]) -> Result<()> {
        self.call(|event| event.send_to(port, to, data))
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
        self.call(|event| event.ground.manifest.plugin.name.clone())
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

impl Transaction {
    /// What is sealed does not change in steps.
    fn check_no_step(&self) -> Result<()> {
        let step = "secret rows, keys and blobs have one side only: change them in `init`, which follows `migrate`";
        let refused = self.runs_steps.then(|| Error::denied(step));
        refused.map_or(Ok(()), Err)
    }
}

fn quota(mend: &str) -> Error {
    Error::new(ErrorCode::Quota, mend)
}
