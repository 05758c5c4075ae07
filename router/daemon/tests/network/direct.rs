//! Direct tunnels: local dials, services and exits of peers.

use std::{net::Ipv4Addr, sync::Arc};

use futures_util::future::BoxFuture;
use wormholed::{Gatekeeper, NetworkOptions, OpenError, OpenGate};
use wormholes_proto::{Host, NodeId, Reason, Target, Transport};
use wormholes_rules::{
    Allowance, ExitRequest, NodeView, RelayRequest, RuleEvent, Tunnel, TunnelKind, Verdict,
};

use crate::{name_server::NameServer, support::*};

const LOCAL: Tunnel = Tunnel::Direct {
    to: None,
    exit: false,
};

fn to(node: &Node, exit: bool) -> Tunnel {
    Tunnel::Direct {
        to: Some(node.network.id()),
        exit,
    }
}

async fn refusal(node: &Node, tunnel: &Tunnel, target: impl Into<Target>) -> Reason {
    let error = node
        .network
        .open(tunnel, &request(target))
        .await
        .unwrap_err();
    error.reason()
}

#[tokio::test]
async fn a_local_dial_reaches_the_target_and_half_closes() {
    let client = node(11, |_| {});
    let opened = client
        .network
        .open(&LOCAL, &request(late_server().await))
        .await
        .unwrap();
    assert_eq!((opened.kind, opened.path.len()), (TunnelKind::Direct, 0));
    assert_eq!(
        exchange(opened, &noise(200_000)).await.unwrap(),
        b"got 200000"
    );
}

#[tokio::test]
async fn a_local_dial_says_what_went_wrong() {
    let client = node(12, |_| {});
    let own = echo_server().await;
    client.network.protect_socket(Transport::Tcp, own);
    assert_eq!(
        refusal(&client, &LOCAL, own).await,
        Reason::ForbiddenAddress
    );
    let closed = closed_port().await;
    assert_eq!(
        refusal(&client, &LOCAL, closed).await,
        Reason::ConnectionRefused
    );
    let special: Target = "x.onion:80".parse().unwrap();
    assert_eq!(
        refusal(&client, &LOCAL, special).await,
        Reason::ForbiddenAddress
    );
}

#[tokio::test]
async fn a_peer_s_service_answers_by_name_and_by_default() {
    let echo = echo_server().await;
    let late = late_server().await;
    let client = node(13, |_| {});
    let server = node(14, |config| {
        config.services = vec![service("echo", echo), service("late", late)];
    });
    befriend(&[&client, &server]);
    let bytes = noise(3_000_000);
    let tunnel = to(&server, false);
    let by_name = client
        .network
        .open(&tunnel, &service_request("echo"))
        .await
        .unwrap();
    assert_eq!(by_name.path, ids(&[&server]));
    assert_eq!(exchange(by_name, &bytes).await.unwrap(), bytes);
    let by_default = client.network.open(&tunnel, &request(echo)).await.unwrap();
    assert_eq!(exchange(by_default, b"hello").await.unwrap(), b"hello");
    let half = client
        .network
        .open(&tunnel, &service_request("late"))
        .await
        .unwrap();
    assert_eq!(exchange(half, b"12345").await.unwrap(), b"got 5");
    let none = client
        .network
        .open(&tunnel, &service_request("none"))
        .await
        .unwrap_err();
    assert_eq!(none.reason(), Reason::NoService);
    let served = &server.network.counters().service;
    assert_eq!(served.refused(), [(Reason::NoService, 1)]);
}

#[tokio::test]
async fn a_service_is_hidden_from_those_below_its_trust() {
    let echo = echo_server().await;
    let client = node(15, |_| {});
    let server = node(16, |config| config.services = vec![service("echo", echo)]);
    befriend(&[&client, &server]);
    let mut acquaintance = peer(&client);
    acquaintance.trust = 1;
    server.network.set_peers(&[acquaintance]);
    let tunnel = to(&server, false);
    let error = client
        .network
        .open(&tunnel, &service_request("echo"))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::NoService);
}

