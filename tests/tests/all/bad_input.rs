//! Random, truncated, oversized and slow input on every port, and crowds that say nothing.
//!
//! Honest programs notice nothing, what is refused is counted, and the memory goes back.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::Result;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket, UnixStream},
};
use wormholes_tests::{
    Burden, Crowd, Daemon, EchoServer, Foremost, HonestFlow, Metrics, Setup, Turns,
    raise_file_limit, soak_rounds, until,
};

/// What a storm may cost while it lasts.
const MAX_GROWTH_BYTES: u64 = 64 << 20;
/// Connections that say nothing.
const CROWD: usize = 10_000;
const AT_EACH_DOOR: usize = CROWD / Crowd::DOORS;
/// SOCKS5 and HTTP: who is too many goes at once.
const LISTENED_TO: Door = Door {
    names: &["wormholes_connections_refused_total"],
    doors: 2,
    may_stay: 1024,
};
/// Who comes to a TCP entrance has a flow, without a word.
const FORWARDED: Door = Door {
    names: &[
        "wormholes_flows_open",
        "wormholes_flows_total{entrance=\"tcp\"",
    ],
    doors: 1,
    may_stay: 0,
};
/// Operators have 32 seats.
const CONTROL: Door = Door {
    names: &["wormholes_control_connections_refused_total"],
    doors: 1,
    may_stay: 32,
};
/// Of those who do not end their hello, as many wait as handshakes may last at once.
const QUIC: Door = Door {
    names: &["wormholes_peer_refusals_total{what=\"call\"}"],
    doors: 1,
    may_stay: 512,
};
/// Longer than a node waits for a beginning here.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where a node listens.
#[derive(Debug, Clone)]
struct Ports {
    tcp: [SocketAddr; 3],
    control: PathBuf,
    quic: SocketAddr,
}

#[tokio::test]
async fn storms_on_every_port_are_refused_and_slow_nobody() {
    let _foremost = Foremost::take().await.unwrap();
    let node = setup()
        .config("[log]\nlevel = \"warn\"\n[limits]\nhandshake_seconds = 1")
        .start()
        .await
        .unwrap();
    let echo = EchoServer::start(Ipv4Addr::LOCALHOST).await.unwrap();
    let mut honest = honest(&node, &echo).await;
    let ports = Ports::of(&node);
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let storms = Burden::start(1, move |_, turn| {
        let rng = ChaCha20Rng::seed_from_u64(seed.wrapping_add(turn as u64));
        let ports = ports.clone();
        async move { ports.storm(turn, rng).await }
    })
    .unwrap();
    let before = node.resident_bytes().unwrap();
    let grown = || node.resident_bytes().unwrap().saturating_sub(before);
    let (mut trips, mut opens) = (Turns::default(), Turns::default());
    let mut turns = 0;
    while turns < soak_rounds(15) || trips.go_on() || opens.go_on() {
        turns += 1;
        storms.rest().await.unwrap();
        let quiet = waits(&mut honest).await;
        storms.work().await.unwrap();
        let burdened = waits(&mut honest).await;
        trips.take(&quiet.0, &burdened.0);
        opens.take(&quiet.1, &burdened.1);
        assert!(grown() < MAX_GROWTH_BYTES, "grew by {} bytes", grown());
    }
    until("each kind at each port", async || {
        (storms.done() >= KINDS * PORTS).then_some(())
    })
    .await
    .unwrap();
    storms.rest().await.unwrap();
    eprintln!("{} storms, {} KiB more", storms.done(), grown() >> 10);
    eprintln!("{}", trips.check("round trips").unwrap());
    eprintln!("{}", opens.check("new flows").unwrap());
    let metrics = Metrics::read(&node).await.unwrap();
    for entrance in ["socks5", "http"] {
        let refused = format!("wormholes_connections_refused_total{{entrance=\"{entrance}\"");
        assert!(metrics.sum(&refused) > 0.0, "{entrance}");
    }
    until("memory to fall back", async || {
        (grown() < MAX_GROWTH_BYTES / 2).then_some(())
    })
    .await
    .unwrap();
    assert!(node.call("status", json!({})).await.is_ok());
}

