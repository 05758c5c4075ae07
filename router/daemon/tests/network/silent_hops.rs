//! First hops that keep silent, and paths to them that die.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use wormholes_proto::Remedy;
use wormholes_rules::Tunnel;

use crate::{support::*, wire::Wire};

/// Far more than a sign of life takes, and less than a part of the time that opening may take.
const LONG: Duration = Duration::from_secs(8);

/// A hop that exits, and is found at the end of a wire only.
async fn hop(number: u8) -> (Node, Wire) {
    let wire = Wire::new(number).await;
    let hop = node(number, |config| {
        config.hop.role = enabled();
        exits(config);
        config.node.advertise = vec![wire.address];
    });
    wire.lead_to(hop.network.listen_addresses()[0]);
    (hop, wire)
}

fn onion() -> Tunnel {
    Tunnel::Onion {
        hops: 1,
        via: None,
        to: None,
        exit: true,
        friends_only: false,
    }
}

#[tokio::test]
async fn a_circuit_that_was_built_ahead_over_a_path_that_died_holds_its_flow_up_for_a_moment() {
    let echo = echo_server().await;
    let client = node(220, |_| {});
    let hops = [hop(221).await, hop(222).await];
    for (hop, _) in &hops {
        client.network.add_record(hop.network.own_record());
    }
    let network = &client.network;
    let (tunnel, request) = (onion(), request(echo));
    let open = || network.open(&tunnel, &request);
    let first = open().await.unwrap();
    open().await.unwrap();
    let built = || network.counters().circuits_built.load(Relaxed);
    until("one is built ahead", || built() == 3).await;
    for (hop, wire) in &hops {
        if first.path == [hop.network.id()] {
            wire.cut();
        }
    }
    let start = Instant::now();
    let opened = open().await.unwrap();
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
    assert_ne!(opened.path, first.path);
    assert_eq!(exchange(opened, b"found").await.unwrap(), b"found");
}

#[tokio::test]
async fn where_a_next_step_waits_a_silent_first_hop_is_dialled_for_no_longer_than_patience() {
    let client = node(223, |_| {});
    let (hop, wire) = hop(224).await;
    wire.cut();
    client.network.add_record(hop.network.own_record());
    let mut request = request(closed_port().await);
    let patience = Duration::from_millis(1500);
    request.patience = Some(patience);
    let start = Instant::now();
    let error = client.network.open(&onion(), &request).await.unwrap_err();
    // A handshake alone would be tried for five seconds.
    assert!(start.elapsed() < patience * 5 / 2, "{:?}", start.elapsed());
    assert_eq!(error.node(), Some(hop.network.id()), "{error}");
    assert_eq!(error.kind().remedy, Remedy::OtherTunnel);
}

#[tokio::test]
async fn the_dial_to_a_first_hop_goes_on_for_the_next_flow() {
    let echo = echo_server().await;
    let client = node(225, |_| {});
    let (hop, wire) = hop(226).await;
    wire.cut();
    client.network.add_record(hop.network.own_record());
    let mut request = request(echo);
    request.patience = Some(Duration::ZERO);
    let tunnel = onion();
    let open = || client.network.open(&tunnel, &request);
    assert!(open().await.is_err(), "nobody waits for the dial");
    until("the hop is dialled", || wire.called() > 0).await;
    wire.mend();
    let before = wire.called();
    until("it is dialled still", || wire.called() > before).await;
    let mut tries = tokio::time::interval(Duration::from_millis(50));
    let opened = async {
        loop {
            tries.tick().await;
            if let Ok(opened) = open().await {
                return opened;
            }
        }
    };
    let opened = within(opened).await;
    assert_eq!(exchange(opened, b"next").await.unwrap(), b"next");
}
