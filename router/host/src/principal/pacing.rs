//! A principal waits where its plugin wrote more beside others than its pace allows, or sent or logged more
//! than its rates do: before an event, with nothing in hand, so that orders are obeyed and nothing is lost.

use std::time::{Duration, Instant};

use super::{Actor, Next, Order, Task};
use crate::{clock::now_ms, pace::Waits, store::Writes, transaction::Limit};

/// It looks again after this: others may have become still, and requests have deadlines.
const LOOK: Duration = Duration::from_millis(500);

impl Actor {
    /// How long no event begins, for what others of this plugin and itself did, and what they did most.
    pub(super) fn held_back(&self) -> Option<(Limit, Duration)> {
        let limits = &self.edition.manifest.limits;
        let Waits { writes, messages } = self.loaded.pace.waits(Instant::now(), limits);
        let writes = writes.filter(|_| self.store.is_shared(self.home.writer()));
        let waits = [
            (Limit::Pace, writes),
            (Limit::MessageRate, messages),
            (Limit::LogRate, self.edition.plugin().lines.wait(limits)),
        ];
        let waits = waits.into_iter();
        let waits = waits.filter_map(|(limit, wait)| Some((limit, wait?)));
        waits.max_by_key(|(_, wait)| *wait)
    }

    /// What comes waits where it is. An event that is held back counts once.
    pub(super) async fn next_while_held_back(&mut self, held: (Limit, Duration)) -> Next {
        let (limit, wait) = held;
        let now_ms = now_ms();
        self.expire(now_ms);
        let has_work = !self.first.is_empty()
            || self.inbox.has_tasks()
            || self.memory.next_timer().is_some_and(|due| due <= now_ms);
        if has_work && !self.is_held_back {
            self.is_held_back = true;
            self.loaded.figures.hits(&[limit]);
        }
        tokio::select! {
            order = self.inbox.orders.recv() => order.map_or(Next::End, Next::obey),
            () = self.health.closes() => Next::Again,
            () = tokio::time::sleep(wait.min(LOOK)) => Next::Again,
        }
    }

    /// An event wrote this.
    pub(super) fn keep_pace(&self, writes: &Writes) {
        let limits = &self.edition.manifest.limits;
        let is_shared = self.store.is_shared(self.home.writer());
        let pace = &self.loaded.pace;
        pace.wrote(Instant::now(), writes.bytes(), limits, is_shared);
    }

    /// An event has messages leave that carry so much.
    pub(super) fn keep_rates(&self, sizes: impl Iterator<Item = usize>) {
        let sum = |(count, bytes): (u64, u64), size: usize| (count + 1, bytes + size as u64);
        let sent = sizes.fold((0, 0), sum);
        if sent.0 > 0 {
            let limits = &self.edition.manifest.limits;
            self.loaded.pace.sent(Instant::now(), sent, limits);
        }
    }
}

impl Next {
    fn obey(order: Order) -> Self {
        Self::Take(Task::Order(order))
    }
}
