//! One function a section: its keys, checked into its type.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use toml::de::DeTable;
use wormholes_proto::{
    MAX_CREDENTIAL_BYTES, MAX_FAMILY_BYTES, MAX_RECORD_ADDRESSES, NodeId, OnionAddress,
    ServiceName, Target, Transport, is_dialable, is_family,
};

use super::{
    Config, ControlConfig, DefaultRule, EntranceConfig, EntranceKind, ExitConfig, ExitRule,
    HopConfig, HttpConfig, LimitsConfig, LogConfig, MetricsConfig, NodeConfig, PeerConfig,
    RoleConfig, RuleLines, RulesConfig, Secret, ServiceConfig, TorConfig, i2p, plugin,
    read::{Document, Table},
    tor::{self, PeerAddress},
    values::{carrier, file_mode, log_level},
};

/// Counts beyond this are typing errors, and would not fit in memory.
const MAX_COUNT: u64 = 10_000_000;
/// Waits beyond a day are typing errors.
const MAX_SECONDS: u64 = 86_400;

/// Checks a whole document; problems are left in it.
pub(super) fn config<'a>(
    document: &'a Document<'a>,
    root: &'a DeTable<'a>,
    folder: &Path,
) -> Config {
    document.check_sections(root);
    let one = |name| document.section(root, name);
    let many = |name| document.sections(root, name);
    let node = node(&one("node"), folder);
    let tor = tor::tor(document, root, folder, &node);
    let i2p = one("i2p");
    check_state(&one("state"));
    let config = Config {
        file: None,
        peers: peers(&many("peer"), &node, &tor),
        entrances: entrances(&many("entrance")),
        services: services(&many("service"), &tor, i2p.has("sam")),
        rules: rules(&one("rules"), folder),
        relay: role(&one("relay")),
        hop: hop(&one("hop")),
        exit: exit(&one("exit")),
        plugins: plugin::plugins(document, root, folder),
        node,
        tor,
        i2p: i2p::i2p(&i2p),
        limits: limits(&one("limits")),
        http: http(&one("http"), folder),
        control: control(&one("control"), folder),
        metrics: metrics(&one("metrics")),
        log: log(&one("log")),
    };
    if config.node.listen.is_empty() {
        // Hops are called at the addresses of their records.
        if config.hop.role.enabled {
            let message = "nobody can call this node as a hop: set `listen` in [node]";
            one("hop").problem("enabled", message);
        }
        if config.relay.enabled && !config.tor.peers {
            let message = "nobody can reach this node: set `listen` in [node]";
            one("relay").problem("enabled", message);
        }
    }
    config
}

fn node(table: &Table<'_>, folder: &Path) -> NodeConfig {
    let default = NodeConfig::default();
    let node = NodeConfig {
        name: table.parsed("name", text).unwrap_or(default.name),
        data_dir: table
            .parsed("data_dir", |text| path(folder, text))
            .unwrap_or(default.data_dir),
        listen: table
            .list("listen", address_with_any_port)
            .unwrap_or(default.listen),
        carriers: table.list("carriers", carrier).unwrap_or(default.carriers),
        advertise: table.list("advertise", address).unwrap_or_default(),
        networks: table.list("networks", text).unwrap_or(default.networks),
        family: table.parsed("family", family),
        punch: table.boolean("punch").unwrap_or(default.punch),
        punch_trust: trust(table, "punch_trust"),
    };
    if node.carriers.is_empty() {
        table.problem("carriers", "this node could speak with nobody");
    }
    if node.advertise.len() > MAX_RECORD_ADDRESSES {
        table.problem(
            "advertise",
            format!("more than {MAX_RECORD_ADDRESSES} addresses"),
        );
    }
    if let Some(address) = node.advertise.iter().find(|address| !is_dialable(address)) {
        table.problem("advertise", format!("nobody can dial {address}"));
    }
    if node.networks != ["public"] {
        table.problem(
            "networks",
            "this build has no networks beside \"public\" yet",
        );
    }
    node
}

