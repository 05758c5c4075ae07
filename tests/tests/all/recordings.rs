//! Recordings of plugins on the real daemon: what their events did over kill -9 is run again, and does the
//! same; other components show where they part; and nothing secret is in any of it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use wormholes_tests::{Daemon, Setup, binary, component, output, until};

/// Trunks go straight to the peer.
const RULES: &str = r#"
    fn route(c) {
        if c.entrance == "plugin" { return c.node.direct().closed(); }
        block("only plugins talk")
    }
"#;

async fn ask(daemon: &Daemon, instance: &str, command: &str, arguments: Value) -> Value {
    let params = json!({ "instance": instance, "command": command, "arguments": arguments });
    daemon.call("plugin.ask", params).await.unwrap()
}

fn record(daemon: &Daemon, instance: &str, more: &[&str]) -> Value {
    let words = [&["plugin", "record", instance, "--json"], more].concat();
    serde_json::from_str(&daemon.cli(&words).unwrap()).unwrap()
}

/// Saves a recording; where.
fn save(daemon: &Daemon, instance: &str) -> PathBuf {
    let file = daemon.folder().join(format!("{instance}.recording"));
    record(daemon, instance, &["--save", file.to_str().unwrap()]);
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    file
}

/// Replays a recording without a daemon: the exit status, and what was said.
fn replay(file: &Path, more: &[&str]) -> (i32, String) {
    let mut command = Command::new(binary("wormholes").unwrap());
    command.env_remove("WORMHOLES_SOCKET");
    command.args(["plugin", "replay"]).arg(file).args(more);
    let output = output(&mut command).unwrap();
    let said = [output.stdout, output.stderr].concat();
    let status = output.status.code().unwrap();
    (status, String::from_utf8(said).unwrap())
}

fn replayed(file: &Path) -> Value {
    let (status, said) = replay(file, &["--json"]);
    assert_eq!(status, 0, "{said}");
    serde_json::from_str(&said).unwrap()
}

