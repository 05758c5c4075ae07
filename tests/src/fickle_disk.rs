//! A disk that fails when a test says so: a backend of the plugins' store, whose rows lie in memory.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use wormholes_host::{Backend, Rows, Span, StoreError, Visit, Writes};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// The disk. Clones are one: whoever opens a store on it again finds what is durable.
#[derive(Debug, Clone, Default)]
pub struct FickleDisk(Arc<Mutex<State>>);

/// How a commit fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFailure {
    /// Nothing of it is durable, as on a full disk.
    Lost,
    /// It says that it failed, and yet all of it is durable.
    Kept,
    /// It panics, and nothing of it is durable.
    Panic,
}

#[derive(Default)]
struct State {
    rows: Arc<Map>,
    /// After so many commits that work, one fails.
    failure: Option<(usize, DiskFailure)>,
    /// It cannot be opened anew.
    is_gone: bool,
    /// What was read of it before it was opened anew cannot be read.
    is_unreadable: Arc<AtomicBool>,
    failed: usize,
    tries: usize,
}

struct Frozen {
    rows: Arc<Map>,
    is_unreadable: Arc<AtomicBool>,
}

impl FickleDisk {
    /// After so many commits that work one fails, and the disk works again.
    pub fn fail_after(&self, commits: usize, how: DiskFailure) {
        self.state().failure = Some((commits, how));
    }

    /// The next commit fails, and the disk cannot be opened anew until it is mended.
    pub fn break_down(&self, how: DiskFailure) {
        let mut state = self.state();
        state.failure = Some((0, how));
        state.is_gone = true;
    }

    /// Nothing can be read of it any more, until it is opened anew.
    pub fn hide_rows(&self) {
        self.state().is_unreadable.store(true, Ordering::SeqCst);
    }

    /// It works from now on.
    pub fn mend(&self) {
        let mut state = self.state();
        (state.failure, state.is_gone) = (None, false);
    }

    /// How many commits failed.
    pub fn failed(&self) -> usize {
        self.state().failed
    }

    /// How often it was to be opened anew.
    pub fn tries(&self) -> usize {
        self.state().tries
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for FickleDisk {
    fn snapshot(&self) -> Result<Box<dyn Rows>, StoreError> {
        let state = self.state();
        Ok(Box::new(Frozen {
            rows: Arc::clone(&state.rows),
            is_unreadable: Arc::clone(&state.is_unreadable),
        }))
    }

    #[expect(clippy::panic, reason = "one of the ways in which it fails")]
    fn commit(&mut self, writes: &Writes) -> Result<(), StoreError> {
        let mut state = self.state();
        let failure = state.next_failure();
        if matches!(failure, None | Some(DiskFailure::Kept)) {
            apply(Arc::make_mut(&mut state.rows), writes);
        }
        drop(state);
        match failure {
            None => Ok(()),
            Some(DiskFailure::Lost | DiskFailure::Kept) => Err(failed()),
            Some(DiskFailure::Panic) => panic!("the disk panics, as the test wants it"),
        }
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        let mut state = self.state();
        state.tries += 1;
        if state.is_gone {
            return Err(failed());
        }
        state.is_unreadable = Arc::default();
        Ok(())
    }
}

impl State {
    /// How the commit fails that begins, if it does.
    fn next_failure(&mut self) -> Option<DiskFailure> {
        let (commits, how) = self.failure.take()?;
        match commits.checked_sub(1) {
            Some(left) => {
                self.failure = Some((left, how));
                None
            }
            None => {
                self.failed += 1;
                Some(how)
            }
        }
    }
}

impl Frozen {
    fn check(&self) -> Result<(), StoreError> {
        let is_unreadable = self.is_unreadable.load(Ordering::SeqCst);
        (!is_unreadable).then_some(()).ok_or_else(failed)
    }
}

impl Rows for Frozen {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.check()?;
        Ok(self.rows.get(key).cloned())
    }

    fn scan(&self, span: &Span, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.check()?;
        let mut rows = self.rows.range::<[u8], _>(span.bounds());
        while let Some((key, value)) = if span.is_backwards() {
            rows.next_back()
        } else {
            rows.next()
        } {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

fn apply(rows: &mut Map, writes: &Writes) {
    for range in writes.removed() {
        rows.retain(|key, _| !range.contains(key));
    }
    for (key, value) in writes.rows() {
        match value {
            Some(value) => rows.insert(key.to_vec(), value.to_vec()),
            None => rows.remove(key),
        };
    }
}

fn failed() -> StoreError {
    StoreError::Failed("the disk fails, as the test wants it".into())
}

/// Without the rows, which are many.
impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("rows", &self.rows.len())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frozen")
            .field("rows", &self.rows.len())
            .finish_non_exhaustive()
    }
}
