//! Datagrams that wait for the one flow they belong to: while its tunnel opens, or while it writes.
//!
//! Overflow: what comes last is dropped and counted, so that what waits stays in order and fresh
//! datagrams, not those already under way, tell the sender to slow down.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::Batch;
use crate::counters::Counters;

/// A second of a video call waits, or 200 ms at 10 Mbit/s.
const MAX_DATAGRAMS: usize = 512;
const MAX_BYTES: usize = 256 << 10;
/// What a datagram takes beside its bytes.
const OVERHEAD_BYTES: usize = 64;

/// Memory that many queues share.
#[derive(Debug)]
pub(crate) struct Room {
    used_bytes: AtomicUsize,
    max_bytes: usize,
}

/// What waits for one flow.
#[derive(Debug)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    /// Something came, or the end did; there is one reader.
    changed: Notify,
    ended: Notify,
    room: Arc<Room>,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Waiting {
    datagrams: VecDeque<Bytes>,
    bytes: usize,
    state: State,
    /// [`Queue::end`] was called, whatever else has become of it.
    has_ended: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// Nothing comes any more; what waits is still taken.
    Ended,
    /// Nobody takes anything any more.
    Closed,
    /// Nobody ever will: there is no flow for it.
    Refused,
}

impl Room {
    /// Room for `max_bytes` in all queues.
    pub(crate) fn new(max_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            used_bytes: AtomicUsize::new(0),
            max_bytes,
        })
    }

    fn take(&self, bytes: usize) -> bool {
        let fits = |used: usize| Some(used + bytes).filter(|used| *used <= self.max_bytes);
        self.used_bytes.fetch_update(Relaxed, Relaxed, fits).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.used_bytes.fetch_sub(bytes, Relaxed);
    }
}

impl Queue {
    /// Nothing waits.
    pub(crate) fn new(room: &Arc<Room>, counters: &Arc<Counters>) -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::default(),
            changed: Notify::new(),
            ended: Notify::new(),
            room: Arc::clone(room),
            counters: Arc::clone(counters),
        })
    }

    /// Puts a datagram behind the others, or drops it.
    pub(crate) fn push(&self, datagram: Bytes) {
        let bytes = datagram.len() + OVERHEAD_BYTES;
        let mut waiting = self.lock();
        if waiting.state != State::Open {
            self.counters.dropped.closed.fetch_add(1, Relaxed);
            return;
        }
        let fits = waiting.datagrams.len() < MAX_DATAGRAMS && waiting.bytes + bytes <= MAX_BYTES;
        if !fits || !self.room.take(bytes) {
            self.counters.dropped.full.fetch_add(1, Relaxed);
            return;
        }
        waiting.bytes += bytes;
        waiting.datagrams.push_back(datagram);
        drop(waiting);
        self.changed.notify_one();
    }

    /// Takes a batch of what waits, or waits for it; nothing after the end.
    /// Cancel-safe.
    pub(crate) async fn take(&self) -> Vec<Bytes> {
        loop {
            if let Some(batch) = self.batch() {
                return batch;
            }
            self.changed.notified().await;
        }
    }

    fn batch(&self) -> Option<Vec<Bytes>> {
        let mut waiting = self.lock();
        if waiting.datagrams.is_empty() {
            return (waiting.state != State::Open).then(Vec::new);
        }
        let mut batch = Batch::default();
        while !batch.is_full()
            && let Some(datagram) = waiting.datagrams.pop_front()
        {
            batch.push(datagram);
        }
        let batch = batch.into_vec();
        let bytes = cost(&batch);
        waiting.bytes -= bytes;
        self.room.give_back(bytes);
        Some(batch)
    }

    /// No more will come; what waits is still taken.
    pub(crate) fn end(&self) {
        let mut waiting = self.lock();
        waiting.has_ended = true;
        if waiting.state == State::Open {
            waiting.state = State::Ended;
        }
        drop(waiting);
        self.changed.notify_one();
        self.ended.notify_one();
    }

    /// Nobody takes any more: what waits, and what still comes, is dropped.
    pub(crate) fn close(&self) {
        self.stop(State::Closed);
    }

    /// As [`Self::close`], since the flow was refused.
    pub(crate) fn refuse(&self) {
        self.stop(State::Refused);
    }

    /// Whether the flow was refused.
    pub(crate) fn is_refused(&self) -> bool {
        self.lock().state == State::Refused
    }

    fn stop(&self, state: State) {
        let mut waiting = self.lock();
        waiting.state = state;
        let left = std::mem::take(&mut waiting.datagrams);
        waiting.bytes = 0;
        drop(waiting);
        self.room.give_back(cost(&left));
        let count = left.len() as u64;
        self.counters.dropped.closed.fetch_add(count, Relaxed);
    }

    /// Waits for [`Self::end`]; one may wait.
    pub(crate) async fn ended(&self) {
        while !self.lock().has_ended {
            self.ended.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.close();
    }
}

fn cost<'a>(datagrams: impl IntoIterator<Item = &'a Bytes>) -> usize {
    let costs = datagrams.into_iter();
    costs.map(|datagram| datagram.len() + OVERHEAD_BYTES).sum()
}

#[cfg(test)]
mod tests {
    use super::{super::BATCH_DATAGRAMS, *};

    fn scene(max_bytes: usize) -> (Arc<Room>, Arc<Counters>) {
        (Room::new(max_bytes), Arc::default())
    }

    fn dropped(counters: &Counters) -> (u64, u64) {
        let dropped = &counters.dropped;
        (dropped.full.load(Relaxed), dropped.closed.load(Relaxed))
    }

    #[tokio::test]
    async fn what_waits_is_bounded_in_count_and_bytes_and_every_loss_is_counted() {
        let (room, counters) = scene(usize::MAX);
        let queue = Queue::new(&room, &counters);
        for number in 0..=MAX_DATAGRAMS {
            queue.push(Bytes::from(number.to_string()));
        }
        assert_eq!(dropped(&counters), (1, 0));
        let first = queue.take().await;
        assert_eq!(first.len(), BATCH_DATAGRAMS);
        assert_eq!(
            first.first().unwrap(),
            "0",
            "the last one goes, not the first"
        );

        let large = Queue::new(&room, &counters);
        for _ in 0..5 {
            large.push(vec![0; 65_507].into());
        }
        assert_eq!(dropped(&counters), (3, 0));
    }

    #[tokio::test]
    async fn queues_that_share_room_give_it_back() {
        let (room, counters) = scene(3 * (1000 + OVERHEAD_BYTES));
        let (one, other) = (Queue::new(&room, &counters), Queue::new(&room, &counters));
        one.push(vec![0; 1000].into());
        one.push(vec![0; 1000].into());
        other.push(vec![0; 1000].into());
        other.push(vec![0; 1000].into());
        assert_eq!(dropped(&counters), (1, 0));
        assert_eq!(one.take().await.len(), 2);
        other.close();
        drop((one, other));
        assert_eq!(room.used_bytes.load(Relaxed), 0);
        assert_eq!(dropped(&counters), (1, 1));
    }

    #[tokio::test]
    async fn the_end_comes_after_what_waits_and_nothing_after_it() {
        let (room, counters) = scene(usize::MAX);
        let queue = Queue::new(&room, &counters);
        queue.push(Bytes::from("last"));
        queue.end();
        queue.push(Bytes::from("late"));
        queue.ended().await;
        assert_eq!(queue.take().await, ["last"]);
        assert!(queue.take().await.is_empty());
        assert_eq!(dropped(&counters), (0, 1));
    }
}
