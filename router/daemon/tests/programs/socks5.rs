//! SOCKS5: data, half-close, labels, users, and the reply code of each refusal.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    DIRECT, SOCKS, TestNode, check_echo, closed_port, echo, greeter, read, socks_request,
};

#[tokio::test]
async fn bytes_and_half_closes_pass_in_both_directions() {
    let node = TestNode::start(DIRECT, SOCKS).await;
    let (reply, mut stream) = node.socks(&echo().await.to_string()).await;
    assert_eq!(reply, 0);
    check_echo(&mut stream, &vec![7; 3 << 20]).await;
    let (_, mut stream) = node.socks(&greeter().await.to_string()).await;
    assert_eq!(read(&mut stream, 5).await, b"hello");
    drop(stream);
    node.node.shutdown().await;
}

#[tokio::test]
async fn what_a_client_sends_early_belongs_to_the_flow() {
    let node = TestNode::start(DIRECT, SOCKS).await;
    let port = echo().await.port().to_be_bytes();
    let mut stream = node.connect().await;
    let mut all = vec![5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1];
    all.extend(port);
    all.extend(b"early");
    stream.write_all(&all).await.unwrap();
    assert_eq!(read(&mut stream, 12).await[..4], [5, 0, 5, 0]);
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "ylrae");
}

#[tokio::test]
async fn each_refusal_has_its_reply_code() {
    let script = r#"
        fn route(c) {
            if c.host == "blocked.example" { return block("no"); }
            if c.host == "broken.example" { return 1 / 0; }
            direct()
        }"#;
    let node = TestNode::start(script, SOCKS).await;
    let check = async |target: &str, expected: u8| {
        assert_eq!(node.socks(target).await.0, expected, "{target}");
    };
    check("blocked.example:80", 2).await;
    check("broken.example:80", 2).await;
    check("hidden.onion:80", 2).await;
    check("printer.local:80", 2).await;
    check(&closed_port().await.to_string(), 5).await;
    check(&node.entrance().to_string(), 2).await;
    check("a.b.c.wh:80", 4).await;
}

#[tokio::test]
async fn a_proxy_or_a_peer_that_is_down_is_not_taken_for_the_target() {
    let closed = closed_port().await;
    let script = format!(
        r#"fn route(c) {{
            let down = peer("down").direct();
            switch c.host {{
                "upstream.example" => socks("{closed}").closed(),
                "exit.example" => down.exit().closed(),
                _ => down.closed()
            }}
        }}"#
    );
    let node = TestNode::start(&script, SOCKS).await;
    let down = TestNode::start(DIRECT, "").await;
    // It listens nowhere, so that nobody knows an address of it.
    node.befriend(&[("down", &down)]);
    let cases = [
        ("upstream.example:80", 1, "not reached: connection refused"),
        ("exit.example:80", 1, "connecting to down"),
        ("web.down.wh:80", 4, "host unreachable: connecting to down"),
    ];
    for (flow, (target, reply, why)) in (1..).zip(cases) {
        assert_eq!(node.socks(target).await.0, reply, "{target}");
        let end = node.story(flow).0.end.unwrap();
        assert!(end.contains(why), "{target}: {end}");
    }
}

#[tokio::test]
async fn other_commands_and_address_types_are_refused() {
    let node = TestNode::start(DIRECT, SOCKS).await;
    for (command, address, expected) in [(2, 1, 7), (4, 1, 7), (1, 9, 8), (3, 9, 8)] {
        let mut stream = node.connect().await;
        let request = [5, 1, 0, 5, command, 0, address, 127, 0, 0, 1, 0, 80];
        stream.write_all(&request).await.unwrap();
        let reply = read(&mut stream, 4).await;
        assert_eq!(reply, [5, 0, 5, expected], "{command} {address}");
    }
}

#[tokio::test]
async fn users_are_checked_and_seen_by_scripts() {
    let config = format!("{SOCKS}users = {{ alice = 'right' }}\nlabel = 'home'\n");
    let script = r#"fn route(c) {
        if c.user == "alice" && c.label == "home" { direct() } else { block("who?") }
    }"#;
    let node = TestNode::start(script, &config).await;
    let login = async |password: &str| {
        let mut stream = node.connect().await;
        stream.write_all(&[5, 2, 0, 2]).await.unwrap();
        assert_eq!(read(&mut stream, 2).await, [5, 2]);
        let length = u8::try_from(password.len()).unwrap();
        let mut message = b"\x01\x05alice".to_vec();
        message.push(length);
        message.extend(password.as_bytes());
        stream.write_all(&message).await.unwrap();
        (read(&mut stream, 2).await[1], stream)
    };
    let (verdict, mut stream) = login("right").await;
    assert_eq!(verdict, 0);
    assert_eq!(
        socks_request(&mut stream, &echo().await.to_string()).await,
        0
    );
    check_echo(&mut stream, b"abc").await;
    assert_eq!(login("wrong").await.0, 1);
    let mut stream = node.connect().await;
    stream.write_all(&[5, 1, 0]).await.unwrap();
    assert_eq!(read(&mut stream, 2).await, [5, 255]);
}

#[tokio::test]
async fn without_users_any_name_is_a_label() {
    let script = r#"fn route(c) { if c.user == "tab-1" { direct() } else { block("") } }"#;
    let node = TestNode::start(script, SOCKS).await;
    let mut stream = node.connect().await;
    stream
        .write_all(b"\x05\x02\x00\x02\x01\x05tab-1\x01x")
        .await
        .unwrap();
    assert_eq!(read(&mut stream, 4).await, [5, 2, 1, 0]);
    assert_eq!(
        socks_request(&mut stream, &echo().await.to_string()).await,
        0
    );
}

#[tokio::test]
async fn a_target_that_breaks_off_resets_the_program() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let node = TestNode::start(DIRECT, SOCKS).await;
    let (_, mut stream) = node.socks(&target.to_string()).await;
    let (mut server, _) = listener.accept().await.unwrap();
    server.write_all(b"part").await.unwrap();
    assert_eq!(read(&mut stream, 4).await, b"part");
    socket_reset(server);
    let error = stream.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

fn socket_reset(stream: tokio::net::TcpStream) {
    let socket = socket2::SockRef::from(&stream);
    socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
}
