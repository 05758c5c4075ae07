//! Relayed tunnels: a friend without an address, and what the relay between can see.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use wormholed::{Config, NetworkOptions, OpenError, OpenGate, Opened, PeerConfig, PipeError};
use wormholes_proto::Reason;
use wormholes_rules::{Tunnel, TunnelKind};

use crate::support::*;

/// A client and a friend that know each other and the relay; the friend is registered there.
struct Scene {
    client: Node,
    relay: Node,
    friend: Node,
    seen: Arc<Seen>,
}

async fn scene(
    number: u8,
    edit_relay: impl FnOnce(&mut Config),
    edit_friend: impl FnOnce(&mut Config),
) -> Scene {
    let seen = Arc::new(Seen::default());
    let options = NetworkOptions {
        witness: Some(Arc::clone(&seen) as _),
        ..NetworkOptions::default()
    };
    let client = node(number, |_| {});
    let edit_relay = |config: &mut Config| {
        config.relay = enabled();
        edit_relay(config);
    };
    let relay = guarded_node(number + 1, edit_relay, Arc::new(OpenGate), options);
    let friend = node(number + 2, |config| {
        config.node.listen.clear();
        edit_friend(config);
    });
    let scene = Scene {
        client,
        relay,
        friend,
        seen,
    };
    scene.introduce().await;
    scene
}

impl Scene {
    async fn introduce(&self) {
        let Self {
            client,
            relay,
            friend,
            ..
        } = self;
        let mut friend_as_peer = peer(friend);
        friend_as_peer.via = vec![relay.name.clone()];
        client.network.set_peers(&[peer(relay), friend_as_peer]);
        relay.network.set_peers(&[peer(client), peer(friend)]);
        let mut relay_as_peer = peer(relay);
        relay_as_peer.register = true;
        friend.network.set_peers(&[relay_as_peer, peer(client)]);
        self.registered().await;
    }

    async fn registered(&self) {
        let id = self.friend.network.id();
        until("the friend is registered", || {
            self.relay.network.registered().contains(&id)
        })
        .await;
    }

    fn tunnel(&self, exit: bool) -> Tunnel {
        Tunnel::Relay {
            via: None,
            to: self.friend.network.id(),
            exit,
        }
    }
}

#[tokio::test]
async fn a_friend_behind_a_relay_answers_and_the_relay_sees_ciphertext() {
    let echo = echo_server().await;
    let late = late_server().await;
    let scene = scene(
        50,
        |_| {},
        |config| {
            config.services = vec![service("echo", echo), service("late", late)];
        },
    )
    .await;
    let network = &scene.client.network;
    let opened = network
        .open(&scene.tunnel(false), &service_request("echo"))
        .await
        .unwrap();
    assert_eq!(opened.kind, TunnelKind::Relay);
    assert_eq!(opened.path, ids(&[&scene.relay, &scene.friend]));
    let mut bytes = noise(1_000_000);
    bytes[..20].copy_from_slice(b"a very secret phrase");
    assert_eq!(exchange(opened, &bytes).await.unwrap(), bytes);
    let half = network
        .open(&scene.tunnel(false), &service_request("late"))
        .await
        .unwrap();
    assert_eq!(exchange(half, b"12345").await.unwrap(), b"got 5");
    assert!(scene.seen.len() > 2_000_000, "{}", scene.seen.len());
    for secret in [
        &b"a very secret phrase"[..],
        &bytes[500_000..500_032],
        b"echo",
        b"got 5",
    ] {
        assert!(!scene.seen.contains(secret), "the relay saw {secret:?}");
    }
    until("the relay's books close", || {
        let status = scene.relay.network.relay_status();
        status.active == 0 && status.opened == 2 && status.bytes > 2_000_000
    })
    .await;
}

#[tokio::test]
async fn a_relay_tells_its_peers_how_full_it_is() {
    let echo = echo_server().await;
    let offer = |config: &mut Config| config.services = vec![service("echo", echo)];
    let scene = scene(150, |config| config.relay.max_circuits = 2, offer).await;
    let network = &scene.client.network;
    let load = || {
        let world = network.world();
        world.by_id(&scene.relay.network.id()).map(|node| node.load)
    };
    let opened = network
        .open(&scene.tunnel(false), &service_request("echo"))
        .await
        .unwrap();
    network.refresh_records().await;
    until("half of the relay's places are taken", || {
        load().is_some_and(|load| (0.49..0.51).contains(&load))
    })
    .await;
    drop(opened);
    until("the place is free", || {
        scene.relay.network.relay_status().active == 0
    })
    .await;
    network.refresh_records().await;
    until("the relay is idle", || load() == Some(0.0)).await;
}

#[tokio::test]
async fn a_friend_behind_a_relay_exits() {
    let late = late_server().await;
    let scene = scene(53, |_| {}, exits).await;
    let network = &scene.client.network;
    let opened = network
        .open(&scene.tunnel(true), &request(late))
        .await
        .unwrap();
    assert_eq!(exchange(opened, b"123").await.unwrap(), b"got 3");
    let closed = network
        .open(&scene.tunnel(true), &request(closed_port().await))
        .await;
    assert_eq!(closed.unwrap_err().reason(), Reason::ConnectionRefused);
}

