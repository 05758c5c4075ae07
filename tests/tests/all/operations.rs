//! Operations of plugins on the real daemon: they outlive who began them and the node, and end once.

use std::{
    io::{Read as _, Write as _},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use wormholes_tests::{Daemon, Setup, until};

async fn with(plugin: &str) -> Daemon {
    let setup = Setup::new("node").unwrap().plugin(plugin).unwrap();
    setup.start().await.unwrap()
}

fn object(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

async fn all(daemon: &Daemon) -> Vec<Value> {
    let list = daemon.call("op.list", json!({})).await.unwrap();
    list["operations"].as_array().unwrap().clone()
}

/// Begins an operation of the wicked plugin; its number.
async fn begin(daemon: &Daemon, command: &str) -> Result<u64, String> {
    let params = json!({ "instance": "wicked", "command": command });
    let begun = daemon.call("op.start", params).await;
    let begun = begun.map_err(|error| format!("{error:#}"))?;
    Ok(begun["operation"]["operation"].as_u64().unwrap())
}

async fn call(daemon: &Daemon, method: &str, operation: u64) -> Result<Value, String> {
    let called = daemon.call(method, json!({ "operation": operation }));
    called.await.map_err(|error| format!("{error:#}"))
}

/// The client on a pseudo-terminal, which util-linux makes.
fn on_terminal(daemon: &Daemon, words: &[&str]) -> Child {
    let client = daemon.cli_command(words).unwrap();
    let mut words = vec![client.get_program().to_str().unwrap().to_owned()];
    words.extend(
        client
            .get_args()
            .map(|word| format!("'{}'", word.to_str().unwrap())),
    );
    let mut command = Command::new("script");
    command.args(["-qefc", &words.join(" "), "/dev/null"]);
    command
        .env("WORMHOLES_SOCKET", daemon.socket())
        .env("TERM", "xterm");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

/// Reads what is on the terminal until `sign` is there.
fn read_until(child: &mut Child, sign: &str) -> String {
    let mut seen = Vec::new();
    let out = child.stdout.as_mut().unwrap();
    while !String::from_utf8_lossy(&seen).contains(sign) {
        let mut chunk = [0; 512];
        let count = out.read(&mut chunk).unwrap();
        let text = String::from_utf8_lossy(&seen).into_owned();
        assert!(count > 0, "no {sign} in {text}");
        seen.extend_from_slice(&chunk[..count]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

#[tokio::test]
async fn an_operation_goes_on_over_kill_9_and_ends_once() {
    let mut daemon = with("plugins/echo").await;
    let text = "some thirty letters, or a few more";
    let begun = daemon.cli(&["echo", "slowly", text, "--detach", "--json"]);
    let number = object(&begun.unwrap())["operation"].to_string();
    for percent in [10, 30, 50, 70] {
        until("the operation to go on", async || {
            let operation = all(&daemon).await.pop()?;
            (operation["progress"]["percent"].as_u64()? >= percent).then_some(())
        })
        .await
        .unwrap();
        daemon.kill().unwrap();
        daemon.restart().await.unwrap();
    }
    let list = daemon.cli(&["op", "list"]).unwrap();
    assert!(list.contains(&number) && list.contains("slowly"), "{list}");
    let printed = daemon.cli(&["op", "attach", &number]).unwrap();
    assert_eq!(printed, format!("count      1\ntext       {text}\n"));
    assert_eq!(daemon.cli(&["echo", "count"]).unwrap(), "1\n");
    assert_eq!(daemon.cli(&["op", "list"]).unwrap(), "no operations\n");
    let collected = call(&daemon, "op.wait", number.parse().unwrap()).await;
    assert!(collected.unwrap_err().contains("there is no operation"));
}

#[tokio::test]
async fn a_result_waits_over_kill_9_until_it_is_collected() {
    let mut daemon = with("plugins/echo").await;
    let begun = daemon.cli(&["echo", "slowly", "ab", "--detach", "--json"]);
    let number = object(&begun.unwrap())["operation"].as_u64().unwrap();
    until("the operation to end", async || {
        let operation = all(&daemon).await.pop()?;
        operation["ended_unix_ms"].is_u64().then_some(())
    })
    .await
    .unwrap();
    for _ in 0..2 {
        daemon.kill().unwrap();
        daemon.restart().await.unwrap();
        let ended = call(&daemon, "op.wait", number).await.unwrap();
        assert_eq!(ended["result"], json!({ "text": "ab", "count": 1 }));
    }
    let canceled = call(&daemon, "op.cancel", number).await.unwrap();
    assert!(canceled["ended_unix_ms"].is_u64(), "{canceled}");
    call(&daemon, "op.collect", number).await.unwrap();
    daemon.kill().unwrap();
    daemon.restart().await.unwrap();
    assert_eq!(all(&daemon).await, [] as [Value; 0]);
    // Answered at once, it is none.
    let said = daemon.cli(&["echo", "slowly", ""]).unwrap();
    assert_eq!(said, "count      2\ntext       \n");
    assert_eq!(all(&daemon).await, [] as [Value; 0]);
}

#[tokio::test]
async fn people_leave_an_operation_come_back_and_cancel_it() {
    let daemon = with("plugins/echo").await;
    let text = "x".repeat(1000);
    let mut first = on_terminal(&daemon, &["echo", "slowly", &text]);
    let shown = read_until(&mut first, "%");
    assert!(!shown.contains("error"), "{shown}");
    first.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    let told = read_until(&mut first, "comes back");
    assert_eq!(first.wait().unwrap().code(), Some(130), "{told}");
    let operation = all(&daemon).await.pop().unwrap();
    let number = operation["operation"].to_string();
    assert!(
        told.contains(&format!("wormholes op attach {number}")),
        "{told}"
    );
    assert_eq!(operation["ended_unix_ms"], Value::Null);

    let mut second = on_terminal(&daemon, &["op", "attach", &number]);
    read_until(&mut second, "%");
    daemon.cli(&["op", "cancel", &number]).unwrap();
    let told = read_until(&mut second, "it was canceled");
    assert_eq!(second.wait().unwrap().code(), Some(1), "{told}");
    until("nothing to be kept", async || {
        all(&daemon).await.is_empty().then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_command_that_answers_later_shows_how_far_it_is() {
    let daemon = with("plugins/echo").await;
    let mut client = on_terminal(&daemon, &["echo", "later", "well"]);
    let shown = read_until(&mut client, "well");
    assert!(shown.contains("50% waiting"), "{shown}");
    assert!(client.wait().unwrap().success());
}

#[tokio::test]
async fn operations_have_deadlines_and_caps_and_their_plugin_is_told() {
    let daemon = with("tests/wicked").await;
    let marks = async || {
        let params = json!({ "instance": "wicked", "command": "marks" });
        daemon.call("plugin.ask", params).await.unwrap()[0].clone()
    };
    let late = begin(&daemon, "patiently").await.unwrap();
    let ended = daemon.call("op.wait", json!({ "operation": late, "seen": 1 }));
    let message = ended.await.unwrap()["error"]["message"].clone();
    assert_eq!(message, "the plugin did not answer in time");
    assert_eq!(marks().await, late);

    // Two at most, of which one ended: its result goes.
    let open = [
        begin(&daemon, "for-ever").await,
        begin(&daemon, "for-ever").await,
    ];
    let [one, other] = open.map(Result::unwrap);
    assert!(call(&daemon, "op.wait", late).await.is_err());
    let refused = begin(&daemon, "for-ever").await.unwrap_err();
    assert!(refused.contains("limits.operations"), "{refused}");
    let refused = call(&daemon, "op.collect", one).await.unwrap_err();
    assert!(refused.contains("goes on"), "{refused}");
    call(&daemon, "op.cancel", one).await.unwrap();
    assert_eq!(marks().await, one);
    let canceled = call(&daemon, "op.wait", one).await.unwrap();
    assert_eq!(canceled["error"]["message"], "it was canceled");

    let kept = async || {
        let list = daemon.call("plugin.list", json!({})).await.unwrap();
        list["plugins"][0]["state_bytes"].as_u64().unwrap()
    };
    let before = kept().await;
    let arguments = json!({ "with": other, "bytes": 100_000 });
    let params = json!({ "instance": "wicked", "command": "finish", "arguments": arguments });
    daemon.call("plugin.ask", params.clone()).await.unwrap();
    let again = daemon.call("plugin.ask", params).await.unwrap_err();
    assert!(format!("{again:#}").contains("nobody waits"), "{again:#}");
    assert_eq!(kept().await, before + 100_000);
    call(&daemon, "op.collect", other).await.unwrap();
    assert_eq!(kept().await, before);

    let stopped = begin(&daemon, "for-ever").await.unwrap();
    daemon.cli(&["plugin", "stop", "wicked"]).unwrap();
    let refused = call(&daemon, "op.cancel", stopped).await.unwrap_err();
    assert!(refused.contains("the plugin is stopped"), "{refused}");
    daemon.cli(&["plugin", "start", "wicked"]).unwrap();
    call(&daemon, "op.cancel", stopped).await.unwrap();
}

#[tokio::test]
async fn each_kind_of_command_is_asked_by_its_own_method() {
    let daemon = with("plugins/echo").await;
    let params = |command: &str| json!({ "instance": "echo", "command": command, "arguments": { "text": "a" } });
    let refused = daemon
        .call("plugin.ask", params("slowly"))
        .await
        .unwrap_err();
    assert!(format!("{refused:#}").contains("op.start"), "{refused:#}");
    let refused = daemon.call("op.start", params("say")).await.unwrap_err();
    assert!(format!("{refused:#}").contains("plugin.ask"), "{refused:#}");
}
