//! What metrics say of flows, while they live and when they fail.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use wormholed::Moved;

use crate::{
    name_server::NameServer,
    support::{DIRECT, SOCKS, TestNode, asking, closed_port, greeter, read, until},
};

const METRICS: &str = "[metrics]\nlisten = '127.0.0.1:0'\n";

#[tokio::test]
async fn bytes_of_a_flow_count_while_it_lives() {
    let node = TestNode::start(DIRECT, &format!("{SOCKS}{METRICS}")).await;
    let (_, mut stream) = node.socks(&greeter().await.to_string()).await;
    assert_eq!(read(&mut stream, 5).await, b"hello");
    stream.write_all(b"who?").await.unwrap();
    assert_eq!(read(&mut stream, 4).await, b"who?");
    let moved = async |direction: &str| {
        let line = "wormholes_flow_bytes_total{direction=";
        node.metric(&format!("{line}{direction:?},tunnel=\"direct\"}}"))
            .await
    };
    let flows = &node.node.core().flows;
    until("what was echoed counts", || {
        flows.totals().all_bytes() == Moved { up: 4, down: 9 }
    })
    .await;
    assert_eq!((moved("up").await, moved("down").await), (Some(4), Some(9)));
    assert_eq!(flows.open(), 1);
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    assert_eq!((moved("up").await, moved("down").await), (Some(4), Some(9)));
}

#[tokio::test]
async fn a_flow_that_fails_counts_for_the_tunnel_that_was_tried_last() {
    let (closed, names) = (
        closed_port().await,
        NameServer::start(&[Ipv4Addr::LOCALHOST]).await,
    );
    let script = r#"fn route(c) {
        switch c.host {
            "refused.example" => socks("SERVER").or(direct()),
            "upstream.example" => direct().or(socks("SERVER")),
            "lookup.example" => need("ip", onion(3)),
            "hidden.onion" => direct(),
            "blocked.example" => direct().or(block("no")),
            _ => pass()
        }
    }"#;
    let script = script.replace("SERVER", &closed.to_string());
    let node = TestNode::start_with(&script, &format!("{SOCKS}{METRICS}"), asking(&names)).await;
    for (host, tunnel, outcome) in [
        ("refused.example", "direct", "refused"),
        ("upstream.example", "socks", "failed"),
        ("lookup.example", "onion", "failed"),
        ("hidden.onion", "direct", "blocked"),
        ("blocked.example", "block", "blocked"),
    ] {
        assert_ne!(node.socks(&format!("{host}:{}", closed.port())).await.0, 0);
        let line = "wormholes_flows_total{entrance=\"socks5\",network=\"tcp\",outcome=";
        let line = format!("{line}{outcome:?},tunnel={tunnel:?}}}");
        assert_eq!(node.metric(&line).await, Some(1), "{host}");
    }
}
