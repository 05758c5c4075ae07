//! A liar that is not who it says it is: calling the target, and called by it.

use std::net::Ipv4Addr;

use wormholes_proto::NodeId;
use wormholes_tests::{Identity, LIMIT, Metrics, Setup, liar::Liar, until};

use super::Scene;

/// Handshakes that broke, in and out.
const COUNTER: &str = "wormholes_peer_refusals_total{what=\"handshake\"}";
/// What stands before the 32 bytes of a key (RFC 8410, section 4).
const PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

fn public_key(id: NodeId) -> Vec<u8> {
    [&PREFIX[..], id.as_bytes()].concat()
}

/// What a liar shows instead of its own key, by name. It signs with its own.
fn claims(other: NodeId) -> Vec<(&'static str, Vec<u8>)> {
    let certificate = rcgen::generate_simple_self_signed(["node".to_owned()]).unwrap();
    let key = public_key(other);
    vec![
        ("the key of another node", key.clone()),
        (
            "32 bytes that are no key",
            public_key(NodeId::from_bytes([2; 32])),
        ),
        ("half a key", key[..28].to_vec()),
        ("a key and more", [&key[..], &[0]].concat()),
        ("nothing", Vec::new()),
        ("a certificate", certificate.cert.der().to_vec()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_shows_what_is_not_its_key_is_refused_and_counted() {
    let scene = Scene::start(170).await;
    let honest = Liar::new(Ipv4Addr::LOCALHOST).unwrap();
    scene.takes(scene.call(&honest)).await;
    for (claim, shown) in claims(scene.friend.id()) {
        let before = Metrics::read(&scene.target).await.unwrap().sum(COUNTER);
        let liar = Liar::showing(Ipv4Addr::LOCALHOST, shown).unwrap();
        // Its own part of the handshake is done before it is judged.
        if let Ok(connection) = liar.call(scene.target.listen().unwrap()).await {
            let closed = tokio::time::timeout(LIMIT, connection.closed()).await;
            assert!(closed.is_ok(), "{claim}: taken");
        }
        let counted = until("a handshake to be refused", async || {
            let now = Metrics::read(&scene.target).await.ok()?.sum(COUNTER);
            (now > before).then_some(())
        });
        assert!(counted.await.is_ok(), "{claim}");
    }
    scene.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_answers_with_what_is_not_the_key_that_was_called_is_refused_and_counted() {
    let wanted = Identity::generate().unwrap();
    let own_key = Liar::new(Ipv4Addr::LOCALHOST).unwrap();
    let mut answering = vec![("its own key", own_key)];
    for (claim, shown) in claims(wanted.id()) {
        answering.push((claim, Liar::showing(Ipv4Addr::LOCALHOST, shown).unwrap()));
    }
    for (claim, liar) in answering {
        let address = liar.address().unwrap();
        let answers = tokio::spawn(async move {
            loop {
                let _broken = liar.called().await;
            }
        });
        let caller = Setup::new("caller")
            .unwrap()
            .config("[metrics]\nlisten = \"127.0.0.1:0\"")
            .peer_id(
                "wanted",
                wanted.id(),
                2,
                &format!("addresses = [\"{address}\"]"),
            )
            .start()
            .await
            .unwrap();
        let counted = until("a handshake to be refused", async || {
            let metrics = Metrics::read(&caller).await.ok()?;
            assert_eq!(metrics.get("wormholes_peers_connected"), 0.0, "{claim}");
            (metrics.sum(COUNTER) > 0.0).then_some(())
        });
        assert!(counted.await.is_ok(), "{claim}");
        answers.abort();
    }
}
