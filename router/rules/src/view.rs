//! What scripts see: snapshots that the daemon fills. Nothing here is live.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use wormholes_proto::{NodeId, Roles, ServiceName};

use crate::recording::wire;

/// Nodes that `relays()` and `peers()` give: the nearest first, so that a script that looks at all
/// of them stays within its limits.
const MAX_LISTED: usize = 256;

/// A word that the host knows. By this name, since serde would lend a `&str` of the text it reads.
type Word = &'static str;

/// One flow, as `route(c)` sees it. A field that cost I/O is `None` unless a loaded script names
/// it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conn {
    /// The flow's number.
    pub id: u64,
    /// 0, then 1 and 2 when all steps of an open plan failed.
    pub attempt: u8,
    /// What the attempt before failed with.
    pub last_error: Option<String>,
    /// `socks5`, `http`, `tcp`, `udp`, `embed` or `plugin`.
    #[serde(with = "wire::word")]
    pub entrance: Word,
    /// The entrance's label in config.toml; the plugin's.
    pub label: Option<String>,
    /// `tcp` or `udp`.
    #[serde(with = "wire::word")]
    pub network: Word,
    /// The name as asked for, or the address in text.
    pub host: String,
    /// The address: a literal, or the first that `need("ip")` found.
    pub ip: Option<IpAddr>,
    /// All addresses that `need("ip")` found, of both families, in the order of the dial.
    pub ips: Vec<IpAddr>,
    /// The port.
    pub port: u16,
    /// For `<service>.<node>.wh`: the node, when it is known.
    pub node: Option<NodeId>,
    /// For `.wh` names: the service; none is the node's default.
    #[serde(with = "wire::service")]
    pub service: Option<ServiceName>,
    /// Name of the program's executable, without its folder.
    pub app: Option<String>,
    /// Path of the program's executable.
    pub app_path: Option<String>,
    /// The program's user.
    pub uid: Option<u32>,
    /// SOCKS or proxy user name.
    pub user: Option<String>,
    /// The instance of the plugin that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    /// The role that the plugin has in what it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Where the program connected from.
    pub src: Option<IpAddr>,
    /// 63 random bits, the flow's own.
    pub rand: i64,
    /// When it was asked.
    pub now: SystemTime,
    /// The name that the program's TLS asks for.
    #[serde(default, skip_serializing_if = "Sni::is_unread")]
    pub sni: Sni,
    /// Local hour, 0 to 23, and weekday, 1 (Monday) to 7.
    pub hour: u8,
    /// See `hour`.
    pub weekday: u8,
}

/// The server name in a flow's TLS ClientHello (RFC 6066, section 3). To read it, the program has to
/// be told that its flow is open; so it is read when a script asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sni {
    /// Nobody looked.
    #[default]
    Unread,
    /// In lower case, without a final dot; none: the flow did not begin with TLS that names a
    /// server.
    Read(Option<String>),
}

/// A peer or a relay, as scripts see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// What people and scripts read: a peer's petname; else how the id begins, and `…`, which no
    /// petname contains. Only a peer is found by it.
    pub name: String,
    /// The operator gave it its name: it stands in config.toml, or was added.
    pub is_peer: bool,
    /// The node id.
    pub id: NodeId,
    /// 0 stranger, 1 friend of a friend, 2 friend, 3 own device.
    pub trust: u8,
    /// A connection to it stands.
    pub online: bool,
    /// Round trip in milliseconds over the standing connection.
    #[serde(with = "wire::exact_option")]
    pub rtt_ms: Option<f64>,
    /// Lost packets, 0 to 1, over the standing connection.
    #[serde(with = "wire::exact")]
    pub loss: f64,
    /// How full the fullest of its roles is, 0 to 1: what it said over the standing connection, at
    /// most five minutes ago.
    #[serde(with = "wire::exact")]
    pub load: f64,
    /// It has addresses that this node may dial.
    pub has_address: bool,
    /// Relays that it can be reached through.
    pub relays: Vec<NodeId>,
    /// The roles that its record offers.
    pub roles: Roles,
    /// The family that its record names; none when it names none.
    pub family: Option<String>,
    /// Facts about it by name (`credit`, …), set by plugins.
    pub facts: BTreeMap<String, i64>,
}

impl Conn {
    /// A flow of which no more is known than where it goes: at the first attempt, from a SOCKS5
    /// entrance, on a Monday at noon. What tests and measurements begin with.
    pub fn to(host: impl Into<String>, port: u16) -> Self {
        Self {
            id: 1,
            attempt: 0,
            last_error: None,
            entrance: "socks5",
            label: None,
            network: "tcp",
            host: host.into(),
            ip: None,
            ips: Vec::new(),
            port,
            node: None,
            service: None,
            app: None,
            app_path: None,
            uid: None,
            user: None,
            plugin: None,
            role: None,
            src: None,
            rand: 42,
            now: SystemTime::UNIX_EPOCH,
            sni: Sni::Read(None),
            hour: 12,
            weekday: 1,
        }
    }
}

impl Sni {
    fn is_unread(&self) -> bool {
        *self == Self::Unread
    }
}

