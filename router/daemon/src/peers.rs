//! The nodes that this one is connected to, and how it gets connected.
//!
//! One node, one seat: whoever needs a connection takes the standing one, or waits for the one
//! that is being made. Nodes that could not be reached are left alone for a while.

mod strangers;
mod world;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::time::Instant;
use wormholes_proto::{NodeId, Reason};

use crate::{
    ban::Ban,
    carrier::{Caller, Carrier, CloseCode, Link, LinkError},
    config::PeerConfig,
    dial::first_to_open,
};

use strangers::Strangers;

pub(crate) use strangers::StrangerPlace;
pub(crate) use world::{WorldCache, relays};

/// Connections to one node at once.
const MAX_LINKS_PER_SEAT: usize = 4;
/// The first pause after a failure; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest: a node that comes back is found again within it.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Peers of config.toml, and seats for all nodes that a connection stands to.
#[derive(Debug)]
pub(crate) struct Peers {
    known: ArcSwap<Known>,
    seats: Mutex<HashMap<NodeId, Arc<Seat>>>,
    /// Seats of peers, and as many of other nodes that were called: whom circuits pass to takes no
    /// peer's seat. Overflow rule: of the others the one without a stream for the longest time
    /// makes room; else the newcomer is refused.
    max_seats: usize,
    strangers: Arc<Strangers>,
}

/// The peers of config.toml.
#[derive(Debug, Default)]
pub(crate) struct Known {
    by_id: HashMap<NodeId, PeerConfig>,
    ids_by_name: HashMap<String, NodeId>,
}

/// One node's place.
#[derive(Debug, Default)]
struct Seat {
    /// The newest last; a second one stands when both ends dialled at once. Overflow rule: the
    /// oldest is closed.
    links: Mutex<Vec<Link>>,
    /// Held by the one that dials.
    dial: tokio::sync::Mutex<BackOff>,
}

#[derive(Debug, Default)]
struct BackOff {
    until: Option<Instant>,
    pause: Duration,
    last: Option<LinkError>,
}

/// A node that this one could not be connected to.
#[derive(Debug, Clone, Error)]
pub enum ConnectError {
    /// No address of it is known.
    #[error("no address of the node is known")]
    NoAddress,
    /// Strangers may not have this node dial any address of it.
    #[error("no address of the node may be dialled for strangers: {0}")]
    Forbidden(String),
    /// It is this node.
    #[error("the node is this one")]
    Myself,
    /// As many connections stand as config.toml allows.
    #[error("too many connections")]
    TooMany,
    /// It failed a moment ago.
    #[error("left alone for a while after: {0}")]
    BackingOff(LinkError),
    /// All its addresses failed; this is how the last one did.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(Arc<crate::carrier::TlsError>),
}

impl ConnectError {
    /// The reason that stands for it over the wire.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoAddress | Self::Myself => Reason::NoNode,
            Self::Forbidden(_) => Reason::ForbiddenAddress,
            Self::TooMany | Self::Tls(_) => Reason::Busy,
            Self::BackingOff(error) | Self::Link(error) => match error {
                LinkError::Closed(reason) => *reason,
                LinkError::NoAnswer { .. } => Reason::TimedOut,
                LinkError::Handshake { .. } => Reason::Handshake,
                LinkError::Address { .. } | LinkError::Lost(_) => Reason::Unreachable,
            },
        }
    }
}

impl From<Ban> for ConnectError {
    fn from(ban: Ban) -> Self {
        Self::Forbidden(match ban.is_private() {
            true => format!("{ban}; `allow_private` in [hop] of config.toml allows it"),
            false => ban.to_string(),
        })
    }
}

impl Known {
    fn new(peers: &[PeerConfig]) -> Self {
        Self {
            by_id: peers.iter().map(|peer| (peer.id, peer.clone())).collect(),
            ids_by_name: peers
                .iter()
                .map(|peer| (peer.name.clone(), peer.id))
                .collect(),
        }
    }

    /// What config.toml says about a node.
    pub(crate) fn get(&self, id: &NodeId) -> Option<&PeerConfig> {
        self.by_id.get(id)
    }

