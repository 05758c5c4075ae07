//! What waits to be committed, and what is known to be durable: between those who append and the
//! one thread that commits.
//!
//! ```text
//! append -> open batch -> in flight (one commit) -> durable -> its releases, in order
//! ```
//!
//! While one batch is in flight the next one fills; it is taken as soon as the commit before it is
//! done. Only one that nobody waits for is held back, for 100 ms: mostly somebody joins it. A failure
//! loses what is in flight and open, and begins a new epoch once the backend works again.

use std::{
    mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::{BatchId, Lost, Rows, Snapshot, StoreError, Writes};

/// How many events an open batch holds before those who append wait: at 50,000 events a second more
/// than a commit on a slow disk (100 ms) collects.
pub(super) const MAX_EVENTS: usize = 8192;
/// How many bytes of keys and values, so that two batches fit twice into the smallest of machines:
/// once here, once in the overlays of those who wrote them.
pub(super) const MAX_BYTES: usize = 16 << 20;

/// How long a batch that nobody waits for is held open, for others to join it.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);

/// Called once it is known whether a batch is durable.
pub(super) type Release = Box<dyn FnOnce(Result<(), Lost>) + Send>;
/// Looks at what there is after a failure.
pub(super) type Reopened = Box<dyn Fn(&Snapshot) + Send + Sync>;

/// What one event left to be made durable.
pub(super) struct Event {
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
    /// The open batch.
    batch: BatchId,
    /// Bounded by those who append, who wait while it is full: `MAX_EVENTS` and one event of each.
    open: Vec<Event>,
    open_bytes: usize,
    /// When the open batch is taken at the latest; `None`: it is empty.
    due: Option<Instant>,
    /// The last batch whose releases have all been called.
    released: u64,
    in_flight: bool,
    /// Released behind the batch in flight.
    behind: Vec<Release>,
    has_failed: bool,
    is_ending: bool,
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
                open: Vec::new(),
                open_bytes: 0,
                due: None,
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
        let batch = state.batch;
        if state.has_failed || epoch != batch.epoch {
            drop(state);
            (event.release)(Err(Lost));
            return batch;
        }
        self.push(&mut state, event, bytes);
        batch
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
                writes: Writes::default(),
                release,
                is_patient: false,
            };
            self.push(&mut state, event, 0);
        } else {
            drop(state);
            release(Err(Lost));
        }
    }

    fn push(&self, state: &mut State, event: Event, bytes: usize) {
        let now = Instant::now();
        let due = if event.is_patient {
            now + PATIENCE
        } else {
            now
        };
        if state.due.is_none_or(|known| due < known) {
            state.due = Some(due);
            self.work.notify_one();
        }
        state.open_bytes += bytes;
        state.open.push(event);
    }

    /// Waits until the open batch takes more.
    pub(super) async fn room(&self) {
        let is_full = |state: &State| {
            state.has_failed || state.open.len() > MAX_EVENTS || state.open_bytes > MAX_BYTES
        };
        self.wait_while(is_full).await;
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
            let Some(due) = state.due else {
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() || state.is_ending {
                let batch = state.batch;
                state.batch = batch.next();
                state.in_flight = true;
                let events = state.take_open();
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
    fn take_open(&mut self) -> Vec<Event> {
        self.open_bytes = 0;
        self.due = None;
        mem::take(&mut self.open)
    }
}
