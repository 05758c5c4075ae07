//! `[tor]` and `[tor.network]`, and what else of the config has to do with Tor.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use toml::de::DeTable;
use wormholes_proto::{CarrierKind, OnionAddress};
use wormholes_tor::{Authority, Authorization, Fallback, PrivateNetwork, check_bridge};

use super::{
    NodeConfig, PeerConfig, ServiceConfig,
    read::{Document, Table},
    sections::{check_published, path},
};

/// What the node's own onion address is called beside the names of services: no service may be called so
/// where that is published.
pub(crate) const NODES_OWN: &str = "peers";
/// Bridges of one node: Tor uses a few of them.
const MAX_BRIDGES: usize = 64;
/// The port of QUIC and TCP between nodes; at an onion address it tells nobody anything.
const DEFAULT_PEERS_PORT: u16 = 4433;

/// `[tor]`
#[derive(Debug, Clone, PartialEq)]
pub struct TorConfig {
    /// Off by default.
    pub enabled: bool,
    /// Guards, keys and what the directory said; none: `tor` in the data folder.
    pub state_dir: Option<PathBuf>,
    /// Publish an onion address at which peers reach this node.
    pub peers: bool,
    /// The port of that address.
    pub peers_port: u16,
    /// Bridge lines; with any, no other relay is called.
    pub bridges: Vec<String>,
    /// Names of pluggable transports, with the programs that speak them.
    pub transports: BTreeMap<String, PathBuf>,
    /// Keys for onion services that ask for one.
    pub authorizations: Vec<Authorization>,
    /// `[tor.network]`: a Tor network of one's own.
    pub network: Option<PrivateNetwork>,
}

/// How a `[[service]]` is published as an onion service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnionServiceConfig {
    /// The port that others call.
    pub port: u16,
    /// Who finds it, by name and key; none: whoever knows its address.
    pub clients: Vec<(String, String)>,
}

impl Default for TorConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            state_dir: None,
            peers: false,
            peers_port: DEFAULT_PEERS_PORT,
            bridges: Vec::new(),
            transports: BTreeMap::new(),
            authorizations: Vec::new(),
            network: None,
        }
    }
}

/// `[tor]`, with `[tor.network]` below it.
pub(super) fn tor<'a>(
    document: &'a Document<'a>,
    root: &'a DeTable<'a>,
    folder: &Path,
    node: &NodeConfig,
) -> TorConfig {
    let table = document.section(root, "tor");
    let default = TorConfig::default();
    let transports = table.map("transports", |_, text| path(folder, text));
    let port = table.integer("peers_port", 1..=u64::from(u16::MAX));
    let tor = TorConfig {
        enabled: table.boolean("enabled").unwrap_or(default.enabled),
        state_dir: table.parsed("state_dir", |text| path(folder, text)),
        peers: table.boolean("peers").unwrap_or(default.peers),
        peers_port: port
            .and_then(|port| port.try_into().ok())
            .unwrap_or(default.peers_port),
        bridges: table.list("bridges", bridge).unwrap_or_default(),
        transports: transports.unwrap_or_default().into_iter().collect(),
        authorizations: table
            .list("authorizations", str::parse::<Authorization>)
            .unwrap_or_default(),
        network: document
            .section_below(&table, "tor.network")
            .map(|network| private_network(&network)),
    };
    if tor.bridges.len() > MAX_BRIDGES {
        table.problem("bridges", format!("more than {MAX_BRIDGES}"));
    }
    for line in &tor.bridges {
        if let Some(name) = transport_of(line).filter(|name| !tor.transports.contains_key(*name)) {
            let message = format!("no program is named for {name:?}: add it to `transports`");
            table.problem("bridges", message);
        }
    }
    if tor.enabled && !wormholes_tor::IS_HERE {
        let message = "this build has no Tor: it needs the feature `tor`";
        table.problem("enabled", message);
    }
    if tor.peers && !tor.enabled {
        table.problem("peers", "needs `enabled = true` beside it");
    }
    if tor.peers && !node.carriers.contains(&CarrierKind::Tcp) {
        table.problem("peers", "needs \"tcp\" among `carriers` in [node]");
    }
    tor
}

