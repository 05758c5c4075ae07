//! Blobs of plugins at one node: they come from the command line, are held by whom they came to, and are
//! gone when nobody holds them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use data_encoding::BASE64;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
};
use wormholes_proto::blob::BlobId;
use wormholes_tests::{Daemon, Setup, until};

/// The longest of the DHT.
pub(super) const MIB_16: usize = 16 << 20;

pub(super) async fn ask(daemon: &Daemon, command: &str, arguments: Value) -> anyhow::Result<Value> {
    let params = json!({ "instance": "courier", "command": command, "arguments": arguments });
    daemon.call("plugin.ask", params).await
}

pub(super) async fn node() -> Daemon {
    let setup = Setup::new("node").unwrap().plugin("tests/courier").unwrap();
    setup.start().await.unwrap()
}

/// Bytes that no other test has.
pub(super) fn bytes(length: usize, of: u8) -> Vec<u8> {
    let mut state = u64::from(of) + 1;
    let step = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(step).collect()
}

pub(super) fn blob_files(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder.join("blobs")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// Where a daemon keeps its plugins.
pub(super) fn plugins_folder(daemon: &Daemon) -> PathBuf {
    let mut folders = vec![daemon.folder().to_owned()];
    while let Some(folder) = folders.pop() {
        if folder.join("plugins.redb").exists() {
            return folder;
        }
        let inside = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        folders.extend(inside.filter(|path| path.is_dir()));
    }
    panic!("there is no store of plugins");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_goes_in_by_the_command_line_and_comes_out_as_it_was() {
    let daemon = node().await;
    let content = bytes(3_000_001, 1);
    let file = daemon.folder().join("in.bin");
    fs::write(&file, &content).unwrap();
    let name = BlobId::of(&content).to_string();
    let given = format!("@{}", file.display());
    let kept = daemon.cli(&["courier", "keep", &given, "--json"]).unwrap();
    let kept: Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(kept, json!({ "hash": name, "length": content.len() }));

    let out = daemon.folder().join("out.bin");
    let to = out.to_str().unwrap();
    daemon
        .cli(&["courier", "get", &name, "--output", to])
        .unwrap();
    assert!(fs::read(&out).unwrap() == content);
    let mut get = daemon.cli_command(&["courier", "get", &name]).unwrap();
    assert!(
        get.output().unwrap().stdout == content,
        "on standard output"
    );
    let listed = daemon.cli(&["plugin", "list"]).unwrap();
    assert!(listed.contains("BLOBS"), "{listed}");

    let bare = daemon.cli(&["courier", "keep", "in.bin"]).unwrap_err();
    assert!(format!("{bare:#}").contains("@FILE"), "{bare:#}");
    let missing = daemon.cli(&["courier", "keep", "@/no/such/file"]);
    assert!(format!("{:#}", missing.unwrap_err()).contains("/no/such/file"));
    let unknown = BlobId::of(b"unknown").to_string();
    let unknown = daemon.cli(&["courier", "get", &unknown]).unwrap_err();
    assert!(
        format!("{unknown:#}").contains("does not hold"),
        "{unknown:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_brings_a_blob_for_each_command() {
    let daemon = node().await;
    let (reader, mut writer) = UnixStream::connect(daemon.socket())
        .await
        .unwrap()
        .into_split();
    let mut answers = BufReader::new(reader).lines();
    let mut call = async |method: &str, params: Value| {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let line = format!("{request}\n");
        writer.write_all(line.as_bytes()).await.unwrap();
        let answer = answers.next_line().await.unwrap().unwrap();
        serde_json::from_str::<Value>(&answer).unwrap()
    };
    // More than a connection may have at once.
    for round in 0..20 {
        let begun = call("blob.begin", json!({ "instance": "courier" })).await;
        let upload = begun["result"]["upload"].clone();
        assert!(upload.is_u64(), "{round}: {begun}");
        let part = json!({ "upload": upload, "bytes": BASE64.encode(b"a file") });
        call("blob.append", part).await;
        call("blob.finish", json!({ "upload": upload })).await;
        let arguments = json!({ "file": { "upload": upload } });
        let ask = json!({ "instance": "courier", "command": "keep", "arguments": arguments });
        let kept = call("plugin.ask", ask.clone()).await;
        assert_eq!(kept["result"]["length"], 6, "{round}: {kept}");
        let again = call("plugin.ask", ask).await;
        assert!(again["error"].is_object(), "{round}: {again}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_holds_is_deleted_and_nothing_else() {
    let mut daemon = node().await;
    let folder = plugins_folder(&daemon);
    let text = json!({ "text": "good morning", "times": 9000 });
    let name = ask(&daemon, "put", text.clone()).await.unwrap();
    let hash = json!({ "hash": name });
    let files = |count: usize| {
        let folder = folder.clone();
        async move {
            until("the files that are named", async || {
                (blob_files(&folder).len() == count).then_some(())
            })
            .await
            .unwrap();
        }
    };
    files(1).await;
    ask(&daemon, "hold", hash.clone()).await.unwrap();
    ask(&daemon, "drop", hash.clone()).await.unwrap();
    let held = ask(&daemon, "held", json!({})).await.unwrap();
    assert_eq!(held, json!({ name.as_str().unwrap(): [108_000, 1] }));

    // What did not become real, holds nothing.
    let more = json!({ "text": "bad morning", "and-break": true });
    ask(&daemon, "put", more).await.unwrap_err();
    let file = daemon.folder().join("in.bin");
    fs::write(&file, "worse morning").unwrap();
    let given = format!("@{}", file.display());
    daemon
        .cli(&["courier", "keep", &given, "--and-refuse"])
        .unwrap_err();
    files(1).await;

    daemon.kill().unwrap();
    fs::write(folder.join("blobs/new-7"), "left by a crash").unwrap();
    fs::write(
        folder.join("blobs").join("ab".repeat(32)),
        "named by nothing",
    )
    .unwrap();
    daemon.restart().await.unwrap();
    files(1).await;
    let read = ask(&daemon, "read", json!({ "hash": name, "from": 12 })).await;
    assert!(read.unwrap().as_str().unwrap().starts_with("good morning"));

    ask(&daemon, "drop", hash.clone()).await.unwrap();
    files(0).await;
    let gone = ask(&daemon, "read", hash).await.unwrap_err();
    assert!(format!("{gone:#}").contains("does not hold"), "{gone:#}");

    // And with all of the plugin.
    ask(&daemon, "put", text).await.unwrap();
    files(1).await;
    daemon
        .cli(&["plugin", "remove", "courier", "--purge", "--yes"])
        .unwrap();
    files(0).await;
}

/// A node with two users.
async fn shared_node() -> Daemon {
    let daemon = node().await;
    for user in ["ann", "bob"] {
        let added = daemon.call("user.add", json!({ "name": user }));
        added.await.unwrap();
    }
    daemon
}

#[tokio::test(flavor = "multi_thread")]
async fn users_hold_their_own_alone() {
    let daemon = shared_node().await;
    let of = async |user: &str, command: &str, arguments: Value| {
        let params = json!({
            "instance": "courier", "user": user, "command": command, "arguments": arguments
        });
        daemon.call("plugin.ask", params).await
    };
    let name = of("ann", "put", json!({ "text": "secret" })).await.unwrap();
    let hash = json!({ "hash": name });
    let stolen = of("bob", "hold", hash.clone()).await.unwrap_err();
    let stolen = format!("{stolen:#}");
    assert!(stolen.contains("does not hold"), "{stolen}");
    of("bob", "read", hash.clone()).await.unwrap_err();
    // The same bytes are held by each on his own.
    of("bob", "put", json!({ "text": "secret" })).await.unwrap();
    of("ann", "drop", hash.clone()).await.unwrap();
    assert_eq!(of("bob", "read", hash).await.unwrap(), "secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_hold_no_more_than_they_may_and_nothing_when_they_are_purged() {
    let daemon = shared_node().await;
    let folder = plugins_folder(&daemon);
    let files = async |count: usize| {
        until("the files that are named", async || {
            (blob_files(&folder).len() == count).then_some(())
        })
        .await
        .unwrap();
    };
    let file = daemon.folder().join("large.bin");
    let keep = |content: &[u8]| {
        fs::write(&file, content).unwrap();
        let given = format!("@{}", file.display());
        let kept = daemon.cli(&["--user", "ann", "courier", "keep", &given]);
        kept.map_err(|error| format!("{error:#}"))
    };
    // 20 MiB are a user's: one of 16 MiB fits, another one does not.
    keep(&bytes(MIB_16, 2)).unwrap();
    let full = keep(&bytes(MIB_16, 3)).unwrap_err();
    assert!(full.contains("limits.user_blob_mib"), "{full}");
    let long = keep(&bytes(MIB_16 + 1, 4)).unwrap_err();
    assert!(long.contains("limits.one_blob_mib"), "{long}");
    keep(b"a small one").unwrap();
    files(2).await;
    let purge = json!({ "name": "ann", "purge": true });
    daemon.call("user.remove", purge).await.unwrap();
    files(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_grows_over_events_and_over_kill_9() {
    let mut daemon = node().await;
    let part = "0123456789".repeat(7000);
    let write = |more: Value| {
        let mut arguments = json!({ "draft": "tape" });
        arguments
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        arguments
    };
    let text = json!({ "text": "0123456789", "times": 7000 });
    for round in 1..=3 {
        let length = ask(&daemon, "write", write(text.clone())).await.unwrap();
        assert_eq!(length, json!(round * part.len()));
        // What is refused is as if it had never been.
        let mut refused = write(text.clone());
        refused["and-refuse"] = json!(true);
        refused["seal"] = json!(round == 2);
        ask(&daemon, "write", refused).await.unwrap_err();
        daemon.kill().unwrap();
        daemon.restart().await.unwrap();
    }
    let name = ask(
        &daemon,
        "write",
        write(json!({ "text": "end", "seal": true })),
    )
    .await
    .unwrap();
    let whole = part.repeat(3) + "end";
    assert_eq!(name, json!(BlobId::of(whole.as_bytes()).to_string()));
    daemon.kill().unwrap();
    daemon.restart().await.unwrap();
    let to = daemon.folder().join("tape");
    let words = [
        "courier",
        "get",
        name.as_str().unwrap(),
        "--output",
        to.to_str().unwrap(),
    ];
    daemon.cli(&words).unwrap();
    assert!(fs::read_to_string(to).unwrap() == whole);
    ask(&daemon, "write", write(json!({ "discard": true })))
        .await
        .unwrap_err();
    ask(&daemon, "write", write(text)).await.unwrap();
    ask(&daemon, "write", write(json!({ "discard": true })))
        .await
        .unwrap();
    let folder = plugins_folder(&daemon);
    until("the draft's file to go", async || {
        (blob_files(&folder).len() == 1).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_blobs_are_the_nodes_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let daemon = node().await;
    let name = ask(&daemon, "put", json!({ "text": "mine" }))
        .await
        .unwrap();
    let folder = plugins_folder(&daemon).join("blobs");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&folder.join(name.as_str().unwrap())), 0o600);
}
