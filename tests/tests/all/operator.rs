//! What an operator sees of a network of real daemons.

use std::net::Ipv4Addr;

use rustix::process::Signal;
use serde_json::Value;
use wormholes_tests::{
    Daemon, Setup, Site, TestNetwork, curl, output, socks5_connect, until, workspace,
};

async fn network() -> TestNetwork {
    let script = workspace::root().join("scripts/demo.rhai");
    let script = std::fs::read_to_string(script).unwrap();
    TestNetwork::start(&script).await.unwrap()
}

/// What a command says on standard error when it fails.
fn complaint(node: &Daemon, words: &[&str]) -> String {
    let (status, said) = refusal(node, words);
    assert_eq!(status, 1, "{words:?}: {said}");
    said
}

fn refusal(node: &Daemon, words: &[&str]) -> (i32, String) {
    let output = output(&mut node.cli_command(words).unwrap()).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), said)
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

/// A node whose rules block everything, and say whose rules they are.
struct Judge {
    node: Daemon,
    asked: u64,
}

impl Judge {
    async fn start() -> Self {
        let setup = Setup::new("judge").unwrap().entrances();
        let setup = setup.script("rules.rhai", "fn route(c) { block(\"of the config\") }");
        let node = setup.start().await.unwrap();
        Self { node, asked: 0 }
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.node.folder().join(name), text).unwrap();
    }

    /// Why a flow is blocked now.
    async fn says(&mut self) -> String {
        let entrance = self.node.entrance("socks5").unwrap();
        let refused = socks5_connect(entrance, "a.example", 80).await;
        assert!(refused.is_err());
        self.asked += 1;
        let why = json(&self.node, &["why", &self.asked.to_string()]);
        why["end"].as_str().unwrap().to_owned()
    }

    fn load(&self, script: &str) -> String {
        self.node.cli(&["script", "load", script]).unwrap()
    }
}

#[tokio::test]
async fn scripts_given_by_a_command_hold_until_those_of_the_config_are_loaded() {
    let mut judge = Judge::start().await;
    assert_eq!(judge.says().await, "blocked: of the config");
    judge.write("other.rhai", "fn route(c) { block(\"of the command\") }");
    let loaded = judge.load("other.rhai");
    for part in [
        "/other.rhai\n",
        "the next `script load`",
        "`scripts` of [rules]",
    ] {
        assert!(loaded.contains(part), "{part:?}: {loaded}");
    }
    assert_eq!(judge.says().await, "blocked: of the command");
    assert!(judge.node.cli(&["config"]).unwrap().contains("other.rhai"));
    assert!(
        judge
            .node
            .cli(&["status"])
            .unwrap()
            .contains("generation 2 by command")
    );

    // A changed config file is read; it is not what puts its scripts back in force.
    let config = std::fs::read_to_string(judge.node.folder().join("config.toml")).unwrap();
    judge.write("config.toml", &format!("# read again\n{config}"));
    judge.node.log().wait("rules are unchanged").await.unwrap();
    assert_eq!(judge.says().await, "blocked: of the command");

    judge.node.signal(Signal::HUP).unwrap();
    until("the config's scripts", async || {
        let list = json(&judge.node, &["script", "list"]);
        (list["by_command"] == false).then_some(())
    })
    .await
    .unwrap();
    assert_eq!(judge.says().await, "blocked: of the config");

    judge.write("odd.rhai", "fn route(c) {\n  return block();\n  pass()\n}");
    let warned = judge.load("odd.rhai");
    assert!(warned.contains("odd.rhai:3:3: nothing reaches"), "{warned}");
    judge.load("other.rhai");
    judge.node.cli(&["script", "load"]).unwrap();
    assert_eq!(judge.says().await, "blocked: of the config");
    judge.node.cli(&["script", "rollback"]).unwrap();
    assert_eq!(judge.says().await, "blocked: of the command");
    judge.node.stop().await.unwrap();
    judge.node.restart().await.unwrap();
    judge.asked = 0;
    assert_eq!(judge.says().await, "blocked: of the config");
}

#[tokio::test]
async fn a_script_that_is_given_is_held_against_its_cases_and_its_size() {
    let mut judge = Judge::start().await;
    judge.write("other.rhai", "fn route(c) { block(\"of the command\") }");
    let cases = "test(\"mail passes\", || {\n expect(!route(#{ port: 25 }).blocks);\n});";
    judge.write("other.test.rhai", cases);
    let said = complaint(&judge.node, &["script", "load", "other.rhai"]);
    assert!(said.contains("other.test.rhai:2"), "{said}");
    judge.write("large.rhai", &format!("// {}", "x".repeat(70_000)));
    let said = complaint(&judge.node, &["script", "load", "large.rhai"]);
    assert!(
        said.contains("64 KiB") && said.contains("`scripts` of [rules]"),
        "{said}"
    );
    let said = complaint(&judge.node, &["script", "load", "none.rhai"]);
    assert!(said.contains("cannot read none.rhai"), "{said}");
    assert_eq!(judge.says().await, "blocked: of the config");
}

