//! I2P on a private network of i2pd routers: streams both ways, who is told apart by whom, what is
//! kept and what comes back. Nodes, routers and programs are on one host without any other network.

#[path = "i2p/refused.rs"]
mod refused;
#[path = "i2p/scene.rs"]
mod scene;

use std::{collections::BTreeSet, io::ErrorKind, os::unix::fs::PermissionsExt, time::Duration};

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ring::digest::{Context, SHA256};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use wormholes_tests::{
    I2P_NAME, I2pTunnels, LIMIT, SITE_GREETING, SamPeer, is_soak, until, until_within,
};

use scene::{PATIENCE, Scene, kept_sessions, published, sessions, spare, unpublished};

const MIB: usize = 1 << 20;
/// In continuous integration so much each way, in a soak ten times as much.
const BULK_BYTES: usize = 10 * MIB;
/// More than all buffers on the way hold: what brings this goes on.
const MORE_BYTES: usize = 24 * MIB;
/// i2pd sends what nobody takes again for four minutes, and tells who said it then.
const TOLD_WITHIN: Duration = Duration::from_secs(400);
/// A page that takes long enough to die in.
const LONG_PAGE_BYTES: usize = 200 * MIB;

#[tokio::test(flavor = "multi_thread")]
async fn streams_travel_by_i2p_both_ways_and_callers_are_told_apart() {
    let scene = Scene::start().await;
    // Their sessions take as long as those of the nodes, at the same time.
    let keys = scene.network.named_keys();
    let (named, other) = tokio::try_join!(
        SamPeer::start(&scene.network, 0, Some(keys)),
        SamPeer::start(&scene.network, 1, None),
    )
    .unwrap();
    let (blog, echo) = (
        published(&scene.publisher, "blog").await,
        published(&scene.publisher, "echo").await,
    );
    scene.make_sessions(&blog).await;
    let page = scene.fetch(&format!("http://{blog}/")).await;
    assert!(page.contains(SITE_GREETING), "{page}");
    a_plain_client_fetches(&other, &blog).await;
    bulk_travels_both_ways(&scene, &echo).await;
    an_answer_comes_though_the_question_has_ended(&scene, &named).await;
    let spare = a_newcomer_has_what_was_made_ahead(&scene, &named).await;
    callers_are_told_apart(&scene, &named).await;
    keys_tell_callers_apart(&scene, &named).await;
    settings_reach_the_router(&scene, &named).await;
    names_that_nobody_knows_are_told(&scene).await;
    the_operator_sees_it(&scene, &blog);
    another_is_made_ahead(&scene, &spare).await;
}

/// Who is no Wormholes reaches what is published here.
async fn a_plain_client_fetches(client: &SamPeer, blog: &str) {
    let mut stream = client.connect(blog).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: {blog}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut page = String::new();
    let read = timeout(PATIENCE, stream.read_to_string(&mut page)).await;
    read.unwrap().unwrap();
    assert!(page.contains(SITE_GREETING), "{page}");
}

async fn bulk_travels_both_ways(scene: &Scene, echo: &str) {
    let bytes = if is_soak() {
        10 * BULK_BYTES
    } else {
        BULK_BYTES
    };
    let mut stream = scene.open("ann", echo, 7).await;
    let (mut reader, mut writer) = stream.split();
    let send = async {
        let (mut random, mut sent) = (ChaCha8Rng::seed_from_u64(7), Context::new(&SHA256));
        let mut piece = vec![0; 64 << 10];
        for _ in 0..bytes / piece.len() {
            random.fill_bytes(&mut piece);
            sent.update(&piece);
            writer.write_all(&piece).await.unwrap();
        }
        sent.finish()
    };
    let receive = async {
        let mut received = Context::new(&SHA256);
        let mut piece = vec![0; 64 << 10];
        let mut left = bytes;
        while left > 0 {
            let read = timeout(PATIENCE, reader.read(&mut piece)).await;
            let read = read.expect("it stalls").unwrap();
            assert!(read > 0, "it ends with {left} bytes missing");
            received.update(&piece[..read]);
            left -= read;
        }
        received.finish()
    };
    let (sent, received) = tokio::join!(send, receive);
    assert_eq!(sent.as_ref(), received.as_ref());
}

