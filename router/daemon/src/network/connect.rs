//! Getting connected: where a node may be dialled, for whom, and that what is called is served too.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::Instant;
use wormholes_proto::CarrierKind;
use wormholes_proto::NodeId;

use super::Network;
use crate::{
    ban::{Ban, Transport},
    carrier::{CloseCode, Link},
    config::PeerConfig,
    peers::{ConnectError, Dialling, Sought, Wish},
    serve,
};

/// Peers that are being connected at once so that they are, with one dial each, and one that it
/// took the place of when this machine moved. Overflow rule: the others are for the next round, or
/// the first flow.
const MAX_KEPT_PEERS: usize = 64;
/// Who wants all peers connected waits so long for those that are not.
const PEERS_PATIENCE: Duration = Duration::from_secs(1);

/// Whose turn it is to be connected, where there are more than find room.
#[derive(Debug, Default)]
pub(super) struct Rounds(Mutex<Round>);

/// The one that runs.
#[derive(Debug, Default)]
struct Round {
    /// At most [`MAX_KEPT_PEERS`].
    peers: Vec<NodeId>,
    /// Who was the last to get its turn.
    last: Option<NodeId>,
}

impl Rounds {
    /// Begins a round: those of `missing` whose turn it is. Those of the round before that are being
    /// dialled stay in it.
    fn next(&self, missing: &[NodeId], is_dialled: impl Fn(&NodeId) -> bool) -> Vec<NodeId> {
        let mut round = self.lock();
        round.peers.retain(is_dialled);
        round.fill(missing)
    }

    /// Joins the round that runs: those of `missing` that are in it. Where others are connected by
    /// now, there is room for more.
    fn join(&self, missing: &[NodeId], is_dialled: impl Fn(&NodeId) -> bool) -> Vec<NodeId> {
        let mut round = self.lock();
        round
            .peers
            .retain(|id| missing.contains(id) || is_dialled(id));
        round.fill(missing)
    }

    fn lock(&self) -> MutexGuard<'_, Round> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Round {
    /// Lets in who comes next in the order of ids, and returns those of `missing` that are in.
    fn fill(&mut self, missing: &[NodeId]) -> Vec<NodeId> {
        let mut next = missing.to_vec();
        next.retain(|id| !self.peers.contains(id));
        next.sort_unstable();
        let served = next.partition_point(|id| Some(*id) <= self.last);
        next.rotate_left(served);
        next.truncate(MAX_KEPT_PEERS.saturating_sub(self.peers.len()));
        self.last = next.last().copied().or(self.last);
        self.peers.append(&mut next);
        let mut peers = self.peers.clone();
        peers.retain(|id| missing.contains(id));
        peers
    }
}

/// What a connection shall be like; any will do by default.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    /// What carries it.
    pub(crate) carrier: Option<CarrierKind>,
    /// How long a dial may run; it goes on when nobody waits for it.
    pub(crate) patience: Option<Duration>,
    /// An older one is of no use.
    pub(crate) made_after: Option<Instant>,
}

