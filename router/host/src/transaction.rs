//! All that one event reads and does. Nothing of it is real before the principal takes it over,
//! and nothing leaves before the batch that it is in is durable.

mod blobs;
mod drafts;
mod facts;
mod keys;
mod messages;
mod recording;
mod requests;
mod rows;
mod steps;
mod timers;
mod wires;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, mem,
    sync::Arc,
};

use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore, SeedableRng},
};

use wormholes_proto::NodeId;

use crate::{
    event::{ErrorCode, Event, Refusal, Stamp},
    lines::LINE_BYTES,
    memory::{Memory, Sealed, Timer},
    message::Parcel,
    operations::Change,
    recording::Tape,
    rows::{Home, Side},
    rules::{Fact, Usage},
    store::{Snapshot, StoreError, View, Writes},
    wires::WireOrder,
};
use wormholes_proto::manifest::{Capabilities, Limits};

pub use self::requests::Progress;
use self::{blobs::BlobWork, facts::Place, messages::Messages, rows::Written, wires::Wires};
pub(crate) use self::{
    blobs::{BlobEffects, FetchRow, HoldRow, Offered},
    drafts::DraftRow,
    messages::Keeping,
    requests::MAX_ANSWER_BYTES,
    rows::{Own, Rows, Scan},
    wires::{ROOM_BYTES, Wanted},
};

/// What a row takes in memory beside its key and its value.
const ROW_BYTES: usize = 64;
/// What `random` gives at once.
const MAX_RANDOM_BYTES: usize = 4096;

/// A limit that an event or a request ran into, as metrics and `plugin list` name it.
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
    /// Messages of one event.
    Messages,
    /// Durable messages that wait.
    Outbox,
    /// Channels.
    Channels,
    /// Questions without an answer.
    Questions,
    /// Facts that are published.
    Facts,
    /// Peers that are told of: who they are, or what they were billed.
    Peers,
    /// Keys that a principal created.
    Keys,
    /// Rows of a principal in `secret`.
    Secrets,
    /// Bytes of blobs that a plugin holds.
    Blobs,
    /// Bytes of one blob.
    OneBlob,
    /// Blobs that a principal fetches, or writes.
    BlobFetches,
    /// Memory of one instance.
    Memory,
    /// Elements of all tables of one instance.
    Tables,
    /// Processor time of one event.
    Time,
    /// Events that wait for one principal.
    Waiting,
    /// Requests of one principal without an answer.
    Requests,
    /// Operations of one principal that go on.
    Operations,
    /// Requests by HTTP that are not answered.
    Http,
    /// Connections of one principal.
    Sockets,
    /// Bytes that wait for the other end of a connection.
    Room,
    /// Bytes that a plugin writes a second, beside others.
    Pace,
    /// Messages of a plugin a second, and their bytes.
    MessageRate,
    /// Bytes of a plugin's log lines a second.
    LogRate,
    /// What was granted, and is its principal's to do.
    Denied,
    /// Answers to requests that are over, or were never its principal's.
    StrayAnswers,
    /// Time for the answer to a request.
    Unanswered,
}

/// What a transaction needs to know of its principal and its plugin.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) home: Home,
    /// Where its own rows lie, or will.
    pub(crate) side: Side,
    pub(crate) limits: Arc<Limits>,
    /// Bytes that the other principals of this plugin keep.
    pub(crate) others_keep: u64,
    /// Bytes of blobs that they hold.
    pub(crate) others_hold: u64,
    /// Those that the plugin speaks.
    pub(crate) protocols: Arc<BTreeSet<String>>,
    /// What it may do.
    pub(crate) granted: Arc<Capabilities>,
    /// The instance.
    pub(crate) plugin: Arc<str>,
    pub(crate) node: NodeId,
    /// Connections to others that the principal closed, and on which something is still sent.
    pub(crate) closing: usize,
}