async fn wicked() -> Daemon {
    let setup = Setup::new("node").unwrap().plugin("tests/wicked").unwrap();
    setup.start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_plugins_did_over_kill_9_runs_again_and_does_the_same() {
    let setup = |name: &str, host: u8| {
        let setup = Setup::new(name).unwrap();
        let setup = setup.listen(&format!("127.91.0.{host}:0"));
        let setup = setup.script("rules.rhai", RULES);
        let setup = setup.plugin("plugins/ledger").unwrap();
        setup.plugin("tests/meter").unwrap()
    };
    let (ann, bob) = (setup("ann", 1), setup("bob", 2));
    let ann_id = ann.id();
    let bob = bob.peer_id("ann", ann_id, 3, "").start().await.unwrap();
    let ann = ann.peer(&bob, 3).start().await.unwrap();
    let mut daemons = [ann, bob];
    let ids = [0, 1].map(|who: usize| daemons[who].id());
    for daemon in &daemons {
        daemon
            .call("user.add", json!({ "name": "zoe" }))
            .await
            .unwrap();
        for instance in ["ledger", "meter"] {
            let told = record(daemon, instance, &["on"]);
            assert_eq!(told["on"], true, "{told}");
        }
    }
    for round in 0..6 {
        let load = |from: usize| {
            let (daemon, to) = (&daemons[from], &ids[1 - from]);
            let node = to.as_bytes();
            async move {
                let pay = json!({ "node": to.to_string(), "amount": round + 1, "times": 40 });
                let send = json!({ "node": node });
                let tell = json!({ "node": node, "user": "zoe" });
                for _ in 0..5 {
                    ask(daemon, "ledger", "pay", pay.clone()).await;
                    ask(daemon, "meter", "send", send.clone()).await;
                    ask(daemon, "meter", "tell", tell.clone()).await;
                }
            }
        };
        tokio::join!(load(0), load(1));
        let who = round % 2;
        daemons[who].kill().unwrap();
        daemons[who].restart().await.unwrap();
    }
    for daemon in &daemons {
        for (instance, least) in [("ledger", 60), ("meter", 120)] {
            let report = replayed(&save(daemon, instance));
            let events = report["events"].as_u64().unwrap();
            assert_eq!(report["agree"], events, "{instance}: {report}");
            assert!(events >= least, "{instance}: {events}");
            let all = report["all"].as_array().unwrap();
            let users = all.iter().filter(|event| event["principal"] == "zoe");
            assert_eq!(users.count() > 0, instance == "meter");
        }
    }
}

#[tokio::test]
async fn another_component_shows_what_it_would_have_done() {
    let setup = Setup::new("node")
        .unwrap()
        .plugin("plugins/ledger")
        .unwrap();
    let daemon = setup.start().await.unwrap();
    let to = Setup::new("other").unwrap().id().to_string();
    let pay = json!({ "node": to, "amount": 7 });
    // What is there from its start has run then.
    ask(&daemon, "ledger", "pay", pay.clone()).await;
    record(&daemon, "ledger", &["on"]);
    for _ in 0..3 {
        ask(&daemon, "ledger", "pay", pay.clone()).await;
    }
    let file = save(&daemon, "ledger");
    let told = replayed(&file);
    assert_eq!((&told["events"], &told["agree"]), (&json!(3), &json!(3)));

    // It keeps its balance in another row.
    let mut wasm = fs::read(component("wormholes_ledger").unwrap()).unwrap();
    let places = wasm.windows(7).enumerate();
    let places: Vec<_> = places
        .filter(|(_, bytes)| bytes == b"balance")
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty());
    for at in places {
        wasm[at + 6] = b'E';
    }
    let other = daemon.folder().join("other.wasm");
    fs::write(&other, wasm).unwrap();
    let by_other = ["--wasm", other.to_str().unwrap()];
    let (status, said) = replay(&file, &by_other);
    assert_eq!(status, 1, "{said}");
    assert_eq!(said.matches("request pay of node").count(), 3, "{said}");
    assert!(
        said.contains("differs: row") && said.contains("alanc"),
        "{said}"
    );
    assert!(
        said.contains("of 3 events 0 did the same, 3 something else"),
        "{said}"
    );
    let (status, said) = replay(&file, &["--times"]);
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("RECORDED") && said.contains("pay"), "{said}");

    // What it may do is what was granted then.
    let wicked = component("wormholes_wicked").unwrap();
    let (status, said) = replay(&file, &["--wasm", wicked.to_str().unwrap()]);
    assert_eq!(status, 1);
    assert!(said.contains("the plugin imports"), "{said}");
}

#[tokio::test]
async fn whatever_a_plugin_does_wrong_it_does_again() {
    let daemon = wicked().await;
    record(&daemon, "wicked", &["on"]);
    let calls = [
        ("mark", json!({ "with": 3 })),
        ("marks", json!({})),
        ("write", json!({})),
        ("scratch", json!({})),
        ("messages", json!({})),
        ("posts", json!({})),
        ("questions", json!({})),
        ("facts", json!({})),
        ("log", json!({})),
        ("spy", json!({})),
        ("alarm", json!({ "with": 4, "after-ms": 1 })),
        ("timers", json!({})),
        ("break", json!({ "with": 5 })),
        ("marks", json!({})),
    ];
    for (command, arguments) in calls {
        let params = json!({ "instance": "wicked", "command": command, "arguments": arguments });
        // It may refuse, or fail: that is recorded as well.
        let _ = daemon.call("plugin.ask", params).await;
    }
    until("the alarm", async || {
        let marks = ask(&daemon, "wicked", "marks", json!({})).await;
        (marks[0] == 4).then_some(())
    })
    .await
    .unwrap();
    let told = replayed(&save(&daemon, "wicked"));
    let events = told["all"].as_array().unwrap();
    let of = |name: &str| events.iter().filter(|event| event["name"] == name).count();
    assert_eq!(of("break"), 3, "each try");
    assert!(of("alarm") >= 1 && of("write") == 1);
    assert_eq!(told["agree"], told["events"], "{told}");
}

