//! UDP forwards: each sender has a flow of its own to the one target.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use tokio::net::UdpSocket;
use wormholed::TunnelRequest;
use wormholes_proto::{Reason, Transport};
use wormholes_rules::{Tunnel, TunnelKind};

use crate::{
    name_server::NameServer,
    support::{DIRECT, TestNode, asking, hears, until},
};

const METRICS: &str = "[metrics]\nlisten = '127.0.0.1:0'\n";
/// Nothing, little, more than a path of QUIC takes at once, and the most that UDP carries.
const SIZES: [usize; 5] = [0, 1, 1200, 1800, 65_507];

fn entrance(target: impl std::fmt::Display) -> String {
    format!("[[entrance]]\nkind = 'udp'\nlisten = '127.0.0.1:0'\ntarget = '{target}'\n{METRICS}")
}

/// Sends each datagram back, backwards.
pub(crate) async fn echo_datagrams() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut datagram = vec![0; 1 << 16];
        while let Ok((len, from)) = socket.recv_from(&mut datagram).await {
            datagram[..len].reverse();
            let _ = socket.send_to(&datagram[..len], from).await;
        }
    });
    address
}

fn request(target: SocketAddr) -> TunnelRequest {
    TunnelRequest {
        transport: Transport::Udp,
        target: target.into(),
        service: None,
        isolation: String::new(),
        timeout: Duration::from_secs(30),
        carrier: None,
        patience: None,
    }
}

async fn client(node: &TestNode) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(node.entrance()).await.unwrap();
    socket
}

/// Sends datagrams of all sizes, and expects each backwards.
async fn check_echo(client: &UdpSocket) {
    for size in SIZES {
        let sent: Vec<u8> = (0..=250).cycle().take(size).collect();
        client.send(&sent).await.unwrap();
        let mut back = hears(client).await;
        back.reverse();
        assert!(back == sent, "{} of {size} bytes", back.len());
    }
}

/// A datagram's drop is counted a moment after it was sent.
async fn dropped(node: &TestNode, reason: &str) -> u64 {
    let line = format!("wormholes_datagrams_dropped_total{{reason=\"{reason}\"}}");
    node.metric(&line).await.unwrap()
}

/// Waits until as many datagrams found no flow.
async fn until_dropped(node: &TestNode, count: u64) {
    let counted = async { while dropped(node, "closed").await < count {} };
    let counted = tokio::time::timeout(Duration::from_secs(30), counted);
    counted.await.unwrap();
}

#[tokio::test]
async fn datagrams_of_every_size_go_to_the_target_and_come_back_to_who_sent_them() {
    let node = TestNode::start(DIRECT, &entrance(echo_datagrams().await)).await;
    let (one, other) = (client(&node).await, client(&node).await);
    check_echo(&one).await;
    other.send(b"other").await.unwrap();
    one.send(b"one").await.unwrap();
    assert_eq!(hears(&other).await, b"rehto");
    assert_eq!(hears(&one).await, b"eno");
    let flows = node.node.core().flows.living(9);
    assert_eq!(flows.len(), 2);
    for flow in flows {
        let (story, _) = node.story(flow.id);
        assert_eq!((flow.entrance, flow.transport), ("udp", Transport::Udp));
        assert_eq!(story.tunnel, Some(TunnelKind::Direct));
    }
    let open = r#"wormholes_flow_bytes_total{direction="up",tunnel="direct"}"#;
    let sent: usize = SIZES.iter().sum();
    assert_eq!(node.metric(open).await, Some(sent as u64 + 8));
}

