//! A TCP forward: one target, no handshake.

use tokio::io::AsyncReadExt;

use crate::support::{DIRECT, TestNode, check_echo, closed_port, echo};

fn entrance(target: &str) -> String {
    format!("[[entrance]]\nkind = 'tcp'\nlisten = '127.0.0.1:0'\ntarget = '{target}'\n")
}

#[tokio::test]
async fn each_connection_goes_to_the_target() {
    let node = TestNode::start(DIRECT, &entrance(&echo().await.to_string())).await;
    for _ in 0..2 {
        check_echo(&mut node.connect().await, b"forward").await;
    }
}

#[tokio::test]
async fn a_refused_flow_resets_the_connection() {
    let node = TestNode::start(DIRECT, &entrance(&closed_port().await.to_string())).await;
    let mut stream = node.connect().await;
    let error = stream.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}
