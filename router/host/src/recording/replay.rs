//! Runs what was recorded again, and says where it parts from the recording.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufReader},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use thiserror::Error;
use tokio::runtime;
use wormholes_proto::manifest::Capabilities;
use zeroize::Zeroizing;

use super::{
    Effect, Ended, EventFrame, Frame, PluginFrame, RecordingError, Tape, TrackFrame,
    effects::difference, format::Reader, tape::Missing,
};
use crate::{
    edition::{Edition, Terms, Workshop},
    event::{ErrorCode, Principal, Refusal, Stamp},
    guest::{Around, Engine, Fault, Instance, Outcome},
    host::LoadError,
    http::HttpResponse,
    lines::PluginLines,
    memory::{Memory, Timer},
    network::{Call, CallError, Datagram, FetchCall, Network, Pipe, SocketCall},
    rows::{Home, Side, Space},
    rules::{Fact, RuleQuestion, Ruling},
    source::Source,
    store::{Frozen, Snapshot},
    transaction::{Ground, Transaction},
};

/// How many times its time an event may take: this machine may be a slower one.
const PATIENCE: u64 = 4;

/// How an event went again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It did the same.
    Agrees,
    /// It did something else: what, first.
    Differs(String),
    /// It did something else, after it was given what nobody recorded; and what it was given.
    Unknown(String),
}

/// An event that ran again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// From 1 on, in the order of the recording.
    pub number: u64,
    /// Whose it was.
    pub principal: String,
    /// Its id, of this principal.
    pub event: u64,
    /// As metrics name it.
    pub kind: String,
    /// The command's, the timer's or the protocol's name.
    pub name: String,
    /// Milliseconds since 1970.
    pub at_unix_ms: u64,
    /// How often it was tried before.
    pub attempt: u32,
    /// What its handler took then.
    pub took_then: Duration,
    /// What it took now.
    pub took: Duration,
    /// How it went.
    pub verdict: Verdict,
}

/// What came of a replay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replay {
    /// The instance.
    pub instance: String,
    /// Events.
    pub events: u64,
    /// Those that did the same.
    pub agree: u64,
    /// Those that did something else.
    pub differ: u64,
    /// Those of which nobody can tell.
    pub unknown: u64,
    /// What all handlers took then.
    pub took_then: Duration,
    /// What they took now.
    pub took: Duration,
}

/// A recording that cannot be replayed.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// It cannot be read.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// The component does not run under what was granted.
    #[error(transparent)]
    Plugin(#[from] Box<LoadError>),
    /// The machine cannot run what the compiler makes.
    #[error("cannot run plugins: {0}")]
    Engine(#[from] io::Error),
    /// The version's files were gone when the recording was saved.
    #[error(
        "the recording does not hold the component with the SHA-256 {0}: name its file with --wasm"
    )]
    NoComponent(String),
}

impl Replay {
    /// Replays the recording in a file by the components in it, or by another one. `told` hears of
    /// each event in turn.
    ///
    /// # Errors
    /// [`ReplayError`] says what stands in the way.
    pub fn run(
        file: &Path,
        other: Option<Vec<u8>>,
        told: &mut dyn FnMut(Replayed),
    ) -> Result<Self, ReplayError> {
        let open = || File::open(file).map_err(RecordingError::Read);
        // All of it is looked at before any of it runs.
        let mut reader = Reader::new(BufReader::new(open()?))?;
        while reader.next()?.is_some() {}
        let mut reader = Reader::new(BufReader::new(open()?))?;
        let runtime = runtime::Builder::new_current_thread().build()?;
        let mut stage = Stage::new(other)?;
        while let Some((frame, _)) = reader.next()? {
            if let Some(replayed) = runtime.block_on(stage.take(frame))? {
                told(replayed);
            }
        }
        Ok(stage.replay)
    }
}

/// Where events run again.
struct Stage {
    engine: Arc<Engine>,
    other: Option<Vec<u8>>,
    components: BTreeMap<[u8; 32], Vec<u8>>,
    editions: BTreeMap<[u8; 32], Arc<Edition>>,
    plugins: BTreeMap<[u8; 32], PluginFrame>,
    actors: BTreeMap<u64, Actor>,
    replay: Replay,
}

