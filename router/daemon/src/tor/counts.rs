//! What is counted of streams through Tor.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

/// Streams of this node, and of others to its onion services.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// That are open.
    open: AtomicUsize,
    /// That this node opened.
    out: AtomicU64,
    /// That others opened to onion services here.
    into: AtomicU64,
}

/// A stream that is counted as long as this lives.
#[derive(Debug)]
pub(crate) struct Counted(Arc<Counts>);

impl Counts {
    /// Streams that are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Streams since the start, by the word for where they went.
    pub(crate) fn by_direction(&self) -> [(&'static str, u64); 2] {
        [("out", &self.out), ("in", &self.into)].map(|(word, count)| (word, count.load(Relaxed)))
    }
}

impl Counted {
    /// One that this node opened.
    pub(super) fn outgoing(counts: &Arc<Counts>) -> Self {
        counts.out.fetch_add(1, Relaxed);
        Self::new(counts)
    }

    /// One that somebody opened to an onion service here.
    pub(super) fn incoming(counts: &Arc<Counts>) -> Self {
        counts.into.fetch_add(1, Relaxed);
        Self::new(counts)
    }

    fn new(counts: &Arc<Counts>) -> Self {
        counts.open.fetch_add(1, Relaxed);
        Self(Arc::clone(counts))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_counted_while_they_live_and_for_ever() {
        let counts = Arc::default();
        let (one, other) = (Counted::outgoing(&counts), Counted::incoming(&counts));
        assert_eq!(
            (counts.open(), counts.by_direction()),
            (2, [("out", 1), ("in", 1)])
        );
        drop((one, other));
        assert_eq!(
            (counts.open(), counts.by_direction()),
            (0, [("out", 1), ("in", 1)])
        );
    }
}