impl Network {
    /// A standing connection to `id`, or a new one, which is then served as well. `hint` is an
    /// address to try when none is known. Cancel-safe; the dial goes on.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        id: NodeId,
        hint: Option<SocketAddr>,
    ) -> Result<Link, ConnectError> {
        self.connect_over(id, hint, Wanted::default()).await
    }

    /// As [`Self::connect`], as it is wanted.
    pub(crate) async fn connect_over(
        self: &Arc<Self>,
        id: NodeId,
        hint: Option<SocketAddr>,
        wanted: Wanted,
    ) -> Result<Link, ConnectError> {
        let addresses = || self.addresses_of(&id, hint);
        let wish = Wish::Own(wanted.carrier);
        self.connect_at(id, addresses, wish, wanted).await
    }

    /// As [`Self::connect`], for a stranger: but for those in config.toml, only addresses that pass
    /// `check` are tried, whether the stranger gave them or a record that others passed on.
    pub(crate) async fn connect_for_stranger(
        self: &Arc<Self>,
        id: NodeId,
        hint: SocketAddr,
        check: impl Fn(SocketAddr) -> Result<(), Ban>,
    ) -> Result<Link, ConnectError> {
        if let Some(link) = self.peers.link(&id) {
            return Ok(link);
        }
        let mut addresses = self.addresses_of(&id, None);
        if addresses.is_empty() {
            return self.connect_on_hint(id, hint, check).await;
        }
        let known = self.peers.known();
        let named = known.get(&id).into_iter().flat_map(PeerConfig::ways);
        let named: Vec<SocketAddr> = named.collect();
        let mut banned = None;
        addresses.retain(|address| match check(*address) {
            Err(ban) if !named.contains(address) => {
                banned = Some(ban);
                false
            }
            Ok(()) | Err(_) => true,
        });
        let checked = || addresses.clone();
        let connected = self.connect_at(id, checked, Wish::Strangers, Wanted::default());
        match (connected.await, banned) {
            (Err(ConnectError::NoAddress), Some(ban)) => Err(ban.into()),
            (connected, _) => connected,
        }
    }

    async fn connect_on_hint(
        self: &Arc<Self>,
        id: NodeId,
        hint: SocketAddr,
        check: impl Fn(SocketAddr) -> Result<(), Ban>,
    ) -> Result<Link, ConnectError> {
        if id == self.id() {
            return Err(ConnectError::Myself);
        }
        if self.own_sockets.contains(Transport::Udp, hint) {
            return Err(Ban::Own.into());
        }
        check(hint)?;
        let (link, new) = self.peers.connect_on_hint(&self.carrier, id, hint).await?;
        if new {
            self.spawn(Arc::clone(self).serve_called(link.clone()));
        }
        Ok(link)
    }

    /// `addresses` are looked for when they are dialled: most who come find a standing connection.
    async fn connect_at(
        self: &Arc<Self>,
        id: NodeId,
        addresses: impl Fn() -> Vec<SocketAddr>,
        wish: Wish,
        wanted: Wanted,
    ) -> Result<Link, ConnectError> {
        if id == self.id() {
            return Err(ConnectError::Myself);
        }
        let carrier = wanted.carrier;
        if let Some(kind) = carrier.filter(|kind| !self.carrier.kinds().contains(kind)) {
            return Err(ConnectError::NoCarrier(kind));
        }
        let start = Instant::now();
        let mut moves = self.moves();
        loop {
            moves.mark_unchanged();
            let dial = match self.peers.seek(id, wish, wanted.made_after)? {
                Sought::Standing(link) => return Ok(link),
                Sought::Dialled(dial) => dial,
                Sought::ToDial(dial, dialling) => {
                    self.dial(dialling, addresses());
                    dial
                }
            };
            let patience = wanted.patience;
            let patience = patience.map(|patience| patience.saturating_sub(start.elapsed()));
            tokio::select! {
                ended = dial.ended(patience) => return ended,
                // It may have gone nowhere: all who wait follow to one that begins after the move.
                _ = moves.changed() => {}
            }
        }
    }

    fn dial(self: &Arc<Self>, dialling: Dialling, addresses: Vec<SocketAddr>) {
        let (network, before) = (Arc::clone(self), self.peers.known());
        self.spawn(async move {
            let caller = network.carrier.myself();
            let made = dialling.run(&network.carrier, caller, &addresses).await;
            if let Some(link) = made {
                let id = link.peer();
                let was_peer = before.get(&id).is_some();
                // Old configs live no longer than the dials that began with them.
                drop(before);
                if was_peer && network.peers.known().get(&id).is_none() {
                    // The reload found nothing to close.
                    link.close(CloseCode::Done);
                }
                network.serve_called(link).await;
            }
        });
    }

    pub(super) async fn serve_called(self: Arc<Self>, link: Link) {
        let welcome = serve::is_welcome(&self, &link).await;
        serve::serve_link(self, link, None, welcome).await;
    }

    /// Connects to peers of config.toml that have addresses, a round of them: scripts then see who
    /// is there, and records arrive before they are needed. Those that do not answer soon hold up
    /// nobody; their dials go on.
    pub(super) async fn connect_peers(self: &Arc<Self>) {
        let is_dialled = |id: &NodeId| self.peers.is_dialled(id);
        let round = self.rounds.next(&self.missing_peers(), is_dialled);
        self.connect_all(round).await;
    }

    /// As [`Self::connect_peers`], but those of the round that runs: however many want that at
    /// once, no more are dialled.
    pub(super) async fn join_connecting(self: &Arc<Self>) {
        let is_dialled = |id: &NodeId| self.peers.is_dialled(id);
        let round = self.rounds.join(&self.missing_peers(), is_dialled);
        self.connect_all(round).await;
    }

    fn missing_peers(&self) -> Vec<NodeId> {
        let known = self.peers.known();
        let missing = known
            .iter()
            .filter(|peer| peer.ways().next().is_some() && self.peers.link(&peer.id).is_none());
        missing.map(|peer| peer.id).collect()
    }

    async fn connect_all(self: &Arc<Self>, peers: Vec<NodeId>) {
        let wanted = Wanted {
            patience: Some(PEERS_PATIENCE),
            ..Wanted::default()
        };
        let connect = async |peer| {
            // How a dial ends is logged where it does.
            let _ = self.connect_over(peer, None, wanted).await;
        };
        join_all(peers.into_iter().map(connect)).await;
    }

    /// Where a node may be dialled: config.toml first, then its record, else `hint`; never this
    /// node's own sockets. The record of a node that nobody here named sends this node into no
    /// neighbourhood of its own, unless this node and all its peers are there only.
    pub(crate) fn addresses_of(&self, id: &NodeId, hint: Option<SocketAddr>) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        let known = self.peers.known();
        let named = known.get(id);
        addresses.extend(named.iter().flat_map(|peer| peer.ways()));
        if let Some(record) = self.records.get(id) {
            let own = self.own_record();
            let told = record.record().addresses.iter();
            addresses.extend(told.filter(|told| {
                let peers = known.iter().flat_map(|peer| &peer.addresses);
                let homes = peers.chain(&own.record().addresses);
                named.is_some() || self.check_near(**told, false, homes).is_ok()
            }));
        }
        if addresses.is_empty() {
            addresses.extend(hint);
        }
        addresses.retain(|address| !self.own_sockets.contains(Transport::Udp, *address));
        let mut seen = std::collections::HashSet::new();
        addresses.retain(|address| seen.insert(*address));
        addresses
    }
}