#[tokio::test]
async fn a_peer_dials_for_datagrams_or_has_a_service_of_them() {
    let silent = NameServer::start(&[]).await;
    let echo = echo_datagrams().await;
    let config = format!(
        "[node]\nlisten = ['127.0.0.1:0']\n\
        [exit]\nenabled = true\nallow = ['127.0.0.0/8']\nallow_private = true\n\
        [[service]]\nname = 'web'\ntarget = '127.0.0.1:9'\n\
        [[service]]\nname = 'echo'\ntarget = '{echo}'\nnetwork = 'udp'\n"
    );
    let hook = "fn exit(x) { if x.network == \"udp\" { allow() } else { deny(\"tcp\") } }";
    let far = TestNode::start_with(hook, &config, asking(&silent)).await;
    for (plan, target) in [
        ("direct().exit()", echo.to_string()),
        ("direct()", "echo.far.wh:7".to_owned()),
        ("direct()", "far.wh:7".to_owned()),
    ] {
        let route = format!("fn route(c) {{ peer(\"far\").{plan} }}");
        let node = TestNode::start(&route, &entrance(&target)).await;
        node.befriend(&[("far", &far)]);
        let client = client(&node).await;
        check_echo(&client).await;
    }
    let network = &far.node.core().network;
    let counters = network.counters();
    let once: usize = SIZES.iter().sum();
    for role in [&counters.exit, &counters.service] {
        let bytes = role.bytes.load(Relaxed);
        assert!(bytes >= 2 * once as u64, "{bytes}");
    }
    // A TCP flow finds the service of its own network only.
    let route = "fn route(c) { peer(\"far\").direct() }";
    let socks = format!("{}{METRICS}", crate::support::SOCKS);
    let node = TestNode::start(route, &socks).await;
    node.befriend(&[("far", &far)]);
    assert_eq!(node.socks("echo.far.wh:7").await.0, 4);
    let route = "fn route(c) { peer(\"far\").direct().exit() }";
    let node = TestNode::start(route, &socks).await;
    node.befriend(&[("far", &far)]);
    assert_eq!(node.socks("127.0.0.1:9").await.0, 2, "the hook denies tcp");
}

#[tokio::test]
async fn rules_tell_networks_apart_and_a_refused_sender_is_asked_about_once_a_second() {
    let rules = r#"fn route(c) { if c.network == "tcp" { direct() } else { block("no udp") } }"#;
    let node = TestNode::start(rules, &entrance(echo_datagrams().await)).await;
    let client = client(&node).await;
    let begun = Instant::now();
    for sent in 1..=20 {
        client.send(b"hello").await.unwrap();
        until_dropped(&node, sent).await;
    }
    let (story, _) = node.story(1);
    assert_eq!(story.end.as_deref(), Some("blocked: no udp"));
    let blocked = concat!(
        r#"wormholes_flows_total{entrance="udp",network="udp","#,
        r#"outcome="blocked",tunnel="block"}"#
    );
    let seconds = begun.elapsed().as_secs();
    assert!(node.metric(blocked).await.unwrap() <= 2 + seconds);
}

#[tokio::test]
async fn a_flow_whose_peer_is_gone_ends_and_the_next_datagram_takes_the_next_step() {
    let silent = NameServer::start(&[]).await;
    let exit = TestNode::exit("fn exit(x) { allow() }", &silent).await;
    let rules = "fn route(c) { peer(\"exit\").direct().exit().timeout(\"2s\").or(direct()) }";
    let node = TestNode::start(rules, &entrance(echo_datagrams().await)).await;
    node.befriend(&[("exit", &exit)]);
    let client = client(&node).await;
    check_echo(&client).await;
    exit.node.shutdown().await;
    let flows = &node.node.core().flows;
    until("the flow ends", || flows.open() == 0).await;
    check_echo(&client).await;
    let paths = [1, 2].map(|flow| node.story(flow).0.path.len());
    assert_eq!(paths, [1, 0], "nodes on the way");
}

#[tokio::test]
async fn an_upstream_proxy_gets_no_datagrams_and_the_next_step_does() {
    let rules = r#"fn route(c) { socks("127.0.0.1:9").or(direct()) }"#;
    let node = TestNode::start(rules, &entrance(echo_datagrams().await)).await;
    check_echo(&client(&node).await).await;
    let (_, tries) = node.story(1);
    let (tunnel, error) = &tries[0];
    let error = error.as_deref().unwrap();
    assert!(
        tunnel == "socks 127.0.0.1:9" && error.starts_with("UDP does not go"),
        "{tries:?}"
    );
}

#[tokio::test]
async fn a_silent_flow_ends_well_and_the_next_datagram_begins_another() {
    let config = format!(
        "{}[limits]\nudp_idle_seconds = 1\n",
        entrance(echo_datagrams().await)
    );
    let node = TestNode::start(DIRECT, &config).await;
    let client = client(&node).await;
    for flow in 1..=2 {
        check_echo(&client).await;
        let flows = &node.node.core().flows;
        until("the flow ends", || flows.open() == 0).await;
        assert_eq!(node.story(flow).0.end, None);
    }
}

