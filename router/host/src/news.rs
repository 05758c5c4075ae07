//! What the node's principal of an instance is told of without asking: which peers are connected, and
//! what scripts billed.
//!
//! Both wait here, and not as events: of a peer its last state alone, and of its traffic the sum.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use wormholes_proto::NodeId;

use crate::{
    event::Event,
    rules::{Service, Usage},
};

/// Peers, and peers and services that are billed, of one instance. Overflow: newcomers are left out, and
/// counted as a limit.
const MAX_PEERS: usize = 10_000;
/// What one event tells.
const USAGE_AT_ONCE: usize = 1024;

/// Of one instance.
#[derive(Debug)]
pub(crate) struct News {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    wants_presence: bool,
    wants_usage: bool,
    /// Who is connected, and how far each is trusted.
    online: BTreeMap<NodeId, u8>,
    /// What it was not told of yet: whether a peer is up, and its trust.
    presence: BTreeMap<NodeId, (bool, u8)>,
    usage: BTreeMap<(NodeId, Service), Usage>,
    /// Some of it may be told.
    is_usage_due: bool,
    /// Somebody is on the way to take it.
    is_called: bool,
}

/// What became of news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Whether somebody must be called to take it.
    pub(crate) calls: bool,
    /// Whether all of it found room.
    pub(crate) fits: bool,
}

impl News {
    pub(crate) fn new(wants_presence: bool, wants_usage: bool) -> Self {
        let news = Self {
            inner: Mutex::default(),
        };
        news.want(wants_presence, wants_usage);
        news
    }

    /// Another version of the plugin runs: what it was not told, and does not want, is forgotten.
    pub(crate) fn want(&self, presence: bool, usage: bool) {
        let mut inner = self.inner();
        (inner.wants_presence, inner.wants_usage) = (presence, usage);
        if !presence {
            inner.online.clear();
            inner.presence.clear();
        }
        if !usage {
            inner.usage.clear();
        }
    }

    /// A peer came or went; what is so now says `is_online`, which is asked while nothing else changes
    /// here: of two that tell, the later one is right.
    pub(crate) fn presence(&self, peer: NodeId, trust: u8, is_online: &dyn Fn() -> bool) -> Heard {
        let mut inner = self.inner();
        if !inner.wants_presence {
            return Heard::NOTHING;
        }
        let online = is_online();
        let was = inner.online.get(&peer).copied();
        if online == was.is_some() && (!online || was == Some(trust)) {
            return Heard::NOTHING;
        }
        if online && was.is_none() && inner.online.len() >= MAX_PEERS {
            return Heard {
                calls: false,
                fits: false,
            };
        }
        match online {
            true => inner.online.insert(peer, trust),
            false => inner.online.remove(&peer),
        };
        inner.presence.insert(peer, (online, trust));
        inner.heard(true)
    }

    /// Scripts billed this. Each call lets one event be told: call it at most once a second.
    pub(crate) fn usage(&self, used: &[Usage]) -> Heard {
        let mut inner = self.inner();
        if !inner.wants_usage {
            return Heard::NOTHING;
        }
        let fits = inner.add(used);
        if inner.usage.is_empty() {
            return Heard::NOTHING;
        }
        inner.is_usage_due = true;
        inner.heard(fits)
    }

    /// What was told became undone: it waits again.
    pub(crate) fn untold(&self, used: &[Usage]) {
        // It had room before.
        let _ = self.inner().add(used);
    }

    /// The principal wakes: it knows of nobody. What it is told of first.
    pub(crate) fn wake(&self) -> Vec<Event> {
        let mut inner = self.inner();
        inner.presence.clear();
        let online = inner.online.iter().map(|(peer, trust)| Event::Presence {
            peer: *peer,
            online: true,
            trust: *trust,
        });
        online.collect()
    }

