//! A program that embeds a node.

use std::{io::Write, process::Stdio};

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

#[tokio::test]
async fn the_example_program_opens_a_flow() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    let text = "[node]\ndata_dir = 'data'\n[rules]\ndefault = 'direct'\n";
    std::fs::write(&config, text).unwrap();
    let target = echo().await.to_string();
    let output = tokio::task::spawn_blocking(move || {
        let mut child = std::process::Command::new(example())
            .args([config.as_os_str(), target.as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"example").unwrap();
        child.wait_with_output().unwrap()
    });
    let output = output.await.unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"elpmaxe");
}

/// The example, built: a run of this test alone does not do it.
fn example() -> std::path::PathBuf {
    let status = std::process::Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--package",
            "wormholed",
            "--example",
            "embed",
        ])
        .status()
        .unwrap();
    assert!(status.success());
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().join("examples/embed")
}
