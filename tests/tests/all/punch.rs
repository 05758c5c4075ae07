//! Hole punching between Linux' own NATs: two nodes that listen nowhere, each behind one, and a relay
//! outside.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use wormholes_tests::{
    Daemon, EchoServer, Link, Metrics, Namespace, Setup, run, socks5_echo, until, until_within,
};

/// From a node to its NAT, and from there to the internet, where the relay is.
const CLIENT: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 74, 11, 1), Ipv4Addr::new(10, 74, 11, 2)];
const CLIENTS_NAT: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 74, 1, 1), Ipv4Addr::new(10, 74, 1, 2)];
const FRIEND: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 74, 12, 1), Ipv4Addr::new(10, 74, 12, 2)];
const FRIENDS_NAT: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 74, 2, 1), Ipv4Addr::new(10, 74, 2, 2)];

/// The port says which plan is wanted.
const SCRIPT: &str = r#"
fn route(c) {
    let friend = peer("friend");
    switch c.port {
        1 => friend.punch(#{ via: relay("relay") }).closed(),
        2 => friend.best().closed(),
        _ => friend.relayed("relay").closed(),
    }
}"#;
const PUNCHED: u16 = 1;
const BEST: u16 = 2;
const RELAYED: u16 = 3;

/// The port of a program stays the same to every destination, as long as nobody else has it.
const KEEPS_PORTS: &str = "masquerade";
/// Each destination sees another one.
const CHANGES_PORTS: &str = "masquerade fully-random";

/// What passes between the NATs.
const SEEN: &str = "table ip seen {
    counter between { }
    chain forward {
        type filter hook forward priority 0
        meta l4proto udp counter name between
    }
}";
/// After a failure a peer is left alone for 30 s.
const BEFORE_PAUSES_END: Duration = Duration::from_secs(25);
/// A punch that has begun calls, or ends, sooner by far: it goes between hosts of one machine.
const BEGINS: Duration = Duration::from_secs(3);
/// A piece of a flow, to be found in counters.
const PIECE_BYTES: usize = 1 << 20;

struct Scene {
    client: Daemon,
    relay: Daemon,
    _friend: Daemon,
    here: Namespace,
    internet: Namespace,
    _others: Vec<Namespace>,
    _echo: EchoServer,
}

impl Scene {
    /// Both NATs do the same; `friend` says what the friend is like.
    async fn start(nat: &str, friend: impl FnOnce(Setup) -> Setup) -> Self {
        let [here, there, internet] = [(); 3].map(|()| Namespace::new().unwrap());
        internet.nft(SEEN).unwrap();
        forward(&internet);
        let nats = [(&here, CLIENT, CLIENTS_NAT), (&there, FRIEND, FRIENDS_NAT)];
        let nats =
            nats.map(|(host, inside, outside)| behind(host, inside, outside, &internet, nat));
        let metrics = "[metrics]\nlisten = \"127.0.0.1:0\"";
        let node = |name: &str, host: &Namespace| {
            let setup = Setup::new(name).unwrap().in_namespace(host);
            setup.node("carriers = [\"quic\"]").config(metrics)
        };
        let echo = EchoServer::start_in(&there).unwrap();
        let client = node("client", &here).entrances();
        let client = client.script("rules.rhai", SCRIPT);
        let friend = friend(node("friend", &there).service("echo", echo.address()));
        let relay = node("relay", &internet).listen("0.0.0.0:0");
        let relay = relay.config("[relay]\nenabled = true");
        let relay = relay.peer_id("client", client.id(), 2, "");
        let relay = relay.peer_id("friend", friend.id(), 2, "").start().await;
        let relay = relay.unwrap();
        let port = relay.listen().unwrap().port();
        let at = |ip: Ipv4Addr| format!("addresses = [\"{ip}:{port}\"]\n");
        let registered = at(FRIENDS_NAT[1]) + "register = true";
        let friend = friend.peer_id("client", client.id(), 2, "");
        let friend = friend.peer_id("relay", relay.id(), 2, &registered);
        let friend = friend.start().await.unwrap();
        friend.until_registered().await.unwrap();
        let client = client.peer_id("relay", relay.id(), 2, &at(CLIENTS_NAT[1]));
        let client = client.peer_id("friend", friend.id(), 2, "via = [\"relay\"]");
        Self {
            client: client.start().await.unwrap(),
            relay,
            _friend: friend,
            here,
            internet,
            _others: nats.into_iter().chain([there]).collect(),
            _echo: echo,
        }
    }

