//! SOCKS5 UDP ASSOCIATE, datagram by datagram.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, UdpSocket},
};
use wormholes_proto::encode_socks_datagram_head;

use crate::{
    name_server::NameServer,
    support::{DIRECT, SOCKS, TestNode, asking, hears, read, until},
    udp::echo_datagrams,
};

const METRICS: &str = "[metrics]\nlisten = '127.0.0.1:0'\n";

/// An association and the socket of its client.
struct Association {
    control: TcpStream,
    relay: SocketAddr,
    socket: UdpSocket,
}

impl Association {
    /// Asks for one; `named` is the port that the client says it sends from.
    async fn open(node: &TestNode, named: Option<u16>) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut control = node.connect().await;
        control.write_all(&[5, 1, 0]).await.unwrap();
        assert_eq!(read(&mut control, 2).await, [5, 0]);
        let request = [
            &[5, 3, 0, 1, 0, 0, 0, 0][..],
            &named.unwrap_or(0).to_be_bytes(),
        ];
        control.write_all(&request.concat()).await.unwrap();
        let reply = read(&mut control, 10).await;
        assert_eq!(reply[..4], [5, 0, 0, 1]);
        let ip = Ipv4Addr::new(reply[4], reply[5], reply[6], reply[7]);
        let port = u16::from_be_bytes([reply[8], reply[9]]);
        Self {
            control,
            relay: (ip, port).into(),
            socket,
        }
    }

    async fn send(&self, target: &str, data: &[u8]) {
        let head = encode_socks_datagram_head(&target.parse().unwrap());
        self.send_raw(&[&head, data].concat()).await;
    }

    async fn send_raw(&self, datagram: &[u8]) {
        self.socket.send_to(datagram, self.relay).await.unwrap();
    }

    /// Sends `data` and expects it backwards, from where it was sent to.
    async fn check_echo(&self, target: &str, data: &[u8]) {
        self.send(target, data).await;
        let head = encode_socks_datagram_head(&target.parse().unwrap());
        let mut expected = data.to_vec();
        expected.reverse();
        assert_eq!(hears(&self.socket).await, [head, expected].concat());
    }
}

async fn node(script: &str) -> TestNode {
    TestNode::start(script, &format!("{SOCKS}{METRICS}")).await
}

async fn dropped(node: &TestNode, reason: &str) -> u64 {
    let line = format!("wormholes_datagrams_dropped_total{{reason=\"{reason}\"}}");
    node.metric(&line).await.unwrap()
}

