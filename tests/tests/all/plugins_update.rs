//! Plugins that change while the daemon runs: another version takes over or the one that runs goes on,
//! whatever breaks and whenever the daemon is killed; and plugins that come and go.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rand::Rng as _;
use serde_json::{Value, json};
use wormholes_proto::NodeId;
use wormholes_tests::{Daemon, Setup, soak_rounds, until, until_within};

/// Kills in continuous integration; thirty times as many in a soak.
const KILLS: usize = 20;
const SHEETS: u64 = 1000;

/// The files of a plugin in the folder that config.toml names.
struct Files {
    manifest: PathBuf,
    component: PathBuf,
    first: String,
}

impl Files {
    fn new(folder: &Path, name: &str) -> Self {
        let folder = folder.join(name);
        let manifest = folder.join("plugin.toml");
        Self {
            component: folder.join(format!("wormholes_{name}.wasm")),
            first: std::fs::read_to_string(&manifest).unwrap(),
            manifest,
        }
    }

    /// Puts another version there: what it bears, and of which schema its rows are.
    fn put(&self, version: &str, schema: u32) {
        self.put_manifest(version, schema);
        // A custom section: the component does the same and is another one.
        let mut component = std::fs::read(&self.component).unwrap();
        component.extend([0, 2, 1, b'v']);
        // As a copy with a rename does it.
        let beside = self.component.with_extension("new");
        std::fs::write(&beside, component).unwrap();
        std::fs::rename(&beside, &self.component).unwrap();
    }

    /// The same, with the component that is there: it is compiled by then.
    fn put_manifest(&self, version: &str, schema: u32) {
        let text = self.first.replace("\"0.1.0\"", &format!("{version:?}"));
        let text = format!("{text}\n[state]\nschema = {schema}\n");
        std::fs::write(&self.manifest, text).unwrap();
    }
}

async fn ask(daemon: &Daemon, command: &str, with: u64) -> Value {
    let arguments = json!({ "with": with });
    let params = json!({ "instance": "wicked", "command": command, "arguments": arguments });
    daemon.call("plugin.ask", params).await.unwrap()
}

async fn mark(daemon: &Daemon) -> Value {
    ask(daemon, "marks", 0).await[0].clone()
}

async fn listed(daemon: &Daemon, name: &str) -> Option<Value> {
    let list = daemon.call("plugin.list", json!({})).await.unwrap();
    let mut plugins = list["plugins"].as_array().unwrap().iter();
    plugins.find(|plugin| plugin["name"] == name).cloned()
}

async fn version(daemon: &Daemon) -> String {
    let listed = listed(daemon, "wicked").await.unwrap();
    listed["version"].as_str().unwrap().to_owned()
}

fn cli(daemon: &Daemon, words: &[&str]) -> Result<String, String> {
    daemon.cli(words).map_err(|error| format!("{error:#}"))
}

async fn wicked() -> (Daemon, Files) {
    let setup = Setup::new("node").unwrap().plugin("tests/wicked").unwrap();
    let files = Files::new(setup.folder(), "wicked");
    let daemon = setup.start().await.unwrap();
    ask(&daemon, "sheets", SHEETS).await;
    (daemon, files)
}