#[tokio::test]
async fn ten_thousand_silent_connections_cost_little_and_slow_nobody() {
    let _foremost = Foremost::take().await.unwrap();
    // Each connection is a descriptor here, and at the end of a flow another.
    raise_file_limit(CROWD as u64 * 3 / 2).unwrap();
    let loopback = Ipv4Addr::LOCALHOST;
    let echo = EchoServer::start(loopback).await.unwrap();
    let silence = EchoServer::start(loopback).await.unwrap();
    let (empty, crowded) = (doors(&silence).await, doors(&silence).await);
    let mut honest = [honest(&empty, &echo).await, honest(&crowded, &echo).await];
    let mut crowd = Crowd::before(&crowded, AT_EACH_DOOR).await.unwrap();
    let before = crowded.resident_bytes().unwrap();
    let grown = || crowded.resident_bytes().unwrap().saturating_sub(before);

    crowd.come(AT_EACH_DOOR).await.unwrap();
    for door in [LISTENED_TO, FORWARDED, CONTROL, QUIC] {
        door.counts(&crowd, &crowded).await;
    }
    let (mut trips, mut opens) = (Turns::default(), Turns::default());
    let (mut turns, mut most) = (0, 0);
    while turns < soak_rounds(15) || trips.go_on() || opens.go_on() {
        turns += 1;
        // For those whose time is up. What is measured is who stands there, not who arrives.
        crowd.come(AT_EACH_DOOR / 20).await.unwrap();
        for door in [LISTENED_TO, FORWARDED] {
            door.counts(&crowd, &crowded).await;
        }
        let quiet = waits(&mut honest[0]).await;
        let burdened = waits(&mut honest[1]).await;
        trips.take(&quiet.0, &burdened.0);
        opens.take(&quiet.1, &burdened.1);
        most = grown().max(most);
        assert!(most < MAX_GROWTH_BYTES, "grew by {most} bytes");
    }
    eprintln!("{}", trips.check("round trips").unwrap());
    eprintln!("{}", opens.check("new flows").unwrap());

    drop(crowd);
    until("the crowd to be forgotten", async || {
        let metrics = Metrics::read(&crowded).await.ok()?;
        let left =
            metrics.sum("wormholes_connections_pending") + metrics.sum("wormholes_flows_open");
        let too_slow = metrics.sum("wormholes_peer_refusals_total{what=\"handshake\"}");
        let answers = crowded.call("status", json!({})).await.is_ok();
        // The honest flow is open.
        let is_forgotten = left <= 1.0 && too_slow > 0.0 && answers;
        (is_forgotten && grown() < MAX_GROWTH_BYTES / 2).then_some(())
    })
    .await
    .unwrap();
    eprintln!("{} KiB more, {} KiB in the end", most >> 10, grown() >> 10);
}

/// What is counted of a crowd at a door.
#[derive(Debug)]
struct Door {
    names: &'static [&'static str],
    /// That are counted together.
    doors: usize,
    /// For as long as nobody leaves.
    may_stay: usize,
}

impl Door {
    /// Waits until all are counted who may not stay.
    async fn counts(&self, crowd: &Crowd, node: &Daemon) {
        let (come, mut counted) = (self.doors * crowd.came(), 0.0);
        let all = until("a crowd to be counted", async || {
            let metrics = Metrics::read(node).await.ok()?;
            counted = self.names.iter().map(|name| metrics.sum(name)).sum();
            (counted >= (come - self.may_stay) as f64).then_some(())
        });
        assert!(all.await.is_ok(), "{counted} of {come}: {self:?}");
    }
}

/// All that a node can listen on, with a TCP entrance that leads to `server`.
async fn doors(server: &EchoServer) -> Daemon {
    let tcp = "[[entrance]]\nkind = \"tcp\"\nlisten = \"127.0.0.1:0\"";
    setup()
        .config("[log]\nlevel = \"warn\"")
        .config(&format!("{tcp}\ntarget = \"{}\"", server.address()))
        .start()
        .await
        .unwrap()
}

