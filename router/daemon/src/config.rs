//! config.toml as a total type: what is here can run. Defaults are those of a machine that only
//! uses the network: no role, loopback entrances. [`Config::load`] reads one; a program that
//! embeds a node may as well fill one in.

mod hint;
mod i2p;
mod keys;
mod load;
mod plugin;
mod read;
mod sections;
#[cfg(test)]
mod tests;
mod tor;
mod values;

pub use i2p::I2pConfig;
pub use load::{ConfigError, Problem};
pub use plugin::PluginConfig;
pub(crate) use plugin::http_paths;
pub(crate) use sections::petname;
pub(crate) use tor::NODES_OWN;
pub use tor::{OnionServiceConfig, TorConfig};

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use wormholes_proto::CarrierKind;
use wormholes_proto::{NodeId, OnionAddress, ServiceName, Target, Transport};
use wormholes_rules::{BUILD_LACKS_TOR, LACKS_I2P, LACKS_TOR};

/// Everything that an operator can set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    /// The file that it came from; a reload reads it again.
    pub file: Option<PathBuf>,
    /// `[node]`
    pub node: NodeConfig,
    /// `[[peer]]`
    pub peers: Vec<PeerConfig>,
    /// `[[entrance]]`
    pub entrances: Vec<EntranceConfig>,
    /// `[[service]]`
    pub services: Vec<ServiceConfig>,
    /// `[rules]`
    pub rules: RulesConfig,
    /// `[relay]`
    pub relay: RoleConfig,
    /// `[hop]`
    pub hop: HopConfig,
    /// `[exit]`
    pub exit: ExitConfig,
    /// `[plugin.NAME]`
    pub plugins: Vec<PluginConfig>,
    /// `[tor]`
    pub tor: TorConfig,
    /// `[i2p]`
    pub i2p: I2pConfig,
    /// `[limits]`
    pub limits: LimitsConfig,
    /// `[http]`
    pub http: HttpConfig,
    /// `[control]`
    pub control: ControlConfig,
    /// `[metrics]`
    pub metrics: MetricsConfig,
    /// `[log]`
    pub log: LogConfig,
}

/// `[node]`
#[derive(Debug, Clone, PartialEq)]
pub struct NodeConfig {
    /// A name for people; told to nobody.
    pub name: String,
    /// Keys and state, mode 0700.
    pub data_dir: PathBuf,
    /// Addresses that peers reach this node at; empty: none, this node only dials.
    pub listen: Vec<SocketAddr>,
    /// What it speaks with other nodes, the one that is tried first first. Never empty.
    pub carriers: Vec<CarrierKind>,
    /// Addresses told to peers in the node record; empty: the listen addresses that are not
    /// unspecified.
    pub advertise: Vec<SocketAddr>,
    /// Networks that this node is part of.
    pub networks: Vec<String>,
    /// Nodes of one family are never hops of one path.
    pub family: Option<String>,
    /// Tell peers, through relays, where they may call this node, for a direct path through NATs.
    pub punch: bool,
    /// Only peers of at least this trust are asked for that, and told.
    pub punch_trust: u8,
}

/// `[[peer]]`
#[derive(Debug, Clone, PartialEq)]
pub struct PeerConfig {
    /// Petname, unique.
    pub name: String,
    /// Node id.
    pub id: NodeId,
    /// Where to dial it; may be empty when `via` names relays.
    pub addresses: Vec<SocketAddr>,
    /// Where to dial it through Tor, when none of its other addresses answers.
    pub onions: Vec<OnionAddress>,
    /// 0 stranger, 1 friend of a friend, 2 friend (default), 3 own device.
    pub trust: u8,
    /// Petnames of relays that it is registered with.
    pub via: Vec<String>,
    /// Ask it to be this node's relay: register with it and stay connected.
    pub register: bool,
}

/// `[[entrance]]`
#[derive(Debug, Clone, PartialEq)]
pub struct EntranceConfig {
    /// What it speaks.
    pub kind: EntranceKind,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where a TCP or UDP forward goes.
    pub target: Option<Target>,
    /// `user = "password"`; required beyond loopback.
    pub users: BTreeMap<String, Secret>,
    /// `c.label` in scripts.
    pub label: Option<String>,
}

