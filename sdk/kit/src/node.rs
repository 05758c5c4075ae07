//! One node: its principals, and what becomes of their events.

mod ending;
mod handlers;
mod messages;
mod operations;
mod query;
mod wires;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    mem,
    rc::Rc,
    sync::Arc,
};

use wormholes_plugin::{
    Caller, Context, Error, ErrorCode, Level, Plugin, Principal, Reply, Request, Result,
};

use self::{
    handlers::{migrate, run},
    messages::consume,
    operations::end_canceled,
};
pub(crate) use self::{
    query::check_length,
    wires::{Line, Web},
};
use crate::{
    counts::{Counts, Trace},
    due::{Due, Marks},
    event::{Event, Fault},
    faults::{Commit, Faults},
    keys::Secret,
    mail::OutKey,
    manifest::{Manifest, Mode},
    memory::{Memory, Version},
    net::{Asker, GONE_MS, Net, Parcel},
    principal::{Actor, call},
    random::Random,
    transaction::{Ground, Progress, Rules, Transaction},
};

/// How often an event is tried that breaks its instance.
const TRIES: u32 = 3;

/// What all nodes share.
#[derive(Debug)]
pub(crate) struct Around {
    pub(crate) now_ms: u64,
    pub(crate) random: Random,
    pub(crate) trace: Trace,
    pub(crate) net: Net,
    pub(crate) faults: Rc<RefCell<Faults>>,
}

pub(crate) struct Node<P> {
    number: usize,
    pub(crate) id: [u8; 32],
    seed: [u8; 32],
    marks: Marks,
    pub(crate) manifest: Rc<Manifest>,
    /// Its machine is gone.
    pub(crate) is_stopped: bool,
    /// When others notice that it is.
    gone_ms: u64,
    /// Rises with each update.
    pub(crate) code: u32,
    pub(crate) config: Rc<BTreeMap<String, String>>,
    pub(crate) rules: Rules,
    /// Peers that are connected, and how far each is trusted.
    pub(crate) online: BTreeMap<[u8; 32], u8>,
    pub(crate) users: BTreeSet<Arc<str>>,
    pub(crate) actors: BTreeMap<Principal, Actor<P>>,
    /// How often it started.
    pub(crate) boot: u64,
    next_request: u64,
    /// Requests that become operations when they are answered `later`.
    asking: BTreeSet<u64>,
    /// Plugins that wait for the answers to requests.
    askers: BTreeMap<u64, Asker>,
    pub(crate) answers: BTreeMap<u64, Result<Vec<u8>>>,
    pub(crate) progress: BTreeMap<u64, Vec<Progress>>,
    /// For the next request, and of those that have no answer yet.
    pub(crate) offered: Offered,
    brought: BTreeMap<u64, Offered>,
    pub(crate) log: Vec<(Level, String)>,
    /// What is beyond the nodes.
    pub(crate) web: Web,
    pub(crate) counts: Counts,
}

/// Blobs that a request brings.
type Offered = BTreeMap<[u8; 32], Arc<[u8]>>;

/// What an event did.
#[derive(Default)]
struct Effects {
    answers: BTreeMap<u64, Result<Vec<u8>>>,
    progress: Vec<(u64, Progress)>,
    parcels: Vec<Parcel>,
    /// Channels that have more to say, and blobs that are wanted.
    channels: BTreeSet<OutKey>,
    wanted: Vec<u64>,
    writes: bool,
}

impl<P: Plugin> Node<P> {
    /// A node whose key comes of a seed.
    pub(crate) fn new(seed: [u8; 32], manifest: Rc<Manifest>, around: &mut Around) -> Self {
        let id = Secret::node(&seed).public().ok();
        let id = id.and_then(|id| id.try_into().ok()).unwrap_or_default();
        let number = around.net.join(id);
        let mut node = Self {
            number,
            id,
            seed,
            marks: around.net.marks.clone(),
            manifest,
            is_stopped: false,
            gone_ms: 0,
            code: 0,
            config: Rc::default(),
            rules: Rules::default(),
            online: BTreeMap::new(),
            users: BTreeSet::new(),
            actors: BTreeMap::new(),
            boot: 0,
            next_request: 0,
            asking: BTreeSet::new(),
            askers: BTreeMap::new(),
            answers: BTreeMap::new(),
            progress: BTreeMap::new(),
            offered: Offered::new(),
            brought: BTreeMap::new(),
            log: Vec::new(),
            web: Web::default(),
            counts: Counts::default(),
        };
        node.start(around);
        node
    }

