//! Plugins on the real daemon: what they keep, and what becomes of wicked ones.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::{Value, json};
use wormholed::{Config, Node};
use wormholes_tests::{Daemon, Setup, until};

/// Beyond `limits.event_ms` of the wicked plugin three times over, which counts the time of a processor:
/// on one core beside other tests that took 11 s.
const CONTAINED: Duration = Duration::from_secs(30);

async fn ask(daemon: &Daemon, instance: &str, command: &str, arguments: Value) -> Result<Value> {
    let params = json!({ "instance": instance, "command": command, "arguments": arguments });
    daemon.call("plugin.ask", params).await
}

async fn refusal(daemon: &Daemon, command: &str, arguments: Value) -> String {
    let answer = ask(daemon, "wicked", command, arguments).await;
    format!("{:#}", answer.expect_err(command))
}

async fn listed(daemon: &Daemon, name: &str) -> Value {
    let list = daemon.call("plugin.list", json!({})).await.unwrap();
    let plugins = list["plugins"].as_array().unwrap();
    let plugin = plugins.iter().find(|plugin| plugin["name"] == name);
    plugin.unwrap().clone()
}

#[tokio::test]
async fn what_a_plugin_answered_survives_kill_9() {
    let setup = Setup::new("node").unwrap().plugin("plugins/echo").unwrap();
    let mut daemon = setup.start().await.unwrap();
    let said = daemon.cli(&["echo", "say", "good morning"]).unwrap();
    assert_eq!(said, "count      1\ntext       good morning\n");
    for count in 2..10 {
        let said = daemon.cli(&["echo", "say", "again", "--json"]).unwrap();
        assert_eq!(said, format!("{{\"count\":{count},\"text\":\"again\"}}\n"));
        daemon.kill().unwrap();
        daemon.restart().await.unwrap();
    }
    let later = ask(&daemon, "echo", "later", json!({ "text": "at last" }));
    let answered = json!({ "count": 10, "text": "at last" });
    assert_eq!(later.await.unwrap(), answered);
    assert_eq!(daemon.cli(&["echo", "count"]).unwrap(), "10\n");
    assert_eq!(daemon.cli(&["plugin", "health", "echo"]).unwrap(), "well\n");
}

#[tokio::test]
async fn an_event_that_fails_leaves_nothing_and_its_memory_is_dropped() {
    let setup = Setup::new("node").unwrap().plugin("tests/wicked").unwrap();
    let daemon = setup.start().await.unwrap();
    let marks = async || ask(&daemon, "wicked", "marks", json!({})).await.unwrap();
    ask(&daemon, "wicked", "mark", json!({ "with": 1 }))
        .await
        .unwrap();
    assert_eq!(
        marks().await,
        json!([1, 1, 1]),
        "rows, and the memory of one instance"
    );
    let refused = refusal(&daemon, "refuse", json!({ "with": 2 })).await;
    assert!(refused.contains("it says no"), "{refused}");
    assert_eq!(marks().await, json!([1, 1, 0]), "undone, in a new instance");
    let broken = refusal(&daemon, "break", json!({ "with": 3 })).await;
    assert!(
        broken.contains("the plugin failed; see its log"),
        "{broken}"
    );
    assert_eq!(marks().await, json!([1, 1, 0]));
    for attempt in 0..3 {
        let said = format!("broken on purpose, attempt {attempt}");
        assert!(!daemon.log().matching(&said).is_empty(), "{said}");
    }
    let sneaked = refusal(&daemon, "sneak", json!({})).await;
    assert!(sneaked.contains("a query changes nothing"), "{sneaked}");
    assert_eq!(marks().await[0], json!(1));
    let wicked = listed(&daemon, "wicked").await;
    let counts = ["refused", "broken", "given_up"].map(|key| wicked[key].as_u64().unwrap());
    assert_eq!(counts, [1, 3, 1], "{wicked}");
}

