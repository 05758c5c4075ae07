//! Blobs of plugins: they come from the command line, move between daemons whoever is killed, are named
//! by their bytes whoever lies, and are gone when nobody holds them.

use std::{fs, path::Path, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use wormholes_courier::Courier;
use wormholes_plugin::Principal;
use wormholes_plugin_kit::{Drive as _, World};
use wormholes_proto::{
    NodeId,
    blob::{BlobHasher, BlobId, BlobTree, PIECE_BYTES},
    trunk::{BlobFrame, Decoder, Frame, TRUNK_VERSION, Want},
};
use wormholes_tests::{
    Daemon, HostNetwork, LIMIT, Metrics, PluginHost, Setup, until, until_within, workspace,
};

/// The longest of the DHT.
const MIB_16: usize = 16 << 20;

/// Slow enough to be killed in the middle.
const RULES: &str = r#"
    fn route(c) {
        if c.entrance == "plugin" { return c.node.direct().bw("3MB/s").closed(); }
        block("only plugins talk")
    }
"#;

async fn ask(daemon: &Daemon, command: &str, arguments: Value) -> anyhow::Result<Value> {
    let params = json!({ "instance": "courier", "command": command, "arguments": arguments });
    daemon.call("plugin.ask", params).await
}

async fn node() -> Daemon {
    let setup = Setup::new("node").unwrap().plugin("tests/courier").unwrap();
    setup.start().await.unwrap()
}

/// Bytes that no other test has.
fn bytes(length: usize, of: u8) -> Vec<u8> {
    let mut state = u64::from(of) + 1;
    let step = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(step).collect()
}

fn tree(bytes: &[u8]) -> BlobTree {
    let mut hasher = BlobHasher::new();
    hasher.update(bytes);
    hasher.finish()
}

fn blob_files(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder.join("blobs")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// Where a daemon keeps its plugins.
fn plugins_folder(daemon: &Daemon) -> std::path::PathBuf {
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

#[tokio::test(flavor = "multi_thread")]
async fn users_hold_their_own_and_no_more_than_they_may() {
    let daemon = node().await;
    for user in ["ann", "bob"] {
        daemon
            .call("user.add", json!({ "name": user }))
            .await
            .unwrap();
    }
    let of = async |user: &str, command: &str, arguments: Value| {
        let params = json!({
            "instance": "courier", "user": user, "command": command, "arguments": arguments
        });
        daemon.call("plugin.ask", params).await
    };
    let name = of("ann", "put", json!({ "text": "secret" })).await.unwrap();
    let hash = json!({ "hash": name });
    let stolen = of("bob", "hold", hash.clone()).await.unwrap_err();
    assert!(
        format!("{stolen:#}").contains("does not hold"),
        "{stolen:#}"
    );
    of("bob", "read", hash.clone()).await.unwrap_err();
    // The same bytes are held by each on his own.
    of("bob", "put", json!({ "text": "secret" })).await.unwrap();
    of("ann", "drop", hash.clone()).await.unwrap();
    assert_eq!(of("bob", "read", hash).await.unwrap(), "secret");

    // 20 MiB are a user's: one of 16 MiB fits, another one does not.
    let file = daemon.folder().join("large.bin");
    for (of, fits) in [(2, true), (3, false)] {
        fs::write(&file, bytes(MIB_16, of)).unwrap();
        let given = format!("@{}", file.display());
        let kept = daemon.cli(&["--user", "ann", "courier", "keep", &given]);
        match kept {
            Ok(_) => assert!(fits),
            Err(error) => {
                assert!(!fits, "{error:#}");
                assert!(
                    format!("{error:#}").contains("raise limits.blob_mib"),
                    "{error:#}"
                );
            }
        }
    }
    fs::write(&file, bytes(MIB_16 + 1, 4)).unwrap();
    let given = format!("@{}", file.display());
    let long = daemon.cli(&["courier", "keep", &given]).unwrap_err();
    assert!(
        format!("{long:#}").contains("limits.one_blob_mib"),
        "{long:#}"
    );

    // A purge leaves nothing of him.
    let folder = plugins_folder(&daemon);
    assert_eq!(blob_files(&folder).len(), 2);
    daemon
        .call("user.remove", json!({ "name": "ann", "purge": true }))
        .await
        .unwrap();
    until("the files of a user to go", async || {
        (blob_files(&folder).len() == 1).then_some(())
    })
    .await
    .unwrap();
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
        // What is behind it in the file counts for nothing.
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

struct Pair {
    giver: Daemon,
    taker: Daemon,
}

impl Pair {
    async fn start(octet: u8) -> Self {
        let setup = |name: &str, host: u8| {
            let listen = format!("127.{octet}.0.{host}:0");
            let setup = Setup::new(name).unwrap().listen(&listen);
            setup.script("rules.rhai", RULES)
        };
        let (taker, giver) = (setup("taker", 1), setup("giver", 2));
        let giver = giver.peer_id("taker", taker.id(), 3, "");
        let giver = giver
            .plugin("tests/courier")
            .unwrap()
            .start()
            .await
            .unwrap();
        let taker = taker.peer(&giver, 3).plugin("tests/courier").unwrap();
        let taker = taker.start().await.unwrap();
        Self { giver, taker }
    }

    /// What came of all fetches, when so many are told.
    async fn came(&self, count: usize) -> Value {
        until_within(LIMIT * 6, "what came", async || {
            let came = ask(&self.taker, "came", json!({})).await.ok()?;
            (came.as_object()?.len() == count).then_some(came)
        })
        .await
        .unwrap()
    }

    /// How much came and was right since the taker's start.
    async fn taken(&self) -> Option<f64> {
        let metrics = Metrics::read(&self.taker).await.ok()?;
        Some(
            metrics
                .sum("wormholes_plugin_blob_moved_bytes_total{plugin=\"courier\",direction=\"in\""),
        )
    }

    async fn until_taken(&self, bytes: usize) -> f64 {
        until_within(LIMIT * 2, "a part to come", async || {
            let taken = self.taken().await?;
            (taken >= bytes as f64).then_some(taken)
        })
        .await
        .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_mib_move_between_daemons_though_either_is_killed_in_the_middle() {
    let mut pair = Pair::start(91).await;
    let content = bytes(MIB_16, 5);
    let file = pair.giver.folder().join("large.bin");
    fs::write(&file, &content).unwrap();
    let given = format!("@{}", file.display());
    pair.giver.cli(&["courier", "keep", &given]).unwrap();
    let name = BlobId::of(&content).to_string();
    pair.giver.cli(&["courier", "give", &name]).unwrap();
    let id = pair
        .taker
        .cli(&["courier", "fetch", "giver", &name])
        .unwrap();

    // What came before a kill does not come again.
    let first = pair.until_taken(3 << 20).await;
    pair.giver.kill().unwrap();
    pair.giver.restart().await.unwrap();
    let second = pair.until_taken(first as usize + (3 << 20)).await;
    pair.taker.kill().unwrap();
    pair.taker.restart().await.unwrap();
    let came = pair.came(1).await;
    let expected = json!({ "blob": name, "length": MIB_16 });
    assert_eq!(came[id.trim()], expected, "told once: {came}");
    let third = pair.taken().await.unwrap();
    let all = second + third;
    assert!(all <= (MIB_16 + PIECE_BYTES) as f64, "{second} and {third}");

    let out = pair.taker.folder().join("out.bin");
    let words = ["courier", "get", &name, "--output", out.to_str().unwrap()];
    pair.taker.cli(&words).unwrap();
    assert!(fs::read(out).unwrap() == content);
    let folder = plugins_folder(&pair.taker);
    until("nothing but the blob", async || {
        (blob_files(&folder) == [name.clone()]).then_some(())
    })
    .await
    .unwrap();
    assert_eq!(pair.came(1).await.as_object().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_a_blob_says_who_may_have_it() {
    let pair = Pair::start(92).await;
    let put = |text: &str| json!({ "text": text, "times": 30_000 });
    let denied = ask(&pair.giver, "put", put("private")).await.unwrap();
    let public = ask(&pair.giver, "put", put("public")).await.unwrap();
    let promised = BlobId::of(b"never there").to_string();
    for hash in [&public, &json!(promised)] {
        ask(&pair.giver, "give", json!({ "hash": hash }))
            .await
            .unwrap();
    }
    let giver = pair.giver.id().to_string();
    let fetch = async |hash: &Value, more: Value| {
        let mut arguments = json!({ "peer": giver, "hash": hash });
        arguments
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        ask(&pair.taker, "fetch", arguments)
            .await
            .unwrap()
            .to_string()
    };
    let no = fetch(&denied, json!({})).await;
    let none = fetch(&json!(promised), json!({})).await;
    let long = fetch(&public, json!({ "at-most": 100_000 })).await;
    let yes = fetch(&public, json!({})).await;
    // Nobody has such a user: it is as if he gave nothing.
    let nobody = fetch(&public, json!({ "from": "ann" })).await;
    let came = pair.came(5).await;
    let why = |id: &String| came[id]["why"].as_str().unwrap_or_default().to_owned();
    assert_eq!(why(&no), "the other end does not give this blob");
    assert_eq!(why(&nobody), "the other end does not give this blob");
    assert_eq!(why(&none), "the plugin does not hold this blob");
    assert!(why(&long).contains("more than it may have"), "{came}");
    assert_eq!(came[&yes]["length"], 180_000, "{came}");

    // One that cannot be reached in time, and one that is canceled.
    let mut pair = pair;
    pair.giver.kill().unwrap();
    let late = json!({ "peer": giver, "hash": denied, "ms": 300 });
    let late = ask(&pair.taker, "fetch", late).await.unwrap().to_string();
    let canceled = json!({ "peer": giver, "hash": denied });
    let canceled = ask(&pair.taker, "fetch", canceled).await.unwrap();
    ask(&pair.taker, "cancel", json!({ "id": canceled }))
        .await
        .unwrap();
    let came = pair.came(6).await;
    assert_eq!(came[&late]["why"], "the blob did not come in time");
    let held = ask(&pair.taker, "held", json!({})).await.unwrap();
    assert_eq!(held.as_object().unwrap().len(), 1, "{held}");
}

/// A node that answers as none does.
struct Liar {
    flow: DuplexStream,
    decoder: Decoder,
    read: Bytes,
}

impl Liar {
    /// Takes the trunk that a host opens.
    async fn welcome(flow: DuplexStream) -> Self {
        let mut liar = Self {
            flow,
            decoder: Decoder::for_acceptor(),
            read: Bytes::new(),
        };
        assert!(matches!(liar.next().await, Frame::Hello(_)));
        let version = TRUNK_VERSION;
        liar.say(&Frame::Welcome { version }).await;
        liar
    }

    async fn next(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.decoder.handle_bytes(&mut self.read).unwrap() {
                return frame;
            }
            let mut read = BytesMut::new();
            assert!(self.flow.read_buf(&mut read).await.unwrap() > 0);
            self.read = read.freeze();
        }
    }

    async fn wanted(&mut self) -> Want {
        loop {
            if let Frame::Blob(BlobFrame::Want(want)) = self.next().await {
                return *want;
            }
        }
    }

    async fn say(&mut self, frame: &Frame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes).unwrap();
        self.flow.write_all(&bytes).await.unwrap();
    }

    async fn say_of_blob(&mut self, frame: BlobFrame) {
        self.say(&Frame::Blob(frame)).await;
    }

    async fn give(&mut self, want: u64, tree: &BlobTree) {
        let given = BlobFrame::Given {
            want,
            length: tree.length(),
            values: Bytes::copy_from_slice(tree.values()),
        };
        self.say_of_blob(given).await;
    }

    async fn piece(&mut self, want: u64, index: u32, content: &[u8]) {
        let piece = content.chunks(PIECE_BYTES).nth(index as usize).unwrap();
        let bytes = Bytes::copy_from_slice(piece);
        self.say_of_blob(BlobFrame::Piece { want, index, bytes })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_gives_nothing_and_what_was_right_before_it_stays() {
    let net = Arc::new(HostNetwork::default());
    let host = PluginHost::new(&net, "tests/courier").await.unwrap();
    let content = bytes(10 * PIECE_BYTES, 6);
    let tree = tree(&content);
    let id = NodeId::from_bytes([9; 32]);
    let mut calls = net.pretend(id);
    let peer = HEXLOWER.encode(id.as_bytes());
    let fetch = async || {
        let arguments = json!({ "peer": peer, "hash": tree.id().to_string() });
        host.ask("fetch", arguments).await.unwrap().to_string()
    };
    let came = async |count: usize| {
        until("what came", async || {
            let came = host.query("came").await.ok()?;
            (came.as_object()?.len() == count).then_some(came)
        })
        .await
        .unwrap()
    };
    let other = "the other node gave other bytes than those of that hash";
    let mut wrong = content.clone();
    wrong[3 * PIECE_BYTES + 9] ^= 1;

    let first = fetch().await;
    let mut liar = Liar::welcome(calls.recv().await.unwrap()).await;
    let want = liar.wanted().await;
    assert_eq!((want.first, want.with_values), (0, true));
    liar.give(want.want, &tree).await;
    for index in 0..4 {
        liar.piece(want.want, index, &wrong).await;
    }
    assert_eq!(came(1).await[&first]["why"], other);

    // Values of other bytes.
    let second = fetch().await;
    let want = liar.wanted().await;
    liar.give(want.want, &self::tree(&wrong)).await;
    assert_eq!(came(2).await[&second]["why"], other);

    // Out of turn.
    let third = fetch().await;
    let want = liar.wanted().await;
    liar.give(want.want, &tree).await;
    liar.piece(want.want, 1, &content).await;
    let order = "the other node broke the order of pieces";
    assert_eq!(came(3).await[&third]["why"], order);

    // A trunk that breaks is no lie: it goes on behind what came, on the next one.
    let fourth = fetch().await;
    let want = liar.wanted().await;
    liar.give(want.want, &tree).await;
    for index in 0..6 {
        liar.piece(want.want, index, &content).await;
    }
    let metric = async || {
        let reports = host.host().unwrap().instances();
        (reports[0].counts.blob_bytes_in >= (9 * PIECE_BYTES) as u64).then_some(())
    };
    until("six pieces, behind the three before", metric)
        .await
        .unwrap();
    drop(liar);
    let mut honest = Liar::welcome(calls.recv().await.unwrap()).await;
    let want = honest.wanted().await;
    assert_eq!((want.first, want.with_values), (6, false));
    let again = BlobFrame::Given {
        want: want.want,
        length: tree.length(),
        values: Bytes::new(),
    };
    honest.say_of_blob(again).await;
    for index in 6..10 {
        honest.piece(want.want, index, &content).await;
    }
    let length = content.len();
    assert_eq!(came(4).await[&fourth]["length"], length);
    let held = host.query("held").await.unwrap();
    assert_eq!(held, json!({ tree.id().to_string(): [length, 1] }));
}

#[tokio::test(flavor = "multi_thread")]
async fn principals_of_one_node_have_blobs_of_each_other_without_a_wire() {
    let net = Arc::new(HostNetwork::default());
    let host = PluginHost::new(&net, "tests/courier").await.unwrap();
    host.host().unwrap().add_user("ann").await.unwrap();
    let put = json!({ "text": "between us", "times": 50_000 });
    let name = host.ask("put", put).await.unwrap();
    let fetch = json!({ "peer": host.hex(), "hash": name });
    let came = async |count: usize| {
        until("what came", async || {
            let came = host.query_as(Some("ann"), "came").await.ok()?;
            (came.as_object()?.len() == count).then_some(came)
        })
        .await
        .unwrap()
    };
    let first = host
        .ask_as(Some("ann"), "fetch", fetch.clone())
        .await
        .unwrap();
    let no = "the other end does not give this blob";
    assert_eq!(came(1).await[first.to_string()]["why"], no);
    host.ask("give", json!({ "hash": name })).await.unwrap();
    let second = host.ask_as(Some("ann"), "fetch", fetch).await.unwrap();
    assert_eq!(came(2).await[second.to_string()]["length"], 500_000);
    // Hers stays when his is gone.
    host.ask("drop", json!({ "hash": name })).await.unwrap();
    let held = host.query_as(Some("ann"), "held").await.unwrap();
    assert_eq!(held[name.as_str().unwrap()], json!([500_000, 1]));
    assert_eq!(net.take_recorded().len(), 0);
}

fn manifest() -> String {
    let path = workspace::root().join("tests/courier/plugin.toml");
    fs::read_to_string(path).unwrap()
}

#[test]
fn the_kit_fetches_as_the_host_does() {
    for seed in 0..30 {
        let mut world = World::<Courier>::new(seed, &manifest());
        let taker = world.add_node();
        world.unsteady(30);
        let of = Principal::Node;
        let put = json!({ "text": "good morning", "times": 9000 });
        let name = world.at(0).request(&of, "put", put).unwrap();
        let hash = json!({ "hash": name });
        let giver = HEXLOWER.encode(&world.at(0).id());
        let fetch = json!({ "peer": giver, "hash": name });
        let came = |world: &mut World<Courier>, count: usize| {
            let mut came = json!({});
            world.until("what came", |world| {
                came = world.at(taker).query(&of, "came", json!({})).unwrap();
                came.as_object().unwrap().len() == count
            });
            came
        };
        let first = world
            .at(taker)
            .request(&of, "fetch", fetch.clone())
            .unwrap();
        let told = came(&mut world, 1);
        let no = "the other end does not give this blob";
        assert_eq!(told[first.to_string()]["why"], no);
        world.at(0).request(&of, "give", hash.clone()).unwrap();
        world.cut(0, taker);
        let second = world.at(taker).request(&of, "fetch", fetch).unwrap();
        world.pass(Duration::from_secs(9));
        world.at(taker).restart();
        world.heal(0, taker);
        let told = came(&mut world, 2);
        assert_eq!(told[second.to_string()]["length"], 108_000);
        let read = json!({ "hash": name, "from": 12 });
        let read = world.at(taker).query(&of, "read", read).unwrap();
        assert!(read.as_str().unwrap().starts_with("good morning"));

        let brought = world.at(0).bring(b"a file");
        let file = json!({ "file": brought });
        let kept = world.at(0).request(&of, "keep", file.clone()).unwrap();
        assert_eq!(kept["length"], 6);
        world
            .at(0)
            .request(&of, "drop", json!({ "hash": brought }))
            .unwrap();
        world.at(0).request(&of, "keep", file).unwrap_err();
        let write = json!({ "draft": "tape", "text": "a ", "times": 2 });
        world.at(0).request(&of, "write", write).unwrap();
        world.at(0).restart();
        let write = json!({ "draft": "tape", "text": "b", "seal": true });
        let sealed = world.at(0).request(&of, "write", write).unwrap();
        assert_eq!(sealed, json!(BlobId::of(b"a a b").to_string()));
        let long = json!({ "draft": "long", "text": "0123456789abcdef", "times": 65_000 });
        for _ in 0..16 {
            world.at(0).request(&of, "write", long.clone()).unwrap();
        }
        let much = world.at(0).request(&of, "write", long).unwrap_err();
        assert!(much.message.contains("limits.one_blob_mib"), "{much}");
    }
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