#[tokio::test]
async fn a_version_that_cannot_take_over_leaves_the_one_that_runs() {
    let (mut daemon, files) = wicked().await;
    let refusals = [
        (13, "13 cannot be migrated", 1),
        (14, "unreachable", 1),
        (15, "15 is not updated", 0),
    ];
    for (marked, why, schema) in refusals {
        ask(&daemon, "mark", marked).await;
        files.put("0.2.0", schema);
        let said = cli(&daemon, &["plugin", "update", "wicked"]).unwrap_err();
        assert!(said.contains(why) && said.contains("runs on"), "{said}");
        assert_eq!(version(&daemon).await, "0.1.0");
        assert_eq!(mark(&daemon).await, marked);
        assert_eq!(ask(&daemon, "seen", 0).await, json!([[0, SHEETS]]));
    }
    let text = std::fs::read_to_string(&files.manifest).unwrap();
    let without = text.replace("timers = true\n", "");
    std::fs::write(&files.manifest, without).unwrap();
    let said = cli(&daemon, &["plugin", "update", "wicked"]).unwrap_err();
    assert!(said.contains("imports `timers`"), "{said}");
    assert_eq!(mark(&daemon).await, 15);
    // At a start as well: the version that ran goes on.
    ask(&daemon, "mark", 13).await;
    files.put("0.2.0", 1);
    daemon.kill().unwrap();
    daemon.restart().await.unwrap();
    assert_eq!(version(&daemon).await, "0.1.0");
    assert_eq!(mark(&daemon).await, 13);
    let said = daemon.log().matching("the version before runs on");
    assert_eq!(said.len(), 1, "{said:?}");
    // And what stood in the way is gone.
    ask(&daemon, "mark", 5).await;
    daemon.kill().unwrap();
    daemon.restart().await.unwrap();
    assert_eq!(version(&daemon).await, "0.2.0");
    assert_eq!(mark(&daemon).await, 1005);
    assert_eq!(ask(&daemon, "seen", 0).await, json!([[1, SHEETS]]));
}

#[tokio::test]
async fn what_is_sealed_changes_in_init_and_in_no_step_of_a_migration() {
    const REFUSED: &str = "secret rows, keys and blobs have one side only: change them in `init`, \
                           which follows `migrate`";
    let (daemon, files) = wicked().await;
    let told = |words: &[&str]| cli(&daemon, &[&["wicked"], words].concat());
    told(&["hide", "kept", "a secret"]).unwrap();
    let key = told(&["make-key", "kept"]).unwrap();
    for marked in [16, 17] {
        ask(&daemon, "mark", marked).await;
        files.put("0.2.0", 1);
        let said = cli(&daemon, &["plugin", "update", "wicked"]).unwrap_err();
        assert!(said.contains(REFUSED) && said.contains("runs on"), "{said}");
        assert_eq!(version(&daemon).await, "0.1.0");
        assert_eq!(mark(&daemon).await, marked);
        assert_eq!(told(&["peek", "step"]).unwrap(), "");
    }
    ask(&daemon, "mark", 18).await;
    cli(&daemon, &["plugin", "update", "wicked"]).unwrap();
    assert_eq!(mark(&daemon).await, 1018);
    for (name, length) in [("kept", "8\n"), ("step", ""), ("moved", "7\n")] {
        assert_eq!(told(&["peek", name]).unwrap(), length, "{name}");
    }
    assert_eq!(told(&["make-key", "kept"]).unwrap(), key);
}

#[tokio::test]
async fn a_version_takes_rows_timers_and_scratch_over_and_can_be_rolled_back() {
    let (mut daemon, files) = wicked().await;
    ask(&daemon, "mark", 5).await;
    files.put("0.2.0", 0);
    let said = cli(&daemon, &["plugin", "update", "wicked"]).unwrap();
    assert!(said.contains("wicked 0.2.0 runs"), "{said}");
    let marks = ask(&daemon, "marks", 0).await;
    assert_eq!(
        (&marks[0], &marks[1]),
        (&json!(5), &json!(5)),
        "scratch stays"
    );
    for version_before in ["0.1.0", "0.2.0", "0.1.0"] {
        cli(&daemon, &["plugin", "rollback", "wicked"]).unwrap();
        assert_eq!(version(&daemon).await, version_before);
    }
    // The folder still holds what was left.
    for _ in 0..2 {
        daemon.kill().unwrap();
        daemon.restart().await.unwrap();
        assert_eq!(version(&daemon).await, "0.1.0");
        let said = daemon.log().matching("a plugin was rolled back");
        assert_eq!(said.len(), 1, "{said:?}");
    }
    ask(&daemon, "alarm", 77).await;
    files.put("0.3.0", 1);
    cli(&daemon, &["plugin", "update", "wicked"]).unwrap();
    assert_eq!(ask(&daemon, "seen", 0).await, json!([[1, SHEETS]]));
    until("the timer to fire", async || {
        // Before it is migrated, or after.
        let mark = mark(&daemon).await;
        (mark == 77 || mark == 1077).then_some(())
    })
    .await
    .unwrap();
    let said = cli(&daemon, &["plugin", "rollback", "wicked"]).unwrap_err();
    assert!(said.contains("the rows are of schema 1"), "{said}");
    assert_eq!(version(&daemon).await, "0.3.0");
    let kept = std::fs::read_dir(daemon.folder().join("data/plugins/versions/wicked"));
    assert_eq!(kept.unwrap().count(), 2, "no more than one before");
}

