//! A machine that is suspended: its clock (CLOCK_MONOTONIC) stands still, so that nothing of it has
//! waited when it wakes, and it sends and takes no packet; the others hear nothing and give it up.
//! What tells it of its sleep is the clock that goes on (CLOCK_BOOTTIME).
//!
//! A test cannot suspend the machine that it runs on. Here the client is a node in this process, in
//! a runtime whose clock is stopped while its only thread is held; packet filters keep its host
//! silent meanwhile.

use std::{
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    runtime::Handle,
    sync::oneshot,
    task::block_in_place,
    time::timeout,
};
use wormholed::{Config, Node};
use wormholes_tests::{Events, LIMIT, Namespace, until};

use super::{ANY, AWAKE, OVER_QUIC, RELAYED, Scene, assert_soon, sleeps, until_slept};

/// Nothing leaves the host, and nothing comes in.
const ASLEEP: &str = "table inet asleep {
    chain output {
        type filter hook output priority 0;
        oifname != \"lo\" drop
    }
    chain input {
        type filter hook input priority 0;
        iifname != \"lo\" drop
    }
}";
const AWAKE_AGAIN: &str = "delete table inet asleep";

#[tokio::test(flavor = "multi_thread")]
async fn new_flows_open_at_once_on_a_machine_that_was_suspended() {
    let mut took = Vec::new();
    for _ in 0..sleeps() {
        let mut scene = Scene::start(1, "", false).await;
        // The same node goes on in this process.
        scene.client.stop().await.unwrap();
        let (falls_asleep, asleep) = oneshot::channel();
        let (wake, woken) = mpsc::channel();
        let friend = scene.friends[0].socket();
        let handle = Handle::current();
        let missed = thread::spawn(move || {
            handle.block_on(async {
                let since = asleep.await.unwrap();
                let mut events = Events::subscribe(&friend).await.unwrap();
                events.next(is_down).await.unwrap();
                until_slept(since).await;
                wake.send(()).unwrap();
            });
        });
        let (config, host) = (scene.client.folder().join("config.toml"), &scene.here);
        let sleeper = || host.enter(|| sleep_and_wake(host, &config, falls_asleep, woken));
        took.extend(block_in_place(sleeper).unwrap());
        missed.join().unwrap();
    }
    assert_soon("woken up", took);
}

fn is_down(event: &Value) -> bool {
    event["kind"] == "peer-down"
}

/// Runs the node until it is woken, and for as long as its new flows take: how long that is of each.
fn sleep_and_wake(
    host: &Namespace,
    config: &Path,
    falls_asleep: oneshot::Sender<Instant>,
    woken: mpsc::Receiver<()>,
) -> Result<Vec<Duration>> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build()?.block_on(async {
        let node = Node::start(Config::load(config)?).await?;
        until("a flow through the relay", async || {
            open(&node, RELAYED).await.ok().map(drop)
        })
        .await?;
        let mut lasting = open(&node, OVER_QUIC).await?;

        host.nft(ASLEEP)?;
        let (clock, since) = (tokio::time::Instant::now(), Instant::now());
        tokio::time::pause();
        ensure!(falls_asleep.send(since).is_ok(), "nobody waits");
        // Holds the runtime's only thread: else its clock would run ahead to what it waits for.
        woken.recv()?;
        tokio::time::resume();
        host.nft(AWAKE_AGAIN)?;
        let (start, slept) = (Instant::now(), since.elapsed());
        ensure!(clock.elapsed() < slept / 2, "the clock did not stand still");

        let ports = [OVER_QUIC, 2, RELAYED, ANY].repeat(AWAKE);
        let flows = ports.into_iter().map(async |port| {
            drop(open(&node, port).await?);
            anyhow::Ok(start.elapsed())
        });
        let took = try_join_all(flows).await?;
        // The friend gave its connection up, and says so when it is asked.
        let ended = async { lasting.write_all(b"?").await.is_err() || is_over(&mut lasting).await };
        ensure!(timeout(LIMIT, ended).await?, "an old flow lives on");
        drop(lasting);
        node.shutdown().await;
        Ok(took)
    })
}

/// A flow to the friend's echo, which answered.
async fn open(node: &Node, port: u16) -> Result<impl AsyncRead + AsyncWrite + Unpin> {
    let mut stream = node
        .dial(format!("echo.friend0.wh:{port}").parse()?)
        .await?;
    stream.write_all(b"?").await?;
    ensure!(stream.read_u8().await? == b'?', "another answer");
    Ok(stream)
}

async fn is_over(stream: &mut (impl AsyncRead + Unpin)) -> bool {
    stream.read_u8().await.is_err()
}
