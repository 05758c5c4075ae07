//! The streams that are open on a link, whoever opened them: a link that nobody uses can be told
//! from one that is only quiet. A stream knows the way to the datagrams beside it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::datagrams::{Lane, Lanes};

/// Counts the streams of one link.
#[derive(Debug)]
pub(super) struct Streams {
    used: Mutex<Use>,
    lanes: Option<Arc<Lanes>>,
}

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
    pub(super) fn new(lanes: Option<Arc<Lanes>>) -> Arc<Self> {
        let used = Mutex::new(Use {
            open: 0,
            ended: Instant::now(),
        });
        Arc::new(Self { used, lanes })
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
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenStream {
    /// Where datagrams may go beside the stream of number `stream`, which this is; `None`: nowhere.
    pub(crate) fn lane(&self, stream: u64) -> Option<Lane> {
        self.0.lanes.as_ref()?.enter(stream)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut used = self.0.lock();
        used.open = used.open.saturating_sub(1);
        used.ended = Instant::now();
    }
}