    /// What it is told of now.
    pub(crate) fn take(&self) -> Vec<Event> {
        let mut inner = self.inner();
        inner.is_called = false;
        let presence = mem::take(&mut inner.presence).into_iter();
        let presence = presence.map(|(peer, (online, trust))| Event::Presence {
            peer,
            online,
            trust,
        });
        let mut events: Vec<_> = presence.collect();
        if mem::take(&mut inner.is_usage_due) {
            let mut used = Vec::new();
            while used.len() < USAGE_AT_ONCE
                && let Some((_, usage)) = inner.usage.pop_first()
            {
                used.push(usage);
            }
            if !used.is_empty() {
                events.push(Event::Usage(Arc::from(used)));
            }
        }
        events
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Whether all of it found room.
    fn add(&mut self, used: &[Usage]) -> bool {
        let mut fits = true;
        for usage in used {
            let place = (usage.peer, usage.service);
            let is_full = self.usage.len() >= MAX_PEERS;
            match self.usage.get_mut(&place) {
                Some(sum) => {
                    sum.bytes_in = sum.bytes_in.saturating_add(usage.bytes_in);
                    sum.bytes_out = sum.bytes_out.saturating_add(usage.bytes_out);
                    sum.since_ms = sum.since_ms.min(usage.since_ms);
                    sum.until_ms = sum.until_ms.max(usage.until_ms);
                }
                None if is_full => fits = false,
                None => drop(self.usage.insert(place, *usage)),
            }
        }
        fits
    }

    fn heard(&mut self, fits: bool) -> Heard {
        let calls = !mem::replace(&mut self.is_called, true);
        Heard { calls, fits }
    }
}

impl Heard {
    const NOTHING: Self = Self {
        calls: false,
        fits: true,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u32) -> NodeId {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&number.to_be_bytes());
        NodeId::from_bytes(id)
    }

    fn used(number: u32, bytes_in: u64, since_ms: u64) -> Usage {
        Usage {
            peer: peer(number),
            service: Service::Relay,
            bytes_in,
            bytes_out: 1,
            since_ms,
            until_ms: since_ms + 10,
        }
    }

    fn presences(events: &[Event]) -> Vec<(NodeId, bool)> {
        let mut presences = Vec::new();
        for event in events {
            if let Event::Presence { peer, online, .. } = event {
                presences.push((*peer, *online));
            }
        }
        presences
    }

    fn told(events: &[Event]) -> Vec<Usage> {
        let mut told = Vec::new();
        for event in events {
            if let Event::Usage(used) = event {
                told.extend(used.to_vec());
            }
        }
        told
    }

    #[test]
    fn of_a_peer_only_its_last_state_waits_and_a_wake_tells_all() {
        let news = News::new(true, false);
        let (up, down) = (|| true, || false);
        assert!(news.presence(peer(1), 2, &up).calls);
        assert!(!news.presence(peer(1), 2, &up).calls, "somebody comes");
        news.presence(peer(2), 3, &up);
        news.presence(peer(1), 2, &down);
        assert_eq!(presences(&news.take()), [(peer(1), false), (peer(2), true)]);
        assert!(news.take().is_empty());
        assert!(!news.presence(peer(2), 3, &up).calls, "nothing new");
        assert!(news.presence(peer(2), 1, &up).calls, "another trust");
        assert_eq!(presences(&news.wake()), [(peer(2), true)]);
        assert!(presences(&news.take()).is_empty(), "the wake told it");
    }

    #[test]
    fn what_is_billed_adds_up_until_it_is_told_and_again_if_that_was_undone() {
        let news = News::new(false, true);
        assert_eq!(news.usage(&[]), Heard::NOTHING);
        assert!(news.usage(&[used(1, 5, 100), used(2, 1, 100)]).calls);
        assert!(!news.usage(&[used(1, 6, 50)]).calls);
        let first = told(&news.take());
        assert_eq!(first.len(), 2);
        let sum = Usage {
            bytes_out: 2,
            since_ms: 50,
            until_ms: 110,
            ..used(1, 11, 0)
        };
        assert_eq!(first[0], sum);
        news.untold(&first);
        assert!(told(&news.take()).is_empty(), "not before the next time");
        news.usage(&[]);
        assert_eq!(told(&news.take()), first);
    }

    #[test]
    fn too_many_peers_are_left_out_and_an_event_tells_of_some_at_once() {
        let news = News::new(true, true);
        let many = u32::try_from(MAX_PEERS).unwrap();
        let all: Vec<_> = (0..=many).map(|number| used(number, 1, 1)).collect();
        assert!(!news.usage(&all).fits);
        assert!(news.usage(&all[..2]).fits, "who is there has room");
        let mut times = 0;
        while !told(&news.take()).is_empty() {
            times += 1;
            news.usage(&[]);
        }
        assert_eq!(times, MAX_PEERS.div_ceil(USAGE_AT_ONCE));
        for number in 0..many {
            assert!(news.presence(peer(number), 1, &|| true).fits);
        }
        assert!(!news.presence(peer(many), 1, &|| true).fits);
    }
}
