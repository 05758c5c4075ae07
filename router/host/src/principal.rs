//! One principal of one plugin: takes its events one at a time, and holds what it remembers.
//!
//! A task lives from the principal's first event until the host stops: it has the open requests,
//! timers, scratch, and rows that are not durable yet. An instance lives from an event until none came
//! for a while.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::RngCore as _;
use tokio::sync::{mpsc, oneshot};

use crate::{
    clock::now_ms,
    event::{ErrorCode, Event, Principal, Reason, Refusal, Reply, Request, Stamp},
    figures::Ending,
    guest::{Fault, Instance, Outcome},
    health::Health,
    letters::DeadLetter,
    loaded::Loaded,
    manifest::{Mode, Poison},
    memory::Memory,
    rows::Home,
    store::{BatchId, Lost, Store, StoreError},
    transaction::{Effects, Ground, Limit, Progress, Transaction},
};

/// An instance without events is dropped after this.
const IDLE: Duration = Duration::from_secs(10);
/// How often an event is tried that breaks its instance.
const TRIES: u32 = 3;

/// Something for a principal to do.
#[derive(Debug)]
pub(crate) enum Task {
    /// A request, and who waits for its answer.
    Request(Request, Asker),
    /// Who asked has left.
    Left(u64),
}

/// Who waits for an answer.
#[derive(Debug)]
pub(crate) struct Asker {
    pub(crate) answer: oneshot::Sender<Result<Vec<u8>, Refusal>>,
    /// Overflow: what does not fit is left out.
    pub(crate) progress: Option<mpsc::Sender<Progress>>,
}

