//! Users of a node, for whom its plugins have principals: kept apart from each other, removed and
//! purged, and known to users of other nodes.

use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};
use wormholes_tests::{Daemon, HostNetwork, PluginHost, Setup, until};

/// Who ask at once.
const CROWD: usize = 25;

async fn ask(
    daemon: &Daemon,
    user: &str,
    instance: &str,
    command: &str,
    arguments: Value,
) -> Result<Value> {
    let params = json!({
        "instance": instance, "user": user, "command": command, "arguments": arguments,
    });
    daemon.call("plugin.ask", params).await
}

async fn refusal(daemon: &Daemon, user: &str, command: &str, arguments: Value) -> String {
    let answer = ask(daemon, user, "wicked", command, arguments).await;
    format!("{:#}", answer.expect_err(command))
}

async fn add(daemon: &Daemon, name: &str) {
    let added = daemon.call("user.add", json!({ "name": name })).await;
    assert_eq!(added.unwrap()["standing"], "active");
}

async fn remove(daemon: &Daemon, name: &str, purge: bool) {
    let params = json!({ "name": name, "purge": purge });
    daemon.call("user.remove", params).await.unwrap();
}

#[tokio::test]
async fn no_user_reads_or_signs_as_another() {
    let setup = Setup::new("node").unwrap().plugin("tests/wicked").unwrap();
    let daemon = setup.start().await.unwrap();
    for name in ["ann", "bob"] {
        daemon.cli(&["user", "add", name]).unwrap();
    }
    let marked = daemon.cli(&["--user", "ann", "wicked", "mark", "1"]);
    assert_eq!(marked.unwrap(), "marked\n");
    let rows = async |user| {
        ask(&daemon, user, "wicked", "spy", json!({}))
            .await
            .unwrap()
    };
    assert_eq!(rows("ann").await, json!([1, 1]));
    assert_eq!(rows("bob").await, json!([0, 0]), "nothing of ann's");
    let name = json!({ "name": "shop" });
    let alias = async |user| {
        ask(&daemon, user, "wicked", "alias", name.clone())
            .await
            .unwrap()
    };
    assert_ne!(alias("ann").await, alias("bob").await);
    let strangers = refusal(&daemon, "eve", "spy", json!({})).await;
    assert!(strangers.contains("there is no user `eve`"), "{strangers}");
}

#[tokio::test]
async fn no_user_answers_lists_or_cancels_the_operation_of_another() {
    let setup = Setup::new("node").unwrap().plugin("tests/wicked").unwrap();
    let daemon = setup.start().await.unwrap();
    for name in ["ann", "bob"] {
        add(&daemon, name).await;
    }
    let operation = json!({ "instance": "wicked", "user": "ann", "command": "for-ever" });
    let begun = daemon.call("op.start", operation).await.unwrap();
    let number = begun["operation"]["operation"].as_u64().unwrap();
    assert_eq!(begun["operation"]["user"], "ann");
    let forged = refusal(&daemon, "bob", "forge", json!({ "with": number })).await;
    assert!(forged.contains("nobody waits"), "{forged}");
    for (user, count) in [("ann", 1), ("bob", 0)] {
        let (before, behind) = (
            ["--user", user, "op", "list"],
            ["op", "list", "--user", user],
        );
        let list = daemon.cli(&[&before[..], &["--json"]].concat()).unwrap();
        assert_eq!(
            daemon.cli(&[&behind[..], &["--json"]].concat()).unwrap(),
            list
        );
        let list: Value = serde_json::from_str(&list).unwrap();
        assert_eq!(
            list["operations"].as_array().unwrap().len(),
            count,
            "{user}"
        );
    }
    let number = number.to_string();
    let cancel = ["op", "cancel", &number, "--user"];
    let anothers = daemon.cli(&[&cancel[..], &["bob"]].concat()).unwrap_err();
    assert!(
        format!("{anothers:#}").contains("not for `bob`"),
        "{anothers:#}"
    );
    daemon.cli(&[&cancel[..], &["ann"]].concat()).unwrap();
    daemon
        .cli(&["wicked", "mark", "7", "--user", "bob"])
        .unwrap();
    let marks = ask(&daemon, "bob", "wicked", "marks", json!({})).await;
    assert_eq!(marks.unwrap()[0], 7);
    let misplaced = daemon.cli(&["--user", "ann", "status"]).unwrap_err();
    assert!(
        format!("{misplaced:#}").contains("--user goes with"),
        "{misplaced:#}"
    );
}

#[tokio::test]
async fn a_node_without_plugins_has_no_users_and_says_so_at_once() {
    let daemon = Setup::new("node").unwrap().start().await.unwrap();
    for words in [&["list"][..], &["add", "ann"]] {
        let words = [&["user"], words].concat();
        let refused = format!("{:#}", daemon.cli(&words).unwrap_err());
        assert!(refused.contains("no plugin runs here"), "{refused}");
    }
}

