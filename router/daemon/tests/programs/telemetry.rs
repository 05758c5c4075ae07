//! What metrics say of flows, while they live and when they fail.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use wormholed::Moved;

use crate::support::{DIRECT, SOCKS, TestNode, greeter, read, until};

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
