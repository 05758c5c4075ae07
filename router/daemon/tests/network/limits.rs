//! The limits of config.toml on what a node does for others, each at its edge, for each role: what
//! the asker is told, and what the node counts.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use wormholed::{Config, OpenError, Opened, RoleConfig, RoleCounters, RoleStatus};
use wormholes_proto::Reason;
use wormholes_rules::Tunnel;

use crate::support::*;

/// Who is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Relay,
    /// A hop between.
    Hop,
    /// The hop that a service is behind.
    LastHop,
    Exit,
}

const ROLES: [Role; 4] = [Role::Relay, Role::Hop, Role::LastHop, Role::Exit];

/// Two clients, and a node with a role through which both reach an echo.
struct Scene {
    role: Role,
    clients: [Node; 2],
    server: Node,
    _behind: Node,
    tunnel: Tunnel,
    target: SocketAddr,
}

impl Scene {
    /// `limits` are those of the role.
    async fn new(role: Role, limits: RoleConfig) -> Self {
        let target = echo_server().await;
        let mut echo = service("echo", target);
        echo.min_trust = 0;
        let clients = [node(151, |_| {}), node(152, |_| {})];
        let server = node(153, |config: &mut Config| match role {
            Role::Relay => config.relay = limits,
            Role::Hop => config.hop.role = limits,
            Role::LastHop => {
                config.hop.role = limits;
                config.services = vec![echo.clone()];
            }
            Role::Exit => {
                exits(config);
                config.exit.role = limits;
            }
        });
        let behind = node(154, |config| {
            config.hop.role = enabled();
            config.services = vec![echo.clone()];
        });
        befriend(&[&clients[0], &clients[1], &server, &behind]);
        if role == Role::Relay {
            register(&behind, &server, &clients).await;
        }
        Self {
            tunnel: tunnel(role, &server, &behind),
            role,
            clients,
            server,
            _behind: behind,
            target,
        }
    }

    /// Opens a flow that shares nothing with others of this client; none is built ahead for a key
    /// that comes once.
    async fn open(&self, client: usize) -> Result<Opened, OpenError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut request = service_request("echo");
        request.target = self.target.into();
        request.isolation = NEXT.fetch_add(1, Relaxed).to_string();
        self.clients[client]
            .network
            .open(&self.tunnel, &request)
            .await
    }

    /// Opens as many as it may.
    async fn fill(&self, client: usize) -> (Vec<Opened>, OpenError) {
        let mut open = Vec::new();
        loop {
            match self.open(client).await {
                Ok(opened) => open.push(opened),
                Err(error) => return (open, error),
            }
        }
    }

    fn status(&self) -> RoleStatus {
        let network = &self.server.network;
        match self.role {
            Role::Relay => network.relay_status(),
            Role::Hop | Role::LastHop => network.hop_status(),
            Role::Exit => network.exit_status(),
        }
    }

    fn counters(&self) -> &RoleCounters {
        let counters = self.server.network.counters();
        match self.role {
            Role::Relay => &counters.relay,
            Role::Hop | Role::LastHop => &counters.hop,
            Role::Exit => &counters.exit,
        }
    }

    async fn active(&self, wanted: usize) {
        let what = format!("{:?}: {wanted} at once", self.role);
        until(&what, || self.status().active == wanted).await;
    }

    /// The node itself said that it is busy, and counted that and nothing else.
    fn check_busy(&self, error: &OpenError) {
        let role = self.role;
        let id = self.server.network.id();
        let (OpenError::Refused { node, reason } | OpenError::Hop { node, reason, .. }) = error
        else {
            panic!("{role:?}: {error}");
        };
        assert_eq!((node.id, *reason), (id, Reason::Busy), "{role:?}: {error}");
        let refused = self.counters().refused();
        assert_eq!(refused.len(), 1, "{role:?}: {refused:?}");
        assert_eq!(refused[0].0, Reason::Busy, "{role:?}");
        assert!(refused[0].1 >= 1, "{role:?}");
    }
}

/// Makes `friend` reachable through `relay` only.
async fn register(friend: &Node, relay: &Node, clients: &[Node]) {
    let mut as_relay = peer(relay);
    as_relay.register = true;
    let mut knows = vec![as_relay];
    knows.extend(clients.iter().map(peer));
    friend.network.set_peers(&knows);
    let id = friend.network.id();
    until("the friend is registered", || {
        relay.network.registered().contains(&id)
    })
    .await;
}

fn tunnel(role: Role, server: &Node, behind: &Node) -> Tunnel {
    let (server, behind) = (server.network.id(), behind.network.id());
    match role {
        Role::Relay => Tunnel::Relay {
            via: Some(server),
            to: behind,
            exit: false,
        },
        Role::Hop => Tunnel::Onion {
            hops: 2,
            via: Some(server),
            to: Some(behind),
            exit: false,
            friends_only: false,
        },
        Role::LastHop => Tunnel::Onion {
            hops: 1,
            via: None,
            to: Some(server),
            exit: false,
            friends_only: false,
        },
        Role::Exit => Tunnel::Direct {
            to: Some(server),
            exit: true,
        },
    }
}

