//! What waits to be committed, and what is known to be durable: between those who append and the
//! one thread that commits.
//!
//! ```text
//! append -> open batches -> in flight (one commit) -> durable -> its releases, in order
//! ```
//!
//! While one batch is in flight the next ones fill; the first is taken as soon as the commit before it
//! is done. One batch takes a share of each writer and no more, and what is larger by itself has a
//! batch of its own, behind one for all others: who writes little waits for no more than the commit in
//! flight and one large event, whatever others write. Only what nobody waits for is held back, for
//! 100 ms: mostly somebody joins it. A failure loses what is in flight and open, and begins a new epoch
//! once the backend works again.

use std::{
    collections::{BTreeMap, VecDeque},
    iter, mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::{BatchId, Lost, Rows, Snapshot, StoreError, Writer, Writes};

/// How many events are open before those who append wait: at 50,000 events a second more than a
/// commit on a slow disk (100 ms) collects.
pub(super) const MAX_EVENTS: usize = 8192;
/// How many bytes of keys and values, so that twice as many fit twice into the smallest of machines:
/// once here, once in the overlays of those who wrote them.
pub(super) const MAX_BYTES: usize = 16 << 20;
/// One writer alone waits when it has so many of them: others find room beside it.
pub(super) const MAX_EVENTS_OF_ONE: usize = MAX_EVENTS / 4;
/// The same of bytes.
pub(super) const MAX_BYTES_OF_ONE: usize = MAX_BYTES / 4;
/// What one batch has of each writer: a disk takes little longer for it than for a few rows.
pub(super) const SHARE_BYTES: usize = 256 << 10;
/// Who else wrote within this time, is at work.
const AT_WORK: Duration = Duration::from_secs(60);

/// How long a batch that nobody waits for is held open, for others to join it.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);

/// Called once it is known whether a batch is durable.
pub(super) type Release = Box<dyn FnOnce(Result<(), Lost>) + Send>;
/// Looks at what there is after a failure.
pub(super) type Reopened = Box<dyn Fn(&Snapshot) + Send + Sync>;

/// What one event left to be made durable.
pub(super) struct Event {
    /// `None`: it comes behind all that was appended before it, and before all that is later.
    pub(super) writer: Option<Writer>,
    pub(super) writes: Writes,
    pub(super) release: Release,
    /// Whether nobody waits for it.
    pub(super) is_patient: bool,
}

/// What the committer does next.
pub(super) enum Work {
    /// Commit this, as the batch of this number.
    Commit(BatchId, Vec<Event>),
    /// Give these up and open the backend anew.
    Reopen(Vec<Event>),
    /// Nobody can append any more.
    End(Vec<Event>),
}

pub(super) struct Queue {
    state: Mutex<State>,
    /// Wakes the committer.
    work: Condvar,
    /// Wakes those who wait for room, or for the end of a failure.
    changed: Notify,
    epoch: AtomicU64,
    snapshot: ArcSwap<Snapshot>,
    /// Sees what there is after a failure, before anybody goes on.
    reopened: OnceLock<Reopened>,
}

struct State {
    /// The first open batch.
    batch: BatchId,
    /// That one, and those behind it. Bounded by those who append, who wait while they are full:
    /// `MAX_EVENTS`, `MAX_BYTES`, and one event of each.
    open: VecDeque<Batch>,
    /// How many of them take nothing more: one behind them has what comes behind all before it.
    closed: usize,
    /// Who wrote last, and who else did before, and when.
    last_writers: [Option<(Writer, Instant)>; 2],
    /// The last batch whose releases have all been called.
    released: u64,
    in_flight: bool,
    /// Released behind the batch in flight. Bounded as the open batches are, with which they count.
    behind: Vec<Release>,
    has_failed: bool,
    is_ending: bool,
}

/// What is committed together.
#[derive(Default)]
struct Batch {
    events: Vec<Event>,
    /// What it has of each writer.
    shares: BTreeMap<Writer, Share>,
    bytes: usize,
    /// When it is taken at the latest; `None`: it is empty.
    due: Option<Instant>,
    /// It has one large event, and nothing of others.
    is_large: bool,
}

/// What a batch has of one writer.
#[derive(Default, Clone, Copy)]
struct Share {
    events: usize,
    bytes: usize,
}

impl Queue {
    pub(super) fn new(rows: Box<dyn Rows>) -> Arc<Self> {
        let durable = BatchId {
            epoch: 1,
            number: 0,
        };
        Arc::new_cyclic(|queue| Self {
            state: Mutex::new(State {
                batch: durable.next(),
                open: VecDeque::new(),
                closed: 0,
                last_writers: [None; 2],
                released: durable.number,
                in_flight: false,
                behind: Vec::new(),
                has_failed: false,
                is_ending: false,
            }),
            work: Condvar::new(),
            changed: Notify::new(),
            epoch: AtomicU64::new(durable.epoch),
            snapshot: ArcSwap::from_pointee(Snapshot::new(durable, rows, Weak::clone(queue))),
            reopened: OnceLock::new(),
        })
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(super) fn append(&self, epoch: u64, event: Event) -> BatchId {
        let bytes = event.writes.bytes();
        let mut state = self.lock();
        if state.has_failed || epoch != state.batch.epoch {
            let batch = state.batch;
            drop(state);
            (event.release)(Err(Lost));
            return batch;
        }
        let at = state.place(event.writer, bytes);
        self.push(&mut state, at, event, bytes);
        state.number(at)
    }

    pub(super) fn after(&self, batch: BatchId, release: Release) {
        let mut state = self.lock();
        let is_known = batch.epoch == state.batch.epoch;
        if is_known && batch.number <= state.released {
            drop(state);
            release(Ok(()));
        } else if is_known && state.in_flight && batch < state.batch {
            state.behind.push(release);
        } else if is_known && !state.has_failed {
            let event = Event {
                writer: None,
                writes: Writes::default(),
                release,
                is_patient: false,
            };
            let at = state.open_at(batch);
            self.push(&mut state, at, event, 0);
        } else {
            drop(state);
            release(Err(Lost));
        }
    }

    /// Adds to the open batch of this place.
    fn push(&self, state: &mut State, at: usize, event: Event, bytes: usize) {
        let now = Instant::now();
        let due = if event.is_patient {
            now + PATIENCE
        } else {
            now
        };
        if state.due().is_none_or(|known| due < known) {
            self.work.notify_one();
        }
        if let Some(writer) = event.writer.filter(|_| bytes > 0) {
            state.wrote(writer, now);
        }
        if let Some(batch) = state.open.get_mut(at) {
            batch.push(event, bytes, due);
        }
    }

    /// Waits until the open batches take more of a writer.
    pub(super) async fn room(&self, writer: Writer) {
        self.wait_while(|state| state.has_failed || state.is_full(writer))
            .await;
    }

    /// Whether others wrote within the last minute.
    pub(super) fn is_shared(&self, writer: Writer) -> bool {
        let now = Instant::now();
        let last = self.lock().last_writers;
        let mut others = last.iter().flatten().filter(|(by, _)| *by != writer);
        others.any(|(_, at)| now.saturating_duration_since(*at) < AT_WORK)
    }

    /// Waits until the backend works.
    pub(super) async fn works(&self) {
        self.wait_while(|state| state.has_failed).await;
    }

    async fn wait_while(&self, waits: impl Fn(&State) -> bool) {
        loop {
            // Made before the look: what changes in between wakes it.
            let changed = self.changed.notified();
            if !waits(&self.lock()) {
                return;
            }
            changed.await;
        }
    }

    /// Takes the next work; waits for it.
    pub(super) fn next(&self) -> Work {
        let mut state = self.lock();
        loop {
            if state.is_ending && (state.has_failed || state.open.is_empty()) {
                // Nothing can be made durable any more, and nobody waits for a new epoch.
                state.has_failed = true;
                return Work::End(state.take_open());
            }
            if state.has_failed {
                return Work::Reopen(state.take_open());
            }
            let Some(due) = state.due() else {
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() || state.is_ending {
                let (batch, events) = state.take_first();
                state.in_flight = true;
                self.changed.notify_waiters();
                return Work::Commit(batch, events);
            }
            let waited = self.work.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Makes a batch visible.
    pub(super) fn publish(self: &Arc<Self>, batch: BatchId, rows: Box<dyn Rows>) {
        let snapshot = Snapshot::new(batch, rows, Arc::downgrade(self));
        self.snapshot.store(Arc::new(snapshot));
    }

    /// What waits behind the batch in flight; none: nothing did, and it is in flight no more.
    pub(super) fn behind(&self, batch: BatchId, outcome: Result<(), Lost>) -> Option<Vec<Release>> {
        let mut state = self.lock();
        if !state.behind.is_empty() {
            return Some(mem::take(&mut state.behind));
        }
        state.in_flight = false;
        if outcome.is_ok() {
            state.released = batch.number;
        }
        self.changed.notify_waiters();
        None
    }

    /// Nothing can be appended until the next epoch begins; whether that is news.
    pub(super) fn fail(&self, epoch: u64) -> bool {
        let mut state = self.lock();
        let is_news = epoch == state.batch.epoch && !state.has_failed;
        if is_news {
            state.has_failed = true;
            self.work.notify_one();
        }
        is_news
    }

    /// Waits before the backend is opened again; false: the store ends.
    pub(super) fn pause(&self, delay: Duration) -> bool {
        let state = self.lock();
        let paused = self
            .work
            .wait_timeout_while(state, delay, |state| !state.is_ending);
        !paused.unwrap_or_else(PoisonError::into_inner).0.is_ending
    }

    /// The backend works again, and holds these rows.
    pub(super) fn begin_epoch(self: &Arc<Self>, rows: Box<dyn Rows>) {
        let mut state = self.lock();
        // All numbers before that of the open batch are durable or lost by now.
        state.released = state.batch.number.saturating_sub(1);
        state.batch.epoch += 1;
        let durable = BatchId {
            number: state.released,
            ..state.batch
        };
        // It may read, and what cannot be read is told to this queue.
        drop(state);
        let snapshot = Arc::new(Snapshot::new(durable, rows, Arc::downgrade(self)));
        if let Some(look) = self.reopened.get() {
            look(&snapshot);
        }
        // The epoch last: whoever sees it finds the snapshot that it began with.
        self.snapshot.store(snapshot);
        self.epoch.store(durable.epoch, Ordering::Release);
        self.lock().has_failed = false;
        self.changed.notify_waiters();
    }

    /// Has somebody look at what there is after each failure; one alone can.
    pub(super) fn when_reopened(&self, look: Reopened) {
        let _ = self.reopened.set(look);
    }

    /// What is open is still committed.
    pub(super) fn end(&self) {
        self.lock().is_ending = true;
        self.work.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A snapshot could not be read.
    pub(super) fn doubt(&self, epoch: u64, error: &StoreError) {
        if self.fail(epoch) {
            let error: &dyn std::error::Error = error;
            tracing::error!(
                error,
                "the plugins' store cannot be read and is opened anew"
            );
        }
    }
}

impl State {
    /// When the first open batch is taken at the latest; `None`: nothing is open. What is due has all
    /// before it taken.
    fn due(&self) -> Option<Instant> {
        self.open.iter().filter_map(|batch| batch.due).min()
    }

    fn number(&self, at: usize) -> BatchId {
        BatchId {
            number: self.batch.number + at as u64,
            ..self.batch
        }
    }

    /// The open batch that so many bytes of a writer go to: behind what it appended before.
    fn place(&mut self, writer: Option<Writer>, bytes: usize) -> usize {
        let Some(writer) = writer else {
            let last = self.open.len().saturating_sub(1);
            self.closed = last;
            return self.grow(last);
        };
        let own = |batch: &Batch| batch.shares.contains_key(&writer);
        let first = self.open.iter().rposition(own);
        let first = first.unwrap_or_default().max(self.closed);
        if bytes > SHARE_BYTES {
            // What is small passes it, in a batch that may be empty yet.
            let passes = self.open.back().is_none_or(|batch| batch.is_large);
            return self.grow(self.open.len() + usize::from(passes));
        }
        let mut behind = self.open.iter().enumerate().skip(first);
        let free = behind.find(|(_, batch)| batch.takes(writer, bytes));
        let at = free.map_or(self.open.len(), |(at, _)| at);
        self.grow(at)
    }

    /// The open batch that `after` waits for; one that nobody ever had comes behind all.
    fn open_at(&mut self, batch: BatchId) -> usize {
        let at = batch.number.saturating_sub(self.batch.number);
        let last = self.open.len().saturating_sub(1);
        let at = usize::try_from(at).map_or(last, |at| at.min(last));
        self.grow(at)
    }

    fn grow(&mut self, at: usize) -> usize {
        let missing = (at + 1).saturating_sub(self.open.len());
        self.open
            .extend(iter::repeat_with(Batch::default).take(missing));
        at
    }

    fn is_full(&self, writer: Writer) -> bool {
        let (mut all, mut own) = (Share::default(), Share::default());
        all.add(self.behind.len(), 0);
        for batch in &self.open {
            all.add(batch.events.len(), batch.bytes);
            let share = batch.shares.get(&writer).copied().unwrap_or_default();
            own.add(share.events, share.bytes);
        }
        all.is_beyond(MAX_EVENTS, MAX_BYTES) || own.is_beyond(MAX_EVENTS_OF_ONE, MAX_BYTES_OF_ONE)
    }

    fn wrote(&mut self, writer: Writer, now: Instant) {
        let [last, before] = &mut self.last_writers;
        if last.is_some_and(|(by, _)| by != writer) {
            *before = *last;
        }
        *last = Some((writer, now));
    }

    /// The first batch that has events; its number, and they.
    fn take_first(&mut self) -> (BatchId, Vec<Event>) {
        loop {
            let number = self.batch;
            self.batch = number.next();
            self.closed = self.closed.saturating_sub(1);
            let events = self.open.pop_front().map(|batch| batch.events);
            match events {
                Some(events) if events.is_empty() => {}
                events => return (number, events.unwrap_or_default()),
            }
        }
    }

    fn take_open(&mut self) -> Vec<Event> {
        self.closed = 0;
        let open = mem::take(&mut self.open).into_iter();
        open.flat_map(|batch| batch.events).collect()
    }
}

impl Batch {
    /// Whether this little of a writer goes with it.
    fn takes(&self, writer: Writer, bytes: usize) -> bool {
        let share = self.shares.get(&writer).copied().unwrap_or_default();
        !self.is_large && share.bytes + bytes <= SHARE_BYTES
    }

    fn push(&mut self, event: Event, bytes: usize, due: Instant) {
        self.due = Some(self.due.map_or(due, |known| known.min(due)));
        self.bytes += bytes;
        if let Some(writer) = event.writer {
            self.shares.entry(writer).or_default().add(1, bytes);
            self.is_large |= bytes > SHARE_BYTES;
        }
        self.events.push(event);
    }
}

impl Share {
    fn add(&mut self, events: usize, bytes: usize) {
        self.events += events;
        self.bytes += bytes;
    }

    fn is_beyond(self, events: usize, bytes: usize) -> bool {
        self.events > events || self.bytes > bytes
    }
}
