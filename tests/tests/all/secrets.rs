//! What plugins keep secret: sealed on disk over kill -9, gone when it is deleted, and in nothing that
//! leaves the node.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use wormholes_tests::{Daemon, Setup};

/// In no other file.
const NAME: &str = "ratchet-of-zebedee";
const TEXT: &str = "quagmire-xylophone-7391";

async fn ask(daemon: &Daemon, command: &str, arguments: Value) -> anyhow::Result<Value> {
    let params = json!({ "instance": "wicked", "command": command, "arguments": arguments });
    daemon.call("plugin.ask", params).await
}

async fn hide(daemon: &Daemon, name: &str, text: &str) {
    let arguments = json!({ "name": name, "text": text });
    ask(daemon, "hide", arguments).await.unwrap();
}

async fn hidden(daemon: &Daemon) -> Value {
    ask(daemon, "hidden", json!({})).await.unwrap()
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let inside = entries.flat_map(|entry| match entry.file_type().unwrap().is_dir() {
        true => files(&entry.path()),
        false => vec![entry.path()],
    });
    inside.collect()
}

fn has(file: &Path, bytes: &[u8]) -> bool {
    // Sockets are no files.
    let content = fs::read(file).unwrap_or_default();
    memchr::memmem::find(&content, bytes).is_some()
}

/// Slots with a key in them.
fn used_slots(slots: &Path) -> Vec<Vec<u8>> {
    let file = fs::read(slots).unwrap();
    let slots = file.chunks(64).skip(1);
    let used = slots.filter(|slot| slot.iter().any(|byte| *byte != 0));
    used.map(<[u8]>::to_vec).collect()
}

#[tokio::test]
async fn what_a_plugin_keeps_secret_survives_kill_9_and_lies_nowhere_in_clear() {
    let setup = Setup::new("node").unwrap().plugin("tests/wicked").unwrap();
    let folder = setup.folder().to_owned();
    let mut daemon = setup.start().await.unwrap();
    hide(&daemon, NAME, TEXT).await;
    let derived = ask(&daemon, "derived", json!({})).await.unwrap();
    let broken = ask(&daemon, "spill", json!({})).await.unwrap_err();
    assert!(
        format!("{broken:#}").contains("the plugin failed"),
        "{broken:#}"
    );
    daemon.kill().unwrap();
    daemon.restart().await.unwrap();
    assert_eq!(hidden(&daemon).await, json!([[NAME, TEXT]]));
    assert_eq!(ask(&daemon, "derived", json!({})).await.unwrap(), derived);
    let report = folder.join("report.txt");
    let made = daemon.cli(&["bugreport", "--output", report.to_str().unwrap()]);
    assert!(made.is_ok() && report.exists(), "{made:?}");
    let dead = daemon.cli(&["plugin", "dead", "wicked"]).unwrap();
    assert!(dead.contains("spill"), "{dead}");
    let slots = folder.join("data/plugins/plugins.slots");
    for file in files(&folder) {
        for clear in [NAME, TEXT] {
            assert!(
                !has(&file, clear.as_bytes()),
                "{clear} in {}",
                file.display()
            );
        }
    }
    for clear in [NAME, TEXT] {
        assert!(daemon.log().matching(clear).is_empty() && !dead.contains(clear));
    }

    // Deleted, and written over: the keys are gone from the file, and the rows from the plugin.
    hide(&daemon, "other", "first").await;
    let before = used_slots(&slots);
    hide(&daemon, "other", "second").await;
    let arguments = json!({ "name": NAME });
    ask(&daemon, "unhide", arguments).await.unwrap();
    daemon.kill().unwrap();
    let after = used_slots(&slots);
    assert_eq!((before.len(), after.len()), (2, 1));
    assert!(!before.iter().any(|slot| has(&slots, slot)));
    daemon.restart().await.unwrap();
    assert_eq!(hidden(&daemon).await, json!([["other", "second"]]));
}

#[tokio::test]
async fn an_older_copy_of_the_slots_is_refused_and_none_is_made_in_their_place() {
    let setup = Setup::new("node").unwrap().plugin("tests/wicked").unwrap();
    let slots = setup.folder().join("data/plugins/plugins.slots");
    let mut daemon = setup.start().await.unwrap();
    hide(&daemon, NAME, "first").await;
    let older = fs::read(&slots).unwrap();
    hide(&daemon, NAME, "second").await;
    daemon.kill().unwrap();
    let newer = fs::read(&slots).unwrap();
    let refused = async |daemon: &mut Daemon| {
        let error = daemon.restart().await.unwrap_err();
        let said = format!("{error:#}{}", daemon.log().lines().join("\n"));
        assert!(
            said.contains("the secrets of plugins cannot be opened"),
            "{said}"
        );
    };
    fs::write(&slots, older).unwrap();
    refused(&mut daemon).await;
    fs::remove_file(&slots).unwrap();
    refused(&mut daemon).await;
    assert!(!slots.exists());
    fs::write(&slots, newer).unwrap();
    let mode = Command::new("chmod").arg("600").arg(&slots).status();
    assert!(mode.unwrap().success());
    daemon.restart().await.unwrap();
    assert_eq!(hidden(&daemon).await, json!([[NAME, "second"]]));
}