#[tokio::test]
async fn a_stranger_gets_no_connection() {
    let client = node(17, |_| {});
    let server = node(18, |config| {
        config.services = vec![service("echo", config.node.listen[0])]
    });
    client.network.set_peers(&[peer(&server)]);
    let error = client
        .network
        .open(&to(&server, false), &service_request("echo"))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::Denied, "{error}");
    assert!(matches!(error, OpenError::Connect { .. }), "{error}");
}

#[tokio::test]
async fn a_stranger_at_a_hop_may_ask_for_no_service() {
    let echo = echo_server().await;
    let client = node(19, |_| {});
    let hop = node(20, |config| {
        config.hop.role = enabled();
        config.services = vec![service("echo", echo)];
    });
    client.network.set_peers(&[peer(&hop)]);
    let error = client
        .network
        .open(&to(&hop, false), &service_request("echo"))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Refused {
                reason: Reason::Denied,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn another_node_at_the_address_is_no_peer() {
    let client = node(21, |_| {});
    let server = node(22, |_| {});
    let mut wrong = peer(&server);
    wrong.id = NodeId::from_bytes([7; 32]);
    client.network.set_peers(&[wrong.clone()]);
    let tunnel = Tunnel::Direct {
        to: Some(wrong.id),
        exit: false,
    };
    let error = client
        .network
        .open(&tunnel, &service_request("x"))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::Handshake, "{error}");
}

#[tokio::test]
async fn an_exit_dials_for_its_peer_within_its_list() {
    let late = late_server().await;
    let client = node(23, |_| {});
    let exit = node(24, |config| {
        exits(config);
        config.exit.allow[0].ports = vec![(late.port(), late.port())];
    });
    befriend(&[&client, &exit]);
    let tunnel = to(&exit, true);
    let opened = client.network.open(&tunnel, &request(late)).await.unwrap();
    assert_eq!(exchange(opened, b"123").await.unwrap(), b"got 3");
    let other_port = std::net::SocketAddr::new(late.ip(), late.port() ^ 1);
    assert_eq!(refusal(&client, &tunnel, other_port).await, Reason::Denied);
    until("the exit frees its place", || {
        exit.network.exit_status().active == 0
    })
    .await;
    let status = exit.network.exit_status();
    assert_eq!(status.bytes, 3 + 5, "{status:?}");
    assert_eq!(status.nodes[0].id, client.network.id());
}

#[tokio::test]
async fn an_exit_keeps_the_ban_list() {
    let echo = echo_server().await;
    let client = node(25, |_| {});
    let exit = node(26, |config| {
        exits(config);
        config.exit.allow_private = false;
    });
    let private = node(27, exits);
    befriend(&[&client, &exit, &private]);
    let tunnel = to(&exit, true);
    for target in [
        echo.to_string(),
        format!("[::1]:{}", echo.port()),
        format!("[::ffff:127.0.0.1]:{}", echo.port()),
        "10.0.0.1:80".to_owned(),
        "169.254.169.254:80".to_owned(),
        "[64:ff9b::7f00:1]:80".to_owned(),
        "[2002:7f00:1::]:80".to_owned(),
        "0.0.0.0:80".to_owned(),
        "localhost.local:80".to_owned(),
    ] {
        let target: Target = target.parse().unwrap();
        let reason = refusal(&client, &tunnel, target.clone()).await;
        assert_eq!(reason, Reason::ForbiddenAddress, "{target}");
    }
    let tunnel = to(&private, true);
    for target in [
        "169.254.169.254:80",
        "[::ffff:127.0.0.1]:80",
        "224.0.0.1:80",
        "0.0.0.0:80",
    ] {
        let target: Target = target.parse().unwrap();
        let reason = refusal(&client, &tunnel, target.clone()).await;
        assert_eq!(reason, Reason::ForbiddenAddress, "{target}");
    }
    private.network.protect_socket(Transport::Tcp, echo);
    assert_eq!(
        refusal(&client, &tunnel, echo).await,
        Reason::ForbiddenAddress
    );
}

#[tokio::test]
async fn an_exit_dials_only_what_it_checked() {
    let echo = echo_server().await;
    let public = Ipv4Addr::new(127, 0, 0, 1);
    let rebinding = [
        Ipv4Addr::new(169, 254, 169, 254),
        public,
        Ipv4Addr::UNSPECIFIED,
    ];
    let options = NetworkOptions {
        name_server: Some(NameServer::start(&rebinding).await.address),
        ..NetworkOptions::default()
    };
    let client = node(28, |_| {});
    let exit = guarded_node(29, exits, Arc::new(OpenGate), options);
    befriend(&[&client, &exit]);
    let tunnel = to(&exit, true);
    let target = Target::new(Host::parse("changing.example").unwrap(), echo.port());
    assert_eq!(
        refusal(&client, &tunnel, target.clone()).await,
        Reason::ForbiddenAddress
    );
    let opened = client
        .network
        .open(&tunnel, &request(target.clone()))
        .await
        .unwrap();
    assert_eq!(exchange(opened, b"checked").await.unwrap(), b"checked");
    assert_eq!(
        refusal(&client, &tunnel, target).await,
        Reason::ForbiddenAddress
    );
}

/// Allows exits to one port, refuses connections from one node.
#[derive(Debug)]
struct Rules {
    port: u16,
    banned: NodeId,
}

impl Gatekeeper for Rules {
    fn accept(&self, node: Arc<NodeView>) -> BoxFuture<'_, Verdict> {
        said(if node.id == self.banned {
            Verdict::Deny("banned".to_owned())
        } else {
            Verdict::Allow(Allowance::default())
        })
    }

    fn relay(&self, _request: RelayRequest) -> BoxFuture<'_, Verdict> {
        said(Verdict::Deny("no".to_owned()))
    }

    fn exit(&self, request: ExitRequest) -> BoxFuture<'_, Verdict> {
        let trust = request.from.as_ref().map_or(0, |from| from.trust);
        said(if request.port != Some(self.port) || trust < 2 {
            Verdict::Deny("port".to_owned())
        } else {
            Verdict::Allow(Allowance {
                max_bytes: Some(10),
                ..Allowance::default()
            })
        })
    }

    fn event(&self, _event: RuleEvent) {}
}