/// What runs a principal.
pub(crate) struct Actor {
    home: Home,
    name: Principal,
    loaded: Arc<Loaded>,
    store: Store,
    tasks: mpsc::Receiver<Task>,
    memory: Memory,
    /// Of the store: what it knew before a disk error is lost.
    epoch: u64,
    /// The last batch with rows of this principal.
    last_batch: BatchId,
    /// With the events that it ran.
    instance: Option<(Instance, u32)>,
    /// What is done before any new task: its wake-up, and what is tried again.
    first: VecDeque<(Event, u32)>,
    /// With their deadlines.
    askers: BTreeMap<u64, (u64, Asker)>,
    deadlines: BTreeSet<(u64, u64)>,
    next_event: u64,
    health: Arc<Health>,
    /// When it last had something to do.
    busy: Instant,
    /// Timers and tasks take turns: one that is due again at once keeps nobody out.
    after_timer: bool,
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
        tasks: mpsc::Receiver<Task>,
    ) -> Result<Self, StoreError> {
        let snapshot = store.snapshot();
        let memory = Memory::read(home, &snapshot)?;
        let first_event = u64::from(store.boot()) << 32;
        let health = loaded.health(&name);
        let mut actor = Self {
            epoch: snapshot.epoch(),
            last_batch: snapshot.batch(),
            home,
            name,
            loaded,
            store,
            tasks,
            memory,
            instance: None,
            first: VecDeque::new(),
            askers: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            next_event: first_event,
            health,
            busy: Instant::now(),
            after_timer: false,
        };
        actor.wake();
        Ok(actor)
    }

    fn wake(&mut self) {
        let version = self.loaded.version();
        let reason = match self.memory.woken_by {
            None => Reason::Created,
            Some(by) if by == version => Reason::Started,
            Some(by) => {
                if by.schema != version.schema {
                    self.first
                        .push_back((Event::Migrate { from: by.schema }, 0));
                }
                Reason::Updated
            }
        };
        self.first.push_back((Event::Init(reason), 0));
    }

    /// Runs until the host stops.
    pub(crate) async fn run(mut self) {
        loop {
            self.health.pass().await;
            self.store.room().await;
            if self.epoch != self.store.epoch() {
                self.forget();
            }
            let next = match self.health.closed() {
                Some(refusal) => self.next_while_closed(refusal).await,
                None => self.next().await,
            };
            match next {
                Next::Run(event, attempt) => self.handle(event, attempt).await,
                Next::Take(Task::Left(request)) => self.give_up(request, None),
                Next::Take(Task::Request(request, asker)) => self.take(request, asker).await,
                Next::Again => self.rest(),
                Next::End => return,
            }
        }
    }

    async fn next(&mut self) -> Next {
        let now = now_ms();
        self.expire(now);
        if let Some((event, attempt)) = self.first.pop_front() {
            return Next::Run(event, attempt);
        }
        if self.after_timer
            && let Ok(task) = self.tasks.try_recv()
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
        ];
        let due = due.into_iter().flatten().min();
        // Wall clocks jump: it is read again at least this often.
        let wait = due.map_or(IDLE, |due| {
            Duration::from_millis(due.saturating_sub(now)).min(IDLE)
        });
        match tokio::time::timeout(wait, self.tasks.recv()).await {
            Ok(Some(task)) => Next::Take(task),
            Ok(None) => Next::End,
            Err(_) => Next::Again,
        }
    }

    /// No event runs: whoever asks is told.
    async fn next_while_closed(&mut self, refusal: Refusal) -> Next {
        self.instance = None;
        self.expire(now_ms());
        let task = tokio::select! {
            task = self.tasks.recv() => task,
            () = self.health.started() => return Next::Again,
            () = tokio::time::sleep(IDLE) => return Next::Again,
        };
        match task {
            Some(Task::Request(_, asker)) => {
                asker.say(Err(refusal));
                Next::Again
            }
            Some(left @ Task::Left(_)) => Next::Take(left),
            None => Next::End,
        }
    }

    /// Ends the requests whose time is over.
    fn expire(&mut self, now_ms: u64) {
        while let Some(&(deadline, request)) = self.deadlines.first()
            && deadline <= now_ms
        {
            self.give_up(request, Some(Refusal::late()));
        }
    }

    /// Without events for a while, no instance is held.
    fn rest(&mut self) {
        if self.busy.elapsed() >= IDLE {
            self.instance = None;
        }
    }

    async fn take(&mut self, request: Request, asker: Asker) {
        // It may have waited long, and who asked may have asked again.
        if asker.answer.is_closed() || request.deadline_ms <= now_ms() {
            return asker.say(Err(Refusal::late()));
        }
        if self.memory.requests.len() >= self.loaded.manifest.limits.requests as usize {
            self.loaded.figures.hits(&[Limit::Requests]);
            let many = Limit::Requests.mend();
            return asker.say(Err(Refusal::new(ErrorCode::Unavailable, many)));
        }
        self.memory.requests.insert(request.id);
        self.askers.insert(request.id, (request.deadline_ms, asker));
        self.deadlines.insert((request.deadline_ms, request.id));
        self.handle(Event::Request(request), 0).await;
    }

    /// Nobody waits for this request any more; its handler is told if it is still at it.
    fn give_up(&mut self, request: u64, told: Option<Refusal>) {
        let asker = self.forget_asker(request);
        if let (Some(asker), Some(refusal)) = (asker, told) {
            asker.say(Err(refusal));
        }
        if self.memory.requests.remove(&request) {
            self.first.push_back((Event::Canceled { request }, 0));
        }
    }

    fn forget_asker(&mut self, request: u64) -> Option<Asker> {
        let (deadline, asker) = self.askers.remove(&request)?;
        self.deadlines.remove(&(deadline, request));
        Some(asker)
    }

    /// Runs one event, and makes what it did real.
    async fn handle(&mut self, event: Event, attempt: u32) {
        if let Event::Request(request) = &event
            && !self.memory.requests.contains(&request.id)
        {
            // It was given up before it was tried again.
            return;
        }
        let outcome = self.try_event(&event, attempt).await;
        self.busy = Instant::now();
        match outcome {
            Ok(told) => self.succeed(&event, told),
            Err(Fault::Refused(refusal)) => self.refuse(event, refusal),
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
        let loaded = Arc::clone(&self.loaded);
        let _turn = loaded.turns.acquire().await;
        let (mut instance, runs) = match self.instance.take() {
            Some(instance) => instance,
            None => (self.instantiate(event).await?, 0),
        };
        let transaction = self.begin(event, attempt);
        let started = Instant::now();
        let (outcome, transaction) = instance.run(event, transaction).await;
        let ending = Ending::of(&outcome);
        loaded
            .figures
            .handled(event.kind(), ending, started.elapsed());
        let Some(transaction) = transaction else {
            return Err(Fault::Trapped("the event was lost".to_owned()));
        };
        loaded.figures.hits(transaction.hits());
        match outcome {
            Ok(told) => {
                let manifest = &loaded.manifest.instance;
                if manifest.mode == Mode::Warm && runs + 1 < manifest.recycle {
                    self.instance = Some((instance, runs + 1));
                }
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

    async fn instantiate(&self, event: &Event) -> Result<Instance, Fault> {
        let started = Instant::now();
        let instance = self.loaded.code().instantiate().await;
        if instance.is_err() {
            let ending = Ending::of(&instance);
            let figures = &self.loaded.figures;
            figures.handled(event.kind(), ending, started.elapsed());
        }
        instance
    }

    fn begin(&mut self, event: &Event, attempt: u32) -> Transaction {
        let snapshot = self.store.snapshot();
        let mut memory = mem::take(&mut self.memory);
        memory.overlay.prune(snapshot.batch());
        let mut seed = [0; 32];
        rand::rng().fill_bytes(&mut seed);
        self.next_event += 1;
        let stamp = Stamp {
            id: self.next_event,
            attempt,
            now_ms: now_ms(),
            principal: self.name.clone(),
            seed,
        };
        let ground = Ground {
            home: self.home,
            limits: Arc::clone(&self.loaded.plugin.limits),
            others_keep: self
                .loaded
                .figures
                .kept_bytes()
                .saturating_sub(memory.kept_bytes),
        };
        let mut transaction = Transaction::new(stamp, ground, snapshot, memory);
        transaction.consume(event);
        transaction
    }

    fn succeed(&mut self, event: &Event, (told, mut effects): (Outcome, Effects)) {
        if let (Event::Request(request), Outcome::Replied(Reply::Done(body))) = (event, told) {
            // A handler that finished it by itself has answered; this comes too late.
            effects.answers.entry(request.id).or_insert(Ok(body));
            self.memory.requests.remove(&request.id);
        }
        let version = self.loaded.version();
        let writes = &mut effects.writes;
        match event {
            Event::Migrate { .. } => self.memory.migrated(self.home, version.schema, writes),
            Event::Init(_) => self.memory.woken(self.home, &self.name, version, writes),
            Event::Timer { .. } | Event::Request(_) | Event::Canceled { .. } => {}
        }
        self.make_real(effects);
    }

    /// The handler said no: the event is consumed, and nothing else.
    fn refuse(&mut self, event: Event, refusal: Refusal) {
        self.consume(event, refusal, Effects::default());
    }

    fn consume(&mut self, event: Event, refusal: Refusal, mut effects: Effects) {
        match &event {
            Event::Request(request) => {
                self.memory.requests.remove(&request.id);
                effects.answers.insert(request.id, Err(refusal));
            }
            Event::Timer { name, .. } => {
                self.memory
                    .apply_timer(self.home, Arc::clone(name), None, &mut effects);
            }
            // What was not woken, or cannot read its rows, must not go on.
            Event::Init(_) | Event::Migrate { .. } => {
                return self.park(event, refusal.to_string());
            }
            Event::Canceled { .. } => {}
        }
        self.make_real(effects);
    }

    /// No event runs until an operator says so; this one is the first then.
    fn park(&mut self, event: Event, why: String) {
        let plugin = &self.loaded.name;
        tracing::error!(%plugin, kind = %event.kind(), why, "a plugin is parked");
        self.first.push_front((event, 0));
        self.health.park(why);
    }

    /// The instance broke: the event is tried again, and given up in the end.
    fn broke(&mut self, event: Event, attempt: u32, fault: &Fault) {
        let plugin = &self.loaded.name;
        tracing::warn!(%plugin, kind = %event.kind(), attempt, %fault, "a plugin broke");
        self.health.broke(fault);
        if attempt + 1 < TRIES {
            self.first.push_front((event, attempt + 1));
            return;
        }
        self.loaded.figures.gave_up();
        let failed = Refusal::new(ErrorCode::Failed, "the plugin failed; see its log");
        match (self.loaded.manifest.instance.poison, &event) {
            // Who asked is told, and may ask again.
            (Poison::Halt, Event::Request(_)) => {
                self.refuse(event, failed);
                self.health.park(fault.to_string());
            }
            (Poison::Halt, _) => self.park(event, fault.to_string()),
            (Poison::Skip, _) => self.skip(event, failed, fault),
        }
    }

    /// The event is dropped, into the list of dead letters.
    fn skip(&mut self, event: Event, told: Refusal, fault: &Fault) {
        let mut effects = Effects::default();
        let letter = DeadLetter::new(&event, &self.name, fault.to_string(), now_ms());
        if let Some(letter) = letter {
            self.loaded.letters.write(letter, &mut effects.writes);
        }
        self.consume(event, told, effects);
    }

    /// Hands over what an event did; it leaves the node when it is durable.
    fn make_real(&mut self, effects: Effects) {
        let Effects {
            writes,
            kept_bytes,
            answers,
            progress,
        } = effects;
        let answers: Vec<_> = answers
            .into_iter()
            .filter_map(|(request, answer)| Some((self.forget_asker(request)?, answer)))
            .collect();
        let progress: Vec<_> = progress
            .into_iter()
            .filter_map(|step| {
                let (_, asker) = self.askers.get(&step.request)?;
                Some((asker.progress.clone()?, step))
            })
            .collect();
        let kept_before = self.memory.kept_bytes.saturating_add_signed(-kept_bytes);
        self.loaded
            .figures
            .keeps(kept_before, self.memory.kept_bytes);
        let release = move |durable: Result<(), Lost>| {
            if durable.is_ok() {
                for (told, step) in progress {
                    let _ = told.try_send(step);
                }
            }
            for (asker, answer) in answers {
                asker.say(durable.map_err(|_| Refusal::lost()).and(answer));
            }
        };
        if writes.is_empty() {
            self.store.after(self.last_batch, release);
        } else {
            let overlay = writes.clone();
            self.last_batch = self.store.append(self.epoch, writes, release);
            self.memory.overlay.write(self.last_batch, overlay);
        }
    }

    /// The disk failed: all that was not durable is gone, and the principal begins anew.
    fn forget(&mut self) {
        let snapshot = self.store.snapshot();
        self.epoch = snapshot.epoch();
        self.instance = None;
        self.first.clear();
        self.deadlines.clear();
        for (_, asker) in mem::take(&mut self.askers).into_values() {
            asker.say(Err(Refusal::lost()));
        }
        self.last_batch = snapshot.batch();
        match Memory::read(self.home, &snapshot) {
            Ok(memory) => {
                let (before, after) = (self.memory.kept_bytes, memory.kept_bytes);
                self.loaded.figures.keeps(before, after);
                self.memory = memory;
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

impl Asker {
    /// Nobody may listen any more.
    fn say(self, answer: Result<Vec<u8>, Refusal>) {
        let _ = self.answer.send(answer);
    }
}
