//! Trunks of plugins: who gets them, how many, and what is said where nobody takes them.

use std::sync::atomic::Ordering::Relaxed;

use wormholed::{OpenError, Opened, PeerConfig};
use wormholes_proto::{NodeId, Reason, Transport};
use wormholes_rules::Tunnel;

use crate::support::*;

/// As many as one node may have.
const MAX_OF_ONE: usize = 64;

async fn open(from: &Node, to: &Node) -> Result<Opened, OpenError> {
    let tunnel = Tunnel::Direct {
        to: Some(to.network.id()),
        exit: false,
    };
    within(from.network.open(&tunnel, &trunk_request())).await
}

fn reason(refused: Result<Opened, OpenError>) -> Reason {
    match refused {
        Err(OpenError::Refused { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_peers_trunk_is_handed_over_with_its_node_id() {
    let (client, server) = (node(181, |_| {}), node(182, |_| {}));
    befriend(&[&client, &server]);
    let callers = answer_trunks(&server);
    let opened = open(&client, &server).await.unwrap();
    let bytes = noise(300_000);
    assert_eq!(exchange(opened, &bytes).await, Ok(bytes));
    let callers = callers.lock().unwrap().clone();
    assert_eq!(callers, [Some(client.network.id())]);
}

#[tokio::test]
async fn where_no_plugins_run_trunks_are_refused_as_any_unknown_service() {
    let (client, server) = (node(183, |_| {}), node(184, |_| {}));
    befriend(&[&client, &server]);
    assert_eq!(reason(open(&client, &server).await), Reason::NoService);

    let callers = answer_trunks(&server);
    let udp = wormholed::TunnelRequest {
        transport: Transport::Udp,
        ..trunk_request()
    };
    let tunnel = Tunnel::Direct {
        to: Some(server.network.id()),
        exit: false,
    };
    let datagrams = within(client.network.open(&tunnel, &udp)).await;
    assert_eq!(reason(datagrams), Reason::NoService, "a trunk is a stream");
    assert!(callers.lock().unwrap().is_empty());
}

#[tokio::test]
async fn one_node_has_so_many_trunks_and_takes_none_from_others() {
    let (client, other, server) = (node(185, |_| {}), node(186, |_| {}), node(187, |_| {}));
    befriend(&[&client, &other, &server]);
    answer_trunks(&server);
    let mut trunks = Vec::new();
    for _ in 0..MAX_OF_ONE {
        trunks.push(open(&client, &server).await.unwrap());
    }
    assert_eq!(reason(open(&client, &server).await), Reason::Busy);
    assert!(open(&other, &server).await.is_ok());

    drop(trunks);
    let active = || server.network.counters().service.active.load(Relaxed);
    until("the places are given back", || active() == 0).await;
    assert!(open(&client, &server).await.is_ok());
}

#[tokio::test]
async fn a_stop_ends_trunks_since_none_ends_by_itself() {
    let (client, server) = (node(188, |_| {}), node(189, |_| {}));
    befriend(&[&client, &server]);
    answer_trunks(&server);
    let mut trunk = open(&client, &server).await.unwrap();
    within(server.network.drain()).await;
    let end = within(pipe(&mut trunk).reader.read_chunk()).await;
    assert!(end.is_err(), "{end:?}");
}

#[tokio::test]
async fn a_trunk_through_a_relay_is_that_of_the_node_behind_it() {
    let client = node(201, |_| {});
    let relay = node(202, |config| config.relay = enabled());
    let server = node(203, |config| config.node.listen.clear());
    let via_relay = PeerConfig {
        via: vec![relay.name.clone()],
        ..peer(&server)
    };
    client.network.set_peers(&[peer(&relay), via_relay]);
    relay.network.set_peers(&[peer(&client), peer(&server)]);
    let registers = PeerConfig {
        register: true,
        ..peer(&relay)
    };
    server.network.set_peers(&[registers, peer(&client)]);
    let id = server.network.id();
    let is_registered = || relay.network.registered().contains(&id);
    until("the server is registered", is_registered).await;
    let relayed = Tunnel::Relay {
        via: Some(relay.network.id()),
        to: id,
        exit: false,
    };
    let caller = Some(client.network.id());
    assert_eq!(caller_seen(&client, &relayed, &server).await, caller);
}

#[tokio::test]
async fn a_trunk_over_an_onion_is_nobodys() {
    let client = node(204, |_| {});
    let [hop, server] = [205, 206].map(|n| node(n, |config| config.hop.role = enabled()));
    befriend(&[&client, &hop, &server]);
    client.network.refresh_records().await;
    let onion = Tunnel::Onion {
        hops: 2,
        via: Some(hop.network.id()),
        to: Some(server.network.id()),
        exit: false,
        friends_only: false,
    };
    assert_eq!(caller_seen(&client, &onion, &server).await, None);
}

/// Who the server is told is at the other end of a trunk.
async fn caller_seen(client: &Node, tunnel: &Tunnel, server: &Node) -> Option<NodeId> {
    let callers = answer_trunks(server);
    let opened = within(client.network.open(tunnel, &trunk_request())).await;
    let bytes = noise(50_000);
    assert_eq!(exchange(opened.unwrap(), &bytes).await, Ok(bytes));
    let callers = callers.lock().unwrap().clone();
    assert_eq!(callers.len(), 1);
    callers[0]
}
