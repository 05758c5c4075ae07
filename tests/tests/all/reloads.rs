//! Flows that move data while the rules change under them: each keeps the rules that it began with,
//! and not a byte is lost, changed or out of order.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use futures_util::future::try_join_all;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ring::digest::{Context, SHA256};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use wormholes_tests::{Daemon, EchoServer, Setup, soak_rounds, socks5_connect, until};

const FLOWS: usize = 200;
const RELOADS: usize = 50;
/// What a flow sends at once, and then waits to have back.
const PIECE_BYTES: usize = 4096;

/// Every other flow goes to the friend's service.
const OPEN: &str = "fn route(c) { if c.node == () { return direct(); } c.node.direct().closed() }";
const SHUT: &str = "fn route(c) { block(\"of the new rules\") }";

/// A flow whose bytes come back, and who counts them.
struct Moving {
    pieces: Arc<AtomicU64>,
    task: JoinHandle<Result<(), String>>,
}

impl Moving {
    /// Sends pieces of a stream that `seed` tells, until `stop`; then compares what came back.
    fn start(mut stream: TcpStream, seed: u64, stop: &Arc<AtomicBool>) -> Self {
        let pieces = Arc::new(AtomicU64::new(0));
        let (counter, stop) = (Arc::clone(&pieces), Arc::clone(stop));
        let task = tokio::spawn(async move {
            let told = |error: std::io::Error| format!("flow {seed}: {error}");
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let (mut sent, mut back) = (Context::new(&SHA256), Context::new(&SHA256));
            let (mut piece, mut echo) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
            while !stop.load(Relaxed) {
                random.fill_bytes(&mut piece);
                stream.write_all(&piece).await.map_err(told)?;
                stream.read_exact(&mut echo).await.map_err(told)?;
                sent.update(&piece);
                back.update(&echo);
                counter.fetch_add(1, Relaxed);
            }
            stream.shutdown().await.map_err(told)?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.map_err(told)?;
            back.update(&rest);
            let same = sent.finish().as_ref() == back.finish().as_ref();
            same.then_some(())
                .ok_or_else(|| format!("flow {seed}: other bytes came back"))
        });
        Self { pieces, task }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_live_through_reloads_and_every_byte_comes_back() {
    let echo = EchoServer::start([127, 0, 0, 1].into()).await.unwrap();
    let client = Setup::new("client").unwrap().entrances();
    let friend = Setup::new("friend").unwrap().listen("127.88.0.1:0");
    let friend = friend.service("echo", echo.address());
    let friend = friend.peer_id("client", client.id(), 2, "");
    let friend = friend.start().await.unwrap();
    let client = client.peer(&friend, 2).script("rules.rhai", OPEN);
    let client = client.start().await.unwrap();

    let entrance = client.entrance("socks5").unwrap();
    let opening = (0..FLOWS).map(|flow| open(entrance, flow, &echo));
    let streams = try_join_all(opening).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let numbered = streams.into_iter().zip(0..);
    let flows: Vec<_> = numbered
        .map(|(stream, seed)| Moving::start(stream, seed, &stop))
        .collect();

    for reload in 0..soak_rounds(RELOADS) {
        let shut = reload % 2 == 0;
        // No two loads are of the same text: those would make no new generation.
        let script = format!("// {reload}\n{}", if shut { SHUT } else { OPEN });
        std::fs::write(client.folder().join("rules.rhai"), script).unwrap();
        let loaded = client.call("script.load", json!({})).await.unwrap();
        let generation = loaded["generation"].as_u64().unwrap();
        assert!(generation >= 2 + reload as u64, "{loaded}");
        let fresh = open(entrance, reload, &echo).await;
        assert_eq!(fresh.is_err(), shut, "reload {reload}");
        all_move(&flows).await;
    }
    assert_eq!(of_the_first_rules(&client).await, FLOWS);
    stop.store(true, Relaxed);
    for flow in flows {
        flow.task.await.unwrap().unwrap();
    }
}

async fn open(entrance: SocketAddr, flow: usize, echo: &EchoServer) -> anyhow::Result<TcpStream> {
    if flow.is_multiple_of(2) {
        return socks5_connect(entrance, "echo.friend.wh", 80).await;
    }
    let address = echo.address();
    socks5_connect(entrance, &address.ip().to_string(), address.port()).await
}

/// Waits until each flow moved a piece from end to end since now.
async fn all_move(flows: &[Moving]) {
    let pieces = || flows.iter().map(|flow| flow.pieces.load(Relaxed));
    // The one that is under way may have been sent before.
    let before: Vec<u64> = pieces().collect();
    until("every flow to move", async || {
        let moved = pieces().zip(&before).all(|(now, before)| now >= before + 2);
        let ended = flows.iter().any(|flow| flow.task.is_finished());
        (moved || ended).then_some(())
    })
    .await
    .unwrap();
}

/// How many of the open flows were decided by the rules that the node began with.
async fn of_the_first_rules(client: &Daemon) -> usize {
    let mut count = 0;
    for flow in 1..=FLOWS {
        let why = client.call("why", json!({ "flow": flow })).await.unwrap();
        let is_first = why["decisions"][0]["generation"] == 1;
        count += usize::from(is_first && why["state"] == "open");
    }
    count
}
