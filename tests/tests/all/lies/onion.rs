//! Onion circuits: routes and cells, sealed under the right keys, told by a stranger.

use quinn::Connection;
use wormholes_proto::{OnionKey, Open, SignedRecord, Transport, encode_open, onion::CREATE_BYTES};
use wormholes_tests::liar::{
    Lie, Told, ask, formats,
    onion::{Building, Layer, create},
    tell,
};

use super::Scene;

/// A small cell's payload, and what it takes on the wire.
const PAYLOAD_BYTES: usize = 384;
const CELL_BYTES: usize = 1 + 128 + PAYLOAD_BYTES;

/// A CREATE that tells its hop that it is the last.
pub(super) fn create_for_last(
    hop: &SignedRecord,
    key: &OnionKey,
) -> (Building, [u8; CREATE_BYTES]) {
    let route = formats::last_route(&[3; 32]).bytes();
    create(&hop.id(), key, &route).unwrap()
}

fn open_create(key: &OnionKey, slots: [u8; CREATE_BYTES]) -> Vec<u8> {
    encode_open(&Open::Create {
        key_id: key.key_id,
        slots: Box::new(slots),
    })
}

#[tokio::test]
async fn a_route_that_lies_leads_nowhere() {
    let scene = Scene::start(95).await;
    let stranger = scene.call(&scene.stranger).await;
    let hop = scene.record_of(scene.target.id()).await;
    let next = scene.record_of(scene.friend.id()).await;
    let key = hop.record().onion_keys[0];
    let on = formats::route(
        next.id().as_bytes(),
        scene.friend.listen().unwrap(),
        &next.record().onion_keys[0].key_id,
        &[3; 32],
    );
    for message in [on, formats::last_route(&[3; 32])] {
        let say = async |route: &[u8]| {
            let (_, slots) = create(&hop.id(), &key, route).unwrap();
            tell(&stranger, &open_create(&key, slots)).await.unwrap()
        };
        let (_, slots) = create(&hop.id(), &key, &message.bytes()).unwrap();
        let told = ask(&stranger, &open_create(&key, slots)).await.unwrap();
        assert!(matches!(told, Told::Accepted(..)), "{told:?}");
        let mut lies = message.lies(scene.cast());
        // The slot of a route has one size: nothing can stand behind it.
        lies.retain(|lie| lie.bytes.len() <= message.bytes().len());
        let say = async |lie: &Lie| match say(&lie.bytes).await {
            // That the hop behind failed is told inside, for the client alone.
            Told::Accepted(..) => Told::Broken,
            told @ (Told::Refused(_) | Told::Broken) => told,
        };
        scene.refuses(lies, say).await;
    }
    scene.is_well().await;
}

/// Builds a circuit, says this in it, and hears how many bytes come back.
async fn say_inside(
    connection: &Connection,
    hop: &SignedRecord,
    cells: impl FnOnce(&mut Layer) -> Vec<u8>,
) -> usize {
    let key = hop.record().onion_keys[0];
    let (building, slots) = create_for_last(hop, &key);
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&open_create(&key, slots)).await.unwrap();
    let mut answer = [0; 515];
    receive.read_exact(&mut answer).await.unwrap();
    let mut down = building.created(&answer[3..]).unwrap();
    let _had_enough = send.write_all(&cells(&mut down)).await;
    let _had_enough = send.finish();
    let mut back = 0;
    while let Ok(Some(chunk)) = receive.read_chunk(usize::MAX, true).await {
        back += chunk.bytes.len();
    }
    back
}

#[tokio::test]
async fn cells_that_lie_end_their_circuit() {
    let scene = Scene::start(100).await;
    let stranger = scene.call(&scene.stranger).await;
    let hop = scene.record_of(scene.target.id()).await;
    let open = formats::open(&Open::Exit(Transport::Tcp, scene.echo.address().into()));
    let first = formats::cell(1, &open.bytes(), PAYLOAD_BYTES);
    let data = formats::data_cell(b"to and fro", PAYLOAD_BYTES);
    let end = formats::cell(4, &[], PAYLOAD_BYTES);
    let [open_cell, data_cell, end_cell] = [&first, &data, &end].map(|cell| cell.bytes());
    let seal = |down: &mut Layer, payloads: &[&[u8]]| {
        let cells = payloads
            .iter()
            .map(|payload| down.cell(0, payload).unwrap());
        cells.collect::<Vec<_>>().concat()
    };
    let whole: [&[u8]; 3] = [&open_cell, &data_cell, &end_cell];
    let truth = say_inside(&stranger, &hop, |down| seal(down, &whole));
    assert_eq!(
        scene.takes(truth).await,
        3 * CELL_BYTES,
        "an answer, data and an end"
    );

    let inside = |lie: Lie| lie.inside(|open| formats::cell(1, &open, PAYLOAD_BYTES).bytes());
    let opens = open.lies(scene.cast()).into_iter().map(inside);
    let opens = opens.chain(first.lies(scene.cast())).collect();
    let say = async |lie: &Lie| {
        say_inside(&stranger, &hop, |down| seal(down, &[&lie.bytes])).await;
    };
    scene.counts(opens, say).await;
    let end_lies = end.lies(scene.cast());
    for (lies, rest) in [(data.lies(scene.cast()), &end_cell[..]), (end_lies, &[])] {
        let say = async |lie: &Lie| {
            say_inside(&stranger, &hop, |down| match rest {
                [] => seal(down, &[&open_cell, &lie.bytes]),
                end => seal(down, &[&open_cell, &lie.bytes, end]),
            })
            .await;
        };
        scene.counts(lies, say).await;
    }
    let say = async |lie: &Lie| {
        // The class and the slots stand before what is sealed.
        let cell = |down: &mut Layer| formats::sealed_cell(&down.cell(0, &open_cell).unwrap());
        let lied = |down: &mut Layer| lie.again(&cell(down), scene.cast());
        say_inside(&stranger, &hop, lied).await;
    };
    let sample = formats::sealed_cell(&vec![0; CELL_BYTES]);
    scene.counts(sample.lies(scene.cast()), say).await;
    scene.is_well().await;
}