/// One event's reads and writes.
pub(crate) struct Transaction {
    stamp: Stamp,
    ground: Ground,
    snapshot: Arc<Snapshot>,
    /// As the events before left it.
    memory: Memory,
    rows: Writes,
    /// By this step.
    written_bytes: usize,
    /// Of that, what are not the principal's own rows.
    beside_bytes: usize,
    /// What steps before did, but for rows.
    held_bytes: usize,
    /// Rows of steps are durable before all of it is real.
    runs_steps: bool,
    kept_bytes: i64,
    /// How many sealed rows the principal has after it.
    sealed: Sealed,
    scratch: Written,
    scratch_bytes: i64,
    timers: BTreeMap<Arc<str>, Option<Timer>>,
    /// Set before, and in this event.
    open_timers: usize,
    answers: BTreeMap<u64, Result<Vec<u8>, Refusal>>,
    progress: Vec<Progress>,
    messages: Messages,
    blobs: BlobWork,
    wires: Wires,
    facts: BTreeMap<Place, Option<(i64, u64)>>,
    /// Published before, and in this event.
    open_facts: usize,
    facts_are_pruned: bool,
    logged_bytes: usize,
    hits: BTreeSet<Limit>,
    random: ChaCha20Rng,
    /// Nothing becomes real of it.
    reads_only: bool,
    /// It is one that is written down whatever it does.
    is_kept: bool,
    tape: Tape,
    /// Sealed rows and keys that it wrote, and deleted.
    sealed_writes: (u32, u32),
}

/// What an event did, to be made real.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Rows for the store; empty: nothing to make durable.
    pub(crate) writes: Writes,
    /// By how much the principal's rows grew.
    pub(crate) kept_bytes: i64,
    pub(crate) answers: BTreeMap<u64, Result<Vec<u8>, Refusal>>,
    pub(crate) progress: Vec<Progress>,
    /// What leaves the node then.
    pub(crate) parcels: Vec<Parcel>,
    pub(crate) wires: Vec<WireOrder>,
    /// What scripts read then.
    pub(crate) facts: Vec<Fact>,
    /// What is told again if it does not become real.
    pub(crate) usage: Option<Arc<[Usage]>>,
    /// What becomes of operations.
    pub(crate) changes: Vec<(u64, Change)>,
    /// What becomes of blobs.
    pub(crate) blobs: BlobEffects,
}

impl Transaction {
    /// Boxed, since it goes from hand to hand, and is large.
    pub(crate) fn new(
        stamp: Stamp,
        ground: Ground,
        snapshot: Arc<Snapshot>,
        memory: Memory,
    ) -> Box<Self> {
        let random = ChaCha20Rng::from_seed(stamp.seed);
        Box::new(Self {
            stamp,
            ground,
            snapshot,
            rows: Writes::default(),
            written_bytes: 0,
            beside_bytes: 0,
            held_bytes: 0,
            runs_steps: false,
            kept_bytes: 0,
            sealed: memory.sealed,
            scratch: BTreeMap::new(),
            scratch_bytes: 0,
            timers: BTreeMap::new(),
            open_timers: memory.timers.len(),
            answers: BTreeMap::new(),
            progress: Vec::new(),
            messages: Messages::default(),
            blobs: BlobWork::default(),
            wires: Wires::default(),
            facts: BTreeMap::new(),
            open_facts: memory.facts.len(),
            facts_are_pruned: false,
            logged_bytes: 0,
            hits: BTreeSet::new(),
            random,
            memory,
            reads_only: false,
            is_kept: false,
            tape: Tape::Off,
            sealed_writes: (0, 0),
        })
    }

    /// For a query: whatever it writes is refused.
    pub(crate) fn reading(stamp: Stamp, ground: Ground, snapshot: Arc<Snapshot>) -> Box<Self> {
        let mut transaction = Self::new(stamp, ground, snapshot, Memory::default());
        transaction.reads_only = true;
        transaction
    }

    fn check_writable(&self) -> Result<(), Refusal> {
        if self.reads_only {
            return Err(Refusal::new(ErrorCode::Denied, "a query changes nothing"));
        }
        Ok(())
    }

    /// A timer is gone when its event is real, if its handler does not set it again.
    ///
    /// # Errors
    /// What it brings cannot be read.
    pub(crate) fn consume(&mut self, event: &Event) -> Result<(), StoreError> {
        let is_operation =
            matches!(event, Event::Request(request) if request.operation().is_some());
        self.is_kept = event.wakes() || is_operation;
        if let Event::Timer { name, .. } = event {
            self.remove_timer(Arc::clone(name));
        }
        self.memory.consume(self.ground.home, event, &mut self.rows);
        self.consume_blobs(event)
    }