/// I2P has no half-close: what ends there ends both ways.
async fn an_answer_comes_though_the_question_has_ended(scene: &Scene, named: &SamPeer) {
    let ask = async {
        let mut stream = scene.open("ann", I2P_NAME, 80).await;
        stream.write_all(b"question").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        let read = timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
        read.unwrap().unwrap();
        answer
    };
    let answer = async {
        let (_, mut stream) = named.accept().await.unwrap();
        let mut question = [0; 8];
        stream.read_exact(&mut question).await.unwrap();
        stream.write_all(&question).await.unwrap();
        stream.shutdown().await.unwrap();
        // Its end is told when all of the answer was taken.
        let _reset = timeout(PATIENCE, stream.read(&mut question)).await.unwrap();
    };
    let (answer, ()) = tokio::join!(ask, answer);
    assert_eq!(answer, "question");
}

/// Has a user of the caller's entrance call the plain client; gives the destination that it was
/// called from.
async fn called_by(scene: &Scene, named: &SamPeer, user: &str) -> String {
    called_at(scene, named, (user, 80)).await
}

/// As [`called_by`], at this port, which is all the same to the plain client.
async fn called_at(scene: &Scene, named: &SamPeer, (user, port): (&str, u16)) -> String {
    let call = async {
        let mut stream = scene.open(user, I2P_NAME, port).await;
        stream.write_all(b"hello").await.unwrap();
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"hi");
    };
    let accept = async {
        let (caller, mut stream) = named.accept().await.unwrap();
        let mut greeting = [0; 5];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"hello");
        stream.write_all(b"hi").await.unwrap();
        stream.shutdown().await.unwrap();
        let _ended = timeout(PATIENCE, stream.read(&mut greeting)).await.unwrap();
        caller
    };
    let (caller, ()) = tokio::join!(accept, call);
    caller
}

/// Who was never here calls from the destination that was made ahead, so that nothing was made for
/// him; gives it.
async fn a_newcomer_has_what_was_made_ahead(scene: &Scene, named: &SamPeer) -> String {
    let spare = spare(&scene.caller, "none so far").await;
    assert_eq!(called_by(scene, named, "newcomer").await, spare);
    assert_eq!(called_by(scene, named, "newcomer").await, spare);
    spare
}

/// In place of the one that went to the newcomer.
async fn another_is_made_ahead(scene: &Scene, former: &str) {
    let another = spare(&scene.caller, former).await;
    let shown = sessions(&scene.caller).await;
    assert!(shown.contains(&another), "{another} is not among {shown:?}");
    assert!(shown.iter().any(|shown| shown == former), "the newcomer's");
}

async fn callers_are_told_apart(scene: &Scene, named: &SamPeer) {
    let mut callers = Vec::new();
    for user in ["ann", "bob", "ann", "keeper", "keeper"] {
        callers.push(called_by(scene, named, user).await);
    }
    let [ann, bob, ann_again, kept, kept_again] = callers.as_slice() else {
        panic!("five calls");
    };
    assert_eq!(ann, ann_again);
    assert_eq!(kept, kept_again);
    assert_eq!(BTreeSet::from([ann, bob, kept]).len(), 3, "{callers:?}");
    let shown = sessions(&scene.caller).await;
    for caller in [ann, bob, kept] {
        assert!(shown.contains(caller), "{caller} is not among {shown:?}");
    }
    assert_eq!(
        kept_sessions(&scene.caller).await,
        std::slice::from_ref(kept)
    );
}