    /// The node that a petname stands for.
    pub(crate) fn id(&self, name: &str) -> Option<NodeId> {
        self.ids_by_name.get(name).copied()
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &PeerConfig> {
        self.by_id.values()
    }
}

impl Peers {
    /// `max` is that of peers, of other nodes that are called, and of strangers that call, each.
    pub(crate) fn new(peers: &[PeerConfig], max: usize) -> Self {
        Self {
            known: ArcSwap::from_pointee(Known::new(peers)),
            seats: Mutex::default(),
            max_seats: max,
            strangers: Strangers::new(max),
        }
    }

    /// The peers of config.toml.
    pub(crate) fn known(&self) -> Arc<Known> {
        self.known.load_full()
    }

    /// Replaces the peers of config.toml; connections to those that are gone are for the caller to
    /// close.
    pub(crate) fn set_known(&self, peers: &[PeerConfig]) {
        self.known.store(Arc::new(Known::new(peers)));
    }

    /// The standing connection to a node.
    pub(crate) fn link(&self, id: &NodeId) -> Option<Link> {
        let seat = self.seats().get(id).cloned();
        seat.and_then(|seat| seat.link())
    }

    /// All standing connections.
    pub(crate) fn links(&self) -> Vec<Link> {
        let seats: Vec<Arc<Seat>> = self.seats().values().cloned().collect();
        seats.iter().filter_map(|seat| seat.link()).collect()
    }

    /// Seats a connection; the newest one of a node is used from then on, an older one lives as
    /// long as its streams.
    ///
    /// # Errors
    /// [`ConnectError::TooMany`].
    pub(crate) fn seat(&self, link: &Link) -> Result<(), ConnectError> {
        let seat = self.seat_of(link.peer())?;
        seat.take(link.clone());
        Ok(())
    }

    /// Takes a closed connection off its seat; whether its node is disconnected now.
    pub(crate) fn unseat(&self, link: &Link) -> bool {
        let mut seats = self.seats();
        let Some(seat) = seats.get(&link.peer()) else {
            return false;
        };
        let mut links = seat.links();
        let before = links.len();
        links.retain(|seated| !seated.is_same(link));
        let gone = links.is_empty() && before > 0;
        drop(links);
        let known = self.known.load().get(&link.peer()).is_some();
        if gone && !known && Arc::strong_count(seat) == 1 {
            seats.remove(&link.peer());
        }
        gone
    }

    /// Takes a place for a stranger that called from `address`; `None` when there are too many.
    pub(crate) fn stranger(&self, address: IpAddr) -> Option<StrangerPlace> {
        self.strangers.enter(address)
    }

    /// The standing connection to `id`, or a new one, at any of `addresses`; the flag says that it
    /// is new. Calls for one node wait for each other. Cancel-safe.
    ///
    /// # Errors
    /// [`ConnectError`] when no address answers.
    pub(crate) async fn connect(
        &self,
        carrier: &Carrier,
        caller: &Caller,
        id: NodeId,
        addresses: &[SocketAddr],
    ) -> Result<(Link, bool), ConnectError> {
        let seat = self.seat_of(id)?;
        if let Some(link) = seat.link() {
            return Ok((link, false));
        }
        let mut back_off = seat.dial.lock().await;
        if let Some(link) = seat.link() {
            return Ok((link, false));
        }
        back_off.check()?;
        let dial = |address| carrier.dial(caller, id, address);
        match first_to_open(addresses, dial).await {
            Some(Ok(link)) => {
                *back_off = BackOff::default();
                seat.take(link.clone());
                Ok((link, true))
            }
            Some(Err(error)) => {
                back_off.failed(error.clone());
                Err(error.into())
            }
            None => Err(ConnectError::NoAddress),
        }
    }