    pub(crate) fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// The limits that it ran into.
    pub(crate) fn hits(&self) -> &BTreeSet<Limit> {
        &self.hits
    }

    /// Its instance was not given more of something that the host counts for it.
    pub(crate) fn ran_into(&mut self, limits: impl IntoIterator<Item = Limit>) {
        self.hits.extend(limits);
    }

    /// Whether so many more bytes may be logged.
    pub(crate) fn charge_log(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.logged_bytes = self.logged_bytes.saturating_add(bytes + LINE_BYTES);
        if self.logged_bytes > self.ground.limits.log_bytes() {
            return Err(self.hit(Limit::Log));
        }
        Ok(())
    }

    /// It logs nothing.
    pub(crate) fn mute(&mut self) {
        self.logged_bytes = self.ground.limits.log_bytes();
    }

    pub(crate) fn random(&mut self, length: usize) -> Vec<u8> {
        self.tape.draws();
        let mut bytes = vec![0; length.min(MAX_RANDOM_BYTES)];
        self.random.fill_bytes(&mut bytes);
        bytes
    }

    fn hit(&mut self, limit: Limit) -> Refusal {
        self.hits.insert(limit);
        Refusal::new(ErrorCode::Quota, limit.mend())
    }

    /// It asked for what it may not have.
    fn denied(&mut self, rule: impl Into<String>) -> Refusal {
        self.hits.insert(Limit::Denied);
        Refusal::new(ErrorCode::Denied, rule)
    }

    fn view(&self) -> View<'_> {
        View::new(&self.rows, &self.memory.overlay, &self.snapshot)
    }

    /// Takes what it did, and gives the principal's memory back with all of it applied.
    pub(crate) fn take_effect(mut self) -> (Memory, Effects) {
        let mut effects = Effects {
            writes: mem::take(&mut self.rows),
            ..Effects::default()
        };
        let memory = &mut self.memory;
        for (key, value) in mem::take(&mut self.scratch) {
            memory.set_scratch(key, value);
        }
        memory.scratch_bytes = memory
            .scratch_bytes
            .saturating_add_signed(self.scratch_bytes);
        for (name, timer) in mem::take(&mut self.timers) {
            memory.apply_timer(self.ground.home, name, timer, &mut effects);
        }
        Self::publish(mem::take(&mut self.facts), memory, &mut effects);
        memory.side = self.ground.side;
        let (home, now_ms) = (self.ground.home, self.stamp.now_ms);
        let answers = mem::take(&mut self.answers);
        for (request, answer) in &answers {
            memory.requests.remove(request);
            memory.end_operation(home, (*request, answer), now_ms, &mut effects);
        }
        let blobs = mem::take(&mut self.blobs);
        let holds_otherwise = blobs.changes_bytes();
        blobs.take_effect(&self.ground, memory, &mut effects);
        let messages = mem::take(&mut self.messages);
        messages.take_effect(&self.ground, self.is_kept, memory, &mut effects);
        let wires = mem::take(&mut self.wires);
        wires.take_effect(&self.ground, self.is_kept, memory, &mut effects);
        if self.kept_bytes != 0 || self.sealed != memory.sealed || holds_otherwise {
            memory.sealed = self.sealed;
            effects.kept_bytes = self.kept_bytes;
            memory.kept_bytes = memory.kept_bytes.saturating_add_signed(self.kept_bytes);
            memory.write_head(self.ground.home, &mut effects.writes);
        }
        let progress = mem::take(&mut self.progress);
        // Of what is told of one operation, the last counts.
        let last: BTreeMap<_, _> = progress.iter().map(|told| (told.request, told)).collect();
        for told in last.into_values() {
            memory.tell_operation(home, told, &mut effects);
        }
        (effects.answers, effects.progress) = (answers, progress);
        (self.memory, effects)
    }

    /// Gives the principal's memory back as it was.
    pub(crate) fn undo(self) -> Memory {
        self.memory
    }
}