/// By those that a script says, whatever else tells one flow of a user from another.
async fn keys_tell_callers_apart(scene: &Scene, named: &SamPeer) {
    let mut callers = Vec::new();
    for port in [80, 81, scene::BLUE_PORT, 80] {
        callers.push(called_at(scene, named, ("keyed", port)).await);
    }
    let [red, red_elsewhere, blue, red_again] = callers.as_slice() else {
        panic!("four calls");
    };
    assert_eq!(red, red_elsewhere);
    assert_eq!(red, red_again);
    assert_ne!(red, blue);
}

async fn settings_reach_the_router(scene: &Scene, named: &SamPeer) {
    for (user, expected) in [("ann", (1, 4)), ("long", (2, 3)), ("none", (0, 1))] {
        let caller = called_by(scene, named, user).await;
        let (length, quantity) = expected;
        let expected = I2pTunnels {
            inbound: quantity,
            outbound: quantity,
            hops: 2 * quantity * length,
        };
        let what = format!("the tunnels of {user} to be {expected:?}");
        // A router builds the last ones again and again, until each of its hops agrees.
        let seen = until_within(PATIENCE, &what, async || {
            let tunnels = scene.network.tunnels(1, &caller).await.unwrap();
            tunnels.filter(|tunnels| *tunnels == expected)
        });
        seen.await.unwrap();
    }
}

async fn names_that_nobody_knows_are_told(scene: &Scene) {
    // RFC 1928: host unreachable, as for any name that is not found.
    assert_eq!(scene.ask("bare", "nobody-knows.i2p", 80).await, 4);
    assert_eq!(scene.ask("bare", "web.example", 80).await, 2);
    assert_eq!(scene.ask("bare", "127.0.0.1", 80).await, 2);
}

