//! Random, truncated, oversized and slow input on every port, and crowds that say nothing.
//!
//! After each storm the node must still serve honest programs, and its memory must be near what it
//! was before.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket, UnixStream},
};
use wormholes_tests::{
    Crowd, Daemon, EchoServer, Foremost, HonestFlow, Metrics, Setup, Site, Turns, curl,
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
/// Longer than any honest exchange here; what a slow sender is cut off by may be longer.
const PATIENCE: Duration = Duration::from_secs(2);

#[tokio::test]
async fn storms_on_every_port_are_survived() {
    let node = setup()
        .config("[limits]\nhandshake_seconds = 3")
        .start()
        .await
        .unwrap();
    let site = Site::start("honest", [127, 0, 0, 1].into(), None)
        .await
        .unwrap();
    let before = node.resident_bytes().unwrap();
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let tcp = [
        node.entrance("socks5").unwrap(),
        node.entrance("http").unwrap(),
        node.metrics().unwrap(),
    ];
    for round in 0..soak_rounds(60) {
        for port in tcp {
            storm_tcp(port, &bad_bytes(&mut rng, round)).await;
        }
        storm_control(&node, &bad_bytes(&mut rng, round)).await;
        storm_udp(node.listen().unwrap(), &mut rng).await;
        let grown = node.resident_bytes().unwrap().saturating_sub(before);
        assert!(grown < MAX_GROWTH_BYTES, "grew by {grown} bytes");
    }
    for entrance in ["socks5", "http"] {
        let scheme = if entrance == "http" {
            "http"
        } else {
            "socks5h"
        };
        let proxy = format!("{scheme}://{}", node.entrance(entrance).unwrap());
        let url = format!("http://{}/", site.address());
        let fetched = curl(&proxy, &url, &[]).await.unwrap();
        assert_eq!(fetched.status, 200, "{fetched:?}");
    }
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

/// A kind of mischief a round: noise, beginnings that are cut, and too much of what is right.
fn bad_bytes(rng: &mut ChaCha20Rng, round: usize) -> Vec<u8> {
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
    match round % 4 {
        0 => noise,
        1 => beginning.to_vec(),
        2 => [beginning, &noise].concat(),
        _ => [beginning, &vec![b'A'; 1 << 20]].concat(),
    }
}

/// Sends all that the node takes, and reads until it closes or patience ends.
async fn storm_tcp(port: SocketAddr, bytes: &[u8]) {
    if let Ok(stream) = TcpStream::connect(port).await {
        storm(stream, bytes).await;
    }
}

async fn storm_control(node: &Daemon, bytes: &[u8]) {
    if let Ok(stream) = UnixStream::connect(node.socket()).await {
        storm(stream, bytes).await;
    }
    let status = node.call("status", serde_json::json!({})).await;
    assert!(status.is_ok(), "{status:?}");
}

async fn storm(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, bytes: &[u8]) {
    let exchange = async {
        let _closed_early = stream.write_all(bytes).await;
        let _closed_early = stream.shutdown().await;
        let mut answer = Vec::new();
        let _reset = (&mut stream).take(1 << 20).read_to_end(&mut answer).await;
    };
    let _cut_off = tokio::time::timeout(PATIENCE, exchange).await;
}

async fn storm_udp(port: SocketAddr, rng: &mut ChaCha20Rng) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for _ in 0..50 {
        let mut datagram = vec![0; rng.random_range(1..1400)];
        rng.fill_bytes(&mut datagram);
        // The form of a QUIC long header (RFC 9000, section 17.2), so that it is looked at.
        datagram[0] |= 0xc0;
        let _full_queue = socket.send_to(&datagram, port).await;
    }
}
