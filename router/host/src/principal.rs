//! One principal of one plugin: takes its events one at a time, and holds what it remembers.
//!
//! A task lives as long as there is something to remember that the store does not: events that
//! wait, open requests, timers, scratch, rows that are not durable yet. An instance lives from the
//! first event until nothing came for a while.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    sync::Arc,
    time::Duration,
};

use rand::RngCore as _;
use tokio::sync::{mpsc, oneshot};

use crate::{
    clock::now_ms,
    event::{ErrorCode, Event, Principal, Reason, Refusal, Reply, Request, Stamp},
    guest::{Fault, Instance, Outcome},
    loaded::Loaded,
    manifest::{Mode, Poison},
    memory::Memory,
    rows::Home,
    store::{BatchId, Lost, Store, StoreError},
    transaction::{Effects, Ground, Progress, Transaction},
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
    askers: BTreeMap<u64, Asker>,
    deadlines: BTreeSet<(u64, u64)>,
    next_event: u64,
    is_halted: bool,
}

/// What an actor does next.
enum Next {
    Run(Event, u32),
    Take(Task),
    /// Nothing came for a while.
    Rest,
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
            is_halted: false,
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
            self.loaded.health.pass().await;
            self.store.room().await;
            if self.epoch != self.store.epoch() {
                self.forget();
            }
            match self.next().await {
                Next::Run(event, attempt) => self.handle(event, attempt).await,
                Next::Take(Task::Left(request)) => self.give_up(request, None),
                Next::Take(Task::Request(request, asker)) => self.take(request, asker).await,
                Next::Rest => self.instance = None,
                Next::End => return,
            }
        }
    }

    async fn next(&mut self) -> Next {
        if let Some((event, attempt)) = self.first.pop_front() {
            return Next::Run(event, attempt);
        }
        let now = now_ms();
        if let Some((name, payload)) = self.memory.due_timer(now) {
            return Next::Run(Event::Timer { name, payload }, 0);
        }
        if let Some(&(deadline, request)) = self.deadlines.first()
            && deadline <= now
        {
            let late = Refusal::new(ErrorCode::Expired, "the plugin did not answer in time");
            self.give_up(request, Some(late));
            if let Some((event, attempt)) = self.first.pop_front() {
                return Next::Run(event, attempt);
            }
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
            Err(_) => Next::Rest,
        }
    }

    async fn take(&mut self, request: Request, asker: Asker) {
        let refusal = if self.is_halted {
            Some("the plugin halted for this principal; see `wormholes plugin list`")
        } else if self.memory.requests.len() >= self.loaded.manifest.limits.requests as usize {
            Some("the plugin has too many requests without an answer; ask again later")
        } else {
            None
        };
        if let Some(refusal) = refusal {
            asker.say(Err(Refusal::new(ErrorCode::Unavailable, refusal)));
            return;
        }
        self.memory.requests.insert(request.id);
        self.askers.insert(request.id, asker);
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
        self.deadlines.retain(|(_, id)| *id != request);
        self.askers.remove(&request)
    }

    /// Runs one event, and makes what it did real.
    async fn handle(&mut self, event: Event, attempt: u32) {
        let started = std::time::Instant::now();
        let outcome = self.try_event(&event, attempt).await;
        let figures = &self.loaded.figures;
        figures.handled(event.kind(), &outcome, started.elapsed());
        match outcome {
            Ok(told) => self.succeed(&event, told),
            Err(Fault::Refused(refusal)) => self.refuse(&event, refusal),
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
            None => (loaded.code().instantiate().await?, 0),
        };
        let (outcome, transaction) = instance.run(event, self.begin(event, attempt)).await;
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
        if let Event::Init(_) = event {
            self.woken(&mut effects);
        }
        self.make_real(effects);
    }

    fn woken(&mut self, effects: &mut Effects) {
        let version = self.loaded.version();
        let writes = &mut effects.writes;
        self.memory.woken(self.home, &self.name, version, writes);
    }

    /// The handler said no: the event is consumed, and nothing else.
    fn refuse(&mut self, event: &Event, refusal: Refusal) {
        let mut effects = Effects::default();
        match event {
            Event::Request(request) => {
                self.memory.requests.remove(&request.id);
                effects.answers.insert(request.id, Err(refusal));
            }
            Event::Timer { name, .. } => {
                self.memory
                    .apply_timer(self.home, Arc::clone(name), None, &mut effects);
            }
            Event::Init(_) => {
                let plugin = &self.loaded.name;
                tracing::warn!(%plugin, error = %refusal, "a plugin did not wake");
                self.woken(&mut effects);
            }
            Event::Migrate { from } => {
                let plugin = &self.loaded.name;
                tracing::error!(%plugin, from, error = %refusal, "a plugin cannot read its rows");
                // What it cannot read, it must not write.
                self.first.clear();
                self.is_halted = true;
            }
            Event::Canceled { .. } => {}
        }
        self.make_real(effects);
    }

    /// The instance broke: the event is tried again, and given up in the end.
    fn broke(&mut self, event: Event, attempt: u32, fault: &Fault) {
        let plugin = &self.loaded.name;
        tracing::warn!(%plugin, kind = %event.kind(), attempt, %fault, "a plugin broke");
        self.loaded.health.broke(fault);
        if attempt + 1 < TRIES {
            self.first.push_front((event, attempt + 1));
            return;
        }
        self.loaded.figures.gave_up();
        self.is_halted |= self.loaded.manifest.instance.poison == Poison::Halt;
        self.refuse(
            &event,
            Refusal::new(ErrorCode::Failed, "the plugin failed; see its log"),
        );
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
                let asker = self.askers.get(&step.request)?;
                Some((asker.progress.clone()?, step))
            })
            .collect();
        self.loaded.figures.keeps(kept_bytes);
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
        for (_, asker) in mem::take(&mut self.askers) {
            asker.say(Err(Refusal::lost()));
        }
        self.last_batch = snapshot.batch();
        match Memory::read(self.home, &snapshot) {
            Ok(memory) => {
                let change = memory.kept_bytes.wrapping_sub(self.memory.kept_bytes);
                self.loaded.figures.keeps(change as i64);
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
