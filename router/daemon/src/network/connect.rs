//! Getting connected: where a node may be dialled, for whom, and that what is called is served too.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::time::Instant;
use wormholes_proto::CarrierKind;
use wormholes_proto::NodeId;

use super::Network;
use crate::{
    ban::{Ban, Transport},
    carrier::Link,
    peers::{ConnectError, Dialling, Sought, Wish},
    serve,
};

/// Peers that are kept connected, and dialled at once.
const MAX_KEPT_PEERS: usize = 64;
const MAX_DIALS: usize = 8;

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
        let addresses = self.addresses_of(&id, hint);
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
        let named = known.get(&id).map_or(&[][..], |peer| &peer.addresses);
        let mut banned = None;
        addresses.retain(|address| match check(*address) {
            Err(ban) if !named.contains(address) => {
                banned = Some(ban);
                false
            }
            Ok(()) | Err(_) => true,
        });
        let connected = self.connect_at(id, addresses, Wish::Strangers, Wanted::default());
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

    async fn connect_at(
        self: &Arc<Self>,
        id: NodeId,
        addresses: Vec<SocketAddr>,
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
                    self.dial(dialling, addresses.clone());
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
        let network = Arc::clone(self);
        self.spawn(async move {
            let caller = network.carrier.myself();
            let made = dialling.run(&network.carrier, caller, &addresses).await;
            if let Some(link) = made {
                network.serve_called(link).await;
            }
        });
    }

    async fn serve_called(self: Arc<Self>, link: Link) {
        let welcome = serve::is_welcome(&self, &link).await;
        serve::serve_link(self, link, None, welcome).await;
    }

    /// Connects to peers of config.toml that have addresses: scripts then see who is there, and
    /// records arrive before they are needed.
    pub(super) async fn connect_peers(self: &Arc<Self>) {
        let known = self.peers.known();
        let missing = known
            .iter()
            .filter(|peer| !peer.addresses.is_empty() && self.peers.link(&peer.id).is_none());
        let ids: Vec<NodeId> = missing.map(|peer| peer.id).take(MAX_KEPT_PEERS).collect();
        stream::iter(ids)
            .for_each_concurrent(MAX_DIALS, |id| async move {
                if let Err(error) = self.connect(id, None).await {
                    tracing::debug!(peer = %self.named(id), %error, "peer not reached");
                }
            })
            .await;
    }

    /// Where a node may be dialled: config.toml first, then its record, else `hint`; never this
    /// node's own sockets. The record of a node that nobody here named sends this node into no
    /// neighbourhood of its own, unless this node and all its peers are there only.
    pub(crate) fn addresses_of(&self, id: &NodeId, hint: Option<SocketAddr>) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        let known = self.peers.known();
        let named = known.get(id);
        addresses.extend(named.iter().flat_map(|peer| &peer.addresses));
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
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::{
        config::Config, counters::Counters, gatekeeper::OpenGate, network::NetworkOptions,
    };

    /// The connection ids of the calls that come to a socket at which nobody answers.
    async fn next_call(socket: &tokio::net::UdpSocket, before: &[u8]) -> Vec<u8> {
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
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.node.data_dir = dir.path().join("data");
        config.node.carriers = vec![CarrierKind::Quic];
        let socket = UdpSocket::bind("127.65.0.2:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let silent = tokio::net::UdpSocket::from_std(socket).unwrap();
        let id = NodeId::from_bytes([9; 32]);
        let (options, counters) = (NetworkOptions::default(), Arc::new(Counters::default()));
        let network = Network::start(config, options, Arc::new(OpenGate), counters).unwrap();
        let connected = network.connect(id, Some(silent.local_addr().unwrap()));
        let moved = async {
            let first = next_call(&silent, &[]).await;
            let look = network.look_around();
            let called = next_call(&silent, &first);
            tokio::join!(look, called);
        };
        tokio::select! {
            connected = connected => panic!("nobody else called: {connected:?}"),
            () = moved => {}
        }
    }
}
