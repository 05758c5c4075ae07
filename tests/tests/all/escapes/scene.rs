//! Who there is: a host for each way with a client of its own, and those whom it reaches by a wire each:
//! Tor's host, I2P's host, and the internet.
//!
//! ```text
//! client's host 9.40.N.1 ===== 9.40.N.2 Tor's host: relays (9.70.0.1 and on), a site, C tor's onion service
//!               9.45.N.1 ===== 9.45.N.2 I2P's host: routers (45.10.7.1 and on), a node with a site
//!               9.50.N.1 ===== 9.50.N.2 the internet: a web server and a name server at 9.8.7.1
//! ```

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::json;
use wormholes_tests::{
    Answers, Daemon, I2pNetwork, Namespace, Setup, Site, TOR_WEB, TorNetwork, TorOnion,
    until_within,
};

use super::ways::{Right, WAYS, Way};
use crate::watched::{self, INTERNET, Internet, wire};

/// An I2P router makes a session in 20 s or 40 s.
const PUBLISHED: Duration = Duration::from_secs(120);

/// All of it.
pub(super) struct Scene {
    pub(super) tor: TorNetwork,
    pub(super) i2p: I2pNetwork,
    pub(super) onion: TorOnion,
    /// Of the site on I2P's host.
    pub(super) i2p_address: String,
    pub(super) internet: Internet,
    pub(super) clients: Vec<Client>,
    _publisher: Daemon,
    _hidden: Site,
}

type Client = watched::Client<Way>;

impl Scene {
    /// Everything runs, but for the clients.
    pub(super) async fn start() -> Self {
        let networks = tokio::try_join!(TorNetwork::start(), I2pNetwork::start());
        let (tor, i2p) = networks.unwrap();
        let answers = Answers::from([(TOR_WEB.to_owned(), vec![vec![IpAddr::V4(INTERNET)]])]);
        let internet = Internet::start(answers);
        let hidden = Site::start_in(i2p.host(), "hidden", (Ipv4Addr::LOCALHOST, 0).into());
        let hidden = hidden.unwrap();
        let publisher = publisher(&i2p, &hidden).start();
        let onion = tor.onion_service(tor.web.address(), &[]);
        let (publisher, onion) = tokio::try_join!(publisher, onion).unwrap();
        let i2p_address = published(&publisher).await;
        let clients = (0..).zip(&WAYS);
        let clients = clients.map(|(number, way)| client(number, way, &tor, &i2p, &internet.host));
        Self {
            clients: clients.collect(),
            tor,
            i2p,
            onion,
            i2p_address,
            internet,
            _publisher: publisher,
            _hidden: hidden,
        }
    }

    pub(super) async fn start_clients(&mut self) {
        join_all(self.clients.iter_mut().map(Client::start)).await;
    }

    pub(super) fn kill_clients(&mut self) {
        self.clients.iter_mut().for_each(Client::kill);
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

/// Its host, and what it will be.
fn client(
    number: u8,
    way: &'static Way,
    tor: &TorNetwork,
    i2p: &I2pNetwork,
    internet: &Namespace,
) -> Client {
    let host = tor.neighbour(number).unwrap();
    host.reach(i2p.host(), wire(45, number), "45.0.0.0/8")
        .unwrap();
    host.reach(internet, wire(50, number), "default").unwrap();
    let mut setup = Setup::new(way.name)
        .unwrap()
        .script("rules.rhai", way.script);
    if way.has(Right::Tor) {
        setup = setup.config(&tor.config(""));
    }
    if way.has(Right::I2p) {
        setup = setup.config(&format!("[i2p]\nsam = \"{}\"", i2p.sam(0)));
    }
    Client::new(way, host, &way.counters(), setup, &format!("{INTERNET}:53"))
}
