//! Flows of plugins to the plugins of other nodes: the rules decide about them as about all others.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wormholes_host::{Call, CallError, Pipe};
use wormholes_proto::NodeId;

use crate::support::TestNode;

/// Generous: a machine under load is slow, a hang is for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lets `chat` in the role of `sync` through, and says what else there was.
const RULES: &str = r#"
    fn route(c) {
        if c.plugin == "chat" && c.role == "sync" {
            return c.node.direct().label(`${c.entrance} ${c.service} ${c.port} ${c.label}`).closed();
        }
        if c.plugin == "mail" { return c.node.direct().bytes("1kB").closed(); }
        if c.plugin == "lost" { return direct(); }
        block(`${c.plugin} as ${c.role} with ${c.label}`)
    }
"#;

fn call(to: NodeId, plugin: &str, role: &str, label: &str) -> Call {
    Call {
        to,
        plugin: plugin.to_owned(),
        role: role.to_owned(),
        label: label.to_owned(),
        isolation: String::new(),
        hides_node: false,
    }
}

/// Two nodes that know each other; trunks to the second one are sent back.
async fn pair() -> (TestNode, TestNode) {
    let listen = "[node]\nlisten = ['127.0.0.1:0']\n[limits]\ndrain_seconds = 600\n";
    let client = TestNode::start(RULES, listen).await;
    let server = TestNode::start(RULES, listen).await;
    client.befriend(&[("server", &server)]);
    server.node.core().network.answer_trunks(|trunk, _| {
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(trunk);
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
            let _ = writer.shutdown().await;
        });
    });
    (client, server)
}

async fn open(from: &TestNode, call: Call) -> Result<Box<dyn Pipe>, CallError> {
    let network = from.node.core().host_network();
    let opened = tokio::time::timeout(PATIENCE, network.call(call)).await;
    opened.expect("in time")
}

#[tokio::test]
async fn a_plugins_flow_goes_as_the_rules_say_and_is_shown_like_others() {
    let (client, server) = pair().await;
    let to = server.node.id();
    let mut trunk = open(&client, call(to, "chat", "sync", "ann"))
        .await
        .unwrap();
    trunk.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    trunk.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");

    let flows = &client.node.core().flows;
    let flow = flows.living(9).pop().unwrap();
    let host = format!("wormholes-trunk.{to}.wh");
    assert_eq!(
        (flow.entrance, flow.target.host.to_string()),
        ("plugin", host)
    );
    let (story, tries) = client.story(flow.id);
    assert_eq!(story.label.as_deref(), Some("plugin wormholes-trunk 0 ann"));
    assert_eq!(tries, [("direct to server".to_owned(), None)]);

    trunk.shutdown().await.unwrap();
    let mut rest = Vec::new();
    trunk.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_plugins_flow_that_a_rule_blocks_or_the_node_forbids_says_why() {
    let (client, server) = pair().await;
    let to = server.node.id();
    for (call, why, is_final) in [
        (call(to, "echo", "", ""), "blocked: echo as  with ", false),
        (call(to, "lost", "", ""), "special-use", true),
        (
            call(client.node.id(), "chat", "sync", ""),
            "the node is this one",
            true,
        ),
        (
            call(NodeId::from_bytes([9; 32]), "mail", "", ""),
            "blocked",
            false,
        ),
    ] {
        let error = open(&client, call).await.err().unwrap();
        assert!(error.why.contains(why), "{error}");
        assert_eq!(error.is_final, is_final, "{error}");
    }
}

#[tokio::test]
async fn the_limits_of_a_plan_hold_for_a_plugins_flow() {
    let (client, server) = pair().await;
    let mut trunk = open(&client, call(server.node.id(), "mail", "", ""))
        .await
        .unwrap();
    let all = async {
        let mut back = Vec::new();
        let _ = trunk.write_all(&[7; 2000]).await;
        let _ = trunk.read_to_end(&mut back).await;
        back.len()
    };
    let n_back = tokio::time::timeout(PATIENCE, all).await.expect("it ends");
    assert!(n_back <= 1000, "{n_back}");
}

#[tokio::test]
async fn a_node_that_stops_ends_the_flows_of_its_plugins() {
    let (client, server) = pair().await;
    let mut trunk = open(&client, call(server.node.id(), "chat", "sync", ""))
        .await
        .unwrap();
    let stopped = tokio::time::timeout(PATIENCE, client.node.shutdown()).await;
    assert!(stopped.is_ok(), "it waits for a trunk");
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, trunk.read_to_end(&mut rest))
        .await
        .expect("an end");
    assert!(rest.is_empty());
}

#[tokio::test]
async fn what_is_signed_for_plugins_is_signed_by_the_node() {
    let (client, _server) = pair().await;
    let signature = client.node.core().host_network().sign(b"a hello");
    assert!(client.node.id().verifies(b"a hello", &signature));
    assert!(!client.node.id().verifies(b"another", &signature));
}