fn private_network(table: &Table<'_>) -> PrivateNetwork {
    let authorities = table.list("authorities", str::parse::<Authority>);
    let fallbacks = table.list("fallbacks", str::parse::<Fallback>);
    for (key, is_empty) in [
        ("authorities", authorities.as_ref().map(Vec::is_empty)),
        ("fallbacks", fallbacks.as_ref().map(Vec::is_empty)),
    ] {
        // What cannot be read is a problem of its own.
        if is_empty.unwrap_or(!table.has(key)) {
            table.problem(key, "missing: a network of one's own has some");
        }
    }
    PrivateNetwork {
        authorities: authorities.unwrap_or_default(),
        fallbacks: fallbacks.unwrap_or_default(),
        allow_private: table.boolean("allow_private").unwrap_or(false),
    }
}

/// `onion`, `onion_port` and `onion_clients` of a service whose other keys were read.
pub(super) fn onion_service(table: &Table<'_>, port: u16) -> Option<OnionServiceConfig> {
    let is_onion = table.boolean("onion").unwrap_or(false);
    let chosen = table.integer("onion_port", 1..=u64::from(u16::MAX));
    let clients = table.map("onion_clients", |name, key| {
        check_client_name(name)?;
        wormholes_tor::check_client_key(key).map_err(|error| error.to_string())?;
        Ok::<_, String>(key.to_owned())
    });
    for key in ["onion_port", "onion_clients"] {
        if table.has(key) && !is_onion {
            table.problem(key, "needs `onion = true` beside it");
        }
    }
    is_onion.then(|| OnionServiceConfig {
        port: chosen.and_then(|port| port.try_into().ok()).unwrap_or(port),
        clients: clients.unwrap_or_default(),
    })
}

/// Whether a service can be what its config says, as far as that has to do with Tor.
pub(super) fn check_service(table: &Table<'_>, service: &ServiceConfig, tor: &TorConfig) {
    if service.onion.is_none() {
        return;
    }
    if !tor.enabled {
        table.problem("onion", "needs Tor: set `enabled = true` under [tor]");
    }
    check_published(table, service, ("onion", "Tor"));
    if tor.peers && service.name.as_str() == NODES_OWN {
        let message = "with `peers = true` under [tor], \"peers\" is the node's own address";
        table.problem("name", message);
    }
}

/// Whether a peer can be reached where its config says, as far as that has to do with Tor.
pub(super) fn check_peer(table: &Table<'_>, peer: &PeerConfig, node: &NodeConfig, tor: &TorConfig) {
    if peer.onions.is_empty() {
        return;
    }
    if !tor.enabled {
        let message = "an onion address needs Tor: set `enabled = true` under [tor]";
        table.problem("addresses", message);
    }
    if !node.carriers.contains(&CarrierKind::Tcp) {
        let message = "an onion address needs \"tcp\" among `carriers` in [node]";
        table.problem("addresses", message);
    }
}

/// Takes the onion addresses out of a peer's addresses.
pub(super) fn split_addresses(
    addresses: Vec<PeerAddress>,
) -> (Vec<std::net::SocketAddr>, Vec<OnionAddress>) {
    let (mut sockets, mut onions) = (Vec::new(), Vec::new());
    for address in addresses {
        match address {
            PeerAddress::Socket(socket) => sockets.push(socket),
            PeerAddress::Onion(onion) => onions.push(onion),
        }
    }
    (sockets, onions)
}

/// Where a peer is dialled.
#[derive(Debug)]
pub(super) enum PeerAddress {
    Socket(std::net::SocketAddr),
    Onion(OnionAddress),
}

/// A bridge line, without the word `Bridge`.
fn bridge(text: &str) -> Result<String, String> {
    check_bridge(text).map(|()| text.to_owned())
}

/// The pluggable transport that a bridge line begins with; none where it begins with an address.
fn transport_of(line: &str) -> Option<&str> {
    let word = line.split_whitespace().next()?;
    let is_plain = word.parse::<std::net::SocketAddr>().is_ok();
    (!is_plain).then_some(word)
}

fn check_client_name(name: &str) -> Result<(), String> {
    let is_letter = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-')
    };
    let is_good = !name.is_empty() && !name.starts_with('-') && name.bytes().all(is_letter);
    match is_good {
        true => Ok(()),
        false => Err("the name of a client has letters a-z, digits, `_` and `-`".to_owned()),
    }
}
