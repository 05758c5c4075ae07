//! Hole punching: a direct path between two nodes behind NATs.
//!
//! ```text
//! asker                        relay                        asked
//!   mirror -> seen at A1          |                           |
//!   OPEN punch(A1, A2 …) =========|=== sealed ==============> | mirror -> seen at B1
//!   <=============================|=== ACCEPTED(B1, B2 …) === |
//!   QUIC, all at once, from the sockets that call relays:  A -> B1, B2 …   B -> A1, A2 …
//! ```
//! What each end sends has its own NAT let in what the other one sends. The first call that is taken
//! is a link as any: its ends prove their ids, and the rules are asked. A flow never waits for this.
//!
//! Each end learns addresses of the other: only plans that say so ask, and only peers are asked or
//! answered, by config.toml or the command line, whose trust is that of `punch_trust`; nobody who is
//! reached through Tor. Who is answered was let in by `accept` too, which is not asked whom this node asks.

mod book;
mod candidates;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, interval, timeout};
use wormholes_proto::{Answer, CarrierKind, NodeId, Open, Reason, decode_candidates};

use super::{Network, Wanted};
use crate::{
    ban::{self, Ban},
    carrier::{CloseCode, Link},
    pipe::PipeError,
    tunnel,
};

pub use book::PunchFailure;
pub(crate) use book::{Failed, Punches, Run};
pub(crate) use candidates::Candidates;

/// How long both ends call each other. Longer opens no NAT: by then each end has said five times what
/// it has to say. With that, a candidate costs some twelve packets, and a punch a hundred at most.
const CALL_TIME: Duration = Duration::from_secs(5);
/// The peer is reached through the relay, and answers, within this.
const ASK_TIME: Duration = Duration::from_secs(10);
/// Between two looks whether a call of the peer's was taken.
const LOOK: Duration = Duration::from_millis(50);
/// The trust of this node's owner's other devices.
const OWN_DEVICE: u8 = 3;

/// What a peer asked for and this node does.
#[derive(Debug)]
pub(crate) struct Granted {
    run: Run,
    began: Instant,
    own: Candidates,
    theirs: Vec<SocketAddr>,
}

impl Granted {
    /// What the peer is told.
    pub(crate) fn own(&self) -> &[SocketAddr] {
        &self.own.addresses
    }
}

impl Network {
    /// Has a direct path to the peer `to` made, beside a flow that goes through `relay`; unless one is
    /// being made, the last try failed a moment ago, or the config is against it.
    pub(crate) fn punch(self: &Arc<Self>, to: NodeId, relay: NodeId) {
        if !self.may_punch(&to) {
            return;
        }
        let began = Instant::now();
        let Some(run) = self.punches.begin(began, to) else {
            return;
        };
        let network = Arc::clone(self);
        self.spawn(async move {
            let ended = network.ask_and_meet(to, relay).await;
            network.end_punch(run, began, ended);
        });
    }

    /// Whether addresses may be exchanged with this node at all.
    fn may_punch(&self, id: &NodeId) -> bool {
        let config = &self.config;
        // Who is there by its onion address alone tells no other.
        let hides = config.tor.peers && config.node.listen.is_empty();
        let known = self.peers.known();
        config.node.punch
            && !hides
            && self.carrier.kinds().contains(&CarrierKind::Quic)
            && known
                .get(id)
                .is_some_and(|peer| peer.onions.is_empty() && peer.trust >= config.node.punch_trust)
    }

    /// Whether this peer is told addresses of private networks, and called at such: it is a device of
    /// the same owner, or they meet in such a network anyway.
    fn may_be_near(&self, id: &NodeId, relay: &Link) -> bool {
        let known = self.peers.known();
        let is_own = known.get(id).is_some_and(|peer| peer.trust >= OWN_DEVICE);
        let relay = relay.remote_address().ip().to_canonical();
        is_own || ban::banned(relay, false).is_some_and(Ban::is_private)
    }

