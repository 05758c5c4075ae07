//! Scripts that ask which server a program's TLS names: the name decides though the program gave
//! an address, and no byte that was read for it is lost.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
    thread,
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wormholes_tests::{
    Daemon, EchoServer, Fetched, Setup, curl, socks5_ask, socks5_connect, until,
};

const GREETING: &str = "the lamp is lit";
const TARGET_IP: Ipv4Addr = Ipv4Addr::new(127, 84, 0, 1);

#[tokio::test(flavor = "multi_thread")]
async fn the_name_in_tls_decides_where_the_program_gave_an_address() {
    let site = tls_site();
    let script = r#"fn route(c) {
        if c.sni == "good.example" { direct() } else { block(`it asks for ${c.sni}`) }
    }"#;
    let tcp =
        format!("[[entrance]]\nkind = \"tcp\"\nlisten = \"127.0.0.1:0\"\ntarget = \"{site}\"");
    let client = Setup::new("client").unwrap().entrances().config(&tcp);
    let client = client.script("rules.rhai", script).start().await.unwrap();
    let entrance = |kind| client.entrance(kind).unwrap();
    for proxy in [
        format!("socks5://{}", entrance("socks5")),
        format!("socks4://{}", entrance("socks5")),
        format!("http://{}", entrance("http")),
    ] {
        let fetched = fetch(&proxy, "Good.Example", site).await;
        assert_eq!(fetched.body, GREETING.as_bytes(), "{proxy}: {fetched:?}");
        let refused = fetch(&proxy, "other.example", site).await;
        assert_eq!(refused.exit, 35, "{proxy}: {refused:?}");
    }
    // Nobody told this entrance where to; the way there is the config's.
    let fetched = fetch("", "good.example", entrance("tcp")).await;
    assert_eq!(fetched.body, GREETING.as_bytes(), "{fetched:?}");
    let refused = fetch("", "other.example", entrance("tcp")).await;
    assert_eq!(refused.exit, 35, "{refused:?}");

    assert_eq!(why(&client, 1).matches("direct: opened").count(), 1);
    let why = why(&client, 2);
    for part in [
        "need the name in the TLS ClientHello",
        "c.sni = other.example",
        "it asks for other.example",
    ] {
        assert!(why.contains(part), "{part:?} in {why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_without_tls_has_no_name_and_loses_nothing() {
    let echo = EchoServer::start(TARGET_IP).await.unwrap();
    let port = echo.address().port();
    let script = format!(
        "fn route(c) {{
            if c.port != {port} {{ return block(\"another port\"); }}
            if c.sni == () {{ direct() }} else {{ block(c.sni) }}
        }}"
    );
    let client = Setup::new("client").unwrap().entrances();
    let client = client.script("rules.rhai", &script).start().await.unwrap();
    let (entrance, host) = (client.entrance("socks5").unwrap(), TARGET_IP.to_string());

    let mut speaks = socks5_connect(entrance, &host, port).await.unwrap();
    let words = b"GET / HTTP/1.1\r\n\r\n";
    speaks.write_all(words).await.unwrap();
    let mut back = vec![0; words.len()];
    speaks.read_exact(&mut back).await.unwrap();
    assert_eq!(back, words);

    // Nobody waits for ever for a program that lets its server speak first.
    let mut listens = socks5_connect(entrance, &host, port).await.unwrap();
    until("a flow without a word to open", async || {
        why(&client, 2).contains("direct: opened").then_some(())
    })
    .await
    .unwrap();
    listens.write_all(b"late").await.unwrap();
    let mut back = [0; 4];
    listens.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"late");

    // A script that does not read the name for this flow can refuse it with a reply.
    let mut refused = tokio::net::TcpStream::connect(entrance).await.unwrap();
    assert_eq!(socks5_ask(&mut refused, &host, port ^ 1).await.unwrap(), 2);
}

/// Answers each connection over TLS with the greeting, whatever name is asked for.
fn tls_site() -> SocketAddr {
    let key = rcgen::generate_simple_self_signed(vec!["good.example".to_owned()]).unwrap();
    let certificate = CertificateDer::from(key.cert);
    let private = PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], private.into());
    let config = Arc::new(config.unwrap());
    let listener = TcpListener::bind((TARGET_IP, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let tls = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = StreamOwned::new(tls, stream.unwrap());
            let mut request = [0; 4096];
            if stream.read(&mut request).is_ok_and(|read| read > 0) {
                let answer = format!("HTTP/1.0 200 OK\r\n\r\n{GREETING}");
                stream.write_all(answer.as_bytes()).unwrap();
                stream.conn.send_close_notify();
                stream.flush().unwrap();
            }
        }
    });
    address
}

/// Asks for a page of `name`, which is said to be at `address`.
async fn fetch(proxy: &str, name: &str, address: SocketAddr) -> Fetched {
    let url = format!("https://{name}/");
    let there = format!("{name}:443:{address}");
    let more = ["--insecure", "--connect-to", &there];
    curl(proxy, &url, &more).await.unwrap()
}

fn why(client: &Daemon, flow: u64) -> String {
    client.cli(&["why", &flow.to_string()]).unwrap()
}
