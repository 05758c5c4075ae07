//! Two ends of a link over TCP.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use tokio::task::JoinSet;
use wormholes_proto::{CarrierKind, NodeId, Reason, tcp::Order};

use super::{MAX_HANDSHAKES, SHARE, share_of};
use crate::{
    carrier::{Carrier, CloseCode, Link, LinkError, Standing, link::Connection},
    identity::Identity,
    pipe::{Pipe, PipeError},
    sources::Sources,
};

/// Two ends of a link, and what they stand on.
struct Pair {
    near: Link,
    far: Link,
    caller: Carrier,
    called: Arc<Carrier>,
}

fn bind(ip: [u8; 4]) -> (Identity, Carrier) {
    let identity = Identity::throw_away().unwrap();
    let carrier = Carrier::bind(
        &[(ip, 0).into()],
        &[CarrierKind::Tcp],
        &identity,
        Default::default(),
    );
    (identity, carrier.unwrap())
}

async fn pair() -> Pair {
    let ((_, caller), (id, called)) = (bind([127, 67, 0, 1]), bind([127, 67, 0, 2]));
    let called = Arc::new(called);
    let way = (CarrierKind::Tcp, called.listen_addresses()[0]);
    let (near, far) = tokio::join!(caller.dial(caller.myself(), id.id(), way), take(&called));
    // Further connections are taken as they come.
    let listener = Arc::clone(&called);
    tokio::spawn(async move {
        while let Some(incoming) = listener.accept().await {
            let taker = Arc::clone(&listener);
            tokio::spawn(async move { taker.handshake(incoming, |_| true).await.map(drop) });
        }
    });
    let (near, far) = (near.unwrap(), far.unwrap());
    Pair {
        near,
        far,
        caller,
        called,
    }
}

async fn take(called: &Carrier) -> Option<Link> {
    let incoming = called.accept().await?;
    called.handshake(incoming, |_| true).await.unwrap()
}

async fn say(pipe: &mut Pipe, text: &'static str) {
    let said = pipe.writer.write_chunk(Bytes::from_static(text.as_bytes()));
    said.await.unwrap();
}

async fn hear(pipe: &mut Pipe, len: usize) -> Bytes {
    pipe.reader.read_exact(len).await.unwrap()
}

/// A flow from `opener` to `taker`, with an exchange, ended well by both.
async fn flow(opener: &Link, taker: &Link) {
    let ask = async {
        let mut asked = opener.open().await.unwrap();
        say(&mut asked, "question").await;
        asked
    };
    let (mut asked, answered) = tokio::join!(ask, taker.accept());
    let mut answered = answered.unwrap();
    assert_eq!(hear(&mut answered, 8).await, "question");
    say(&mut answered, "answer").await;
    assert_eq!(hear(&mut asked, 6).await, "answer");
    asked.writer.finish().await.unwrap();
    assert_eq!(answered.reader.read_chunk().await, Ok(None));
    answered.writer.finish().await.unwrap();
    assert_eq!(asked.reader.read_chunk().await, Ok(None));
}

fn connections(link: &Link) -> usize {
    let Connection::Tcp(tcp) = link.connection() else {
        panic!("another carrier");
    };
    tcp.shared().connections()
}

#[tokio::test]
async fn flows_one_after_the_other_share_a_connection_in_either_direction() {
    let pair = pair().await;
    for _ in 0..5 {
        flow(&pair.near, &pair.far).await;
        flow(&pair.far, &pair.near).await;
    }
    assert_eq!(connections(&pair.near), 2, "one for each direction");
}

#[tokio::test]
async fn flows_at_once_have_connections_of_their_own() {
    let pair = pair().await;
    let all = (0..20).map(|_| async {
        tokio::join!(flow(&pair.near, &pair.far), flow(&pair.far, &pair.near));
    });
    futures_util::future::join_all(all).await;
    let made = connections(&pair.near);
    assert!((2..=40).contains(&made), "{made}");
}