    /// A flow to the friend's echo by one of the plans, which answered.
    async fn open(&self, plan: u16) -> Result<TcpStream, String> {
        let entrance = self.client.entrance("socks5").unwrap();
        let opened = socks5_echo(&self.here, entrance, "echo.friend.wh", plan);
        opened.await.unwrap()
    }

    /// By which tunnel a flow by this plan goes.
    async fn tunnel(&self, plan: u16) -> &'static str {
        let before = self.opened("direct").await;
        self.open(plan).await.unwrap();
        match self.opened("direct").await - before {
            0 => "relay",
            _ => "direct",
        }
    }

    async fn opened(&self, kind: &str) -> u64 {
        let status = self.client.call("status", json!({})).await.unwrap();
        status["flows"]["opened"][kind].as_u64().unwrap_or(0)
    }

    /// What the client tells of its friend.
    async fn friend(&self) -> Value {
        let peers = self.client.call("peers", json!({})).await.unwrap();
        let mut peers = peers["peers"].as_array().unwrap().iter();
        peers.find(|peer| peer["name"] == "friend").unwrap().clone()
    }

    fn between(&self) -> u64 {
        self.internet.counted("between").unwrap()
    }

    /// Holds that neither node calls the other, for longer than a punch takes to begin beside its flow.
    async fn stays_apart(&self, why: &str) {
        let start = Instant::now();
        let over = async || (start.elapsed() >= BEGINS).then_some(());
        until("a punch to have begun", over).await.unwrap();
        assert_eq!(self.between(), 0, "{why}");
    }

    /// How many punches of the client ended so.
    async fn punches(&self, result: &str) -> f64 {
        let metrics = Metrics::read_in(&self.here, &self.client).await.unwrap();
        metrics.get(&format!("wormholes_punches_total{{result=\"{result}\"}}"))
    }

    async fn carried(&self) -> f64 {
        let metrics = Metrics::read_in(&self.internet, &self.relay).await.unwrap();
        metrics.get("wormholes_carried_bytes_total{role=\"relay\"}")
    }

    /// What it says goes between the NATs.
    async fn leaves_the_relay(&self, flow: &mut TcpStream) {
        let between = || self.internet.counted_bytes("between").unwrap();
        let (carried, before) = (self.carried().await, between());
        echo_piece(flow).await;
        let (carried, between) = (self.carried().await - carried, between() - before);
        let piece = u64::try_from(PIECE_BYTES).unwrap();
        assert!(between >= 2 * piece, "{between} bytes there and back");
        assert!(carried < 65_536.0, "the relay carried {carried} bytes");
    }

    /// Waits until the client tells why there is no direct path.
    async fn failure(&self) -> Value {
        let failed = async || {
            let friend = self.friend().await;
            (!friend["punch"].is_null()).then_some(friend)
        };
        let failed = until("a punch to fail", failed).await.unwrap();
        assert_eq!(failed["path"], "relay", "{failed}");
        failed["punch"].clone()
    }
}

/// A host behind a NAT that lets nothing in but answers. What comes unasked is dropped before it takes
/// a place that a packet from inside would want.
fn behind(
    host: &Namespace,
    inside: [Ipv4Addr; 2],
    outside: [Ipv4Addr; 2],
    internet: &Namespace,
    nat: &str,
) -> Namespace {
    let router = Namespace::new().unwrap();
    let link = |[first, second]: [Ipv4Addr; 2]| Link { first, second };
    host.reach(&router, link(inside), "default").unwrap();
    router.reach(internet, link(outside), "default").unwrap();
    forward(&router);
    let [a, b, c, _] = inside[0].octets();
    let own = format!("{a}.{b}.{c}.0/24");
    let rules = format!(
        "table ip router {{
            chain out {{
                type nat hook postrouting priority 100
                ip saddr {own} ip daddr != {own} {nat}
            }}
            chain input {{
                type filter hook input priority 0
                ip saddr != {own} drop
            }}
            chain forward {{
                type filter hook forward priority 0
                ct state established,related accept
                ip saddr != {own} drop
            }}
        }}"
    );
    router.nft(&rules).unwrap();
    router
}

fn forward(host: &Namespace) {
    let set = ["-wq", "net.ipv4.ip_forward=1"];
    run(host.command("sysctl").args(set)).unwrap();
}

