//! Networks that people make: one that is defined on a page, one that computes together, and several
//! of unlike openness on one machine.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddr},
};

use futures_util::future::{join_all, try_join_all};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use wormholes_tests::{
    Daemon, EchoServer, Identity, LIMIT, Link, Namespace, Setup, run, socks5_ask, socks5_connect,
    until, workspace,
};

/// Replies of RFC 1928, section 6.
const SUCCEEDED: u8 = 0;
const NOT_ALLOWED: u8 = 2;

const MEMBERS: [&str; 5] = ["hall", "ann", "ben", "cat", "dan"];
const NEWS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(9, 9, 9, 80)), 80);

/// Nothing passes.
const BETWEEN_ANN_AND_DAN: &str = "table inet apart {
    chain forward {
        type filter hook forward priority 0;
        ip saddr 20.2.0.2 ip daddr 20.5.0.2 drop
        ip saddr 20.5.0.2 ip daddr 20.2.0.2 drop
    }
}";

/// The village of scripts/network.toml, each member on a host of its own; between them, and at the
/// news, is the internet.
struct Village {
    hosts: Vec<Namespace>,
    members: Vec<Daemon>,
    config: String,
    internet: Namespace,
    _echoes: Vec<EchoServer>,
}

impl Village {
    async fn found() -> Self {
        let internet = Namespace::new().unwrap();
        internet
            .ip(&["address", "add", "9.9.9.80/32", "dev", "lo"])
            .unwrap();
        run(internet
            .command("sysctl")
            .args(["-wq", "net.ipv4.ip_forward=1"]))
        .unwrap();
        internet.nft(BETWEEN_ANN_AND_DAN).unwrap();
        let identities = MEMBERS.map(|_| Identity::generate().unwrap());
        let config = shared_config(&identities);
        let mut village = Self {
            hosts: Vec::new(),
            members: Vec::new(),
            config,
            internet,
            _echoes: vec![],
        };
        village
            ._echoes
            .push(EchoServer::start_at(&village.internet, NEWS).unwrap());
        let mut setups = Vec::new();
        for (number, identity) in identities.iter().enumerate() {
            let host = village.host(number);
            for port in [8080, 8081] {
                let address = (Ipv4Addr::LOCALHOST, port).into();
                village
                    ._echoes
                    .push(EchoServer::start_at(&host, address).unwrap());
            }
            let mut setup = Setup::with_identity(MEMBERS[number], identity).unwrap();
            let listen = match MEMBERS[number] {
                "dan" => "0.0.0.0:4433".to_owned(),
                _ => place(number).to_string(),
            };
            setup = setup.listen(&listen);
            setups.push(setup.in_namespace(&host));
            village.hosts.push(host);
        }
        let start = setups.into_iter().map(|setup| {
            fs::write(setup.folder().join("network.rhai"), shipped("network.rhai")).unwrap();
            let setup = setup
                .name("news.example", NEWS.ip())
                .config(&village.config);
            setup.start()
        });
        village.members = try_join_all(start).await.unwrap();
        for member in &village.members {
            village.wait_until_met(member).await;
        }
        village
    }

    /// A machine with an address of its own /16.
    fn host(&self, number: usize) -> Namespace {
        let host = Namespace::new().unwrap();
        let net = u8::try_from(number).unwrap() + 1;
        let link = Link {
            first: Ipv4Addr::new(20, net, 0, 1),
            second: Ipv4Addr::new(20, net, 0, 2),
        };
        self.internet.join(&host, link).unwrap();
        let gateway = link.first.to_string();
        host.ip(&["route", "add", "default", "via", &gateway])
            .unwrap();
        host
    }

    /// Ann and dan cannot meet, and may learn of each other's record later.
    async fn wait_until_met(&self, member: &Daemon) {
        until("a member to know three other hops", async || {
            let peers = member.call("peers", json!({})).await.ok()?;
            let peers = peers["peers"].as_array()?;
            let hops = peers.iter().filter(|peer| peer["roles"]["hop"] == true);
            (hops.count() >= 3).then_some(())
        })
        .await
        .unwrap_or_else(|error| panic!("{error}\n{}", member.log().last(40)));
        // The hall is the relay of all others.
        if member.name() != "hall" {
            member.until_registered().await.unwrap();
        }
        // Others may still be on their way to the hall.
        let checked = async || member.cli(&["netcheck"]).ok();
        let met = until("all checks to be good", checked).await;
        met.unwrap_or_else(|error| panic!("{error}: {:?}", member.cli(&["netcheck"])));
    }

