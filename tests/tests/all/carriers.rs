//! Both carriers between nodes: what goes over TCP where UDP is blocked, and what a rule wants.

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use wormholes_proto::{Host, Target};
use wormholes_tests::{
    Association, Daemon, EchoServer, LIMIT, Link, Namespace, Setup, socks5_ask, until,
};

const SCRIPT: &str = r#"
fn route(c) {
    if c.user == "onion" { return onion(1).to(peer("exit")).exit().closed(); }
    switch c.port {
        1 => peer("exit").direct().closed(),
        2 => peer("friend").relayed(relay("relay")).closed(),
        3 => onion(1).to(peer("exit")).closed(),
        4 => peer("exit").direct().carrier("tcp").closed(),
        5 => peer("exit").direct().carrier("quic").closed(),
        6 => onion(1).to(peer("exit")).carrier("tcp").closed(),
        _ => peer("exit").direct().exit().closed(),
    }
}"#;

/// What goes to the other host, by what carries it.
const COUNT: &str = "table inet carried {
    counter datagrams { }
    counter segments { }
    chain output {
        type filter hook output priority 0;
        oifname != lo meta l4proto udp counter name datagrams
        oifname != lo meta l4proto tcp counter name segments
    }
}";
/// A name that the exit knows.
const FAR: &str = "far.example";
const HERE: Ipv4Addr = Ipv4Addr::new(10, 72, 1, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 72, 1, 2);
const BULK_BYTES: usize = 1 << 20;
const DATAGRAMS: usize = 100;
const DATAGRAM_BYTES: usize = 1000;
/// Keep-alives, acknowledgements, records.
const SMALL_BYTES: u64 = 100_000;

/// Datagrams, or segments, do not pass between the hosts; nobody is told.
fn censor(protocol: &str) -> String {
    format!(
        "table inet censor {{
            counter blocked {{ }}
            chain output {{
                type filter hook output priority 1;
                oifname != lo meta l4proto {protocol} counter name blocked drop
            }}
            chain input {{
                type filter hook input priority 1;
                iifname != lo meta l4proto {protocol} drop
            }}
        }}"
    )
}

/// A client on one host; on the other a relay, a friend that only the relay reaches, and an exit
/// that is a hop too and offers a service.
struct Scene {
    here: Namespace,
    there: Namespace,
    client: Daemon,
    echo: EchoServer,
    _others: [Daemon; 3],
}

impl Scene {
    /// Where a protocol is blocked from the start.
    async fn start(blocked: &str) -> Self {
        let [here, there] = [(); 2].map(|()| Namespace::new().unwrap());
        let link = Link {
            first: HERE,
            second: THERE,
        };
        here.join(&there, link).unwrap();
        here.nft(COUNT).unwrap();
        for host in [&here, &there] {
            host.nft(&censor(blocked)).unwrap();
        }
        let echo = EchoServer::start_in(&there).unwrap();
        let setup = |name: &str| Setup::new(name).unwrap().in_namespace(&there);
        let client = Setup::new("client").unwrap().in_namespace(&here);
        let listening = |name: &str, sections: &str| {
            let setup = setup(name).listen(&format!("{THERE}:0")).config(sections);
            setup.peer_id("client", client.id(), 2, "")
        };
        let friend = setup("friend").service("echo", echo.address());
        let friend = friend.peer_id("client", client.id(), 2, "");
        let relay = listening("relay", "[relay]\nenabled = true");
        let relay = relay.peer_id("friend", friend.id(), 2, "");
        let relay = relay.start().await.unwrap();
        let at_relay = format!(
            "addresses = [\"{}\"]\nregister = true",
            relay.listen().unwrap()
        );
        let friend = friend.peer_id("relay", relay.id(), 2, &at_relay);
        let friend = friend.start().await.unwrap();
        let exit = "[hop]\nenabled = true\nallow_private = true\n\
             [exit]\nenabled = true\nallow = [\"0.0.0.0/0\"]\nallow_private = true";
        let service = format!(
            "{exit}\n[[service]]\nname = \"echo\"\ntarget = \"{}\"\nmin_trust = 0",
            echo.address()
        );
        let exit = listening("exit", &service).name(FAR, Ipv4Addr::LOCALHOST.into());
        let exit = exit.start().await.unwrap();
        let client = client.entrances().script("rules.rhai", SCRIPT);
        let client = client.peer(&relay, 2).peer(&exit, 2);
        let client = client.peer_id("friend", friend.id(), 2, "via = [\"relay\"]");
        let client = client.start().await.unwrap();
        Self {
            here,
            there,
            client,
            echo,
            _others: [relay, friend, exit],
        }
    }

    /// A flow whose rule is found by its port; the reply code where it is refused.
    async fn ask(&self, host: &str, port: u16) -> Result<TcpStream, u8> {
        let entrance = self.client.entrance("socks5").unwrap();
        let mut stream = self.here.connect(entrance).unwrap();
        match socks5_ask(&mut stream, host, port).await.unwrap() {
            0 => Ok(stream),
            code => Err(code),
        }
    }

    /// Moves a megabyte there and back, and tells how many bytes went out over UDP and TCP.
    async fn moved(&self, host: &str, port: u16) -> [u64; 2] {
        let before = self.carried();
        let mut stream = self.ask(host, port).await.unwrap();
        let sent: Vec<u8> = (0..BULK_BYTES as u32 / 4)
            .flat_map(u32::to_be_bytes)
            .collect();
        let mut back = vec![0; sent.len()];
        let (mut reader, mut writer) = stream.split();
        let (read, written) = tokio::join!(reader.read_exact(&mut back), writer.write_all(&sent));
        written.and(read.map(drop)).unwrap();
        assert!(back == sent, "the bytes are others");
        let after = self.carried();
        [after[0] - before[0], after[1] - before[1]]
    }