#[tokio::test]
async fn rules_decide_who_connects_and_what_exits_carry() {
    let echo = echo_server().await;
    let other = echo_server().await;
    let client = node(32, |_| {});
    let banned = node(33, |_| {});
    let rules = Rules {
        port: echo.port(),
        banned: banned.network.id(),
    };
    let exit = guarded_node(34, exits, Arc::new(rules), NetworkOptions::default());
    befriend(&[&client, &banned, &exit]);
    let tunnel = to(&exit, true);
    assert_eq!(refusal(&banned, &tunnel, echo).await, Reason::Denied);
    assert_eq!(refusal(&client, &tunnel, other).await, Reason::Denied);
    let opened = client.network.open(&tunnel, &request(echo)).await.unwrap();
    assert_eq!(exchange(opened, b"1234").await.unwrap(), b"1234");
    let opened = client.network.open(&tunnel, &request(echo)).await.unwrap();
    assert!(exchange(opened, &[0; 100]).await.is_err());
}

#[tokio::test]
async fn a_node_that_rules_refuse_gets_nothing_on_a_connection_made_to_it() {
    let echo = echo_server().await;
    let banned = node(71, |_| {});
    let rules = Rules {
        port: echo.port(),
        banned: banned.network.id(),
    };
    let exit = guarded_node(72, exits, Arc::new(rules), NetworkOptions::default());
    exit.network.set_peers(&[peer(&banned)]);
    // It cannot call, and answers on the connection that the exit makes.
    let mut caller = peer(&exit);
    caller.addresses.clear();
    banned.network.set_peers(&[caller]);
    exit.network.ping(banned.network.id()).await.unwrap();
    let tunnel = to(&exit, true);
    // The caller has the connection a moment before the called node does.
    let mut refused = Reason::NoNode;
    while refused == Reason::NoNode {
        tokio::task::yield_now().await;
        refused = refusal(&banned, &tunnel, echo).await;
    }
    assert_eq!(refused, Reason::Denied);
    let service = (to(&exit, false), service_request("echo"));
    let opened = banned.network.open(&service.0, &service.1).await;
    assert_eq!(opened.unwrap_err().reason(), Reason::Denied);
}

