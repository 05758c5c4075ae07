//! What the rooms of a node share.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

use tokio::{runtime, sync::mpsc, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wormholes_host::InstanceReport;
use wormholes_proto::{NodeId, Transport};
use wormholes_rules::RuleEvent;

use super::{NodeError, NodeOptions};
use crate::{
    config::{Config, PeerConfig, PluginConfig},
    control::AddedPeers,
    counters::Counters,
    entrance::{Entrance, Pending},
    events::Events,
    flow::{FlowTable, Sticks},
    metrics::Metrics,
    network::Network,
    pipe::{Pace, Room},
    plugins::Plugins,
    policy::{Deciders, Granted, PolicyHost},
    program::Programs,
};

/// Datagrams of programs whose tunnels open, or are slow: beyond it, they are dropped.
const MAX_WAITING_DATAGRAM_BYTES: usize = 32 << 20;

/// The parts of a running node.
#[derive(Debug)]
pub struct NodeCore {
    /// As it was at the start; `policy` holds the rules in force, [`Self::config_peers`] the peers.
    pub config: Config,
    /// Peers, tunnels and roles.
    pub network: Arc<Network>,
    /// The rules.
    pub policy: Arc<PolicyHost>,
    /// Flows, and why they went as they did.
    pub flows: Arc<FlowTable>,
    /// Peers that were added to those of the config.
    pub(crate) added: AddedPeers,
    /// When the node started.
    pub started: Instant,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) events: Arc<Events>,
    pub(crate) programs: Arc<Programs>,
    /// Connections that have not yet said where they go.
    pub(crate) pending: Arc<Pending>,
    /// See [`NodeOptions::owns_process`].
    pub(crate) owns_process: bool,
    /// Everything that runs for entrances and flows.
    pub(crate) tasks: TaskTracker,
    /// Where it runs, whoever asks for it.
    pub(crate) runtime: runtime::Handle,
    /// No more flows.
    pub(crate) stop: CancellationToken,
    /// No flows at all.
    pub(crate) kill: CancellationToken,
    /// Which step plans begin with that stick.
    pub(crate) sticks: Sticks,
    /// What all flows keep to together, where config.toml wants that.
    pub(crate) pace: Option<Arc<Pace>>,
    /// What waits for the UDP flows of programs, all together.
    pub(crate) datagram_room: Arc<Room>,
    entrances: OnceLock<Vec<EntranceInfo>>,
    plugins: OnceLock<Plugins>,
    metrics_address: OnceLock<SocketAddr>,
    http_address: OnceLock<SocketAddr>,
    /// One reload at a time: the later one reads the later file.
    pub(super) reloading: Mutex<()>,
    restart_for: Mutex<Vec<String>>,
    /// Held while it is put in force together with the peers that were added.
    config_peers: Mutex<Vec<PeerConfig>>,
}

/// An open entrance.
#[derive(Debug, Clone)]
pub struct EntranceInfo {
    /// `socks5`, `http` or `tcp`.
    pub kind: &'static str,
    /// Where it listens, with the port that the system chose.
    pub listen: SocketAddr,
    /// Its label in config.toml.
    pub label: Option<String>,
}

impl NodeCore {
    /// The entrances that are open, in the order of the config.
    pub fn entrances(&self) -> &[EntranceInfo] {
        self.entrances.get().map_or(&[], Vec::as_slice)
    }