#[tokio::test]
async fn one_association_reaches_many_targets_each_by_a_decision_of_its_own() {
    let node = node(r#"fn route(c) { if c.network == "udp" { direct() } }"#).await;
    let association = Association::open(&node, None).await;
    let targets = [echo_datagrams().await, echo_datagrams().await];
    for target in targets {
        association.check_echo(&target.to_string(), b"hello").await;
    }
    let stories = [1, 2].map(|flow| node.node.core().flows.find(flow).unwrap());
    for (flow, target) in stories.iter().zip(targets) {
        assert_eq!(flow.target, target.into());
        assert_eq!((flow.entrance, flow.story().decisions.len()), ("socks5", 1));
    }
}

#[tokio::test]
async fn a_name_travels_to_where_the_plan_looks_it_up_and_comes_back_as_it_went() {
    let echo = echo_datagrams().await;
    let names = NameServer::start(&[Ipv4Addr::LOCALHOST]).await;
    let silent = NameServer::start(&[]).await;
    let exit = TestNode::exit("fn exit(x) { allow() }", &names).await;
    let route = "fn route(c) { peer(\"exit\").direct().exit() }";
    let config = format!("{SOCKS}{METRICS}");
    let node = TestNode::start_with(route, &config, asking(&silent)).await;
    node.befriend(&[("exit", &exit)]);
    let association = Association::open(&node, None).await;
    let target = format!("name.example:{}", echo.port());
    association.check_echo(&target, b"hello").await;
    assert!(silent.asked().is_empty(), "{:?}", silent.asked());
    assert!(!names.asked().is_empty());
}

#[tokio::test]
async fn datagrams_that_are_not_the_clients_or_not_whole_go_nowhere_and_are_counted() {
    let node = node(DIRECT).await;
    let target = echo_datagrams().await;
    let association = Association::open(&node, None).await;
    let port = target.port().to_be_bytes();
    let bad: [&[u8]; 7] = [
        b"",
        b"\0\0",
        &[&[0, 0, 1, 1, 127, 0, 0, 1][..], &port, b"fragment"].concat(),
        &[&[0, 0, 0, 9, 127, 0, 0, 1][..], &port, b"kind"].concat(),
        b"\0\0\0\x01\x7f\0\0\x01\0\0port",
        b"\0\0\0\x03\0\0\x35name",
        b"\0\0\0\x03\xffname",
    ];
    for datagram in bad {
        association.send_raw(datagram).await;
    }
    // None of those has made the port the client's: the first good one does.
    association.check_echo(&target.to_string(), b"good").await;
    assert_eq!(dropped(&node, "malformed").await, bad.len() as u64);
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let neighbour = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    let good = encode_socks_datagram_head(&target.into());
    for other in [&stranger, &neighbour] {
        other.send_to(&good, association.relay).await.unwrap();
    }
    association.check_echo(&target.to_string(), b"still").await;
    assert_eq!(dropped(&node, "foreign").await, 2);
    assert_eq!(node.node.core().flows.open(), 1);
}

#[tokio::test]
async fn only_the_port_that_the_client_named_counts() {
    let node = node(DIRECT).await;
    let target = echo_datagrams().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let named = socket.local_addr().unwrap().port();
    let association = Association::open(&node, Some(named)).await;
    association
        .send(&target.to_string(), b"from another port")
        .await;
    let head = encode_socks_datagram_head(&target.into());
    let datagram = [&head[..], b"abc"].concat();
    socket.send_to(&datagram, association.relay).await.unwrap();
    assert_eq!(hears(&socket).await, [&head[..], b"cba"].concat());
    assert_eq!(dropped(&node, "foreign").await, 1);
}

#[tokio::test]
async fn an_association_ends_with_its_connection_and_so_do_its_flows() {
    let node = node(DIRECT).await;
    let target = echo_datagrams().await.to_string();
    let association = Association::open(&node, None).await;
    association.check_echo(&target, b"hello").await;
    let flows = &node.node.core().flows;
    assert_eq!(flows.open(), 1);
    drop(association.control);
    until("the flow ends", || flows.open() == 0).await;
    assert_eq!(node.story(1).0.end, None);
    // Its socket is nobody's own any more.
    until("its port is free", || {
        std::net::UdpSocket::bind(association.relay).is_ok()
    })
    .await;
}

#[tokio::test]
async fn beyond_its_flows_an_association_lets_the_quietest_go() {
    const MAX_FLOWS: usize = 256;
    let node = node(DIRECT).await;
    let association = Association::open(&node, None).await;
    let echo = echo_datagrams().await.to_string();
    association.check_echo(&echo, b"first").await;
    let sink = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = sink.local_addr().unwrap().port();
    for last in 1..=u8::MAX {
        // As many targets as there are addresses of loopback.
        association
            .send(&format!("127.0.1.{last}:{port}"), b"x")
            .await;
    }
    let flows = &node.node.core().flows;
    until("all are open", || flows.open() == MAX_FLOWS).await;
    association.check_echo(&echo, b"not the quietest").await;
    association.send(&format!("127.0.2.1:{port}"), b"x").await;
    until("one came and one went", || {
        flows.find(MAX_FLOWS as u64 + 1).is_some() && flows.open() == MAX_FLOWS
    })
    .await;
    association.check_echo(&echo, b"the same flow").await;
    assert_eq!(flows.living(1)[0].id, MAX_FLOWS as u64 + 1);
    assert_eq!(node.story(1).0.end, None);
    assert!(flows.find(1).unwrap().story().state == wormholes_proto::control::FlowState::Open);
}

#[tokio::test]
async fn users_hold_for_associations_too() {
    let guarded = format!("{SOCKS}users = {{ ada = 'pw' }}\n");
    let node = TestNode::start(
        "fn route(c) { if c.user == \"ada\" { direct() } }",
        &guarded,
    )
    .await;
    let mut control = node.connect().await;
    control.write_all(&[5, 1, 0]).await.unwrap();
    assert_eq!(read(&mut control, 2).await, [5, 255]);
    let mut control = node.connect().await;
    control
        .write_all(b"\x05\x01\x02\x01\x03ada\x02pw\x05\x03\0\x01\0\0\0\0\0\0")
        .await
        .unwrap();
    assert_eq!(read(&mut control, 4).await, [5, 2, 1, 0]);
    let reply = read(&mut control, 10).await;
    let relay = SocketAddr::from(([127, 0, 0, 1], u16::from_be_bytes([reply[8], reply[9]])));
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let head = encode_socks_datagram_head(&echo_datagrams().await.into());
    socket
        .send_to(&[&head[..], b"123"].concat(), relay)
        .await
        .unwrap();
    assert_eq!(hears(&socket).await, [&head[..], b"321"].concat());
}
