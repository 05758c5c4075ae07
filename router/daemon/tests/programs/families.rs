//! Flows over IPv6, and to names that have addresses of both families.

use std::{
    net::{Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpSocket, TcpStream},
};

use crate::{
    name_server::NameServer,
    support::{DIRECT, SOCKS, TestNode, asking, check_echo, echo_at, read},
};

const BOTH: [&str; 2] = ["127.0.0.1", "::1"];
/// More than a busy machine adds to a wait, less than a flow may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A node that dials by itself and asks `names` only.
async fn node(names: &NameServer) -> TestNode {
    TestNode::start_with(DIRECT, SOCKS, asking(names)).await
}

/// A flow to `a.example` at this port, which must open.
async fn check_flow(node: &TestNode, port: u16) {
    let (reply, mut stream) = node.socks(&format!("a.example:{port}")).await;
    assert_eq!(reply, 0);
    check_echo(&mut stream, b"over either").await;
}

/// Two sockets at one port of `127.0.0.1` and `::1`.
fn one_port() -> (TcpSocket, TcpSocket, u16) {
    loop {
        let (v4, v6) = (TcpSocket::new_v4().unwrap(), TcpSocket::new_v6().unwrap());
        v4.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = v4.local_addr().unwrap().port();
        if v6.bind((Ipv6Addr::LOCALHOST, port).into()).is_ok() {
            return (v4, v6, port);
        }
    }
}

/// A socket that lets whoever connects wait: its queue is full.
async fn black_hole(socket: TcpSocket) -> (TcpListener, Vec<TcpStream>) {
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    let full = Duration::from_millis(200);
    while let Ok(stream) = tokio::time::timeout(full, TcpStream::connect(address)).await {
        queued.push(stream.unwrap());
    }
    (listener, queued)
}

#[tokio::test]
async fn an_ipv6_literal_is_dialled_however_the_program_writes_it() {
    let target = echo_at("[::1]:0").await;
    let node = TestNode::start(DIRECT, SOCKS).await;
    let (reply, mut stream) = node.socks(&target.to_string()).await;
    assert_eq!(reply, 0);
    check_echo(&mut stream, b"as a name").await;
    let mut stream = node.connect().await;
    let mut request = vec![5, 1, 0, 5, 1, 0, 4];
    request.extend(Ipv6Addr::LOCALHOST.octets());
    request.extend(target.port().to_be_bytes());
    stream.write_all(&request).await.unwrap();
    assert_eq!(read(&mut stream, 12).await[..4], [5, 0, 5, 0]);
    check_echo(&mut stream, b"as an address").await;
}

#[tokio::test]
async fn a_name_may_have_addresses_of_one_family_only() {
    for (ip, at) in [("::1", "[::1]:0"), ("127.0.0.1", "127.0.0.1:0")] {
        let names = NameServer::dual(&[ip], None).await;
        check_flow(&node(&names).await, echo_at(at).await.port()).await;
    }
}

#[tokio::test]
async fn of_two_families_the_one_that_lives_carries_the_flow() {
    let names = NameServer::dual(&BOTH, None).await;
    let node = node(&names).await;
    for at in ["[::1]:0", "127.0.0.1:0"] {
        check_flow(&node, echo_at(at).await.port()).await;
    }
    // The newer family answers nothing at all: the other one has its turn soon.
    let (v4, v6, port) = one_port();
    drop(v4);
    let _hole = black_hole(v6).await;
    echo_at(&format!("127.0.0.1:{port}")).await;
    let start = Instant::now();
    check_flow(&node, port).await;
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_name_server_that_is_silent_on_one_family_holds_nothing_up() {
    for silent in [4, 6] {
        let names = NameServer::dual(&BOTH, Some(silent)).await;
        let at = if silent == 4 {
            "[::1]:0"
        } else {
            "127.0.0.1:0"
        };
        let port = echo_at(at).await.port();
        let node = node(&names).await;
        let start = Instant::now();
        check_flow(&node, port).await;
        assert!(
            start.elapsed() < Duration::from_secs(4),
            "{:?}",
            start.elapsed()
        );
    }
}

#[tokio::test]
async fn rules_see_the_addresses_of_both_families_in_the_order_of_the_dial() {
    let script = r#"fn route(c) {
        if c.ip == () { return need("ip", peer("exit").direct().exit()); }
        if c.ip == "::1" && c.ips == ["::1", "127.0.0.1"] { direct() } else { block(c.ip) }
    }"#;
    let names = NameServer::dual(&BOTH, None).await;
    let exit = TestNode::exit("fn exit(x) { allow() }", &names).await;
    let private = format!("{SOCKS}[exit]\nallow_private = true\n");
    let client = TestNode::start(script, &private).await;
    client.befriend(&[("exit", &exit)]);
    check_flow(&client, echo_at("127.0.0.1:0").await.port()).await;
}

#[tokio::test]
async fn an_exit_asks_its_rules_about_each_family_and_dials_what_they_allow() {
    let names = NameServer::dual(&BOTH, None).await;
    let route = r#"fn route(c) { peer("exit").direct().exit() }"#;
    for (allowed, at) in [("::1", "[::1]:0"), ("127.0.0.1", "127.0.0.1:0")] {
        let rules =
            format!(r#"fn exit(x) {{ if x.ip == "{allowed}" {{ allow() }} else {{ deny("") }} }}"#);
        let exit = TestNode::exit(&rules, &names).await;
        let client = TestNode::start(route, SOCKS).await;
        client.befriend(&[("exit", &exit)]);
        let target: SocketAddr = echo_at(at).await;
        check_flow(&client, target.port()).await;
        let denied = if allowed == "::1" {
            "127.0.0.1"
        } else {
            "[::1]"
        };
        assert_eq!(
            client.socks(&format!("{denied}:{}", target.port())).await.0,
            2
        );
    }
}