#[tokio::test]
async fn a_flow_that_breaks_off_breaks_at_the_other_end_and_is_not_reused() {
    let pair = pair().await;
    let mut asked = pair.near.open().await.unwrap();
    say(&mut asked, "question").await;
    let mut answered = pair.far.accept().await.unwrap();
    assert_eq!(hear(&mut answered, 8).await, "question");
    drop(asked);
    assert_eq!(answered.reader.read_chunk().await, Err(PipeError::Reset));
    drop(answered);
    flow(&pair.near, &pair.far).await;
    assert_eq!(connections(&pair.near), 1);
}

#[tokio::test]
async fn bulk_arrives_as_it_was_sent() {
    let pair = pair().await;
    let mut asked = pair.near.open().await.unwrap();
    let bytes: Bytes = (0..1_000_000_u32).flat_map(u32::to_be_bytes).collect();
    let mut rest = bytes.clone();
    let mut sizes = [1, 7000, 9000, 200_000, 13, 16_384].into_iter().cycle();
    let send = async {
        while !rest.is_empty() {
            let mut chunks = [(); 3].map(|()| {
                let size = sizes.next().unwrap_or(1);
                rest.split_to(size.min(rest.len()))
            });
            asked.writer.write_chunks(&mut chunks).await.unwrap();
        }
        asked.writer.finish().await.unwrap();
    };
    let receive = async {
        let mut answered = pair.far.accept().await.unwrap();
        let mut all = Vec::new();
        while let Some(chunk) = answered.reader.read_chunk().await.unwrap() {
            all.extend_from_slice(&chunk);
        }
        all
    };
    let ((), all) = tokio::join!(send, receive);
    assert!(all == bytes, "the bytes are others");
}

#[tokio::test]
async fn who_closes_says_why() {
    for (code, why) in [
        (CloseCode::Denied, Some(Reason::Denied)),
        (CloseCode::Busy, Some(Reason::Busy)),
        (CloseCode::Done, None),
    ] {
        let pair = pair().await;
        let mut asked = pair.near.open().await.unwrap();
        say(&mut asked, "question").await;
        pair.far.close(code);
        let closed = pair.near.closed().await;
        match (closed, why) {
            (LinkError::Closed(said), Some(why)) => assert_eq!(said, why),
            (LinkError::Lost(_), None) => {}
            (closed, why) => panic!("{closed:?}, not {why:?}"),
        }
        assert!(asked.reader.read_chunk().await.is_err());
        assert!(pair.near.open().await.is_err() && pair.far.open().await.is_err());
    }
}

/// What relayed ends and onions do: the end of the stream lies unread when the last bytes go.
#[tokio::test]
async fn what_was_sent_to_a_good_end_arrives_though_the_other_end_was_not_read() {
    let pair = pair().await;
    let mut asked = pair.near.open().await.unwrap();
    say(&mut asked, "question").await;
    let mut answered = pair.far.accept().await.unwrap();
    assert_eq!(hear(&mut answered, 8).await, "question");
    asked.writer.finish().await.unwrap();
    let answer = Bytes::from(vec![7; 5 << 20]);
    let send = async {
        answered.writer.write_chunk(answer.clone()).await.unwrap();
        answered.writer.finish().await.unwrap();
        drop(answered);
    };
    let receive = async {
        let mut len = 0;
        while let Some(chunk) = asked.reader.read_chunk().await.unwrap() {
            len += chunk.len();
        }
        len
    };
    let ((), len) = tokio::join!(send, receive);
    assert_eq!(len, answer.len());
    drop(asked);
    flow(&pair.near, &pair.far).await;
    assert_eq!(connections(&pair.near), 1, "it takes the next flow");
}

#[tokio::test]
async fn a_burst_of_flows_on_a_new_link_waits_and_does_not_fail() {
    let pair = pair().await;
    pair.far.set_standing(Standing::Known, 0);
    let open = async |from: &Link| {
        let mut asked = from.open().await.unwrap();
        say(&mut asked, "x").await;
        asked
    };
    let opened = futures_util::future::join_all((0..300).map(|_| open(&pair.near)));
    let taken = async {
        let mut taken = Vec::new();
        for _ in 0..300 {
            taken.push(pair.far.accept().await.unwrap());
        }
        taken
    };
    let (opened, taken) = tokio::join!(opened, taken);
    assert_eq!((opened.len(), taken.len()), (300, 300));
    let back = futures_util::future::join_all((0..150).map(|_| open(&pair.far)));
    let taken = async {
        for _ in 0..150 {
            pair.near.accept().await.unwrap();
        }
    };
    tokio::join!(back, taken);
}