#[tokio::test]
async fn wicked_plugins_are_contained_and_named_while_others_run() {
    let setup = Setup::new("node").unwrap();
    let setup = setup.plugin("plugins/echo").unwrap();
    let setup = setup.plugin("tests/wicked").unwrap();
    let daemon = setup.start().await.unwrap();
    let before = daemon.resident_bytes().unwrap();
    for flood in [
        "write",
        "scratch",
        "timers",
        "messages",
        "posts",
        "questions",
        "facts",
    ] {
        let answer = ask(&daemon, "wicked", flood, json!({})).await.unwrap();
        let said = answer[1].as_str().unwrap();
        assert!(said.contains("raise limits."), "{flood}: {answer}");
    }
    gets_nothing_of_the_rules(&daemon).await;
    // Whatever echo is asked meanwhile has one of these numbers.
    let forge = async {
        for request in 0..60 {
            let with = (1_u64 << 32) + request;
            let forged = refusal(&daemon, "forge", json!({ "with": with })).await;
            assert!(forged.contains("nobody waits"), "{forged}");
        }
    };
    let asked = ask(&daemon, "echo", "later", json!({ "text": "mine" }));
    let (asked, ()) = tokio::join!(asked, forge);
    assert_eq!(asked.unwrap()["text"], "mine");
    ask(&daemon, "wicked", "log", json!({})).await.unwrap();
    let lines = daemon.log().matching("plugin says").len();
    assert!((1..2000).contains(&lines), "{lines} of 5000 lines");
    for bomb in ["loop", "memory"] {
        let started = Instant::now();
        let broken = refusal(&daemon, bomb, json!({})).await;
        assert!(broken.contains("the plugin failed"), "{bomb}: {broken}");
        assert!(
            started.elapsed() < CONTAINED,
            "{bomb}: {:?}",
            started.elapsed()
        );
        ask(&daemon, "echo", "say", json!({ "text": "well" }))
            .await
            .unwrap();
    }
    let grown = daemon.resident_bytes().unwrap().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
    // It breaks on, and is paused, then parked.
    let parked = until("a plugin to be paused", async || {
        let _broken = refusal(&daemon, "loop", json!({})).await;
        (listed(&daemon, "wicked").await["condition"] != "running").then_some(())
    });
    parked.await.unwrap();
    let list = daemon.cli(&["plugin", "list"]).unwrap();
    let line = list.lines().find(|line| line.starts_with("wicked"));
    assert!(line.unwrap().contains("paused"), "{list}");
    assert_eq!(listed(&daemon, "echo").await["condition"], "running");
    ask(&daemon, "echo", "say", json!({ "text": "still" }))
        .await
        .unwrap();
}

/// What it is asked, and the limit under which the list counts that.
const KINDS: [(&str, &str); 16] = [
    ("write", "write"),
    ("scratch", "scratch"),
    ("timers", "timers"),
    ("messages", "messages"),
    ("posts", "messages"),
    ("questions", "questions"),
    ("log", "log"),
    ("facts", "facts"),
    ("secrets", "secrets"),
    ("foreign-fact", "denied"),
    ("foreign-hook", "denied"),
    ("foreign-port", "denied"),
    ("forge", "stray_answers"),
    ("later", "unanswered"),
    ("memory", "memory"),
    ("loop", "time"),
];

#[tokio::test]
async fn the_list_of_plugins_names_what_each_was_kept_from() {
    let setup = Setup::new("node").unwrap();
    let setup = setup.plugin("plugins/echo").unwrap();
    let setup = setup.plugin("tests/wicked").unwrap();
    let daemon = setup.start().await.unwrap();
    let wicked = json!({ "instance": "wicked" });
    for (command, limit) in KINDS {
        let before = hits(&daemon, limit).await;
        // Whatever came before paused it.
        daemon.call("plugin.start", wicked.clone()).await.unwrap();
        let _contained = ask(&daemon, "wicked", command, json!({ "with": 1_u64 << 32 })).await;
        let named = until("a limit to be named", async || {
            (hits(&daemon, limit).await > before).then_some(())
        });
        assert!(named.await.is_ok(), "{command}: {limit}");
    }
    let full = until("the plugin to be full", async || {
        let with = json!({ "with": hits(&daemon, "write").await });
        ask(&daemon, "wicked", "fill", with).await.ok()?;
        (hits(&daemon, "state").await > 0).then_some(())
    });
    full.await.unwrap();
    daemon.call("plugin.start", wicked).await.unwrap();
    let broken = refusal(&daemon, "break", json!({ "with": 1 })).await;
    assert!(broken.contains("the plugin failed"), "{broken}");

    let wicked = listed(&daemon, "wicked").await;
    let limits = wicked["limits"].as_array().unwrap();
    let counted: Vec<_> = limits
        .iter()
        .map(|it| it["hits"].as_u64().unwrap())
        .collect();
    assert!(counted.is_sorted_by(|one, next| one >= next), "{wicked}");
    assert_eq!(wicked["limit_hits"], counted.iter().sum::<u64>());
    let list = daemon.cli(&["plugin", "list"]).unwrap();
    let line = |name: &str| list.lines().find(|line| line.starts_with(name)).unwrap();
    for (_, limit) in KINDS.into_iter().chain([("fill", "state")]) {
        let shown = format!("{} ", limit.replace('_', " "));
        assert!(line("wicked").contains(&shown), "{shown}: {list}");
    }
    // By memory, by time, and by itself.
    assert!(line("wicked").contains("given up 3"), "{list}");
    assert_eq!(listed(&daemon, "echo").await["limit_hits"], 0, "{list}");
    assert!(line("echo").contains(" -  "), "{list}");
}