fn peers(tables: &[Table<'_>], node: &NodeConfig, tor: &TorConfig) -> Vec<PeerConfig> {
    let names = known_names(tables);
    let mut peers: Vec<PeerConfig> = Vec::new();
    for table in tables {
        let (name, id) = (
            table.required("name", petname),
            table.required("id", node_id),
        );
        let (Some(name), Some(id)) = (name, id) else {
            continue;
        };
        let addresses = table.list("addresses", peer_address).unwrap_or_default();
        let (addresses, onions) = tor::split_addresses(addresses);
        let peer = PeerConfig {
            name,
            id,
            addresses,
            onions,
            trust: trust(table, "trust"),
            via: table.list("via", text).unwrap_or_default(),
            register: table.boolean("register").unwrap_or(false),
        };
        if peers.iter().any(|other| other.name == peer.name) {
            table.problem("name", format!("a second peer {:?}", peer.name));
        }
        if peers.iter().any(|other| other.id == peer.id) {
            table.problem("id", "a second peer with this id");
        }
        if let Some(relay) = peer.via.iter().find(|relay| !names.contains(relay)) {
            table.problem("via", format!("no [[peer]] is named {relay:?}"));
        }
        if peer.register && peer.ways().next().is_none() {
            table.problem("register", "a relay needs `addresses`");
        }
        tor::check_peer(table, &peer, node, tor);
        peers.push(peer);
    }
    peers
}

fn known_names(tables: &[Table<'_>]) -> Vec<String> {
    let quiet = |table: &Table<'_>| table.quiet_text("name");
    tables.iter().filter_map(quiet).collect()
}

fn entrances(tables: &[Table<'_>]) -> Vec<EntranceConfig> {
    let mut entrances: Vec<EntranceConfig> = Vec::new();
    for table in tables {
        let kind = table.required("kind", entrance_kind);
        let listen = table.required("listen", address_with_any_port);
        let (Some(kind), Some(listen)) = (kind, listen) else {
            continue;
        };
        let users = table.map("users", credentials).unwrap_or_default();
        let entrance = EntranceConfig {
            kind,
            listen,
            target: table.parsed("target", str::parse::<Target>),
            users: users.into_iter().collect(),
            label: table.parsed("label", text),
        };
        check_entrance(table, &entrance);
        let is_there = |other: &EntranceConfig| {
            other.listen == listen && other.kind.transport() == kind.transport()
        };
        if listen.port() != 0 && entrances.iter().any(is_there) {
            table.problem("listen", format!("a second entrance at {listen}"));
        }
        entrances.push(entrance);
    }
    entrances
}

fn check_entrance(table: &Table<'_>, entrance: &EntranceConfig) {
    let kind = entrance.kind.as_str();
    let is_forward = entrance.kind.is_forward();
    match (is_forward, &entrance.target) {
        (true, None) => {
            table.problem(
                "target",
                format!("missing: a {kind} entrance goes to one target"),
            );
        }
        (false, Some(_)) => table.problem("target", "only a tcp or udp entrance has one"),
        (true, Some(_)) | (false, None) => {}
    }
    if is_forward && !entrance.users.is_empty() {
        let message = format!("a {kind} entrance has no way to ask who comes");
        table.problem("users", message);
    }
    if let Err(message) = entrance.check_exposure() {
        table.problem("listen", message);
    }
}

impl EntranceConfig {
    /// Whether strangers could use the entrance.
    ///
    /// # Errors
    /// It listens beyond loopback without users.
    pub(crate) fn check_exposure(&self) -> Result<(), &'static str> {
        let is_loopback = self.listen.ip().to_canonical().is_loopback();
        match self.kind {
            _ if is_loopback => Ok(()),
            // It asks nobody for a name, whatever `users` says.
            EntranceKind::Tcp => Err("a tcp entrance may listen on loopback only"),
            EntranceKind::Udp => Err("a udp entrance may listen on loopback only"),
            EntranceKind::Socks5 | EntranceKind::Http if self.users.is_empty() => {
                Err("an entrance beyond loopback needs `users`")
            }
            EntranceKind::Socks5 | EntranceKind::Http => Ok(()),
        }
    }
}

fn services(tables: &[Table<'_>], tor: &TorConfig, has_i2p_router: bool) -> Vec<ServiceConfig> {
    let mut services: Vec<ServiceConfig> = Vec::new();
    for table in tables {
        let name = table.required("name", ServiceName::parse);
        let target = table.required("target", address);
        let transport = table.parsed("network", |text| {
            Transport::parse(text).ok_or("expected \"tcp\" or \"udp\"")
        });
        let transport = transport.unwrap_or_default();
        let (Some(name), Some(target)) = (name, target) else {
            continue;
        };
        if name.is_trunk() {
            let kept = format!("{:?} is kept for plugins; take another name", name.as_str());
            table.problem("name", kept);
        }
        let is_taken = |other: &ServiceConfig| other.name == name && other.transport == transport;
        if services.iter().any(is_taken) {
            table.problem("name", format!("a second service {:?}", name.as_str()));
        }
        let service = ServiceConfig {
            name,
            target,
            transport,
            min_trust: trust(table, "min_trust"),
            onion: tor::onion_service(table, target.port()),
            i2p: table.boolean("i2p").unwrap_or(false),
        };
        tor::check_service(table, &service, tor);
        i2p::check_service(table, &service, has_i2p_router);
        services.push(service);
    }
    services
}

/// Whether a service can be published by its `key` in `network`: that carries streams, and tells of
/// nobody who he is.
pub(super) fn check_published(
    table: &Table<'_>,
    service: &ServiceConfig,
    (key, network): (&str, &str),
) {
    if service.transport == Transport::Udp {
        let message = format!("{network} carries streams: publish a service of network \"tcp\"");
        table.problem(key, message);
    }
    if service.min_trust > 0 {
        let message = format!(
            "who comes through {network} is nobody: set `min_trust = 0`, which opens the service \
             to all nodes that may connect, too"
        );
        table.problem(key, message);
    }
}

fn rules(table: &Table<'_>, folder: &Path) -> RulesConfig {
    let default = RulesConfig::default();
    let sets = table.map("sets", |_, text| path(folder, text));
    RulesConfig {
        scripts: table
            .list("scripts", |text| path(folder, text))
            .unwrap_or(default.scripts),
        default: table
            .parsed("default", default_rule)
            .unwrap_or(default.default),
        sets: sets.map_or(default.sets, BTreeMap::from_iter),
        record_decisions: table
            .count("record_decisions", 0..=1_000_000)
            .unwrap_or(default.record_decisions),
        lines: RuleLines {
            scripts: table.lines_of_list("scripts"),
            sets: table.lines_of_map("sets"),
        },
    }
}

fn role(table: &Table<'_>) -> RoleConfig {
    let default = RoleConfig::default();
    let bytes = |key, default| table.integer(key, 0..=u64::MAX).unwrap_or(default);
    let count = |key, default| table.count(key, 1..=MAX_COUNT).unwrap_or(default);
    RoleConfig {
        enabled: table.boolean("enabled").unwrap_or(default.enabled),
        max_circuits: count("max_circuits", default.max_circuits),
        max_circuits_per_peer: count("max_circuits_per_peer", default.max_circuits_per_peer),
        bytes_per_second_per_peer: bytes(
            "bytes_per_second_per_peer",
            default.bytes_per_second_per_peer,
        ),
        max_bytes_per_circuit: bytes("max_bytes_per_circuit", default.max_bytes_per_circuit),
        idle: table
            .seconds("idle_seconds", 1..=MAX_SECONDS)
            .unwrap_or(default.idle),
    }
}

fn hop(table: &Table<'_>) -> HopConfig {
    HopConfig {
        role: role(table),
        allow_private: table.boolean("allow_private").unwrap_or(false),
    }
}

fn exit(table: &Table<'_>) -> ExitConfig {
    let allow = table.list("allow", str::parse::<ExitRule>);
    // An `allow` that cannot be read is a problem of its own.
    let allows_nothing = allow.as_ref().map_or(!table.has("allow"), Vec::is_empty);
    let exit = ExitConfig {
        role: role(table),
        allow: allow.unwrap_or_default(),
        allow_private: table.boolean("allow_private").unwrap_or(false),
    };
    if exit.role.enabled && allows_nothing {
        table.problem("enabled", "an exit without `allow` dials nothing");
    }
    exit
}

/// There is one backend: to name it changes nothing.
fn check_state(table: &Table<'_>) {
    table.parsed("backend", |backend| match backend {
        "redb" => Ok(()),
        _ => Err("what plugins keep is kept by \"redb\" alone: write that, or nothing"),
    });
}

fn limits(table: &Table<'_>) -> LimitsConfig {
    let default = LimitsConfig::default();
    let count = |key, default| table.count(key, 1..=MAX_COUNT).unwrap_or(default);
    LimitsConfig {
        flows: count("flows", default.flows),
        bytes_per_second: table
            .integer("bytes_per_second", 0..=u64::MAX)
            .unwrap_or(default.bytes_per_second),
        opening_per_target: count("opening_per_target", default.opening_per_target),
        pending_connections: count("pending_connections", default.pending_connections),
        handshake: table
            .seconds("handshake_seconds", 1..=MAX_SECONDS)
            .unwrap_or(default.handshake),
        udp_idle: table
            .seconds("udp_idle_seconds", 1..=MAX_SECONDS)
            .unwrap_or(default.udp_idle),
        peers: count("peers", default.peers),
        drain: table
            .seconds("drain_seconds", 0..=MAX_SECONDS)
            .unwrap_or(default.drain),
    }
}

fn http(table: &Table<'_>, folder: &Path) -> HttpConfig {
    let file = |key| table.parsed(key, |text| path(folder, text));
    let http = HttpConfig {
        listen: table.parsed("listen", address_with_any_port),
        domain: table.parsed("domain", domain),
        certificate: file("certificate"),
        key: file("key"),
        roots: file("roots"),
    };
    for (key, other, has_other) in [
        ("certificate", "key", http.key.is_some()),
        ("key", "certificate", http.certificate.is_some()),
    ] {
        if table.has(key) && !has_other {
            table.problem(key, format!("needs `{other}` beside it"));
        }
    }
    let is_open = http
        .listen
        .is_some_and(|address| !address.ip().to_canonical().is_loopback());
    if is_open && (http.certificate.is_none() || http.domain.is_none()) {
        let rule = "beyond loopback it needs `domain`, `certificate` and `key`";
        table.problem("listen", rule);
    }
    http
}

/// As browsers say it.
fn domain(text: &str) -> Result<String, &'static str> {
    let host = wormholes_proto::Host::parse(text);
    let name = host.ok().and_then(|host| host.name().map(str::to_owned));
    name.filter(|name| name == text)
        .ok_or("expected a host name in small letters, as \"example.org\"")
}

fn control(table: &Table<'_>, folder: &Path) -> ControlConfig {
    let default = ControlConfig::default();
    let operators = table.integers("operators", 0..=u64::from(u32::MAX));
    let operators = operators.unwrap_or_default().into_iter();
    ControlConfig {
        socket: table.parsed("socket", |text| path(folder, text)),
        mode: table.parsed("mode", file_mode).unwrap_or(default.mode),
        operators: operators.filter_map(|uid| uid.try_into().ok()).collect(),
    }
}

fn metrics(table: &Table<'_>) -> MetricsConfig {
    let listen = table.parsed("listen", address_with_any_port);
    if listen.is_some_and(|address| !address.ip().to_canonical().is_loopback()) {
        table.problem("listen", "metrics are served on loopback only");
    }
    MetricsConfig { listen }
}

fn log(table: &Table<'_>) -> LogConfig {
    let default = LogConfig::default();
    LogConfig {
        level: table.parsed("level", log_level).unwrap_or(default.level),
        json: table
            .parsed("format", |text| match text {
                "text" => Ok(false),
                "json" => Ok(true),
                _ => Err("expected \"text\" or \"json\""),
            })
            .unwrap_or(default.json),
        mask: table.boolean("mask").unwrap_or(default.mask),
    }
}

fn trust(table: &Table<'_>, key: &'static str) -> u8 {
    let trust = table.integer(key, 0..=3);
    trust.and_then(|trust| trust.try_into().ok()).unwrap_or(2)
}

#[expect(clippy::unnecessary_wraps, reason = "shaped like the other parsers")]
fn text(text: &str) -> Result<String, Infallible> {
    Ok(text.to_owned())
}

pub(super) fn path(folder: &Path, text: &str) -> Result<PathBuf, &'static str> {
    if text.is_empty() {
        return Err("expected a path");
    }
    Ok(folder.join(text))
}

pub(super) fn address(text: &str) -> Result<SocketAddr, &'static str> {
    address_with_any_port(text).and_then(|address| match address.port() {
        0 => Err("port 0 reaches nothing"),
        _ => Ok(address),
    })
}

