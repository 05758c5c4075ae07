//! Durable state of all plugins: ordered rows, committed in groups.
//!
//! An event appends its writes to an open batch and goes on. One thread takes the first batch, makes it
//! durable with one commit, publishes the new snapshot, and then releases what the events of the
//! batch want to let out, in the order in which they were appended; meanwhile the next ones fill. Of
//! several writers none fills a batch alone: what is appended is in order for each of them, and those
//! who write little do not wait for those who write much.
//! Reads are of what is durable; a principal's own uncommitted writes lie over it in its [`Overlay`],
//! and a [`View`] reads both.
//!
//! It knows nothing of plugins and principals, and what keys mean.

mod backend;
mod committer;
mod disk;
mod error;
mod frozen;
mod head;
mod overlay;
mod queue;
mod sealed;
mod snapshot;
mod view;
mod writes;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    ops::ControlFlow,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use rand::RngCore;
use zeroize::Zeroizing;

pub use self::{
    backend::{Backend, Rows, Span, Visit},
    error::{Lost, StoreError},
    overlay::Overlay,
    snapshot::Snapshot,
    view::{Row, View},
    writes::Writes,
};
use self::{
    committer::Committer,
    disk::Disk,
    head::Head,
    queue::{Event, Queue, Release, Reopened},
    sealed::Sealed,
};
pub(crate) use self::{
    frozen::{Frozen, Shelf},
    sealed::SEALED_PREFIX,
};

/// Memory for pages of the file: enough for the paths to all rows of some millions.
const DEFAULT_CACHE_BYTES: usize = 32 << 20;

/// Of the file of slots, beside the store's.
const SLOTS_EXTENSION: &str = "slots";

/// How a store is opened.
pub struct StoreOptions {
    /// Memory for pages of the file; default 32 MiB.
    pub cache_bytes: usize,
    /// Seals the rows whose keys begin with the byte 0x11, with a file of slots beside the store's;
    /// the same secret opens them. Default: none, and such rows are as all others.
    pub secret: Option<Zeroizing<[u8; 32]>>,
    /// Sees every commit, on the thread that commits; default: nobody does.
    pub observer: Option<Observer>,
}

/// Sees every commit; must not block.
pub type Observer = Box<dyn Fn(&Commit) + Send>;

/// One commit, for metrics.
#[derive(Debug, Clone)]
pub struct Commit {
    /// What was appended to it.
    pub events: usize,
    /// Rows that it put and deleted; of several writes to one row only the last counts.
    pub rows: usize,
    /// Keys and values of these rows.
    pub bytes: usize,
    /// What the backend took for it.
    pub took: Duration,
    /// False: it failed, and its events with it.
    pub is_durable: bool,
}

/// Whose writes something is: batches and room are shared among writers, each of whose writes become
/// durable in the order in which they were appended. Between those of two there is no order: what
/// must follow another's is appended once that one is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Writer(pub u32);

/// Names a batch. Batches of one epoch are durable in the order of their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId {
    epoch: u64,
    number: u64,
}

/// The rows of all plugins. Clones are one store; when the last one is dropped, what was appended is
/// committed first, and the drop waits for it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    queue: Arc<Queue>,
    head: Head,
    committer: Option<JoinHandle<()>>,
}