    /// Starts on what is durable: the node itself wakes, and whoever was awake once.
    pub(crate) fn start(&mut self, around: &mut Around) {
        self.end(around.now_ms, around);
        self.is_stopped = false;
        self.boot += 1;
        self.next_request = self.boot << 32;
        let mut principals = vec![Principal::Node];
        for (principal, actor) in mem::take(&mut self.actors) {
            if actor.memory.woken_by.is_none() {
                continue;
            }
            let mut memory = actor.memory;
            memory.forget();
            self.wake(&principal, memory);
            principals.push(principal);
        }
        for principal in principals {
            self.actor(&principal);
            if principal == Principal::Node {
                self.tell_online();
            }
            self.drain(&principal, around);
        }
    }

    /// Ends without a word, and does not start: others notice it by its silence.
    pub(crate) fn stop(&mut self, around: &mut Around) {
        if !self.is_stopped {
            self.gone_ms = around.now_ms + GONE_MS;
            self.end(self.gone_ms, around);
            self.is_stopped = true;
        }
    }

    /// When others know that it waits no more for what it asked in that boot; `None`: it waits.
    pub(crate) fn over_ms(&self, boot: u64) -> Option<u64> {
        match boot < self.boot {
            // A node that is back knows nothing of the trunks from before: they break at once.
            true => Some(0),
            false => self.is_stopped.then_some(self.gone_ms),
        }
    }

    /// What it was about to do is over. Other nodes hear of it then, who asked it here at once.
    fn end(&mut self, heard_ms: u64, around: &mut Around) {
        self.web.forget();
        around.net.ended(self.number, heard_ms);
        self.marks.add(Due::Asked(self.number));
        let broke = Error::new(ErrorCode::Unavailable, "the trunk to the other node broke");
        let askers = mem::take(&mut self.askers);
        let stopped = Error::new(
            ErrorCode::Unavailable,
            "the plugin was stopped before it answered",
        );
        for actor in self.actors.values_mut() {
            actor.waiting.clear();
            let operations = &actor.memory.operations.open;
            let requests = mem::take(&mut actor.deadlines).into_keys();
            let given_up = requests.filter(|it| !operations.contains_key(it));
            for request in given_up.filter(|it| !askers.contains_key(it)) {
                self.answers.insert(request, Err(stopped.clone()));
            }
        }
        for (request, asker) in askers {
            around.net.asked.remove(&asker, (self.number, request));
            around.net.tell(asker, Err(broke.clone()), heard_ms);
        }
    }

    /// Who is up is told anew: what was known in memory is gone.
    fn tell_online(&mut self) {
        if !self.manifest.capabilities.presence {
            return;
        }
        let online = self.online.iter().map(|(peer, trust)| Event::Presence {
            peer: *peer,
            online: true,
            trust: *trust,
        });
        let online: Vec<_> = online.map(|event| (event, 0)).collect();
        self.actor(&Principal::Node).waiting.extend(online);
    }

    /// Starts on a copy of what was durable.
    pub(crate) fn restore(&mut self, copy: &BTreeMap<Principal, Memory>, around: &mut Around) {
        for actor in self.actors.values_mut() {
            actor.memory = Memory::default();
        }
        for (principal, memory) in copy {
            self.actor(principal).memory = memory.clone();
        }
        self.start(around);
    }

    fn wake(&mut self, principal: &Principal, memory: Memory) {
        let actor = Actor::new(memory, self.version(), self.boot << 32);
        self.actors.insert(principal.clone(), actor);
        self.mark_all(principal);
    }

    /// The principal's actor; it wakes if it sleeps.
    pub(crate) fn actor(&mut self, principal: &Principal) -> &mut Actor<P> {
        let (version, first_event) = (self.version(), self.boot << 32);
        self.marks
            .add(Due::Principal(self.number, principal.clone()));
        let actor = self.actors.entry(principal.clone());
        actor.or_insert_with(|| Actor::new(Memory::default(), version, first_event))
    }

    /// All that a principal sends and fetches may go on.
    pub(crate) fn mark_all(&self, principal: &Principal) {
        if let Some(actor) = self.actors.get(principal) {
            let (mail, blobs) = (&actor.memory.mail, &actor.memory.blobs);
            let channels = mail.outs.keys().cloned();
            self.mark(principal, channels, blobs.fetches.keys().copied());
        }
    }

    /// So may these channels and fetches.
    fn mark(
        &self,
        principal: &Principal,
        channels: impl IntoIterator<Item = OutKey>,
        fetches: impl IntoIterator<Item = u64>,
    ) {
        for key in channels {
            let channel = (self.number, principal.clone(), key);
            self.marks.add(Due::Channel(Box::new(channel)));
        }
        for id in fetches {
            let fetch = (self.number, principal.clone(), id);
            self.marks.add(Due::Fetch(Box::new(fetch)));
        }
    }

    fn version(&self) -> Version {
        Version {
            schema: self.manifest.state.schema,
            code: self.code,
        }
    }

