//! The demo, as `cargo xtask demo --json` runs it.

use std::{
    fs::{self, Permissions},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use wormholes_tests::{LogLines, SITE_GREETING, binary, cargo, output, run, workspace};

/// Cargo looks at hundreds of crates, one cargo at a time: other tests run it too.
const BUILT: Duration = Duration::from_secs(180);

/// `nobody` of every Linux.
const STRANGER: u32 = 65_534;

#[test]
fn every_row_of_the_demo_is_as_the_script_says() {
    let (rows, progress) = shown(&["--json"]);
    let tunnels: Vec<_> = rows.iter().map(|row| row["tunnel"].as_str()).collect();
    let expected = ["direct", "relay", "onion", "block"].map(Some);
    assert_eq!(tunnels, expected);
    for row in &rows {
        assert!(
            row["rule"].as_str().unwrap().starts_with("rules.rhai:"),
            "{row}"
        );
        let is_blocked = row["tunnel"] == "block";
        assert_eq!(row["ttfb_ms"].is_null(), is_blocked, "{row}");
        assert_eq!(row["mb_per_s"].is_null(), is_blocked, "{row}");
    }
    let nodes = |row: &Value| -> Vec<String> {
        let learned = row["learned"].as_object().unwrap();
        learned.keys().cloned().collect()
    };
    assert_eq!(nodes(&rows[0]), ["relay"]);
    assert_eq!(nodes(&rows[1]), ["friend", "relay"]);
    let hops = nodes(&rows[2]);
    assert!(hops.len() == 3 && hops[0] == "exit", "{hops:?}");
    assert!(hops[1..].iter().all(|hop| hop.starts_with("hop-")));
    assert!(nodes(&rows[3]).is_empty(), "{}", rows[3]);
    let learned = rows[2]["learned"].to_string();
    assert!(learned.contains("exit learned the target"), "{learned}");
    assert!(progress.contains("wormholes why"), "{progress}");
}

/// One flow through each of what Tor and I2P offer, and one that a mistake keeps closed.
#[test]
fn every_row_of_the_demo_of_tor_and_i2p_is_as_its_script_says() {
    let (rows, _) = shown(&["--tor", "--json"]);
    let tunnels: Vec<_> = rows.iter().map(|row| row["tunnel"].as_str()).collect();
    assert_eq!(tunnels, ["tor", "tor", "tor", "i2p", "block"].map(Some));
    let exit = rows[0]["learned"]["site"][0].as_str().unwrap();
    assert!(
        ["asked by 9.73.0.1", "asked by 9.74.0.1"].contains(&exit),
        "{exit}"
    );
    for onion in [&rows[1], &rows[2]] {
        assert!(
            onion["name"].as_str().unwrap().ends_with(".onion"),
            "{onion}"
        );
    }
    assert!(rows[3]["name"].as_str().unwrap().ends_with(".b32.i2p"));
    let learned = rows[4]["learned"].as_object().unwrap();
    assert!(learned.contains_key("script") && !learned.contains_key("site"));
}

/// Otherwise a request that fails for any reason would pass for a blocked one.
#[test]
fn the_demo_fails_when_a_name_goes_another_way() {
    let script = fs::read_to_string(workspace::root().join("scripts/demo.rhai")).unwrap();
    let promised = r#"return block("the demo blocks this name");"#;
    let folder = tempfile::tempdir().unwrap();
    let changed = folder.path().join("changed.rhai");
    let script_changed = script.replace(promised, "return direct().closed();");
    assert_ne!(script, script_changed);
    fs::write(&changed, script_changed).unwrap();
    let mut demo = Command::new(binary("wormholes-demo").unwrap());
    demo.arg("--json").arg("--script").arg(&changed);
    let output = output(&mut demo).unwrap();
    assert!(!output.status.success());
    let result = result(&output);
    assert_eq!(result["ok"], false, "{result}");
    let rows = result["rows"].as_array().unwrap();
    let right: Vec<_> = rows.iter().map(|row| row["ok"] == true).collect();
    assert_eq!(right, [true, true, true, false], "{result}");
    assert_eq!(rows[3]["tunnel"], "none");
}

/// What it prints is what there is to play with; ended by whoever started it, it leaves nothing.
#[tokio::test]
async fn a_demo_that_stays_can_be_played_with_until_it_is_told_to_end() {
    let mut demo = tokio::process::Command::from(cargo());
    demo.args(["xtask", "demo", "--stay"]).kill_on_drop(true);
    let mut demo = demo
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let progress = demo.stderr.take().unwrap().into_owned_fd().unwrap();
    let progress = LogLines::collect(fs::File::from(progress));
    progress
        .wait_within(BUILT, "starting a client")
        .await
        .unwrap();
    for line in ["asking for tracker", "# exit: "] {
        progress.wait(line).await.unwrap();
    }
    let lines = progress.lines();
    let stays = lines.iter().position(|line| line.contains("stays up"));
    let shown: Vec<_> = lines[stays.unwrap() + 1..]
        .iter()
        .map(|l| l.trim())
        .collect();
    let (folders, commands): (Vec<&str>, Vec<&str>) =
        shown.iter().partition(|l| l.starts_with('#'));
    // Events end with the network.
    let commands = commands.iter().filter(|line| !line.ends_with(" events"));
    let answers: Vec<_> = commands
        .map(|line| run(Command::new("sh").args(["-c", line])).unwrap())
        .collect();
    let fetched = answers.iter().filter(|said| said.contains(SITE_GREETING));
    assert_eq!((answers.len(), fetched.count()), (6, 3), "{answers:?}");
    let folders: Vec<_> = folders
        .iter()
        .map(|line| Path::new(line.split_once(": ").unwrap().1))
        .collect();
    assert!(folders.len() == 7 && folders.iter().all(|folder| folder.exists()));

    let pid = i32::try_from(demo.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    assert_eq!(demo.wait().await.unwrap().code(), Some(0));
    assert!(!folders.iter().any(|folder| folder.exists()));
}

/// Before it builds anything: `nobody` could not even write here.
#[test]
fn who_cannot_run_the_demo_is_told_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("xtask");
    // By another process: one that this one starts meanwhile would hold it open for writing.
    run(Command::new("cp")
        .arg(binary("xtask").unwrap())
        .arg(&program))
    .unwrap();
    let told = |path: &str| {
        let mut demo = Command::new(&program);
        demo.args(["demo", "--json"])
            .env("PATH", path)
            .current_dir("/");
        let output = output(demo.uid(STRANGER).gid(STRANGER)).unwrap();
        assert_eq!(output.status.code(), Some(1));
        let result = result(&output);
        assert_eq!(
            (&result["ok"], &result["rows"]),
            (&json!(false), &json!([]))
        );
        let told = String::from_utf8(output.stderr).unwrap();
        let error = format!("error: {}\n", result["error"].as_str().unwrap());
        assert!(told.ends_with(&error), "{told}");
        told
    };
    let bare = told(folder.path().to_str().unwrap());
    assert!(bare.contains("this machine has no curl"), "{bare}");
    assert!(
        bare.contains("as root: apt-get install --no-install-recommends curl\n"),
        "{bare}"
    );
    let equipped = told("/usr/bin");
    assert!(equipped.contains("run it as root"), "{equipped}");
}

#[test]
fn what_installs_for_the_demo_says_nothing_in_its_result() {
    let folder = tempfile::tempdir().unwrap();
    // By another process: one that this one starts meanwhile would hold it open for writing.
    let script = "printf '#!/bin/sh\necho Reading package lists' > apt-get; chmod +x apt-get";
    let mut shell = Command::new("sh");
    run(shell.args(["-c", script]).current_dir(folder.path())).unwrap();
    let mut demo = Command::new(binary("xtask").unwrap());
    let output = output(demo.args(["demo", "--json"]).env("PATH", folder.path())).unwrap();
    let progress = String::from_utf8_lossy(&output.stderr);
    assert!(progress.contains("Reading package lists"), "{progress}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.lines().count(), 1, "{said}");
    let error = result(&output)["error"].to_string();
    assert!(error.contains("still missing after installing: curl"));
}

/// The rows of a demo that went well, and what it said of its progress.
fn shown(words: &[&str]) -> (Vec<Value>, String) {
    let output = output(cargo().args(["xtask", "demo"]).args(words)).unwrap();
    let progress = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{progress}");
    let result = result(&output);
    assert_eq!(result["ok"], true, "{result}");
    (result["rows"].as_array().unwrap().clone(), progress)
}

/// What `--json` printed.
fn result(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}
