//! Nodes that are no peers: how long this node stays connected to them.

use std::{sync::Arc, time::Duration};

use wormholed::{NetworkOptions, OpenGate};
use wormholes_rules::Tunnel;

use crate::support::*;

fn is_connected(node: &Node, to: &Node) -> bool {
    let world = node.network.world();
    world
        .by_id(&to.network.id())
        .is_some_and(|view| view.online)
}

#[tokio::test]
async fn a_hop_keeps_no_connection_that_it_only_passed_circuits_to() {
    let echo = echo_server().await;
    let client = node(181, |_| {});
    let options = NetworkOptions {
        idle_timeout: Some(Duration::from_millis(300)),
        ..NetworkOptions::default()
    };
    let as_hop = |config: &mut wormholed::Config| config.hop.role = enabled();
    let hop = guarded_node(182, as_hop, Arc::new(OpenGate), options);
    let [behind, unused] = [183, 184].map(|number| {
        node(number, |config| {
            config.hop.role = enabled();
            exits(config);
        })
    });
    client.network.set_peers(&[peer(&hop)]);
    for node in [&hop, &behind] {
        client.network.add_record(node.network.own_record());
    }
    for stranger in [&behind, &unused] {
        hop.network.add_record(stranger.network.own_record());
    }
    let tunnel = Tunnel::Onion {
        hops: 2,
        via: Some(hop.network.id()),
        to: Some(behind.network.id()),
        exit: true,
        friends_only: false,
    };
    let opened = client.network.open(&tunnel, &request(echo)).await.unwrap();
    assert!(is_connected(&hop, &behind));

    hop.network.ping(unused.network.id()).await.unwrap();
    until("the unused connection closes", || {
        !is_connected(&hop, &unused)
    })
    .await;
    // The circuit was as quiet as that, and holds its connection.
    assert!(is_connected(&hop, &behind));
    assert_eq!(exchange(opened, b"late").await.unwrap(), b"late");
    client.network.shutdown().await;
    until("the connection that nobody uses closes", || {
        !is_connected(&hop, &behind)
    })
    .await;
}
