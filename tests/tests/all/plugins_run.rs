//! `wormholes plugin run`: a plugin tried in a node that is thrown away.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use wormholes_tests::{binary, component, workspace};

/// A folder with a plugin of the workspace.
fn folder(plugin: &str) -> TempDir {
    let folder = TempDir::with_prefix("wormholes-try-").unwrap();
    let name = plugin.rsplit('/').next().unwrap();
    let file = format!("wormholes_{name}");
    let manifest = workspace::root().join(plugin).join("plugin.toml");
    fs::copy(manifest, folder.path().join("plugin.toml")).unwrap();
    let to = folder.path().join(format!("{file}.wasm"));
    fs::copy(component(&file).unwrap(), to).unwrap();
    folder
}

/// Runs it with these lines: the exit status, and what was printed.
fn run(folder: &Path, more: &[&str], lines: &str) -> (Option<i32>, String) {
    let mut command = Command::new(binary("wormholes").unwrap());
    command.env("TMPDIR", folder).env_remove("WORMHOLES_SOCKET");
    command.args(["plugin", "run"]).arg(folder).args(more);
    command.stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    // Where something stands in the way, it may be gone before it has read them.
    let sent = input.write_all(lines.as_bytes());
    assert!(sent.is_ok() || sent.is_err_and(|error| error.kind() == ErrorKind::BrokenPipe));
    drop(input);
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[test]
fn a_plugin_is_tried_by_a_pipe_and_nothing_of_it_stays() {
    let plugin = folder("plugins/echo");
    let lines =
        "# a script\n\nsay 'good morning'\n--user ann say hello\nsay hello --user ann\ncount\n";
    let (status, said) = run(plugin.path(), &[], lines);
    assert_eq!(status, Some(0), "{said}");
    let expected = "count      1\ntext       good morning\n\
                    count      1\ntext       hello\n\
                    count      2\ntext       hello\n\
                    1\n";
    assert_eq!(said, expected);
    let left = fs::read_dir(plugin.path()).unwrap().count();
    assert_eq!(left, 2, "the plugin's own files");

    // Anew, it begins anew; with a folder of its own it goes on.
    let (_, said) = run(plugin.path(), &[], "count\n");
    assert_eq!(said, "0\n");
    let data = plugin.path().join("kept");
    let keeps = ["--data", data.to_str().unwrap()];
    for count in 1..3 {
        let (status, said) = run(plugin.path(), &keeps, "say hm\nquit\nsay never\n");
        assert_eq!(
            (status, said),
            (Some(0), format!("count      {count}\ntext       hm\n"))
        );
    }
}

/// It names addresses, which are words of `messages`, and sends none.
#[test]
fn a_plugin_that_borrows_words_of_an_interface_needs_no_grant_of_it() {
    let plugin = folder("tests/courier");
    let file = plugin.path().join("file");
    fs::write(&file, b"some bytes").unwrap();
    let keep = format!("keep @{}\nheld\n", file.display());
    let (status, said) = run(plugin.path(), &[], &keep);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("length     10"), "{said}");
}

#[test]
fn time_is_moved_users_are_made_and_all_of_it_is_recorded() {
    let plugin = folder("tests/wicked");
    let file = plugin.path().join("recording");
    let more = ["--json", "--record", file.to_str().unwrap()];
    let lines = "alarm 9 --after-ms 3600000\nmarks\nadvance 1h\nmarks\nbreak 3\nnonsense\n";
    let (status, said) = run(plugin.path(), &more, lines);
    assert_eq!(status, Some(1), "some failed: {said}");
    let objects = said.lines().map(|line| serde_json::from_str(line).unwrap());
    let objects: Vec<Value> = objects.collect();
    assert_eq!(objects[0], "set", "{said}");
    let marks: Vec<&Value> = objects.iter().filter(|told| told.is_array()).collect();
    assert_eq!(marks[1][0], 9, "{said}");
    assert!(objects.contains(&json!({ "ms": 3_600_000 })), "{said}");
    let errors: Vec<_> = objects
        .iter()
        .filter(|told| told["error"].is_object())
        .collect();
    assert_eq!(errors.len(), 2, "{said}");
    let texts = objects
        .iter()
        .filter_map(|told| told["log"]["text"].as_str());
    let logged = texts.filter(|text| text.contains("broken on purpose"));
    assert_eq!(logged.count(), 3, "each try says why: {said}");

    let mut replay = Command::new(binary("wormholes").unwrap());
    let replay = replay.args(["plugin", "replay", "--json"]).arg(&file);
    let output = replay.output().unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["agree"], told["events"], "{told}");
    let all = told["all"].as_array().unwrap();
    assert!(all.iter().any(|event| event["kind"] == "timer"), "{told}");
}

#[test]
fn what_stands_in_the_way_is_said() {
    let plugin = folder("plugins/echo");
    let manifest = plugin.path().join("plugin.toml");
    let (status, said) = run(plugin.path(), &["--name", "status"], "");
    assert_eq!(status, Some(2), "{said}");
    let (status, said) = run(plugin.path(), &["--record", manifest.to_str().unwrap()], "");
    assert!(
        status == Some(1) && said.contains("is there already"),
        "{said}"
    );
    let (status, said) = run(plugin.path(), &[], "say 'open\nadvance soon\n--user\n");
    assert_eq!(status, Some(1));
    for part in [
        "a quote is not closed",
        "wants a time",
        "--user wants a name",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let (status, said) = run(plugin.path(), &[], "help\nsay --help\n");
    assert_eq!(status, Some(0));
    for part in ["answers at once", "advance", "what it shall say"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("timers = true", "")).unwrap();
    let (status, said) = run(plugin.path(), &[], "count\n");
    assert!(status == Some(1) && said.contains("timers"), "{said}");
}