#[tokio::test]
async fn refusals_of_the_relay_and_behind_it_are_told_apart() {
    let scene = scene(56, |config| config.relay.max_circuits_per_peer = 1, |_| {}).await;
    let network = &scene.client.network;
    let refused = |error: OpenError| {
        let OpenError::Refused { node, reason } = error else {
            panic!("{error}");
        };
        (node.id, reason)
    };
    let error = network
        .open(&scene.tunnel(false), &service_request("none"))
        .await
        .unwrap_err();
    assert_eq!(
        refused(error),
        (scene.friend.network.id(), Reason::NoService)
    );
    let to_nobody = Tunnel::Relay {
        via: Some(scene.relay.network.id()),
        to: scene.relay.network.id(),
        exit: false,
    };
    network.ping(scene.relay.network.id()).await.unwrap();
    network.refresh_records().await;
    let error = network
        .open(&to_nobody, &service_request("x"))
        .await
        .unwrap_err();
    assert_eq!(refused(error), (scene.relay.network.id(), Reason::NoNode));
}

#[tokio::test]
async fn a_relay_that_dies_breaks_its_flows_and_its_friend_comes_back_to_another() {
    let echo = echo_server().await;
    let scene = scene(
        62,
        |_| {},
        |config| config.services = vec![service("echo", echo)],
    )
    .await;
    let network = &scene.client.network;
    let opened = network
        .open(&scene.tunnel(false), &service_request("echo"))
        .await
        .unwrap();
    let mut pipe = opened.into_pipe().unwrap();
    pipe.writer.write_chunk("x".into()).await.unwrap();
    let echoed = within(pipe.reader.read_chunk()).await;
    assert_eq!(echoed, Ok(Some("x".into())));
    scene.relay.network.shutdown().await;
    let broken = within(pipe.reader.read_chunk()).await.unwrap_err();
    assert!(
        matches!(broken, PipeError::Broken(_) | PipeError::Reset),
        "{broken}"
    );
    let other = node(65, |config| config.relay = enabled());
    other
        .network
        .set_peers(&[peer(&scene.client), peer(&scene.friend)]);
    let mut other_as_peer = peer(&other);
    let mut friend_as_peer = peer(&scene.friend);
    friend_as_peer.via = vec![other.name.clone()];
    network.set_peers(&[other_as_peer.clone(), friend_as_peer]);
    other_as_peer.register = true;
    scene
        .friend
        .network
        .set_peers(&[other_as_peer, peer(&scene.client)]);
    let opened = open_at_last(&scene).await;
    assert_eq!(exchange(opened, b"again").await.unwrap(), b"again");
}

/// Until the friend is registered at its new relay, it is not found.
async fn open_at_last(scene: &Scene) -> Opened {
    let (tunnel, request) = (scene.tunnel(false), service_request("echo"));
    let attempts = async {
        loop {
            match scene.client.network.open(&tunnel, &request).await {
                Ok(opened) => return opened,
                Err(error) => assert_ne!(error.reason(), Reason::Denied, "{error}"),
            }
            tokio::task::yield_now().await;
        }
    };
    within(attempts).await
}

#[tokio::test]
async fn a_caller_whom_the_friend_does_not_know_is_cut_off() {
    let echo = echo_server().await;
    let scene = scene(
        66,
        |_| {},
        |config| config.services = vec![service("echo", echo)],
    )
    .await;
    let mut relay = peer(&scene.relay);
    relay.register = true;
    scene.friend.network.set_peers(&[relay]);
    let tunnel = scene.tunnel(false);
    let error = scene
        .client
        .network
        .open(&tunnel, &service_request("echo"))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::Handshake, "{error}");
}

#[tokio::test]
async fn nobody_but_a_chosen_relay_brings_callers() {
    let echo = echo_server().await;
    let listen = |config: &mut Config| {
        config.node.listen = vec![SocketAddr::from(([127, 71, 0, 1], 0))];
        config.services = vec![service("echo", echo)];
    };
    let scene = scene(69, |_| {}, listen).await;
    scene
        .friend
        .network
        .set_peers(&[peer(&scene.relay), peer(&scene.client)]);
    let tunnel = scene.tunnel(false);
    let error = scene
        .client
        .network
        .open(&tunnel, &service_request("echo"))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::Denied, "{error}");
}

#[tokio::test]
async fn a_friend_that_is_away_is_told_at_once_whoever_else_is_silent() {
    let scene = scene(195, |_| {}, |_| {}).await;
    let client = &scene.client.network;
    client.refresh_records().await;
    scene.friend.network.shutdown().await;
    let id = scene.friend.network.id();
    until("the relay misses the friend", || {
        !scene.relay.network.registered().contains(&id)
    })
    .await;
    // Takes what comes, and never answers.
    let socket = std::net::UdpSocket::bind("127.199.0.1:0").unwrap();
    let silent = PeerConfig {
        addresses: vec![socket.local_addr().unwrap()],
        ..peer(&node(199, |config| config.node.listen.clear()))
    };
    let mut friend_as_peer = peer(&scene.friend);
    friend_as_peer.via = vec![scene.relay.name.clone()];
    client.set_peers(&[peer(&scene.relay), friend_as_peer, silent]);
    let start = Instant::now();
    let refused = client
        .open(&scene.tunnel(false), &service_request("echo"))
        .await
        .unwrap_err();
    assert_eq!(refused.reason(), Reason::NoNode, "{refused}");
    assert!(start.elapsed() < Duration::from_millis(500));
}
