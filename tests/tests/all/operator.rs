//! What an operator sees of a network of real daemons.

use std::net::Ipv4Addr;

use serde_json::Value;
use wormholes_tests::{Daemon, Setup, Site, TestNetwork, curl, output, workspace};

async fn network() -> TestNetwork {
    let script = workspace::root().join("scripts/demo.rhai");
    let script = std::fs::read_to_string(script).unwrap();
    TestNetwork::start(&script).await.unwrap()
}

/// What a command says on standard error when it fails.
fn complaint(node: &Daemon, words: &[&str]) -> String {
    let output = output(&mut node.cli_command(words).unwrap()).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
    said
}

fn json(node: &Daemon, words: &[&str]) -> Value {
    let text = node.cli(&[&["--json"], words].concat()).unwrap();
    assert_eq!(text.lines().count(), 1, "{words:?}: {text}");
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn a_ping_takes_the_way_that_a_flow_would() {
    let mut network = network().await;
    let client = &network.client;
    let straight = json(client, &["ping", "relay", "--count", "1"]);
    let straight = &straight["pings"][0];
    assert!(straight["address"].is_string(), "{straight}");
    assert!(straight["relay"].is_null(), "{straight}");
    let relayed = json(client, &["ping", "friend", "--count", "1"]);
    let relayed = &relayed["pings"][0];
    assert!(relayed["address"].is_null(), "{relayed}");
    assert_eq!(relayed["relay"], "relay", "{relayed}");
    assert!(relayed["rtt_ms"].as_f64().unwrap() > 0.0, "{relayed}");
    let text = client.cli(&["ping", "friend", "--count", "2"]).unwrap();
    assert!(text.starts_with("friend through relay: "), "{text}");
    let found = client.cli(&["netcheck"]).unwrap();
    assert!(found.contains("through relay, "), "{found}");

    network.friend.stop().await.unwrap();
    let said = complaint(&network.client, &["ping", "friend"]);
    let id = network.friend.id().to_string();
    let who = format!("friend ({}…) is not reached: through a relay: ", &id[..8]);
    assert!(said.contains(&who), "{said}");
    assert!(said.contains("is it running, registered"), "{said}");
    let said = complaint(&network.client, &["ping", "client"]);
    assert!(said.contains("is this node itself"), "{said}");
}

/// The harness starts every daemon so: its first answer must tell of all that is open.
#[tokio::test]
async fn a_daemon_that_answers_can_be_used_at_once() {
    let site = Site::start("near", Ipv4Addr::LOCALHOST, None)
        .await
        .unwrap();
    let script = "fn route(c) { direct() }";
    for _ in 0..5 {
        let node = Setup::new("eager").unwrap().entrances();
        let node = node.config("[metrics]\nlisten = \"127.0.0.1:0\"");
        let node = node.script("rules.rhai", script).start().await.unwrap();
        let proxy = format!("socks5h://{}", node.entrance("socks5").unwrap());
        let url = format!("http://{}/", site.address());
        let fetched = curl(&proxy, &url, &[]).await.unwrap();
        assert_eq!(fetched.status, 200, "{fetched:?}");
        let metrics = format!("http://{}/metrics", node.metrics().unwrap());
        assert_eq!(curl("", &metrics, &[]).await.unwrap().status, 200);
    }
}
