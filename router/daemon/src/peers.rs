//! The nodes that this one is connected to, and how it gets connected.
//!
//! One node, one seat: whoever needs a connection takes the standing one, or waits for the one
//! that is being made. A connection whose other end has fallen silent stands no more, though its
//! streams live on.

mod dials;
mod seat;
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
use wormholes_proto::CarrierKind;
use wormholes_proto::{NodeId, Reason};

use crate::{
    ban::Ban,
    carrier::{Caller, Carrier, CloseCode, Link, LinkError},
    config::PeerConfig,
    dial::first_to_open,
    sources::{SourcePlace, Sources},
};

use dials::Turn;
use seat::{Seat, stands};

pub(crate) use dials::{Dial, Dials, Wish, ways};
pub(crate) use world::{WorldCache, relays};

/// Strangers from one source: a sixteenth of the places that config.toml gives by default.
const MAX_STRANGERS_OF_ONE: usize = 64;

/// Peers of config.toml, and seats for all nodes that a connection stands to.
#[derive(Debug)]
pub(crate) struct Peers {
    known: ArcSwap<Known>,
    seats: Mutex<HashMap<NodeId, Arc<Seat>>>,
    /// Seats of peers, and as many of other nodes that were called: whom circuits pass to takes no
    /// peer's seat. Overflow rule: of the others the one without a stream for the longest time
    /// makes room; else the newcomer is refused.
    max_seats: usize,
    strangers: Arc<Sources>,
}

/// The peers of config.toml.
#[derive(Debug, Default)]
pub(crate) struct Known {
    by_id: HashMap<NodeId, PeerConfig>,
    ids_by_name: HashMap<String, NodeId>,
}

/// What there is for whoever needs a connection.
#[derive(Debug)]
pub(crate) enum Sought {
    /// It stands.
    Standing(Link),
    /// It is being made.
    Dialled(Dial),
    /// It is for the asker to make.
    ToDial(Dial, Dialling),
}

