//! A program that embeds a node.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wormholed::Refusal;

use crate::support::{DIRECT, TestNode, echo};

#[tokio::test]
async fn a_dialled_flow_carries_bytes_and_half_closes() {
    let node = TestNode::start(DIRECT, "").await;
    let target = echo().await.to_string().parse().unwrap();
    let mut stream = node.node.dial(target).await.unwrap();
    stream.write_all(b"inside").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "edisni");
    node.node.shutdown().await;
}

#[tokio::test]
async fn the_rules_decide_for_embedding_programs_too() {
    let script = r#"fn route(c) { block("no " + c.entrance) }"#;
    let node = TestNode::start(script, "").await;
    let refused = node.node.dial("a.example:80".parse().unwrap()).await.err();
    assert_eq!(refused, Some(Refusal::Blocked("no embed".to_owned())));
}
