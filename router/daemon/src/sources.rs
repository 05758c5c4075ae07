//! Places for those that call: so many in all, and so many from one place of the network.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How many have a place, by source.
#[derive(Debug)]
pub(crate) struct Sources {
    /// In all. Overflow rule: the newcomer is refused.
    max: usize,
    /// From one IPv4 address, or one IPv6 /64, which is what one customer has at least. Overflow
    /// rule: the newcomer is refused.
    max_of_one: usize,
    by_source: Mutex<HashMap<IpAddr, usize>>,
}

/// A place; dropping it frees it.
#[derive(Debug)]
pub(crate) struct SourcePlace {
    sources: Arc<Sources>,
    source: IpAddr,
}

impl Sources {
    pub(crate) fn new(max: usize, max_of_one: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            max_of_one,
            by_source: Mutex::default(),
        })
    }

    /// Takes a place for a caller from `address`; `None` when there are too many.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<SourcePlace> {
        let source = source_of(address);
        let mut by_source = self.lock();
        let all: usize = by_source.values().sum();
        let from_there = by_source.get(&source).copied().unwrap_or(0);
        if all >= self.max || from_there >= self.max_of_one {
            return None;
        }
        by_source.insert(source, from_there + 1);
        let sources = Arc::clone(self);
        Some(SourcePlace { sources, source })
    }

    /// How many have one.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> usize {
        self.lock().values().sum()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.by_source
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SourcePlace {
    fn drop(&mut self) {
        let mut by_source = self.sources.lock();
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

    fn enter(sources: &Arc<Sources>, address: &str) -> Option<SourcePlace> {
        sources.enter(address.parse().unwrap())
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
            let sources = Sources::new(6, 4);
            let fill = || enter(&sources, source);
            let mut places: Vec<_> = (0..4).map(|_| fill().unwrap()).collect();
            assert!(enter(&sources, same).is_none(), "{same} is {source}");
            let _others = others.map(|other| enter(&sources, other).expect(other));
            places.pop();
            assert!(enter(&sources, same).is_some(), "one left");
        }
    }

    #[test]
    fn all_sources_together_have_so_many_places() {
        let sources = Sources::new(2, 2);
        let places = ["192.0.2.1", "192.0.2.2"].map(|source| enter(&sources, source).unwrap());
        assert!(enter(&sources, "192.0.2.3").is_none());
        drop(places);
        assert!(sources.lock().is_empty(), "nothing is kept of who left");
        assert!(enter(&sources, "192.0.2.3").is_some());
    }
}
