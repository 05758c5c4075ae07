//! Plugins and rule scripts on real daemons: facts that admit to a relay, bills that come back, questions
//! that scripts answer, and peers that come and go.

use std::{fs, process::Command};

use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use wormholes_tests::{
    Daemon, EchoServer, Metrics, Setup, Site, curl, output, socks5_connect, until,
};

/// A club that carries for those who have credit, and bills them.
const CLUB: &str = r#"
fn relay(q) {
    let credit = q.from.credit;
    if credit <= 0 { return deny("no credit"); }
    allow().bytes(credit * 1000000).bill(q.from)
}
fn clerk_write(w) {
    let from = peer(w.from);
    if from == () { return deny("nobody knows the writer"); }
    if w.size > 1000 { return deny("too large"); }
    if w.size == 999 { return w.colour; }
    if from.credit <= 0 { return pass(); }
    allow().bytes(w.size * 2).bw("1MB/s").for_time("10s").idle("5s")
}
"#;
const BY_RELAY: &str = "fn route(c) { c.node.relayed().timeout(\"9s\").closed() }";
/// What a transfer of a megabyte may cost besides: seals, frames and the words of HTTP.
const OVERHEAD: f64 = 1.03;

/// Bob reaches Carol through the club.
struct Trio {
    club: Daemon,
    bob: Daemon,
    carol: Daemon,
    _web: Site,
}

impl Trio {
    async fn start(octet: u8) -> Self {
        let web = Site::start("carol's", [127, 0, 0, 1].into(), None)
            .await
            .unwrap();
        let (bob, carol) = (Setup::new("bob").unwrap(), Setup::new("carol").unwrap());
        let club = Setup::new("club")
            .unwrap()
            .listen(&format!("127.{octet}.0.1:0"))
            .config("[relay]\nenabled = true\n[metrics]\nlisten = \"127.0.0.1:0\"")
            .peer_id("bob", bob.id(), 2, "")
            .peer_id("carol", carol.id(), 3, "")
            .script("club.rhai", CLUB);
        let club = club.plugin("tests/clerk").unwrap().start().await.unwrap();
        let registers = format!(
            "addresses = [\"{}\"]\nregister = true",
            club.listen().unwrap()
        );
        let carol = carol
            .peer_id("club", club.id(), 2, &registers)
            .peer_id("bob", bob.id(), 2, "")
            .service("web", web.address());
        let bob = bob
            .entrances()
            .peer(&club, 2)
            .peer_id("carol", carol.id(), 2, "via = [\"club\"]")
            .script("by-relay.rhai", BY_RELAY);
        let carol = carol.start().await.unwrap();
        carol.until_registered().await.unwrap();
        Self {
            bob: bob.start().await.unwrap(),
            carol,
            club,
            _web: web,
        }
    }

    /// Whether Bob reaches Carol.
    async fn reaches(&self) -> bool {
        let entrance = self.bob.entrance("socks5").unwrap();
        socks5_connect(entrance, "web.carol.wh", 80).await.is_ok()
    }

    async fn clerk(&self, query: &str) -> Value {
        let params = json!({ "instance": "clerk", "command": query, "arguments": {} });
        self.club.call("plugin.ask", params).await.unwrap()
    }

    /// The club's clerk is given a command, by petnames.
    fn told(&self, words: &[&str]) -> Result<String, String> {
        let words = [&["clerk"], words].concat();
        let said = self.club.cli(&words);
        said.map_err(|error| format!("{error:#}"))
    }
}

