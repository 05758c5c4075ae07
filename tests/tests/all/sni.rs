//! Scripts that ask which server a program's TLS names: the name decides though the program gave
//! an address, and no byte that was read for it is lost.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
    thread,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use wormholes_tests::{Daemon, EchoServer, Fetched, Setup, curl, socks5_ask, socks5_connect};

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

    // A program that only ends what it sends has no TLS either.
    let mut ends = socks5_connect(entrance, &host, port).await.unwrap();
    ends.shutdown().await.unwrap();
    assert_eq!(ends.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    assert!(why(&client, 2).contains("direct: opened"));

    // A script that does not read the name for this flow can refuse it with a reply.
    let mut refused = TcpStream::connect(entrance).await.unwrap();
    assert_eq!(socks5_ask(&mut refused, &host, port ^ 1).await.unwrap(), 2);
}

/// No rule takes what nobody can tell for a flow without TLS.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_cannot_be_read_ends_the_flow() {
    let echo = EchoServer::start(TARGET_IP).await.unwrap();
    let script = "fn route(c) { if c.sni == \"secret.example\" { onion(3) } else { direct() } }";
    let client = Setup::new("client").unwrap().entrances();
    let client = client.config("[limits]\nhandshake_seconds = 1");
    let client = client.script("rules.rhai", script).start().await.unwrap();
    let (entrance, host) = (client.entrance("socks5").unwrap(), TARGET_IP.to_string());
    let connect = || socks5_connect(entrance, &host, echo.address().port());
    let hello = client_hello("secret.example");
    let (half, _) = hello.split_at(hello.len() / 2);
    let begins: [(&[u8], &str); 3] = [
        (b"", "the program says nothing"),
        (half, "cannot be read"),
        (&[22, 3, 1, 0xff, 0xff, 1], "cannot be read"),
    ];
    for (flow, (begin, expected)) in (1..).zip(begins) {
        let mut program = connect().await.unwrap();
        program.write_all(begin).await.unwrap();
        let end = program.read_to_end(&mut Vec::new()).await;
        assert!(end.is_err(), "a flow that is refused is reset");
        let told = why(&client, flow);
        assert!(told.contains(expected), "{told}");
        assert!(!told.contains("direct: opened"), "{told}");
    }
}

/// Some programs wait for no reply, and none has to send its ClientHello at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_hello_is_read_wherever_it_is_cut() {
    let echo = EchoServer::start(TARGET_IP).await.unwrap();
    let script = "fn route(c) { if c.sni == \"cut.example\" { direct() } else { block() } }";
    let client = Setup::new("client").unwrap().entrances();
    let client = client.script("rules.rhai", script).start().await.unwrap();
    let hello = client_hello("cut.example");
    let (port, [a, b, c, d]) = (echo.address().port(), TARGET_IP.octets());
    let [high, low] = port.to_be_bytes();
    let socks5 = [5, 1, 0, 5, 1, 0, 1, a, b, c, d, high, low].to_vec();
    let http = format!("CONNECT {TARGET_IP}:{port} HTTP/1.1\r\nHost: x\r\n\r\n");
    // Two bytes that choose a method, and ten of the reply; a head that ends with an empty line.
    let asked = [("socks5", socks5), ("http", http.into_bytes())];
    for (kind, request) in asked {
        let entrance = client.entrance(kind).unwrap();
        let begin = [request.as_slice(), &hello].concat();
        let cuts = [
            begin.len(),
            request.len(),
            request.len() + 1,
            begin.len() - 1,
        ];
        for cut in cuts {
            let mut program = TcpStream::connect(entrance).await.unwrap();
            program.set_nodelay(true).unwrap();
            let (first, rest) = begin.split_at(cut);
            program.write_all(first).await.unwrap();
            let mut reply = vec![0; 12];
            if kind == "http" {
                while !reply.ends_with(b"\r\n\r\n") {
                    reply.push(program.read_u8().await.unwrap());
                }
            } else {
                program.read_exact(&mut reply).await.unwrap();
            }
            program.write_all(rest).await.unwrap();
            let mut back = vec![0; hello.len()];
            program.read_exact(&mut back).await.unwrap();
            assert_eq!(back, hello, "{kind}, cut at {cut}");
        }
    }
}

fn client_hello(name: &'static str) -> Vec<u8> {
    let config = ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
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