    /// Hands a request over; gives its id. Its deadline is the command's, or the asker's.
    pub(crate) fn ask(
        &mut self,
        around: &mut Around,
        principal: &Principal,
        (caller, name, body): (Caller, &str, Vec<u8>),
        asker: Option<(Asker, u64)>,
    ) -> Result<u64> {
        self.check_principal(principal)?;
        self.actor(principal);
        self.drain(principal, around);
        let unavailable = |why: String| Err(Error::new(ErrorCode::Unavailable, why));
        let is_operation = asker.is_none() && self.manifest.is_operation(name);
        let patience = self.manifest.patience(name);
        let patience = patience.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let deadline_ms = patience.map(|time| around.now_ms.saturating_add(time));
        let limits = self.manifest.limits.clone();
        let id = self.next_request;
        let actor = self.actor(principal);
        if let Some(why) = &actor.parked {
            return unavailable(format!(
                "the plugin is parked: {why}; see `wormholes plugin list`"
            ));
        }
        let operations = actor.memory.operations.open.len();
        if is_operation && operations >= limits.operations {
            let many = "too many operations go on; cancel some, or raise limits.operations";
            return Err(Error::new(ErrorCode::Quota, many));
        }
        if actor.memory.requests.len().saturating_sub(operations) >= limits.requests {
            let many = "the plugin has too many requests without an answer; ask again later";
            return unavailable(many.to_owned());
        }
        let deadline_ms = asker
            .as_ref()
            .map_or(deadline_ms, |(_, deadline)| Some(*deadline));
        actor.memory.requests.insert(id);
        actor.deadlines.insert(id, deadline_ms);
        if asker.is_none() {
            self.brought.insert(id, mem::take(&mut self.offered));
        }
        let request = Request {
            id,
            caller,
            name: name.to_owned(),
            body,
            deadline_ms,
        };
        let operation = is_operation.then_some(id);
        self.asking.extend(operation);
        let actor = self.actor(principal);
        actor.waiting.push_back((Event::Request(request), 0));
        if let Some((asker, _)) = asker {
            self.owe(id, asker, around);
        }
        self.next_request += 1;
        self.drain(principal, around);
        Ok(id)
    }

    /// Does what is due.
    pub(crate) fn due(&mut self, principal: &Principal, around: &mut Around) {
        let actor = self.actor(principal);
        let late = actor.late(around.now_ms);
        let is_late = !late.is_empty();
        if !is_late && let Some(timer) = actor.due_timer(around.now_ms) {
            actor.waiting.push_back((timer, 0));
        }
        for request in late {
            let error = Error::new(ErrorCode::Expired, "the plugin did not answer in time");
            if !self.cancel(principal, request, error.clone()) {
                self.tell(request, Err(error), around);
                self.give_up(principal, request);
            }
        }
        self.late_questions(principal, around.now_ms);
        self.drain(principal, around);
    }

    /// Runs what waits, unless the principal is parked.
    pub(crate) fn drain(&mut self, principal: &Principal, around: &mut Around) {
        loop {
            let is_stopped = self.is_stopped;
            let actor = self.actor(principal);
            if is_stopped || actor.parked.is_some() {
                return;
            }
            let Some((event, attempt)) = actor.waiting.pop_front() else {
                return;
            };
            let request = event.request();
            if request.is_some_and(|id| !actor.memory.requests.contains(&id)) {
                // It was given up before it was tried again.
                continue;
            }
            if let Event::BlobFetched { id, .. } = &event
                && !actor.memory.blobs.fetches.contains_key(id)
            {
                // It was canceled.
                continue;
            }
            if let Event::Message {
                key,
                delivery: Some((delivery, _)),
                ..
            } = &event
                && !actor.memory.mail.is_next(key, delivery)
            {
                continue;
            }
            if self.handle(principal, event, attempt, around) == Commit::Done {
                continue;
            }
            return self.start(around);
        }
    }

    fn handle(
        &mut self,
        principal: &Principal,
        event: Event,
        attempt: u32,
        around: &mut Around,
    ) -> Commit {
        match self.try_event(principal, &event, attempt, around) {
            Ok((reply, done)) => self.succeed(principal, &event, reply, done, around),
            Err(Fault::Refused(error)) => self.refuse(principal, event, error, around),
            Err(Fault::Broke(_)) if attempt + 1 < TRIES => {
                let actor = self.actor(principal);
                actor.waiting.push_front((event, attempt + 1));
                Commit::Done
            }
            Err(Fault::Broke(why)) => self.give_up_event(principal, event, why, around),
        }
    }

