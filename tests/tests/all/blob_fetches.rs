//! Blobs that move: between daemons, whoever is killed, and from hosts that lie; in the kit as well.

use std::{fs, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    sync::mpsc,
};
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

use super::blobs::{MIB_16, ask, blob_files, bytes, plugins_folder};

/// Slow enough to be killed in the middle.
const RULES: &str = r#"
    fn route(c) {
        if c.entrance == "plugin" { return c.node.direct().bw("1MB/s").closed(); }
        block("only plugins talk")
    }
"#;

fn tree(bytes: &[u8]) -> BlobTree {
    let mut hasher = BlobHasher::new();
    hasher.update(bytes);
    hasher.finish()
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
            let setup = setup.config("[metrics]\nlisten = \"127.0.0.1:0\"");
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
    let more = (first as usize + (3 << 20)).min(MIB_16 - (2 << 20));
    let second = pair.until_taken(more).await;
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
    // Room is kept for each until it is told.
    let most = json!({ "at-most": 1_000_000 });
    let no = fetch(&denied, most.clone()).await;
    let none = fetch(&json!(promised), most.clone()).await;
    let long = fetch(&public, json!({ "at-most": 100_000 })).await;
    let yes = fetch(&public, most).await;
    // Nobody has such a user: it is as if he gave nothing.
    let nobody = json!({ "from": "ann", "at-most": 1_000_000 });
    let nobody = fetch(&public, nobody).await;
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

/// A host that fetches from a node which is none.
struct Fooled {
    host: PluginHost,
    peer: String,
    calls: mpsc::UnboundedReceiver<DuplexStream>,
}

impl Fooled {
    async fn new() -> Self {
        let net = Arc::new(HostNetwork::default());
        let host = PluginHost::new(&net, "tests/courier").await.unwrap();
        let id = NodeId::from_bytes([9; 32]);
        let (peer, calls) = (HEXLOWER.encode(id.as_bytes()), net.pretend(id));
        Self { host, peer, calls }
    }

    async fn fetch(&self, tree: &BlobTree) -> String {
        let arguments = json!({ "peer": self.peer, "hash": tree.id().to_string() });
        self.host.ask("fetch", arguments).await.unwrap().to_string()
    }

    async fn came(&self, count: usize) -> Value {
        until("what came", async || {
            let came = self.host.query("came").await.ok()?;
            (came.as_object()?.len() == count).then_some(came)
        })
        .await
        .unwrap()
    }

    async fn trunk(&mut self) -> Liar {
        Liar::welcome(self.calls.recv().await.unwrap()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_gives_nothing() {
    let mut fooled = Fooled::new().await;
    let content = bytes(10 * PIECE_BYTES, 6);
    let tree = tree(&content);
    let other = "the other node gave other bytes than those of that hash";
    let mut wrong = content.clone();
    wrong[3 * PIECE_BYTES + 9] ^= 1;

    let first = fooled.fetch(&tree).await;
    let mut liar = fooled.trunk().await;
    let want = liar.wanted().await;
    assert_eq!((want.first, want.with_values), (0, true));
    liar.give(want.want, &tree).await;
    for index in 0..4 {
        liar.piece(want.want, index, &wrong).await;
    }
    assert_eq!(fooled.came(1).await[&first]["why"], other);

    // Values of other bytes.
    let second = fooled.fetch(&tree).await;
    let want = liar.wanted().await;
    liar.give(want.want, &self::tree(&wrong)).await;
    assert_eq!(fooled.came(2).await[&second]["why"], other);

    // Out of turn.
    let third = fooled.fetch(&tree).await;
    let want = liar.wanted().await;
    liar.give(want.want, &tree).await;
    liar.piece(want.want, 1, &content).await;
    let order = "the other node broke the order of pieces";
    assert_eq!(fooled.came(3).await[&third]["why"], order);
    let held = fooled.host.query("held").await.unwrap();
    assert_eq!(held, json!({}));
    until("nothing to be left", async || {
        blob_files(fooled.host.folder()).is_empty().then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_right_stays_when_a_trunk_breaks() {
    let mut fooled = Fooled::new().await;
    let content = bytes(10 * PIECE_BYTES, 7);
    let tree = tree(&content);
    let fetch = fooled.fetch(&tree).await;
    let mut first = fooled.trunk().await;
    let want = first.wanted().await;
    first.give(want.want, &tree).await;
    for index in 0..6 {
        first.piece(want.want, index, &content).await;
    }
    until("six pieces", async || {
        let reports = fooled.host.host().unwrap().instances();
        (reports[0].counts.blob_bytes_in == (6 * PIECE_BYTES) as u64).then_some(())
    })
    .await
    .unwrap();
    drop(first);
    let mut second = fooled.trunk().await;
    let want = second.wanted().await;
    assert_eq!((want.first, want.with_values), (6, false));
    let again = BlobFrame::Given {
        want: want.want,
        length: tree.length(),
        values: Bytes::new(),
    };
    second.say_of_blob(again).await;
    for index in 6..10 {
        second.piece(want.want, index, &content).await;
    }
    let length = content.len();
    assert_eq!(fooled.came(1).await[&fetch]["length"], length);
    let held = fooled.host.query("held").await.unwrap();
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
    }
}

#[test]
fn the_kit_has_the_limits_of_the_host() {
    let mut world = World::<Courier>::new(1, &manifest());
    let of = Principal::Node;
    let long = json!({ "draft": "long", "text": "0123456789abcdef", "times": 65_000 });
    for _ in 0..16 {
        world.at(0).request(&of, "write", long.clone()).unwrap();
    }
    let much = world.at(0).request(&of, "write", long).unwrap_err();
    assert!(much.message.contains("limits.one_blob_mib"), "{much}");
}
