//! Records from peers that lie.

use std::time::{Duration, SystemTime};

use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use wormholed::PeerConfig;
use wormholes_proto::{MAX_SET_RECORDS, NodeId, NodeRecord, Roles, SignedRecord, Suite};

use crate::support::*;

/// What a node that nobody runs says about itself, in due form: it is a hop.
fn invented_hop() -> SignedRecord {
    let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let key = Ed25519KeyPair::from_pkcs8(key.as_ref()).unwrap();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let record = NodeRecord {
        id: NodeId::from_bytes(key.public_key().as_ref().try_into().unwrap()),
        sequence: now.as_millis().try_into().unwrap(),
        addresses: vec!["192.0.2.1:4433".parse().unwrap()],
        noise_key: [1; 32],
        suite: Suite::AesGcm,
        onion_keys: Vec::new(),
        roles: Roles {
            hop: true,
            ..Roles::default()
        },
        exit_ports: Vec::new(),
        family: None,
        relays: Vec::new(),
    };
    let sign = |message: &[u8]| key.sign(message).as_ref().try_into().unwrap();
    record.sign(sign).unwrap()
}

/// Hops that the node knows from records.
fn hops_known(node: &Node) -> usize {
    let world = node.network.world();
    world.nodes().iter().filter(|node| node.roles.hop).count()
}

async fn learns(node: &Node, what: &str, mut all: impl FnMut() -> bool) {
    let learn = async {
        while !all() {
            node.network.refresh_records().await;
        }
    };
    let learned = tokio::time::timeout(Duration::from_secs(180), learn).await;
    assert!(learned.is_ok(), "{what}");
}

#[tokio::test]
async fn a_peer_that_invents_nodes_keeps_nobody_out() {
    let (liar, hub) = (node(171, |_| {}), node(172, |_| {}));
    let (victim, third) = (node(173, |_| {}), node(174, |_| {}));
    for _ in 0..5000 {
        liar.network.add_record(invented_hop());
    }
    // A set goes by ids, and a book that holds one more record of its own has no place for the last
    // of a full one, until it has not been told of another for a while.
    let honest = std::iter::repeat_with(invented_hop).filter(|hop| hop.id().as_bytes()[0] < 0xf0);
    let honest: Vec<SignedRecord> = honest.take(8).collect();
    for record in &honest {
        hub.network.add_record(record.clone());
    }
    liar.network.set_peers(&[peer(&victim)]);
    victim.network.set_peers(&[peer(&liar)]);
    let full = || hops_known(&victim) > MAX_SET_RECORDS - 10;
    learns(&victim, "all places are taken", full).await;

    // A peer that config.toml names and whose record has not come yet; and one that is honest.
    let friend = PeerConfig {
        name: "friend".to_owned(),
        id: honest[0].id(),
        addresses: Vec::new(),
        onions: Vec::new(),
        trust: 2,
        via: Vec::new(),
        register: false,
    };
    hub.network.set_peers(&[peer(&victim)]);
    victim
        .network
        .set_peers(&[peer(&liar), peer(&hub), friend, peer(&third)]);
    let knows_all = |node: &Node| {
        let world = node.network.world();
        let known = |record: &SignedRecord| {
            let view = world.by_id(&record.id());
            view.is_some_and(|view| view.roles.hop)
        };
        honest.iter().all(known)
    };
    learns(&victim, "here", || knows_all(&victim)).await;
    third.network.set_peers(&[peer(&victim)]);
    learns(&third, "at a third node", || knows_all(&third)).await;
    // And they stay when the liar speaks again.
    victim.network.refresh_records().await;
    assert!(knows_all(&victim));
}
