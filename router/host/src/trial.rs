//! A plugin without a component: who tries what the host does with calls makes them himself. They take
//! the way of a component's from the functions on that it imports; what is left out is the engine, which
//! reads them from its memory.
//!
//! What an actor does around its events is done here in the same order, one event at a time, without a
//! thread; what events write is durable when the trial says so.

mod check;
mod ending;
mod occasion;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt, io, iter,
    path::PathBuf,
    sync::Arc,
};

use wormholes_proto::{NodeId, blob::BlobId, manifest::Manifest};

pub use self::{
    ending::{Answered, Ended},
    occasion::Occasion,
};
pub use crate::guest::{State as Imports, words};
use crate::{
    blobs::{Blobs, Named},
    event::{Event, Principal, RequestKind, Stamp},
    guest::{Around, Plugin},
    lines::PluginLines,
    memory::{Memory, Version},
    network::Network,
    rows::{Home, Side, own_key},
    store::{BatchId, Overlay, Shelf, View, Writes},
    transaction::{BlobEffects, Ground, Transaction},
};

/// What a trial begins at: an ordinary time.
const BEGAN_MS: u64 = 1_750_000_000_000;

/// What is tried.
#[derive(Debug)]
pub struct Setting<'a> {
    /// What it may do and use: it is granted all that it asks for.
    pub manifest: &'a Manifest,
    /// The node.
    pub node: NodeId,
    /// The node around it.
    pub network: Arc<dyn Network>,
    /// Where files of blobs lie; without it, calls that need files are faults of the host.
    pub blobs: Option<PathBuf>,
    /// Who has a principal beside the node.
    pub users: &'a [&'a str],
}

/// Principals of one plugin, and their rows.
pub struct Trial {
    plugin: Arc<Plugin>,
    protocols: Arc<BTreeSet<String>>,
    operations: usize,
    shelf: Shelf,
    /// What becomes of files with each batch that is not durable.
    files: VecDeque<(Home, BlobEffects)>,
    actors: Vec<Actor>,
    now_ms: u64,
    last_request: u64,
    schema: u32,
}

/// One principal.
#[derive(Debug)]
struct Actor {
    home: Home,
    name: Principal,
    memory: Memory,
    last_event: u64,
}

/// An event that runs. It must be ended before the next one begins.
pub struct Running {
    who: usize,
    /// `None`: a question, which changes nothing.
    event: Option<Event>,
    /// Those that are open, and which of them came by HTTP.
    requests: Vec<(u64, bool)>,
    imports: Imports,
}

impl Trial {
    /// Wakes all principals.
    ///
    /// # Errors
    /// The folder of blobs cannot be used.
    pub fn new(setting: Setting<'_>) -> io::Result<Self> {
        let open = |folder| Blobs::open(folder, Named::default());
        let blobs = setting.blobs.map(open).transpose()?;
        let manifest = setting.manifest;
        let plugin = Plugin {
            name: manifest.plugin.name.as_str().into(),
            around: Around {
                node: setting.node,
                network: Some(setting.network),
                blobs,
            },
            config: BTreeMap::new(),
            granted: Arc::new(manifest.capabilities.clone()),
            limits: Arc::new(manifest.limits.clone()),
            strangers: false,
            lines: Arc::new(PluginLines::new()),
        };
        let users = setting.users.iter();
        let users = users.map(|name| Principal::User((*name).into()));
        let names = (0..).zip(iter::once(Principal::Node).chain(users));
        let mut trial = Self {
            plugin: Arc::new(plugin),
            protocols: Arc::new(manifest.messages.protocols.clone()),
            operations: manifest.limits.operations as usize,
            shelf: Shelf::default(),
            files: VecDeque::new(),
            actors: names
                .map(|(number, name)| Actor::new(number, name))
                .collect(),
            now_ms: BEGAN_MS,
            last_request: 0,
            schema: 0,
        };
        for who in 0..trial.actors.len() {
            trial.wake(who);
        }
        Ok(trial)
    }

    /// The version that runs has woken it.
    fn wake(&mut self, who: usize) {
        let version = self.version();
        let Some(actor) = self.actors.get_mut(who) else {
            return;
        };
        let mut writes = Writes::default();
        let (home, name) = (actor.home, &actor.name);
        actor.memory.woken(home, name, version, &mut writes);
        self.write(who, writes, BlobEffects::default());
        while self.commit() {}
    }

    fn version(&self) -> Version {
        Version {
            schema: self.schema,
            code: [0; 8],
        }
    }

    /// How many principals there are.
    pub fn principals(&self) -> usize {
        self.actors.len()
    }