#[tokio::test]
async fn an_entrance_of_the_node_is_no_service() {
    let client = node(73, |_| {});
    let entrance = echo_server().await;
    let server = node(74, |config| {
        config.services = vec![service("proxy", entrance)];
    });
    server.network.protect_socket(Transport::Tcp, entrance);
    befriend(&[&client, &server]);
    let service = (to(&server, false), service_request("proxy"));
    let opened = client.network.open(&service.0, &service.1).await;
    assert_eq!(opened.unwrap_err().reason(), Reason::ForbiddenAddress);
}

#[tokio::test]
async fn a_dead_peer_is_an_error_and_then_left_alone() {
    let client = node(37, |_| {});
    let server = node(38, |_| {});
    befriend(&[&client, &server]);
    let tunnel = to(&server, false);
    server.network.shutdown().await;
    drop(server);
    let first = client
        .network
        .open(&tunnel, &service_request("x"))
        .await
        .unwrap_err();
    assert_eq!(first.reason(), Reason::TimedOut, "{first}");
    let asked = std::time::Instant::now();
    let second = client
        .network
        .open(&tunnel, &service_request("x"))
        .await
        .unwrap_err();
    assert_eq!(second.reason(), Reason::TimedOut, "{second}");
    assert!(asked.elapsed() < std::time::Duration::from_secs(1));
}

#[tokio::test]
async fn scripts_see_who_is_online() {
    let client = node(39, |_| {});
    let server = node(40, |config| config.node.family = Some("acme".to_owned()));
    befriend(&[&client, &server]);
    let seen = || {
        client
            .network
            .world()
            .nodes()
            .iter()
            .find(|n| n.id == server.network.id())
            .cloned()
    };
    assert!(seen().is_some_and(|view| !view.online && view.trust == 2));
    client.network.ping(server.network.id()).await.unwrap();
    until("the record arrives", || {
        seen().is_some_and(|view| view.online && view.family.as_deref() == Some("acme"))
    })
    .await;
    assert!(seen().unwrap().rtt_ms.is_some());
}

#[tokio::test]
async fn a_dead_address_does_not_hide_a_good_one() {
    let echo = echo_server().await;
    let client = node(41, |_| {});
    let server = node(42, |config| config.services = vec![service("echo", echo)]);
    server.network.set_peers(&[peer(&client)]);
    let mut two_addresses = peer(&server);
    let dead = std::net::UdpSocket::bind("127.43.0.1:0").unwrap();
    two_addresses
        .addresses
        .insert(0, dead.local_addr().unwrap());
    client.network.set_peers(&[two_addresses]);
    let opened = client
        .network
        .open(&to(&server, false), &service_request("echo"))
        .await
        .unwrap();
    assert_eq!(exchange(opened, b"found").await.unwrap(), b"found");
}

#[tokio::test]
async fn flows_that_ask_at_once_share_one_connection() {
    let echo = echo_server().await;
    let client = node(44, |_| {});
    let server = node(45, |config| config.services = vec![service("echo", echo)]);
    server.network.set_peers(&[peer(&client)]);
    client.network.set_peers(&[peer(&server)]);
    let tunnel = to(&server, false);
    let flows = (0..50).map(|_| async {
        let opened = client.network.open(&tunnel, &service_request("echo")).await;
        exchange(opened.unwrap(), b"one of many").await.unwrap()
    });
    let answers = futures_util::future::join_all(flows).await;
    assert!(answers.iter().all(|answer| answer == b"one of many"));
    let served = &server.network.counters().service.opened;
    assert_eq!(served.load(std::sync::atomic::Ordering::Relaxed), 50);
}

#[tokio::test]
async fn a_service_that_breaks_off_looks_broken_to_its_user() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = node(46, |_| {});
    let server = node(47, |config| {
        config.services = vec![service("rude", address)]
    });
    befriend(&[&client, &server]);
    let tunnel = to(&server, false);
    let opened = client
        .network
        .open(&tunnel, &service_request("rude"))
        .await
        .unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    socket2::SockRef::from(&stream)
        .set_linger(Some(std::time::Duration::ZERO))
        .unwrap();
    drop(stream);
    let broken = exchange(opened, b"").await.unwrap_err();
    assert_eq!(broken, wormholed::PipeError::Reset);
}
