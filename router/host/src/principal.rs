//! One principal of one plugin: takes its events one at a time, and holds what it remembers.
//!
//! A task lives from the principal's first event until the host stops: it has the open requests,
//! timers, scratch, and rows that are not durable yet. An instance lives from an event until none came
//! for a while.

mod beginning;
mod ending;
mod files;
mod inbox;
mod operations;
mod pacing;
mod recording;
mod takeover;
mod wires;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use self::recording::{Scene, Track};
pub(crate) use self::{
    inbox::{Asker, Inbox, Order, Post, Reports, Task},
    takeover::{Go, TakeOver},
};
use crate::{
    clock::now_ms,
    edition::Edition,
    event::{ErrorCode, Event, Principal, Reason, Refusal, Request},
    figures::Ending,
    guest::{Fault, Instance, Outcome},
    health::Health,
    loaded::Loaded,
    mail::{Input, Mail},
    memory::{DoneRows, Memory},
    rows::{Home, Space},
    store::{BatchId, Store, StoreError},
    transaction::{Effects, Limit},
    wires::Wires,
};
use wormholes_proto::manifest::Mode;

/// An instance without events is dropped after this.
const IDLE: Duration = Duration::from_secs(10);
/// The stack that it ran on goes back after this.
const REST: Duration = Duration::from_secs(1);
/// How often an event is tried that breaks its instance.
const TRIES: u32 = 3;

/// What runs a principal.
pub(crate) struct Actor {
    home: Home,
    name: Principal,
    loaded: Arc<Loaded>,
    /// The version that its events run in.
    edition: Arc<Edition>,
    store: Store,
    office: Mail,
    inbox: Inbox,
    /// Its connections.
    wires: Wires,
    memory: Memory,
    /// Of the store: what it knew before a disk error is lost.
    epoch: u64,
    /// The last batch with rows of this principal.
    last_batch: BatchId,
    /// How often the disk refused its blobs, one after the other.
    disk_failures: u32,
    /// With the events that it ran.
    instance: Option<(Instance, u32)>,
    /// What is done before any new task: its wake-up, and what is tried again.
    first: VecDeque<(Event, u32)>,
    /// With their deadlines.
    askers: BTreeMap<u64, (Option<u64>, Asker)>,
    /// Of operations, too.
    deadlines: BTreeSet<(u64, u64)>,
    next_event: u64,
    health: Arc<Health>,
    /// When it last had something to do.
    busy: Instant,
    /// Timers and tasks take turns: one that is due again at once keeps nobody out.
    after_timer: bool,
    /// Its plugin wrote, sent or logged too much: an event waits.
    is_held_back: bool,
    is_over: bool,
    /// Where its events are recorded.
    track: Option<Track>,
}

/// What an actor does next.
enum Next {
    Run(Event, u32),
    Take(Task),
    /// To be looked at again: a time has come.
    Again,
    /// Nobody can send it anything more.
    End,
}

impl Actor {
    /// Reads what the store knows of the principal; its first event wakes it.
    pub(crate) fn new(
        home: Home,
        name: Principal,
        loaded: Arc<Loaded>,
        store: Store,
        office: Mail,
        inbox: Inbox,
    ) -> Result<Self, StoreError> {
        let snapshot = store.snapshot();
        let mut memory = Memory::read(home, &snapshot)?;
        let first_event = u64::from(store.boot()) << 32;
        memory.last_message = first_event;
        let health = loaded.health(&name);
        let mut actor = Self {
            epoch: snapshot.epoch(),
            last_batch: snapshot.batch(),
            disk_failures: 0,
            home,
            name,
            edition: loaded.edition(),
            loaded,
            store,
            office,
            inbox,
            wires: Wires::default(),
            memory,
            instance: None,
            first: VecDeque::new(),
            askers: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            next_event: first_event,
            health,
            busy: Instant::now(),
            after_timer: false,
            is_held_back: false,
            is_over: false,
            track: None,
        };
        actor.clear_other_side(&snapshot)?;
        actor.resume_operations();
        actor.wake();
        Ok(actor)
    }

    fn wake(&mut self) {
        let notes = mem::take(&mut self.memory.notes);
        let version = self.edition.version();
        let waking = match self.memory.woken_by {
            None => Event::Init(Reason::Created),
            Some(by) if by == version => Event::Init(Reason::Started),
            Some(by) if by.schema == version.schema => Event::Init(Reason::Updated),
            Some(by) => Event::Migrate { from: by.schema },
        };
        self.first.retain(|(event, _)| !event.wakes());
        self.first.push_front((waking, 0));
        for (number, note) in notes {
            let note = Arc::new(note);
            self.first.push_back((Event::Note { number, note }, 0));
        }
        self.tell_lost_sockets();
        if self.name == Principal::Node {
            let online = self.loaded.news.wake().into_iter();
            self.first.extend(online.map(|event| (event, 0)));
        }
    }