/// What an entrance speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntranceKind {
    /// SOCKS5 (RFC 1928, RFC 1929), and SOCKS4 where it has no users.
    Socks5,
    /// HTTP proxy: CONNECT and absolute-form (RFC 9110, RFC 9112).
    Http,
    /// Every connection goes to one target.
    Tcp,
    /// Every datagram goes to one target, each sender's in a flow of its own.
    Udp,
}

/// A text that no log, error or debug output shows.
#[derive(Clone, Default, PartialEq, Eq, zeroize::ZeroizeOnDrop)]
pub struct Secret(String);

/// `[[service]]`
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceConfig {
    /// Its name in `<name>.<node>.wh`.
    pub name: ServiceName,
    /// The local address that it runs at.
    pub target: SocketAddr,
    /// What it speaks.
    pub transport: Transport,
    /// Lowest trust that may use it; default 2.
    pub min_trust: u8,
    /// It is an onion service of Tor too.
    pub onion: Option<OnionServiceConfig>,
    /// It is a destination of I2P too.
    pub i2p: bool,
}

/// `[rules]`
#[derive(Debug, Clone, PartialEq)]
pub struct RulesConfig {
    /// Script files in order; paths relative to the config file.
    pub scripts: Vec<PathBuf>,
    /// What happens to flows that no script answers.
    pub default: DefaultRule,
    /// Named sets: files of domain suffixes, addresses and CIDR blocks.
    pub sets: BTreeMap<String, PathBuf>,
    /// How many decisions are kept for `why`; 0 keeps none.
    pub record_decisions: usize,
    /// Where the config names those files.
    pub lines: RuleLines,
}

/// The lines of the config that name the files of the rules, for errors. They are no part of what
/// the config says: two that differ in them only are the same.
#[derive(Debug, Clone, Default)]
pub struct RuleLines {
    /// Of each script.
    pub scripts: Vec<usize>,
    /// Of each set, by its name.
    pub sets: BTreeMap<String, usize>,
}

impl PartialEq for RuleLines {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// The answer when no script answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DefaultRule {
    /// End the flow.
    #[default]
    Block,
    /// Dial from here.
    Direct,
}

/// `[relay]`: a role with its limits; those of `[hop]` and `[exit]` are the same.
#[derive(Debug, Clone, PartialEq)]
pub struct RoleConfig {
    /// Off by default.
    pub enabled: bool,
    /// At once, in all.
    pub max_circuits: usize,
    /// At once, per peer.
    pub max_circuits_per_peer: usize,
    /// Bytes a second, per peer; 0 is no limit.
    pub bytes_per_second_per_peer: u64,
    /// Bytes of one circuit; 0 is no limit.
    pub max_bytes_per_circuit: u64,
    /// A circuit on which nothing moves ends after this.
    pub idle: Duration,
}

/// `[hop]`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HopConfig {
    /// The role with its limits.
    pub role: RoleConfig,
    /// Lifts the ban on private addresses of next hops: tests and intranets. A node that itself is
    /// only at private addresses of a kind may always be a neighbour of others there.
    pub allow_private: bool,
}

/// `[exit]`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExitConfig {
    /// The role with its limits.
    pub role: RoleConfig,
    /// `0.0.0.0/0:80,443`; empty allows nothing.
    pub allow: Vec<ExitRule>,
    /// Lifts the ban on private addresses that others name as targets, or in answers to look-ups of
    /// this node's own: tests and intranets.
    pub allow_private: bool,
}

/// Addresses and ports that an exit may dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitRule {
    /// The block.
    pub net: ipnet::IpNet,
    /// First and last port of each range; empty allows all.
    pub ports: Vec<(u16, u16)>,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq)]
pub struct LimitsConfig {
    /// Open flows at once; more are refused.
    pub flows: usize,
    /// Bytes a second of all flows together, both ways; 0 is no limit.
    pub bytes_per_second: u64,
    /// Flows to one target that are opening at once; more are refused until all of them are done.
    pub opening_per_target: usize,
    /// Connections at the entrances that have not yet said where they go; the oldest goes when
    /// there are more.
    pub pending_connections: usize,
    /// How long a program may take to say where it goes.
    pub handshake: Duration,
    /// How long a UDP flow may be silent before it ends.
    pub udp_idle: Duration,
    /// Peers connected at once.
    pub peers: usize,
    /// How long a stop waits for flows to end.
    pub drain: Duration,
}

