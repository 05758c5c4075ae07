//! What scripts billed: bytes of relay and exit, by whom the script said, until plugins are told.
//!
//! A flow is not touched for it: what it moved is counted anyway, and read here once a second.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::SystemTime,
};

use wormholes_host::{Service, Usage};
use wormholes_proto::NodeId;
use wormholes_rules::Allowance;

use crate::{clock::unix_ms, pipe::FlowBytes};

/// Sums that wait to be taken: whom scripts can name, twice over. Overflow: newcomers are not billed.
const MAX_SUMS: usize = 10_000;

/// Who had what since it was last taken.
#[derive(Debug, Default)]
pub(crate) struct UsageBook {
    /// Some plugin is told.
    is_heard: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    last_number: u64,
    /// Of flows that live: as many as the roles have places.
    tabs: HashMap<u64, Tab>,
    sums: BTreeMap<(NodeId, Service), (u64, u64)>,
    since_ms: u64,
    lost_bytes: u64,
}

/// One flow that is billed.
#[derive(Debug)]
struct Tab {
    whom: (NodeId, Service),
    bytes: Arc<FlowBytes>,
    /// Of them are summed up.
    summed: (u64, u64),
}

/// While it lives, a flow is billed; what it moved until then counts.
#[derive(Debug)]
pub(crate) struct Bill<'a> {
    book: &'a UsageBook,
    number: u64,
}

impl UsageBook {
    /// From now on somebody takes what is billed.
    pub(crate) fn hear(&self) {
        if !self.is_heard.swap(true, Relaxed) {
            self.inner().since_ms = unix_ms(SystemTime::now());
        }
    }

    /// Bills a flow, if its allowance says so and somebody hears of it.
    pub(crate) fn bill(
        &self,
        allowance: &Allowance,
        service: Service,
        bytes: &Arc<FlowBytes>,
    ) -> Option<Bill<'_>> {
        let peer = allowance.bill.filter(|_| self.is_heard.load(Relaxed))?;
        let mut inner = self.inner();
        inner.last_number += 1;
        let number = inner.last_number;
        let tab = Tab {
            whom: (peer, service),
            bytes: Arc::clone(bytes),
            summed: (0, 0),
        };
        inner.tabs.insert(number, tab);
        Some(Bill { book: self, number })
    }

    /// Takes what was billed since the last time.
    pub(crate) fn take(&self) -> Vec<Usage> {
        let now_ms = unix_ms(SystemTime::now());
        let mut inner = self.inner();
        let Inner {
            tabs,
            sums,
            since_ms,
            lost_bytes,
            ..
        } = &mut *inner;
        for tab in tabs.values_mut() {
            *lost_bytes += tab.sum_up(sums);
        }
        let since_ms = std::mem::replace(since_ms, now_ms);
        let taken = std::mem::take(sums).into_iter();
        let lost_bytes = std::mem::take(lost_bytes);
        drop(inner);
        if lost_bytes > 0 {
            tracing::warn!(lost_bytes, "too many nodes were billed at once");
        }
        let usage = taken.map(|((peer, service), (bytes_in, bytes_out))| Usage {
            peer,
            service,
            bytes_in,
            bytes_out,
            since_ms,
            until_ms: now_ms,
        });
        usage.collect()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tab {
    /// Adds what has moved since the last time; how much found no room.
    fn sum_up(&mut self, sums: &mut BTreeMap<(NodeId, Service), (u64, u64)>) -> u64 {
        let moved = (self.bytes.up.load(Relaxed), self.bytes.down.load(Relaxed));
        let up = moved.0.saturating_sub(self.summed.0);
        let down = moved.1.saturating_sub(self.summed.1);
        self.summed = moved;
        if up == 0 && down == 0 {
            return 0;
        }
        if sums.len() >= MAX_SUMS && !sums.contains_key(&self.whom) {
            return up.saturating_add(down);
        }
        let sum = sums.entry(self.whom).or_default();
        sum.0 = sum.0.saturating_add(up);
        sum.1 = sum.1.saturating_add(down);
        0
    }
}

impl Drop for Bill<'_> {
    fn drop(&mut self) {
        let mut inner = self.book.inner();
        let Inner {
            tabs,
            sums,
            lost_bytes,
            ..
        } = &mut *inner;
        if let Some(mut tab) = tabs.remove(&self.number) {
            *lost_bytes += tab.sum_up(sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowance(peer: u8) -> Allowance {
        Allowance {
            bill: Some(NodeId::from_bytes([peer; 32])),
            ..Allowance::default()
        }
    }

    fn taken(book: &UsageBook) -> Vec<(u8, Service, u64, u64)> {
        let usage = book.take().into_iter();
        let parts = usage.map(|used| {
            assert!(used.since_ms <= used.until_ms);
            let peer = used.peer.as_bytes()[0];
            (peer, used.service, used.bytes_in, used.bytes_out)
        });
        parts.collect()
    }

    #[test]
    fn each_byte_is_billed_once_while_its_flow_lives_and_when_it_ends() {
        let book = UsageBook::default();
        let bytes = Arc::new(FlowBytes::default());
        assert!(book.bill(&allowance(1), Service::Relay, &bytes).is_none());
        book.hear();
        let free = Allowance::default();
        assert!(book.bill(&free, Service::Relay, &bytes).is_none());
        bytes.moved_up(3);
        let bill = book.bill(&allowance(1), Service::Relay, &bytes);
        let other = Arc::new(FlowBytes::default());
        let second = book.bill(&allowance(1), Service::Relay, &other);
        let exit = book.bill(&allowance(1), Service::Exit, &other);
        assert_eq!(taken(&book), [(1, Service::Relay, 3, 0)]);
        assert!(taken(&book).is_empty());
        bytes.moved_down(5);
        other.moved_up(10);
        assert_eq!(
            taken(&book),
            [(1, Service::Relay, 10, 5), (1, Service::Exit, 10, 0)]
        );
        bytes.moved_up(1);
        drop((bill, second, exit));
        bytes.moved_up(100);
        assert_eq!(taken(&book), [(1, Service::Relay, 1, 0)]);
        assert!(book.inner().tabs.is_empty());
    }
}