    /// Runs until the host stops. What is rare in it is boxed: thousands of principals keep room for what
    /// is not.
    pub(crate) async fn run(mut self) {
        while !self.is_over {
            tokio::select! {
                biased;
                order = self.inbox.orders.recv() => match order {
                    Some(Order::Retire(done)) => return self.retire(done).await,
                    Some(order) => {
                        self.obey(order).await;
                        continue;
                    }
                    None => return,
                },
                () = self.health.pass() => {}
            }
            self.store.room(self.home.writer()).await;
            self.catch_up().await;
            self.keep_up();
            let next = if let Some(refusal) = self.health.closed() {
                self.is_held_back = false;
                self.next_while_closed(refusal).await
            } else if let Some(held) = self.held_back() {
                self.next_while_held_back(held).await
            } else {
                self.is_held_back = false;
                self.next().await
            };
            // It may have waited for long, and others may have written meanwhile.
            if matches!(next, Next::Run(..) | Next::Take(_)) && self.inbox.has_no_order() {
                self.store.room(self.home.writer()).await;
            }
            let is_past = self.catch_up().await;
            match next {
                Next::Run(..) if is_past => {}
                Next::Run(event, attempt) => self.handle(event, attempt).await,
                Next::Take(Task::Order(Order::Retire(done))) => return self.retire(done).await,
                Next::Take(task) => self.take_task(task).await,
                Next::Again => self.rest(),
                Next::End => return,
            }
        }
    }

    /// Begins anew after each failure of the store; whether there was one.
    async fn catch_up(&mut self) -> bool {
        let before = self.epoch;
        while self.epoch != self.store.epoch() {
            self.store.lost().await;
            self.forget();
        }
        self.epoch != before
    }

    /// A version that took over before this principal was awake, does so now.
    fn keep_up(&mut self) {
        if !self.loaded.runs(&self.edition) {
            self.edition = self.loaded.edition();
            self.instance = None;
            self.wake();
        }
    }

    async fn next(&mut self) -> Next {
        let now = now_ms();
        self.expire(now);
        self.forget_stale(now);
        if let Some((event, attempt)) = self.first.pop_front() {
            return Next::Run(event, attempt);
        }
        if self.after_timer
            && let Some(task) = self.inbox.try_next()
        {
            self.after_timer = false;
            return Next::Take(task);
        }
        if let Some((name, payload)) = self.memory.due_timer(now) {
            self.after_timer = true;
            return Next::Run(Event::Timer { name, payload }, 0);
        }
        let due = [
            self.memory.next_timer(),
            self.deadlines.first().map(|at| at.0),
            self.memory.first_late().map(|at| at.0),
            self.memory.operations.next_stale().map(|at| at.0),
        ];
        let due = due.into_iter().flatten().min();
        // Wall clocks jump: it is read again at least this often.
        let patience = match &self.instance {
            Some((instance, _)) if instance.is_awake() => REST,
            Some(_) => IDLE - REST,
            None => IDLE,
        };
        let wait = due.map_or(patience, |due| {
            Duration::from_millis(due.saturating_sub(now)).min(patience)
        });
        match tokio::time::timeout(wait, self.inbox.next()).await {
            Ok(Some(task)) => Next::Take(task),
            Ok(None) => Next::End,
            Err(_) => Next::Again,
        }
    }

    /// No event runs: whoever asks is told.
    async fn next_while_closed(&mut self, refusal: Refusal) -> Next {
        self.instance = None;
        self.cut_wires();
        self.expire(now_ms());
        self.forget_stale(now_ms());
        let task = tokio::select! {
            // Mail waits.
            task = self.inbox.tasks.recv() => task.map(|task| *task),
            order = self.inbox.orders.recv() => order.map(Task::Order),
            () = self.health.started() => return Next::Again,
            () = tokio::time::sleep(IDLE) => return Next::Again,
        };
        match task {
            Some(Task::Request(_, asker)) => {
                asker.say(Err(refusal));
                Next::Again
            }
            // They may be lost.
            Some(Task::Message(_) | Task::Visit(_) | Task::Datagram(_)) => Next::Again,
            Some(task) => Next::Take(task),
            None => Next::End,
        }
    }

    /// Ends the requests whose time is over.
    fn expire(&mut self, now_ms: u64) {
        while let Some(&(deadline, request)) = self.deadlines.first()
            && deadline <= now_ms
        {
            self.deadlines.pop_first();
            self.give_up(request, Some(Refusal::late()));
        }
        while let Some((deadline, id)) = self.memory.first_late()
            && deadline <= now_ms
        {
            let home = self.home;
            self.office.tell(Input::AskOver { home, id });
            self.take_late(id);
        }
    }

