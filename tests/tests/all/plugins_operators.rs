//! Plugins as their operator sees them: what is counted, and what becomes of events
//! that a plugin breaks over, how it is stopped, and what it says.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use wormholes_tests::{Daemon, Metrics, Setup, until};

async fn wicked() -> Daemon {
    let setup = Setup::new("node").unwrap().plugin("tests/wicked").unwrap();
    let setup = setup.config("[metrics]\nlisten = \"127.0.0.1:0\"");
    setup.start().await.unwrap()
}

/// What it answered, or refused.
async fn told(daemon: &Daemon, command: &str, arguments: Value) -> String {
    let params = json!({ "instance": "wicked", "command": command, "arguments": arguments });
    match daemon.call("plugin.ask", params).await {
        Ok(answer) => answer.to_string(),
        Err(error) => format!("{error:#}"),
    }
}

/// The series of the plugin without its own labels: `events_total` and `kind="init"`.
fn count(metrics: &Metrics, name: &str, labels: &[&str]) -> f64 {
    let labels = [&["plugin=\"wicked\""], labels].concat().join(",");
    metrics.get(&format!("wormholes_plugin_{name}{{{labels}}}"))
}

#[tokio::test]
async fn what_a_plugin_does_is_counted() {
    let daemon = wicked().await;
    told(&daemon, "mark", json!({ "with": 1 })).await;
    told(&daemon, "refuse", json!({ "with": 1 })).await;
    told(&daemon, "sneak", json!({})).await;
    for flood in ["write", "scratch", "timers", "log"] {
        told(&daemon, flood, json!({})).await;
    }
    told(&daemon, "break", json!({ "with": 2 })).await;
    let metrics = Metrics::read(&daemon).await.unwrap();
    let request = |outcome: &str| {
        let outcome = format!("outcome=\"{outcome}\"");
        count(&metrics, "events_total", &["kind=\"request\"", &outcome])
    };
    let outcomes = ["done", "refused", "trapped", "timed-out", "store"].map(request);
    assert_eq!(outcomes, [5.0, 1.0, 3.0, 0.0, 0.0]);
    assert_eq!(
        count(&metrics, "queries_total", &["outcome=\"refused\""]),
        1.0
    );
    assert_eq!(count(&metrics, "given_up_events_total", &[]), 1.0);
    let hits = |limit: &str| count(&metrics, "limit_hits_total", &[limit]);
    let floods = ["write", "scratch", "timers", "log"].map(|l| hits(&format!("limit=\"{l}\"")));
    assert_eq!(floods, [1.0; 4]);
    // The wake-up among them.
    assert_eq!(count(&metrics, "handler_seconds_count", &[]), 10.0);
    assert!(count(&metrics, "handler_seconds_sum", &[]) > 0.0);
    assert_eq!(
        count(&metrics, "handler_seconds_bucket", &["le=\"+Inf\""]),
        10.0
    );
    let keeps = count(&metrics, "state_bytes", &[]);
    assert!((1_000_000.0..2_000_000.0).contains(&keeps), "{keeps}");
    let commits = metrics.get("wormholes_plugin_commit_seconds_count");
    let events = metrics.get("wormholes_plugin_commit_events_sum");
    assert!(commits >= 2.0 && events >= commits, "{events} in {commits}");
    assert!(metrics.get("wormholes_plugin_commit_seconds_sum") > 0.0);
}