impl NodeView {
    /// A node of which nothing is known but its id and what it is called.
    pub fn stranger(id: NodeId, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            is_peer: false,
            id,
            trust: 0,
            online: false,
            rtt_ms: None,
            loss: 0.0,
            load: 0.0,
            has_address: false,
            relays: Vec::new(),
            roles: Roles::default(),
            family: None,
            facts: BTreeMap::new(),
        }
    }
}

/// All nodes that scripts can name, replaced as a whole when it changes.
#[derive(Debug, Clone, Default)]
pub struct World {
    nodes: Vec<Arc<NodeView>>,
    by_id: HashMap<NodeId, Arc<NodeView>>,
    by_name: HashMap<String, Arc<NodeView>>,
    /// Sorted when a script first asks: each decision on this world may ask again and again.
    relays: OnceLock<Vec<Arc<NodeView>>>,
    peers: OnceLock<Vec<Arc<NodeView>>>,
}

impl World {
    /// Takes the known nodes. Of two peers with one name, the first keeps it.
    pub fn new(nodes: Vec<Arc<NodeView>>) -> Self {
        let mut world = Self::default();
        for node in &nodes {
            world.by_id.entry(node.id).or_insert_with(|| node.clone());
        }
        for peer in nodes.iter().filter(|node| node.is_peer) {
            let named = world.by_name.entry(peer.name.clone());
            named.or_insert_with(|| peer.clone());
        }
        world.nodes = nodes;
        world
    }

    /// All known nodes, in the order in which they were given.
    pub fn nodes(&self) -> &[Arc<NodeView>] {
        &self.nodes
    }

    /// The node with this id.
    pub fn by_id(&self, id: &NodeId) -> Option<&Arc<NodeView>> {
        self.by_id.get(id)
    }

    /// Relays, or else peers that are trusted at all: online ones first, then by round trip.
    pub(crate) fn nearest(&self, is_relay: bool) -> &[Arc<NodeView>] {
        match is_relay {
            true => self.relays.get_or_init(|| self.sorted(|n| n.roles.relay)),
            false => self.peers.get_or_init(|| self.sorted(|n| n.trust > 0)),
        }
    }

    fn sorted(&self, fits: fn(&NodeView) -> bool) -> Vec<Arc<NodeView>> {
        let rtt = |node: &NodeView| node.rtt_ms.unwrap_or(f64::INFINITY);
        let mut nodes: Vec<_> = self.nodes.iter().filter(|node| fits(node)).collect();
        nodes.sort_by(|a, b| {
            let online = b.online.cmp(&a.online);
            online.then(rtt(a).total_cmp(&rtt(b)))
        });
        let nearest = nodes.iter().take(MAX_LISTED);
        nearest.map(|node| Arc::clone(node)).collect()
    }

    /// The node that `text` means: a petname, a whole node id, or `[<service>.]<node>.wh`. A part
    /// of an id means nothing: anybody can make an id that begins as another's name.
    pub fn find(&self, text: &str) -> Option<&Arc<NodeView>> {
        let name = match text.strip_suffix(".wh") {
            Some(rest) => rest.rsplit('.').next().unwrap_or(rest),
            None => text,
        };
        self.by_name
            .get(name)
            .or_else(|| self.by_id.get(&name.parse().ok()?))
    }
}

/// Somebody asks this node to carry traffic to a registered node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RelayRequest {
    /// Who asks.
    #[serde(with = "wire::shared")]
    pub from: Arc<NodeView>,
    /// To whom.
    #[serde(with = "wire::shared")]
    pub to: Arc<NodeView>,
    /// Bytes carried for `from` since midnight UTC.
    pub bytes_today: u64,
    /// When.
    pub now: SystemTime,
}

/// Somebody asks this node to dial a target, or to look its name up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExitRequest {
    /// Who asks; none is the asker of an onion, who is nobody: the hop before only passes on.
    #[serde(with = "wire::shared_option")]
    pub from: Option<Arc<NodeView>>,
    /// The name as asked for, or the address in text.
    pub host: String,
    /// `tcp` or `udp`; none when the name is only looked up.
    #[serde(with = "wire::word_option")]
    pub network: Option<Word>,
    /// The address that will be dialled, or told.
    pub ip: IpAddr,
    /// The port; none when the name is only looked up.
    pub port: Option<u16>,
    /// Bytes carried for `from` since midnight UTC; for an onion, what came as onions through the
    /// same hop.
    pub bytes_today: u64,
    /// When.
    pub now: SystemTime,
}

/// A plugin asks a hook.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// The instance that asks.
    pub plugin: String,
    /// The hook, by a name that [`check_asked_hook`](crate::check_asked_hook) takes.
    pub name: String,
    /// What the hook is handed, as a map. Whoever asks bounds it: its depth above all.
    pub record: serde_json::Map<String, serde_json::Value>,
    /// When.
    pub now: SystemTime,
}

/// The kinds of events that there are.
pub(crate) const EVENT_KINDS: [&str; 2] = ["peer-up", "peer-down"];

/// What `on_event(e)` sees.
#[derive(Debug, Clone)]
pub struct RuleEvent {
    /// `peer-up` or `peer-down`.
    pub kind: String,
    /// The peer that it is about.
    pub peer: Option<Arc<NodeView>>,
    /// Why, in words for people.
    pub reason: String,
}