#[tokio::test]
async fn nothing_secret_is_recorded_and_what_rests_on_it_cannot_be_told() {
    let daemon = wicked().await;
    let hidden = "nobody shall ever read this line";
    let hide = json!({ "name": "before", "text": hidden });
    ask(&daemon, "wicked", "hide", hide).await;
    record(&daemon, "wicked", &["on"]);
    ask(&daemon, "wicked", "draw", json!({})).await;
    ask(&daemon, "wicked", "peek", json!({ "name": "before" })).await;
    ask(&daemon, "wicked", "make-key", json!({ "name": "mine" })).await;
    ask(&daemon, "wicked", "signatures", json!({})).await;
    ask(&daemon, "wicked", "mark", json!({ "with": 1 })).await;
    let secrets = ask(&daemon, "wicked", "hidden", json!({})).await;
    let drawn = secrets.as_array().unwrap().iter();
    let drawn = drawn.map(|row| row[1].as_str().unwrap().to_owned());
    let drawn: Vec<String> = drawn.collect();
    assert_eq!(drawn.len(), 2, "{secrets}");

    let file = save(&daemon, "wicked");
    let recordings = daemon.folder().join("data/plugins/recordings/wicked");
    let parts = fs::read_dir(recordings)
        .unwrap()
        .map(|part| part.unwrap().path());
    for path in parts.chain([file.clone()]) {
        let bytes = fs::read(&path).unwrap();
        for secret in &drawn {
            let found = bytes
                .windows(secret.len())
                .any(|part| part == secret.as_bytes());
            assert!(!found, "{} holds it", path.display());
        }
    }

    let (status, said) = replay(&file, &["--json"]);
    assert_eq!(status, 6, "{said}");
    let told: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(told["differ"], 0, "{told}");
    let why = |name: &str| {
        let mut all = told["all"].as_array().unwrap().iter();
        let event = all.find(|event| event["name"] == name).unwrap();
        event["why"].as_str().unwrap_or_default().to_owned()
    };
    assert!(why("peek").contains("used a secret"), "{told}");
    assert!(why("signatures").contains("used a secret"), "{told}");
    for same in ["make-key", "mark"] {
        assert_eq!(why(same), "", "{told}");
    }
    let (_, said) = replay(&file, &[]);
    assert!(said.contains("cannot be told: it used a secret"), "{said}");
}

#[tokio::test]
async fn what_meets_the_world_is_in_no_recording() {
    let daemon = wicked().await;
    ask(&daemon, "wicked", "mark", json!({ "with": 1 })).await;
    record(&daemon, "wicked", &["on"]);
    ask(&daemon, "wicked", "mark", json!({ "with": 2 })).await;
    let fetch = json!({ "instance": "wicked", "command": "fetches", "arguments": {} });
    // Whatever comes of it.
    let _ = daemon.call("plugin.ask", fetch).await;
    let told = record(&daemon, "wicked", &[]);
    assert!(told["left_out"].as_u64().unwrap() >= 1, "{told}");
    let told = replayed(&save(&daemon, "wicked"));
    let mut events = told["all"].as_array().unwrap().iter();
    assert!(events.all(|event| event["name"] != "fetches"), "{told}");
    assert!(told["events"].as_u64().unwrap() >= 1, "{told}");
    assert_eq!(told["agree"], told["events"], "{told}");
}

