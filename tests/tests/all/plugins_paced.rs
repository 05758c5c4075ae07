//! A plugin that writes more beside another than its pace allows, or sends or logs more than its rates do, on
//! a real daemon: its events wait, and nobody waits for it.

use std::{
    fs,
    time::{Duration, Instant},
};

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
    let before = held_back(daemon, "pace").await;
    let meanwhile = async {
        until("an event to be held back", async || {
            (held_back(daemon, "pace").await > before).then_some(())
        })
        .await
        .unwrap();
        say(daemon).await;
        daemon.call(method, what).await.unwrap();
    };
    let (told, ()) = tokio::join!(ask(daemon, "marks", user), meanwhile);
    format!("{:#}", told.expect_err("it waits"))
}

async fn held_back(daemon: &Daemon, limit: &str) -> f64 {
    let metrics = Metrics::read(daemon).await.unwrap();
    let hits = "wormholes_plugin_limit_hits_total";
    metrics.get(&format!("{hits}{{plugin=\"wicked\",limit=\"{limit}\"}}"))
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
    assert_eq!(held_back(daemon, "pace").await, 0.0);
    for rate in ["message_rate", "log_rate"] {
        assert_eq!(held_back(daemon, rate).await, 0.0);
    }
}

/// Has the wicked plugin, with `rate` in its manifest, flood by `command` as often as takes `least` by that
/// rate, which is counted as `limit`; others do not wait for it.
async fn flood(
    (command, limit): (&str, &str),
    times: usize,
    rate: &str,
    least: Duration,
) -> Vec<Value> {
    let rates = format!("state_mib = 4\n{rate}");
    let setup = Setup::new("node").unwrap().plugin("plugins/echo").unwrap();
    let setup = setup.plugin_with("tests/wicked", &[("state_mib = 4", rates.as_str())]);
    let setup = setup.unwrap().config("[metrics]\nlisten = \"127.0.0.1:0\"");
    let daemon = &setup.start().await.unwrap();
    let start = Instant::now();
    let flood = async {
        let mut told = Vec::new();
        for _ in 0..times {
            told.push(ask(daemon, command, None).await.unwrap());
        }
        (told, start.elapsed())
    };
    let meanwhile = async {
        until("an event to be held back", async || {
            (held_back(daemon, limit).await > 0.0).then_some(())
        })
        .await
        .unwrap();
        say(daemon).await;
        start.elapsed()
    };
    let ((told, took), others_took) = tokio::join!(flood, meanwhile);
    assert!(took >= least, "{command} took {took:?}");
    assert!(others_took < took, "echo {others_took:?}, {took:?}");
    told
}

#[tokio::test]
async fn a_plugin_that_floods_messages_waits_for_its_rate_and_nobody_waits_for_it() {
    // 256 go at once, and as many before the last ones must be paid.
    let (posts, rate) = (("posts", "message_rate"), "messages_per_second = 64");
    let told = flood(posts, 3, rate, Duration::from_millis(3900)).await;
    // Nothing is lost.
    assert!(told.iter().all(|told| told[0] == 256), "{told:?}");
}

#[tokio::test]
async fn a_plugin_that_floods_the_log_waits_for_its_rate_and_nobody_waits_for_it() {
    // 32 KiB at once, in each event nearly 16 of them: before the last one, 32 more must be paid.
    let (log, rate) = (("log", "log_rate"), "log_kib_per_second = 8");
    let told = flood(log, 5, rate, Duration::from_millis(3800)).await;
    assert!(told.iter().all(|told| *told == "logged"), "{told:?}");
}