#[cfg(test)]
pub(super) mod tests {
    use tempfile::TempDir;
    use tokio::{net::UdpSocket, time::timeout};
    use wormholes_proto::{Answer, Open, ServiceName, Transport};

    use super::*;
    use crate::{
        carrier::Carrier,
        config::{Config, PeerConfig, ServiceConfig},
        counters::Counters,
        gatekeeper::OpenGate,
        identity::Identity,
        network::NetworkOptions,
        records::OwnRecord,
    };

    pub(in crate::network) const LIMIT: Duration = Duration::from_secs(20);

    pub(in crate::network) fn network() -> (TempDir, Arc<Network>) {
        network_with(|_| {})
    }

    pub(in crate::network) fn network_with(
        edit: impl FnOnce(&mut Config),
    ) -> (TempDir, Arc<Network>) {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.node.data_dir = dir.path().join("data");
        config.node.carriers = vec![CarrierKind::Quic];
        config.node.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        edit(&mut config);
        let options = NetworkOptions {
            idle_timeout: Some(Duration::from_millis(300)),
            ..NetworkOptions::default()
        };
        let counters = Arc::new(Counters::default());
        let network = Network::start(config, options, Arc::new(OpenGate), counters).unwrap();
        (dir, network)
    }

    fn ids(n_ids: usize) -> Vec<NodeId> {
        let id = |number| NodeId::from_bytes([u8::try_from(number).unwrap(); 32]);
        (0..n_ids).rev().map(id).collect()
    }