    /// Without events for a while, no instance is held, and less of one before.
    fn rest(&mut self) {
        let idle = self.busy.elapsed();
        if idle >= IDLE {
            self.instance = None;
            self.memory.done = DoneRows::default();
        } else if let Some((instance, _)) = &mut self.instance
            && idle >= REST
            && instance.is_awake()
        {
            instance.rest();
        }
    }

    async fn take_task(&mut self, task: Task) {
        match task {
            Task::Left(request) => self.give_up(request, None),
            Task::Request(request, asker) => self.take(request, asker).await,
            Task::Message(incoming) => self.handle(Event::Message(incoming), 0).await,
            Task::Note(number, note) if self.is_kept(number) => {
                let note = Arc::new(note);
                self.handle(Event::Note { number, note }, 0).await;
            }
            Task::EarlyNote(epoch, number, note) if self.is_news(epoch, number) => {
                let note = Arc::new(note);
                self.handle(Event::Note { number, note }, 0).await;
            }
            // It was told before, or when the store was read again.
            Task::Note(..) | Task::EarlyNote(..) => {}
            Task::Answer { id, answer } => self.take_answer(id, answer),
            Task::Fetched(id) => self.take_fetched(id).await,
            Task::Visit(visitor) => self.receive(visitor).await,
            Task::Datagram(datagram) => self.handle(Event::Datagram(datagram), 0).await,
            Task::Socket {
                id,
                news,
                place: _place,
            } => self.hear_socket(id, news).await,
            Task::Acknowledged { channel, bytes } => self.memory.acknowledged(channel, bytes),
            Task::BlobFetched { id, outcome } => {
                self.handle(Event::BlobFetched { id, outcome }, 0).await;
            }
            Task::News => {
                let news = self.loaded.news.take().into_iter();
                self.first.extend(news.map(|event| (event, 0)));
            }
            Task::Look(told) => {
                let is_due = self.memory.due_timer(now_ms()).is_some();
                let runs = self.health.closed().is_none();
                // Whoever asked may have left.
                let _ = told.send(runs && (is_due || !self.first.is_empty()));
            }
            Task::Order(order) => self.obey(order).await,
            Task::Cancel(operation) if self.memory.operations.is_open(operation) => {
                self.give_up(operation, Some(Refusal::canceled()));
            }
            Task::Cancel(_) => {}
            Task::Collect(operation) => self.collect(operation),
        }
    }

    /// Whether a note was not told yet.
    fn is_kept(&self, number: u64) -> bool {
        let key = self.home.key(Space::Note, &number.to_be_bytes());
        match self.memory.overlay.get(&key) {
            Some(row) => row.is_some(),
            // Where it cannot be read, it is read again before anything else.
            None => matches!(self.store.snapshot().get(&key), Ok(Some(_))),
        }
    }

    /// Whether a note that may not be durable yet was not told. Rows are durable in the order of their
    /// numbers: where the store was read with a later one, it was read with this one.
    fn is_news(&self, epoch: u64, number: u64) -> bool {
        epoch == self.epoch && number > self.memory.last_note
    }

    /// A question has one answer: the first that comes.
    fn take_answer(&mut self, id: u64, answer: Result<Bytes, Refusal>) {
        if self.memory.answered(id) {
            self.first.push_back((Event::Answer { id, answer }, 0));
        }
    }

    async fn take(&mut self, request: Request, asker: Asker) {
        let deadline = request.deadline_ms;
        // It may have waited long, and who asked may have asked again.
        if asker.answer.is_closed() || deadline.is_some_and(|at| at <= now_ms()) {
            return asker.say(Err(Refusal::late()));
        }
        let limits = &self.edition.manifest.limits;
        let operations = self.memory.operations.open_count();
        let requests = self.memory.requests.len().saturating_sub(operations);
        let is_operation = request.operation().is_some();
        let full = if is_operation && operations >= limits.operations as usize {
            Some((Limit::Operations, ErrorCode::Quota))
        } else if requests >= limits.requests as usize {
            Some((Limit::Requests, ErrorCode::Unavailable))
        } else {
            None
        };
        if let Some((limit, code)) = full {
            self.loaded.figures.hits(&[limit]);
            return asker.say(Err(Refusal::new(code, limit.mend())));
        }
        self.memory.requests.insert(request.id, request.kind());
        self.askers.insert(request.id, (deadline, asker));
        self.deadlines.extend(deadline.map(|at| (at, request.id)));
        self.handle(Event::Request(request), 0).await;
    }