impl Limit {
    /// All of them.
    pub const ALL: [Self; 31] = [
        Self::Http,
        Self::Sockets,
        Self::Room,
        Self::Pace,
        Self::MessageRate,
        Self::LogRate,
        Self::Write,
        Self::State,
        Self::Scratch,
        Self::Timers,
        Self::Log,
        Self::Memory,
        Self::Tables,
        Self::Time,
        Self::Waiting,
        Self::Requests,
        Self::Operations,
        Self::Messages,
        Self::Outbox,
        Self::Channels,
        Self::Questions,
        Self::Facts,
        Self::Peers,
        Self::Keys,
        Self::Secrets,
        Self::Blobs,
        Self::OneBlob,
        Self::BlobFetches,
        Self::Denied,
        Self::StrayAnswers,
        Self::Unanswered,
    ];

    pub(crate) fn mend(self) -> &'static str {
        match self {
            Self::Write => "one event writes too much; raise limits.write_kib or write in parts",
            Self::State => {
                "the plugin keeps too much; raise limits.state_mib or limits.user_state_mib, or \
                 delete rows"
            }
            Self::Scratch => "scratch is full; raise limits.scratch_mib or delete rows",
            Self::Timers => "too many open timers; raise limits.timers or cancel some",
            Self::Log => "one event logs too much; raise limits.log_kib or log less",
            Self::Messages => "one event sends too much; raise limits.messages or send in parts",
            Self::Outbox => {
                "too much waits for its receivers; raise limits.outbox_mib or send later"
            }
            Self::Channels => "too many channels; raise limits.channels",
            Self::Questions => "too many questions without an answer; raise limits.requests",
            Self::Facts => "too many facts; raise limits.facts or clear some",
            Self::Peers => "the plugin is told of 10,000 peers, and of no more",
            Self::Keys => "too many keys; raise limits.keys or forget some",
            Self::Secrets => "too many secret rows; raise limits.secrets or delete some",
            Self::Blobs => {
                "the plugin holds too much; raise limits.blob_mib or limits.user_blob_mib, or \
                 release blobs"
            }
            Self::OneBlob => "the blob is too long; raise limits.one_blob_mib",
            Self::BlobFetches => {
                "too many blobs are fetched or written at once; raise limits.blob_fetches or wait"
            }
            Self::Memory => "the plugin takes too much memory; raise limits.memory_mib",
            Self::Tables => "the plugin's tables have too many elements",
            Self::Time => "one event runs too long; raise limits.event_ms",
            Self::Waiting => "too many events wait for this plugin; ask again later",
            Self::Requests => "the plugin has too many requests without an answer; ask again later",
            Self::Sockets => "too many sockets; raise limits.sockets or close some",
            Self::Room => {
                "the other end does not take so much at once; `writable` tells when there is room"
            }
            Self::Pace => "the plugin writes too much beside others; raise limits.pace_kib",
            Self::MessageRate => {
                "the plugin sends too much; raise limits.messages_per_second or \
                 limits.message_kib_per_second"
            }
            Self::LogRate => "the plugin logs too much; raise limits.log_kib_per_second",
            Self::Http => "too many requests come at once; ask again later",
            Self::Denied => "the plugin may not do that; see its manifest and its grants",
            Self::StrayAnswers => "nobody waits for an answer to this request",
            Self::Unanswered => "the plugin did not answer in time",
            Self::Operations => {
                "too many operations go on; cancel some, or raise limits.operations"
            }
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Write => "write",
            Self::State => "state",
            Self::Scratch => "scratch",
            Self::Timers => "timers",
            Self::Log => "log",
            Self::Memory => "memory",
            Self::Tables => "tables",
            Self::Time => "time",
            Self::Waiting => "waiting",
            Self::Requests => "requests",
            Self::Operations => "operations",
            Self::Http => "http",
            Self::Sockets => "sockets",
            Self::Room => "room",
            Self::Pace => "pace",
            Self::MessageRate => "message_rate",
            Self::LogRate => "log_rate",
            Self::Messages => "messages",
            Self::Outbox => "outbox",
            Self::Channels => "channels",
            Self::Questions => "questions",
            Self::Facts => "facts",
            Self::Peers => "peers",
            Self::Keys => "keys",
            Self::Secrets => "secrets",
            Self::Blobs => "blobs",
            Self::OneBlob => "one_blob",
            Self::BlobFetches => "blob_fetches",
            Self::Denied => "denied",
            Self::StrayAnswers => "stray_answers",
            Self::Unanswered => "unanswered",
        })
    }
}

fn invalid(rule: &str) -> Refusal {
    Refusal::new(ErrorCode::Invalid, rule)
}