/// A dial that is to be done.
#[derive(Debug)]
pub(crate) struct Dialling {
    id: NodeId,
    seat: Arc<Seat>,
    turn: Turn,
    wish: Wish,
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
    /// This node does not speak it.
    #[error("this node speaks no {0}; `carriers` in [node] of config.toml adds it")]
    NoCarrier(CarrierKind),
    /// As many connections stand as config.toml allows.
    #[error("too many connections")]
    TooMany,
    /// The dial takes long, and the plan knows another way.
    #[error("no answer so far")]
    Slow,
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
            Self::NoCarrier(_) => Reason::Unsupported,
            Self::Forbidden(_) => Reason::ForbiddenAddress,
            Self::TooMany | Self::Tls(_) => Reason::Busy,
            Self::Slow => Reason::TimedOut,
            Self::BackingOff(error) | Self::Link(error) => match error {
                LinkError::Closed(reason) => *reason,
                LinkError::NoAnswer { .. } | LinkError::Silent => Reason::TimedOut,
                LinkError::Handshake { .. } => Reason::Handshake,
                LinkError::Address { .. } | LinkError::Tor(_) | LinkError::Lost(_) => {
                    Reason::Unreachable
                }
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
            strangers: Sources::new(max, MAX_STRANGERS_OF_ONE),
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

    /// The standing connection to a node; over QUIC, if there is one.
    pub(crate) fn link(&self, id: &NodeId) -> Option<Link> {
        let seat = self.seats().get(id).cloned();
        seat.and_then(|seat| seat.link())
    }

    /// All connections to a node that stand.
    pub(crate) fn links_to(&self, id: &NodeId) -> Vec<Link> {
        let seat = self.seats().get(id).cloned();
        let mut links = seat.map_or_else(Vec::new, |seat| seat.links().clone());
        links.retain(stands);
        links
    }

    /// The standing connection to each node.
    pub(crate) fn links(&self) -> Vec<Link> {
        let seats: Vec<Arc<Seat>> = self.seats().values().cloned().collect();
        seats.iter().filter_map(|seat| seat.link()).collect()
    }

    /// All connections that are not closed, those that have fallen silent included.
    pub(crate) fn all_links(&self) -> Vec<Link> {
        let seats: Vec<Arc<Seat>> = self.seats().values().cloned().collect();
        let links = seats.iter().flat_map(|seat| seat.links().clone());
        links.filter(|link| !link.is_closed()).collect()
    }

    /// Whether a node is being dialled for this one, over any carrier.
    pub(crate) fn is_dialled(&self, id: &NodeId) -> bool {
        let seat = self.seats().get(id).cloned();
        seat.is_some_and(|seat| seat.dials.are_running())
    }

    /// Lets every node be dialled at once, whatever failed before or is being tried.
    pub(crate) fn start_afresh(&self) {
        for seat in self.seats().values() {
            seat.dials.start_afresh();
        }
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

    /// Whether a newer connection over the same carrier has stood for so `long` that this one is
    /// needed no more. Of two nodes only one ever says so, that with the smaller id: else each
    /// could part with the one that the other keeps.
    pub(crate) fn is_superseded(&self, own: NodeId, link: &Link, long: Duration) -> bool {
        let seat = self.seats().get(&link.peer()).cloned();
        own < link.peer() && seat.is_some_and(|seat| seat.has_newer(link, long))
    }

    /// Takes a place for a stranger that called from `address`; `None` when there are too many.
    pub(crate) fn stranger(&self, address: IpAddr) -> Option<SourcePlace> {
        self.strangers.enter(address)
    }

    /// The standing connection to `id` that is wished for, if it is new enough, or the dial that
    /// makes one.
    ///
    /// # Errors
    /// [`ConnectError`] when there is no seat, or dials failed a moment ago.
    pub(crate) fn seek(
        &self,
        id: NodeId,
        wish: Wish,
        made_after: Option<Instant>,
    ) -> Result<Sought, ConnectError> {
        let seat = self.seat_of(id)?;
        let standing = || seat.link_over(wish.carrier(), made_after);
        if let Some(link) = standing() {
            return Ok(Sought::Standing(link));
        }
        let (dial, turn) = seat.dials.enter(wish)?;
        let Some(turn) = turn else {
            return Ok(Sought::Dialled(dial));
        };
        // The dial before it may have ended just now.
        if let Some(link) = standing() {
            turn.end(Ok(link.clone()));
            return Ok(Sought::Standing(link));
        }
        let dialling = Dialling {
            id,
            seat,
            turn,
            wish,
        };
        Ok(Sought::ToDial(dial, dialling))
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
        let dial = |way| carrier.dial(carrier.myself(), id, way);
        let ways = ways(carrier.kinds(), None, None, &[hint]);
        let dialled = first_to_open(&ways, dial).await;
        let link = dialled.ok_or(ConnectError::NoAddress)??;
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
            // One whose connections are only silent may come back.
            let stands = |seat: &Seat| seat.links().iter().any(|link| !link.is_closed());
            seats.retain(|_, seat| Arc::strong_count(seat) > 1 || stands(seat));
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

impl Dialling {
    /// Dials all `addresses`, tells whoever waits, and returns the connection that was made.
    pub(crate) async fn run(
        self,
        carrier: &Carrier,
        caller: &Caller,
        addresses: &[SocketAddr],
    ) -> Option<Link> {
        let Self {
            id,
            seat,
            turn,
            wish,
        } = self;
        let dial = async |way| Ok((carrier.dial(caller, id, way).await?, way));
        let ways = ways(carrier.kinds(), seat.worked(), wish.carrier(), addresses);
        match turn.dial(first_to_open(&ways, dial)).await? {
            Some(Ok((link, way))) => {
                if wish == Wish::Own(None) {
                    seat.works(way);
                }
                seat.take(link.clone());
                turn.end(Ok(link.clone()));
                return Some(link);
            }
            Some(Err(error)) => {
                tracing::debug!(node = %id, %error, "node not reached");
                turn.end(Err(LinkError::into(error)));
            }
            None => turn.end(Err(ConnectError::NoAddress)),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    #[test]
    fn whom_circuits_pass_to_takes_no_peers_seat() {
        let id = |byte| NodeId::from_bytes([byte; 32]);
        let peer = |byte| PeerConfig {
            name: format!("peer{byte}"),
            id: id(byte),
            addresses: Vec::new(),
            onions: Vec::new(),
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

    /// Somebody with a carrier who listens.
    pub(super) fn somebody() -> (NodeId, Carrier) {
        let identity = Identity::throw_away().unwrap();
        let listen = [([127, 0, 0, 1], 0).into()];
        let carrier = Carrier::bind(&listen, &CarrierKind::ALL, &identity, Arc::default());
        (identity.id(), carrier.unwrap())
    }

    /// Answers all calls.
    pub(super) async fn answer(called: Carrier) {
        let mut taken = Vec::new();
        while let Some(incoming) = called.accept().await {
            taken.push(called.handshake(incoming, |_| true).await);
        }
    }

    #[tokio::test]
    async fn of_the_dials_before_and_after_a_move_the_first_that_ends_well_serves_all() {
        let ((id, called), (_, caller)) = (somebody(), somebody());
        let addresses = called.listen_addresses();
        let answers = tokio::spawn(answer(called));
        let peers = Peers::new(&[], 1);
        let begin = || {
            let sought = peers.seek(id, Wish::Own(None), None);
            let Ok(Sought::ToDial(dial, dialling)) = sought else {
                panic!("{sought:?}");
            };
            (dial, dialling)
        };
        let run =
            async |dialling: Dialling| dialling.run(&caller, caller.myself(), &addresses).await;
        let [(given_up, oldest), (first, middle), (last, newest)] = [(); 3].map(|()| {
            peers.start_afresh();
            begin()
        });
        assert!(run(oldest).await.is_none(), "two go on");
        let soon = Some(Duration::from_secs(20));
        assert!(given_up.ended(soon).await.is_err());
        let link = run(middle).await.expect("late is better than never");
        for dial in [last, first] {
            let ended = dial.ended(soon).await.unwrap();
            assert!(ended.is_same(&link), "nobody waits for the other");
        }
        let other = run(newest)
            .await
            .expect("it may lead where the first does not");
        assert!(peers.link(&id).unwrap().is_same(&other));
        assert_eq!(peers.all_links().len(), 2);
        answers.abort();
    }

    #[tokio::test]
    async fn who_wants_a_new_connection_is_given_none_that_is_old_over_a_better_carrier() {
        let ((id, called), (_, caller)) = (somebody(), somebody());
        let address = called.listen_addresses()[0];
        let answers = tokio::spawn(answer(called));
        let peers = Peers::new(&[], 1);
        let dial = async |kind| {
            let dialled = caller.dial(caller.myself(), id, (kind, address));
            let link = dialled.await.unwrap();
            peers.seat(&link).unwrap();
            link
        };
        let old = dial(CarrierKind::Quic).await;
        let new = dial(CarrierKind::Tcp).await;
        let sought = peers.seek(id, Wish::Own(None), Some(old.made()));
        assert!(matches!(sought, Ok(Sought::Standing(link)) if link.is_same(&new)));
        let sought = peers.seek(id, Wish::Own(None), None);
        assert!(matches!(sought, Ok(Sought::Standing(link)) if link.is_same(&old)));
        answers.abort();
    }
}
