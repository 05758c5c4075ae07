//! HTTP proxy: CONNECT, absolute form with keep-alive and streams, users, and error pages.

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{DIRECT, HTTP, TestNode, check_echo, closed_port, echo, greeter, read_all};

/// Answers with the request: its line, its headers, and how long its body is.
async fn site() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, from)) = listener.accept().await {
            let service = service_fn(move |request| describe(request, from));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

async fn describe(
    request: Request<Incoming>,
    from: SocketAddr,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let len = body.collect().await.unwrap().to_bytes().len();
    let mut text = format!("{} {} body={len} from={from}\n", parts.method, parts.uri);
    for (name, value) in &parts.headers {
        text += &format!("{name}: {}\n", value.to_str().unwrap());
    }
    let response = Response::builder()
        .header("x-hop", "1")
        .header("connection", "x-hop");
    Ok(response.body(Full::new(text.into())).unwrap())
}

/// Sends one request and reads until the proxy closes.
async fn ask(node: &TestNode, request: &str) -> String {
    let mut stream = node.connect().await;
    stream.write_all(request.as_bytes()).await.unwrap();
    String::from_utf8(read_all(&mut stream).await).unwrap()
}

fn close(line: &str) -> String {
    format!("{line} HTTP/1.1\r\nhost: other.example\r\nconnection: close\r\n\r\n")
}

#[tokio::test]
async fn connect_hands_the_connection_over() {
    let node = TestNode::start(DIRECT, HTTP).await;
    let target = echo().await;
    let mut stream = node.connect().await;
    // The first bytes may come with the request.
    let request = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\nhello ");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 200"), "{head:?}");
    assert!(
        !head
            .windows(14)
            .any(|w| w.eq_ignore_ascii_case(b"content-length"))
    );
    stream.write_all(b"world").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stream).await, b"dlrow olleh");
    let mut stream = node.connect().await;
    let request = format!("CONNECT {target} HTTP/1.1\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = vec![0; 17];
    stream.read_exact(&mut head).await.unwrap();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    check_echo(&mut stream, &vec![9; 1 << 20]).await;
}

#[tokio::test]
async fn a_request_in_absolute_form_reaches_the_site_in_origin_form() {
    let node = TestNode::start(DIRECT, HTTP).await;
    let site = site().await;
    let request = format!(
        "POST http://{site}/a?b=c HTTP/1.1\r\nhost: other.example\r\nproxy-connection: close\r\n\
         connection: close, x-mine\r\nx-mine: 1\r\nproxy-authorization: Basic YTpi\r\n\
         accept: text/plain\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    );
    let answer = ask(&node, &request).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("POST /a?b=c body=5"), "{answer}");
    assert!(answer.contains(&format!("host: {site}\n")), "{answer}");
    assert!(answer.contains("accept: text/plain"), "{answer}");
    for absent in ["x-mine", "proxy-", "x-hop", "other.example", "via:"] {
        assert!(!answer.contains(absent), "{absent} in {answer}");
    }
}

#[tokio::test]
async fn both_sides_of_a_forwarded_request_are_kept_alive() {
    let node = TestNode::start(DIRECT, HTTP).await;
    let site = site().await;
    let request = |end: &str| format!("GET http://{site}/ HTTP/1.1\r\nhost: x\r\n{end}\r\n");
    let all = request("") + request("").as_str() + request("connection: close\r\n").as_str();
    let answer = ask(&node, &all).await;
    let from: Vec<_> = answer
        .lines()
        .filter_map(|line| line.split("from=").nth(1))
        .collect();
    assert_eq!(from.len(), 3, "{answer}");
    assert!(from.iter().all(|port| *port == from[0]), "{from:?}");
    assert_eq!(node.node.core().flows.find(2).map(|flow| flow.id), None);
}

#[tokio::test]
async fn each_refusal_has_its_status_and_a_page() {
    let script = r#"fn route(c) {
        if c.host == "blocked.example" { return block("not today"); }
        if c.host == "slow.example" { return direct().delay("1h").timeout("1ms"); }
        direct()
    }"#;
    let node = TestNode::start(script, HTTP).await;
    let check = async |line: &str, status: &str, page: &str| {
        let answer = ask(&node, &close(line)).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{line}: {answer}"
        );
        assert!(answer.contains(page), "{line}: {answer}");
    };
    check(
        "GET http://blocked.example/",
        "403",
        "wormholes: blocked: not today",
    )
    .await;
    check("CONNECT blocked.example:443", "403", "not today").await;
    check("CONNECT hidden.onion:80", "403", "special-use").await;
    let closed = closed_port().await;
    check(
        &format!("GET http://{closed}/"),
        "502",
        "connection refused",
    )
    .await;
    check(&format!("CONNECT {closed}"), "502", "connection refused").await;
    let own = node.entrance();
    check(&format!("GET http://{own}/"), "403", "this router itself").await;
    check("GET /", "400", "this is a proxy").await;
    check("GET https://a.example/", "400", "this is a proxy").await;
    check("CONNECT a.example:0", "400", "this is a proxy").await;
}

#[tokio::test]
async fn a_target_that_is_no_web_site_is_a_bad_gateway() {
    let node = TestNode::start(DIRECT, HTTP).await;
    let target = greeter().await;
    let answer = ask(&node, &close(&format!("GET http://{target}/"))).await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
}

#[tokio::test]
async fn users_are_asked_for_and_checked() {
    let config = format!("{HTTP}users = {{ alice = 'pw' }}\n");
    let node = TestNode::start(r#"fn route(c) { block(c.user) }"#, &config).await;
    let request = |header: &str| {
        format!("GET http://a.example/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n")
    };
    for header in ["", "proxy-authorization: Basic YWxpY2U6bm8=\r\n"] {
        let answer = ask(&node, &request(header)).await;
        assert!(answer.starts_with("HTTP/1.1 407"), "{answer}");
        assert!(answer.contains("proxy-authenticate: Basic"), "{answer}");
    }
    // alice:pw
    let answer = ask(
        &node,
        &request("proxy-authorization: Basic YWxpY2U6cHc=\r\n"),
    )
    .await;
    assert!(answer.contains("blocked: alice"), "{answer}");
}

#[tokio::test]
async fn a_client_without_a_login_keeps_no_connection() {
    let config = format!("{HTTP}users = {{ alice = 'pw' }}\n");
    let node = TestNode::start(DIRECT, &config).await;
    let requests = [
        ("GET http://a.example/ HTTP/1.1\r\nhost: x\r\n\r\n", "407"),
        (
            "GET /local HTTP/1.1\r\nhost: x\r\nproxy-authorization: Basic YWxpY2U6cHc=\r\n\r\n",
            "400",
        ),
    ];
    for (request, status) in requests {
        // The answer ends: the node closes the connection.
        let answer = ask(&node, request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_client_that_goes_away_gives_its_flow_up() {
    let script = r#"fn route(c) { direct().delay("1h") }"#;
    let node = TestNode::start(script, HTTP).await;
    let mut stream = node.connect().await;
    stream
        .write_all(b"CONNECT a.example:80 HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let flows = node.node.core().flows.clone();
    while flows.open() == 0 {
        tokio::task::yield_now().await;
    }
    drop(stream);
    while flows.open() > 0 {
        tokio::task::yield_now().await;
    }
}
