//! Askers that leave while something is being opened for them: every place on the way is free at
//! once, and nothing is refused to anybody.

use std::{net::SocketAddr, sync::atomic::Ordering::Relaxed};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use wormholed::{RoleCounters, TunnelRequest};
use wormholes_rules::Tunnel;

use crate::support::*;

/// A target that takes nobody in: its queue is full, so that the system drops what asks for a
/// connection.
struct Slow {
    address: SocketAddr,
    _listener: TcpListener,
    _first: TcpStream,
}

impl Slow {
    async fn start() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        // Linux has room for one more than is asked for.
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        Self {
            address,
            _listener: listener,
            _first: TcpStream::connect(address).await.unwrap(),
        }
    }
}

fn roles(node: &Node) -> [&RoleCounters; 4] {
    let counters = node.network.counters();
    [
        &counters.relay,
        &counters.hop,
        &counters.exit,
        &counters.service,
    ]
}

fn active(node: &Node) -> usize {
    let active = roles(node).map(|role| role.active.load(Relaxed));
    active.iter().sum()
}

/// Asks `client` for a tunnel that does not open, leaves when `waiting` nodes have a place each
/// taken for it, and waits until all are free.
async fn leave(client: &Node, tunnel: &Tunnel, request: &TunnelRequest, waiting: &[&Node]) {
    let taken = until("the nodes wait", || {
        waiting.iter().all(|node| active(node) > 0)
    });
    tokio::select! {
        opened = client.network.open(tunnel, request) => panic!("{opened:?}"),
        () = taken => {}
    }
    until("their places are free", || {
        waiting.iter().all(|node| active(node) == 0)
    })
    .await;
    // A wait that ran out would be one.
    for node in waiting {
        let refused: Vec<_> = roles(node).iter().flat_map(|role| role.refused()).collect();
        assert_eq!(refused, [], "{tunnel:?}");
    }
}

#[tokio::test]
async fn an_exit_and_all_before_it_are_free_when_the_asker_leaves() {
    let slow = Slow::start().await;
    let client = node(161, |_| {});
    let relay = node(162, |config| config.relay = enabled());
    let hops = [163, 164, 165].map(|number| {
        node(number, |config| {
            config.hop.role = enabled();
            exits(config);
        })
    });
    let [first, middle, exit] = &hops;
    befriend(&[&client, &relay, first, middle, exit]);
    let mut as_relay = peer(&relay);
    as_relay.register = true;
    exit.network.set_peers(&[as_relay, peer(&client)]);
    let id = exit.network.id();
    until("the exit is registered", || {
        relay.network.registered().contains(&id)
    })
    .await;
    let request = request(slow.address);
    let direct = Tunnel::Direct {
        to: Some(id),
        exit: true,
    };
    leave(&client, &direct, &request, &[exit]).await;
    let relayed = Tunnel::Relay {
        via: Some(relay.network.id()),
        to: id,
        exit: true,
    };
    leave(&client, &relayed, &request, &[&relay, exit]).await;
    let onion = Tunnel::Onion {
        hops: 3,
        via: None,
        to: Some(id),
        exit: true,
        friends_only: false,
    };
    leave(&client, &onion, &request, &[first, middle, exit]).await;
}
