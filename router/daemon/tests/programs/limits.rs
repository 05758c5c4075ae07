//! Bounds of an entrance, and what a stop does.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{DIRECT, SOCKS, TestNode, check_echo, echo, greeter, read};

const METRICS: &str = "[metrics]\nlisten = '127.0.0.1:0'\n";

#[tokio::test]
async fn flows_beyond_the_limit_are_refused_and_counted() {
    let config = format!("{SOCKS}[limits]\nflows = 1\n{METRICS}");
    let node = TestNode::start(DIRECT, &config).await;
    let target = greeter().await.to_string();
    let (reply, first) = node.socks(&target).await;
    assert_eq!(reply, 0);
    assert_eq!(node.socks(&target).await.0, 1);
    let busy =
        r#"wormholes_flows_total{entrance="socks5",network="tcp",outcome="busy",tunnel="none"}"#;
    assert_eq!(node.metric(busy).await, Some(1));
    drop(first);
    while node.node.core().flows.open() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(node.socks(&target).await.0, 0);
}

#[tokio::test]
async fn all_flows_together_keep_to_the_rate_of_the_config() {
    const RATE: usize = 200_000;
    let config = format!("{SOCKS}[limits]\nbytes_per_second = {RATE}\n");
    let node = TestNode::start(DIRECT, &config).await;
    let target = echo().await.to_string();
    let ((_, mut one), (_, mut other)) = tokio::join!(node.socks(&target), node.socks(&target));
    let start = Instant::now();
    // Two flows, and two directions of each.
    let question = vec![7; RATE / 10];
    tokio::join!(
        check_echo(&mut one, &question),
        check_echo(&mut other, &question)
    );
    let took = start.elapsed();
    // 50 ms of it may pass at once.
    assert!(took >= Duration::from_millis(340), "{took:?}");
}

#[tokio::test]
async fn silent_connections_are_bounded_and_time_out() {
    let config =
        format!("{SOCKS}[limits]\npending_connections = 2\nhandshake_seconds = 1\n{METRICS}");
    let node = TestNode::start(DIRECT, &config).await;
    let mut silent = Vec::new();
    for _ in 0..5 {
        silent.push(node.connect().await);
    }
    // The oldest make room: whoever speaks is served.
    assert_eq!(node.socks(&echo().await.to_string()).await.0, 0);
    for stream in &mut silent {
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
    }
    let refused = async |reason: &str| {
        let line = "wormholes_connections_refused_total{entrance=\"socks5\",reason=";
        node.metric(&format!("{line}{reason:?}}}")).await
    };
    assert_eq!(
        (refused("full").await, refused("slow").await),
        (Some(4), Some(1))
    );
}

#[tokio::test]
async fn a_stop_lets_flows_finish() {
    // An address of its own: no other test takes the port when the entrance closes.
    let config = SOCKS.replace("127.0.0.1", "127.77.0.1");
    let node = TestNode::start(DIRECT, &config).await;
    let (_, mut stream) = node.socks(&greeter().await.to_string()).await;
    assert_eq!(read(&mut stream, 5).await, b"hello");
    let entrance = node.entrance();
    let stopped = tokio::spawn(node.node.shutdown());
    // The entrance closes at once; the flow goes on.
    while tokio::net::TcpStream::connect(entrance).await.is_ok() {
        tokio::task::yield_now().await;
    }
    stream.write_all(b"still here").await.unwrap();
    assert_eq!(read(&mut stream, 10).await, b"still here");
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    stopped.await.unwrap();
}

#[tokio::test]
async fn a_stop_cuts_flows_off_when_the_drain_is_over() {
    let config = format!("{SOCKS}[limits]\ndrain_seconds = 0\n");
    let node = TestNode::start(DIRECT, &config).await;
    let (_, mut stream) = node.socks(&greeter().await.to_string()).await;
    assert_eq!(read(&mut stream, 5).await, b"hello");
    node.node.shutdown().await;
    let error = stream.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}
