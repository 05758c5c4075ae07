//! Messages between hosts that a network in memory joins: its flows break, and the hosts are closed
//! and opened again while amounts are on their way. The books of both ends are held against each
//! other from outside.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::{Bytes, BytesMut};
use rand::Rng as _;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use wormholes_proto::{
    NodeId,
    trunk::{
        Decoder, Envelope, Frame, Hello, IdentityKind, Name, Principal, TRUNK_VERSION, TrunkRefusal,
    },
};
use wormholes_tests::{HostNetwork, PluginHost, soak_rounds, until};

/// Enough that one more commit for each shows.
const MESSAGES: u32 = 50;

async fn ledger(network: &Arc<HostNetwork>) -> PluginHost {
    PluginHost::new(network, "plugins/ledger").await.unwrap()
}

async fn pay(from: &PluginHost, to: &PluginHost, amount: u64, times: usize) -> Result<(), String> {
    let arguments = json!({ "node": to.hex(), "amount": amount, "times": times });
    let paid = from.ask("pay", arguments).await;
    paid.map(drop).map_err(|error| error.to_string())
}

async fn book(host: &PluginHost) -> Value {
    host.query("book").await.unwrap()
}

/// Waits until all that `from` paid `to` is there, and `from` knows it.
async fn settled(from: &PluginHost, to: &PluginHost, count: usize) {
    until("all is there", async || {
        let (paid, received) = (book(from).await, book(to).await);
        let sums = &paid["peers"][to.hex()]["paid"];
        let received = &received["peers"][from.hex()]["received"];
        let all = sums["count"] == count && sums == received;
        (all && paid["confirmed"] == count && paid["refused"] == 0).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn amounts_come_once_and_in_order_though_flows_break_and_hosts_end() {
    let rounds = soak_rounds(20);
    let net = Arc::new(HostNetwork::default());
    let (mut a, mut b) = (ledger(&net).await, ledger(&net).await);
    let (mut by_a, mut by_b) = (0, 0);
    for round in 0..rounds {
        for times in [1, 7, 40] {
            let amount = rand::rng().random_range(1..1000);
            pay(&a, &b, amount, times).await.unwrap();
            pay(&b, &a, amount, times).await.unwrap();
            by_a += times;
            by_b += times;
        }
        match round % 4 {
            0 => net.cut(),
            1 => {
                a.close().await.unwrap();
                a.open(None).await.unwrap();
            }
            2 => {
                b.close().await.unwrap();
                // It waits for who is not there.
                pay(&a, &b, 3, 5).await.unwrap();
                by_a += 5;
                b.open(None).await.unwrap();
            }
            _ => settled(&a, &b, by_a).await,
        }
    }
    settled(&a, &b, by_a).await;
    settled(&b, &a, by_b).await;
    let (a_book, b_book) = (book(&a).await, book(&b).await);
    let balance = |book: &Value| book["balance"].as_i64().unwrap();
    assert_eq!(balance(&a_book) + balance(&b_book), 0);
    let asked = a.ask("ask", json!({ "node": b.hex() })).await;
    assert_eq!(asked.unwrap(), by_a, "the other node's own answer");
}

/// What is sent, what comes of it, and what is told of that: each is durable before the next one begins, and
/// the acknowledgement with the last of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_reported_costs_three_commits() {
    let (net, commits) = (Arc::default(), Arc::new(AtomicU32::new(0)));
    let mut ends = Vec::new();
    for _ in 0..2 {
        let mut host = PluginHost::new(&net, "tests/meter").await.unwrap();
        host.close().await.unwrap();
        let seen = Arc::clone(&commits);
        let observer = move |_: &_| {
            seen.fetch_add(1, Relaxed);
        };
        host.open(Some(Box::new(observer))).await.unwrap();
        ends.push(host);
    }
    let tell = json!({ "node": ends[1].id().as_bytes().to_vec() });
    // The first one begins a channel, too.
    ends[0].ask("tell", tell.clone()).await.unwrap();
    let before = commits.load(Relaxed);
    for _ in 0..MESSAGES {
        ends[0].ask("tell", tell.clone()).await.unwrap();
    }
    let each = f64::from(commits.load(Relaxed) - before) / f64::from(MESSAGES);
    // Where a machine is so busy that an event does not begin within 100 ms, some cost one more.
    assert!((2.9..3.5).contains(&each), "{each} commits");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_of_a_store_halts_the_channel_and_both_ends_say_so() {
    let net = Arc::new(HostNetwork::default());
    for who in ["sender", "receiver"] {
        let (mut a, mut b) = (ledger(&net).await, ledger(&net).await);
        pay(&a, &b, 5, 3).await.unwrap();
        settled(&a, &b, 3).await;
        let older = if who == "sender" { &mut a } else { &mut b };
        older.close().await.unwrap();
        let store = older.folder().join("plugins.redb");
        let kept = fs::read(&store).unwrap();
        older.open(None).await.unwrap();
        pay(&a, &b, 5, 4).await.unwrap();
        settled(&a, &b, 7).await;
        let older = if who == "sender" { &mut a } else { &mut b };
        older.close().await.unwrap();
        fs::write(&store, kept).unwrap();
        older.open(None).await.unwrap();
        pay(&a, &b, 6, 1).await.unwrap();
        let halted = async |site: &PluginHost, peer: &PluginHost| {
            let book = book(site).await;
            let why = book["peers"][peer.hex()]["halted"].as_str();
            why.map(ToOwned::to_owned)
        };
        let at_a = until("a is told", async || halted(&a, &b).await)
            .await
            .unwrap();
        let at_b = until("b is told", async || halted(&b, &a).await)
            .await
            .unwrap();
        let (ours, theirs) = (
            "this node runs an older copy of its store",
            "the other node runs an older copy of its store",
        );
        let expected = if who == "sender" {
            (ours, theirs)
        } else {
            (theirs, ours)
        };
        assert_eq!((at_a.as_str(), at_b.as_str()), expected);
        let refused = pay(&a, &b, 6, 1).await.unwrap_err();
        assert!(refused.contains("older copy"), "{refused}");
        a.ask("resume", json!({ "node": b.hex() })).await.unwrap();
        b.ask("resume", json!({ "node": a.hex() })).await.unwrap();
        // What waited is sent again; its number is not the one that the other book has next.
        until("it is refused", async || {
            (book(&a).await["refused"] == 1).then_some(())
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_to_oneself_takes_the_same_way() {
    let net = Arc::new(HostNetwork::default());
    let a = ledger(&net).await;
    pay(&a, &a, 1, 2).await.unwrap();
    // The ledger has accounts of nodes alone: its own no is told to it.
    until("it is told", async || {
        (book(&a).await["refused"] == 2).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_tells_its_receiver_and_the_wire_nothing_of_the_node() {
    let net = Arc::new(HostNetwork::default());
    let a = PluginHost::new(&net, "tests/meter").await.unwrap();
    let b = PluginHost::new(&net, "tests/meter").await.unwrap();
    let node = b.id().as_bytes().to_vec();
    let shows_a = |bytes: Vec<u8>| {
        let id = a.id().as_bytes().to_vec();
        let hits = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
        assert!(hits(b"good morning"), "it is recorded");
        hits(&id) || hits(a.id().to_string().as_bytes())
    };
    a.ask("tell", json!({ "node": node })).await.unwrap();
    assert!(shows_a(net.take_recorded()), "as itself, it is known");
    assert_eq!(
        b.query("last").await.unwrap()[0]["Node"],
        json!(a.id().as_bytes())
    );

    let told = json!({ "node": node, "alias": "shop" });
    a.ask("tell", told.clone()).await.unwrap();
    assert!(!shows_a(net.take_recorded()));
    let key = a.ask("alias", json!({ "name": "shop" })).await.unwrap();
    assert_eq!(b.query("last").await.unwrap()[0], json!({ "Alias": key }));
    // An answer goes back the way that the alias came, and it is told as whom it was written to.
    b.ask("back", json!({})).await.unwrap();
    assert_eq!(
        a.query("last").await.unwrap(),
        json!([{ "Node": node }, "shop"])
    );
    a.ask("back", json!({})).await.unwrap();
    assert_eq!(b.query("last").await.unwrap()[0], json!({ "Alias": key }));

    let other = json!({ "node": node, "alias": "club" });
    a.ask("tell", other).await.unwrap();
    let club = b.query("last").await.unwrap()[0]["Alias"].clone();
    assert_ne!(club, key, "aliases have nothing in common");
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_halts_its_channel_and_what_was_handled_before_is_not_handled_again() {
    let net = Arc::new(HostNetwork::default());
    let a = PluginHost::new(&net, "tests/meter").await.unwrap();
    let b = PluginHost::new(&net, "tests/meter").await.unwrap();
    let (to_a, to_b) = (a.id().as_bytes().to_vec(), b.id().as_bytes().to_vec());
    let tell = async |text: &str| a.ask("tell", json!({ "node": to_b, "text": text })).await;
    // All are on their way at once: the first is hardly durable when the second breaks.
    let (first, second, third) = tokio::join!(tell("one"), async { tell("poison").await }, async {
        for host in [&a, &b] {
            let halted = async || (host.query("halts").await.ok()? == 1).then_some(());
            until("the channel to be halted", halted).await.unwrap();
        }
        b.ask("cure", json!({})).await.unwrap();
        a.ask("reopen", json!({ "node": to_b })).await.unwrap();
        b.ask("reopen", json!({ "node": to_a })).await.unwrap();
        tell("three").await
    });
    for told in [first, second, third] {
        assert_eq!(told.unwrap(), "handled");
    }
    assert_eq!(b.query("count").await.unwrap(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn to_resume_a_channel_that_is_not_halted_changes_nothing() {
    let net = Arc::new(HostNetwork::default());
    let (a, b) = (ledger(&net).await, ledger(&net).await);
    let rounds = 200;
    for _ in 0..rounds {
        pay(&a, &b, 1, 3).await.unwrap();
        // Acknowledgements of what went before are on their way to the disk.
        a.ask("resume", json!({ "node": b.hex() })).await.unwrap();
    }
    settled(&a, &b, 3 * rounds).await;
    assert_eq!(book(&a).await["peers"][b.hex()]["halted"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_goes_back_to_a_way_that_it_left() {
    let net = Arc::new(HostNetwork::default());
    let a = PluginHost::new(&net, "tests/meter").await.unwrap();
    let b = PluginHost::new(&net, "tests/meter").await.unwrap();
    let node = b.id().as_bytes().to_vec();
    for label in ["one", "other", "one", "other"] {
        let told = a.ask("tell", json!({ "node": node, "label": label }));
        assert_eq!(told.await.unwrap(), "handled", "by way of {label}");
    }
}

/// The HELLO of a node that nobody knows.
fn hello(to: &PluginHost) -> Hello {
    let key = Ed25519KeyPair::from_seed_unchecked(&rand::random::<[u8; 32]>()).unwrap();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let hello = Hello {
        version: TRUNK_VERSION,
        instance: Name::try_from(to.name()).unwrap(),
        identity: NodeId::from_bytes(key.public_key().as_ref().try_into().unwrap()),
        kind: IdentityKind::Node,
        unix_minutes: u32::try_from(since.as_secs() / 60).unwrap(),
        nonce: rand::random(),
        signature: [0; 64],
    };
    hello.sign(&to.id(), |message| {
        key.sign(message).as_ref().try_into().unwrap()
    })
}

/// Opens a trunk to a host, as no host would: what it is answered, and the flow.
async fn opened(host: &PluginHost, hello: &Hello) -> (Frame, DuplexStream) {
    let (mut near, far) = tokio::io::duplex(64 << 10);
    let peer = Some(hello.identity);
    host.host().unwrap().answer_call(Box::new(far), peer);
    let hello = bytes_of(&Frame::Hello(Box::new(hello.clone())));
    near.write_all(&hello).await.unwrap();
    let mut decoder = Decoder::for_opener();
    loop {
        let mut read = BytesMut::new();
        assert!(near.read_buf(&mut read).await.unwrap() > 0);
        if let Some(frame) = decoder.handle_bytes(&mut read.freeze()).unwrap() {
            return (frame, near);
        }
    }
}

fn bytes_of(frame: &Frame) -> BytesMut {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes).unwrap();
    bytes
}

fn question(ask: u64, protocol: &str) -> BytesMut {
    let envelope = Envelope {
        from: Principal::Node,
        to: Principal::Node,
        protocol: Name::try_from(protocol).unwrap(),
    };
    bytes_of(&Frame::Ask {
        ask,
        envelope,
        left_ms: u64::MAX,
        body: Bytes::new(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_opens_one_trunk() {
    let a = ledger(&Arc::new(HostNetwork::default())).await;
    let hello = hello(&a);
    let (first, _flow) = opened(&a, &hello).await;
    assert!(matches!(first, Frame::Welcome { .. }), "{first:?}");
    let (second, _flow) = opened(&a, &hello).await;
    assert_eq!(second, Frame::Refused(TrunkRefusal::Denied));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trunk_ends_when_two_questions_have_one_number() {
    let net = Arc::new(HostNetwork::default());
    let a = PluginHost::new(&net, "tests/meter").await.unwrap();
    let (_, mut flow) = opened(&a, &hello(&a)).await;
    // Nobody answers it: a number is free again when its question is answered.
    let twice = [question(7, "hold"), question(7, "hold")].concat();
    flow.write_all(&twice).await.unwrap();
    let mut answers = Vec::new();
    // Until the end of the flow, which only the host can bring about.
    let end = tokio::time::timeout(wormholes_tests::LIMIT, flow.read_to_end(&mut answers));
    end.await.unwrap().unwrap();
    assert_eq!(answers, b"", "no question is answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trunk_ends_when_its_other_end_asks_and_does_not_read() {
    let a = ledger(&Arc::new(HostNetwork::default())).await;
    let (_, mut flow) = opened(&a, &hello(&a)).await;
    // Some 12 MiB of refusals.
    for ask in 0..200_000 {
        if flow.write_all(&question(ask, "unknown")).await.is_err() {
            return;
        }
    }
    panic!("the host keeps all answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expires_is_told_at_both_ends_and_what_comes_after_it_arrives() {
    let net = Arc::new(HostNetwork::default());
    let mut a = PluginHost::new(&net, "tests/meter").await.unwrap();
    let mut b = PluginHost::new(&net, "tests/meter").await.unwrap();
    let node = b.id().as_bytes().to_vec();
    a.ask("tell", json!({ "node": node })).await.unwrap();
    b.close().await.unwrap();
    // One that waits on disk expires as well.
    let told = a.ask("tell", json!({ "node": node, "expires_ms": 300 }));
    let asked = tokio::time::timeout(Duration::from_millis(50), told).await;
    assert!(asked.is_err(), "it waits for who is not there");
    a.close().await.unwrap();
    a.open(None).await.unwrap();
    let told = a
        .ask("tell", json!({ "node": node, "expires_ms": 400 }))
        .await;
    let told = told.unwrap_err().to_string();
    assert_eq!(told, "it expired");
    // So has the first one, whose time was over before.
    b.open(None).await.unwrap();
    a.ask("tell", json!({ "node": node })).await.unwrap();
    assert_eq!(b.query("gaps").await.unwrap(), 2);
    assert_eq!(b.query("count").await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_has_one_answer_though_its_asker_ends_meanwhile() {
    let net = Arc::new(HostNetwork::default());
    let mut a = PluginHost::new(&net, "tests/meter").await.unwrap();
    let b = PluginHost::new(&net, "tests/meter").await.unwrap();
    let node = b.id().as_bytes().to_vec();
    let answers = async |a: &PluginHost| a.query("answers").await.unwrap();
    let count = async |a: &PluginHost| answers(a).await.as_array().unwrap().len();
    let soon = json!({ "node": node, "patience_ms": 300 });
    a.ask("question", soon).await.unwrap();
    until("it is late", async || (count(&a).await == 1).then_some(()))
        .await
        .unwrap();
    let long = json!({ "node": node, "patience_ms": 600_000 });
    a.ask("question", long.clone()).await.unwrap();
    assert_eq!(count(&a).await, 1, "the other one has time");
    a.close().await.unwrap();
    a.open(None).await.unwrap();
    until("it is told", async || (count(&a).await == 2).then_some(()))
        .await
        .unwrap();
    net.cut();
    a.ask("question", long).await.unwrap();
    a.close().await.unwrap();
    a.open(None).await.unwrap();
    until("all are told", async || {
        (count(&a).await == 3).then_some(())
    })
    .await
    .unwrap();
    let late = "the plugin did not answer in time";
    assert_eq!(answers(&a).await, json!([late, late, late]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_whose_stack_was_given_back_goes_on_with_what_it_knows() {
    const RESTS_AFTER: Duration = Duration::from_millis(2500);
    let meter = PluginHost::new(&Arc::default(), "tests/meter")
        .await
        .unwrap();
    let aim = json!({ "node": vec![7; 32] });
    meter.ask("aim", aim).await.unwrap();
    // Whom it is aimed at, its memory alone knows.
    for steps in 1..=3 {
        assert_eq!(meter.ask("step", json!({})).await.unwrap(), steps);
        let since = Instant::now();
        let rests = async || (since.elapsed() > RESTS_AFTER).then_some(());
        until("its rest", rests).await.unwrap();
    }
}
