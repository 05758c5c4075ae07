//! What happens at this node, told to whoever listens.
//!
//! One bounded ring for all subscribers. Publishing never waits: a subscriber that falls behind by
//! more than the ring loses the oldest events and is told how many.

use std::{
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use tokio::sync::broadcast::{self, error::RecvError};
use wormholes_proto::control::{Event, EventBody, EventKind};

use crate::clock::unix_ms;

/// Events kept for slow subscribers: some seconds of a busy node at a few hundred bytes each.
const RING_EVENTS: usize = 1024;

/// The node's events.
#[derive(Debug)]
pub(crate) struct Events {
    ring: broadcast::Sender<Event>,
    /// Held while sending, so that the ring is in order of numbers.
    next_seq: Mutex<u64>,
}

/// One listener's place in the ring.
#[derive(Debug)]
pub(crate) struct Subscription {
    receiver: broadcast::Receiver<Event>,
    /// Empty: all.
    kinds: Vec<EventKind>,
    next_seq: u64,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self {
            ring: broadcast::Sender::new(RING_EVENTS),
            next_seq: Mutex::new(0),
        }
    }

    /// Tells all subscribers. Never waits.
    pub(crate) fn publish(&self, body: EventBody) {
        self.publish_with(|| body);
    }

    /// The same of what is put into words only where somebody listens: of each flow there are two.
    pub(crate) fn publish_with(&self, body: impl FnOnce() -> EventBody) {
        let mut next_seq = self.lock();
        let seq = *next_seq;
        *next_seq += 1;
        // Who begins to listen waits for the lock, and hears of what comes after.
        if self.ring.receiver_count() == 0 {
            return;
        }
        let event = Event {
            seq,
            at_unix_ms: unix_ms(SystemTime::now()),
            body: body(),
        };
        // Who listened may have gone just now.
        let _ = self.ring.send(event);
    }

    /// Listens from here on; no kinds are all kinds.
    pub(crate) fn subscribe(&self, kinds: Vec<EventKind>) -> Subscription {
        let next_seq = self.lock();
        Subscription {
            receiver: self.ring.subscribe(),
            kinds,
            next_seq: *next_seq,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, u64> {
        self.next_seq.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// The next event that is listened for, or how many of all kinds were missed; none when the
    /// node is gone. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            match self.receiver.recv().await {
                Ok(event) => {
                    self.next_seq = event.seq + 1;
                    if self.wants(&event) {
                        return Some(event);
                    }
                }
                Err(RecvError::Lagged(count)) => {
                    self.next_seq += count;
                    return Some(Event {
                        seq: self.next_seq.saturating_sub(1),
                        at_unix_ms: unix_ms(SystemTime::now()),
                        body: EventBody::Missed { count },
                    });
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn wants(&self, event: &Event) -> bool {
        self.kinds.is_empty()
            || event
                .body
                .kind()
                .is_none_or(|kind| self.kinds.contains(&kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(generation: u64) -> EventBody {
        EventBody::ScriptLoaded {
            generation,
            scripts: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_slow_subscriber_is_told_how_many_it_missed() {
        let events = Events::new();
        events.publish(loaded(0));
        let mut slow = events.subscribe(Vec::new());
        let sent = RING_EVENTS as u64 + 5;
        for generation in 1..=sent {
            events.publish(loaded(generation));
        }
        let missed = slow.next().await.unwrap();
        assert_eq!(missed.body, EventBody::Missed { count: 5 });
        let next = slow.next().await.unwrap();
        assert_eq!((missed.seq, next.seq), (5, 6));
        assert_eq!(next.body, loaded(6));
    }

    #[tokio::test]
    async fn what_nobody_hears_is_numbered_and_not_put_into_words() {
        let events = Events::new();
        events.publish_with(|| unreachable!("nobody listens"));
        let mut listener = events.subscribe(Vec::new());
        events.publish_with(|| loaded(1));
        let heard = listener.next().await.unwrap();
        assert_eq!((heard.seq, heard.body), (1, loaded(1)));
    }

    #[tokio::test]
    async fn other_kinds_are_left_out() {
        let events = Events::new();
        let mut notices = events.subscribe(vec![EventKind::Notify]);
        events.publish(loaded(1));
        let notify = EventBody::Notify {
            level: "warn".to_owned(),
            message: None,
        };
        events.publish(notify.clone());
        assert_eq!(notices.next().await.unwrap().body, notify);
        drop(events);
        assert_eq!(notices.next().await, None);
    }
}