#[tokio::test]
async fn the_called_cannot_have_connections_made_without_end() {
    let pair = pair().await;
    let Connection::Tcp(far) = pair.far.connection() else {
        panic!("another carrier");
    };
    for _ in 0..50 {
        let _ = far.shared().order(Order::Want(u64::MAX));
        let _ = far.shared().order(Order::Places(u64::MAX));
    }
    flow(&pair.near, &pair.far).await;
    assert_eq!(connections(&pair.near), 1, "nobody serves what it begins");
    let serve = async {
        let _ = pair.near.accept().await;
    };
    let want = async {
        for _ in 0..200 {
            let _ = far.shared().order(Order::Want(u64::MAX));
            flow(&pair.near, &pair.far).await;
        }
    };
    tokio::select! {
        () = serve => panic!("nothing was begun"),
        () = want => {}
    }
    let made = connections(&pair.near);
    assert!((2..700).contains(&made), "{made}");
}

/// Flows let go of their connections while the link breaks them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_link_that_ends_with_many_flows_ends() {
    for _ in 0..5 {
        let pair = pair().await;
        pair.far.set_standing(Standing::Known, 0);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let mut asked = pair.near.open().await.unwrap();
            say(&mut asked, "x").await;
            let mut answered = pair.far.accept().await.unwrap();
            tasks.spawn(async move { while let Ok(Some(_)) = asked.reader.read_chunk().await {} });
            tasks.spawn(
                async move { while let Ok(Some(_)) = answered.reader.read_chunk().await {} },
            );
        }
        pair.far.close(CloseCode::Done);
        let ended = tokio::time::timeout(Duration::from_secs(20), tasks.join_all());
        ended.await.expect("all flows end");
        pair.near.closed().await;
    }
}

#[tokio::test]
async fn a_carrier_that_stops_takes_leave_of_all() {
    let pair = pair().await;
    pair.called.close().await;
    assert!(matches!(pair.near.closed().await, LinkError::Lost(_)));
    pair.caller.close().await;
}

#[tokio::test]
async fn what_is_beyond_the_standing_waits() {
    let pair = pair().await;
    let mut open = Vec::new();
    for _ in 0..super::FIRST_PLACES {
        let mut asked = pair.near.open().await.unwrap();
        say(&mut asked, "x").await;
        open.push((asked, pair.far.accept().await.unwrap()));
    }
    let mut next = pin!(flow(&pair.near, &pair.far));
    let quiet = tokio::time::timeout(Duration::from_millis(50), next.as_mut());
    assert!(quiet.await.is_err(), "there was no place");
    pair.far.set_standing(Standing::Known, 0);
    next.await;
    assert_eq!(connections(&pair.far), open.len() + 1);
}

#[tokio::test]
async fn another_node_is_not_taken_for_the_one_that_was_called() {
    let ((_, caller), (_, called)) = (bind([127, 67, 0, 1]), bind([127, 67, 0, 2]));
    let other = Identity::throw_away().unwrap().id();
    let way = (CarrierKind::Tcp, called.listen_addresses()[0]);
    let (dialled, taken) = tokio::join!(caller.dial(caller.myself(), other, way), async {
        called
            .handshake(called.accept().await.unwrap(), |_| true)
            .await
    });
    let error = dialled.unwrap_err();
    assert!(
        matches!(
            error,
            LinkError::Handshake {
                is_our_no: true,
                ..
            }
        ),
        "{error}"
    );
    assert!(taken.is_err());
}

#[tokio::test]
async fn who_says_nothing_makes_room() {
    let (identity, called) = bind([127, 67, 0, 2]);
    let address = called.listen_addresses()[0];
    let (_, caller) = bind([127, 67, 0, 1]);
    let called = Arc::new(called);
    let mut silent = Vec::new();
    let mut tasks = Vec::new();
    for _ in 0..MAX_HANDSHAKES / SHARE + 10 {
        silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
        let incoming = called.accept().await.unwrap();
        let taker = Arc::clone(&called);
        tasks.push(tokio::spawn(async move {
            taker.handshake(incoming, |_| true).await.map(drop)
        }));
    }
    drop(silent);
    for task in tasks {
        assert!(task.await.unwrap().is_err());
    }
    let way = (CarrierKind::Tcp, address);
    let (dialled, taken) = tokio::join!(
        caller.dial(caller.myself(), identity.id(), way),
        take(&called)
    );
    assert!(dialled.is_ok() && taken.is_some());
}