#[tokio::test]
async fn whenever_the_daemon_is_killed_in_an_update_one_version_has_all_rows() {
    let (mut daemon, files) = wicked().await;
    let (mut schema, mut inside) = (0_u32, 0);
    for round in 0..soak_rounds(KILLS) {
        files.put_manifest(&format!("1.0.{round}"), schema + 1);
        let before = kept(&daemon);
        let mut update = daemon.cli_command(&["plugin", "update", "wicked"]).unwrap();
        let update = update.stdout(Stdio::null());
        let mut update = update.stderr(Stdio::null()).spawn().unwrap();
        if round % 2 == 0 {
            // From before the daemon looks at the files to after the update.
            for _ in 0..rand::rng().random_range(0..40) {
                version(&daemon).await;
            }
        } else {
            while kept(&daemon) == before && update.try_wait().unwrap().is_none() {
                version(&daemon).await;
            }
        }
        daemon.kill().unwrap();
        update.wait().unwrap();
        let had_begun = kept(&daemon) != before;
        daemon.restart().await.unwrap();
        // What was not done before the kill is done by the start.
        let is_done_since = !daemon.log().matching("a plugin was updated").is_empty();
        inside += usize::from(had_begun && is_done_since);
        schema += 1;
        let seen = ask(&daemon, "seen", 0).await;
        assert_eq!(seen, json!([[schema, SHEETS]]), "round {round}");
        assert_eq!(
            mark(&daemon).await,
            1000 * u64::from(schema),
            "round {round}"
        );
    }
    assert!(inside > 0, "no kill fell inside of an update");
}

