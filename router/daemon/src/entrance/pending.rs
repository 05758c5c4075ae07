//! Connections that have not yet said where they go. They are bounded; when all places are taken,
//! the one that has said nothing for longest goes, so that silent connections, however many, never
//! keep out one that speaks.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// The places of a node's entrances, all together.
#[derive(Debug)]
pub(crate) struct Pending {
    /// By order of arrival, at most `max`.
    waiting: Mutex<Waiting>,
    max: usize,
    gauge: prometheus::IntGauge,
}

#[derive(Debug, Default)]
struct Waiting {
    places: BTreeMap<u64, CancellationToken>,
    next: u64,
}

/// One place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    pending: Arc<Pending>,
    number: u64,
    evicted: CancellationToken,
}

impl Pending {
    /// No connection waits; `gauge` shows how many do.
    pub(crate) fn new(max: usize, gauge: prometheus::IntGauge) -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::default(),
            max,
            gauge,
        })
    }

    /// Takes a place, the oldest one when none is free.
    pub(super) fn enter(self: &Arc<Self>) -> Place {
        let evicted = CancellationToken::new();
        let mut waiting = self.lock();
        if waiting.places.len() >= self.max
            && let Some((_, oldest)) = waiting.places.pop_first()
        {
            oldest.cancel();
        }
        let number = waiting.next;
        waiting.next += 1;
        waiting.places.insert(number, evicted.clone());
        self.show(&waiting);
        Place {
            pending: Arc::clone(self),
            number,
            evicted,
        }
    }

    fn show(&self, waiting: &Waiting) {
        let count = waiting.places.len();
        self.gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Cancelled when the place was given to somebody else; never after it was given back.
    pub(super) fn evicted(&self) -> CancellationToken {
        self.evicted.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.pending.lock();
        waiting.places.remove(&self.number);
        self.pending.show(&waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_silent_connection_goes_first() {
        let gauge = prometheus::IntGauge::new("pending", "x").unwrap();
        let pending = Pending::new(2, gauge.clone());
        let (first, second) = (pending.enter(), pending.enter());
        drop(first);
        let third = pending.enter();
        assert!(!second.evicted().is_cancelled());
        let _fourth = pending.enter();
        assert!(second.evicted().is_cancelled());
        assert!(!third.evicted().is_cancelled());
        drop(second);
        assert_eq!(gauge.get(), 2);
    }
}