fn digits(node: &Daemon) -> String {
    HEXLOWER.encode(node.id().as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn credit_that_a_plugin_publishes_admits_to_a_relay_which_bills_it() {
    let trio = Trio::start(101).await;
    assert!(!trio.reaches().await, "nobody has credit");
    let undone = trio.told(&["vouch", "bob", "7", "--and-refuse"]);
    assert!(undone.unwrap_err().contains("thought better"));
    assert!(!trio.reaches().await, "what was undone is not published");
    trio.told(&["vouch", "bob", "5"]).unwrap();
    until("bob's credit", async || trio.reaches().await.then_some(()))
        .await
        .unwrap();

    let proxy = format!("socks5h://{}", trio.bob.entrance("socks5").unwrap());
    let fetched = curl(&proxy, "http://web.carol.wh/bytes/1000000", &[]).await;
    assert_eq!(fetched.unwrap().body.len(), 1_000_000);
    let place = format!("relay {}", digits(&trio.bob));
    let used = until("the bill", async || {
        let used = trio.clerk("used").await;
        let parts: Vec<f64> = serde_json::from_value(used[&place].clone()).ok()?;
        (parts[1] >= 1_000_000.0).then_some(parts)
    });
    let used = used.await.unwrap();
    assert!(used[1] < 1_000_000.0 * OVERHEAD, "{used:?}");
    assert!(used[0] > 100.0 && used[0] < 30_000.0, "{used:?}");
    let all = trio.clerk("used").await;
    assert_eq!(all.as_object().unwrap().len(), 1, "{all}");

    // More than its credit buys is cut off.
    let cut = curl(&proxy, "http://web.carol.wh/bytes/9000000", &[]).await;
    assert!(cut.unwrap().body.len() < 5_000_000);
    trio.told(&["disown", "bob"]).unwrap();
    until("bob to be refused", async || {
        (!trio.reaches().await).then_some(())
    })
    .await
    .unwrap();
    trio.told(&["vouch", "bob", "5", "--ms", "1"]).unwrap();
    until("its time to be over", async || {
        (!trio.reaches().await).then_some(())
    })
    .await
    .unwrap();

    // Each decision is kept with the credit that it saw.
    let kept = trio.club.folder().join("kept.json");
    let rules = trio.club.folder().join("club.rhai");
    let replay = |words: &[&str]| {
        let mut command = trio.club.cli_command(words).unwrap();
        let said = output(&mut command).unwrap();
        String::from_utf8(said.stdout).unwrap()
    };
    let saved = ["script", "replay", "--save", kept.to_str().unwrap()];
    trio.club.cli(&saved).unwrap();
    let same = replay(&["script", "replay", rules.to_str().unwrap()]);
    assert!(same.contains(" 0 would change"), "{same}");
    let text = fs::read_to_string(&kept).unwrap();
    let text = text.replace([' ', '\n'], "");
    assert!(text.contains("\"credit\":5"), "{text}");
    fs::write(&rules, CLUB.replace("credit <= 0", "credit <= 5")).unwrap();
    let other = replay(&["script", "replay", rules.to_str().unwrap()]);
    assert!(other.contains("deny: no credit"), "{other}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_is_answered_by_the_rules_in_force_and_a_script_that_fails_denies() {
    let trio = Trio::start(102).await;
    let ask = |peer: &str, size: &str| -> Value {
        let said = trio.told(&["ask", peer, size, "--json"]).unwrap();
        serde_json::from_str(&said).unwrap()
    };
    assert_eq!(ask("bob", "10"), "none", "it passes");
    assert_eq!(ask("bob", "1001"), json!({ "deny": "too large" }));
    let failed = ask("bob", "999")["deny"].as_str().unwrap().to_owned();
    assert!(failed.contains("club.rhai:11: "), "{failed}");
    trio.told(&["vouch", "bob", "5"]).unwrap();
    let allowed = until("bob's credit", async || {
        let said = ask("bob", "10");
        said["allow"].is_array().then_some(said)
    });
    let allowed = allowed.await.unwrap();
    assert_eq!(allowed, json!({ "allow": [1_000_000, 20, 10, 5] }));
    let errors = trio.club.call("script.list", json!({})).await.unwrap();
    let error = &errors["last_errors"][0];
    assert_eq!(
        (&error["hook"], &error["line"]),
        (&json!("asked"), &json!(11))
    );
    let metrics = Metrics::read(&trio.club).await.unwrap();
    let counted = metrics.get("wormholes_script_errors_total{hook=\"asked\"}");
    assert!(counted >= 1.0);

    // What was asked is asked again of other scripts.
    let folder = trio.club.folder();
    let stricter = folder.join("stricter.rhai");
    fs::write(&stricter, CLUB.replace("w.size > 1000", "w.size > 9")).unwrap();
    let replay = |file: &std::path::Path| {
        let words = ["script", "replay", file.to_str().unwrap()];
        let said = output(&mut trio.club.cli_command(&words).unwrap()).unwrap();
        String::from_utf8(said.stdout).unwrap()
    };
    let same = replay(&folder.join("club.rhai"));
    assert!(same.contains(" 0 would change"), "{same}");
    let told = replay(&stricter);
    assert!(told.contains("clerk asks clerk_write"), "{told}");
    assert!(told.contains("deny: too large"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_may_be_as_deep_as_any_and_one_that_nobody_can_ask_is_refused() {
    let trio = Trio::start(104).await;
    let folder = trio.club.folder();
    let ask = |peer: &str, size: &str| -> Value {
        let said = trio.told(&["ask", peer, size, "--json"]).unwrap();
        serde_json::from_str(&said).unwrap()
    };
    // On the stack of a plugin's call.
    let deep = folder.join("deep.rhai");
    let open = "(1 + ".repeat(20);
    let shut = ")".repeat(20);
    let text = format!("fn f(n) {{ {open}f(n + 1){shut} }}\nfn clerk_write(w) {{ f(0) }}");
    fs::write(&deep, text).unwrap();
    trio.club
        .cli(&["script", "load", deep.to_str().unwrap()])
        .unwrap();
    let failed = ask("bob", "10")["deny"].as_str().unwrap().to_owned();
    assert!(failed.contains("deep.rhai:"), "{failed}");
    // No script has the hook.
    let empty = folder.join("empty.rhai");
    fs::write(&empty, "fn accept(p) { allow() }").unwrap();
    trio.club
        .cli(&["script", "load", empty.to_str().unwrap()])
        .unwrap();
    assert_eq!(ask("carol", "10"), "none");
    // One that nobody can ask is no rule.
    for (text, said) in [
        ("fn clerk_write(a, b) { allow() }", "takes 1 argument"),
        (
            "fn clerk_wirte(w) { allow() }",
            "did you mean the hook `clerk_write`",
        ),
    ] {
        fs::write(&empty, text).unwrap();
        let refused = trio
            .club
            .cli(&["script", "load", empty.to_str().unwrap()])
            .unwrap_err();
        assert!(format!("{refused:#}").contains(said), "{refused:#}");
    }
}

/// Who may write what into the table that a node keeps for others.
const WRITES: &str = r#"
fn route(c) { c.node.direct().closed() }
fn clerk_write(w) {
    let from = peer(w.from);
    if from == () { return deny("nobody knows the writer"); }
    if w.key.starts_with("open/") { return pass(); }
    if w.size > 100 { return deny("too large"); }
    if w.key.starts_with("club/") && from.trust < 2 { return deny("its friends write there"); }
    allow()
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_script_says_what_other_nodes_write_into_a_table() {
    let (bob, eve) = (Setup::new("bob").unwrap(), Setup::new("eve").unwrap());
    let club = Setup::new("club").unwrap().listen("127.185.0.1:0");
    let club = club
        .peer_id("bob", bob.id(), 2, "")
        .peer_id("eve", eve.id(), 1, "")
        .script("writes.rhai", WRITES);
    let club = club.plugin("tests/clerk").unwrap().start().await.unwrap();
    let writer = async |setup: Setup| {
        let setup = setup.peer(&club, 2).script("writes.rhai", WRITES);
        setup.plugin("tests/clerk").unwrap().start().await.unwrap()
    };
    let (bob, eve) = (writer(bob).await, writer(eve).await);
    let put = |from: &Daemon, key: &str, text: &str| {
        let said = from.cli(&["clerk", "put", "club", key, text]);
        said.map_err(|error| format!("{error:#}"))
    };
    let written = || Ok("written\n".to_owned());
    let refused = |said: Result<String, String>, why: &str| {
        let said = said.unwrap_err();
        assert!(said.contains(why), "{said}");
    };
    let long = "x".repeat(101);
    assert_eq!(put(&bob, "club/motto", "all are welcome"), written());
    refused(put(&eve, "club/motto", "mine"), "its friends write there");
    assert_eq!(put(&eve, "eve/page", "hello, all of you"), written());
    refused(put(&bob, "bob/page", &long), "too large");
    // The script passes: the plugin has a rule of its own.
    assert_eq!(put(&eve, "open/1", "short"), written());
    refused(put(&eve, "open/2", &long), "no rule lets so much in");

    // Another script, other rules.
    let closed = club.folder().join("closed.rhai");
    fs::write(&closed, "fn clerk_write(w) { deny(\"closed\") }").unwrap();
    club.cli(&["script", "load", closed.to_str().unwrap()])
        .unwrap();
    refused(put(&bob, "club/motto", "none"), "closed");
    let table = club.cli(&["clerk", "table", "--json"]).unwrap();
    let table: Value = serde_json::from_str(&table).unwrap();
    let expected = json!({
        "club/motto": "all are welcome",
        "eve/page": "hello, all of you",
        "open/1": "short",
    });
    assert_eq!(table, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_hears_which_peers_are_up_and_again_after_kill_9() {
    let mut trio = Trio::start(103).await;
    let (bob, carol) = (digits(&trio.bob), digits(&trio.carol));
    let both = json!({ bob.as_str(): 2, carol.as_str(): 3 });
    let until_present = async |trio: &Trio, whom: &Value| {
        let present = until("those who are up", async || {
            (trio.clerk("present").await == *whom).then_some(())
        });
        present.await.unwrap();
    };
    until_present(&trio, &both).await;
    trio.carol.kill().unwrap();
    let alone = json!({ bob.as_str(): 2 });
    until_present(&trio, &alone).await;
    trio.carol.restart().await.unwrap();
    until_present(&trio, &both).await;
    let events = async |trio: &Trio| {
        let metrics = Metrics::read(&trio.club).await.unwrap();
        metrics.sum("wormholes_plugin_events_total{plugin=\"clerk\",kind=\"presence\"")
    };
    assert!(events(&trio).await >= 4.0);
    trio.club.kill().unwrap();
    trio.club.restart().await.unwrap();
    let told = until("both to be told of anew", async || {
        (events(&trio).await >= 2.0).then_some(())
    });
    told.await.unwrap();
    until_present(&trio, &both).await;
    // Whom it trusts otherwise from now on, is still up.
    let config = trio.club.folder().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replacen("trust = 2", "trust = 1", 1)).unwrap();
    trio.club.cli(&["script", "load"]).unwrap();
    let less = json!({ bob.as_str(): 1, carol.as_str(): 3 });
    until_present(&trio, &less).await;
}

#[tokio::test]
async fn what_scripts_cannot_read_or_two_would_publish_is_refused_by_name() {
    let check = |grants: &str, more: &str| {
        let setup = Setup::new("node").unwrap().plugin("tests/clerk").unwrap();
        let setup = setup.config(more);
        let config = setup.write_config().unwrap();
        let text = fs::read_to_string(&config).unwrap();
        let granted = "facts = [\"credit\"], rules = [\"clerk_write\"]";
        assert!(text.contains(granted), "{text}");
        fs::write(&config, text.replace(granted, grants)).unwrap();
        let mut command = Command::new(wormholes_tests::binary("wormholed").unwrap());
        let output = command.arg("--config").arg(&config).arg("--check").output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    let all = "facts = [\"credit\"], rules = [\"clerk_write\"]";
    let (good, said) = check(all, "");
    assert!(good, "{said}");
    for (grants, more, wanted) in [
        (
            "rules = [\"clerk_write\"]",
            "",
            "the plugin imports `facts`; ask for `facts`",
        ),
        (
            "facts = [\"credit\"]",
            "",
            "the plugin imports `rules`; ask for `rules`",
        ),
        (
            "facts = [\"credit\", \"trust\"], rules = []",
            "",
            "`trust` is a field that every node has",
        ),
        (
            "facts = [\"while\"], rules = []",
            "",
            "`while` is a word of the language",
        ),
        (
            "facts = [\"credit\"], rules = [\"relay\"]",
            "",
            "`relay` is a hook that the node asks itself",
        ),
        (
            "facts = [\"credit\"], rules = [\"allow\"]",
            "",
            "`allow` is the host's",
        ),
        (
            all,
            "[plugin.other]\nwasm = \"clerk/wormholes_clerk.wasm\"\ngrants = { facts = [\"credit\"] }",
            "`credit` is granted to [plugin.",
        ),
    ] {
        let (good, said) = check(grants, more);
        assert!(!good, "{grants}: {said}");
        assert_eq!(said.matches(wanted).count(), 1, "{grants}: {said}");
    }
}

#[tokio::test]
async fn rules_name_what_a_plugin_is_granted_while_the_node_runs() {
    let others = Setup::new("other").unwrap();
    let beside = others.plugin("tests/clerk").unwrap();
    let folder = beside.folder().join("clerk");
    let bob = Setup::new("bob").unwrap();
    let club = Setup::new("club").unwrap().script("club.rhai", CLUB);
    let club = club.peer_id("bob", bob.id(), 2, "").start().await.unwrap();
    let told = |words: &[&str]| club.cli(words).map_err(|error| format!("{error:#}"));
    let unheard = "no plugin is told what this bills";
    assert!(told(&["script", "list"]).unwrap().contains(unheard));

    told(&["plugin", "add", folder.to_str().unwrap(), "--yes"]).unwrap();
    let list = told(&["script", "list"]).unwrap();
    assert!(!list.contains(unheard), "{list}");
    let ask = |size: &str| told(&["clerk", "ask", "bob", size, "--json"]).unwrap();
    assert!(ask("1001").contains("too large"), "{}", ask("1001"));
    assert!(ask("10").contains("none"), "{}", ask("10"));
    told(&["clerk", "vouch", "bob", "5"]).unwrap();
    until("bob's credit", async || {
        ask("10").contains("allow").then_some(())
    })
    .await
    .unwrap();

    told(&["plugin", "remove", "clerk"]).unwrap();
    assert!(told(&["script", "list"]).unwrap().contains(unheard));
}

#[tokio::test]
async fn a_fact_has_one_publisher_whatever_config_toml_says_by_now() {
    let club = Setup::new("club").unwrap().plugin("tests/clerk").unwrap();
    let club = club.start().await.unwrap();
    let path = club.folder().join("config.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("[plugin.clerk]", "[plugin.other]")).unwrap();
    let other = json!({ "instance": "other" });
    let refused = club.call("plugin.add", other.clone()).await.unwrap_err();
    let said = format!("{refused:#}");
    assert!(
        said.contains("`credit`") && said.contains("`clerk`"),
        "{said}"
    );
    let clerk = json!({ "instance": "clerk" });
    club.call("plugin.remove", clerk).await.unwrap();
    club.call("plugin.add", other).await.unwrap();
}

/// Who bills where nobody hears of it is told when the script is loaded.
#[tokio::test]
async fn a_bill_that_no_plugin_gets_is_warned_of() {
    let echo = EchoServer::start([127, 0, 0, 1].into()).await.unwrap();
    let setup = Setup::new("node").unwrap().script("club.rhai", CLUB);
    let setup = setup.service("web", echo.address());
    let config = setup.write_config().unwrap();
    let mut command = Command::new(wormholes_tests::binary("wormholes").unwrap());
    let command = command.args(["script", "check", "--deny-warnings", "--config"]);
    let said = output(command.arg(&config)).unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
    assert!(!said.status.success(), "{text}");
    assert!(text.contains("grant `usage` to one"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_removed_plugin_published_admits_nobody() {
    let trio = Trio::start(105).await;
    trio.told(&["vouch", "bob", "5"]).unwrap();
    until("bob's credit", async || trio.reaches().await.then_some(()))
        .await
        .unwrap();
    trio.club.cli(&["plugin", "remove", "clerk"]).unwrap();
    until("bob to be refused", async || {
        (!trio.reaches().await).then_some(())
    })
    .await
    .unwrap();
}
