//! A liar that begins and says no more, and one that takes and never reads.

use std::{sync::Arc, time::Instant};

use futures_util::{
    FutureExt,
    future::{join_all, select_all},
};
use quinn::{Connection, RecvStream, SendStream};
use serde_json::json;
use wormholes_proto::{MAX_RECORD_BYTES, MAX_SET_RECORDS, Open, encode_open};
use wormholes_tests::{
    Identity, LIMIT, Metrics,
    liar::{Asked, formats, sign_record},
    until,
};

use super::{MAX_GROWTH_BYTES, Scene, answers::Asking, opens::opens};

/// Streams that a friend may have open at once, as far as it is known here.
const STREAMS: usize = 20;

/// A stream on which something was begun.
async fn begin(connection: &Connection, bytes: &[u8]) -> (SendStream, RecvStream) {
    let (mut send, receive) = connection.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    (send, receive)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_begun_and_not_ended_is_refused_in_time() {
    let scene = Scene::start(152).await;
    let friend = scene.call(&scene.liar).await;
    let stranger = scene.call(&scene.stranger).await;
    let before = Metrics::read(&scene.target).await.unwrap();
    let mut begun = Vec::new();
    for (open, _) in opens(&scene).await {
        let lies = formats::open(&open).lies(scene.cast());
        for lie in lies.iter().filter(|lie| lie.name.contains("cut off")) {
            begun.push(begin(&friend, &lie.bytes).await);
            begun.push(begin(&stranger, &lie.bytes).await);
        }
    }
    // A relay that brings a caller who says half a word.
    let relayed = encode_open(&Open::Relayed);
    for len in [0, 1, 700] {
        let bytes = [&relayed[..], &vec![1; len]].concat();
        begun.push(begin(&friend, &bytes).await);
    }
    until("all that was begun to be refused", async || {
        let now = Metrics::read(&scene.target).await.ok()?;
        (now.refusals() - before.refusals() >= begun.len()).then_some(())
    })
    .await
    .unwrap();
    scene.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_asked_and_says_nothing_is_waited_for_no_longer_than_planned() {
    let scene = Asking::start(156).await;
    scene.react(|asked: Asked| async move {
        std::future::pending::<()>().await;
        asked.refuse().await
    });
    let start = Instant::now();
    let ways = ["service", "exit", "relay", "onion", "name"];
    let fetched = join_all(ways.map(|way| scene.fetch_impatiently(way))).await;
    assert_eq!(fetched, [const { None }; 5]);
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    scene.is_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_not_used_and_sets_that_are_not_read_fill_nothing() {
    let scene = Asking::start(164).await;
    let before = scene.client.resident_bytes().unwrap();
    let grown = || {
        scene
            .client
            .resident_bytes()
            .unwrap()
            .saturating_sub(before)
    };
    let set: Arc<[u8]> = invented_records(&scene).into();
    scene.server.react(move |mut asked: Asked| {
        let set = Arc::clone(&set);
        async move {
            asked.grant().await?;
            asked.say(&set).await
        }
    });
    let friend = scene
        .server
        .liar()
        .call(scene.client.listen().unwrap())
        .await
        .unwrap();
    scene.server.adopt(friend.clone());
    until("the node to know as many as it may", async || {
        let peers = scene.client.call("peers", json!({})).await.ok()?;
        (peers.get("peers")?.as_array()?.len() > MAX_SET_RECORDS - 10).then_some(())
    })
    .await
    .unwrap();
    let book = grown();
    eprintln!("full book: {} KiB more", book >> 10);

    let records = encode_open(&Open::Records);
    let mut begun = join_all((0..STREAMS).map(|_| begin(&friend, &records))).await;
    // They share a window, which the first to be answered may fill.
    let heard = begun
        .iter_mut()
        .map(|(_, receive)| async move { receive.read_exact(&mut [0; 3]).await.unwrap() }.boxed());
    select_all(heard).await;
    assert!(grown() < MAX_GROWTH_BYTES, "grew by {} bytes", grown());
    eprintln!("unread sets: {} KiB more", grown() >> 10);
    drop(begun);
    let begun = join_all((0..STREAMS).map(|_| begin(&friend, &[0]))).await;
    eprintln!("silent: {} KiB more", grown() >> 10);
    drop(begun);
    scene.is_well();
}

/// Of as many nodes as a book holds, none of which there is; each as long as may be.
fn invented_records(scene: &Asking) -> Vec<u8> {
    let template = formats::record(&scene.server.liar().record().unwrap()).bytes();
    let invented = |_| {
        let identity = Identity::generate().unwrap();
        let mut body = template.clone();
        body[1..33].copy_from_slice(identity.id().as_bytes());
        body.resize(MAX_RECORD_BYTES - 64, 0);
        formats::set(&sign_record(&identity, &body)).bytes()
    };
    (0..MAX_SET_RECORDS).flat_map(invented).collect()
}