#[tokio::test]
async fn a_plugin_that_asks_for_no_users_has_none() {
    let setup = Setup::new("node")
        .unwrap()
        .plugin("plugins/ledger")
        .unwrap();
    let daemon = setup.start().await.unwrap();
    add(&daemon, "ann").await;
    let refused = ask(&daemon, "ann", "ledger", "book", json!({})).await;
    let refused = format!("{:#}", refused.unwrap_err());
    assert!(refused.contains("users = true"), "{refused}");
}

async fn kept(daemon: &Daemon) -> u64 {
    let list = daemon.call("plugin.list", json!({})).await.unwrap();
    list["plugins"][0]["state_bytes"].as_u64().unwrap()
}

/// A daemon with users of the wicked plugin, who keep something.
async fn with_users(names: &[&str]) -> Daemon {
    let setup = Setup::new("node").unwrap().plugin("tests/wicked").unwrap();
    let daemon = setup.start().await.unwrap();
    for name in names {
        add(&daemon, name).await;
        let marked = ask(&daemon, name, "wicked", "mark", json!({ "with": 5 })).await;
        assert_eq!(marked.unwrap(), "marked");
    }
    daemon
}

/// Asks as soon as there is a seat: the control socket has 32 for operators, and gives one free when it
/// has seen that its client left.
async fn seated(daemon: &Daemon, user: &str, command: &str, arguments: Value) -> Result<Value> {
    until("a seat", async || {
        let told = ask(daemon, user, "wicked", command, arguments.clone()).await;
        let is_full = |error: &anyhow::Error| format!("{error:#}").contains("too many control");
        (!told.as_ref().is_err_and(is_full)).then_some(told)
    })
    .await?
}

