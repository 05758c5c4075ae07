//! Who there is: a host for each way with a client of its own, a host of all other nodes, and the
//! internet, which each of them reaches by a wire of its own.
//!
//! ```text
//! client's host 9.40.N.1 ===== 9.40.N.2 nodes' host: relay, friend, hops, exit (9.16.0.1 and on)
//!      9.50.N.1                                 9.60.0.1
//!         ||                                       ||
//!      9.50.N.2 ============ internet ========== 9.60.0.2: a web server, a name server, an echo
//! ```

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use futures_util::future::join_all;
use tokio::task::JoinHandle;
use wormholes_proto::NodeId;
use wormholes_tests::{Answers, Daemon, Identity, Namespace, Setup, run};

use super::ways::{WAYS, Way};
use crate::watched::{self, INTERNET, Internet, wire};

/// A client that takes one way for all its flows.
pub(super) type Client = watched::Client<Way>;

/// Nobody is there, but hosts have a way to it.
pub(super) const SIXTH: &str = "2606:4700::7";
/// The upstream SOCKS5 server: a router too, but no node that the others know.
pub(super) const PROXY: &str = "proxy";
const UPSTREAM: SocketAddr = SocketAddr::new(IpAddr::V4(node_ip(9)), 1080);

/// By its place in this list, each node has its address; it knows the addresses of those before it.
pub(super) const NODES: [&str; 6] = ["relay", "friend", "exit", "hop-3", "hop-2", "hop-1"];
/// All are in networks of their own: no two are neighbours.
const fn node_ip(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(9, 16 + number, 0, 1)
}

/// All of it.
pub(super) struct Scene {
    pub(super) internet: Internet,
    pub(super) nodes: Nodes,
    pub(super) clients: Vec<Client>,
    _echo: Echo,
}

/// Sends datagrams back, at the internet's address.
struct Echo(JoinHandle<()>);

/// The other nodes, and the upstream proxy.
pub(super) struct Nodes {
    host: Namespace,
    daemons: Vec<Daemon>,
}

impl Scene {
    /// Everything runs, but for the clients.
    pub(super) async fn start() -> Self {
        let (internet, nodes) = (Internet::start(answers()), Namespace::new().unwrap());
        let hosts: Vec<_> = WAYS.iter().map(|_| Namespace::new().unwrap()).collect();
        lay_wires(&internet.host, &nodes, &hosts);
        let echo = Echo::start(&internet.host);
        let setups = WAYS.iter().map(|way| Setup::new(way.name).unwrap());
        let setups: Vec<_> = setups.collect();
        let ids: Vec<_> = setups.iter().map(Setup::id).collect();
        let nodes = Nodes::start(nodes, &ids).await;
        let clients = WAYS.iter().zip(hosts).zip(setups);
        let clients = clients.map(|((way, host), setup)| {
            let setup = way.set_up(setup, &nodes);
            Client::new(way, host, &way.counters(&nodes), setup, "names.example:53")
        });
        Self {
            clients: clients.collect(),
            internet,
            nodes,
            _echo: echo,
        }
    }

    pub(super) async fn start_clients(&mut self) {
        join_all(self.clients.iter_mut().map(Client::start)).await;
    }

    pub(super) fn kill_clients(&mut self) {
        self.clients.iter_mut().for_each(Client::kill);
    }
}

fn lay_wires(internet: &Namespace, nodes: &Namespace, hosts: &[Namespace]) {
    for number in (0..NODES.len() as u8).chain([9]) {
        let address = format!("{}/32", node_ip(number));
        nodes
            .ip(&["address", "add", &address, "dev", "lo"])
            .unwrap();
    }
    nodes.reach(internet, wire(60, 0), "default").unwrap();
    for (number, host) in (0..).zip(hosts) {
        host.reach(nodes, wire(40, number), "9.16.0.0/12").unwrap();
        host.reach(internet, wire(50, number), "default").unwrap();
    }
}

fn answers() -> Answers {
    let (fourth, sixth) = (IpAddr::V4(INTERNET), SIXTH.parse().unwrap());
    let answers = [
        ("web.example", vec![sixth, fourth]),
        ("asked.example", vec![sixth, fourth]),
        ("names.example", vec![fourth]),
        ("echo.example", vec![fourth]),
    ];
    answers
        .map(|(name, ips)| (name.to_owned(), vec![ips]))
        .into()
}

