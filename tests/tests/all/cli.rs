//! The command line against real nodes in this process: what people type, what they see, and the
//! exit status.

use std::{
    fs::{self, Permissions},
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use wormholed::{Config, Node, NodeOptions};
use wormholes_tests::{binary, until};

/// `nobody` of every Linux.
const STRANGER: u32 = 65_534;

const SCRIPT: &str = r#"
fn route(c) {
    if c.host == "echo.bob.wh" { return peer("bob").direct().label("to " + c.host); }
    if c.host == "odd.example" { return parse_int(c.host); }
    block("not in the test")
}
"#;

struct TestNode {
    node: Node,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

/// What a run of the command line gave.
struct Run {
    status: i32,
    stdout: String,
    stderr: String,
}

async fn start(name: &str, more: &str) -> TestNode {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.path().join("rules.rhai"), SCRIPT).unwrap();
    let text = format!(
        r#"
[node]
name = "{name}"
data_dir = "data"
listen = ["127.0.0.1:0"]
[rules]
scripts = ["rules.rhai"]
[control]
socket = "control.sock"
mode = "0666"
{more}
"#
    );
    let file = dir.path().join("config.toml");
    fs::write(&file, text).unwrap();
    let config = Config::load(&file).unwrap();
    let options = NodeOptions {
        control: true,
        ..NodeOptions::default()
    };
    let node = Node::start_with(config, options).await.unwrap();
    TestNode {
        node,
        socket: dir.path().join("control.sock"),
        _dir: dir,
    }
}

impl TestNode {
    async fn run(&self, args: &[&str]) -> Run {
        let mut command = command(&self.socket);
        command.args(args);
        run(command).await
    }

    /// The text of a command that succeeds.
    async fn text(&self, args: &[&str]) -> String {
        let run = self.run(args).await;
        assert_eq!(run.status, 0, "{args:?}: {} {}", run.stdout, run.stderr);
        run.stdout
    }

    /// The JSON of a command that succeeds.
    async fn json(&self, args: &[&str]) -> Value {
        let text = self.text(&[&["--json"], args].concat()).await;
        assert_eq!(text.lines().count(), 1, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Makes `self` and `other` peers of each other by invites.
    async fn befriend(&self, other: &Self) {
        for (from, to) in [(self, other), (other, self)] {
            let invite = from.json(&["peer", "invite"]).await;
            let invite = invite["invite"].as_str().unwrap().to_owned();
            to.text(&["peer", "add", &invite]).await;
        }
    }
}

fn program() -> PathBuf {
    binary("wormholes").unwrap()
}

fn command(socket: &Path) -> Command {
    let mut command = Command::new(program());
    command.arg("--socket").arg(socket).stdin(Stdio::null());
    command
}

async fn run(mut command: Command) -> Run {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = output.await.unwrap();
    Run {
        status: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A service that sends back what it gets.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                tokio::io::copy(&mut reader, &mut writer).await
            });
        }
    });
    address
}