/// Sends a piece and takes it back.
async fn echo_piece(stream: &mut TcpStream) {
    let piece = vec![7; PIECE_BYTES];
    let mut back = vec![0; piece.len()];
    let (mut reader, mut writer) = stream.split();
    tokio::try_join!(writer.write_all(&piece), reader.read_exact(&mut back)).unwrap();
    assert_eq!(back, piece);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_behind_nats_meet_and_new_flows_leave_the_relay() {
    let scene = Scene::start(KEEPS_PORTS, |friend| friend).await;
    for _ in 0..3 {
        assert_eq!(scene.tunnel(RELAYED).await, "relay");
    }
    let why = "nobody said that addresses may be told";
    scene.stays_apart(why).await;
    assert_eq!(scene.friend().await["path"], "relay");

    let before = scene.opened("relay").await;
    let mut first = scene.open(PUNCHED).await.unwrap();
    assert_eq!(
        scene.opened("relay").await,
        before + 1,
        "it waits for nothing"
    );
    let direct = async || (scene.friend().await["path"] == "direct").then_some(());
    until("a direct path", direct).await.unwrap();
    assert_eq!(scene.tunnel(PUNCHED).await, "direct");
    assert_eq!(scene.tunnel(BEST).await, "direct");
    assert_eq!(scene.tunnel(RELAYED).await, "relay", "it says so");
    let counted = async || (scene.punches("direct").await >= 1.0).then_some(());
    until("the punch to be counted", counted).await.unwrap();
    let peers = scene.client.cli(&["peers"]).unwrap();
    let friend = peers.lines().find(|line| line.starts_with("friend "));
    assert!(friend.unwrap().contains("connected (quic)"), "{peers}");

    scene
        .leaves_the_relay(&mut scene.open(PUNCHED).await.unwrap())
        .await;
    let moved = async || {
        let metrics = Metrics::read_in(&scene.here, &scene.client).await.ok()?;
        let moved = metrics.get("wormholes_flows_moved_total{result=\"moved\"}");
        (moved >= 1.0).then_some(())
    };
    until("the first flow to go over", moved).await.unwrap();
    scene.leaves_the_relay(&mut first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nats_change_ports_flows_stay_with_the_relay_and_the_reason_is_told() {
    let scene = Scene::start(CHANGES_PORTS, |friend| friend).await;
    for plan in [PUNCHED, BEST] {
        assert_eq!(scene.tunnel(plan).await, "relay");
    }
    let failure = scene.failure().await;
    assert_eq!(failure["reason"], "no-answer", "{failure}");
    let retry = failure["retry_seconds"].as_u64().unwrap();
    assert!((1..=30).contains(&retry), "{failure}");
    let said = scene.between();
    for plan in [PUNCHED, BEST] {
        assert_eq!(scene.tunnel(plan).await, "relay");
    }
    assert_eq!(
        scene.punches("no-answer").await as u64,
        1,
        "it is left alone"
    );
    assert!(said > 0, "both ends tried");
    let peers = scene.client.cli(&["peers"]).unwrap();
    assert!(peers.contains("by relay (no-answer)"), "{peers}");
    let checked = scene.client.cli(&["netcheck"]).unwrap();
    assert!(checked.contains("no direct path (no-answer)"), "{checked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_denies_a_node_or_does_not_punch_is_told_no_address_and_tells_none() {
    let denies = "fn accept(p) { if p.name == \"client\" { deny(\"no\") } else { allow() } }";
    let scene = Scene::start(KEEPS_PORTS, |friend| friend.script("rules.rhai", denies)).await;
    for plan in [PUNCHED, BEST] {
        scene.open(plan).await.expect_err("it is denied");
    }
    scene.stays_apart("it is denied").await;
    assert!(scene.friend().await["punch"].is_null(), "nothing was asked");

    for tells_nobody in ["punch = false", "punch_trust = 3"] {
        let scene = Scene::start(KEEPS_PORTS, |friend| friend.node(tells_nobody)).await;
        assert_eq!(scene.tunnel(PUNCHED).await, "relay");
        let failure = scene.failure().await;
        assert_eq!(failure["reason"], "refused", "{failure}");
        let why = failure["why"].as_str().unwrap();
        assert!(why.contains("not supported by the node"), "{failure}");
        assert_eq!(scene.between(), 0, "{tells_nobody}");
    }
}

/// A node that moved is worth another try.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_ends_the_pause_after_a_punch_that_failed() {
    let scene = Scene::start(CHANGES_PORTS, |friend| friend).await;
    assert_eq!(scene.tunnel(PUNCHED).await, "relay");
    scene.failure().await;
    let further = "192.0.2.99/32";
    scene
        .here
        .ip(&["address", "add", further, "dev", "lo"])
        .unwrap();
    let again = async || {
        scene.tunnel(PUNCHED).await;
        // The friend may have been asked a moment ago.
        let ended = scene.punches("no-answer").await + scene.punches("refused").await;
        (ended >= 2.0).then_some(())
    };
    until_within(BEFORE_PAUSES_END, "another punch", again)
        .await
        .unwrap();
}