/// A principal, as it was.
struct Actor {
    principal: Principal,
    edition: Arc<Edition>,
    home: Home,
    rows: Frozen,
    memory: Memory,
    instance: Option<Instance>,
    /// What the instance was given since it began that is not what it was given then: it may remember.
    tainted: Option<Missing>,
}

impl Stage {
    fn new(other: Option<Vec<u8>>) -> Result<Self, ReplayError> {
        Ok(Self {
            engine: Arc::new(Engine::new()?),
            other,
            components: BTreeMap::new(),
            editions: BTreeMap::new(),
            plugins: BTreeMap::new(),
            actors: BTreeMap::new(),
            replay: Replay::default(),
        })
    }

    async fn take(&mut self, frame: Frame) -> Result<Option<Replayed>, ReplayError> {
        match frame {
            Frame::Plugin(plugin) => {
                self.replay.instance.clone_from(&plugin.instance);
                self.plugins.insert(plugin.digest, *plugin);
            }
            Frame::Wasm(sha256, piece) => {
                let component = self.components.entry(sha256).or_default();
                component.extend_from_slice(&piece.0);
            }
            Frame::Track(track) => self.begin(*track)?,
            Frame::Rows(track, rows) => {
                if let Some(actor) = self.actors.get_mut(&track) {
                    for (key, value) in rows {
                        actor.put(Space::First, &key.0, Some(value.0));
                    }
                }
            }
            Frame::Event(event) => return self.event(*event).await,
            Frame::End(_) => {}
        }
        Ok(None)
    }

    fn begin(&mut self, track: TrackFrame) -> Result<(), ReplayError> {
        let edition = self.edition(&track.digest)?;
        // A principal that begins anew has no more events of the track before.
        let is_another = |actor: &Actor| actor.principal != track.principal;
        self.actors.retain(|_, actor| is_another(actor));
        let home = Home {
            instance: 1,
            principal: 0,
        };
        let actor = Actor {
            edition,
            home,
            rows: Frozen::default(),
            memory: track.remembered.into_memory(home),
            principal: track.principal,
            instance: None,
            tainted: None,
        };
        self.actors.insert(track.track, actor);
        Ok(())
    }

    fn edition(&mut self, digest: &[u8; 32]) -> Result<Arc<Edition>, ReplayError> {
        if let Some(edition) = self.editions.get(digest) {
            return Ok(Arc::clone(edition));
        }
        let unknown = RecordingError::Damaged("a principal begins as nothing");
        let plugin = self.plugins.get(digest).ok_or(unknown)?;
        let wasm = match &self.other {
            Some(other) => other.clone(),
            None => {
                let wasm = self.components.get(&plugin.sha256);
                let name = || data_encoding::HEXLOWER.encode(&plugin.sha256);
                wasm.cloned()
                    .ok_or_else(|| ReplayError::NoComponent(name()))?
            }
        };
        let path = PathBuf::from("plugin.toml");
        let source = Source::new(path, plugin.manifest.clone(), wasm);
        if self.other.is_none() && source.sha256() != plugin.sha256 {
            let other = RecordingError::Damaged("a component is another one");
            return Err(other.into());
        }
        let workshop = Workshop {
            engine: Arc::clone(&self.engine),
            cache: None,
            around: Around {
                node: plugin.node,
                network: Some(Arc::new(Nobody)),
                blobs: None,
            },
            lines: Arc::new(PluginLines::new()),
            patience: PATIENCE,
        };
        let terms = terms(plugin);
        let edition = Edition::compile(workshop, &plugin.instance, &source, terms);
        let edition = Arc::new(edition.map_err(Box::new)?);
        self.editions.insert(*digest, Arc::clone(&edition));
        Ok(edition)
    }

