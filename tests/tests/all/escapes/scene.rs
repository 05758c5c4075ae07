//! Who there is: a host for each way with a client of its own, and those whom it reaches by a wire each:
//! Tor's host, I2P's host, and the internet.
//!
//! ```text
//! client's host 9.40.N.1 ===== 9.40.N.2 Tor's host: relays (9.70.0.1 and on), a site, C tor's onion service
//!               9.45.N.1 ===== 9.45.N.2 I2P's host: routers (45.10.7.1 and on), a node with a site
//!               9.50.N.1 ===== 9.50.N.2 the internet: a web server and a name server at 9.8.7.1
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::json;
use wormholes_tests::{
    Answers, Daemon, I2pNetwork, Link, NameServer, Namespace, Setup, Site, TOR_WEB, TorNetwork,
    TorOnion, until_within,
};

use super::ways::{Right, WAYS, Way};

/// The internet's own address.
const INTERNET: Ipv4Addr = Ipv4Addr::new(9, 8, 7, 1);
/// Entrances; nobody else is on a client's host.
pub(super) const SOCKS: u16 = 1080;
pub(super) const HTTP: u16 = 8080;
pub(super) const FORWARD: u16 = 5300;
/// An I2P router makes a session in 20 s or 40 s.
const PUBLISHED: Duration = Duration::from_secs(120);

/// All of it.
pub(super) struct Scene {
    pub(super) tor: TorNetwork,
    pub(super) i2p: I2pNetwork,
    pub(super) onion: TorOnion,
    /// Of the site on I2P's host.
    pub(super) i2p_address: String,
    pub(super) names: NameServer,
    pub(super) clients: Vec<Client>,
    _publisher: Daemon,
    _sites: [Site; 2],
    _internet: Namespace,
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
        let networks = tokio::try_join!(TorNetwork::start(), I2pNetwork::start());
        let (tor, i2p) = networks.unwrap();
        let internet = Namespace::new().unwrap();
        let address = format!("{INTERNET}/32");
        internet
            .ip(&["address", "add", &address, "dev", "lo"])
            .unwrap();
        let web = Site::start_in(&internet, "the internet", (INTERNET, 80).into()).unwrap();
        let names = internet
            .enter(|| Ok(UdpSocket::bind((INTERNET, 53))?))
            .unwrap();
        let answers = Answers::from([(TOR_WEB.to_owned(), vec![vec![IpAddr::V4(INTERNET)]])]);
        let names = NameServer::start(names, answers).unwrap();
        let hidden = Site::start_in(i2p.host(), "hidden", (Ipv4Addr::LOCALHOST, 0).into());
        let hidden = hidden.unwrap();
        let publisher = publisher(&i2p, &hidden).start();
        let onion = tor.onion_service(tor.web.address(), &[]);
        let (publisher, onion) = tokio::try_join!(publisher, onion).unwrap();
        let i2p_address = published(&publisher).await;
        let clients = (0..).zip(&WAYS);
        let clients =
            clients.map(|(number, way)| Client::set_up(number, way, &tor, &i2p, &internet));
        Self {
            clients: clients.collect(),
            tor,
            i2p,
            onion,
            i2p_address,
            names,
            _publisher: publisher,
            _sites: [web, hidden],
            _internet: internet,
        }
    }

    pub(super) async fn start_clients(&mut self) {
        join_all(self.clients.iter_mut().map(Client::start)).await;
    }

    pub(super) fn kill_clients(&mut self) {
        let running = self.clients.iter_mut().filter_map(|c| c.daemon.as_mut());
        running.for_each(|daemon| daemon.kill().unwrap());
    }
}

/// A node on I2P's host that publishes a site.
fn publisher(i2p: &I2pNetwork, site: &Site) -> Setup {
    let service = format!(
        "[i2p]\nsam = \"{}\"\n[[service]]\nname = \"web\"\ntarget = \"{}\"\nmin_trust = 0\ni2p = true",
        i2p.sam(1),
        site.address()
    );
    let publisher = Setup::new("publisher").unwrap();
    publisher.in_namespace(i2p.host()).config(&service)
}

async fn published(publisher: &Daemon) -> String {
    let published = until_within(PUBLISHED, "a destination to be published", async || {
        let status = publisher.call("i2p.status", json!({})).await.ok()?;
        let address = status["services"].get(0)?["address"].as_str()?;
        Some(address.to_owned())
    });
    published.await.unwrap()
}

impl Client {
    /// Its host, and what it will be.
    fn set_up(
        number: u8,
        way: &'static Way,
        tor: &TorNetwork,
        i2p: &I2pNetwork,
        internet: &Namespace,
    ) -> Self {
        let wire = |net: u8| Link {
            first: Ipv4Addr::new(9, net, number, 1),
            second: Ipv4Addr::new(9, net, number, 2),
        };
        let host = tor.neighbour(number).unwrap();
        host.reach(i2p.host(), wire(45), "45.0.0.0/8").unwrap();
        host.reach(internet, wire(50), "default").unwrap();
        // What leaves over IPv6 comes nowhere, but it leaves.
        let sixth = ["-6", "route", "add", "default", "dev", "lo"];
        host.ip(&sixth).unwrap();
        host.nft(&way.counters()).unwrap();
        let mut setup = Setup::new(way.name).unwrap().in_namespace(&host);
        // It answers; who may ask it, is counted.
        setup = setup.name_server(INTERNET.into()).config(&entrances());
        if way.has(Right::Tor) {
            setup = setup.config(&tor.config(""));
        }
        if way.has(Right::I2p) {
            setup = setup.config(&format!("[i2p]\nsam = \"{}\"", i2p.sam(0)));
        }
        Self {
            way,
            host: Arc::new(host),
            setup: Some(setup.script("rules.rhai", way.script)),
            daemon: None,
        }
    }

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

    /// Has it refuse a config, and puts the good one back.
    pub(super) async fn break_config(&self) {
        let file = self.daemon().folder().join("config.toml");
        let good = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("{good}\n[rules")).unwrap();
        let loaded = self.daemon().call("script.load", json!({})).await;
        loaded.unwrap_err();
        std::fs::write(file, good).unwrap();
    }

    /// How many packets left for those whom its rules do not name.
    pub(super) fn escaped(&self) -> u64 {
        self.host.counted("escaped").unwrap()
    }
}

fn entrances() -> String {
    let entrance = |kind: &str, port: u16, more: &str| {
        format!("[[entrance]]\nkind = \"{kind}\"\nlisten = \"127.0.0.1:{port}\"\n{more}\n")
    };
    [
        entrance("socks5", SOCKS, ""),
        entrance("http", HTTP, ""),
        entrance("udp", FORWARD, &format!("target = \"{INTERNET}:53\"")),
    ]
    .concat()
}