#[tokio::test]
async fn all_peers_together_have_so_many_places() {
    for role in ROLES {
        let limits = RoleConfig {
            max_circuits: 4,
            ..enabled()
        };
        let scene = Scene::new(role, limits).await;
        let (flows, error) = scene.fill(0).await;
        scene.check_busy(&error);
        scene.active(4).await;
        scene.check_busy(&scene.open(1).await.unwrap_err());
        assert!(!flows.is_empty(), "{role:?}");
        for flow in flows {
            assert_eq!(exchange(flow, b"served").await.unwrap(), b"served");
        }
        reopens(&scene, 1).await;
    }
}

#[tokio::test]
async fn each_peer_has_so_many_places_and_takes_none_of_the_others() {
    for role in ROLES {
        let limits = RoleConfig {
            max_circuits_per_peer: 2,
            ..enabled()
        };
        let scene = Scene::new(role, limits).await;
        let (flows, error) = scene.fill(0).await;
        scene.check_busy(&error);
        scene.active(2).await;
        let other = scene.open(1).await.unwrap();
        assert_eq!(exchange(other, b"other").await.unwrap(), b"other");
        drop(flows);
        reopens(&scene, 0).await;
    }
}

/// More than a stranger's connection has streams for by default.
#[tokio::test]
async fn more_places_than_usual_are_given_and_the_next_asker_is_told() {
    const PLACES: usize = 300;
    let limits = RoleConfig {
        max_circuits_per_peer: PLACES,
        ..enabled()
    };
    let scene = Scene::new(Role::LastHop, limits).await;
    let (flows, error) = scene.fill(0).await;
    scene.check_busy(&error);
    assert_eq!(flows.len(), PLACES);
}

/// A place that is free again is given again.
async fn reopens(scene: &Scene, client: usize) {
    let flow = within(async {
        loop {
            if let Ok(flow) = scene.open(client).await {
                return flow;
            }
        }
    })
    .await;
    assert_eq!(exchange(flow, b"again").await.unwrap(), b"again");
}

#[tokio::test]
async fn a_circuit_carries_so_many_bytes_and_not_one_more() {
    for role in ROLES {
        let scene = Scene::new(role, enabled()).await;
        let whole = exchange(scene.open(0).await.unwrap(), b"x").await;
        assert_eq!(whole.unwrap(), b"x");
        scene.active(0).await;
        let carried = scene.status().bytes;
        if matches!(role, Role::Hop | Role::LastHop) {
            // OPEN, data and end, each in a cell with its class; as many come back.
            assert_eq!(carried, 6 * 513, "{role:?}");
        }
        let nodes = scene.status().nodes;
        assert_eq!(nodes[0].bytes_today, carried, "{role:?}: {nodes:?}");
        for (max, passes) in [(carried, true), (carried - 1, false)] {
            let limits = RoleConfig {
                max_bytes_per_circuit: max,
                ..enabled()
            };
            let scene = Scene::new(role, limits).await;
            let echoed = exchange(scene.open(0).await.unwrap(), b"x").await;
            assert_eq!(echoed.is_ok(), passes, "{role:?}: {max} of {carried}");
        }
    }
}

#[tokio::test]
async fn the_flows_of_a_peer_share_so_many_bytes_a_second() {
    const RATE: u64 = 200_000;
    for role in ROLES {
        let limits = RoleConfig {
            bytes_per_second_per_peer: RATE,
            ..enabled()
        };
        let scene = Scene::new(role, limits).await;
        let flows = [scene.open(0).await.unwrap(), scene.open(0).await.unwrap()];
        let bytes = noise(50_000);
        let start = Instant::now();
        let exchanges = flows.map(|flow| exchange(flow, &bytes));
        for echoed in futures_util::future::join_all(exchanges).await {
            assert_eq!(echoed.unwrap(), bytes);
        }
        // Both flows, both directions; some 50 ms may pass at once.
        let least = Duration::from_secs_f64(200_000.0 / RATE as f64 - 0.1);
        let took = start.elapsed();
        assert!(took >= least, "{role:?}: {took:?}");
    }
}

#[tokio::test]
async fn a_circuit_on_which_nothing_moves_ends() {
    for role in ROLES {
        let limits = RoleConfig {
            idle: Duration::from_millis(400),
            ..enabled()
        };
        let scene = Scene::new(role, limits).await;
        let mut flow = scene.open(0).await.unwrap();
        let broken = within(pipe(&mut flow).reader.read_chunk()).await;
        assert!(broken.is_err(), "{role:?}: {broken:?}");
        scene.active(0).await;
    }
}