#[test]
fn all_strangers_share_a_quarter_of_the_descriptors() {
    for (limit, share) in [(Some(1024), 256), (Some(3), 0), (None, usize::MAX / SHARE)] {
        assert_eq!(share_of(limit), share, "{limit:?}");
    }
}

/// Takes all calls; links that they make live until it is dropped.
fn answer(called: Arc<Carrier>, peer: NodeId) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut links = JoinSet::new();
        while let Some(incoming) = called.accept().await {
            let taker = Arc::clone(&called);
            links.spawn(async move {
                let taken = taker.handshake(incoming, |id| *id == peer).await;
                if let Ok(Some(link)) = taken {
                    hear_all(link).await;
                }
            });
        }
    });
    tasks
}

/// Holds each flow until it ends.
async fn hear_all(link: Link) {
    let mut flows = JoinSet::new();
    while let Ok(mut pipe) = link.accept().await {
        flows.spawn(async move { while let Ok(Some(_)) = pipe.reader.read_chunk().await {} });
    }
}

#[tokio::test]
async fn strangers_find_few_places_over_all_links_that_peers_need_none_of() {
    let (identity, mut called) = bind([127, 67, 0, 2]);
    let places = Sources::new(3, 3);
    called.tcp.of_strangers = Arc::clone(&places);
    let called = Arc::new(called);
    let way = (CarrierKind::Tcp, called.listen_addresses()[0]);
    let [(_, stranger), (_, other), (friend, peer)] = [1, 3, 4].map(|n| bind([127, 67, 0, n]));
    let _answering = answer(Arc::clone(&called), friend.id());
    let dial = async |caller: &Carrier| {
        let dialled = caller.dial(caller.myself(), identity.id(), way);
        dialled.await.unwrap()
    };
    let refused = || called.counters.handshakes_failed.load(Relaxed);

    let link = dial(&stranger).await;
    let mut open = vec![begin(&link).await];
    until("both have a place", || places.taken() == 2).await;
    let second = dial(&other).await;
    until("all are taken", || places.taken() == 3).await;

    let mut flow = begin(&link).await;
    assert!(flow.reader.read_chunk().await.is_err(), "it was closed");
    assert!(matches!(
        dial(&other).await.closed().await,
        LinkError::Lost(_)
    ));
    assert_eq!((refused(), places.taken()), (2, 3));
    let known = dial(&peer).await;
    let flows = [begin(&known).await, begin(&known).await];
    until("peers are taken", || connections_at(&called) >= 3).await;
    assert_eq!((refused(), places.taken()), (2, 3));

    drop(second);
    until("whose link ends gives its place back", || {
        places.taken() == 2
    })
    .await;
    open.push(begin(&link).await);
    until("another takes it", || places.taken() == 3).await;
    drop(open);
    until("whose flow breaks too", || places.taken() == 1).await;
    drop(flows);
    called.close().await;
    until("and whoever is cut off", || places.taken() == 0).await;
    assert_eq!(refused(), 2);
}

/// Connections for flows that `called` took in.
fn connections_at(called: &Carrier) -> usize {
    let links = called.tcp.links.lock();
    let links = links.values().filter_map(std::sync::Weak::upgrade);
    links.map(|link| link.connections()).sum()
}

/// A flow that the other end heard of.
async fn begin(link: &Link) -> Pipe {
    let mut asked = link.open().await.unwrap();
    // Whether it is heard is for the caller to see.
    let said = asked.writer.write_chunk(Bytes::from_static(b"x"));
    let _ = said.await;
    asked
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let mut looks = tokio::time::interval(Duration::from_millis(2));
    let poll = async {
        while !condition() {
            looks.tick().await;
        }
    };
    let seen = tokio::time::timeout(Duration::from_secs(60), poll).await;
    assert!(seen.is_ok(), "{what}");
}
