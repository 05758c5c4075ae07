//! The lower half of a node, put together: keys, carrier, peers, records, roles and tunnels.

mod changes;
mod connect;
mod fetch;
mod moves;
mod publish;
mod punch;
mod upkeep;
mod views;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use thiserror::Error;
use tokio::sync::watch;
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use wormholes_proto::{
    CarrierKind, HandshakeError, NodeId, RecordError, SIGNATURE_BYTES, SignedRecord,
};
use wormholes_rules::Tunnel;
use zeroize::Zeroizing;

use connect::Rounds;
pub(crate) use connect::Wanted;
pub use punch::PunchFailure;
use punch::Punches;

use crate::{
    ban::{self, Ban, OwnSockets, Transport},
    carrier::{Carrier, CarrierError, CloseCode},
    config::{Config, PeerConfig},
    counters::Counters,
    dial::Resolver,
    facts::Facts,
    gatekeeper::Gatekeeper,
    i2p::{self, I2p},
    identity::{Identity, IdentityError},
    peers::{ConnectError, Peers, WorldCache},
    pipe::Witness,
    records::{OwnRecord, Records},
    registration::Registrations,
    role::{Role, RoleStatus},
    serve::{self, HopKeys, MovingDesk, RelayDesk, TrunkDesk, Trunks},
    tor::Tor,
    tunnel::{self, OnionClient, OpenError, Opened, TunnelRequest},
    usage::UsageBook,
};

/// A node as others meet it. Made by [`Network::start`], ended by [`Network::shutdown`].
#[derive(Debug)]
pub struct Network {
    config: Config,
    options: NetworkOptions,
    identity: Identity,
    carrier: Carrier,
    peers: Arc<Peers>,
    records: Records,
    world: WorldCache,
    facts: Facts,
    usage: UsageBook,
    resolver: Resolver,
    own_sockets: OwnSockets,
    gatekeeper: Arc<dyn Gatekeeper>,
    counters: Arc<Counters>,
    exit: Role,
    hop: Role,
    hop_keys: HopKeys,
    /// Revision of the keys in this node's record.
    published_keys: AtomicU64,
    onion: OnionClient,
    i2p: Option<I2p>,
    relay: Role,
    relay_desk: RelayDesk,
    trunk_desk: TrunkDesk,
    moving_desk: MovingDesk,
    tor: Arc<Tor>,
    registrations: Registrations,
    rounds: Rounds,
    punches: Arc<Punches>,
    /// Some are new, or lost.
    peers_changed: watch::Sender<()>,
    records_doubted: AtomicBool,
    /// How often this machine may have moved.
    moves: watch::Sender<u64>,
    tasks: TaskTracker,
    /// What is being done for others.
    served: TaskTracker,
    /// Nothing more is done for others.
    drain: CancellationToken,
    stop: CancellationToken,
}

/// What config.toml does not hold.
#[derive(Debug, Clone, Default)]
pub struct NetworkOptions {
    /// The only name server to ask; `None` takes those of /etc/resolv.conf.
    pub name_server: Option<SocketAddr>,
    /// Sees what this node carries as relay and hop: for tests of what it cannot see.
    pub witness: Option<Arc<dyn Witness>>,
    /// Connections that are not kept for their own sake close after so long without a stream;
    /// `None` is a minute: for tests that do not wait.
    pub idle_timeout: Option<Duration>,
}

