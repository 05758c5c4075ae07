//! Places for strangers that call: so many in all, and so many from one place of the network.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Strangers from one IPv4 address, or one IPv6 /64, which is what one customer has at least: a
/// sixteenth of the places that config.toml gives by default. Overflow rule: the newcomer is
/// refused.
pub(super) const MAX_FROM_ONE_SOURCE: usize = 64;

/// The strangers that are connected.
#[derive(Debug)]
pub(super) struct Strangers {
    /// In all. Overflow rule: the newcomer is refused.
    max: usize,
    by_source: Mutex<HashMap<IpAddr, usize>>,
}

/// A stranger's place; dropping it frees it.
#[derive(Debug)]
pub(crate) struct StrangerPlace {
    strangers: Arc<Strangers>,
    source: IpAddr,
}

impl Strangers {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            by_source: Mutex::default(),
        })
    }

    /// Takes a place for a caller from `address`; `None` when there are too many.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<StrangerPlace> {
        let source = source_of(address);
        let mut by_source = self.lock();
        let all: usize = by_source.values().sum();
        let from_there = by_source.get(&source).copied().unwrap_or(0);
        if all >= self.max || from_there >= MAX_FROM_ONE_SOURCE {
            return None;
        }
        by_source.insert(source, from_there + 1);
        let strangers = Arc::clone(self);
        Some(StrangerPlace { strangers, source })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.by_source
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StrangerPlace {
    fn drop(&mut self) {
        let mut by_source = self.strangers.lock();
        let left = by_source.get(&self.source).map_or(0, |from| from - 1);
        match left {
            0 => by_source.remove(&self.source),
            _ => by_source.insert(self.source, left),
        };
    }
}

/// What one customer of a provider has at least.
pub(crate) fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(strangers: &Arc<Strangers>, address: &str) -> Option<StrangerPlace> {
        strangers.enter(address.parse().unwrap())
    }

    #[test]
    fn one_source_takes_no_more_than_its_part() {
        for (source, same, others) in [
            (
                "192.0.2.1",
                "::ffff:192.0.2.1",
                ["192.0.2.2", "2001:db8::1"],
            ),
            (
                "2001:db8::1",
                "2001:db8::2:0:0:3",
                ["2001:db8:0:1::1", "192.0.2.1"],
            ),
        ] {
            let strangers = Strangers::new(MAX_FROM_ONE_SOURCE + 2);
            let fill = || enter(&strangers, source);
            let mut places: Vec<_> = (0..MAX_FROM_ONE_SOURCE).map(|_| fill().unwrap()).collect();
            assert!(enter(&strangers, same).is_none(), "{same} is {source}");
            let _others = others.map(|other| enter(&strangers, other).expect(other));
            places.pop();
            assert!(enter(&strangers, same).is_some(), "one left");
        }
    }

    #[test]
    fn all_sources_together_have_so_many_places() {
        let strangers = Strangers::new(2);
        let places = ["192.0.2.1", "192.0.2.2"].map(|source| enter(&strangers, source).unwrap());
        assert!(enter(&strangers, "192.0.2.3").is_none());
        drop(places);
        assert!(strangers.lock().is_empty());
        assert!(enter(&strangers, "192.0.2.3").is_some());
    }
}
