//! Streams that nobody reads: they fill room that all streams of a connection share.

use std::{net::SocketAddr, time::Duration};

use tokio::{io::AsyncWriteExt, net::TcpListener, task::JoinHandle};
use wormholed::{CopyEnd, CopyLimits, CopyStop, FlowBytes, MemoryEnd, Pipe, copy};
use wormholes_rules::Tunnel;

use crate::support::*;

/// What a connection to a peer holds that nobody has read.
const WINDOW_BYTES: usize = 24 << 20;
/// What one of its streams holds.
const STREAM_WINDOW_BYTES: usize = 6 << 20;

/// A server that speaks for as long as somebody listens.
async fn endless_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move { while stream.write_all(&[7; 100_000]).await.is_ok() {} });
        }
    });
    address
}

/// A client, and a server with the services `endless` and `echo`.
async fn pair(first: u8) -> (Node, Node) {
    let services = vec![
        service("endless", endless_server().await),
        service("echo", echo_server().await),
    ];
    let client = node(first, |_| {});
    let server = node(first + 1, |config| config.services = services);
    befriend(&[&client, &server]);
    (client, server)
}

fn to(server: &Node) -> Tunnel {
    Tunnel::Direct {
        to: Some(server.network.id()),
        exit: false,
    }
}

/// A flow whose program does not read; it lives in what is returned.
async fn unread(
    client: &Node,
    server: &Node,
    unread: Duration,
) -> (MemoryEnd, JoinHandle<CopyEnd>) {
    let request = service_request("endless");
    let opened = client.network.open(&to(server), &request).await.unwrap();
    let (near, program) = Pipe::memory();
    let flow = tokio::spawn(async move {
        let limits = CopyLimits {
            unread,
            ..CopyLimits::default()
        };
        copy(
            near,
            opened.into_pipe().unwrap(),
            &limits,
            &FlowBytes::default(),
        )
        .await
    });
    (program, flow)
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_reset_at_its_time() {
    let minute = Duration::from_secs(60);
    assert_eq!(CopyLimits::default().unread, minute, "as the design says");
    let (client, server) = pair(81).await;
    let limit = Duration::from_millis(300);
    let start = std::time::Instant::now();
    let (_program, flow) = unread(&client, &server, limit).await;
    let end = within(flow).await.unwrap();
    assert_eq!(end.stop, Some(CopyStop::Unread));
    assert!(start.elapsed() >= limit, "{:?}", start.elapsed());
    let serving = &server.network.counters().service.active;
    let at_rest = || serving.load(std::sync::atomic::Ordering::Relaxed) == 0;
    until("the peer stops serving it", at_rest).await;
}

#[tokio::test]
async fn streams_that_nobody_reads_give_their_room_back_to_the_others() {
    let (client, server) = pair(83).await;
    let mut flows = Vec::new();
    // One more than the connection's window holds.
    for _ in 0..=WINDOW_BYTES / STREAM_WINDOW_BYTES {
        flows.push(unread(&client, &server, Duration::from_secs(2)).await);
    }
    let request = service_request("echo");
    let opened = client.network.open(&to(&server), &request).await.unwrap();
    let bytes = noise(WINDOW_BYTES);
    assert!(exchange(opened, &bytes).await.unwrap() == bytes);
    for (_program, flow) in flows {
        assert_eq!(within(flow).await.unwrap().stop, Some(CopyStop::Unread));
    }
}