/// A network that could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The keys.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The sockets.
    #[error(transparent)]
    Carrier(#[from] CarrierError),
    /// The onion keys.
    #[error("cannot make onion keys")]
    OnionKeys(#[from] HandshakeError),
    /// The node's own record.
    #[error("cannot make this node's record")]
    Record(#[from] RecordError),
}

impl Network {
    /// Reads the keys, binds the sockets, and serves.
    ///
    /// # Errors
    /// [`StartError`] when keys, sockets or config.toml stand in the way.
    pub fn start(
        mut config: Config,
        options: NetworkOptions,
        gatekeeper: Arc<dyn Gatekeeper>,
        counters: Arc<Counters>,
    ) -> Result<Arc<Self>, StartError> {
        let identity = Identity::load(&config.node.data_dir)?;
        config.peers.retain(|peer| peer.id != identity.id());
        let node = &config.node;
        let counted = Arc::clone(&counters);
        let carrier = Carrier::bind(&node.listen, &node.carriers, &identity, counted)?;
        let own_sockets = OwnSockets::default();
        // Not those that only call: nobody is served there.
        for (transport, socket) in carrier.listening() {
            own_sockets.add(transport, socket);
        }
        let hop_keys = HopKeys::new(&identity)?;
        let own_record = OwnRecord {
            config: &config,
            identity: &identity,
            listen: carrier.listen_addresses(),
            onion_keys: hop_keys.published(),
            relays: relays_in(&config.peers),
        };
        let network = Arc::new(Self {
            records: Records::new(own_record.sign(0)?),
            peers: Arc::new(Peers::new(&config.peers, config.limits.peers)),
            world: WorldCache::default(),
            facts: Facts::default(),
            usage: UsageBook::default(),
            resolver: Resolver::new(options.name_server),
            exit: Role::new(config.exit.role.clone()),
            hop: Role::new(config.hop.role.clone()),
            onion: OnionClient::new(&config.node.data_dir),
            i2p: I2p::new(&config.i2p, &config.node.data_dir),
            relay: Role::new(config.relay.clone()),
            relay_desk: RelayDesk::new(&config.relay, config.limits.peers),
            trunk_desk: TrunkDesk::new(),
            moving_desk: MovingDesk::new(),
            tor: Tor::new(&config),
            registrations: Registrations::default(),
            rounds: Rounds::default(),
            punches: Arc::default(),
            peers_changed: watch::Sender::default(),
            records_doubted: AtomicBool::new(false),
            moves: watch::Sender::default(),
            tasks: TaskTracker::new(),
            served: TaskTracker::new(),
            drain: CancellationToken::new(),
            stop: CancellationToken::new(),
            published_keys: AtomicU64::new(hop_keys.revision()),
            hop_keys,
            config,
            options,
            identity,
            carrier,
            own_sockets,
            gatekeeper,
            counters,
        });
        network.begin();
        Ok(network)
    }

    /// Has all begin that goes on by itself.
    fn begin(self: &Arc<Self>) {
        self.keep_places();
        self.tor
            .hand_in_at(self.carrier.use_tor(Arc::clone(&self.tor)));
        self.tor.begin(self);
        self.spawn(serve::listen(Arc::clone(self)));
        self.spawn(upkeep::keep_connected(Arc::clone(self)));
        self.spawn(upkeep::keep_records(Arc::clone(self)));
        self.spawn(moves::watch(Arc::clone(self)));
        i2p::begin(self);
        self.registrations.set(self, &relays_in(&self.config.peers));
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.identity.id()
    }

    /// Where peers reach this node, with the ports that the system chose.
    pub fn listen_addresses(&self) -> Vec<SocketAddr> {
        self.carrier.listen_addresses()
    }

    /// This node's signed record.
    pub fn own_record(&self) -> SignedRecord {
        self.records.own()
    }

    /// Takes a record that came by other means: an invite, a plugin.
    pub fn add_record(&self, record: SignedRecord) {
        if self.records.add(record) {
            self.expire_world();
        }
    }

    /// What is counted.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Adds a socket that no flow may reach through this node: an entrance, the metrics page.
    pub fn protect_socket(&self, transport: Transport, socket: SocketAddr) {
        self.own_sockets.add(transport, socket);
    }

    /// What carries the standing connection to a node.
    pub fn carrier_to(&self, id: &NodeId) -> Option<CarrierKind> {
        self.peers.link(id).map(|link| link.carrier())
    }

    /// Replaces the peers of config.toml, and parts from those that are gone; all other
    /// connections live on.
    pub fn set_peers(self: &Arc<Self>, peers: &[PeerConfig]) {
        let before = self.peers.known();
        self.peers.set_known(peers);
        self.tor.use_peers(peers);
        self.keep_places();
        self.publish();
        self.registrations.set(self, &relays_in(peers));
        self.peers_changed.send_replace(());
        let known = self.peers.known();
        self.punches.keep(|id| known.get(id).is_some());
        let is_gone = |id: &NodeId| before.get(id).is_some() && known.get(id).is_none();
        for link in self.peers.all_links() {
            if is_gone(&link.peer()) {
                link.close(CloseCode::Done);
            }
        }
        self.expire_world();
        // Who was connected as a stranger is a peer by now, or is trusted otherwise.
        self.tell_presence();
    }

    /// Opens `tunnel`. Dropping the future ends the attempt.
    ///
    /// # Errors
    /// [`OpenError`], whose kind says whether another tunnel may do better.
    pub async fn open(
        self: &Arc<Self>,
        tunnel: &Tunnel,
        request: &TunnelRequest,
    ) -> Result<Opened, OpenError> {
        tunnel::open(self, tunnel, request).await
    }

    /// Looks `host` up at the end of `tunnel`.
    ///
    /// # Errors
    /// [`OpenError`] as for [`Network::open`].
    pub async fn resolve(
        self: &Arc<Self>,
        tunnel: &Tunnel,
        request: &TunnelRequest,
    ) -> Result<Vec<IpAddr>, OpenError> {
        tunnel::resolve(self, tunnel, request).await
    }

    /// Connects to a peer, or says that it is connected: its round trip.
    ///
    /// # Errors
    /// [`ConnectError`] when it cannot be reached.
    pub async fn ping(self: &Arc<Self>, id: NodeId) -> Result<Duration, ConnectError> {
        Ok(self.connect(id, None).await?.rtt())
    }

    /// What the relay role does.
    pub fn relay_status(&self) -> RoleStatus {
        self.relay.status(&self.counters.relay)
    }

    /// What the hop role does.
    pub fn hop_status(&self) -> RoleStatus {
        self.hop.status(&self.counters.hop)
    }

    /// The nodes that onion paths of this node begin with, the primary first.
    pub fn guards(&self) -> Vec<NodeId> {
        self.onion.guards()
    }

    /// Nodes that are registered here as reachable through this relay.
    pub fn registered(&self) -> Vec<NodeId> {
        self.relay_desk.registered()
    }

    /// Each relay that shall make this node reachable, and whether it does or why not.
    pub(crate) fn registrations(&self) -> Vec<(NodeId, Result<(), String>)> {
        self.registrations.states()
    }

    /// What the exit role does.
    pub fn exit_status(&self) -> RoleStatus {
        self.exit.status(&self.counters.exit)
    }

    /// Hands the trunks of other nodes' plugins to `trunks` from now on, with the node at the other
    /// end: none where nobody knows it, as over an onion. Dropping a pipe ends its trunk. Until then
    /// there is no such service. The first to ask for them gets them all.
    pub fn answer_trunks(&self, trunks: impl Trunks) {
        self.trunk_desk.open(Box::new(trunks));
    }

    /// Refuses what others ask for from now on, as busy, so that they go another way; waits until
    /// what is done for them has ended.
    pub async fn drain(&self) {
        self.drain.cancel();
        self.served.close();
        self.served.wait().await;
    }

    /// What is open for others: circuits of the roles, streams to services.
    pub(crate) fn circuits(&self) -> usize {
        let Counters {
            relay,
            hop,
            exit,
            service,
            ..
        } = &*self.counters;
        let roles = [relay, hop, exit, service];
        roles.iter().map(|role| role.active.load(Relaxed)).sum()
    }

    /// Whether [`Self::drain`] has begun.
    pub(crate) fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Does `work` until it is done, or [`Self::drain`] begins.
    pub(crate) async fn until_drain<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.drain.run_until_cancelled(work).await
    }

    /// What is done for others holds one while it lasts.
    pub(crate) fn serving(&self) -> TaskTrackerToken {
        self.served.token()
    }

    /// Takes no more calls, ends all connections and waits for every task.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.carrier.close().await;
        // Where it is off there is nothing to stop.
        let _ = self.tor.stop().await;
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Whatever others tell, the records of peers and guards have places; relays of this node are
    /// peers.
    fn keep_places(&self) {
        let known = self.peers.known();
        let peers = known.iter().map(|peer| peer.id);
        self.records.set_kept(peers.chain(self.guards()));
    }

    /// Refuses addresses that are never dialled for others.
    pub(crate) fn check_ban(
        &self,
        transport: Transport,
        address: SocketAddr,
        allow_private: bool,
    ) -> Result<(), Ban> {
        let own = self.own_sockets.contains(transport, address)
            || (!allow_private && self.is_here(address.ip()));
        match ban::banned(address.ip(), allow_private) {
            Some(ban) => Err(ban),
            None if own => Err(Ban::Own),
            None => Ok(()),
        }
    }

    /// Refuses addresses of nodes that another node named and that are never dialled for it; those
    /// of this node's own neighbourhood too, unless all of `homes` are in such a one.
    pub(crate) fn check_near<'a>(
        &self,
        address: SocketAddr,
        allow_private: bool,
        homes: impl IntoIterator<Item = &'a SocketAddr>,
    ) -> Result<(), Ban> {
        let homes = homes.into_iter().map(|home| ban::banned(home.ip(), false));
        // None: one of them is anywhere.
        let homes: Option<Vec<Ban>> = homes.collect();
        match (
            self.check_ban(Transport::Udp, address, allow_private),
            homes,
        ) {
            (Err(ban), Some(homes)) if homes.contains(&ban) => Ok(()),
            (checked, _) => checked,
        }
    }

    /// Whether `ip` is where others reach this node: behind a NAT no socket here has that address,
    /// and what is dialled there may come back in.
    /// Whether this machine has the address, or is known by it.
    fn is_here(&self, ip: IpAddr) -> bool {
        ban::is_local(ip) || self.is_advertised(ip)
    }

    fn is_advertised(&self, ip: IpAddr) -> bool {
        let mut advertised = self.config.node.advertise.iter().map(SocketAddr::ip);
        advertised.any(|own| own.to_canonical() == ip.to_canonical())
    }

    /// Runs `task` until it ends or the node stops.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        // What waits for a future holds room for it several times over; for a box it costs nothing.
        let task = Box::pin(task);
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn carrier(&self) -> &Carrier {
        &self.carrier
    }

    pub(crate) fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    pub(crate) fn records(&self) -> &Records {
        &self.records
    }

    pub(crate) fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    pub(crate) fn own_sockets(&self) -> &OwnSockets {
        &self.own_sockets
    }

    pub(crate) fn gatekeeper(&self) -> &dyn Gatekeeper {
        &*self.gatekeeper
    }

    pub(crate) fn witness(&self) -> Option<Arc<dyn Witness>> {
        self.options.witness.clone()
    }

    pub(crate) fn idle_timeout(&self) -> Duration {
        self.options.idle_timeout.unwrap_or(serve::IDLE_TIMEOUT)
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn hop(&self) -> &Role {
        &self.hop
    }

    pub(crate) fn hop_keys(&self) -> &HopKeys {
        &self.hop_keys
    }

    pub(crate) fn onion(&self) -> &OnionClient {
        &self.onion
    }

    /// None where config.toml names no router.
    pub(crate) fn i2p(&self) -> Option<&I2p> {
        self.i2p.as_ref()
    }

    pub(crate) fn relay(&self) -> &Role {
        &self.relay
    }

    pub(crate) fn relay_desk(&self) -> &RelayDesk {
        &self.relay_desk
    }

    pub(crate) fn usage(&self) -> &UsageBook {
        &self.usage
    }

    pub(crate) fn trunk_desk(&self) -> &TrunkDesk {
        &self.trunk_desk
    }

    pub(crate) fn moving_desk(&self) -> &MovingDesk {
        &self.moving_desk
    }

    pub(crate) fn tor(&self) -> &Arc<Tor> {
        &self.tor
    }

    /// A secret of this node for one purpose.
    pub(crate) fn derive(&self, purpose: &[u8]) -> Zeroizing<[u8; 32]> {
        self.identity.derive(purpose)
    }

    /// Signs as this node. Whoever asks separates what it has signed from all else.
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.identity.sign(message)
    }

    pub(crate) fn exit(&self) -> &Role {
        &self.exit
    }
}

/// Peers that this node shall be reachable through.
fn relays_in<'a>(peers: impl IntoIterator<Item = &'a PeerConfig>) -> Vec<NodeId> {
    let relays = peers.into_iter().filter(|peer| peer.register);
    relays.map(|peer| peer.id).collect()
}
