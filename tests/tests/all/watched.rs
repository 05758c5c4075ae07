//! Clients whose packets the kernel counts, each on a host of its own, and the internet: where
//! `leaks` and `escapes` are alike. Which ways there are, and who is on them, these say.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::Arc,
};

use serde_json::json;
use wormholes_tests::{Answers, Daemon, Link, NameServer, Namespace, Setup, Site};

/// The internet's own address.
pub(super) const INTERNET: Ipv4Addr = Ipv4Addr::new(9, 8, 7, 1);
/// Entrances; nobody else is on a client's host.
pub(super) const SOCKS: u16 = 1080;
pub(super) const HTTP: u16 = 8080;
pub(super) const FORWARD: u16 = 5300;
/// Packets that are for nobody else, as nft tells them.
pub(super) const AT_HOME: &str = "
    ip daddr 127.0.0.0/8 accept
    ip6 daddr ::1 accept
    icmpv6 type {
        nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert,
        mld2-listener-report
    } accept";

/// A node whose packets are counted, and what way it takes.
pub(super) struct Client<W: 'static> {
    pub(super) way: &'static W,
    pub(super) host: Arc<Namespace>,
    setup: Option<Setup>,
    daemon: Option<Daemon>,
}

/// Where targets are: a web server and a name server.
pub(super) struct Internet {
    pub(super) host: Namespace,
    pub(super) web: Site,
    pub(super) names: NameServer,
}

/// `net` says what the wire leads to, `number` from which host.
pub(super) fn wire(net: u8, number: u8) -> Link {
    Link {
        first: Ipv4Addr::new(9, net, number, 1),
        second: Ipv4Addr::new(9, net, number, 2),
    }
}

impl<W: 'static> Client<W> {
    /// On a host of whose packets nft keeps `counters`. The target of its UDP entrance is `forward`.
    pub(super) fn new(
        way: &'static W,
        host: Namespace,
        counters: &str,
        setup: Setup,
        forward: &str,
    ) -> Self {
        // What leaves over IPv6 comes nowhere, but it leaves.
        let sixth = ["-6", "route", "add", "default", "dev", "lo"];
        host.ip(&sixth).unwrap();
        host.nft(counters).unwrap();
        // It answers; who may ask it, is counted.
        let setup = setup.in_namespace(&host).name_server(INTERNET.into());
        Self {
            way,
            host: Arc::new(host),
            setup: Some(setup.config(&entrances(forward))),
            daemon: None,
        }
    }

    /// Its node, once it was started.
    pub(super) fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    /// Starts its node, or starts it again.
    pub(super) async fn start(&mut self) {
        match (&mut self.daemon, self.setup.take()) {
            (Some(daemon), _) => daemon.restart().await.unwrap(),
            (none, setup) => *none = Some(setup.unwrap().start().await.unwrap()),
        }
    }

    /// As kill -9 does.
    pub(super) fn kill(&mut self) {
        self.daemon.as_mut().unwrap().kill().unwrap();
    }

    /// Gives it rules, which are good or not.
    pub(super) async fn load(&self, rules: String, good: bool) {
        let file = self.daemon().folder().join("rules.rhai");
        std::fs::write(file, rules).unwrap();
        let loaded = self.daemon().call("script.load", json!({})).await;
        let name = self.daemon().name();
        assert_eq!(loaded.is_ok(), good, "{name}: {loaded:?}");
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

    /// How many packets this counter has seen.
    pub(super) fn counted(&self, counter: &str) -> u64 {
        self.host.counted(counter).unwrap()
    }
}

impl Internet {
    pub(super) fn start(answers: Answers) -> Self {
        let host = Namespace::new().unwrap();
        let address = format!("{INTERNET}/32");
        host.ip(&["address", "add", &address, "dev", "lo"]).unwrap();
        let web = Site::start_in(&host, "web", (INTERNET, 80).into()).unwrap();
        let names = host.enter(|| Ok(UdpSocket::bind((INTERNET, 53))?));
        let names = NameServer::start(names.unwrap(), answers).unwrap();
        Self { host, web, names }
    }
}

fn entrances(forward: &str) -> String {
    let entrance = |kind: &str, port: u16, more: &str| {
        format!("[[entrance]]\nkind = \"{kind}\"\nlisten = \"127.0.0.1:{port}\"\n{more}\n")
    };
    [
        entrance("socks5", SOCKS, ""),
        entrance("http", HTTP, ""),
        entrance("udp", FORWARD, &format!("target = \"{forward}\"")),
    ]
    .concat()
}