    #[test]
    fn of_too_many_peers_each_gets_its_turn() {
        let (rounds, missing) = (Rounds::default(), ids(MAX_KEPT_PEERS * 5 / 2));
        let mut served = Vec::new();
        for _ in 0..5 {
            let next = rounds.next(&missing, |_| false);
            assert_eq!(next.len(), MAX_KEPT_PEERS);
            served.extend(next);
        }
        served.sort_unstable();
        let mut twice = [missing.clone(), missing.clone()].concat();
        twice.sort_unstable();
        assert_eq!(served, twice, "each as often as the others");
        let few = &missing[..3];
        assert_eq!(rounds.next(few, |_| false).len(), 3, "where there is room");
        assert_eq!(rounds.next(&[], |_| false), []);
    }

    #[test]
    fn who_joins_has_no_more_peers_dialled_at_once() {
        let (rounds, missing) = (Rounds::default(), ids(MAX_KEPT_PEERS * 2));
        let first = rounds.join(&missing, |_| false);
        assert_eq!(first.len(), MAX_KEPT_PEERS);
        assert_eq!(rounds.join(&missing, |_| true), first, "the same");
        let slow = first[0];
        let next = rounds.next(&missing, |id| *id == slow);
        assert_eq!(next.len(), MAX_KEPT_PEERS);
        let again: Vec<_> = next.iter().filter(|id| first.contains(id)).collect();
        assert_eq!(again, [&slow], "its dial takes a place");
        let mut left = missing;
        left.retain(|id| *id != next[1]);
        let joined = rounds.join(&left, |_| false);
        assert_eq!(joined.len(), MAX_KEPT_PEERS, "one made room");
        assert_eq!(
            joined[..MAX_KEPT_PEERS - 1],
            [&next[..1], &next[2..]].concat()
        );
        assert_eq!(rounds.join(&[], |_| true), [], "all are connected");
    }

    /// A node at whose address nobody answers.
    async fn nobody() -> (NodeId, UdpSocket) {
        let socket = UdpSocket::bind("127.65.0.2:0").await.unwrap();
        (NodeId::from_bytes([9; 32]), socket)
    }

    pub(in crate::network) fn peer(id: NodeId, address: Option<SocketAddr>) -> PeerConfig {
        PeerConfig {
            name: id.to_string(),
            id,
            addresses: address.into_iter().collect(),
            onions: Vec::new(),
            trust: 2,
            via: Vec::new(),
            register: false,
        }
    }

    /// The connection id of the next call that comes to `socket`, other than the one `before`.
    async fn next_call(socket: &UdpSocket, before: &[u8]) -> Vec<u8> {
        // RFC 9000, section 17.2: flags, four bytes of version, the length of the id, the id.
        const ID: usize = 6;
        loop {
            let mut packet = [0; 2048];
            socket.recv_from(&mut packet).await.unwrap();
            let call = &packet[ID..ID + usize::from(packet[ID - 1])];
            if call != before {
                return call.to_vec();
            }
        }
    }

    #[tokio::test]
    async fn who_waits_for_a_dial_from_before_a_move_follows_to_a_new_one() {
        let ((_dir, network), (id, silent)) = (network(), nobody().await);
        let connected = network.connect(id, Some(silent.local_addr().unwrap()));
        let moved = async {
            let first = next_call(&silent, &[]).await;
            tokio::join!(network.look_around(), next_call(&silent, &first));
        };
        tokio::select! {
            connected = connected => panic!("nobody else called: {connected:?}"),
            () = moved => {}
        }
    }

