//! Targets that no exit dials, whoever asks and on whatever way: tried on real daemons in a network
//! of their own, whose kernel counts what leaves for them.
//!
//! ```text
//! client --- hop        exits' host (9.8.7.1) ======= 9.8.7.2, all else that there is
//!    |  \     |
//!  plain  scripted      the second has a script that allows everything
//! ```

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use serde_json::json;
use tokio::net::TcpListener;
use wormholes_tests::{Answers, Daemon, Link, NameServer, Namespace, Setup, socks5_ask};

const TABLE: &str = include_str!("../cases/banned.txt");

/// No other traffic goes to this port.
const PORT: u16 = 4444;
const INSIDE: Ipv4Addr = Ipv4Addr::new(9, 8, 7, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(9, 8, 7, 2);

/// By the label of the entrance.
const SCRIPT: &str = r#"
fn route(c) {
    switch c.label {
        "plain" => peer("plain").direct().exit(),
        "scripted" => peer("scripted").direct().exit(),
        "plain onion" => onion(2).via(peer("hop")).to(peer("plain")).exit(),
        "scripted onion" => onion(2).via(peer("hop")).to(peer("scripted")).exit(),
        "local" => direct().timeout("2s").closed(),
        "checked" => {
            if c.ip == () { return need("ip", direct()); }
            if c.ip == "9.8.7.2" { direct().timeout("2s").closed() } else { block("elsewhere") }
        },
        _ => block("not in this test"),
    }
}"#;
const LABELS: [&str; 6] = [
    "plain",
    "scripted",
    "plain onion",
    "scripted onion",
    "local",
    "checked",
];
const WAYS_TO_EXITS: [&str; 4] = ["plain", "scripted", "plain onion", "scripted onion"];

/// Replies of RFC 1928, section 6.
const SUCCEEDED: u8 = 0;
const NOT_ALLOWED: u8 = 2;
const HOST_UNREACHABLE: u8 = 4;

/// How the kernel counts what is sent to the port, except to the outside.
const COUNT: &str = r"table inet banned {
    counter sent { }
    chain output {
        type filter hook output priority 0;
        ip daddr 9.8.7.2 accept
        tcp dport 4444 counter name sent
    }
}";

struct Scene {
    host: Namespace,
    _world: Namespace,
    _names: NameServer,
    client: Daemon,
    _hop: Daemon,
    plain: Daemon,
    scripted: Daemon,
}

fn rows(kind: &str) -> Vec<&'static str> {
    let lines = TABLE.lines().filter_map(|line| line.split_once(' '));
    lines
        .filter(|(found, _)| *found == kind)
        .map(|(_, host)| host)
        .collect()
}

/// A name that resolves to the `number`th address of the table.
fn name(number: usize) -> String {
    format!("banned-{number}.example")
}

impl Scene {
    async fn start() -> Self {
        let (host, world) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let link = Link {
            first: INSIDE,
            second: OUTSIDE,
        };
        host.join(&world, link).unwrap();
        // Everything that is not on this host leaves it, and comes nowhere.
        let out = OUTSIDE.to_string();
        host.ip(&["route", "add", "default", "via", &out]).unwrap();
        host.ip(&["-6", "route", "add", "default", "dev", "lo"])
            .unwrap();
        host.nft(COUNT).unwrap();
        listen_outside(&world);
        let socket = host.enter(|| Ok(UdpSocket::bind("127.0.0.1:53")?)).unwrap();
        let names = NameServer::start(socket, answers()).unwrap();

        let mut client = Setup::new("client")
            .unwrap()
            .in_namespace(&host)
            .name_server(Ipv4Addr::LOCALHOST.into())
            .script("rules.rhai", SCRIPT);
        for label in LABELS {
            client = client.config(&format!(
                "[[entrance]]\nkind = \"socks5\"\nlisten = \"127.0.0.1:0\"\nlabel = {label:?}"
            ));
        }
        let node = |name: &str, number: u8| {
            Setup::new(name)
                .unwrap()
                .in_namespace(&host)
                .name_server(Ipv4Addr::LOCALHOST.into())
                .listen(&format!("127.{number}.0.1:0"))
                .config("[hop]\nenabled = true")
                .peer_id("client", client.id(), 2, "")
        };
        let exits = "[exit]\nenabled = true\nallow = [\"0.0.0.0/0\", \"::/0\"]";
        let allow = "fn accept(p) { allow() }\nfn exit(x) { allow() }";
        let hop = node("hop", 1).start().await.unwrap();
        let plain = node("plain", 2).config(exits).start().await.unwrap();
        let scripted = node("scripted", 3).config(exits).script("exit.rhai", allow);
        let scripted = scripted.start().await.unwrap();
        for peer in [&hop, &plain, &scripted] {
            client = client.peer(peer, 2);
        }
        Self {
            client: client.start().await.unwrap(),
            host,
            _world: world,
            _names: names,
            _hop: hop,
            plain,
            scripted,
        }
    }

    /// The reply to a request for `target` at an entrance.
    async fn ask(&self, label: &str, target: &str) -> u8 {
        self.ask_port(label, target, PORT).await
    }

    async fn ask_port(&self, label: &str, target: &str, port: u16) -> u8 {
        let entrance = self.client.entrance(label).unwrap();
        let mut stream = self.host.connect(entrance).unwrap();
        let reply = socks5_ask(&mut stream, target, port).await;
        reply.unwrap_or_else(|error| panic!("{label}: {target}: {error}"))
    }