    async fn event(&mut self, frame: EventFrame) -> Result<Option<Replayed>, ReplayError> {
        let Some(actor) = self.actors.get_mut(&frame.track) else {
            return Err(RecordingError::Damaged("an event of a principal that has ended").into());
        };
        let (verdict, took) = actor.run(&frame).await;
        let replay = &mut self.replay;
        replay.events += 1;
        match &verdict {
            Verdict::Agrees => replay.agree += 1,
            Verdict::Differs(_) => replay.differ += 1,
            Verdict::Unknown(_) => replay.unknown += 1,
        }
        let took_then = Duration::from_micros(frame.took_us);
        replay.took += took;
        replay.took_then = replay.took_then.saturating_add(took_then);
        let event = frame.happened.event(actor.home);
        let replayed = Replayed {
            number: replay.events,
            principal: actor.principal.to_string(),
            event: frame.id,
            kind: event.kind().to_string(),
            name: frame.happened.name(),
            at_unix_ms: frame.now_ms,
            attempt: frame.attempt,
            took_then,
            took,
            verdict,
        };
        actor.apply(frame);
        Ok(Some(replayed))
    }
}

impl Actor {
    /// Runs an event on what is recorded before it.
    async fn run(&mut self, frame: &EventFrame) -> (Verdict, Duration) {
        for (space, key, row) in &frame.answers.rows {
            let spaces = [Space::Done, Space::Cursor].into_iter();
            for others in spaces.filter(|known| *known as u8 == *space) {
                self.put(others, &key.0, row.clone().map(|row| row.0));
            }
        }
        frame.found.apply(self.home, &mut self.memory);
        if frame.is_fresh {
            self.instance = None;
        }
        if self.instance.is_none() {
            self.tainted = None;
        }
        let event = frame.happened.event(self.home);
        let mut transaction = self.transaction(frame);
        if let Err(error) = transaction.consume(&event) {
            self.memory = transaction.undo();
            return (Verdict::Unknown(error.to_string()), Duration::ZERO);
        }
        let instance = match self.instance.take() {
            Some(instance) => Ok(instance),
            None => self.edition.code.instantiate().await,
        };
        let started = Instant::now();
        let (outcome, transaction, instance) = match instance {
            Ok(mut instance) => {
                let (outcome, transaction) = instance.run(&event, transaction).await;
                (outcome, transaction, Some(instance))
            }
            Err(fault) => (Err(fault), Some(transaction), None),
        };
        let took = started.elapsed();
        let Some(mut transaction) = transaction else {
            let lost = "the event was lost".to_owned();
            return (Verdict::Unknown(lost), took);
        };
        let missing = transaction.take_tape().missing().max(self.tainted);
        let verdict = verdict(frame, &outcome, &transaction, missing);
        self.memory = transaction.undo();
        self.instance = instance.filter(|_| outcome.is_ok());
        self.tainted = missing;
        (verdict, took)
    }

    fn transaction(&mut self, frame: &EventFrame) -> Box<Transaction> {
        let plugin = self.edition.plugin();
        let ground = Ground {
            home: self.home,
            side: Side::First,
            limits: Arc::clone(&plugin.limits),
            others_keep: frame.found.others_keep,
            others_hold: 0,
            protocols: Arc::clone(&self.edition.protocols),
            granted: Arc::clone(&plugin.granted),
            plugin: Arc::clone(&plugin.name),
            node: plugin.around.node,
            closing: 0,
        };
        let stamp = Stamp {
            id: frame.id,
            attempt: frame.attempt,
            now_ms: frame.now_ms,
            principal: self.principal.clone(),
            seed: frame.seed.unwrap_or_default(),
        };
        let snapshot = Arc::new(Snapshot::fixed(Box::new(self.rows.clone())));
        let memory = std::mem::take(&mut self.memory);
        let mut transaction = Transaction::new(stamp, ground, snapshot, memory);
        let answers = frame.answers.clone();
        transaction.use_tape(Tape::player(answers, frame.seed.is_none()));
        transaction
    }

    fn put(&mut self, space: Space, key: &[u8], value: Option<Vec<u8>>) {
        self.rows.put(self.home.key(space, key), value);
    }

