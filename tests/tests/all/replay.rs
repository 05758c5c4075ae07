//! `script replay` over what real daemons decided: the same scripts change nothing, others are
//! shown with what they would change, and what was not read is not guessed.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt, path::PathBuf};

use serde_json::{Value, json};
use wormholes_tests::{Daemon, Setup, TestNetwork, curl, output, socks5_connect};

const CLIENT: &str = r#"
fn route(c) {
    let n = kv_get("asked") ?? 0;
    kv_set("asked", n + 1);
    if !rate("all:" + c.entrance, 3, "1h") { return block("too many"); }
    if c.node != () { return c.node.best().label(`${n} of ${peers().len}`).closed(); }
    let exit = peers(|p| p.is_exit);
    exit[0].direct().exit().timeout(20 + sample("uniform 1s", c.rand)).closed()
}
"#;

const JUDGE: &str = r#"
fn accept(p) { if p.trust > 0 { allow() } else { deny("a stranger") } }
fn relay(q) { if quota(q.from.name, 1, 2, "1h") { allow().bytes(1000000) } else { deny("enough") } }
fn exit(x) { if x.from.trust == 2 && !x.host.ends_with(".none") { allow().idle("2m") } else { deny("no") } }
"#;

struct Run {
    status: i32,
    stdout: String,
    stderr: String,
}