    /// The standing connection to `id`, or a new one, at an address that is only a stranger's word:
    /// nobody else waits for this dial, and its failure says nothing about the node.
    ///
    /// # Errors
    /// [`ConnectError`] when the node does not answer there.
    pub(crate) async fn connect_on_hint(
        &self,
        carrier: &Carrier,
        id: NodeId,
        hint: SocketAddr,
    ) -> Result<(Link, bool), ConnectError> {
        let link = carrier.dial(carrier.myself(), id, hint).await?;
        // Others were faster.
        if let Some(standing) = self.link(&id) {
            link.close(CloseCode::Done);
            return Ok((standing, false));
        }
        self.seat(&link)
            .inspect_err(|_| link.close(CloseCode::Busy))?;
        Ok((link, true))
    }

    fn seat_of(&self, id: NodeId) -> Result<Arc<Seat>, ConnectError> {
        let mut seats = self.seats();
        if let Some(seat) = seats.get(&id) {
            return Ok(Arc::clone(seat));
        }
        let known = self.known();
        let is_peer = |id: &NodeId| known.get(id).is_some();
        let of_its_kind = |other: &NodeId| is_peer(other) == is_peer(&id);
        let is_full = |seats: &HashMap<NodeId, Arc<Seat>>| {
            seats.keys().filter(|other| of_its_kind(other)).count() >= self.max_seats
        };
        if is_full(&seats) {
            seats.retain(|_, seat| Arc::strong_count(seat) > 1 || seat.link().is_some());
        }
        if is_full(&seats) && !is_peer(&id) {
            let others = seats.iter().filter(|(other, _)| of_its_kind(other));
            let idle = others.filter_map(|(other, seat)| Some((seat.idle_since()?, *other)));
            if let Some(seat) = idle.min().and_then(|(_, other)| seats.remove(&other)) {
                seat.close();
            }
        }
        if is_full(&seats) {
            return Err(ConnectError::TooMany);
        }
        let seat = Arc::new(Seat::default());
        seats.insert(id, Arc::clone(&seat));
        Ok(seat)
    }

    fn seats(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<Seat>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    fn links(&self) -> MutexGuard<'_, Vec<Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, link: Link) {
        let mut links = self.links();
        if links.len() >= MAX_LINKS_PER_SEAT {
            links.remove(0).close(CloseCode::Done);
        }
        links.push(link);
    }

    /// Since when none of its connections has a stream.
    fn idle_since(&self) -> Option<Instant> {
        let links = self.links();
        let since: Option<Vec<Instant>> = links.iter().map(Link::idle_since).collect();
        since?.into_iter().max()
    }

    fn close(&self) {
        for link in self.links().iter() {
            link.close(CloseCode::Done);
        }
    }

    /// The newest connection that stands.
    fn link(&self) -> Option<Link> {
        let links = self.links();
        links.iter().rev().find(|link| !link.is_closed()).cloned()
    }
}

impl BackOff {
    fn check(&self) -> Result<(), ConnectError> {
        match (&self.last, self.until) {
            (Some(last), Some(until)) if Instant::now() < until => {
                Err(ConnectError::BackingOff(last.clone()))
            }
            _ => Ok(()),
        }
    }

    fn failed(&mut self, error: LinkError) {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.until = Instant::now().checked_add(self.pause);
        self.last = Some(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_circuits_pass_to_takes_no_peers_seat() {
        let id = |byte| NodeId::from_bytes([byte; 32]);
        let peer = |byte| PeerConfig {
            name: format!("peer{byte}"),
            id: id(byte),
            addresses: Vec::new(),
            trust: 2,
            via: Vec::new(),
            register: false,
        };
        let peers = Peers::new(&[peer(1), peer(2), peer(3)], 2);
        // Seats that somebody is dialling for.
        let mut held = Vec::new();
        for other in [11, 12] {
            held.push(peers.seat_of(id(other)).unwrap());
        }
        let full = peers.seat_of(id(13));
        assert!(matches!(full, Err(ConnectError::TooMany)));
        for peer in [1, 2] {
            held.push(peers.seat_of(id(peer)).unwrap());
        }
        let full = peers.seat_of(id(3));
        assert!(matches!(full, Err(ConnectError::TooMany)));
        drop(held);
        assert!(peers.seat_of(id(3)).is_ok() && peers.seat_of(id(13)).is_ok());
    }
}