    /// What the event did then is what the next one finds.
    fn apply(&mut self, frame: EventFrame) {
        for effect in frame.effects {
            match effect {
                Effect::Row(key, value) => {
                    self.put(Space::First, &key.0, value.map(|value| value.0));
                }
                Effect::Scratch(key, value) => {
                    self.memory.set_scratch(key.0, value.map(|value| value.0));
                }
                Effect::Timer(name, due) => {
                    let (timer, none) = (due.map(Timer::from), &mut Default::default());
                    self.memory.apply_timer(self.home, name.0, timer, none);
                }
                Effect::Fact(Fact { kind, peer, value }) => {
                    match value {
                        Some((_, until)) => self.memory.facts.insert((kind, peer), until),
                        None => self.memory.facts.remove(&(kind, peer)),
                    };
                }
                Effect::Sealed { .. }
                | Effect::Send { .. }
                | Effect::Post { .. }
                | Effect::Ask { .. }
                | Effect::Reopen(_)
                | Effect::Answer(..)
                | Effect::Progress(_) => {}
            }
        }
        self.memory.channels.extend(frame.channels);
    }
}

fn verdict(
    frame: &EventFrame,
    outcome: &Result<Outcome, Fault>,
    transaction: &Transaction,
    missing: Option<Missing>,
) -> Verdict {
    let Some(ended) = Ended::of(outcome) else {
        return Verdict::Unknown("it could not be run".to_owned());
    };
    let effects = match ended.is_real() {
        true => transaction.effects().0,
        false => Vec::new(),
    };
    let then = (&frame.ended, &frame.effects[..]);
    let Some(difference) = difference(then, (&ended, &effects)) else {
        return Verdict::Agrees;
    };
    if let Some(missing) = missing {
        return Verdict::Unknown(missing.to_string());
    }
    if frame.ended == Ended::TimedOut {
        return Verdict::Unknown("it took too long then, and less here".to_owned());
    }
    Verdict::Differs(difference)
}

/// What it was granted.
fn terms(plugin: &PluginFrame) -> Terms {
    let has = |name: &str| plugin.grants.names.contains(name);
    let grants = Capabilities {
        state: has("state"),
        scratch: has("scratch"),
        timers: has("timers"),
        messages: has("messages"),
        facts: plugin.grants.facts.clone(),
        rules: plugin.grants.rules.clone(),
        presence: has("presence"),
        usage: has("usage"),
        keys: has("keys"),
        secret: has("secret"),
        users: has("users"),
        blobs: has("blobs"),
        http: plugin.grants.http.clone(),
        fetch: has("fetch"),
        sockets: plugin.grants.sockets.clone(),
    };
    Terms {
        grants,
        config: plugin.config.clone(),
        strangers: plugin.strangers,
        sha256: None,
    }
}

/// Whom a plugin that is replayed has around it: all that it is told, the recording tells.
#[derive(Debug)]
pub(crate) struct Nobody;

impl Network for Nobody {
    fn call(&self, _: Call) -> BoxFuture<'static, Result<Box<dyn Pipe>, CallError>> {
        let nobody = CallError {
            why: nobody().message,
            is_final: true,
        };
        Box::pin(async { Err(nobody) })
    }

    fn connect(&self, _: SocketCall) -> BoxFuture<'static, Result<Box<dyn Pipe>, Refusal>> {
        Box::pin(async { Err(nobody()) })
    }

    fn fetch(&self, _: FetchCall) -> BoxFuture<'static, Result<HttpResponse, Refusal>> {
        Box::pin(async { Err(nobody()) })
    }

    fn send_datagram(&self, _: Datagram) {}

    fn sign(&self, _: &[u8]) -> [u8; 64] {
        [0; 64]
    }

    fn derive(&self, _: &[u8]) -> Zeroizing<[u8; 32]> {
        Zeroizing::default()
    }

    fn ask_rules(&self, _: RuleQuestion) -> Ruling {
        Ruling::None
    }

    fn publish(&self, _: Vec<Fact>) {}

    fn forget_facts(&self, _: &BTreeSet<String>) {}
}

fn nobody() -> Refusal {
    Refusal::new(ErrorCode::Unavailable, "a replay reaches nobody")
}
