//! Who there is: a host for each way with a client of its own, a host of all other nodes, and the
//! internet, which each of them reaches by a wire of its own.
//!
//! ```text
//! client's host 9.40.N.1 ===== 9.40.N.2 nodes' host: relay, friend, hops, exit (9.16.0.1 and on)
//!      9.50.N.1                                 9.60.0.1
//!         ||                                       ||
//!      9.50.N.2 ============ internet ========== 9.60.0.2: a web server, a name server, an echo
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
};

use tokio::task::JoinHandle;
use wormholes_proto::NodeId;
use wormholes_tests::{Answers, Daemon, Identity, Link, NameServer, Namespace, Setup, Site, run};

use super::ways::{WAYS, Way};

/// The internet's own address: of the web server, the name server and the echo.
pub(super) const INTERNET: Ipv4Addr = Ipv4Addr::new(9, 8, 7, 1);
/// Nobody is there, but hosts have a way to it.
pub(super) const SIXTH: &str = "2606:4700::7";
/// Entrances; nobody else is on a client's host.
pub(super) const SOCKS: u16 = 1080;
pub(super) const HTTP: u16 = 8080;
pub(super) const FORWARD: u16 = 5300;
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
}

/// Where targets are.
pub(super) struct Internet {
    pub(super) host: Namespace,
    pub(super) web: Site,
    echoing: JoinHandle<()>,
    _names: NameServer,
}

/// The other nodes, and the upstream proxy.
pub(super) struct Nodes {
    host: Namespace,
    daemons: Vec<Daemon>,
}

/// A node whose packets are counted.
pub(super) struct Client {
    pub(super) way: &'static Way,
    pub(super) host: Arc<Namespace>,
    setup: Option<Setup>,
    daemon: Option<Daemon>,
}

impl Scene {
    /// Everything runs, but for the clients.
    pub(super) async fn start() -> Self {
        let (internet, nodes) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let hosts: Vec<_> = WAYS.iter().map(|_| Namespace::new().unwrap()).collect();
        lay_wires(&internet, &nodes, &hosts);
        let internet = Internet::start(internet);
        let setups = WAYS.iter().map(|way| Setup::new(way.name).unwrap());
        let setups: Vec<_> = setups.collect();
        let ids: Vec<_> = setups.iter().map(Setup::id).collect();
        let nodes = Nodes::start(nodes, &ids).await;
        let clients = WAYS.iter().zip(hosts).zip(setups);
        let clients = clients.map(|((way, host), setup)| {
            host.nft(&way.counters(&nodes)).unwrap();
            Client {
                setup: Some(way.set_up(setup, &host, &nodes)),
                way,
                host: Arc::new(host),
                daemon: None,
            }
        });
        Self {
            clients: clients.collect(),
            internet,
            nodes,
        }
    }

    pub(super) async fn start_clients(&mut self) {
        let starting = self.clients.iter_mut().map(Client::start);
        futures_util::future::join_all(starting).await;
    }

    pub(super) fn kill_clients(&mut self) {
        let running = self.clients.iter_mut().filter_map(|c| c.daemon.as_mut());
        running.for_each(|daemon| daemon.kill().unwrap());
    }
}

fn lay_wires(internet: &Namespace, nodes: &Namespace, hosts: &[Namespace]) {
    let wire = |net: u8, number: u8| Link {
        first: Ipv4Addr::new(9, net, number, 1),
        second: Ipv4Addr::new(9, net, number, 2),
    };
    let add = |host: &Namespace, address: String| {
        host.ip(&["address", "add", &address, "dev", "lo"]).unwrap();
    };
    let route = |host: &Namespace, to: &str, link: Link| {
        let via = link.second.to_string();
        host.ip(&["route", "add", to, "via", &via]).unwrap();
    };
    add(internet, format!("{INTERNET}/32"));
    for number in (0..NODES.len() as u8).chain([9]) {
        add(nodes, format!("{}/32", node_ip(number)));
    }
    nodes.join(internet, wire(60, 0)).unwrap();
    route(nodes, "default", wire(60, 0));
    for (number, host) in (0..).zip(hosts) {
        host.join(nodes, wire(40, number)).unwrap();
        host.join(internet, wire(50, number)).unwrap();
        route(host, "9.16.0.0/12", wire(40, number));
        route(host, "default", wire(50, number));
        // What leaves over IPv6 comes nowhere, but it leaves.
        host.ip(&["-6", "route", "add", "default", "dev", "lo"])
            .unwrap();
    }
}

impl Internet {
    fn start(host: Namespace) -> Self {
        let web = Site::start_in(&host, "web", (INTERNET, 80).into()).unwrap();
        let names = host.enter(|| Ok(UdpSocket::bind((INTERNET, 53))?));
        let (fourth, sixth) = (IpAddr::V4(INTERNET), SIXTH.parse().unwrap());
        let answers = [
            ("web.example", vec![sixth, fourth]),
            ("asked.example", vec![sixth, fourth]),
            ("names.example", vec![fourth]),
            ("echo.example", vec![fourth]),
        ];
        let answers = answers.map(|(name, ips)| (name.to_owned(), vec![ips]));
        let names = NameServer::start(names.unwrap(), Answers::from(answers)).unwrap();
        let socket = host.udp((INTERNET, 7).into()).unwrap();
        let echoing = tokio::spawn(async move {
            let mut datagram = [0; 2048];
            while let Ok((len, from)) = socket.recv_from(&mut datagram).await {
                // Who asked may be gone.
                let _ = socket.send_to(&datagram[..len], from).await;
            }
        });
        Self {
            host,
            web,
            echoing,
            _names: names,
        }
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        self.echoing.abort();
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

impl Client {
    /// Its node, while it runs.
    pub(super) fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    /// Starts its node, or starts it again.
    async fn start(&mut self) {
        match (&mut self.daemon, self.setup.take()) {
            (Some(daemon), _) => daemon.restart().await.unwrap(),
            (none, setup) => *none = Some(setup.unwrap().start().await.unwrap()),
        }
    }

    /// How many packets a counter of [`Way::counters`] has seen.
    pub(super) fn counted(&self, counter: &str) -> u64 {
        self.host.counted(counter).unwrap()
    }
}