    /// How often the exit at the end of a way refused an address.
    async fn refused(&self, label: &str) -> u64 {
        let exit = match label.starts_with("plain") {
            true => &self.plain,
            false => &self.scripted,
        };
        let report = exit.call("exit", json!({})).await.unwrap();
        let refused = report["refused"].as_object().unwrap();
        let forbidden = refused
            .get("forbidden address")
            .map_or(0, |n| n.as_u64().unwrap());
        assert_eq!(refused.len(), usize::from(forbidden > 0), "{report}");
        forbidden
    }

    /// Packets that left for a banned address.
    fn sent(&self) -> u64 {
        self.host.counted("sent").unwrap()
    }
}

/// Takes everybody in, and says nothing.
fn listen_outside(world: &Namespace) {
    let listener = world.enter(|| Ok(std::net::TcpListener::bind((OUTSIDE, PORT))?));
    let listener = listener.unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
}

fn answers() -> Answers {
    let banned = rows("address");
    let mut answers: Answers = banned
        .iter()
        .enumerate()
        .map(|(number, ip)| (name(number), vec![vec![ip.parse().unwrap()]]))
        .collect();
    let (good, bad) = (IpAddr::V4(OUTSIDE), IpAddr::from([10, 0, 0, 1]));
    let changing = vec![vec![good], vec![bad], vec![good], vec![bad]];
    for label in LABELS {
        let label = label.replace(' ', "-");
        answers.insert(format!("changing.{label}.example"), changing.clone());
        answers.insert(format!("both.{label}.example"), vec![vec![bad, good]]);
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn no_exit_dials_a_banned_address_on_any_way() {
    let scene = Scene::start().await;
    let (addresses, spellings) = (rows("address"), rows("spelling"));
    assert!(addresses.len() >= 60 && spellings.len() >= 20);
    for label in WAYS_TO_EXITS {
        // What is not banned passes, so that a refusal means something.
        assert_eq!(
            scene.ask(label, &OUTSIDE.to_string()).await,
            SUCCEEDED,
            "{label}"
        );
        let before = scene.refused(label).await;
        for (number, address) in addresses.iter().enumerate() {
            let reply = scene.ask(label, address).await;
            assert_eq!(reply, NOT_ALLOWED, "{label}: {address}");
            let reply = scene.ask(label, &name(number)).await;
            assert_eq!(reply, NOT_ALLOWED, "{label}: a name of {address}");
        }
        let asked = 2 * addresses.len() as u64;
        assert_eq!(scene.refused(label).await, before + asked, "{label}");
        // These do not even leave the entrance.
        for spelling in &spellings {
            let reply = scene.ask(label, spelling).await;
            assert_eq!(reply, HOST_UNREACHABLE, "{label}: {spelling}");
        }
        assert_eq!(scene.refused(label).await, before + asked, "{label}");
    }
    assert_eq!(scene.sent(), 0, "something was dialled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_changes_is_dialled_as_it_was_checked() {
    let scene = Scene::start().await;
    for label in WAYS_TO_EXITS {
        let name = label.replace(' ', "-");
        let changing = format!("changing.{name}.example");
        for expected in [SUCCEEDED, NOT_ALLOWED, SUCCEEDED, NOT_ALLOWED] {
            assert_eq!(scene.ask(label, &changing).await, expected, "{label}");
        }
        // Of several addresses only those that passed are dialled.
        let both = format!("both.{name}.example");
        assert_eq!(scene.ask(label, &both).await, SUCCEEDED, "{label}");
    }
    // A rule here that saw an address decides about that one.
    let changing = "changing.checked.example";
    for expected in [SUCCEEDED, NOT_ALLOWED, SUCCEEDED, NOT_ALLOWED] {
        assert_eq!(scene.ask("checked", changing).await, expected);
    }
    assert_eq!(scene.sent(), 0, "something was dialled");
}

/// What is private is this machine's own business; what is the node's own is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_dial_goes_everywhere_but_to_the_node_itself() {
    let scene = Scene::start().await;
    for address in ["10.0.0.1", "192.168.0.1", "169.254.169.254", "127.0.0.1"] {
        let before = scene.sent();
        let reply = scene.ask("local", address).await;
        assert!(
            ![SUCCEEDED, NOT_ALLOWED].contains(&reply),
            "{address}: {reply}"
        );
        assert!(scene.sent() > before, "{address} was not dialled");
    }
    let before = scene.sent();
    for spelling in rows("spelling") {
        let reply = scene.ask("local", spelling).await;
        assert_eq!(reply, HOST_UNREACHABLE, "{spelling}");
    }
    assert_eq!(scene.sent(), before, "something was dialled");
    let own = scene.client.entrance("plain").unwrap();
    for host in [
        "127.0.0.1",
        "0.0.0.0",
        "::",
        "::ffff:127.0.0.1",
        "[::ffff:7f00:1]",
    ] {
        let reply = scene.ask_port("local", host, own.port()).await;
        assert_eq!(reply, NOT_ALLOWED, "{host}");
    }
    for name in [
        "x.onion",
        "a.i2p",
        "printer.local",
        "db.internal",
        "tv.home.arpa",
    ] {
        assert_eq!(scene.ask("local", name).await, NOT_ALLOWED, "{name}");
    }
}