#[tokio::test]
async fn who_is_removed_comes_back_as_he_was() {
    let mut daemon = with_users(&["ann", "bob"]).await;
    let alarm = json!({ "with": 77, "after-ms": 3000 });
    ask(&daemon, "ann", "wicked", "alarm", alarm).await.unwrap();
    let waiting = ask(&daemon, "bob", "wicked", "later", json!({}));
    let (waiting, ()) = tokio::join!(waiting, remove(&daemon, "bob", false));
    let told = format!("{:#}", waiting.unwrap_err());
    let reasons = ["removed", "no user", "in time"];
    assert!(reasons.iter().any(|why| told.contains(why)), "{told}");
    remove(&daemon, "ann", false).await;
    let before = kept(&daemon).await;
    for _ in 0..2 {
        let gone = refusal(&daemon, "ann", "marks", json!({})).await;
        assert!(gone.contains("there is no user `ann`"), "{gone}");
        daemon.kill().unwrap();
        daemon.restart().await.unwrap();
        assert_eq!(kept(&daemon).await, before);
    }
    add(&daemon, "ann").await;
    // Her timer was late, and not forgotten.
    until("the alarm", async || {
        let marks = ask(&daemon, "ann", "wicked", "marks", json!({}))
            .await
            .ok()?;
        (marks[0] == 77).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn who_is_purged_leaves_nothing_but_a_name_that_nobody_gets() {
    let mut daemon = with_users(&["ann", "bob"]).await;
    let broken = refusal(&daemon, "bob", "break", json!({ "with": 9 })).await;
    assert!(broken.contains("the plugin failed"), "{broken}");
    let before = kept(&daemon).await;
    daemon.cli(&["user", "remove", "bob"]).unwrap();
    assert_eq!(kept(&daemon).await, before);
    let purge = ["user", "remove", "bob", "--purge"];
    let unasked = format!("{:#}", daemon.cli(&purge).unwrap_err());
    assert!(unasked.contains("--yes"), "{unasked}");
    daemon.cli(&[&purge[..], &["--yes"]].concat()).unwrap();
    let after = kept(&daemon).await;
    assert!(after < before, "{after} of {before} bytes");
    let dead = daemon.cli(&["plugin", "dead", "wicked"]).unwrap();
    assert_eq!(dead, "no dead letters\n");
    daemon.kill().unwrap();
    daemon.restart().await.unwrap();
    assert_eq!(kept(&daemon).await, after);
    let refused = daemon.cli(&["user", "add", "bob"]).unwrap_err();
    assert!(format!("{refused:#}").contains("was purged"), "{refused:#}");
    let list = daemon.cli(&["user", "list"]).unwrap();
    let states: Vec<_> = list
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>())
        .collect();
    assert_eq!(states, [["ann", "active"], ["bob", "purged"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_users_ask_at_once_and_one_that_is_parked_hurts_nobody() {
    let setup = Setup::new("node").unwrap().plugin("tests/wicked").unwrap();
    let manifest = setup.folder().join("wicked/plugin.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let halting = "[instance]\npoison = \"halt\"\n\n[limits]";
    std::fs::write(&manifest, text.replace("[limits]", halting)).unwrap();
    let daemon = setup.start().await.unwrap();
    let names: Vec<String> = (0..200).map(|number| format!("user-{number}")).collect();
    for name in &names {
        add(&daemon, name).await;
    }
    let broken = refusal(&daemon, "user-0", "break", json!({ "with": 1 })).await;
    assert!(broken.contains("the plugin failed"), "{broken}");
    for crowd in names.chunks(CROWD) {
        let marks = crowd
            .iter()
            .enumerate()
            .map(|(number, name)| seated(&daemon, name, "mark", json!({ "with": number })));
        for (name, marked) in crowd
            .iter()
            .zip(futures_util::future::join_all(marks).await)
        {
            match marked {
                Ok(told) => assert_eq!(told, "marked"),
                Err(error) => {
                    assert_eq!(name, "user-0", "{error:#}");
                    assert!(format!("{error:#}").contains("is parked"), "{error:#}");
                }
            }
        }
    }
    for crowd in names.chunks(CROWD) {
        let marks = crowd
            .iter()
            .map(|name| seated(&daemon, name, "marks", json!({})));
        let marks = futures_util::future::join_all(marks).await;
        for ((number, name), marks) in crowd.iter().enumerate().zip(marks) {
            match marks {
                Ok(marks) => assert_eq!(marks[0], number),
                Err(error) => assert_eq!(name, "user-0", "{error:#}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_two_nodes_write_to_each_other_and_to_nobody_who_is_not_there() {
    let setup = |name: &str, host: u8| {
        let listen = format!("127.93.0.{host}:0");
        Setup::new(name).unwrap().listen(&listen)
    };
    let rules = "fn route(c) { c.node.direct().closed() }";
    let (one, two) = (setup("one", 1), setup("two", 2).script("rules.rhai", rules));
    let two = two.peer_id("one", one.id(), 3, "");
    let two = two.plugin("tests/meter").unwrap().start().await.unwrap();
    let one = one.script("rules.rhai", rules).peer(&two, 3);
    let one = one.plugin("tests/meter").unwrap().start().await.unwrap();
    add(&one, "ann").await;
    add(&two, "bob").await;
    let tell = async |from: &Daemon, who: &str, to: &Daemon, whom: &str, expires_ms: u64| {
        let node = to.id().as_bytes().to_vec();
        let letter = json!({ "node": node, "user": whom, "expires_ms": expires_ms });
        let told = ask(from, who, "meter", "tell", letter).await;
        told.map_err(|error| format!("{error:#}"))
    };
    let minute = 60_000;
    assert_eq!(
        tell(&one, "ann", &two, "bob", minute).await.unwrap(),
        "handled"
    );
    assert_eq!(
        tell(&two, "bob", &one, "ann", minute).await.unwrap(),
        "handled"
    );
    let asked = async |daemon: &Daemon, user: &str, query: &str| {
        ask(daemon, user, "meter", query, json!({})).await.unwrap()
    };
    assert_eq!(asked(&two, "bob", "last-user").await, "ann");
    assert_eq!(asked(&one, "ann", "last-user").await, "bob");
    let node = json!({ "instance": "meter", "command": "count" });
    let by_node = two.call("plugin.ask", node).await.unwrap();
    assert_eq!(
        (asked(&two, "bob", "count").await, by_node),
        (json!(1), json!(0))
    );

    let late = tell(&one, "ann", &two, "eve", 700).await.unwrap_err();
    assert!(late.contains("it expired"), "{late}");
    // It waits for him.
    remove(&two, "bob", false).await;
    let told = tell(&one, "ann", &two, "bob", minute);
    let (told, ()) = tokio::join!(told, add(&two, "bob"));
    assert_eq!(told.unwrap(), "handled");
    assert_eq!(asked(&two, "bob", "count").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_of_a_user_shows_neither_the_node_nor_the_name() {
    let net = Arc::new(HostNetwork::default());
    let a = PluginHost::new(&net, "tests/meter").await.unwrap();
    let b = PluginHost::new(&net, "tests/meter").await.unwrap();
    for name in ["ann-the-shopkeeper", "bob"] {
        a.host().unwrap().add_user(name).await.unwrap();
    }
    let ann = Some("ann-the-shopkeeper");
    let told = json!({ "node": b.id().as_bytes(), "alias": "shop" });
    a.ask_as(ann, "tell", told.clone()).await.unwrap();
    let wire = net.take_recorded();
    let shows = |part: &[u8]| wire.windows(part.len()).any(|window| window == part);
    assert!(shows(b"good morning"));
    assert!(!shows(a.id().as_bytes()) && !shows(b"shopkeeper"));
    let key = a
        .ask_as(ann, "alias", json!({ "name": "shop" }))
        .await
        .unwrap();
    assert_eq!(b.query("last").await.unwrap()[0], json!({ "Alias": key }));
    assert_eq!(b.query("last-user").await.unwrap(), Value::Null);
    // What is written back is hers, and nobody else's.
    b.ask("back", json!({})).await.unwrap();
    let last = a.query_as(ann, "last").await.unwrap();
    assert_eq!(last, json!([{ "Node": b.id().as_bytes() }, "shop"]));
    for other in [None, Some("bob")] {
        assert_eq!(a.query_as(other, "count").await.unwrap(), 0);
    }
    a.ask_as(Some("bob"), "tell", told).await.unwrap();
    let of_bob = b.query("last").await.unwrap()[0]["Alias"].clone();
    assert_ne!(of_bob, key);
}
