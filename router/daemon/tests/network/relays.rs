//! Relays that keep silent: those that stand in for each other, and paths that die.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, pending},
};
use wormholed::{
    ConnectError, Gatekeeper, LinkError, NetworkOptions, OpenError, PeerConfig, TunnelRequest,
};
use wormholes_proto::{CarrierKind, Reason};
use wormholes_rules::{Allowance, ExitRequest, NodeView, RelayRequest, RuleEvent, Tunnel, Verdict};

use crate::{support::*, wire::Wire};

/// Far more than any step takes, and less than a dial to a node that keeps silent.
const LONG_PATIENCE: Duration = Duration::from_secs(4);

/// A client whose friend is registered with the last of its relays; the others keep silent.
struct Scene {
    client: Node,
    friend: Node,
    relay: Node,
    _silent: Vec<(Node, std::net::UdpSocket)>,
}

async fn scene(number: u8, n_silent: u8) -> Scene {
    let echo = echo_server().await;
    let client = node(number, |_| {});
    let relay = node(number + 1, |config| config.relay = enabled());
    let friend = node(number + 2, |config| {
        config.node.listen.clear();
        config.services = vec![service("echo", echo)];
    });
    let silent: Vec<_> = (0..n_silent)
        .map(|_| {
            let socket = std::net::UdpSocket::bind((client_ip(number), 0)).unwrap();
            let advertise = socket.local_addr().unwrap();
            let silent = node(number + 3, |config| {
                config.node.listen.clear();
                config.node.advertise = vec![advertise];
            });
            (silent, socket)
        })
        .collect();
    register(&friend, &relay, &client).await;
    let relays = silent.iter().map(|(node, _)| node).chain([&relay]);
    // Their records alone say where they are: none is connected to before it is needed.
    let mut peers: Vec<PeerConfig> = Vec::new();
    for (place, relay) in relays.enumerate() {
        client.network.add_record(relay.network.own_record());
        peers.push(PeerConfig {
            name: format!("relay{place}"),
            addresses: Vec::new(),
            ..peer(relay)
        });
    }
    let via = peers.iter().map(|relay| relay.name.clone()).collect();
    peers.push(PeerConfig {
        via,
        ..peer(&friend)
    });
    client.network.set_peers(&peers);
    Scene {
        client,
        friend,
        relay,
        _silent: silent,
    }
}

async fn register(friend: &Node, relay: &Node, client: &Node) {
    relay.network.set_peers(&[peer(client), peer(friend)]);
    let mut registered = peer(relay);
    registered.register = true;
    friend.network.set_peers(&[registered, peer(client)]);
    let id = friend.network.id();
    until("the friend is registered", || {
        relay.network.registered().contains(&id)
    })
    .await;
}

fn client_ip(number: u8) -> std::net::IpAddr {
    std::net::Ipv4Addr::new(127, number, 0, 1).into()
}

fn relayed(friend: &Node, exit: bool) -> Tunnel {
    Tunnel::Relay {
        via: None,
        to: friend.network.id(),
        exit,
    }
}

#[tokio::test]
async fn relays_that_keep_silent_do_not_hide_one_that_works() {
    for knows_friend in [true, false] {
        let scene = scene(200, 2).await;
        if knows_friend {
            let record = scene.friend.network.own_record();
            scene.client.network.add_record(record);
        }
        let mut request = service_request("echo");
        request.patience = Some(LONG_PATIENCE);
        let start = Instant::now();
        let tunnel = relayed(&scene.friend, false);
        let opened = scene.client.network.open(&tunnel, &request).await.unwrap();
        assert!(start.elapsed() < LONG_PATIENCE, "{:?}", start.elapsed());
        assert_eq!(opened.path, ids(&[&scene.relay, &scene.friend]));
        assert_eq!(exchange(opened, b"found").await.unwrap(), b"found");
    }
}

#[tokio::test]
async fn a_relay_that_does_not_know_the_friend_hides_none_that_does() {
    let scene = scene(227, 0).await;
    let other = node(230, |config| config.relay = enabled());
    other.network.set_peers(&[peer(&scene.client)]);
    let network = &scene.client.network;
    network.add_record(other.network.own_record());
    let named = |relay: &Node| PeerConfig {
        addresses: Vec::new(),
        ..peer(relay)
    };
    let friend_as_peer = PeerConfig {
        via: vec![other.name.clone(), scene.relay.name.clone()],
        ..peer(&scene.friend)
    };
    network.set_peers(&[named(&other), named(&scene.relay), friend_as_peer]);
    network.ping(other.network.id()).await.unwrap();
    let tunnel = relayed(&scene.friend, false);
    let opened = network.open(&tunnel, &service_request("echo")).await;
    let opened = opened.unwrap();
    assert_eq!(opened.path, ids(&[&scene.relay, &scene.friend]));
    assert_eq!(exchange(opened, b"found").await.unwrap(), b"found");
}