/// How often it ran into a limit, as the list has it.
async fn hits(daemon: &Daemon, limit: &str) -> u64 {
    let wicked = listed(daemon, "wicked").await;
    let limits = wicked["limits"].as_array().unwrap();
    let known = limits.iter().find(|known| known["limit"] == limit);
    known.map_or(0, |known| known["hits"].as_u64().unwrap())
}

async fn gets_nothing_of_the_rules(daemon: &Daemon) {
    for foreign in ["foreign-fact", "foreign-hook"] {
        let said = refusal(daemon, foreign, json!({})).await;
        assert!(said.contains("that the manifest asks for"), "{said}");
    }
    for question in ["deep-question", "wild-question"] {
        let said = refusal(daemon, question, json!({})).await;
        assert!(said.contains("a question to the rules"), "{said}");
    }
}

#[tokio::test]
async fn a_durable_timer_fires_after_kill_9() {
    let setup = Setup::new("node").unwrap().plugin("tests/wicked").unwrap();
    let mut daemon = setup.start().await.unwrap();
    ask(&daemon, "wicked", "alarm", json!({ "with": 77 }))
        .await
        .unwrap();
    daemon.kill().unwrap();
    daemon.restart().await.unwrap();
    let fired = until("a timer to fire", async || {
        let marks = ask(&daemon, "wicked", "marks", json!({})).await.unwrap();
        (marks[0] == 77).then_some(())
    });
    fired.await.unwrap();
}

#[tokio::test]
async fn rows_of_an_older_schema_are_migrated_once_or_not_touched() {
    let setup = Setup::new("node").unwrap().plugin("tests/wicked").unwrap();
    let manifest = setup.folder().join("wicked/plugin.toml");
    let first = std::fs::read_to_string(&manifest).unwrap();
    let schema = |number: u32| {
        let state = format!("[state]\nschema = {number}\n\n[limits]");
        std::fs::write(&manifest, first.replace("[limits]", &state)).unwrap();
    };
    let mut daemon = setup.start().await.unwrap();
    let marks = async |daemon: &Daemon| {
        let marks = ask(daemon, "wicked", "marks", json!({})).await;
        marks.map(|marks| marks[0].clone())
    };
    ask(&daemon, "wicked", "mark", json!({ "with": 5 }))
        .await
        .unwrap();
    schema(1);
    for _ in 0..2 {
        daemon.kill().unwrap();
        daemon.restart().await.unwrap();
        assert_eq!(marks(&daemon).await.unwrap(), 1005);
    }
    ask(&daemon, "wicked", "mark", json!({ "with": 13 }))
        .await
        .unwrap();
    schema(2);
    daemon.kill().unwrap();
    // The version before cannot run on: nobody kept it.
    std::fs::remove_dir_all(daemon.folder().join("data/plugins/versions")).unwrap();
    daemon.restart().await.unwrap();
    let parked = until("the plugin to be parked", async || {
        let wicked = listed(&daemon, "wicked").await;
        (wicked["condition"] == "parked").then_some(wicked)
    });
    let why = parked.await.unwrap()["why"].as_str().unwrap().to_owned();
    assert!(why.contains("13 cannot be migrated"), "{why}");
    let refused = format!("{:#}", marks(&daemon).await.unwrap_err());
    assert!(refused.contains("parked"), "{refused}");
    schema(1);
    daemon.kill().unwrap();
    daemon.restart().await.unwrap();
    assert_eq!(marks(&daemon).await.unwrap(), 13);
}