    /// Milliseconds since 1970, for an event that begins now.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// The time goes on.
    pub fn pass(&mut self, ms: u64) {
        self.now_ms = self.now_ms.saturating_add(ms);
    }

    /// Begins an event of a principal, by its number; `None`: nothing of that kind can happen to it.
    pub fn begin(&mut self, who: usize, occasion: Occasion) -> Option<Running> {
        if occasion == Occasion::Query {
            return self.ask(who);
        }
        let migrates = occasion == Occasion::Migration;
        let event = self.happens(who, occasion)?;
        let mut side = self.actors.get(who)?.memory.side;
        if migrates {
            side = self.copy_rows(who)?;
        }
        let requests = self.actors.get(who)?.memory.requests.iter();
        let is_http = |kind: &RequestKind| *kind == RequestKind::Http;
        let requests = requests.map(|(id, kind)| (*id, is_http(kind))).collect();
        let mut transaction = self.transaction(who, side)?;
        transaction.run_steps(migrates);
        // Rows in memory can be read.
        transaction.consume(&event).ok()?;
        Some(Running {
            who,
            event: Some(event),
            requests,
            imports: Imports::with(Arc::clone(&self.plugin), transaction),
        })
    }

    /// A query: what it reads is durable.
    fn ask(&mut self, who: usize) -> Option<Running> {
        let stamp = self.stamp(who)?;
        let ground = self.ground(who, self.actors.get(who)?.memory.side)?;
        let transaction = Transaction::reading(stamp, ground, self.shelf.snapshot());
        Some(Running {
            who,
            event: None,
            requests: Vec::new(),
            imports: Imports::with(Arc::clone(&self.plugin), transaction),
        })
    }

    /// Ends a step of a migration, and begins the next one; false: there is none, since it runs nothing
    /// that has steps, or the last one wrote no rows.
    pub fn step(&mut self, running: &mut Running) -> bool {
        let is_migration = matches!(running.event, Some(Event::Migrate { .. }));
        let Some(mut transaction) = running.imports.take_event() else {
            return false;
        };
        let rows = match is_migration {
            true => transaction.end_step(),
            false => Writes::default(),
        };
        let is_next = !rows.is_empty();
        if is_next {
            self.append(running.who, rows, BlobEffects::default());
            while self.commit() {}
            if let Some(stamp) = self.stamp(running.who) {
                transaction.begin_step(stamp, self.shelf.snapshot());
            }
        }
        running.imports.put_event(transaction);
        is_next
    }

    /// A migration has its rows: what follows is `init`, which has the rights of other events.
    pub fn end_steps(&mut self, running: &mut Running) {
        let _ = self.step(running);
        if let Some(mut transaction) = running.imports.take_event() {
            transaction.run_steps(false);
            running.imports.put_event(transaction);
        }
    }

    /// The principal's rows, on the side that counts for nothing.
    fn copy_rows(&mut self, who: usize) -> Option<Side> {
        while self.commit() {}
        let actor = self.actors.get(who)?;
        let (home, from) = (actor.home, actor.memory.side);
        let mut writes = Writes::default();
        writes.remove_range(home.all(from.other().space()));
        let rows = self.rows(&home.key(from.space(), &[]), &Overlay::default());
        for (key, value) in rows {
            writes.put(home.key(from.other().space(), own_key(&key)), Some(value));
        }
        self.append(who, writes, BlobEffects::default());
        while self.commit() {}
        Some(from.other())
    }

    fn transaction(&mut self, who: usize, side: Side) -> Option<Transaction> {
        let (stamp, snapshot) = (self.stamp(who)?, self.shelf.snapshot());
        let ground = self.ground(who, side)?;
        let actor = self.actors.get_mut(who)?;
        let mut memory = std::mem::take(&mut actor.memory);
        memory.overlay.prune(snapshot.batch());
        Some(Transaction::new(stamp, ground, snapshot, memory))
    }

    fn stamp(&mut self, who: usize) -> Option<Stamp> {
        let actor = self.actors.get_mut(who)?;
        actor.last_event += 1;
        Some(Stamp {
            id: actor.last_event,
            attempt: 0,
            now_ms: self.now_ms,
            principal: actor.name.clone(),
            seed: [who as u8; 32],
        })
    }