#[tokio::test]
async fn relays_that_keep_silent_are_waited_for_once_and_not_each() {
    let scene = scene(205, 4).await;
    let network = &scene.client.network;
    network.add_record(scene.friend.network.own_record());
    let mut request = service_request("echo");
    let patience = Duration::from_millis(1500);
    request.patience = Some(patience);
    let start = Instant::now();
    let opened = network.open(&relayed(&scene.friend, false), &request).await;
    let error = opened.unwrap_err();
    let slow = matches!(
        error,
        OpenError::Connect {
            source: ConnectError::Slow,
            ..
        }
    );
    assert!(slow, "{error}");
    assert!(start.elapsed() < patience * 3, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_friend_that_is_silent_for_a_moment_is_waited_for() {
    let echo = echo_server().await;
    let wire = Wire::new(214).await;
    let client = node(215, |_| {});
    let relay = node(216, |config| config.relay = enabled());
    wire.lead_to(relay.network.listen_addresses()[0]);
    let friend = node(217, |config| {
        config.node.listen.clear();
        config.services = vec![service("echo", echo)];
    });
    relay.network.set_peers(&[peer(&client), peer(&friend)]);
    let by_wire = PeerConfig {
        addresses: vec![wire.address],
        register: true,
        ..peer(&relay)
    };
    let client_as_peer = PeerConfig {
        addresses: Vec::new(),
        ..peer(&client)
    };
    let friends_peers = [by_wire, client_as_peer];
    friend.network.set_peers(&friends_peers);
    let id = friend.network.id();
    until("the friend is registered", || {
        relay.network.registered().contains(&id)
    })
    .await;
    let friend_as_peer = PeerConfig {
        via: vec![relay.name.clone()],
        ..peer(&friend)
    };
    client.network.set_peers(&[peer(&relay), friend_as_peer]);
    let (tunnel, request) = (relayed(&friend, false), service_request("echo"));
    let open = || client.network.open(&tunnel, &request);
    open().await.unwrap();

    wire.cut();
    let start = Instant::now();
    let refused = open().await.unwrap_err();
    let is_away = matches!(refused.reason(), Reason::NoNode | Reason::Unreachable);
    assert!(is_away, "{refused}");
    assert!(start.elapsed() < LONG_PATIENCE, "{:?}", start.elapsed());
    // A machine with other work may take longer than the relay waits.
    for _ in 0..5 {
        wire.cut();
        let (opened, ()) = tokio::join!(open(), async {
            let is_asked = || relay.network.relay_status().active > 0;
            until("the relay is asked", is_asked).await;
            wire.mend();
            // Says a word: its record is new.
            friend.network.set_peers(&friends_peers);
        });
        if let Ok(opened) = opened {
            let answer = exchange(opened, b"back").await.unwrap();
            assert_eq!(answer, b"back");
            return;
        }
    }
    panic!("never waited for");
}

#[tokio::test]
async fn a_friend_whose_udp_dies_is_reached_over_the_tcp_that_stands() {
    let echo = echo_server().await;
    let wire = Wire::new(238).await;
    let client = node(239, |_| {});
    let relay = node(240, |config| config.relay = enabled());
    wire.lead_to(relay.network.listen_addresses()[0]);
    let friend = node(241, |config| {
        config.node.listen.clear();
        config.services = vec![service("echo", echo)];
    });
    relay.network.set_peers(&[peer(&client), peer(&friend)]);
    let mut relay_as_peer = peer(&relay);
    relay_as_peer.register = true;
    relay_as_peer.addresses.insert(0, wire.address);
    friend.network.set_peers(&[relay_as_peer, peer(&client)]);
    let id = friend.network.id();
    until("the friend is registered", || {
        relay.network.registered().contains(&id)
    })
    .await;
    let to_the_relay = Tunnel::Direct {
        to: Some(relay.network.id()),
        exit: false,
    };
    let over_tcp = TunnelRequest {
        carrier: Some(CarrierKind::Tcp),
        ..service_request("none")
    };
    let there = friend.network.open(&to_the_relay, &over_tcp).await;
    let there = there.unwrap_err();
    assert_eq!(there.reason(), Reason::NoService, "{there}");
    assert_eq!(relay.network.carrier_to(&id), Some(CarrierKind::Quic));
    let friend_as_peer = PeerConfig {
        via: vec![relay.name.clone()],
        ..peer(&friend)
    };
    client.network.set_peers(&[peer(&relay), friend_as_peer]);

    client.network.add_record(friend.network.own_record());
    wire.cut();
    let (tunnel, request) = (relayed(&friend, false), service_request("echo"));
    let opened = client.network.open(&tunnel, &request).await.unwrap();
    assert_eq!(exchange(opened, b"alive").await.unwrap(), b"alive");
}

#[tokio::test]
async fn a_next_step_waits_for_no_relay_that_was_asked_late() {
    let client = node(231, |_| {});
    let friend = node(232, |config| config.node.listen.clear());
    let (mut relays, mut by_wire) = (Vec::new(), Vec::new());
    for number in 233..237 {
        let relay = node(number, |config| config.relay = enabled());
        relay.network.set_peers(&[peer(&client), peer(&friend)]);
        let wire = Wire::new(number).await;
        wire.lead_to(relay.network.listen_addresses()[0]);
        by_wire.push(PeerConfig {
            addresses: vec![wire.address],
            register: true,
            ..peer(&relay)
        });
        relays.push((relay, wire));
    }
    by_wire.push(PeerConfig {
        addresses: Vec::new(),
        ..peer(&client)
    });
    friend.network.set_peers(&by_wire);
    let id = friend.network.id();
    let registered = |(relay, _): &(Node, Wire)| relay.network.registered().contains(&id);
    until("the friend is registered", || relays.iter().all(registered)).await;
    let mut peers: Vec<_> = relays.iter().map(|(relay, _)| peer(relay)).collect();
    peers.push(PeerConfig {
        via: peers.iter().map(|relay| relay.name.clone()).collect(),
        ..peer(&friend)
    });
    client.network.set_peers(&peers);
    let (tunnel, mut request) = (relayed(&friend, false), service_request("none"));
    let there = client.network.open(&tunnel, &request).await.unwrap_err();
    assert_eq!(there.reason(), Reason::NoService, "{there}");

    relays.iter().for_each(|(_, wire)| wire.cut());
    request.patience = Some(Duration::from_millis(1500));
    let late = client.network.open(&tunnel, &request).await.unwrap_err();
    // Each would have said that the friend is away, the last one in its own time.
    assert!(matches!(late, OpenError::TimedOut(_)), "{late}");
}

/// Takes its time to decide what it exits to.
#[derive(Debug)]
struct Undecided;

impl Gatekeeper for Undecided {
    fn accept(&self, _node: Arc<NodeView>) -> BoxFuture<'_, Verdict> {
        said(Verdict::Allow(Allowance::default()))
    }

    fn relay(&self, _request: RelayRequest) -> BoxFuture<'_, Verdict> {
        said(Verdict::Allow(Allowance::default()))
    }

    fn exit(&self, _request: ExitRequest) -> BoxFuture<'_, Verdict> {
        pending().boxed()
    }

    fn event(&self, _event: RuleEvent) {}
}

