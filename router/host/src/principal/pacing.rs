//! A principal waits where its plugin wrote more beside others than its pace allows: before an event,
//! with nothing in hand, so that orders are obeyed and nothing is lost.

use std::time::{Duration, Instant};

use super::{Actor, Next, Order, Task};
use crate::{clock::now_ms, store::Writes, transaction::Limit};

/// It looks again after this: others may have become still, and requests have deadlines.
const LOOK: Duration = Duration::from_millis(500);

impl Actor {
    /// How long no event begins, for what others of this plugin and itself wrote.
    pub(super) fn held_back(&self) -> Option<Duration> {
        let bytes_per_s = self.edition.manifest.limits.pace_bytes_per_s();
        let wait = self.loaded.pace.wait(Instant::now(), bytes_per_s)?;
        self.store.is_shared(self.home.writer()).then_some(wait)
    }

    /// What comes waits where it is. An event that is held back counts once.
    pub(super) async fn next_while_held_back(&mut self, wait: Duration) -> Next {
        let now_ms = now_ms();
        self.expire(now_ms);
        let has_work = !self.first.is_empty()
            || self.inbox.has_tasks()
            || self.memory.next_timer().is_some_and(|due| due <= now_ms);
        if has_work && !self.is_held_back {
            self.is_held_back = true;
            self.loaded.figures.hits(&[Limit::Pace]);
        }
        tokio::select! {
            order = self.inbox.orders.recv() => order.map_or(Next::End, Next::obey),
            () = self.health.closes() => Next::Again,
            () = tokio::time::sleep(wait.min(LOOK)) => Next::Again,
        }
    }

    /// An event wrote this.
    pub(super) fn keep_pace(&self, writes: &Writes) {
        let bytes_per_s = self.edition.manifest.limits.pace_bytes_per_s();
        let is_shared = self.store.is_shared(self.home.writer());
        let pace = &self.loaded.pace;
        pace.wrote(Instant::now(), writes.bytes(), bytes_per_s, is_shared);
    }
}

impl Next {
    fn obey(order: Order) -> Self {
        Self::Take(Task::Order(order))
    }
}