    fn ground(&self, who: usize, side: Side) -> Option<Ground> {
        let actor = self.actors.get(who)?;
        let home = actor.home;
        let others = || self.actors.iter().filter(move |other| other.home != home);
        Some(Ground {
            home,
            side,
            limits: Arc::clone(&self.plugin.limits),
            others_keep: others().map(|other| other.memory.kept_bytes).sum(),
            others_hold: others().map(|other| other.memory.blob_bytes).sum(),
            protocols: Arc::clone(&self.protocols),
            granted: Arc::clone(&self.plugin.granted),
            plugin: Arc::clone(&self.plugin.name),
            node: self.plugin.around.node,
            closing: 0,
        })
    }

    /// Appends what an event wrote, over which the next one reads; whether it wrote anything.
    fn write(&mut self, who: usize, writes: Writes, files: BlobEffects) -> bool {
        if writes.is_empty() {
            return false;
        }
        let batch = self.append(who, writes.clone(), files);
        if let (Some(batch), Some(actor)) = (batch, self.actors.get_mut(who)) {
            actor.memory.overlay.write(batch, writes);
        }
        true
    }

    fn append(&mut self, who: usize, writes: Writes, files: BlobEffects) -> Option<BatchId> {
        let home = self.actors.get(who)?.home;
        self.files.push_back((home, files));
        Some(self.shelf.append(writes))
    }

    /// The oldest batch is durable: all that one event wrote. False: all are.
    pub fn commit(&mut self) -> bool {
        let is_one = self.shelf.commit();
        if let Some((home, effects)) = self.files.pop_front()
            && let Some(files) = &self.plugin.around.blobs
        {
            files.changed(effects.named);
            let (fetches, drafts) = (effects.fetches.into_iter(), effects.drafts.into_iter());
            fetches.for_each(|id| files.forget_fetch(home, id));
            drafts.for_each(|number| files.forget_draft(home, number));
        }
        is_one
    }

    /// The disk failed, or the node ended: what is not durable is gone, and all principals begin anew
    /// from what is.
    ///
    /// # Errors
    /// Rows cannot be read.
    pub fn lose(&mut self) -> io::Result<()> {
        self.shelf.lose();
        self.files.clear();
        let snapshot = self.shelf.snapshot();
        for actor in &mut self.actors {
            let last_message = actor.memory.last_message;
            actor.memory = Memory::read(actor.home, &snapshot).map_err(io::Error::other)?;
            actor.memory.last_message = last_message;
        }
        Ok(())
    }

    /// All rows with this prefix: durable ones, and over them what is not.
    fn rows(&self, prefix: &[u8], overlay: &Overlay) -> Vec<(Vec<u8>, Vec<u8>)> {
        let (none, snapshot) = (Writes::default(), self.shelf.snapshot());
        let view = View::new(&none, overlay, &snapshot);
        let rows = view.scan(prefix, None, false, usize::MAX, usize::MAX);
        rows.unwrap_or_default()
    }
}

impl Actor {
    fn new(number: u32, name: Principal) -> Self {
        let home = Home {
            instance: 1,
            principal: number,
        };
        Self {
            home,
            name,
            memory: Memory::default(),
            last_event: 0,
        }
    }
}

impl Running {
    /// What its calls are made on.
    pub fn imports(&mut self) -> &mut Imports {
        &mut self.imports
    }

    /// The request that it is to answer.
    pub fn request(&self) -> Option<u64> {
        let Some(Event::Request(request)) = &self.event else {
            return None;
        };
        Some(request.id)
    }

    /// All requests that nobody answered before, and which of them came by HTTP.
    pub fn requests(&self) -> &[(u64, bool)] {
        &self.requests
    }

    /// The timer that was due.
    pub fn timer(&self) -> Option<&str> {
        let Some(Event::Timer { name, .. }) = &self.event else {
            return None;
        };
        Some(name)
    }

    /// The blob that was fetched and is there.
    pub fn came(&self) -> Option<BlobId> {
        let Some(Event::BlobFetched { outcome, .. }) = &self.event else {
            return None;
        };
        outcome.as_ref().ok().map(|(_, pin)| pin.id())
    }

    /// Random bytes, as a component's standard library takes them.
    ///
    /// # Errors
    /// No machine has so many.
    pub fn random(&mut self, length: u64) -> Result<Vec<u8>, String> {
        let bytes = self.imports.wasi_random(length);
        bytes.map_err(|error| error.to_string())
    }

    /// Writes to standard error, as a component's standard library does.
    pub fn say(&mut self, bytes: &[u8]) {
        self.imports.write_stderr(bytes);
    }
}

impl fmt::Debug for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trial").field(&self.plugin.name).finish()
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.event.as_ref().map(Event::kind);
        f.debug_tuple("Running").field(&kind).finish()
    }
}