impl Echo {
    fn start(host: &Namespace) -> Self {
        let socket = host.udp((INTERNET, 7).into()).unwrap();
        Self(tokio::spawn(async move {
            let mut datagram = [0; 2048];
            while let Ok((len, from)) = socket.recv_from(&mut datagram).await {
                // Who asked may be gone.
                let _ = socket.send_to(&datagram[..len], from).await;
            }
        }))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Nodes {
    async fn start(host: Namespace, clients: &[NodeId]) -> Self {
        let identities = NODES.map(|name| (name, Identity::generate().unwrap()));
        let mut daemons: Vec<Daemon> = Vec::new();
        for (number, (name, identity)) in (0..).zip(&identities) {
            let mut setup = Setup::with_identity(name, identity)
                .unwrap()
                .in_namespace(&host)
                .name_server(INTERNET.into())
                .listen(&format!("{}:0", node_ip(number)))
                .config(roles(name));
            for before in &daemons {
                let address = before.listen().unwrap();
                let register = before.name() == "relay";
                let more = format!("addresses = [\"{address}\"]\nregister = {register}");
                setup = setup.peer_id(before.name(), before.id(), 2, &more);
            }
            for (after, identity) in identities.iter().skip(daemons.len() + 1) {
                setup = setup.peer_id(after, identity.id(), 2, "");
            }
            for (way, id) in WAYS.iter().zip(clients) {
                setup = setup.peer_id(way.name, *id, 2, "");
            }
            let node = setup.start().await.unwrap();
            if !daemons.is_empty() {
                node.log().wait("registered with the relay").await.unwrap();
            }
            daemons.push(node);
        }
        let proxy = Setup::new(PROXY).unwrap().in_namespace(&host);
        let proxy = proxy.name_server(INTERNET.into()).entrances();
        let proxy = proxy.script("rules.rhai", "fn route(c) { direct().closed() }");
        let proxy = proxy.start().await.unwrap();
        show(&host, UPSTREAM, proxy.entrance("socks5").unwrap());
        daemons.push(proxy);
        Self { host, daemons }
    }

    pub(super) fn get(&self, name: &str) -> &Daemon {
        let found = self.daemons.iter().find(|node| node.name() == name);
        found.unwrap_or_else(|| panic!("no node {name}"))
    }

    /// Where packets go for a node, or for the upstream proxy.
    pub(super) fn address(&self, name: &str) -> SocketAddr {
        match name {
            PROXY => UPSTREAM,
            _ => self.get(name).listen().unwrap(),
        }
    }

    /// Drops what comes for a node, and tells nobody.
    pub(super) fn swallow(&self, name: &str) {
        let ip = self.address(name).ip();
        let rules = format!(
            "table inet hole {{
                chain input {{
                    type filter hook input priority 0
                    ip daddr {ip} drop
                }}
            }}"
        );
        self.host.nft(&rules).unwrap();
    }

    pub(super) fn kill(&mut self) {
        for daemon in &mut self.daemons {
            daemon.kill().unwrap();
        }
    }
}

fn roles(name: &str) -> &'static str {
    match name {
        "relay" => "[relay]\nenabled = true",
        "friend" => "[exit]\nenabled = true\nallow = [\"0.0.0.0/0\"]",
        "exit" => "[hop]\nenabled = true\n[exit]\nenabled = true\nallow = [\"0.0.0.0/0\"]",
        _ => "[hop]\nenabled = true",
    }
}

/// Lets everybody reach a program of this host's loopback at `address`.
fn show(host: &Namespace, address: SocketAddr, program: SocketAddr) {
    let rules = format!(
        "table ip show {{
            chain prerouting {{
                type nat hook prerouting priority -100
                ip daddr {} tcp dport {} dnat to {program}
            }}
        }}",
        address.ip(),
        address.port()
    );
    host.nft(&rules).unwrap();
    let routed = "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet";
    run(host.command("sh").args(["-c", routed])).unwrap();
}