    /// Has an association of this user send datagrams to a name that the exit knows, and come back.
    async fn datagrams(&self, user: &str) -> [u64; 2] {
        let echo = self.there.udp((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let target = Target::new(Host::parse(FAR).unwrap(), echo.local_addr().unwrap().port());
        let answering = async {
            let mut datagram = [0; DATAGRAM_BYTES];
            loop {
                let (len, from) = echo.recv_from(&mut datagram).await.unwrap();
                echo.send_to(&datagram[..len], from).await.unwrap();
            }
        };
        let asking = async {
            let entrance = self.client.entrance("socks5").unwrap();
            let control = self.here.connect(entrance).unwrap();
            let socket = self.here.udp((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let association = Association::open(control, socket, Some(user))
                .await
                .unwrap();
            let before = self.carried();
            for number in 0..DATAGRAMS {
                let sent = [number as u8; DATAGRAM_BYTES];
                let back = association.ask(&target, &sent).await.unwrap();
                assert_eq!(back, sent, "{user}");
            }
            let after = self.carried();
            [after[0] - before[0], after[1] - before[1]]
        };
        tokio::select! {
            carried = timeout(LIMIT, asking) => carried.expect("datagrams come back"),
            () = answering => unreachable!("it answers for ever"),
        }
    }

    fn carried(&self) -> [u64; 2] {
        ["datagrams", "segments"].map(|counter| self.here.counted_bytes(counter).unwrap())
    }

    async fn carriers(&self) -> Vec<Value> {
        let peers = self.client.call("peers", json!({})).await.unwrap();
        let peers = peers["peers"].as_array().unwrap().iter();
        let connected = peers.filter(|peer| peer["online"] == true);
        connected.map(|peer| peer["carrier"].clone()).collect()
    }
}

#[tokio::test]
async fn where_udp_is_blocked_everything_goes_over_tcp() {
    let scene = Scene::start("udp").await;
    let outside = scene.echo.address();
    for (host, port) in [
        ("echo.exit.wh", 1),
        ("echo.friend.wh", 2),
        ("echo.exit.wh", 3),
        (&outside.ip().to_string(), outside.port()),
        (FAR, outside.port()),
    ] {
        let [udp, tcp] = scene.moved(host, port).await;
        assert!(
            udp < SMALL_BYTES && tcp > BULK_BYTES as u64,
            "{host}:{port}: {udp} and {tcp}"
        );
    }
    for user in ["direct", "onion"] {
        let [udp, tcp] = scene.datagrams(user).await;
        assert!(
            udp < SMALL_BYTES && tcp > DATAGRAMS as u64 * DATAGRAM_BYTES as u64,
            "{user}: {udp} and {tcp}"
        );
    }
    let tried = scene.here.counted("blocked").unwrap();
    assert!(tried > 0, "QUIC was tried");
    let carriers = scene.carriers().await;
    assert!(
        carriers.len() >= 2 && carriers.iter().all(|carrier| carrier == "tcp"),
        "{carriers:?}"
    );
    assert!(
        scene.ask("echo.exit.wh", 5).await.is_err(),
        "QUIC was wanted"
    );
}

#[tokio::test]
async fn a_rule_chooses_the_carrier() {
    // A busy machine's handshake over QUIC may be late, and TCP the carrier that is kept.
    let scene = Scene::start("tcp").await;
    until("peers over QUIC", async || {
        let carriers = scene.carriers().await;
        (carriers.len() >= 2 && carriers.iter().all(|carrier| carrier == "quic")).then_some(())
    })
    .await
    .unwrap();
    for host in [&scene.here, &scene.there] {
        host.nft("delete table inet censor").unwrap();
    }
    for (port, is_tcp) in [
        (1, false),
        (4, true),
        (5, false),
        (4, true),
        (6, true),
        (3, false),
    ] {
        let [udp, tcp] = scene.moved("echo.exit.wh", port).await;
        let (chosen, other) = if is_tcp { (tcp, udp) } else { (udp, tcp) };
        assert!(
            chosen > BULK_BYTES as u64 && other < SMALL_BYTES,
            "{port}: {udp} and {tcp}"
        );
    }
    let why = scene.client.cli(&["why", "2"]).unwrap();
    assert!(why.contains("direct to exit, over tcp"), "{why}");
}

/// As a machine finds them that was suspended: the other end has given them up, and says so only when
/// it is spoken to.
#[tokio::test]
async fn connections_that_are_gone_cost_a_new_flow_nothing() {
    let scene = Scene::start("udp").await;
    drop(scene.ask("echo.exit.wh", 4).await.unwrap());
    let connections = scene.here.command("ss").arg("-Htn").output().unwrap();
    let connections = String::from_utf8(connections.stdout).unwrap();
    let far = format!(" {THERE}:");
    let mut ports = Vec::new();
    for line in connections.lines().filter(|line| line.contains(&far)) {
        let own = line.split_whitespace().nth(3).unwrap();
        ports.push(own.rsplit_once(':').unwrap().1.to_owned());
    }
    assert!(
        ports.len() >= 2,
        "one for orders, one for flows: {connections}"
    );
    let gone = format!(
        "table inet gone {{
            chain output {{
                type filter hook output priority 2;
                oifname != lo tcp sport {{ {} }} reject with tcp reset
            }}
        }}",
        ports.join(", ")
    );
    scene.here.nft(&gone).unwrap();
    let mut stream = scene.ask("echo.exit.wh", 4).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    timeout(LIMIT, stream.read_exact(&mut back))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&back, b"hello");
}