    /// Runs one event, and makes what it did real.
    async fn handle(&mut self, event: Event, attempt: u32) {
        if let Event::Request(request) = &event {
            if !self.memory.requests.contains_key(&request.id) {
                // It was given up before it was tried again.
                return;
            }
            // Who was told that it is too late may ask again: one operation begins, not two.
            let asker = self.askers.get(&request.id);
            let is_gone = asker.is_some_and(|(_, asker)| asker.answer.is_closed());
            if is_gone && request.operation().is_some() {
                self.forget_asker(request.id);
                self.memory.requests.remove(&request.id);
                return;
            }
        }
        if let Event::Message(incoming) = &event
            && !incoming.is_live(self.epoch)
        {
            return;
        }
        if let Event::BlobFetched { id, .. } = &event
            && !self.memory.blob_fetches.contains_key(id)
        {
            // It was canceled, or told before.
            return;
        }
        let outcome = self.try_event(&event, attempt).await;
        self.busy = Instant::now();
        match outcome {
            Ok(told) => self.succeed(&event, told),
            Err(Fault::Refused(refusal)) => self.refuse(event, refusal),
            // An order is obeyed first.
            Err(Fault::GivenUp) => self.first.push_front((event, attempt)),
            Err(fault @ Fault::Host(_)) => {
                tracing::error!(plugin = %self.loaded.name, %fault, "a plugin's event waits");
                self.first.push_front((event, attempt));
                self.store.lost().await;
            }
            Err(fault) => self.broke(event, attempt, &fault),
        }
    }

    async fn try_event(
        &mut self,
        event: &Event,
        attempt: u32,
    ) -> Result<(Outcome, Effects), Fault> {
        if let Event::Migrate { .. } = event {
            let edition = Arc::clone(&self.edition);
            let prepared = Box::pin(self.prepare(&edition, attempt, None)).await?;
            let effects;
            (self.memory, effects) = prepared.take_effect();
            return Ok((Outcome::Done, effects));
        }
        let loaded = Arc::clone(&self.loaded);
        let turn = loaded.turns.acquire().await;
        self.follow_recorder();
        let (mut instance, runs) = match self.instance.take() {
            Some(instance) => instance,
            None => (Box::pin(self.instantiate(event)).await?, 0),
        };
        let scene = self.scene(event, runs == 0);
        let mut transaction = self.begin(event, attempt)?;
        Scene::prepare(&mut transaction, scene.as_ref());
        let started = Instant::now();
        let (outcome, transaction) = instance.run(event, transaction).await;
        let took = started.elapsed();
        let ending = Ending::of(&outcome);
        loaded.figures.handled(event.kind(), ending, took);
        let Some(mut transaction) = transaction else {
            self.track = None;
            return Err(Fault::Trapped("the event was lost".to_owned()));
        };
        loaded.figures.hits(transaction.hits());
        self.keep(scene, &mut transaction, &outcome, took);
        match outcome {
            Ok(told) => {
                let manifest = &self.edition.manifest.instance;
                if manifest.mode == Mode::Warm && runs + 1 < manifest.recycle {
                    self.instance = Some((instance, runs + 1));
                }
                // The disk is waited for beside others.
                drop(turn);
                let transaction = match self.carry_out(transaction).await {
                    Ok(transaction) => transaction,
                    Err(fault) => {
                        self.instance = None;
                        self.track = None;
                        return Err(fault);
                    }
                };
                let effects;
                (self.memory, effects) = transaction.take_effect();
                Ok((told, effects))
            }
            Err(fault) => {
                self.memory = transaction.undo();
                Err(fault)
            }
        }
    }

    /// The disk failed: all that was not durable is gone, and the principal begins anew.
    fn forget(&mut self) {
        let snapshot = self.store.snapshot();
        self.epoch = snapshot.epoch();
        (self.instance, self.track) = (None, None);
        for (event, _) in mem::take(&mut self.first) {
            if let Event::Usage(used) = event {
                self.loaded.news.untold(&used);
            }
        }
        self.forget_facts();
        self.wires.cut_all();
        self.deadlines.clear();
        for (_, asker) in mem::take(&mut self.askers).into_values() {
            asker.say(Err(Refusal::lost()));
        }
        self.last_batch = snapshot.batch();
        match Memory::read(self.home, &snapshot) {
            Ok(mut memory) => {
                memory.last_message = self.memory.last_message;
                let (before, after) = (self.memory.kept_bytes, memory.kept_bytes);
                self.loaded.figures.keeps(before, after);
                let (before, after) = (self.memory.blob_bytes, memory.blob_bytes);
                self.loaded.figures.holds(before, after);
                let operations = memory.operations.rows();
                let of = (self.home, &self.name);
                self.loaded.board.begin_anew(of, operations);
                self.memory = memory;
                self.resume_operations();
                self.wake();
            }
            // It is read again before the next event.
            Err(error) => {
                tracing::error!(plugin = %self.loaded.name, %error, "a plugin's rows cannot be read");
                self.epoch = 0;
            }
        }
    }
}