#[tokio::test]
async fn a_recording_is_refused_that_was_cut_damaged_or_none() {
    let daemon = wicked().await;
    let early = daemon.cli(&["plugin", "record", "wicked", "--save", "/nowhere/file"]);
    let early = format!("{:#}", early.unwrap_err());
    assert!(early.contains("nothing was recorded yet"), "{early}");
    record(&daemon, "wicked", &["on"]);
    ask(&daemon, "wicked", "mark", json!({ "with": 1 })).await;
    let file = save(&daemon, "wicked");
    let again = daemon.cli(&[
        "plugin",
        "record",
        "wicked",
        "--save",
        file.to_str().unwrap(),
    ]);
    assert!(again.is_err(), "it was there");
    let whole = fs::read(&file).unwrap();
    let refused = |bytes: &[u8], why: &str| {
        let path = daemon.folder().join("broken");
        fs::write(&path, bytes).unwrap();
        let (status, said) = replay(&path, &[]);
        assert_eq!(status, 1, "{said}");
        assert!(said.contains(why), "{said}");
    };
    for cut in [30, whole.len() / 2, whole.len() - 1] {
        refused(&whole[..cut], "was cut");
    }
    let mut damaged = whole.clone();
    damaged[whole.len() - 40] ^= 1;
    refused(&damaged, "is damaged");
    refused(&[&whole[..], b"more"].concat(), "behind its end");
    let mut newer = whole.clone();
    newer[27] = 9;
    refused(&newer, "has format 9");
    refused(b"something else", "is no recording");
    refused(&[&whole[..28], &[255; 99]].concat(), "too long");
}

#[tokio::test]
async fn a_recording_keeps_the_newest_and_is_forgotten_when_somebody_wants_that() {
    let setup = Setup::new("node").unwrap().plugin("tests/wicked").unwrap();
    let mut daemon = setup.plugin("tests/meter").unwrap().start().await.unwrap();
    // What is there from its start has run then.
    ask(&daemon, "wicked", "mark", json!({ "with": 0 })).await;
    let told = record(&daemon, "wicked", &["on", "--mib", "1"]);
    assert_eq!(told["max_bytes"], 1 << 20);
    let long = "x".repeat(30_000);
    for n in 0..100 {
        let arguments = json!({ "with": n, "long": long });
        ask(&daemon, "wicked", "mark", arguments).await;
    }
    let told = record(&daemon, "wicked", &[]);
    assert_eq!((&told["events"], &told["on"]), (&json!(100), &json!(true)));
    let bytes = told["bytes"].as_u64().unwrap();
    assert!((200_000..=1 << 20).contains(&bytes), "{told}");
    let all = replayed(&save(&daemon, "wicked"))["all"].clone();
    let kept = all.as_array().unwrap().len();
    assert!((5..100).contains(&kept), "{kept}");

    // Off, it stays; it goes on where it is on.
    record(&daemon, "wicked", &["off"]);
    record(&daemon, "meter", &["on"]);
    daemon.kill().unwrap();
    daemon.restart().await.unwrap();
    assert_eq!(record(&daemon, "meter", &[])["on"], true);
    let off = record(&daemon, "wicked", &[]);
    assert_eq!(
        (&off["on"], off["bytes"].as_u64()),
        (&json!(false), Some(bytes))
    );

    // Nobody can take one user out of it.
    let folder = daemon.folder().join("data/plugins/recordings");
    for call in ["user.add", "user.remove"] {
        let mut params = json!({ "name": "zoe" });
        if call == "user.remove" {
            params["purge"] = json!(true);
        }
        daemon.call(call, params).await.unwrap();
    }
    assert!(record(&daemon, "wicked", &[])["bytes"].as_u64().unwrap() < 100);
    assert_eq!(record(&daemon, "meter", &[])["on"], true);
    record(&daemon, "meter", &["forget"]);
    assert!(!folder.join("meter").exists());
    let refused = daemon.cli(&["plugin", "record", "meter", "--mib", "3"]);
    assert!(format!("{:#}", refused.unwrap_err()).contains("--mib goes with `on`"));
    let advance = json!({ "instance": "meter", "ms": 1000 });
    let refused = daemon.call("plugin.advance", advance).await.unwrap_err();
    assert!(
        format!("{refused:#}").contains("everybody's"),
        "{refused:#}"
    );
}