async fn honest(node: &Daemon, echo: &EchoServer) -> HonestFlow {
    let entrance = node.entrance("socks5").unwrap();
    HonestFlow::open(entrance, echo.address()).await.unwrap()
}

/// Round trips of a flow that lives, and the opening of others.
async fn waits(honest: &mut HonestFlow) -> (Vec<Duration>, Vec<Duration>) {
    let trips = honest.trips(100).await.unwrap();
    (trips, honest.opens(100).await.unwrap())
}

/// All that a node can listen on, and a script that lets everything out.
fn setup() -> Setup {
    Setup::new("target")
        .unwrap()
        .listen("127.0.0.1:0")
        .entrances()
        .config("[metrics]\nlisten = \"127.0.0.1:0\"")
        .config("[relay]\nenabled = true\n[hop]\nenabled = true")
        .script("direct.rhai", "fn route(c) { direct() }")
}

/// Kinds of mischief.
const KINDS: usize = 5;
/// Ports of [`Ports`].
const PORTS: usize = 5;

impl Ports {
    fn of(node: &Daemon) -> Self {
        Self {
            tcp: [
                node.entrance("socks5").unwrap(),
                node.entrance("http").unwrap(),
                node.metrics().unwrap(),
            ],
            control: node.socket(),
            quic: node.listen().unwrap(),
        }
    }

    /// One kind of mischief at one port; all kinds come to all ports in turn.
    async fn storm(&self, turn: usize, mut rng: ChaCha20Rng) -> Result<()> {
        let bytes = bad_bytes(&mut rng, turn / PORTS % KINDS);
        match (turn % PORTS, self.tcp.get(turn % PORTS)) {
            (_, Some(port)) => storm(TcpStream::connect(port).await?, bytes).await,
            (3, None) => storm(UnixStream::connect(&self.control).await?, bytes).await,
            (_, None) => storm_udp(self.quic, &mut rng).await?,
        }
        Ok(())
    }
}

/// What is sent, and whether no more is to come: noise, beginnings that are cut, too much of what is
/// right, and a beginning after which nothing comes.
fn bad_bytes(rng: &mut ChaCha20Rng, kind: usize) -> (Vec<u8>, bool) {
    let mut noise = vec![0; rng.random_range(1..4096)];
    rng.fill_bytes(&mut noise);
    let beginnings: [&[u8]; 6] = [
        &[5, 1, 0, 5, 1, 0, 3, 255],
        &[5, 255],
        &[5, 2, 0, 2, 1, 255],
        b"CONNECT a.example:443 HTTP/1.1\r\nHost",
        b"GET http://a.example/ HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n",
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":",
    ];
    let beginning = beginnings[rng.random_range(0..beginnings.len())];
    match kind {
        0 => (noise, true),
        1 => (beginning.to_vec(), true),
        2 => ([beginning, &noise].concat(), true),
        3 => ([beginning, &vec![b'A'; 1 << 20]].concat(), true),
        _ => (beginning.to_vec(), false),
    }
}

/// Sends all that the node takes, and reads until it closes or patience ends.
async fn storm(
    mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin,
    (bytes, is_all): (Vec<u8>, bool),
) {
    let exchange = async {
        let _closed_early = stream.write_all(&bytes).await;
        if is_all {
            let _closed_early = stream.shutdown().await;
        }
        let mut answer = Vec::new();
        let _reset = (&mut stream).take(1 << 20).read_to_end(&mut answer).await;
    };
    let _cut_off = tokio::time::timeout(PATIENCE, exchange).await;
}

async fn storm_udp(port: SocketAddr, rng: &mut ChaCha20Rng) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    for _ in 0..50 {
        let mut datagram = vec![0; rng.random_range(1..1400)];
        rng.fill_bytes(&mut datagram);
        // The form of a QUIC long header (RFC 9000, section 17.2), so that it is looked at.
        datagram[0] |= 0xc0;
        let _full_queue = socket.send_to(&datagram, port).await;
    }
    Ok(())
}