    /// Where `/metrics` is served, with the port that the system chose.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address.get().copied()
    }

    /// Where plugins answer HTTP requests, with the port that the system chose.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address.get().copied()
    }

    /// The plugins, once they are started.
    pub(crate) fn plugins(&self) -> Option<&Plugins> {
        self.plugins.get()
    }

    /// The plugins that run, as config.toml had them when they were loaded or updated last.
    pub(crate) fn plugin_configs(&self) -> Vec<PluginConfig> {
        let running = self.plugins().map(Plugins::configs);
        running.unwrap_or_else(|| self.config.plugins.clone())
    }

    pub(super) fn use_plugins(&self, plugins: Plugins) {
        // Set once: a node starts its plugins once.
        let _ = self.plugins.set(plugins);
    }

    /// Keys of the config file (`limits.flows`; `[[entrance]]` for a list) that were changed since
    /// the start, as far as the file was read again, and that wait for a restart.
    pub fn restart_for(&self) -> Vec<String> {
        let keys = self.restart_for.lock();
        keys.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_restart_for(&self, keys: Vec<String>) {
        let waiting = self.restart_for.lock();
        *waiting.unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// The peers of config.toml that are in force.
    pub fn config_peers(&self) -> Vec<PeerConfig> {
        self.lock_config_peers().clone()
    }

    pub(crate) fn is_config_peer(&self, id: &NodeId) -> bool {
        self.lock_config_peers().iter().any(|peer| peer.id == *id)
    }

    /// The peers of config.toml, and those that were added.
    pub(crate) fn all_peers(&self) -> Vec<PeerConfig> {
        self.added.with(&self.lock_config_peers())
    }

    /// Puts the peers of a config that was read again in force; connections to those that stay
    /// live on.
    pub(super) fn set_config_peers(&self, mut read: Vec<PeerConfig>) {
        read.retain(|peer| peer.id != self.network.id());
        let mut peers = self.lock_config_peers();
        if *peers != read {
            *peers = read;
            self.network.set_peers(&self.added.with(&peers));
        }
    }

    /// Puts peers that were added or removed in force.
    pub(crate) fn use_added_peers(&self) {
        let peers = self.lock_config_peers();
        self.network.set_peers(&self.added.with(&peers));
    }

    fn lock_config_peers(&self) -> MutexGuard<'_, Vec<PeerConfig>> {
        let peers = self.config_peers.lock();
        peers.unwrap_or_else(PoisonError::into_inner)
    }

    /// Metrics are served at `address`, which no flow reaches from now on.
    pub(super) fn serves_metrics_at(&self, address: SocketAddr) {
        self.network.protect_socket(Transport::Tcp, address);
        // Set once: a node serves its metrics at one address.
        let _ = self.metrics_address.set(address);
    }

    /// Plugins answer at `address`. It opens no flow, so that a service may lead there.
    pub(super) fn answers_http_at(&self, address: SocketAddr) {
        // Set once: a node opens its gateway once.
        let _ = self.http_address.set(address);
    }

    /// Takes connections at `entrances`, and at once keeps flows from reaching them.
    pub(super) fn open_entrances(self: &Arc<Self>, entrances: Vec<Entrance>) {
        let infos = entrances.iter().map(|entrance| EntranceInfo {
            kind: entrance.config().kind.as_str(),
            listen: entrance.address(),
            label: entrance.config().label.clone(),
        });
        // Set once: a node opens its entrances once.
        let _ = self.entrances.set(infos.collect());
        for entrance in &entrances {
            let transport = entrance.config().kind.transport();
            self.network.protect_socket(transport, entrance.address());
        }
        for entrance in entrances {
            self.tasks.spawn(entrance.run(Arc::clone(self)));
        }
    }

    /// Runs `task` until it ends or the node stops.
    pub(crate) fn spawn_until_stop(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        })
    }

    /// The Prometheus text format, with what was counted elsewhere until now.
    pub(crate) fn render_metrics(&self) -> Result<Vec<u8>, prometheus::Error> {
        self.render_metrics_with(self.plugins().map(Plugins::reports).unwrap_or_default())
    }

    /// As [`Self::render_metrics`], with no names that somebody gave.
    pub(crate) fn render_metrics_without_names(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut plugins = self.plugins().map(Plugins::reports).unwrap_or_default();
        for (number, plugin) in (1..).zip(&mut plugins) {
            plugin.name = number.to_string().into();
        }
        self.render_metrics_with(plugins)
    }

    fn render_metrics_with(
        &self,
        plugins: Vec<InstanceReport>,
    ) -> Result<Vec<u8>, prometheus::Error> {
        let tasks = self.runtime.metrics().num_alive_tasks();
        self.metrics.set_tasks(tasks);
        self.metrics.set_flows(&self.flows.totals());
        self.metrics.set_network(self.network.counters());
        self.metrics.set_tor(self.network.tor());
        self.metrics.set_peers(self.round_trips());
        let sessions = self.network.i2p().map_or(0, |i2p| i2p.summary().ready);
        let sessions = i64::try_from(sessions).unwrap_or(i64::MAX);
        self.metrics.i2p_sessions_open.set(sessions);
        self.metrics.render(&plugins)
    }

    /// Round trips to connected peers, in seconds.
    fn round_trips(&self) -> Vec<f64> {
        let world = self.network.world();
        let online = world.nodes().iter().filter(|node| node.online);
        online
            .map(|node| node.rtt_ms.unwrap_or_default() / 1000.0)
            .collect()
    }
}

/// Loads the rules and starts the network; nothing takes flows yet.
pub(crate) fn assemble(
    config: Config,
    options: &NodeOptions,
) -> Result<(Arc<NodeCore>, mpsc::Receiver<RuleEvent>), NodeError> {
    let metrics = Metrics::new()?;
    let events = Arc::new(Events::new());
    let added = AddedPeers::load(&config.node.data_dir)?;
    let all_peers = added.with(&config.peers);
    let peers = all_peers.iter();
    let known_peers = peers.flat_map(|peer| [peer.name.clone(), peer.id.to_string()]);
    let (policy, rule_events) = PolicyHost::start(
        &config.rules,
        known_peers.collect(),
        (Granted::to(&config.plugins), config.lacking_tunnels()),
        Deciders::new().map_err(NodeError::Deciders)?,
        Arc::clone(&metrics),
        Arc::clone(&events),
    )?;
    let gatekeeper = Arc::clone(&policy);
    let counters = Arc::new(Counters::default());
    let with_added = Config {
        peers: all_peers,
        ..config.clone()
    };
    let network = Network::start(with_added, options.network.clone(), gatekeeper, counters)?;
    policy.attach(&network);
    // The members of a network may all have the same list of peers, themselves in it.
    let mut config_peers = config.peers.clone();
    config_peers.retain(|peer| peer.id != network.id());
    let core = NodeCore {
        flows: FlowTable::new(&config.limits, config.rules.record_decisions),
        pending: Pending::new(
            config.limits.pending_connections,
            metrics.connections_pending.clone(),
        ),
        sticks: Sticks::default(),
        pace: match config.limits.bytes_per_second {
            0 => None,
            rate => Some(Arc::new(Pace::new(rate))),
        },
        config,
        network,
        policy,
        added,
        started: Instant::now(),
        metrics,
        events,
        programs: Arc::default(),
        owns_process: options.owns_process,
        tasks: TaskTracker::new(),
        runtime: runtime::Handle::current(),
        stop: CancellationToken::new(),
        kill: CancellationToken::new(),
        datagram_room: Room::new(MAX_WAITING_DATAGRAM_BYTES),
        entrances: OnceLock::new(),
        plugins: OnceLock::new(),
        metrics_address: OnceLock::new(),
        http_address: OnceLock::new(),
        reloading: Mutex::default(),
        restart_for: Mutex::default(),
        config_peers: Mutex::new(config_peers),
    };
    Ok((Arc::new(core), rule_events))
}
