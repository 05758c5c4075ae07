//! The hooks beside `route`, on real daemons.

use std::fs;

use serde_json::json;
use wormholes_tests::{Setup, until};

/// Who is denied learns it a round trip after it was connected, and tries again and again.
#[tokio::test]
async fn scripts_hear_of_their_start_and_of_peers_but_not_of_one_that_denies() {
    const DENY: &str = "fn accept(p) { deny(\"not yet\") }";
    const ALLOW: &str = "fn accept(p) { allow() }";
    const TELL: &str = r#"
        fn init(r) { log("info", "told of init"); }
        fn on_event(e) { log("info", `told of ${e.kind} of ${e.peer.name} for ${e.reason}.`); }
    "#;
    let client = Setup::new("client").unwrap();
    let server = Setup::new("server").unwrap().listen("127.88.0.1:0");
    let server = server.peer_id("client", client.id(), 2, "");
    let mut server = server.script("rules.rhai", DENY).start().await.unwrap();
    let client = client.peer(&server, 2).script("tell.rhai", TELL);
    let client = client.start().await.unwrap();
    client.log().wait("told of init").await.unwrap();
    for _ in 0..3 {
        client.cli(&["ping", "server", "--count", "1"]).unwrap_err();
    }
    fs::write(server.folder().join("rules.rhai"), ALLOW).unwrap();
    server.cli(&["script", "load"]).unwrap();
    until("the client to be let in", async || {
        client.cli(&["ping", "server", "--count", "1"]).ok()
    })
    .await
    .unwrap();
    client.log().wait("told of peer-up").await.unwrap();
    server.stop().await.unwrap();
    client.log().wait("told of peer-down").await.unwrap();
    let told = client.log().matching("told of peer");
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(
        told[0].contains("told of peer-up of server for ."),
        "{told:#?}"
    );
    assert!(
        told[1].contains("told of peer-down of server for "),
        "{told:#?}"
    );
    let status = client.call("status", json!({})).await.unwrap();
    assert_eq!(status["scripts"]["errors"], json!(0), "{status}");
}