    fn try_event(
        &mut self,
        principal: &Principal,
        event: &Event,
        attempt: u32,
        around: &mut Around,
    ) -> std::result::Result<(Option<Reply>, Transaction), Fault> {
        self.counts.events += 1;
        around.trace.add(around.now_ms, self.number, event);
        let mut ground = self.ground(principal, around);
        if let Event::Request(request) = event {
            let brought = self.brought.get(&request.id);
            ground.offered = brought.cloned().unwrap_or_default();
        }
        let instance = self.manifest.instance.clone();
        let actor = self.actor(principal);
        actor.next_event += 1;
        let id = actor.next_event;
        let (mut plugin, runs) = actor.instance.take().unwrap_or_default();
        let seed = Random::new(around.random.number());
        let faults = Rc::clone(&around.faults);
        let mut transaction = Transaction::new(ground, actor.memory.clone(), seed, faults);
        if let Event::Timer { name, .. } = event {
            transaction.remove_timer(name);
        }
        if let Event::BlobFetched { id, outcome, .. } = event {
            transaction.consume_fetch(*id, outcome.as_ref().ok());
        }
        let transaction = Rc::new(RefCell::new(transaction));
        let mut cx = Context::new(id, attempt, around.now_ms, principal.clone());
        let told = if let Event::Migrate { from } = event {
            migrate::<P>(&transaction, &mut cx, *from)
        } else {
            run(&transaction, || call(&mut plugin, &mut cx, event))
        };
        let done = transaction.borrow_mut().take();
        // A log stays when the event is undone.
        self.log.extend(done.log.iter().cloned());
        // Nor is what a connection wants.
        let sockets = &mut self.actor(principal).memory.sockets;
        for id in &done.wants_room {
            if let Some(wire) = sockets.get_mut(id) {
                wire.wants_room = true;
            }
        }
        let reply = told?;
        if let (Some(Reply::Done(body)), Event::Request(_)) = (&reply, event) {
            check_length(body).map_err(Fault::Refused)?;
        }
        if instance.mode == Mode::Warm && runs + 1 < instance.recycle {
            self.actor(principal).instance = Some((plugin, runs + 1));
        }
        Ok((reply, done))
    }

    fn ground(&self, principal: &Principal, around: &Around) -> Ground {
        let others = self.actors.iter().filter(|(other, _)| *other != principal);
        Ground {
            manifest: Rc::clone(&self.manifest),
            others_keep: others
                .clone()
                .map(|(_, actor)| actor.memory.kept_bytes())
                .sum(),
            others_hold: others.map(|(_, actor)| actor.memory.blobs.bytes()).sum(),
            offered: Offered::new(),
            now_ms: around.now_ms,
            config: Rc::clone(&self.config),
            node_id: self.id,
            node_seed: self.seed,
            principal: principal.clone(),
            rules: self.rules.clone(),
            reads_only: false,
        }
    }

    fn succeed(
        &mut self,
        principal: &Principal,
        event: &Event,
        reply: Option<Reply>,
        mut done: Transaction,
        around: &mut Around,
    ) -> Commit {
        let is_operation = matches!((event, &reply), (Event::Request(request), Some(Reply::Later))
            if self.asking.contains(&request.id) && !done.answers.contains_key(&request.id));
        done.writes |= is_operation;
        done.keep_questions();
        done.keep_wires();
        let mut memory = done.memory;
        let mut effects = Effects {
            answers: done.answers,
            progress: done.progress,
            parcels: done.parcels,
            channels: done.channels,
            wanted: done.wanted,
            writes: done.writes,
        };
        match (event, reply) {
            (Event::Request(request), Some(Reply::Done(body))) => {
                // A handler that finished it by itself has answered; this comes too late.
                effects.answers.entry(request.id).or_insert(Ok(body));
            }
            (Event::Http { id, .. }, Some(Reply::Done(body))) => {
                effects.answers.entry(*id).or_insert(Ok(body));
            }
            (Event::Request(request), Some(Reply::Later)) if is_operation => {
                let deadline = request.deadline_ms;
                let most = self.manifest.limits.operations;
                memory.operations.begin(request.id, deadline, most);
            }
            _ => {}
        }
        let version = self.version();
        let before = memory.woken_by;
        match event {
            Event::Migrate { .. } | Event::Init(_) => memory.woken_by = Some(version),
            Event::Message { .. }
            | Event::Note { .. }
            | Event::Answer { .. }
            | Event::Fetched { .. }
            | Event::Socket { .. } => consume(event, None, &mut memory, &mut effects),
            Event::Canceled(id) => end_canceled(*id, &mut memory, &mut effects),
            Event::Timer { .. }
            | Event::Request(_)
            | Event::Http { .. }
            | Event::HttpCanceled(_)
            | Event::Datagram { .. }
            | Event::Presence { .. }
            | Event::BlobFetched { .. }
            | Event::Usage(_) => {}
        }
        effects.writes |= memory.woken_by != before;
        self.commit(principal, memory, effects, around)
    }
}