/// The versions whose files the host keeps, among them one that is to take over.
fn kept(daemon: &Daemon) -> BTreeSet<OsString> {
    let folder = daemon.folder().join("data/plugins/versions/wicked");
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

/// Trunks of the ledger go straight to the peer.
const RULES: &str = "fn route(c) { c.node.direct().closed() }";

async fn ledger(daemon: &Daemon, command: &str, arguments: Value) -> Value {
    let params = json!({ "instance": "ledger", "command": command, "arguments": arguments });
    daemon.call("plugin.ask", params).await.unwrap()
}

fn side(book: &Value, node: NodeId) -> &Value {
    &book["peers"][data_encoding::HEXLOWER.encode(node.as_bytes())]
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_and_no_message_is_lost_or_doubled_by_updates_under_load() {
    let setup = |name: &str, host: u8| {
        let setup = Setup::new(name).unwrap();
        let setup = setup.listen(&format!("127.91.0.{host}:0"));
        setup.script("rules.rhai", RULES)
    };
    let (ann, bob) = (setup("ann", 1), setup("bob", 2));
    let bob = bob.peer_id("ann", ann.id(), 3, "");
    let bob = bob.plugin("plugins/ledger").unwrap().start().await.unwrap();
    let ann = ann.peer(&bob, 3).plugin("plugins/ledger").unwrap();
    let daemons = [ann.start().await.unwrap(), bob];
    let files = [0, 1].map(|who: usize| Files::new(daemons[who].folder(), "ledger"));
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let (daemons, is_over) = (&daemons, &is_over);
    let pay = async |who: usize| {
        let other = daemons[1 - who].id().to_string();
        let mut paid = 0;
        while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
            let arguments = json!({ "node": other, "amount": 1, "times": 3 });
            // Every one is answered, however often its plugin changes.
            ledger(&daemons[who], "pay", arguments).await;
            ledger(&daemons[who], "ask", json!({ "node": other })).await;
            paid += 3;
        }
        paid
    };
    let update = async {
        for round in 0..10 {
            let (who, instance) = (round % 2, json!({ "instance": "ledger" }));
            files[who].put(&format!("0.2.{round}"), 0);
            let updated = daemons[who].call("plugin.update", instance.clone()).await;
            assert_eq!(updated.unwrap()["version"], format!("0.2.{round}"));
            if round % 4 > 1 {
                daemons[who]
                    .call("plugin.rollback", instance)
                    .await
                    .unwrap();
            }
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (ann_paid, bob_paid, ()) = tokio::join!(pay(0), pay(1), update);
    assert!(ann_paid > 10 && bob_paid > 10, "{ann_paid} {bob_paid}");
    let books = until_within(wormholes_tests::LIMIT * 4, "both books agree", async || {
        let books = [
            ledger(&daemons[0], "book", json!({})).await,
            ledger(&daemons[1], "book", json!({})).await,
        ];
        let agree = |from: usize, paid: usize| {
            let to = 1 - from;
            let sent = &side(&books[from], daemons[to].id())["paid"];
            let received = &side(&books[to], daemons[from].id())["received"];
            sent == received && sent["count"] == paid && books[from]["confirmed"] == paid
        };
        (agree(0, ann_paid) && agree(1, bob_paid)).then_some(books)
    });
    for book in books.await.unwrap() {
        assert_eq!(book["refused"], 0, "{book:#}");
    }
}

/// A daemon without plugins, and the folder of one that no section names.
async fn bare() -> (Daemon, Setup, String) {
    bare_beside("plugins/echo").await
}

async fn bare_beside(plugin: &str) -> (Daemon, Setup, String) {
    let setup = Setup::new("node").unwrap().plugin(plugin).unwrap();
    let folder = setup.folder().join(Path::new(plugin).file_name().unwrap());
    let folder = folder.to_str().unwrap().to_owned();
    let comment = "# kept as it is\n[limits]\nflows = 77 # so many";
    let bare = Setup::new("bare").unwrap().config(comment);
    (bare.start().await.unwrap(), setup, folder)
}

fn config(daemon: &Daemon) -> String {
    std::fs::read_to_string(daemon.folder().join("config.toml")).unwrap()
}

#[tokio::test]
async fn a_plugin_is_looked_at_and_added_without_a_restart() {
    let (mut daemon, _setup, folder) = bare().await;
    let shown = cli(&daemon, &["plugin", "inspect", &folder]).unwrap();
    for part in ["state, scratch, timers", "say: ", "sha256", "on-request"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let add = ["plugin", "add", &folder, "--name", "parrot"];
    let said = cli(&daemon, &add).unwrap_err();
    assert!(said.contains("--yes"), "{said}");
    // What the daemon refuses is undone in the file.
    let before = config(&daemon);
    let said = cli(
        &daemon,
        &[&add[..], &["--yes", "--grant", "state"]].concat(),
    )
    .unwrap_err();
    assert!(said.contains("imports `"), "{said}");
    assert_eq!(config(&daemon), before);

    cli(&daemon, &[&add[..], &["--yes"]].concat()).unwrap();
    let text = config(&daemon);
    assert!(text.starts_with(before.trim_end()), "{text}");
    assert!(text.contains("[plugin.parrot]"), "{text}");
    let said = cli(&daemon, &["parrot", "say", "hello"]).unwrap();
    assert!(said.contains("hello"), "{said}");
    let said = cli(&daemon, &[&add[..], &["--yes"]].concat()).unwrap_err();
    assert!(said.contains("has a section [plugin.parrot]"), "{said}");
    daemon.kill().unwrap();
    daemon.restart().await.unwrap();
    cli(&daemon, &["parrot", "say", "again"]).unwrap();
}

#[tokio::test]
async fn a_plugin_that_publishes_facts_and_asks_rules_is_looked_at_and_added() {
    let (daemon, _setup, folder) = bare_beside("tests/clerk").await;
    let shown = cli(&daemon, &["plugin", "inspect", &folder]).unwrap();
    let asked = "state, messages, presence, usage, facts [\"credit\"], rules [\"clerk_write\"]";
    for part in [asked, "operations 256", "facts 4096", "user_state_mib 16"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let add = ["plugin", "add", &folder, "--yes"];
    let some = [
        "--grant", "state", "--grant", "facts", "--grant", "messages",
    ];
    let said = cli(&daemon, &[&add[..], &some].concat()).unwrap_err();
    assert!(said.contains("imports `rules`"), "{said}");
    let all = [&some[..], &["--grant", "rules"]].concat();
    cli(&daemon, &[&add[..], &all].concat()).unwrap();
    let text = config(&daemon);
    let granted =
        "{ facts = [\"credit\"], messages = true, rules = [\"clerk_write\"], state = true }";
    assert!(text.contains(granted), "{text}");
    let peer = daemon.id().to_string();
    cli(&daemon, &["clerk", "vouch", &peer, "5"]).unwrap();
    cli(&daemon, &["plugin", "remove", "clerk"]).unwrap();
    cli(&daemon, &add).unwrap();
    assert!(config(&daemon).contains("usage = true"));
}

/// Interrupts a command when config.toml is changed; whether it succeeded, and what the file says then.
async fn interrupted(daemon: &Daemon, words: &[&str]) -> (bool, String) {
    let before = config(daemon);
    let mut command = daemon.cli_command(words).unwrap();
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut command = command.spawn().unwrap();
    let written = until(
        "config.toml to be changed, or the command to end",
        async || {
            let has_ended = command.try_wait().unwrap().is_some();
            (has_ended || config(daemon) != before).then_some(())
        },
    );
    written.await.unwrap();
    let pid = command.id().to_string();
    // It may have ended.
    let _ = Command::new("kill").args(["-INT", &pid]).status().unwrap();
    let is_done = command.wait().unwrap().success();
    (is_done, config(daemon))
}

#[tokio::test]
async fn who_interrupts_an_add_leaves_no_section_that_is_not_loaded() {
    let (daemon, _setup, folder) = bare().await;
    let before = config(&daemon);
    let add = ["plugin", "add", &folder, "--yes"];
    let refused = [&add[..], &["--grant", "state"]].concat();
    assert_eq!(interrupted(&daemon, &refused).await, (false, before));
    let (is_done, text) = interrupted(&daemon, &add).await;
    assert!(is_done && text.contains("[plugin.echo]"), "{text}");
    cli(&daemon, &["echo", "say", "hello"]).unwrap();
}

#[tokio::test]
async fn what_is_named_and_not_loaded_can_be_removed_and_makes_no_store() {
    let (daemon, _setup, folder) = bare().await;
    let before = config(&daemon);
    let named = format!("{before}\n[plugin.echo]\nwasm = \"{folder}/wormholes_echo.wasm\"\n");
    for words in [&[][..], &["--purge", "--yes"]] {
        std::fs::write(daemon.folder().join("config.toml"), &named).unwrap();
        let words = [&["plugin", "remove", "echo"], words].concat();
        let said = cli(&daemon, &words).unwrap();
        assert!(said.contains("was not loaded"), "{said}");
        assert_eq!(config(&daemon).trim_end(), before.trim_end());
        let said = cli(&daemon, &words).unwrap_err();
        assert!(said.contains("no plugin runs as `echo`"), "{said}");
    }
    assert!(!daemon.folder().join("data/plugins").exists());
    // What is no file is not waited for.
    let pipe = Path::new(&folder).join("wormholes_echo.wasm");
    std::fs::remove_file(&pipe).unwrap();
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    std::fs::write(daemon.folder().join("config.toml"), &named).unwrap();
    let added = daemon.call("plugin.add", json!({ "instance": "echo" }));
    let said = format!("{:#}", added.await.unwrap_err());
    assert!(said.contains("no regular file"), "{said}");
}

#[tokio::test]
async fn what_a_change_of_a_plugin_put_in_force_waits_for_no_restart() {
    let (daemon, _setup, folder) = bare().await;
    let path = daemon.folder().join("config.toml");
    let (before, component) = (config(&daemon), format!("{folder}/wormholes_echo.wasm"));
    let grants = "{ state = true, scratch = true, timers = true, messages = true }";
    let named = format!("{before}\n[plugin.echo]\nwasm = {component:?}\ngrants = {grants}\n");
    let configured = format!("{named}config = {{ a = 1 }}\n");
    let waiting = async |method: &str, params: Value| {
        let report = daemon.call(method, params).await.unwrap();
        report["restart_for"].clone()
    };
    let echo = json!({ "instance": "echo" });
    for (text, change) in [
        (named, "plugin.add"),
        (configured, "plugin.update"),
        (before, "plugin.remove"),
    ] {
        std::fs::write(&path, text).unwrap();
        let read = waiting("script.load", json!({ "scripts": [] })).await;
        assert_eq!(read, json!(["[plugin]"]), "before {change}");
        daemon.call(change, echo.clone()).await.unwrap();
        let since = waiting("config", json!({})).await;
        assert_eq!(since, json!([]), "{change}");
    }
}

#[tokio::test]
async fn a_pinned_plugin_changes_only_when_the_pin_does() {
    let (mut daemon, setup, folder) = bare().await;
    let json = cli(&daemon, &["plugin", "inspect", &folder, "--json"]).unwrap();
    let inspection: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(inspection["problems"], json!([]), "{inspection}");
    let first = inspection["sha256"].as_str().unwrap();
    cli(&daemon, &["plugin", "add", &folder, "--yes"]).unwrap();
    Files::new(setup.folder(), "echo").put("0.2.0", 0);
    let said = cli(&daemon, &["plugin", "update", "echo"]).unwrap_err();
    let (_, found) = said.split_once("has the SHA-256 ").unwrap();
    let (found, _) = found.split_once(',').unwrap();
    cli(&daemon, &["plugin", "update", "echo", "--sha256", found]).unwrap();
    let echo = listed(&daemon, "echo").await.unwrap();
    assert_eq!(
        (&echo["version"], &echo["sha256"]),
        (&json!("0.2.0"), &json!(found))
    );
    let said = cli(&daemon, &["plugin", "rollback", "echo"]).unwrap_err();
    assert!(said.contains("config.toml pins"), "{said}");
    cli(&daemon, &["plugin", "rollback", "echo", "--sha256", first]).unwrap();
    daemon.kill().unwrap();
    daemon.restart().await.unwrap();
    assert_eq!(listed(&daemon, "echo").await.unwrap()["version"], "0.1.0");
}

#[tokio::test]
async fn a_removed_plugin_leaves_its_rows_until_they_are_purged() {
    let (daemon, _setup, folder) = bare().await;
    let before = config(&daemon);
    let count = async || {
        cli(&daemon, &["plugin", "add", &folder, "--yes"]).unwrap();
        let said = cli(&daemon, &["echo", "say", "hello", "--json"]).unwrap();
        serde_json::from_str::<Value>(&said).unwrap()["count"].clone()
    };
    assert_eq!(count().await, 1);
    cli(&daemon, &["plugin", "remove", "echo"]).unwrap();
    assert_eq!(listed(&daemon, "echo").await, None);
    assert_eq!(config(&daemon).trim_end(), before.trim_end());
    let said = cli(&daemon, &["echo", "say", "hello"]).unwrap_err();
    assert!(said.contains("no plugin runs under that name"), "{said}");
    assert_eq!(count().await, 2);
    cli(&daemon, &["plugin", "remove", "echo", "--purge", "--yes"]).unwrap();
    assert_eq!(count().await, 1);
}