/// Where a peer is dialled, over the internet or through Tor.
fn peer_address(text: &str) -> Result<PeerAddress, String> {
    if text.contains(".onion") {
        let onion = text.parse::<OnionAddress>();
        return onion
            .map(PeerAddress::Onion)
            .map_err(|error| error.to_string());
    }
    let socket = address(text)?;
    Ok(PeerAddress::Socket(socket))
}

fn address_with_any_port(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "expected an address and a port, like \"203.0.113.5:4433\" or \"[::]:4433\"")
}

fn family(text: &str) -> Result<String, String> {
    if is_family(text) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "expected 1 to {MAX_FAMILY_BYTES} printable ASCII characters without spaces"
        ))
    }
}

fn node_id(text: &str) -> Result<NodeId, String> {
    text.parse::<NodeId>().map_err(|error| error.to_string())
}

/// A petname is a label of `.wh` names, and never looks like a node id.
pub(crate) fn petname(text: &str) -> Result<String, &'static str> {
    if text.parse::<NodeId>().is_ok() {
        return Err("a petname may not look like a node id");
    }
    ServiceName::parse(text)
        .map(|_| text.to_owned())
        .map_err(|_| "expected 1 to 63 characters of a-z, 0-9 and '-'")
}

fn entrance_kind(text: &str) -> Result<EntranceKind, String> {
    match text {
        "socks5" => Ok(EntranceKind::Socks5),
        "http" => Ok(EntranceKind::Http),
        "tcp" => Ok(EntranceKind::Tcp),
        "udp" => Ok(EntranceKind::Udp),
        "dns" | "tun" => Err(format!("this build has no entrance of kind \"{text}\" yet")),
        _ => Err("expected \"socks5\", \"http\", \"tcp\" or \"udp\"".to_owned()),
    }
}

fn credentials(user: &str, password: &str) -> Result<Secret, String> {
    let fits = |text: &str| (1..=MAX_CREDENTIAL_BYTES).contains(&text.len());
    if fits(user) && fits(password) && !user.contains(':') {
        Ok(Secret::new(password))
    } else {
        Err(format!(
            "user and password have 1 to {MAX_CREDENTIAL_BYTES} bytes, a user no ':'"
        ))
    }
}

fn default_rule(text: &str) -> Result<DefaultRule, &'static str> {
    match text {
        "block" => Ok(DefaultRule::Block),
        "direct" => Ok(DefaultRule::Direct),
        _ => Err("expected \"block\" or \"direct\""),
    }
}