#[tokio::test]
async fn messages_that_wait_and_operations_that_go_on_are_counted_over_kill_9() {
    let setup = Setup::new("node").unwrap().plugin("tests/wicked").unwrap();
    let setup = setup.plugin("plugins/ledger").unwrap();
    let setup = setup.config("[metrics]\nlisten = \"127.0.0.1:0\"");
    let mut daemon = setup.start().await.unwrap();
    let nobody = Setup::new("nobody").unwrap().id().to_string();
    daemon.cli(&["ledger", "pay", &nobody, "1"]).unwrap();
    let arguments = json!({ "node": nobody, "amount": 1, "times": 6 });
    let params = json!({ "instance": "ledger", "command": "pay", "arguments": arguments });
    daemon.call("plugin.ask", params).await.unwrap();
    let params = json!({ "instance": "wicked", "command": "for-ever" });
    daemon.call("op.start", params.clone()).await.unwrap();
    let begun = daemon.call("op.start", params).await.unwrap();
    let metrics = async |daemon: &Daemon| {
        let metrics = Metrics::read(daemon).await.ok()?;
        let of = |what: &str| metrics.get(&format!("wormholes_plugin_{what}"));
        let waiting = ["ledger", "wicked"].map(|name| {
            let label = format!("{{plugin=\"{name}\"}}");
            [
                of(&format!("waiting_messages{label}")),
                of(&format!("open_operations{label}")),
            ]
        });
        Some(waiting)
    };
    let expected = [[7.0, 0.0], [0.0, 2.0]];
    for _ in 0..2 {
        until("all to be counted", async || {
            (metrics(&daemon).await? == expected).then_some(())
        })
        .await
        .unwrap();
        daemon.kill().unwrap();
        daemon.restart().await.unwrap();
    }
    let operation = json!({ "operation": begun["operation"]["operation"] });
    daemon.call("op.cancel", operation).await.unwrap();
    assert_eq!(metrics(&daemon).await.unwrap()[1], [0.0, 1.0]);
    let list = daemon.cli(&["plugin", "list"]).unwrap();
    let column = |head: &str| {
        let heads = list.lines().next().unwrap().split_whitespace();
        heads.clone().position(|it| it == head).unwrap()
    };
    let ledger = list.lines().find(|line| line.starts_with("ledger"));
    let cells: Vec<&str> = ledger.unwrap().split_whitespace().collect();
    assert_eq!([cells[column("OUTBOX")], cells[column("OPEN")]], ["7", "0"]);
}

#[tokio::test]
async fn limits_that_end_an_event_and_what_waits_behind_it_are_counted() {
    let daemon = wicked().await;
    let condition = |metrics: &Metrics, is: &str| {
        let label = format!("condition=\"{is}\"");
        count(metrics, "condition", &[&label])
    };
    told(&daemon, "memory", json!({})).await;
    let metrics = Metrics::read(&daemon).await.unwrap();
    assert_eq!(condition(&metrics, "running"), 1.0);
    told(&daemon, "loop", json!({})).await;
    // Six breaks are one too many.
    let ask = async || told(&daemon, "mark", json!({ "with": 3 })).await;
    let waiting = until("events to wait for a paused plugin", async || {
        let metrics = Metrics::read(&daemon).await.ok()?;
        let paused = condition(&metrics, "paused") == 1.0 && condition(&metrics, "running") == 0.0;
        (paused && count(&metrics, "waiting_events", &[]) == 3.0).then_some(metrics)
    });
    let (_, _, _, metrics) = tokio::join!(ask(), ask(), ask(), waiting);
    let metrics = metrics.unwrap();
    for limit in ["memory", "time"] {
        let label = format!("limit=\"{limit}\"");
        assert_eq!(
            count(&metrics, "limit_hits_total", &[&label]),
            3.0,
            "{limit}"
        );
    }
    let timed_out = ["kind=\"request\"", "outcome=\"timed-out\""];
    assert_eq!(count(&metrics, "events_total", &timed_out), 3.0);
    // More than it may have open.
    let many = (0..5).map(|_| told(&daemon, "later", json!({})));
    futures_util::future::join_all(many).await;
    let calm = until("nothing to wait", async || {
        let metrics = Metrics::read(&daemon).await.ok()?;
        (count(&metrics, "waiting_events", &[]) == 0.0).then_some(metrics)
    });
    let metrics = calm.await.unwrap();
    let label = "limit=\"requests\"";
    assert_eq!(count(&metrics, "limit_hits_total", &[label]), 1.0);
}

