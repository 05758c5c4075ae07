//! A plugin that writes more beside another than its pace allows, on a real daemon: its events wait,
//! and nobody waits for it.

use std::fs;

use anyhow::Result;
use serde_json::{Value, json};
use wormholes_tests::{Daemon, Metrics, Setup, until};

/// Events of the wicked plugin that write as much as one may, and more together than is written at once.
const WRITES: usize = 17;

async fn ask(daemon: &Daemon, command: &str, user: Option<&str>) -> Result<Value> {
    let params = json!({ "instance": "wicked", "command": command, "user": user });
    daemon.call("plugin.ask", params).await
}

async fn say(daemon: &Daemon) {
    let say = json!({ "instance": "echo", "command": "say", "arguments": { "text": "well" } });
    daemon.call("plugin.ask", say).await.unwrap();
}

/// Asks something that waits, and does `what` meanwhile; what the asker is told.
async fn ask_and(daemon: &Daemon, user: Option<&str>, method: &str, what: Value) -> String {
    let before = held_back(daemon).await;
    let meanwhile = async {
        until("an event to be held back", async || {
            (held_back(daemon).await > before).then_some(())
        })
        .await
        .unwrap();
        say(daemon).await;
        daemon.call(method, what).await.unwrap();
    };
    let (told, ()) = tokio::join!(ask(daemon, "marks", user), meanwhile);
    format!("{:#}", told.expect_err("it waits"))
}

async fn held_back(daemon: &Daemon) -> f64 {
    let metrics = Metrics::read(daemon).await.unwrap();
    metrics.get("wormholes_plugin_limit_hits_total{plugin=\"wicked\",limit=\"pace\"}")
}

#[tokio::test]
async fn a_plugin_that_writes_too_much_beside_another_waits_and_nobody_waits_for_it() {
    let setup = Setup::new("node").unwrap().plugin("plugins/echo").unwrap();
    let slow = ("state_mib = 4", "state_mib = 4\npace_kib = 1");
    let setup = setup.config("[metrics]\nlisten = \"127.0.0.1:0\"");
    let setup = setup.plugin_with("tests/wicked", &[slow]).unwrap();
    let daemon = &setup.start().await.unwrap();
    daemon
        .call("user.add", json!({ "name": "ann" }))
        .await
        .unwrap();
    say(daemon).await;
    for _ in 0..WRITES {
        ask(daemon, "write", None).await.unwrap();
    }
    let wicked = json!({ "instance": "wicked" });
    let told = ask_and(daemon, None, "plugin.stop", wicked.clone()).await;
    assert!(told.contains("the plugin is stopped"), "{told}");
    daemon.call("plugin.start", wicked.clone()).await.unwrap();
    let ann = json!({ "name": "ann" });
    let told = ask_and(daemon, Some("ann"), "user.remove", ann).await;
    assert!(told.contains("removed"), "{told}");
    let config = daemon.folder().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let (without, _) = text.split_once("[plugin.wicked]").unwrap();
    fs::write(&config, without).unwrap();
    let told = ask_and(daemon, None, "plugin.remove", wicked).await;
    assert!(told.contains("the plugin was stopped"), "{told}");
    say(daemon).await;
}

#[tokio::test]
async fn a_plugin_that_writes_alone_writes_as_fast_as_the_disk() {
    let slow = ("state_mib = 4", "state_mib = 4\npace_kib = 1");
    let setup = Setup::new("node").unwrap();
    let setup = setup.plugin_with("tests/wicked", &[slow]).unwrap();
    let setup = setup.config("[metrics]\nlisten = \"127.0.0.1:0\"");
    let daemon = &setup.start().await.unwrap();
    for _ in 0..2 * WRITES {
        ask(daemon, "write", None).await.unwrap();
    }
    assert_eq!(held_back(daemon).await, 0.0);
}