    /// Takes what a peer asks for on a stream through `relay`.
    ///
    /// # Errors
    /// The reason for which it is refused: nothing of this node is told.
    pub(crate) async fn grant_punch(
        &self,
        peer: NodeId,
        relay: &Link,
        theirs: Vec<SocketAddr>,
    ) -> Result<Granted, Reason> {
        if !self.may_punch(&peer) || relay.goes_through_tor() {
            return Err(Reason::Unsupported);
        }
        let near = self.may_be_near(&peer, relay);
        let theirs = self.permitted(theirs, near);
        if theirs.is_empty() {
            return Err(Reason::ForbiddenAddress);
        }
        let began = Instant::now();
        let run = self.punches.serve(began, peer)?;
        let own = self.candidates(relay, near).await;
        let own = own.map_err(|_| Reason::NetworkUnreachable)?;
        Ok(Granted {
            run,
            began,
            own,
            theirs,
        })
    }

    /// Meets the peer that was granted it, and was told so.
    pub(crate) async fn meet_granted(self: &Arc<Self>, granted: Granted) {
        let Granted {
            run,
            began,
            own,
            theirs,
        } = granted;
        let met = self.meet(run.peer(), &theirs, own.port_changes).await;
        self.end_punch(run, began, met);
    }

    /// Why the last punch with a peer failed, if it did.
    pub(crate) fn failed_punch(&self, peer: &NodeId) -> Option<Failed> {
        self.punches.failed(peer)
    }

    async fn ask_and_meet(self: &Arc<Self>, to: NodeId, relay: NodeId) -> Result<(), PunchFailure> {
        let asked = timeout(ASK_TIME, self.exchange(to, relay)).await;
        let (own, theirs) = asked.unwrap_or(Err(PunchFailure::NoCircuit))?;
        self.meet(to, &theirs, own.port_changes).await
    }

    /// Tells the peer where this node may be called, and learns where it may be.
    async fn exchange(
        self: &Arc<Self>,
        to: NodeId,
        relay: NodeId,
    ) -> Result<(Candidates, Vec<SocketAddr>), PunchFailure> {
        let link = self.peers.link(&relay).ok_or(PunchFailure::NoCircuit)?;
        if link.goes_through_tor() {
            return Err(PunchFailure::NoCircuit);
        }
        let near = self.may_be_near(&to, &link);
        let own = self.candidates(&link, near).await?;
        let sealed = tunnel::seal_through_relay(self, Some(relay), to, Wanted::default()).await;
        let (link, mut pipe) = sealed.map_err(|_| PunchFailure::NoCircuit)?;
        let ask = async {
            let open = Open::Punch(own.addresses.clone());
            pipe.writer.send_open(&open).await?;
            let answer = pipe.reader.read_answer().await?;
            let _ = pipe.writer.finish().await;
            match answer {
                Answer::Accepted(body) => decode_candidates(&body)
                    .map(Ok)
                    .map_err(|_| PipeError::Malformed("candidates")),
                Answer::Refused(reason) => Ok(Err(PunchFailure::Refused(reason))),
            }
        };
        let asked = link.while_alive(ask).await;
        let asked = asked.map_err(|_| PunchFailure::NoCircuit)?;
        let told = self.counters.answered(asked);
        let theirs = told.map_err(|_| PunchFailure::NoCircuit)??;
        let theirs = self.permitted(theirs, near);
        match theirs.is_empty() {
            true => Err(PunchFailure::NotDialable),
            false => Ok((own, theirs)),
        }
    }

    /// Calls the peer wherever it may be, while it calls this node; whichever call is taken first is
    /// the path.
    async fn meet(
        self: &Arc<Self>,
        peer: NodeId,
        theirs: &[SocketAddr],
        port_changes: bool,
    ) -> Result<(), PunchFailure> {
        let start = Instant::now();
        let from = theirs.iter().map(|address| address.ip().to_canonical());
        let from: Vec<IpAddr> = from.collect();
        let _let_in = self.carrier.let_in(peer, &from);
        let calls = theirs.iter().map(|there| self.carrier.punch(peer, *there));
        let mut calls: FuturesUnordered<_> = calls.collect();
        let mut looks = interval(LOOK);
        let met = async {
            loop {
                tokio::select! {
                    Some(called) = calls.next() => {
                        if let Ok(link) = called {
                            return Some(link);
                        }
                    }
                    _ = looks.tick() => {
                        if self.has_called(&peer, start) {
                            return None;
                        }
                    }
                }
            }
        };
        match timeout(CALL_TIME, met).await {
            Ok(None) => Ok(()),
            Ok(Some(link)) => self.seat_met(link),
            Err(_) if port_changes => Err(PunchFailure::PortChanges),
            Err(_) => Err(PunchFailure::NoAnswer),
        }
    }