    /// What a member's entrance answers to its flow of this number, and the tunnel that it took.
    async fn ask(&self, who: &str, flow: u64, host: &str, port: u16) -> (u8, Option<String>) {
        let number = MEMBERS.iter().position(|name| *name == who).unwrap();
        let entrance = (Ipv4Addr::LOCALHOST, 1080).into();
        let mut stream = self.hosts[number].connect(entrance).unwrap();
        let code = socks5_ask(&mut stream, host, port).await.unwrap();
        if code == SUCCEEDED {
            echoes(&mut stream).await;
        }
        let told = self.members[number].call("why", json!({"flow": flow}));
        let told = told.await.unwrap();
        assert_eq!(told["target"], format!("{host}:{port}"));
        (code, told["tunnel"].as_str().map(str::to_owned))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_on_one_page_carries_for_its_members_and_for_nobody_else() {
    let lines = shipped("network.toml").lines().count() + shipped("network.rhai").lines().count();
    assert!(lines <= 80, "{lines} lines are more than a page");
    let village = Village::found().await;
    let ways = [
        ("ann", 1, "ben.wh", "direct"),
        ("ann", 2, "web.dan.wh", "relay"),
        ("dan", 1, "box.cat.wh", "onion"),
        ("dan", 2, "news.example", "onion"),
    ];
    for (who, flow, host, tunnel) in ways {
        let (code, took) = village.ask(who, flow, host, 80).await;
        assert_eq!((code, took.as_deref()), (SUCCEEDED, Some(tunnel)), "{host}");
    }
    for (flow, host, port) in [(1, "news.example", 25), (2, "zoe.wh", 80)] {
        let (code, _) = village.ask("ben", flow, host, port).await;
        assert_eq!(code, NOT_ALLOWED, "{host}");
    }

    // Zoe found the page somewhere: it is the same for all, but she is not in it.
    let host = village.host(MEMBERS.len());
    let zoe = Setup::new("zoe").unwrap().listen("0.0.0.0:4433");
    let zoe = zoe.in_namespace(&host);
    fs::write(zoe.folder().join("network.rhai"), shipped("network.rhai")).unwrap();
    let zoe = zoe.config(&village.config).start().await.unwrap();
    // She comes as far as the door of each member.
    for member in MEMBERS.iter().take(4) {
        let pinged = zoe.cli(&["ping", member, "--count", "1"]);
        let refused = pinged.unwrap_err().to_string();
        let denied = ["closed by peer: 1", "denied by the node's policy"];
        let is_denied = denied.iter().any(|words| refused.contains(words));
        assert!(is_denied, "{member}: {refused}");
    }
    let entrance = (Ipv4Addr::LOCALHOST, 1080).into();
    for target in ["ben.wh", "web.dan.wh", "box.cat.wh", "news.example"] {
        let mut flow = host.connect(entrance).unwrap();
        let code = socks5_ask(&mut flow, target, 80).await.unwrap();
        assert_ne!(code, SUCCEEDED, "{target}: {}", zoe.log().last(20));
    }
}

/// Parties add numbers up so that none is told another's: additive shares, each sent to one party
/// over the overlay, without a server, a chain or a coin.
#[tokio::test(flavor = "multi_thread")]
async fn three_parties_compute_a_sum_over_services_of_their_peers() {
    const SECRETS: [u64; 3] = [u64::MAX - 5, 1_000, 77];
    let parties = Party::three().await;
    let computing = parties.iter().zip(SECRETS);
    let computing = computing.map(|(party, secret)| party.sum(secret));
    let total = SECRETS.into_iter().fold(0, u64::wrapping_add);
    assert_eq!(join_all(computing).await, [total; 3]);
    for party in &parties {
        for flow in 1..=4 {
            let told = party.node.call("why", json!({"flow": flow})).await.unwrap();
            assert_eq!(told["tunnel"], "direct", "{told}");
        }
    }
}

/// One who computes, with a service for each round: one round may begin while another ends.
struct Party {
    node: Daemon,
    others: Vec<&'static str>,
    shares: TcpListener,
    partials: TcpListener,
}

impl Party {
    async fn three() -> Vec<Self> {
        let names = ["ada", "bob", "eve"];
        let identities = names.map(|_| Identity::generate().unwrap());
        let mut parties: Vec<Self> = Vec::new();
        for (name, identity) in names.into_iter().zip(&identities) {
            let shares = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let partials = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let setup = Setup::with_identity(name, identity).unwrap().entrances();
            let mut setup = setup
                .listen("127.0.0.1:0")
                .service("share", shares.local_addr().unwrap())
                .service("partial", partials.local_addr().unwrap())
                .script("rules.rhai", "fn route(c) { c.node.direct().closed() }");
            let mut others = Vec::new();
            for (other, identity) in names.into_iter().zip(&identities) {
                if other == name {
                    continue;
                }
                // Those that run already are dialled.
                let known = parties.iter().find(|party| party.node.name() == other);
                let address = known.and_then(|party| party.node.listen());
                let address = address.map(|address| format!("addresses = [\"{address}\"]"));
                setup = setup.peer_id(other, identity.id(), 2, &address.unwrap_or_default());
                others.push(other);
            }
            parties.push(Self {
                node: setup.start().await.unwrap(),
                others,
                shares,
                partials,
            });
        }
        for party in &parties {
            until("all parties to be connected", async || {
                let peers = party.node.call("peers", json!({})).await.ok()?;
                let mut peers = peers["peers"].as_array()?.iter();
                peers.all(|peer| peer["online"] == true).then_some(())
            })
            .await
            .unwrap();
        }
        parties
    }

    /// The sum of all secrets, of which this is one.
    async fn sum(&self, secret: u64) -> u64 {
        let given: [u64; 2] = rand::random();
        let kept = secret.wrapping_sub(given[0]).wrapping_sub(given[1]);
        let (_, got) = tokio::join!(self.send("share", given), receive(&self.shares));
        let partial = kept.wrapping_add(got);
        let told = self.send("partial", [partial; 2]);
        let (_, others) = tokio::join!(told, receive(&self.partials));
        partial.wrapping_add(others)
    }

    async fn send(&self, service: &str, numbers: [u64; 2]) {
        let entrance = self.node.entrance("socks5").unwrap();
        for (other, number) in self.others.iter().zip(numbers) {
            let host = format!("{service}.{other}.wh");
            let mut flow = socks5_connect(entrance, &host, 80).await.unwrap();
            flow.write_u64(number).await.unwrap();
        }
    }
}

/// What both others sent, added up.
async fn receive(listener: &TcpListener) -> u64 {
    let mut sum = 0_u64;
    for _ in 0..2 {
        let (mut flow, _) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
        sum = sum.wrapping_add(flow.read_u64().await.unwrap());
    }
    sum
}

/// Two nodes that know each other, and who else may come.
struct Pair {
    near: Daemon,
    far: Daemon,
    _echo: EchoServer,
}

impl Pair {
    async fn start(network: &str, accept: &str) -> Self {
        let echo = EchoServer::start([127, 0, 0, 1].into()).await.unwrap();
        let near = Identity::generate().unwrap();
        let name = |role: &str| format!("{network}-{role}");
        let far = Setup::new(&name("far")).unwrap().listen("127.0.0.1:0");
        let far = far.peer_id(&name("near"), near.id(), 2, "");
        let far = far
            .service("echo", echo.address())
            .script("rules.rhai", accept);
        // Who has no use for strangers asks no rule about them.
        let far = far.config("[hop]\nenabled = true");
        let far = far.start().await.unwrap();
        let near = Setup::with_identity(&name("near"), &near)
            .unwrap()
            .entrances();
        let near = near.script("rules.rhai", "fn route(c) { c.node.direct().closed() }");
        let near = near.peer(&far, 2).start().await.unwrap();
        Self {
            near,
            far,
            _echo: echo,
        }
    }
}

/// An application speaks JSON-RPC with the same socket that the console's commands use.
#[tokio::test(flavor = "multi_thread")]
async fn applications_and_admins_command_test_private_and_public_networks_side_by_side() {
    const MEMBERS_ONLY: &str = "fn accept(p) { if p.trust >= 2 { allow() } else { deny(\"no\") } }";
    const ANYBODY: &str = "fn accept(p) { allow() }";
    let (test, private, public) = tokio::join!(
        Pair::start("test", MEMBERS_ONLY),
        Pair::start("private", MEMBERS_ONLY),
        Pair::start("public", ANYBODY),
    );
    for (network, pair) in [("test", &test), ("private", &private), ("public", &public)] {
        let app = async |method, params| pair.near.call(method, params).await.unwrap();
        let known = app("rpc.discover", json!({})).await;
        let methods = known["methods"].as_array().unwrap().iter();
        let methods: BTreeSet<_> = methods.filter_map(|one| one["name"].as_str()).collect();
        for method in ["status", "peers", "flows", "why", "ping", "peer.add"] {
            assert!(methods.contains(method), "{method} is not in {methods:?}");
        }
        let by_app = app("ping", json!({"peer": format!("{network}-far")})).await;
        assert!(by_app.is_object(), "{by_app}");
        let entrance = pair.near.entrance("socks5").unwrap();
        let host = format!("echo.{network}-far.wh");
        let mut flow = socks5_connect(entrance, &host, 80).await.unwrap();
        echoes(&mut flow).await;

        // What the admin reads is what the application got, and only of this network.
        let by_admin = pair.near.cli(&["peers", "--json"]).unwrap();
        let by_admin: Value = serde_json::from_str(&by_admin).unwrap();
        let by_app = app("peers", json!({})).await;
        for peers in [&by_admin, &by_app] {
            let peers = peers["peers"].as_array().unwrap();
            let names: Vec<_> = peers
                .iter()
                .map(|peer| peer["name"].as_str().unwrap())
                .collect();
            assert_eq!(names, [format!("{network}-far")]);
        }
        let stranger = stranger_of(pair).await;
        let pinged = stranger.cli(&["ping", &format!("{network}-far"), "--count", "1"]);
        let log = pair.far.log().last(20);
        assert_eq!(
            pinged.is_ok(),
            network == "public",
            "{network}: {pinged:?}\n{log}"
        );
    }
}

/// Somebody whom nobody knows, and who knows where to knock.
async fn stranger_of(pair: &Pair) -> Daemon {
    let stranger = Setup::new("stranger").unwrap().peer(&pair.far, 2);
    stranger.start().await.unwrap()
}

async fn echoes(flow: &mut TcpStream) {
    flow.write_all(b"anybody?").await.unwrap();
    let mut back = [0; 8];
    timeout(LIMIT, flow.read_exact(&mut back))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&back, b"anybody?");
}

/// The page without `[node]`, with these members at their places.
fn shared_config(identities: &[Identity]) -> String {
    let page = shipped("network.toml");
    let (_, shared) = page.split_once("\n\n# Who belongs").unwrap();
    let mut ids = identities.iter().map(Identity::id);
    let mut places = (0..).map(place);
    let lines = shared
        .lines()
        .skip(1)
        .map(|line| match line.split_once(" = ") {
            Some(("id", _)) => format!("id = \"{}\"", ids.next().unwrap()),
            Some(("addresses", _)) => format!("addresses = [\"{}\"]", places.next().unwrap()),
            _ => line.to_owned(),
        });
    lines.collect::<Vec<_>>().join("\n")
}

/// Where a member listens, by its place in the page.
fn place(number: usize) -> SocketAddr {
    let net = u8::try_from(number).unwrap() + 1;
    (Ipv4Addr::new(20, net, 0, 2), 4433).into()
}

fn shipped(name: &str) -> String {
    fs::read_to_string(workspace::root().join("scripts").join(name)).unwrap()
}