fn the_operator_sees_it(scene: &Scene, blog: &str) {
    let said = scene.publisher.cli(&["i2p", "status"]).unwrap();
    assert!(said.contains(&format!("blog at {blog}")), "{said}");
    assert!(said.contains("it answers"), "{said}");
    let said = scene.caller.cli(&["netcheck"]).unwrap();
    assert!(said.contains("i2p"), "{said}");
    let said = scene.caller.cli(&["status"]).unwrap();
    assert!(said.contains("sessions"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_for_i2p_survives_kill_9_and_flows_come_back_when_routers_do() {
    let mut scene = Scene::start().await;
    let blog = published(&scene.publisher, "blog").await;
    let page = format!("http://{blog}/");
    scene.until_served(&page).await;

    let key = scene.publisher.folder().join("data/i2p/blog.key");
    let mode = std::fs::metadata(&key).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let long = long_fetch(&scene, &blog).await;
    scene.network.kill(1).unwrap();
    ends_early(long).await;
    the_next_step_is_taken(&scene, &blog).await;
    scene.network.restart(1).await.unwrap();
    scene.until_served(&page).await;

    let long = long_fetch(&scene, &blog).await;
    scene.caller.kill().unwrap();
    ends_early(long).await;
    scene.caller.restart().await.unwrap();
    scene.until_served(&page).await;

    let long = long_fetch(&scene, &blog).await;
    scene.publisher.kill().unwrap();
    // Whether the caller is told depends on what its last tunnels still carry.
    brings_no_more(long).await;
    scene.publisher.restart().await.unwrap();
    assert_eq!(published(&scene.publisher, "blog").await, blog);
    scene.until_served(&page).await;

    let long = long_fetch(&scene, &blog).await;
    scene.network.kill_floodfill(0).unwrap();
    goes_on_or_ends(long).await;
    scene.until_served(&page).await;
    // A way that leads nowhere any more takes minutes to be given up each time.
    if is_soak() {
        scene.publisher.stop().await.unwrap();
        scene.publisher.restart().await.unwrap();
        assert_eq!(published(&scene.publisher, "blog").await, blog);
        scene.until_served(&page).await;
    }
    the_publishers_router_dies(&mut scene, &blog).await;
    if is_soak() {
        scene.network.restart(0).await.unwrap();
        assert_eq!(published(&scene.publisher, "blog").await, blog);
        scene.until_served(&page).await;
    }
}

/// The publisher's node is told at once, and tells the service. The caller is told when what it said was
/// sent again for minutes; who only listens never is, and leaves.
async fn the_publishers_router_dies(scene: &mut Scene, blog: &str) {
    let echo = published(&scene.publisher, "echo").await;
    let long = long_fetch(scene, blog).await;
    let mut asking = match is_soak() {
        true => Some(scene.open("ann", &echo, 7).await),
        false => None,
    };
    assert!(scene.visitors() > 0);
    scene.network.kill(0).unwrap();
    let left = async || (scene.visitors() == 0).then_some(());
    until("the service to be left", left).await.unwrap();
    unpublished(&scene.publisher, "blog").await;
    brings_no_more(long).await;
    if let Some(asking) = &mut asking {
        is_told(asking).await;
    }
    drop(asking);
    let over = async || {
        let flows = scene.caller.call("flows", json!({})).await.unwrap();
        (flows["open"] == 0).then_some(())
    };
    until("the caller's flows to end", over).await.unwrap();
}

/// Who goes on asking is told that nobody is there.
async fn is_told(stream: &mut TcpStream) {
    let what = "a flow that asks nobody to end";
    let told = until_within(TOLD_WITHIN, what, async || {
        if stream.write_all(b"?").await.is_err() {
            return Some(());
        }
        let read = stream.try_read(&mut [0; 64 << 10]);
        let is_over = match read {
            Ok(read) => read == 0,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        is_over.then_some(())
    });
    told.await.unwrap();
}

/// A fetch that is under way. Tunnels that were built anew may lose the first stream over them.
async fn long_fetch(scene: &Scene, blog: &str) -> TcpStream {
    let request = format!("GET /bytes/{LONG_PAGE_BYTES} HTTP/1.1\r\nHost: {blog}\r\n\r\n");
    let begun = until_within(PATIENCE, "a long fetch to begin", async || {
        let mut stream = scene.open("ann", blog, 80).await;
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut first = vec![0; 64 << 10];
        let read = timeout(LIMIT, stream.read_exact(&mut first)).await;
        read.ok()?.ok().map(|_| stream)
    });
    begun.await.unwrap()
}

async fn ends_early(stream: TcpStream) {
    let ended = timeout(PATIENCE, rest(stream, PATIENCE)).await;
    assert!(ended.expect("it hangs") < LONG_PAGE_BYTES / 2);
}

/// It ends or is silent.
async fn brings_no_more(stream: TcpStream) {
    assert!(rest(stream, Duration::from_secs(15)).await < LONG_PAGE_BYTES / 2);
}

/// Nobody is left waiting for what does not come.
async fn goes_on_or_ends(mut stream: TcpStream) {
    let (mut bytes, mut piece) = (0, vec![0; 64 << 10]);
    while bytes < MORE_BYTES {
        let read = timeout(PATIENCE, stream.read(&mut piece)).await;
        match read.expect("it hangs") {
            Ok(read @ 1..) => bytes += read,
            Ok(0) | Err(_) => return,
        }
    }
}

/// How many bytes come before its end, or before it is silent for so long.
async fn rest(mut stream: TcpStream, silence: Duration) -> usize {
    let mut piece = vec![0; 64 << 10];
    let mut bytes = 0;
    while let Ok(Ok(read @ 1..)) = timeout(silence, stream.read(&mut piece)).await {
        bytes += read;
    }
    bytes
}

async fn the_next_step_is_taken(scene: &Scene, blog: &str) {
    let mut events = scene.caller.events().await.unwrap();
    // What its rules block, once the router is not reached.
    assert_eq!(scene.ask("ann", blog, 80).await, 2);
    let refused = events.next(|event| event["kind"] == "flow-refused").await;
    let flow = refused.unwrap()["flow"].clone();
    let why = scene.caller.call("why", json!({ "flow": flow })).await;
    let steps = why.unwrap()["steps"].to_string();
    assert!(steps.contains("not reached"), "{steps}");
    assert!(steps.contains("block: no other way"), "{steps}");
}