#[tokio::test]
async fn events_that_were_given_up_are_kept_with_their_reason_until_they_are_cleared() {
    let mut daemon = wicked().await;
    let long = "x".repeat(5000);
    let arguments = json!({ "with": 5, "long": long });
    let broken = told(&daemon, "break", arguments.clone()).await;
    assert!(broken.contains("the plugin failed"), "{broken}");
    // What was consumed is not tried again, and its letter is as durable as that.
    daemon.kill().unwrap();
    daemon.restart().await.unwrap();
    told(&daemon, "loop", json!({})).await;
    let dead = async |daemon: &Daemon| {
        let instance = json!({ "instance": "wicked" });
        daemon.call("plugin.dead", instance).await.unwrap()
    };
    let kept = dead(&daemon).await;
    let letters = kept["letters"].as_array().unwrap();
    let names = letters.iter().map(|letter| &letter["name"]);
    assert_eq!(names.collect::<Vec<_>>(), ["break", "loop"], "{kept}");
    let letter = &letters[0];
    let body = arguments.to_string();
    let body_bytes = letter["body_bytes"].as_u64().unwrap();
    assert_eq!(body_bytes, body.len() as u64);
    let kept = letter["body"].as_str().unwrap();
    let kept = data_encoding::BASE64.decode(kept.as_bytes()).unwrap();
    assert_eq!(kept, &body.as_bytes()[..4096]);
    assert_eq!(
        (&letter["kind"], &letter["principal"]),
        (&json!("request"), &json!("node"))
    );
    let fault = letter["fault"].as_str().unwrap();
    assert!(fault.contains("unreachable"), "{fault}");
    let fault = letters[1]["fault"].as_str().unwrap();
    assert!(fault.contains("limits.event_ms"), "{fault}");

    let shown = daemon.cli(&["plugin", "dead", "wicked"]).unwrap();
    let more = format!("and {} bytes", body.len() - 4096);
    for part in ["request break\n", "request loop\n", &more] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    daemon
        .cli(&["plugin", "dead", "wicked", "--clear"])
        .unwrap();
    daemon.kill().unwrap();
    daemon.restart().await.unwrap();
    assert_eq!(dead(&daemon).await["letters"], json!([]));
    let shown = daemon.cli(&["plugin", "dead", "wicked"]).unwrap();
    assert_eq!(shown, "no dead letters\n");
}

#[tokio::test]
async fn a_stopped_plugin_tells_who_asks_and_goes_on_where_it_was() {
    let daemon = wicked().await;
    let alarm = json!({ "with": 77, "after-ms": 1000 });
    told(&daemon, "alarm", alarm).await;
    let set = Instant::now();
    let instance = json!({ "instance": "wicked" });
    let stopped = daemon.call("plugin.stop", instance).await.unwrap();
    assert_eq!(stopped["condition"], "stopped");
    let list = daemon.cli(&["plugin", "list"]).unwrap();
    let line = list.lines().find(|line| line.starts_with("wicked"));
    assert!(line.unwrap().contains("stopped"), "{list}");
    let due = until("a timer to be due that does not fire", async || {
        for command in ["marks", "sneak"] {
            let told = told(&daemon, command, json!({})).await;
            assert!(told.contains("the plugin is stopped"), "{command}: {told}");
        }
        (set.elapsed() > Duration::from_millis(1100)).then_some(())
    });
    due.await.unwrap();
    let metrics = Metrics::read(&daemon).await.unwrap();
    let stopped = count(&metrics, "condition", &["condition=\"stopped\""]);
    let timers = "wormholes_plugin_events_total{plugin=\"wicked\",kind=\"timer\"";
    assert_eq!((stopped, metrics.sum(timers)), (1.0, 0.0));
    // Late rather than never.
    daemon.cli(&["plugin", "start", "wicked"]).unwrap();
    let fired = until("the timer to fire", async || {
        told(&daemon, "marks", json!({}))
            .await
            .starts_with("[77,")
            .then_some(())
    });
    fired.await.unwrap();
}

#[tokio::test]
async fn the_log_of_a_plugin_has_its_own_lines_only_and_can_be_followed() {
    let setup = Setup::new("node").unwrap().plugin("plugins/echo").unwrap();
    let setup = setup.plugin("tests/wicked").unwrap();
    let daemon = setup.start().await.unwrap();
    let params = json!({ "instance": "echo", "command": "say", "arguments": { "text": "hm" } });
    daemon.call("plugin.ask", params).await.unwrap();
    told(&daemon, "break", json!({ "with": 1 })).await;
    let log = daemon.cli(&["plugin", "log", "wicked"]).unwrap();
    assert_eq!(log.matches("broken on purpose").count(), 3, "{log}");
    assert!(log.lines().all(|line| line.contains("node: ")), "{log}");
    assert_eq!(daemon.cli(&["plugin", "log", "echo"]).unwrap(), "");

    let mut follow = daemon
        .cli_command(&["plugin", "log", "wicked", "--follow"])
        .unwrap();
    let mut follow = follow.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let mut line = || lines.next().unwrap().unwrap();
    for said in log.lines() {
        assert_eq!(line(), said);
    }
    told(&daemon, "sneak", json!({})).await;
    assert!(line().ends_with("node: asked"));
    follow.kill().unwrap();
    follow.wait().unwrap();
}