#[tokio::test]
async fn bytes_of_datagrams_count_against_the_limits_of_a_plan() {
    let rules = "fn route(c) { direct().bytes(\"100kB\") }";
    let node = TestNode::start(rules, &entrance(echo_datagrams().await)).await;
    let client = client(&node).await;
    client.send(&[1; 40_000]).await.unwrap();
    assert_eq!(hears(&client).await.len(), 40_000);
    client.send(&[2; 40_000]).await.unwrap();
    let flows = &node.node.core().flows;
    until("the flow ends", || flows.open() == 0).await;
    let end = node.story(1).0.end.unwrap();
    assert!(end.contains("byte limit"), "{end}");
}

#[tokio::test]
async fn what_is_sent_while_the_tunnel_opens_arrives_in_order() {
    let rules = "fn route(c) { direct().delay(\"300ms\") }";
    let node = TestNode::start(rules, &entrance(echo_datagrams().await)).await;
    let client = client(&node).await;
    for number in 0..100_u8 {
        client.send(&[number]).await.unwrap();
    }
    for number in 0..100_u8 {
        assert_eq!(hears(&client).await, [number]);
    }
    assert_eq!(dropped(&node, "full").await, 0);
}

#[tokio::test]
async fn no_datagram_comes_back_to_a_socket_of_the_node_itself() {
    let node = TestNode::start(DIRECT, &entrance("127.0.0.1:9")).await;
    let direct = Tunnel::Direct {
        to: None,
        exit: false,
    };
    let network = &node.node.core().network;
    let own = network.open(&direct, &request(node.entrance())).await;
    let refused = own.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "dialling from here: forbidden: the node's own address"
    );
    let elsewhere = echo_datagrams().await;
    network.open(&direct, &request(elsewhere)).await.unwrap();
}

#[tokio::test]
async fn no_exit_sends_datagrams_to_a_banned_address() {
    let exit = async |more: &str| {
        let config = format!(
            "[node]\nlisten = ['127.0.0.1:0']\n[exit]\nenabled = true\nallow = ['0.0.0.0/0:53']\n{more}"
        );
        TestNode::start("fn exit(x) { allow() }", &config).await
    };
    let (strict, private) = (exit("").await, exit("allow_private = true\n").await);
    let node = TestNode::start(DIRECT, "[node]\nlisten = ['127.0.0.1:0']\n").await;
    node.befriend(&[("strict", &strict), ("private", &private)]);
    let network = &node.node.core().network;
    for (exit, target, expected) in [
        (&strict, "127.0.0.1:53", Reason::ForbiddenAddress),
        (&strict, "10.0.0.1:53", Reason::ForbiddenAddress),
        (&strict, "224.0.0.251:53", Reason::ForbiddenAddress),
        (&private, "169.254.169.254:53", Reason::ForbiddenAddress),
        (&private, "127.0.0.1:54", Reason::Denied),
    ] {
        let tunnel = Tunnel::Direct {
            to: Some(exit.node.id()),
            exit: true,
        };
        let opened = network
            .open(&tunnel, &request(target.parse().unwrap()))
            .await;
        assert_eq!(opened.unwrap_err().reason(), expected, "{target}");
    }
}

#[tokio::test]
async fn a_stop_waits_for_no_silent_sender() {
    let node = TestNode::start(DIRECT, &entrance(echo_datagrams().await)).await;
    check_echo(&client(&node).await).await;
    let begun = Instant::now();
    node.node.shutdown().await;
    // The drain time is 30 s.
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn more_senders_than_flows_are_turned_away_and_the_first_go_on() {
    let config = format!("{}[limits]\nflows = 2\n", entrance(echo_datagrams().await));
    let node = TestNode::start(DIRECT, &config).await;
    let clients = [
        client(&node).await,
        client(&node).await,
        client(&node).await,
    ];
    for client in &clients[..2] {
        check_echo(client).await;
    }
    clients[2].send(b"x").await.unwrap();
    until_dropped(&node, 1).await;
    let flows = node.node.core().flows.living(9);
    let ids: BTreeSet<u64> = flows.iter().map(|flow| flow.id).collect();
    assert_eq!(ids, [1, 2].into());
    check_echo(&clients[0]).await;
}