#[tokio::test]
async fn each_tunnel_is_built_as_the_operator_words_it() {
    let network = network().await;
    let outside = network.outside_url("/");
    let (wiki, web) = ("http://wiki.relay.wh/", "http://web.friend.wh/");
    for (plan, url, tunnel, path) in [
        (r#"peer("relay").direct()"#, wiki, "direct", &["relay"][..]),
        (
            r#"peer("friend").relayed(relay("relay"))"#,
            web,
            "relay",
            &["relay", "friend"],
        ),
        (
            r#"peer("exit").direct().exit()"#,
            &outside,
            "direct",
            &["exit"],
        ),
        (r#"onion(3)"#, &outside, "onion", &["hop", "hop", "exit"]),
        (
            r#"onion(2).via(peer("hop-2")).to(peer("exit")).exit()"#,
            &outside,
            "onion",
            &["hop-2", "exit"],
        ),
        (
            r#"peer("friend").direct().or(peer("friend").best())"#,
            web,
            "relay",
            &["relay", "friend"],
        ),
    ] {
        let client = &network.client;
        let script = format!("fn route(c) {{ {plan}.closed() }}");
        std::fs::write(client.folder().join("tunnel.rhai"), script).unwrap();
        client.cli(&["script", "load", "tunnel.rhai"]).unwrap();
        let proxy = format!("socks5h://{}", client.entrance("socks5").unwrap());
        let mut events = client.events().await.unwrap();
        let fetched = curl(&proxy, url, &[]).await.unwrap();
        assert_eq!(fetched.status, 200, "{plan}: {fetched:?}");
        let opened = events.next(|event| event["kind"] == "flow-opened").await;
        let flow = opened.unwrap()["flow"].to_string();
        let why = json(client, &["why", &flow]);
        assert_eq!(why["tunnel"], tunnel, "{plan}: {why}");
        let passed = why["path"].as_array().unwrap();
        let passed: Vec<_> = passed
            .iter()
            .map(|node| node["name"].as_str().unwrap())
            .collect();
        let as_worded = passed
            .iter()
            .zip(path)
            .all(|(node, word)| node.starts_with(word));
        assert!(
            passed.len() == path.len() && as_worded,
            "{plan}: {passed:?}"
        );
    }
}

#[tokio::test]
async fn every_report_of_a_working_network_can_be_read_by_people_and_programs() {
    let network = network().await;
    let client = &network.client;
    let proxy = format!("socks5h://{}", client.entrance("socks5").unwrap());
    let mut events = client.events().await.unwrap();
    let fetched = curl(&proxy, &network.outside_url("/"), &[]).await.unwrap();
    assert_eq!(fetched.status, 200, "{fetched:?}");
    events
        .next(|event| event["kind"] == "flow-ended")
        .await
        .unwrap();
    let id = client.id().to_string();
    for (words, part) in [
        (&["status"][..], "opened     onion 1"),
        (&["peers"], "127.20.0.1:"),
        (&["flows"], "no open flows"),
        (&["why", "1"], "tunnel     onion, open after "),
        (&["ping", "exit", "--count", "1"], "exit at 127.4.0.1:"),
        (
            &["netcheck"],
            "registered: peers reach this node through it",
        ),
        (&["script", "list"], "rules.rhai"),
        (&["relay"], "`enabled = true` under [relay] turns it on"),
        (&["exit"], "role       exit off"),
        (&["key"], &id),
        (&["config"], "[[entrance]]"),
    ] {
        let text = client.cli(words).unwrap();
        assert!(text.contains(part), "{words:?}: {text}");
        assert!(json(client, words).is_object(), "{words:?}");
    }
    let peers = client.cli(&["peers"]).unwrap();
    let state = |name: &str| {
        let mut lines = peers.lines();
        let line = lines.find(|line| line.starts_with(name)).unwrap();
        line.trim_start_matches(name).trim_start().to_owned()
    };
    assert!(state("relay").starts_with("connected "), "{peers}");
    assert!(state("friend").starts_with("by relay "), "{peers}");
    assert!(!peers.contains("offline"), "{peers}");
    let status = client.cli(&["status"]).unwrap();
    assert!(status.lines().count() <= 24, "{status}");
}

#[tokio::test]
async fn what_is_typed_wrong_is_answered_with_what_to_do() {
    let node = Setup::new("strict")
        .unwrap()
        .entrances()
        .start()
        .await
        .unwrap();
    for (words, status, mend) in [
        (&["statu"][..], 2, "similar subcommand exists: 'status'"),
        (&["why", "first"], 2, "`wormholes flows`"),
        (&["why", "999"], 1, "`record_decisions` in [rules]"),
        (&["flows", "--limit", "0"], 2, "1..=1000"),
        (
            &["events", "--kinds", "comet"],
            2,
            "[possible values: flow-opened, ",
        ),
        (&["ping", "nobody"], 1, "`wormholes peers` lists them"),
        (&["ping", "strict"], 1, "this node itself"),
        (&["peer", "add", "x"], 1, "begin with wormholes-invite:"),
        (&["peer", "remove", "x"], 1, "`wormholes peers` lists them"),
        (&["script", "check"], 2, "<SCRIPT|--config <FILE>>"),
        (
            &["--socket", "none.sock", "status"],
            3,
            "wormholed --config FILE",
        ),
    ] {
        let (code, said) = refusal(&node, words);
        assert_eq!(code, status, "{words:?}: {said}");
        assert!(said.contains(mend), "{words:?}: {said}");
    }
}
