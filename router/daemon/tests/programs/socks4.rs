//! SOCKS4 and 4a at a SOCKS5 entrance: its two answers, and what a user id is worth.

use tokio::io::AsyncWriteExt;

use crate::support::{DIRECT, SOCKS, TestNode, check_echo, closed_port, echo, read};

const GRANTED: [u8; 8] = [0, 90, 0, 0, 0, 0, 0, 0];
const REFUSED: [u8; 8] = [0, 91, 0, 0, 0, 0, 0, 0];

/// A request for 127.0.0.1, or for a name.
fn request(port: u16, user: &str, name: Option<&str>) -> Vec<u8> {
    let address = if name.is_some() {
        [0, 0, 0, 1]
    } else {
        [127, 0, 0, 1]
    };
    let mut request = vec![4, 1];
    request.extend(port.to_be_bytes());
    request.extend(address);
    for text in [Some(user), name].into_iter().flatten() {
        request.extend(text.as_bytes());
        request.push(0);
    }
    request
}

#[tokio::test]
async fn addresses_and_names_are_reached_and_the_user_id_is_shown_to_scripts() {
    let script = r#"fn route(c) {
        if c.user == () || c.user == "me" && c.host == "localhost" { direct() } else { block("who?") }
    }"#;
    let node = TestNode::start(script, SOCKS).await;
    let port = echo().await.port();
    for (user, name) in [("", None), ("me", Some("localhost"))] {
        let mut stream = node.connect().await;
        let whole = [&request(port, user, name), &b"early "[..]].concat();
        stream.write_all(&whole).await.unwrap();
        assert_eq!(read(&mut stream, 8).await, GRANTED);
        stream.write_all(b"late").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(read(&mut stream, 10).await, b"etal ylrae");
    }
    let refusals = [
        request(port, "other", None),
        request(closed_port().await.port(), "", None),
        request(80, "me", Some("hidden.onion")),
    ];
    for refused in refusals {
        let mut stream = node.connect().await;
        stream.write_all(&refused).await.unwrap();
        assert_eq!(read(&mut stream, 8).await, REFUSED, "{refused:?}");
    }
}

#[tokio::test]
async fn a_user_id_is_no_password() {
    let config = format!("{SOCKS}users = {{ alice = 'one' }}\n");
    let node = TestNode::start(DIRECT, &config).await;
    let port = echo().await.port();
    let mut stream = node.connect().await;
    stream
        .write_all(&request(port, "alice", None))
        .await
        .unwrap();
    assert_eq!(read(&mut stream, 8).await, REFUSED);
    assert!(node.node.core().flows.find(1).is_none(), "nobody was asked");

    let node = TestNode::start(DIRECT, SOCKS).await;
    let mut stream = node.connect().await;
    stream
        .write_all(&request(port, "alice", None))
        .await
        .unwrap();
    assert_eq!(read(&mut stream, 8).await, GRANTED);
    check_echo(&mut stream, b"nobody is asked for").await;
}