    fn seat_met(self: &Arc<Self>, link: Link) -> Result<(), PunchFailure> {
        let refuse = |code, reason| {
            link.close(code);
            Err(PunchFailure::Refused(reason))
        };
        // A reload may have taken the peer away since.
        if !self.may_punch(&link.peer()) {
            return refuse(CloseCode::Denied, Reason::Denied);
        }
        if self.peers.seat(&link).is_err() {
            return refuse(CloseCode::Busy, Reason::Busy);
        }
        // A reload closes what it finds seated; this one may have begun before that.
        if !self.may_punch(&link.peer()) {
            self.peers.unseat(&link);
            return refuse(CloseCode::Denied, Reason::Denied);
        }
        self.spawn(Arc::clone(self).serve_called(link));
        Ok(())
    }

    /// Whether a direct connection has come since.
    fn has_called(&self, peer: &NodeId, since: Instant) -> bool {
        let mut links = self.peers.links_to(peer).into_iter();
        links.any(|link| {
            let is_direct = link.carrier() == CarrierKind::Quic && !link.goes_through_tor();
            is_direct && link.made() >= since
        })
    }

    fn end_punch(&self, run: Run, began: Instant, ended: Result<(), PunchFailure>) {
        let (took, peer) = (began.elapsed(), self.named(run.peer()));
        if !run.end(Instant::now(), ended) {
            return;
        }
        match ended {
            Ok(()) => tracing::info!(%peer, took_ms = took.as_millis(), "direct path made"),
            Err(failure) => {
                let reason = failure.code();
                tracing::info!(%peer, reason, why = %failure, "no direct path made");
            }
        }
        self.counters.punches.ended(ended, took);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tempfile::TempDir;

    use super::*;
    use crate::network::connect::tests::{network_with, peer};

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// Two peers that listen nowhere, and know no address of each other.
    fn strangers_to_addresses() -> [(TempDir, Arc<Network>); 2] {
        let nodes = [(); 2].map(|()| network_with(|config| config.node.listen = Vec::new()));
        let [(_, one), (_, other)] = &nodes;
        one.set_peers(&[peer(other.id(), None)]);
        other.set_peers(&[peer(one.id(), None)]);
        nodes
    }

    /// Has both meet; returns how the one is connected to the other.
    async fn meet(one: &Arc<Network>, other: &Arc<Network>) -> Link {
        let at = |network: &Network| {
            let own = network.carrier.calling_address(LOCAL).unwrap();
            [SocketAddr::new(LOCAL, own.port())]
        };
        let (there, here) = (at(other), at(one));
        let met = tokio::join!(
            one.meet(other.id(), &there, false),
            other.meet(one.id(), &here, false)
        );
        assert_eq!(met, (Ok(()), Ok(())));
        one.peers.link(&other.id()).unwrap()
    }

    #[tokio::test]
    async fn two_nodes_that_listen_nowhere_meet_when_both_call() {
        let [(_one, one), (_other, other)] = strangers_to_addresses();
        let link = meet(&one, &other).await;
        assert_eq!(link.carrier(), CarrierKind::Quic);
        assert!(other.peers.link(&one.id()).is_some());
        for network in [one, other] {
            network.shutdown().await;
        }
    }

    #[tokio::test]
    async fn who_is_no_peer_any_more_when_the_path_is_made_gets_no_seat() {
        let [(_one, one), (_other, other)] = strangers_to_addresses();
        let let_in = other.carrier.let_in(one.id(), &[LOCAL]);
        let port = other.carrier.calling_address(LOCAL).unwrap().port();
        let called = one.carrier.punch(other.id(), (LOCAL, port).into());
        let link = timeout(CALL_TIME, called).await.unwrap().unwrap();
        drop(let_in);
        one.set_peers(&[]);
        let denied = one.seat_met(link.clone()).err();
        assert_eq!(denied, Some(PunchFailure::Refused(Reason::Denied)));
        assert!(link.is_closed());
        assert!(one.peers.links_to(&other.id()).is_empty());
        for network in [one, other] {
            network.shutdown().await;
        }
    }

    #[tokio::test]
    async fn from_where_a_relay_saw_this_node_is_forgotten_when_it_moves() {
        let [(_one, one), (_other, other)] = strangers_to_addresses();
        let relay = meet(&one, &other).await;
        let before = SocketAddr::from(([1, 1, 1, 1], 4433));
        relay.set_mirrored(before);
        assert_eq!(relay.mirrored(), Some(before));
        one.look_around().await;
        assert_eq!(relay.mirrored(), None);
        for network in [one, other] {
            network.shutdown().await;
        }
    }

    #[tokio::test]
    async fn private_addresses_are_for_own_devices_or_where_the_relay_is_near() {
        let [(_one, one), (_other, other)] = strangers_to_addresses();
        let relay = meet(&one, &other).await;
        assert!(
            one.may_be_near(&other.id(), &relay),
            "it is on this machine"
        );
        let theirs = ["10.1.2.3:1", "1.1.1.1:1", "[fd12::1]:1"];
        let theirs = theirs.map(|text| text.parse::<SocketAddr>().unwrap());
        let theirs = theirs.to_vec();
        assert_eq!(one.permitted(theirs.clone(), true), theirs);
        let public: SocketAddr = ([1, 1, 1, 1], 1).into();
        assert_eq!(one.permitted(theirs, false), [public]);
        for network in [one, other] {
            network.shutdown().await;
        }
    }

    #[tokio::test]
    async fn a_punch_is_refused_to_who_is_no_peer_names_nothing_or_asks_too_often() {
        let [(_one, one), (_other, other)] = strangers_to_addresses();
        let relay = meet(&one, &other).await;
        let (nobody, friend) = (NodeId::from_bytes([9; 32]), other.id());
        for (asker, candidate, expected) in [
            (nobody, "1.1.1.1:4433", Reason::Unsupported),
            (friend, "127.0.0.1:4433", Reason::ForbiddenAddress),
            (friend, "224.0.0.1:4433", Reason::ForbiddenAddress),
            // It has nothing to tell: the relay sees it on this machine.
            (friend, "1.1.1.1:4433", Reason::NetworkUnreachable),
            (friend, "1.1.1.1:4433", Reason::Busy),
        ] {
            let theirs = vec![candidate.parse().unwrap()];
            let granted = one.grant_punch(asker, &relay, theirs).await;
            assert_eq!(granted.err(), Some(expected), "{candidate}");
        }
        let silent = |config: &mut crate::config::Config| config.node.punch = false;
        let (_dir, silent) = network_with(silent);
        silent.set_peers(&[peer(friend, None)]);
        let theirs = vec![([1, 1, 1, 1], 4433).into()];
        let granted = silent.grant_punch(friend, &relay, theirs).await;
        assert_eq!(granted.err(), Some(Reason::Unsupported));
        for network in [one, other, silent] {
            network.shutdown().await;
        }
    }

    #[tokio::test]
    async fn who_is_trusted_less_than_the_config_says_is_neither_asked_nor_answered() {
        let trusted = |trust: u8| {
            let mut friend = peer(NodeId::from_bytes([7; 32]), None);
            friend.trust = trust;
            friend
        };
        for (least, trust, expected) in [
            (None, 0, false),
            (None, 1, false),
            (None, 2, true),
            (None, 3, true),
            (Some(0), 0, true),
            (Some(1), 1, true),
            (Some(3), 2, false),
            (Some(3), 3, true),
        ] {
            let (_dir, network) = network_with(|config| {
                config.node.punch_trust = least.unwrap_or(config.node.punch_trust);
            });
            let friend = trusted(trust);
            network.set_peers(std::slice::from_ref(&friend));
            assert_eq!(network.may_punch(&friend.id), expected, "{least:?} {trust}");
            network.punch(friend.id, NodeId::from_bytes([8; 32]));
            let is_asked = network.punches.begin(Instant::now(), friend.id).is_none();
            assert_eq!(is_asked, expected, "{least:?} {trust}");
            network.shutdown().await;
        }
        let [(_one, one), (_other, other)] = strangers_to_addresses();
        let relay = meet(&one, &other).await;
        let stranger = trusted(1);
        one.set_peers(&[stranger.clone(), peer(other.id(), None)]);
        let theirs = vec![([1, 1, 1, 1], 4433).into()];
        let granted = one.grant_punch(stranger.id, &relay, theirs).await;
        assert_eq!(granted.err(), Some(Reason::Unsupported));
        for network in [one, other] {
            network.shutdown().await;
        }
    }
}