#[tokio::test]
async fn what_a_plugin_keeps_is_counted_over_a_restart() {
    let setup = Setup::new("node").unwrap().plugin("tests/wicked").unwrap();
    let mut daemon = setup.start().await.unwrap();
    let fill = async |daemon: &Daemon, with: u32| {
        let answer = ask(daemon, "wicked", "fill", json!({ "with": with }))
            .await
            .unwrap();
        answer[1].as_str().unwrap().to_owned()
    };
    let mut said = String::new();
    for with in 0..6 {
        said = fill(&daemon, with).await;
    }
    assert!(said.contains("limits.state_mib"), "{said}");
    let keeps = listed(&daemon, "wicked").await["state_bytes"]
        .as_u64()
        .unwrap();
    assert!((3 << 20..=4 << 20).contains(&keeps), "{keeps}");
    daemon.kill().unwrap();
    daemon.restart().await.unwrap();
    let kept = listed(&daemon, "wicked").await["state_bytes"]
        .as_u64()
        .unwrap();
    assert_eq!(kept, keeps);
    let said = fill(&daemon, 7).await;
    assert!(said.contains("limits.state_mib"), "{said}");
}

#[tokio::test]
async fn a_node_that_closed_leaves_its_plugins_to_the_next_and_compiles_them_once() {
    let setup = Setup::new("node").unwrap().plugin("plugins/echo").unwrap();
    let folder = setup.folder().join("data/plugins/compiled");
    // Its own, and not the one of all tests.
    std::fs::create_dir_all(&folder).unwrap();
    let file = setup.write_config().unwrap();
    let compiled = || {
        let entries = std::fs::read_dir(&folder).unwrap();
        let about = entries.map(|entry| entry.unwrap().metadata().unwrap());
        about
            .map(|file| file.modified().unwrap())
            .collect::<Vec<_>>()
    };
    let start = async || Node::start(Config::load(&file).unwrap()).await.unwrap();
    start().await.close().await;
    let first = compiled();
    assert_eq!(first.len(), 1);
    start().await.close().await;
    assert_eq!(compiled(), first);
}

#[tokio::test]
async fn a_request_without_an_answer_ends_and_its_handler_is_told() {
    let setup = Setup::new("node").unwrap().plugin("tests/wicked").unwrap();
    let daemon = setup.start().await.unwrap();
    let late = refusal(&daemon, "later", json!({})).await;
    assert!(late.contains("did not answer in time"), "{late}");
    let told = until("the handler to be told", async || {
        let marks = ask(&daemon, "wicked", "marks", json!({})).await.unwrap();
        marks[0].is_u64().then_some(())
    });
    told.await.unwrap();
    // No more than it may have open at once.
    let many = (0..5).map(|_| ask(&daemon, "wicked", "later", json!({})));
    let answers = futures_util::future::join_all(many).await;
    let refused = answers.iter().filter(|answer| {
        let error = answer.as_ref().unwrap_err();
        format!("{error:#}").contains("too many requests without an answer")
    });
    assert_eq!(refused.count(), 1);
}

#[tokio::test]
async fn a_plugin_gets_nothing_that_is_not_granted() {
    let check = |grants: &str| {
        let setup = Setup::new("node").unwrap().plugin("plugins/echo").unwrap();
        let config = setup.write_config().unwrap();
        let text = std::fs::read_to_string(&config).unwrap();
        let granted = text.lines().find(|line| line.starts_with("grants"));
        std::fs::write(&config, text.replace(granted.unwrap(), grants)).unwrap();
        let mut command = Command::new(wormholes_tests::binary("wormholed").unwrap());
        let output = command
            .arg("--config")
            .arg(&config)
            .arg("--check")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    let all = "grants = { state = true, scratch = true, timers = true }";
    assert!(check(all).0);
    let (good, said) = check("grants = { state = true, timers = true }");
    assert!(
        !good && said.contains("[plugin.echo]: the plugin imports `scratch`"),
        "{said}"
    );
    let (good, said) = check("grants = { state = true, fly = true }");
    assert!(!good && said.contains("unknown field `fly`"), "{said}");
    let (good, said) = check(&format!("{all}\nsha256 = \"{}\"", "00".repeat(32)));
    assert!(!good && said.contains("has the SHA-256"), "{said}");
}