/// `[control]`
#[derive(Debug, Clone, PartialEq)]
pub struct ControlConfig {
    /// The Unix socket; empty: `control.sock` in the data folder.
    pub socket: Option<PathBuf>,
    /// Its mode; default 0600.
    pub mode: u32,
    /// User ids beside the daemon's own and root that may change things; all others who can open
    /// the socket observe.
    pub operators: Vec<u32>,
}

/// `[http]`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HttpConfig {
    /// Where plugins answer HTTP requests; none: nowhere.
    pub listen: Option<SocketAddr>,
    /// The one host name that is answered to; none: `localhost` and addresses.
    pub domain: Option<String>,
    /// The certificate and those above it, PEM; with it, TLS alone is spoken.
    pub certificate: Option<PathBuf>,
    /// Its private key, PEM.
    pub key: Option<PathBuf>,
    /// Whom plugins believe that make requests over TLS, PEM; none: those whom the system believes.
    pub roots: Option<PathBuf>,
}

/// `[metrics]`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MetricsConfig {
    /// Where `/metrics` is served; none: nowhere.
    pub listen: Option<SocketAddr>,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq)]
pub struct LogConfig {
    /// A tracing filter; default `info`.
    pub level: String,
    /// One JSON object a line instead of text.
    pub json: bool,
    /// Mask targets and addresses; default on.
    pub mask: bool,
}

impl Config {
    /// Tunnels that this node does not have, each with why: scripts may not name them.
    pub(crate) fn lacking_tunnels(&self) -> BTreeMap<&'static str, &'static str> {
        let lacks_tor = match wormholes_tor::IS_HERE {
            true => LACKS_TOR,
            false => BUILD_LACKS_TOR,
        };
        let lacking = [
            (!self.tor.enabled, lacks_tor),
            (self.i2p.sam.is_none(), LACKS_I2P),
        ];
        let lacking = lacking.into_iter().filter(|(lacks, _)| *lacks);
        lacking.map(|(_, tunnel)| tunnel).collect()
    }
}

impl PeerConfig {
    /// All that it may be dialled at: its addresses, and what stands for those of Tor.
    pub fn ways(&self) -> impl Iterator<Item = SocketAddr> {
        let onions = self.onions.iter().map(OnionAddress::placeholder);
        self.addresses.iter().copied().chain(onions)
    }
}

impl Secret {
    /// Takes a text into custody.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether `text` is the secret; takes as long for a wrong text as for the right one.
    pub fn matches(&self, text: &[u8]) -> bool {
        use ring::digest::{SHA256, digest};
        // Digests of equal length leak nothing useful, whatever the comparison's timing is.
        digest(&SHA256, self.0.as_bytes()).as_ref() == digest(&SHA256, text).as_ref()
    }
}

impl EntranceKind {
    /// The word for it in config, scripts and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Socks5 => "socks5",
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// What its socket is.
    pub fn transport(self) -> Transport {
        match self {
            Self::Socks5 | Self::Http | Self::Tcp => Transport::Tcp,
            Self::Udp => Transport::Udp,
        }
    }

    /// Whether config.toml says where it goes.
    pub(crate) fn is_forward(self) -> bool {
        match self {
            Self::Tcp | Self::Udp => true,
            Self::Socks5 | Self::Http => false,
        }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            data_dir: PathBuf::from("/var/lib/wormholes"),
            listen: Vec::new(),
            carriers: CarrierKind::ALL.to_vec(),
            advertise: Vec::new(),
            networks: vec!["public".to_owned()],
            family: None,
            punch: true,
            punch_trust: 2,
        }
    }
}

impl Default for RulesConfig {
    fn default() -> Self {
        Self {
            scripts: Vec::new(),
            default: DefaultRule::Block,
            sets: BTreeMap::new(),
            record_decisions: 1024,
            lines: RuleLines::default(),
        }
    }
}

impl Default for RoleConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            max_circuits: 1024,
            max_circuits_per_peer: 64,
            bytes_per_second_per_peer: 0,
            max_bytes_per_circuit: 0,
            idle: Duration::from_secs(300),
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            flows: 16_384,
            bytes_per_second: 0,
            opening_per_target: 256,
            pending_connections: 1024,
            handshake: Duration::from_secs(10),
            // The least that RFC 4787 asks of who keeps such flows (REQ-5).
            udp_idle: Duration::from_secs(120),
            peers: 1024,
            drain: Duration::from_secs(30),
        }
    }
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            socket: None,
            mode: 0o600,
            operators: Vec::new(),
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            json: false,
            mask: true,
        }
    }
}