    #[tokio::test]
    async fn a_registration_goes_on_when_this_machine_moves() {
        let ((_dir, network), identity) = (network(), Identity::throw_away().unwrap());
        let listen = [([127, 0, 0, 1], 0).into()];
        let relay = Carrier::bind(&listen, &[CarrierKind::Quic], &identity, Arc::default());
        let relay = relay.unwrap();
        network.set_peers(&[PeerConfig {
            register: true,
            ..peer(identity.id(), Some(relay.listen_addresses()[0]))
        }]);
        let call = relay.accept().await.unwrap();
        let link = relay.handshake(call, |_| true).await.unwrap().unwrap();
        let mut asked = loop {
            let mut pipe = link.accept().await.unwrap();
            if let Ok(Open::Register(_)) = pipe.reader.read_open().await {
                break pipe;
            }
        };
        network.look_around().await;
        let answer = Answer::Accepted(Vec::new());
        asked.writer.send_answer(&answer).await.unwrap();
        until(|| {
            network
                .registrations()
                .iter()
                .all(|(_, state)| state.is_ok())
        })
        .await;
    }

    /// Waits until `network` knows a node that only `teller` has just heard of.
    async fn until_told(network: &Network, teller: &Network) {
        let stranger = Identity::throw_away().unwrap();
        let record = OwnRecord {
            config: &Config::default(),
            identity: &stranger,
            listen: Vec::new(),
            onion_keys: Vec::new(),
            relays: Vec::new(),
        };
        teller.add_record(record.sign(0).unwrap());
        network.look_for_lost();
        until(|| network.records.get(&stranger.id()).is_some()).await;
    }

    async fn until(condition: impl Fn() -> bool) {
        let mut looks = tokio::time::interval(Duration::from_millis(10));
        let holds = async {
            while !condition() {
                looks.tick().await;
            }
        };
        timeout(LIMIT, holds).await.expect("in time");
    }

    #[tokio::test]
    async fn records_are_fetched_while_a_peer_is_dialled_that_does_not_answer() {
        let ((_one, network), (_other, teller)) = (self::network(), self::network());
        let (dead, silent) = nobody().await;
        teller.set_peers(&[peer(network.id(), None)]);
        // Nobody ends the dial.
        let dialled = network.peers.seek(dead, Wish::Own(None), None);
        assert!(matches!(dialled, Ok(Sought::ToDial(..))), "{dialled:?}");
        let answers = peer(teller.id(), Some(teller.listen_addresses()[0]));
        network.set_peers(&[answers, peer(dead, silent.local_addr().ok())]);
        // One comes with the connection, the next has to be asked for.
        for _ in 0..2 {
            until_told(&network, &teller).await;
        }
    }

    #[tokio::test]
    async fn of_the_connections_to_a_peer_the_newest_stays_and_what_has_a_flow() {
        // Who calls is not who decides.
        for calls in [0, 1] {
            let target = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let service = ServiceConfig {
                name: ServiceName::parse("waits").unwrap(),
                target: target.local_addr().unwrap(),
                transport: Transport::Tcp,
                min_trust: 2,
                onion: None,
                i2p: false,
            };
            let serves = || network_with(|config| config.services = vec![service.clone()]);
            let mut nodes = [serves(), serves()];
            nodes.sort_by_key(|(_, network)| network.id());
            let [(_, caller), (_, called)] = [&nodes[calls], &nodes[1 - calls]];
            let address = called.listen_addresses()[0];
            called.set_peers(&[peer(caller.id(), None)]);
            caller.set_peers(&[peer(called.id(), None)]);
            let connect = async || {
                let wanted = Wanted {
                    made_after: Some(Instant::now()),
                    ..Wanted::default()
                };
                let link = caller.connect_over(called.id(), Some(address), wanted);
                link.await.unwrap()
            };
            let first = connect().await;
            let mut flow = first.open().await.unwrap();
            let open = Open::Service(Transport::Tcp, Some(service.name.clone()));
            flow.writer.send_open(&open).await.unwrap();
            let answer = flow.reader.read_answer().await;
            assert_eq!(answer, Ok(Answer::Accepted(Vec::new())));
            let [second, third] = [connect().await, connect().await];
            until(|| second.is_closed()).await;
            assert!(!first.is_closed(), "it has a flow");
            drop(flow);
            let left = || [caller, called].map(|node| node.peers.all_links().len());
            until(|| left() == [1, 1]).await;
            assert!(!third.is_closed());
        }
    }
}