fn run(node: &Daemon, words: &[&str]) -> Run {
    let output = output(&mut node.cli_command(words).unwrap()).unwrap();
    Run {
        status: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Writes a file beside the node's own.
fn file(node: &Daemon, name: &str, text: &str) -> String {
    let path: PathBuf = node.folder().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn replayed(node: &Daemon, words: &[&str]) -> (i32, Value) {
    let run = run(node, &[&["--json", "script", "replay"], words].concat());
    let report = serde_json::from_str(&run.stdout);
    let report = report.unwrap_or_else(|_| panic!("{words:?}: {} {}", run.stdout, run.stderr));
    (run.status, report)
}

#[tokio::test]
async fn decisions_of_every_hook_are_replayed_and_changes_are_shown() {
    let network = TestNetwork::start(CLIENT).await.unwrap();
    let client = &network.client;
    for node in [&network.relay, &network.exit] {
        let judge = file(node, "judge.rhai", JUDGE);
        node.cli(&["script", "load", &judge]).unwrap();
    }
    let proxy = format!("socks5h://{}", client.entrance("socks5").unwrap());
    let outside = network.outside_url("/");
    for url in ["http://friend.wh/", &outside, &outside] {
        assert_eq!(curl(&proxy, url, &[]).await.unwrap().status, 200, "{url}");
    }
    let entrance = client.entrance("socks5").unwrap();
    let one_too_many = socks5_connect(entrance, "friend.wh", 80).await;
    assert!(one_too_many.is_err());

    let mut hooks = BTreeSet::new();
    for (node, scripts) in [
        (client, file(client, "rules.rhai", CLIENT)),
        (&network.relay, file(&network.relay, "judge.rhai", JUDGE)),
        (&network.exit, file(&network.exit, "judge.rhai", JUDGE)),
    ] {
        let (_, report) = replayed(node, &[&scripts]);
        assert_eq!(report["unknown"], json!([]));
        // Those that no script answered are of the time before the load.
        for change in report["changed"].as_array().unwrap() {
            assert!(change["before"]["rule"].is_null(), "{change}");
        }
        let none = file(node, "none/rules.rhai", "fn init(r) { }");
        let (status, report) = replayed(node, &[&none]);
        let changed = report["changed"].as_array().unwrap();
        assert!(status == 5 && !changed.is_empty(), "{report}");
        let names = changed.iter().map(|change| change["hook"].to_string());
        hooks.extend(names);
    }
    let all = ["accept", "exit", "relay", "route"].map(|hook| format!("\"{hook}\""));
    assert_eq!(hooks, all.into());
}

/// A node that blocks by a set and counts, and has been asked for two names.
async fn node() -> Daemon {
    let script = "fn route(c) {
    if set(\"ads\").has(c.host) { return block(\"an ad\"); }
    rate(\"r\", 1, \"1m\");
    block(c.host)
}";
    let setup = Setup::new("node").unwrap().entrances();
    let rules = "[rules]\nscripts = [\"rules.rhai\"]\nsets = { ads = \"ads.txt\" }";
    fs::write(setup.folder().join("ads.txt"), "ads.example\n").unwrap();
    let setup = setup.config(rules).script("rules.rhai", script);
    let node = setup.start().await.unwrap();
    let entrance = node.entrance("socks5").unwrap();
    for host in ["x.ads.example", "b.example"] {
        socks5_connect(entrance, host, 80).await.unwrap_err();
    }
    node
}

#[tokio::test]
async fn changes_are_shown_with_plans_and_rules_and_the_unknown_with_its_reason() {
    let node = node().await;
    let candidate = "fn route(c) {
    if c.host == \"b.example\" {
        return peer(\"friend\").direct();
    }
    block(\"other\")
}";
    let candidate = file(&node, "candidate.rhai", candidate);
    let run = run(&node, &["script", "replay", &candidate]);
    assert_eq!(run.status, 5, "{}", run.stderr);
    for part in [
        "flow 1 x.ads.example:80 at ",
        "before   block: an ad (rules.rhai:2)\n",
        "after    block: other (candidate.rhai:5)\n",
        "flow 2 b.example:80 at ",
        "unknown  not recorded: peer(\"friend\")\n",
        "of 2 decisions 1 would change, 0 not, 1 cannot be told\n",
    ] {
        assert!(run.stdout.contains(part), "{part:?}: {}", run.stdout);
    }
    let (status, report) = replayed(&node, &[&candidate, "--last", "1"]);
    assert_eq!((status, &report["decisions"]), (6, &1.into()), "{report}");
    assert_eq!(report["unknown"][0]["flow"], 2, "{report}");

    // What a script counts goes by its name.
    let renamed = file(
        &node,
        "renamed.rhai",
        "fn route(c) { rate(\"r\", 1, \"1m\"); block(c.host) }",
    );
    let (_, report) = replayed(&node, &[&renamed, "--last", "1"]);
    let why = report["unknown"][0]["why"].as_str().unwrap();
    assert!(why.contains("call the file rules.rhai"), "{why}");

    // Another list of ads.
    let same = node.folder().join("rules.rhai");
    let set = format!("ads={}", file(&node, "more.txt", "b.example\n"));
    let (status, report) = replayed(&node, &[same.to_str().unwrap(), "--set", &set]);
    assert_eq!((status, &report["same"]), (5, &0.into()), "{report}");
    let after = &report["changed"][0]["after"];
    assert_eq!(after["plan"], "block: an ad", "{report}");
    assert_eq!(after["rule"]["line"], 2, "{report}");
}

#[tokio::test]
async fn saved_decisions_are_replayed_without_the_daemon() {
    let mut node = node().await;
    let saved = node.folder().join("saved.json");
    let path = saved.to_str().unwrap();
    node.cli(&["script", "replay", "--save", path]).unwrap();
    assert_eq!(
        fs::metadata(&saved).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let again = run(&node, &["script", "replay", "--save", path]);
    assert!(
        again.status == 1 && again.stderr.contains("exists"),
        "{}",
        again.stderr
    );
    node.stop().await.unwrap();

    let same = node.folder().join("rules.rhai");
    let same = same.to_str().unwrap();
    let (status, report) = replayed(&node, &[same, "--from", path]);
    assert_eq!((status, &report["same"]), (0, &2.into()), "{report}");
    let gone = run(&node, &["script", "replay", same]);
    assert_eq!(gone.status, 3, "{}", gone.stderr);

    let text = fs::read_to_string(&saved).unwrap();
    let other = file(
        &node,
        "other.json",
        &text.replace("\"format\":1", "\"format\":9"),
    );
    let refused = run(&node, &["script", "replay", same, "--from", &other]);
    assert!(
        refused.status == 1 && refused.stderr.contains("save the decisions again"),
        "{}",
        refused.stderr
    );
    let refused = run(&node, &["script", "replay", same, "--from", same]);
    assert!(
        refused.status == 1 && refused.stderr.contains("--save"),
        "{}",
        refused.stderr
    );
    let wrong = file(&node, "wrong.rhai", "fn route(c) { brock() }");
    let refused = run(&node, &["script", "replay", &wrong, "--from", path]);
    assert!(
        refused.status == 1 && refused.stderr.contains("wrong.rhai:1:"),
        "{}",
        refused.stderr
    );
}

#[tokio::test]
async fn a_node_that_keeps_no_decisions_says_so() {
    let rules = "[rules]\nscripts = [\"rules.rhai\"]\nrecord_decisions = 0";
    let setup = Setup::new("private").unwrap().entrances().config(rules);
    let node = setup.script("rules.rhai", "fn route(c) { block() }");
    let node = node.start().await.unwrap();
    let entrance = node.entrance("socks5").unwrap();
    socks5_connect(entrance, "a.example", 80).await.unwrap_err();
    let refused = run(&node, &["script", "replay", "--save", "/dev/null/x"]);
    assert_eq!(refused.status, 1);
    assert!(
        refused
            .stderr
            .contains("`record_decisions` in [rules] is 0"),
        "{}",
        refused.stderr
    );
}