impl Store {
    /// Opens the store in the file `path`, and makes an empty one if there is no such file. Reads the
    /// whole file once, to see that it is not damaged.
    ///
    /// # Errors
    /// When the file cannot be made or opened, others could read it, another process has it open, it
    /// is damaged, or something else than a store, or its sealed rows cannot be opened; the error says what mends it.
    pub fn open(path: impl AsRef<Path>, options: StoreOptions) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let disk = Disk::open(path, options.cache_bytes)?;
        Self::open_on(Box::new(disk), path, options)
    }

    /// The same on another backend, which holds the rows instead of the file `path`; `path` is where the
    /// file of slots stands beside, and names the store in errors.
    ///
    /// # Errors
    /// When the backend does not work, holds something else than a store, or its sealed rows cannot be
    /// opened.
    pub fn open_on(
        mut backend: Box<dyn Backend>,
        path: &Path,
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        if let Some(secret) = &options.secret {
            let slots = path.with_extension(SLOTS_EXTENSION);
            backend = Box::new(Sealed::open(backend, &slots, secret)?);
        }
        let place = path.display().to_string();
        Self::start(backend, &place, options.observer)
    }

    /// Opens a store on another backend; `place` names it in errors.
    ///
    /// # Errors
    /// When the backend does not work, or holds something else than a store.
    pub fn start(
        mut backend: Box<dyn Backend>,
        place: &str,
        observer: Option<Observer>,
    ) -> Result<Self, StoreError> {
        let rows = backend.snapshot()?;
        let mut head = match Head::read(&*rows)? {
            Some(head) => head,
            None if is_empty(&*rows)? => new_head(),
            None => {
                let place = place.to_owned();
                return Err(StoreError::Foreign { place });
            }
        };
        drop(rows);
        head.boot = head.boot.wrapping_add(1);
        let mut writes = Writes::default();
        head.write(&mut writes);
        backend.commit(&writes)?;

        let queue = Queue::new(backend.snapshot()?);
        let committer = Committer::new(backend, Arc::clone(&queue), head, observer);
        let thread = thread::Builder::new().name("plugin-store".to_owned());
        let committer = thread.spawn(|| committer.run());
        Ok(Self(Arc::new(Inner {
            queue,
            head,
            committer: Some(committer.map_err(StoreError::Thread)?),
        })))
    }

    /// Has somebody look at what there is after each failure, before anybody can append again: it may
    /// hold what is told to be lost. One alone can look, who must not append.
    pub(crate) fn when_reopened(&self, look: impl Fn(&Snapshot) + Send + Sync + 'static) {
        let look: Reopened = Box::new(look);
        self.0.queue.when_reopened(look);
    }

    /// What is durable at this moment. Its rows stay on disk while it is kept: do not keep it long.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.queue.snapshot()
    }

    /// Adds an event's writes to an open batch, behind all that this writer appended before; `release`
    /// is called when they are durable, or known to be lost. Writes may be empty: then they are released
    /// with that batch. It never blocks; wait for [`Store::room`] before the event. Who appends for a
    /// principal does so in the order of its events.
    ///
    /// `epoch` is that of what the event read. If it is over, or the store has failed, `release` is
    /// called at once with `Lost`, and the batch that is returned says nothing.
    ///
    /// `release` must be short and never block; it may append.
    pub fn append(
        &self,
        writer: Writer,
        epoch: u64,
        writes: Writes,
        release: impl FnOnce(Result<(), Lost>) + Send + 'static,
    ) -> BatchId {
        self.push(Some(writer), epoch, writes, Box::new(release), false)
    }

    /// As [`Store::append`], for writes that nobody waits for: they are durable with the next commit,
    /// which follows within 100 ms if nobody else appends.
    pub fn append_patiently(
        &self,
        writer: Writer,
        epoch: u64,
        writes: Writes,
        release: impl FnOnce(Result<(), Lost>) + Send + 'static,
    ) -> BatchId {
        self.push(Some(writer), epoch, writes, Box::new(release), true)
    }

    /// As [`Store::append`], for what is no writer's own: behind all that anybody appended before, and
    /// before all that anybody appends later.
    pub fn append_between(
        &self,
        epoch: u64,
        writes: Writes,
        release: impl FnOnce(Result<(), Lost>) + Send + 'static,
    ) -> BatchId {
        self.push(None, epoch, writes, Box::new(release), false)
    }

    fn push(
        &self,
        writer: Option<Writer>,
        epoch: u64,
        writes: Writes,
        release: Release,
        is_patient: bool,
    ) -> BatchId {
        let event = Event {
            writer,
            writes,
            release,
            is_patient,
        };
        self.0.queue.append(epoch, event)
    }

    /// Calls `release` when `batch` is durable and all that was appended to it is released: at once if
    /// it is by now. If it is lost, or of an epoch that is over, `release` is called with `Lost`.
    pub fn after(&self, batch: BatchId, release: impl FnOnce(Result<(), Lost>) + Send + 'static) {
        self.0.queue.after(batch, Box::new(release));
    }

    /// Waits while more than 8,192 events or 16 MiB are open, or a quarter of that of this writer, or
    /// the store has failed. Whoever appends waits for this before its next event; all who wait go on at
    /// once. Cancel-safe.
    pub async fn room(&self, writer: Writer) {
        self.0.queue.room(writer).await;
    }

    /// Whether others than this writer wrote within the last minute.
    pub fn is_shared(&self, writer: Writer) -> bool {
        self.0.queue.is_shared(writer)
    }

    /// Counts the store's failures: what was read in an epoch that is over, or appended, says nothing
    /// any more. Take it from the snapshot that is read ([`Snapshot::epoch`]), or before that.
    pub fn epoch(&self) -> u64 {
        self.0.queue.epoch()
    }

    /// Waits until the store works, after it failed or a snapshot could not be read: at once if it
    /// does. Cancel-safe.
    pub async fn lost(&self) {
        self.0.queue.works().await;
    }

    /// How often the store was opened before, and this time; wraps after 2^32.
    pub fn boot(&self) -> u32 {
        self.0.head.boot
    }

    /// Random, made with the store: tells it from any other.
    pub fn incarnation(&self) -> [u8; 16] {
        self.0.head.incarnation
    }
}

impl BatchId {
    fn next(self) -> Self {
        Self {
            number: self.number + 1,
            ..self
        }
    }
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            cache_bytes: DEFAULT_CACHE_BYTES,
            secret: None,
            observer: None,
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.end();
        if let Some(committer) = self.committer.take()
            // A release may have held the last clone.
            && committer.thread().id() != thread::current().id()
            && committer.join().is_err()
        {
            tracing::error!("the thread of the plugins' store panicked");
        }
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = out.debug_struct("StoreOptions");
        out.field("cache_bytes", &self.cache_bytes)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = out.debug_struct("Store");
        out.field("epoch", &self.epoch())
            .field("boot", &self.boot());
        out.finish_non_exhaustive()
    }
}

fn new_head() -> Head {
    let mut incarnation = [0; 16];
    rand::rng().fill_bytes(&mut incarnation);
    Head {
        incarnation,
        boot: 0,
    }
}

fn is_empty(rows: &dyn Rows) -> Result<bool, StoreError> {
    let Some(all) = Span::new(&[], None, false) else {
        return Ok(true);
    };
    let mut is_empty = true;
    rows.scan(&all, &mut |_, _| {
        is_empty = false;
        ControlFlow::Break(())
    })?;
    Ok(is_empty)
}