/// Ada and bob, who know each other by invite; bob has an echo service.
async fn pair() -> (TestNode, TestNode) {
    let service = format!(
        "[[service]]\nname = \"echo\"\ntarget = \"{}\"",
        echo().await
    );
    let (ada, bob) = (start("ada", "").await, start("bob", &service).await);
    ada.befriend(&bob).await;
    (ada, bob)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_report_comes_as_text_and_as_json() {
    let ada = start("ada", "").await;
    for (args, word, key) in [
        (&["status"][..], "generation 1", "node_id"),
        (&["peers"], "no peers", "peers"),
        (&["peer", "invite"], "wormholes-invite:", "invite"),
        (&["flows"], "no open flows", "flows"),
        (&["netcheck"], "buffers", "checks"),
        (&["script", "list"], "rules.rhai", "scripts"),
        (&["relay"], "relay off", "enabled"),
        (&["hop"], "hop off", "enabled"),
        (&["exit"], "exit off", "enabled"),
        (&["key"], "noise key", "noise_key"),
        (&["config"], "name = \"ada\"", "toml"),
    ] {
        let text = ada.text(args).await;
        assert!(text.contains(word), "{args:?}: {text}");
        assert!(!text.contains('\u{1b}'), "no colours without a terminal");
        assert!(ada.json(args).await.get(key).is_some(), "{args:?}");
    }
    let status = ada.json(&["status"]).await;
    assert_eq!(status["node_id"], ada.node.id().to_string());
    assert_eq!(status["access"], "operator");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_makes_a_peer_that_can_be_pinged_and_removed() {
    let (ada, bob) = pair().await;
    let ping = ada.json(&["ping", "bob", "--count", "1"]).await;
    assert_eq!(ping["pings"][0]["id"], bob.node.id().to_string());
    assert!(ping["pings"][0]["rtt_ms"].as_f64().unwrap() > 0.0);
    // None where the connection that nodes keep to their peers stood before the ping.
    let connect = &ping["pings"][0]["connect_ms"];
    assert!(connect.is_number() || connect.is_null(), "{connect}");
    let id = bob.node.id().to_string();
    let again = ada.text(&["ping", &id[..12], "--count", "1"]).await;
    assert!(again.starts_with("bob at 127.0.0.1:"), "{again}");
    let peers = ada.json(&["peers"]).await;
    assert_eq!(peers["peers"][0]["source"], "added");
    assert_eq!(peers["peers"][0]["online"], true);
    let netcheck = ada.json(&["netcheck"]).await;
    let checks = netcheck["checks"].as_array().unwrap();
    let bobs = checks.iter().find(|check| check["name"] == "bob").unwrap();
    assert_eq!(bobs["ok"], true, "{bobs}");

    ada.text(&["peer", "remove", "bob"]).await;
    let unknown = ada.run(&["ping", "bob"]).await;
    assert_eq!(unknown.status, 1);
    assert!(unknown.stderr.contains("no peer is named \"bob\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_stands_alone_on_standard_output() {
    let ada = start("ada", "").await;
    let run = ada.run(&["peer", "invite"]).await;
    assert_eq!(run.stdout.lines().count(), 1, "{}", run.stdout);
    assert!(run.stdout.starts_with("wormholes-invite:"));
    assert!(run.stderr.starts_with("note: "), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_are_listed_and_explained() {
    let (ada, _bob) = pair().await;
    let target = || "echo.bob.wh:1".parse().unwrap();
    let mut stream = ada.node.dial(target()).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"hello");

    // The bytes are counted once they are handed on, which may be a moment after they are read.
    let flows = until("the answer to be counted", async || {
        let flows = ada.json(&["flows"]).await;
        (flows["flows"][0]["bytes_received"] == 5).then_some(flows)
    });
    let flows = flows.await.unwrap();
    let flow = &flows["flows"][0];
    assert_eq!(flow["bytes_sent"], 5);
    assert_eq!(flow["tunnel"], "direct");
    assert_eq!(flow["target"], "echo.bob.wh:1");
    assert_eq!(flow["label"], "to echo.bob.wh");
    assert_eq!(flow["path"][0]["name"], "bob");
    let number = flow["flow"].to_string();
    let why = ada.text(&["why", &number]).await;
    for part in [
        "asked      echo.bob.wh:1",
        "rules.rhai:3",
        "direct to bob: opened",
        "path       bob",
        "5 B sent, 5 B received",
    ] {
        assert!(why.contains(part), "{part:?} in {why}");
    }
    let why = ada.json(&["why", &number]).await;
    let read = why["decisions"][0]["because"].as_array().unwrap();
    assert!(
        read.iter().any(|pair| pair["value"] == "echo.bob.wh"),
        "{read:?}"
    );

    let blocked = ada.node.dial("a.example:80".parse().unwrap()).await;
    assert!(blocked.is_err());
    let why = ada.json(&["why", "2"]).await;
    assert_eq!(why["state"], "refused");
    assert!(
        why["end"].as_str().unwrap().contains("not in the test"),
        "{why}"
    );
    let text = ada.text(&["why", "2"]).await;
    assert_eq!(text.matches("not in the test").count(), 1, "{text}");
    let unknown = ada.run(&["why", "77"]).await;
    assert_eq!(unknown.status, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_tunnel_names_the_node_as_people_do() {
    let (ada, bob) = (start("ada", "").await, start("bob", "").await);
    ada.befriend(&bob).await;
    let refused = ada.node.dial("echo.bob.wh:1".parse().unwrap()).await;
    assert!(refused.is_err(), "bob has no echo service");
    let id = bob.node.id().to_string();
    let why = ada.text(&["why", "1"]).await;
    let words = format!("refused by bob ({}…): no such service", &id[..8]);
    assert!(why.contains(&words), "{why}");
    assert!(!why.contains(&id), "{why}");
    let why = ada.json(&["why", "1"]).await;
    let failed_at = &why["steps"][0]["failed_at"];
    assert_eq!(failed_at["name"], "bob", "{why}");
    assert_eq!(failed_at["id"], id, "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_are_loaded_refused_and_rolled_back() {
    let ada = start("ada", "").await;
    let file = ada.socket.with_file_name("rules.rhai");
    fs::write(&file, "fn route(c) { block(\"two\") }").unwrap();
    assert_eq!(ada.json(&["script", "load"]).await["generation"], 2);
    fs::write(&file, "fn route(c) {\n  brock(\"three\")\n}").unwrap();
    let refused = ada.run(&["script", "load"]).await;
    assert_eq!(refused.status, 1);
    assert!(
        refused.stderr.contains("rules.rhai:2:"),
        "{}",
        refused.stderr
    );
    let refused = ada.run(&["--json", "script", "load"]).await;
    let refused: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!(refused["error"]["data"]["diagnostics"][0]["line"], 2);
    // Nobody writes to it: a read would never end.
    fs::remove_file(&file).unwrap();
    let mut make = Command::new("mkfifo");
    make.arg(&file);
    assert_eq!(run(make).await.status, 0);
    let refused = ada.run(&["script", "load"]).await;
    let why = "rules.rhai: it is no regular file";
    assert!(refused.stderr.contains(why), "{}", refused.stderr);
    assert_eq!(ada.json(&["script", "list"]).await["generation"], 2);
    assert_eq!(ada.json(&["script", "rollback"]).await["generation"], 1);
    assert_eq!(ada.run(&["script", "rollback"]).await.status, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_names_the_keys_that_wait_for_a_restart() {
    let ada = start("ada", "").await;
    assert_eq!(ada.run(&["script", "load"]).await.stderr, "");
    let config = ada.socket.with_file_name("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let more = "[limits]\nflows = 7\n[metrics]\nlisten = \"127.0.0.1:0\"\n\
                [[service]]\nname = \"web\"\ntarget = \"127.0.0.1:80\"\n";
    fs::write(&config, text + more).unwrap();
    let loaded = ada.run(&["script", "load"]).await;
    let waiting = "note: changed in config.toml, and waiting for a restart: [[service]], \
                   limits.flows, metrics.listen\n";
    assert_eq!(loaded.stderr, waiting, "{}", loaded.stdout);
    let loaded = ada.json(&["script", "load"]).await;
    assert_eq!(loaded["restart_for"][1], "limits.flows", "{loaded}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_config_in_force_is_shown_with_what_waits_for_a_restart() {
    let ada = start("ada", "[limits]\nflows = 7\n").await;
    let first = ada.run(&["config"]).await;
    assert_eq!(first.stderr, "");
    let file = ada.socket.with_file_name("config.toml");
    let before = fs::read_to_string(&file).unwrap();
    let after = before.replace("flows = 7", "flows = 8").replace(
        "scripts = [\"rules.rhai\"]",
        "default = \"direct\"\nrecord_decisions = 5",
    );
    fs::write(&file, after).unwrap();
    ada.text(&["script", "load"]).await;
    let shown = ada.run(&["config"]).await;
    let waiting = "note: changed in config.toml, and waiting for a restart: limits.flows, \
                   rules.record_decisions\n";
    assert_eq!(shown.stderr, waiting);
    let shown: toml::Table = shown.stdout.parse().unwrap();
    assert_eq!(shown["limits"]["flows"].as_integer(), Some(7));
    assert_eq!(shown["rules"]["record_decisions"].as_integer(), Some(1024));
    assert_eq!(shown["rules"]["default"].as_str(), Some("direct"));
    let status = ada.text(&["status"]).await;
    assert!(status.contains("limits.flows, rules.record_decisions\n"));
    let json = ada.json(&["config"]).await;
    assert_eq!(json["restart_for"][0], "limits.flows", "{json}");

    fs::write(&file, before).unwrap();
    ada.text(&["script", "load"]).await;
    let shown = ada.run(&["config"]).await;
    assert_eq!((shown.stdout, shown.stderr), (first.stdout, String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_went_wrong_in_a_script_is_shown_with_time_place_and_count() {
    let ada = start("ada", "").await;
    for _ in 0..3 {
        let blocked = ada.node.dial("odd.example:1".parse().unwrap()).await;
        assert!(blocked.is_err());
    }
    let list = ada.json(&["script", "list"]).await;
    assert_eq!(list["errors"], 3, "{list}");
    let [error] = &list["last_errors"].as_array().unwrap()[..] else {
        panic!("{list}");
    };
    assert_eq!(error["count"], 3, "{error}");
    assert_eq!(error["hook"], "route", "{error}");
    assert_eq!(error["script"], "rules.rhai", "{error}");
    assert_eq!(error["line"], 4, "{error}");
    assert!(error["at_unix_ms"].as_u64().unwrap() > 1_700_000_000_000);
    let said = error["message"].as_str().unwrap();
    assert!(said.contains("odd.example"), "{said}");
    for words in [&["status"][..], &["script", "list"]] {
        let text = ada.text(words).await;
        let line = format!("Z 3x route rules.rhai:4: {said}\n");
        assert!(text.contains(&line), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_told_as_they_happen() {
    let ada = start("ada", "").await;
    let mut command = command(&ada.socket);
    command.args(["--json", "events", "--kinds", "flow-refused,script-loaded"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    let lines = tokio::task::spawn_blocking(move || BufReader::new(stdout).lines().next());
    // Events count from the subscription on: flows are refused until one was seen.
    let line = loop {
        assert!(
            ada.node
                .dial("a.example:80".parse().unwrap())
                .await
                .is_err()
        );
        if lines.is_finished() {
            break lines.await.unwrap().unwrap().unwrap();
        }
        tokio::task::yield_now().await;
    };
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(event["kind"], "flow-refused");
    assert_eq!(event["target"], "a.example:80");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_observes_without_targets_and_is_denied_the_rest() {
    let (ada, bob) = pair().await;
    let target = "echo.bob.wh:1".parse().unwrap();
    let _stream = ada.node.dial(target).await.unwrap();
    // Where the build is, another user may not be able to go.
    let program = ada.socket.with_file_name("wormholes");
    // By another process: one that this one starts meanwhile would hold it open for writing.
    let copied = Command::new("cp")
        .arg(self::program())
        .arg(&program)
        .status();
    assert!(copied.unwrap().success());
    let as_stranger = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("--socket").arg(&ada.socket).args(args);
        run({
            command.uid(STRANGER).gid(STRANGER);
            command
        })
    };
    let status = as_stranger(&["status"]).await;
    assert_eq!(status.status, 0, "{}", status.stderr);
    assert!(status.stdout.contains("observer of this node"));
    let failed = ada.node.dial("odd.example:1".parse().unwrap()).await;
    assert!(failed.is_err());
    let scripts = as_stranger(&["--json", "script", "list"]).await.stdout;
    assert!(scripts.contains(r#""errors":1"#), "{scripts}");
    assert!(!scripts.contains("odd"), "{scripts}");
    let flows = as_stranger(&["--json", "flows"]).await.stdout;
    assert!(flows.contains(r#""tunnel":"direct""#), "{flows}");
    for secret in ["echo", "bob", &bob.node.id().to_string()] {
        assert!(!flows.contains(secret), "{secret} in {flows}");
    }
    for args in [
        &["why", "1"][..],
        &["config"],
        &["script", "load"],
        &["script", "replay", "--save", "/tmp/never"],
        &["peer", "invite"],
    ] {
        let denied = as_stranger(args).await;
        assert_eq!(denied.status, 4, "{args:?}: {}", denied.stderr);
        assert!(denied.stderr.contains("operators"), "{}", denied.stderr);
    }
    fs::set_permissions(&ada.socket, Permissions::from_mode(0o600)).unwrap();
    let shut_out = as_stranger(&["status"]).await;
    assert_eq!(shut_out.status, 4);
    assert!(
        shut_out.stderr.contains("permission denied"),
        "{}",
        shut_out.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_daemon_it_says_so_and_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none.sock");
    let mut status = command(&socket);
    status.arg("status");
    let absent = run(status).await;
    assert_eq!(absent.status, 3);
    assert!(absent.stderr.contains("none.sock") && absent.stderr.contains("--config"));
    let mut status = command(&socket);
    status.args(["--json", "status"]);
    let absent = run(status).await;
    assert_eq!(absent.status, 3);
    let error: Value = serde_json::from_str(&absent.stdout).unwrap();
    let error = &error["error"];
    assert!(error["message"].as_str().unwrap().ends_with("none.sock"));
    let mend = error["mend"].as_str().unwrap();
    assert!(mend.starts_with("start it with `wormholed --config FILE`"));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_usage_is_told_to_people_and_to_programs() {
    for (args, message, mend) in [
        (&["statu"][..], "subcommand 'statu'", "exists: 'status'"),
        (&["why", "x"], "'x' for '<FLOW>'", "try '--help'"),
        (&["why"], "not provided: <FLOW>", "Usage: wormholes"),
        (
            &["events", "--kinds", "notfy"],
            "[possible values: flow-opened, ",
            "similar value exists: 'notify'",
        ),
        (&["peer"], "no command", "--help"),
    ] {
        let mut people = Command::new(program());
        people.args(args);
        let people = run(people).await;
        assert_eq!((people.status, people.stdout.as_str()), (2, ""), "{args:?}");
        assert!(people.stderr.contains("--help"), "{}", people.stderr);
        let mut programs = Command::new(program());
        programs.arg("--json").args(args);
        let programs = run(programs).await;
        assert_eq!((programs.status, programs.stderr.as_str()), (2, ""));
        let error: Value = serde_json::from_str(&programs.stdout).unwrap();
        let said = |key: &str| error["error"][key].as_str().unwrap().to_owned();
        assert!(said("message").contains(message), "{error}");
        assert!(said("mend").contains(mend), "{error}");
    }
    let mut help = Command::new(program());
    help.args(["--json", "--help"]);
    let help = run(help).await;
    assert_eq!(help.status, 0);
    assert!(help.stdout.contains("Usage: wormholes"), "{}", help.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_are_checked_and_tested_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let script = write(
        "a.rhai",
        "fn route(c) {\n  if set(\"ads\").has(c.host) { return block(\"ad\"); }\n  direct()\n}",
    );
    write(
        "a.test.rhai",
        "test(\"x\", || {\n  expect(route(#{ host: \"x.example\" }).blocks);\n});",
    );
    let bad = write("bad.rhai", "fn route(c) {\n  tunnel_of_love()\n}");
    let config = write("config.toml", "[rules]\nscripts = [\"a.rhai\"]\n");
    let offline = |args: &[&str]| {
        let mut command = Command::new(program());
        command.args(["--json", "script"]).args(args);
        async move {
            let run = run(command).await;
            (
                run.status,
                serde_json::from_str::<Value>(&run.stdout).unwrap(),
            )
        }
    };
    let (status, report) = offline(&["check", &script]).await;
    assert_eq!((status, &report["empty_sets"][0]), (0, &"ads".into()));
    let (status, report) = offline(&["check", "--config", &config]).await;
    assert_eq!((status, &report["errors"][0]["line"]), (1, &2.into()));
    let text = "[rules]\nscripts = [\"a.rhai\"]\nsets = { ads = \"none.txt\" }\n";
    let without_set = write("without-set.toml", text);
    let (status, report) = offline(&["check", "--config", &without_set]).await;
    let message = report["error"]["message"].as_str().unwrap();
    assert_eq!(status, 1, "{message}");
    let place = format!("{without_set}:3: `sets.ads` in [rules]: cannot read ");
    assert!(message.starts_with(&place), "{message}");
    let (status, report) = offline(&["check", &bad]).await;
    assert_eq!((status, &report["errors"][0]["line"]), (1, &2.into()));
    let odd = write("odd.rhai", "fn route(c) {\n  return pass();\n  direct()\n}");
    let (status, report) = offline(&["check", &odd]).await;
    assert_eq!((status, &report["warnings"][0]["line"]), (0, &3.into()));
    let (status, report) = offline(&["check", &odd, "--deny-warnings"]).await;
    assert_eq!((status, &report["ok"]), (1, &false.into()), "{report}");
    let (status, report) = offline(&["test", &script]).await;
    let case = &report["scripts"][0]["cases"][0];
    let failure = &case["failure"];
    assert_eq!((status, &failure["line"]), (1, &2.into()), "{report}");
    assert_eq!(failure["column"], 3, "{report}");
    assert!(case["took_us"].is_u64(), "{report}");
    let (status, _) = offline(&["test", &bad]).await;
    assert_eq!(status, 1, "a script without cases is not tested");
}