#[tokio::test]
async fn a_relay_that_falls_silent_ends_what_is_asked_through_it() {
    let wire = Wire::new(210).await;
    let client = node(211, |_| {});
    let relay = node(212, |config| {
        config.relay = enabled();
        config.node.advertise = vec![wire.address];
    });
    wire.lead_to(relay.network.listen_addresses()[0]);
    let friend = guarded_node(
        213,
        |config| {
            config.node.listen.clear();
            exits(config);
        },
        Arc::new(Undecided),
        NetworkOptions::default(),
    );
    register(&friend, &relay, &client).await;
    let relay_as_peer = PeerConfig {
        addresses: vec![wire.address],
        ..peer(&relay)
    };
    let friend_as_peer = PeerConfig {
        via: vec![relay.name.clone()],
        ..peer(&friend)
    };
    client.network.set_peers(&[relay_as_peer, friend_as_peer]);
    let tunnel = relayed(&friend, true);
    let request = request(closed_port().await);
    let is_asked = || friend.network.exit_status().active > 0;
    let (opened, ()) = tokio::join!(client.network.open(&tunnel, &request), async {
        until("the friend is asked", is_asked).await;
        wire.cut();
    });
    let error = opened.unwrap_err();
    let OpenError::Connect { node, source } = &error else {
        panic!("{error}");
    };
    assert_eq!(node.id, relay.network.id());
    let silent = matches!(source, ConnectError::Link(LinkError::Silent));
    assert!(silent, "{error}");
}
