//! Input that no honest client sends: the entrance refuses, counts and serves on.

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::io::AsyncWriteExt;

use crate::support::{DIRECT, HTTP, SOCKS, TestNode, check_echo, echo, read_all};

const METRICS: &str = "[metrics]\nlisten = '127.0.0.1:0'\n";

async fn throw(node: &TestNode, input: &[u8]) {
    let mut stream = node.connect().await;
    // The entrance may close before it has read all.
    let _ = stream.write_all(input).await;
    let _ = stream.shutdown().await;
    read_all(&mut stream).await;
}

#[tokio::test]
async fn garbage_at_the_entrances_ends_in_counters() {
    let seed = rand::rng().random();
    let mut rng = StdRng::seed_from_u64(seed);
    for (kind, config, starts) in [
        (
            "socks5",
            SOCKS,
            [&b"\x05"[..], b"\x05\x01\x00\x05\x01\x00", b""],
        ),
        ("http", HTTP, [&b"GET http://"[..], b"CONNECT ", b""]),
    ] {
        let node = TestNode::start(DIRECT, &format!("{config}{METRICS}")).await;
        for _ in 0..50 {
            for start in starts {
                let mut input = start.to_vec();
                let len = rng.random_range(0..2000);
                input.extend((0..len).map(|_| rng.random::<u8>()));
                throw(&node, &input).await;
            }
        }
        let line = format!(
            "wormholes_connections_refused_total{{entrance=\"{kind}\",reason=\"malformed\"}}"
        );
        let counted = node.metric(&line).await.unwrap_or(0);
        assert!(counted > 0, "{kind}, seed {seed}");
        while node.metric("wormholes_connections_pending").await != Some(0) {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn an_endless_head_is_cut_off() {
    let node = TestNode::start(DIRECT, HTTP).await;
    let mut stream = node.connect().await;
    stream
        .write_all(b"GET http://a.example/ HTTP/1.1\r\n")
        .await
        .unwrap();
    let line = [b"x: ".as_slice(), &[b'y'; 1000], b"\r\n"].concat();
    let mut sent = 0;
    while stream.write_all(&line).await.is_ok() {
        sent += line.len();
        assert!(sent < 8 << 20, "{sent} bytes of head were taken");
    }
}

#[tokio::test]
async fn an_honest_flow_is_served_among_silent_connections() {
    let node = TestNode::start(DIRECT, SOCKS).await;
    let mut silent = Vec::new();
    for _ in 0..1500 {
        silent.push(node.connect().await);
    }
    let (reply, mut stream) = node.socks(&echo().await.to_string()).await;
    assert_eq!(reply, 0);
    check_echo(&mut stream, b"honest").await;
}
