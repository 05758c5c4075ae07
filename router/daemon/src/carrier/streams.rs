//! The streams that are open on a link, whoever opened them: a link that nobody uses can be told
//! from one that is only quiet.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// Counts the streams of one link.
#[derive(Debug)]
pub(super) struct Streams(Mutex<Use>);

#[derive(Debug)]
struct Use {
    open: usize,
    /// When the last stream ended; at first, when the link was made.
    ended: Instant,
}

/// A stream while it is open; dropping it says that it ended.
#[derive(Debug)]
pub(crate) struct OpenStream(Arc<Streams>);

impl Streams {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Use {
            open: 0,
            ended: Instant::now(),
        })))
    }

    pub(super) fn open(self: &Arc<Self>) -> OpenStream {
        self.lock().open += 1;
        OpenStream(Arc::clone(self))
    }

    /// Since when there is none; `None` while there is one.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let used = self.lock();
        (used.open == 0).then_some(used.ended)
    }

    fn lock(&self) -> MutexGuard<'_, Use> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut used = self.0.lock();
        used.open = used.open.saturating_sub(1);
        used.ended = Instant::now();
    }
}
