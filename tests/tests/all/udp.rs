//! Datagrams of programs that nobody here wrote, through each kind of tunnel.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use quinn::{ClientConfig, Endpoint, ServerConfig};
use ring::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use wormholes_tests::{
    Answers, EchoServer, HonestFlow, LIMIT, Metrics, More, NameServer, OUTSIDE, TestNetwork, run,
};

/// Each has an entrance of its label, and so its way.
const WAYS: [&str; 6] = ["here", "exit", "tcp", "relay", "onion", "chain"];
const SCRIPT: &str = r#"
fn route(c) {
    if c.network == "tcp" { return peer("exit").direct().exit(); }
    switch c.label {
        "here" => direct(),
        "exit" => peer("exit").direct().exit(),
        "tcp" => peer("exit").direct().exit().carrier("tcp"),
        "relay" => peer("exit").relayed("relay").exit(),
        "onion" => onion(2).closed(),
        "chain" => onion(3).closed(),
        _ => block("no such way"),
    }
}
"#;
/// Where targets are: neither a node's nor the client's address.
const TARGET_IP: Ipv4Addr = Ipv4Addr::new(127, 50, 0, 1);
const BULK_BYTES: usize = 8 << 20;

/// A network whose client forwards datagrams to `target` on every way.
async fn network(target: &str) -> TestNetwork {
    let entrance = |way| {
        format!(
            "[[entrance]]\nkind = \"udp\"\nlisten = \"127.0.0.1:0\"\n\
             target = \"{target}\"\nlabel = \"{way}\"\n"
        )
    };
    let entrances: String = WAYS.map(entrance).concat();
    let more = More {
        client: &entrances,
        over_tcp: true,
        ..More::default()
    };
    TestNetwork::start_with(SCRIPT, more).await.unwrap()
}

/// What `dig` finds by asking at `server`.
async fn dig(server: SocketAddr, name: &str) -> String {
    let mut command = Command::new("dig");
    command
        .arg(format!("@{}", server.ip()))
        .args(["-p", &server.port().to_string()])
        .args(["+short", "+tries=1", "+time=20", name, "A"]);
    let said = tokio::task::spawn_blocking(move || run(&mut command));
    said.await.unwrap().unwrap().trim().to_owned()
}

#[tokio::test]
async fn dig_is_answered_through_every_tunnel_and_the_flows_say_how() {
    let socket = UdpSocket::bind((TARGET_IP, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let found = Ipv4Addr::new(192, 0, 2, 7);
    let answers = Answers::from([("a.example".to_owned(), vec![vec![IpAddr::V4(found)]])]);
    let _names = NameServer::start(socket, answers).unwrap();
    let network = network(&format!("{TARGET_IP}:{port}")).await;
    let client = &network.client;
    for (way, kind) in WAYS
        .into_iter()
        .zip(["direct", "direct", "direct", "relay", "onion", "onion"])
    {
        let entrance = client.entrance(way).unwrap();
        assert_eq!(dig(entrance, "a.example").await, found.to_string(), "{way}");
        let flows = client.call("flows", json!({})).await.unwrap();
        let flow = &flows["flows"][0];
        assert_eq!(flow["network"], "udp", "{way}: {flows}");
        assert_eq!(flow["tunnel"], kind, "{way}: {flows}");
        let why = client.call("why", json!({ "flow": flow["flow"] })).await;
        let why = why.unwrap();
        assert_eq!(why["network"], "udp", "{why}");
        let because: &Vec<Value> = why["decisions"][0]["because"].as_array().unwrap();
        let read = because.iter().any(|pair| pair["name"] == "c.network");
        assert!(read, "{why}");
    }
}

#[tokio::test]
async fn a_name_behind_a_forward_is_found_by_the_end_of_the_tunnel() {
    let socket = UdpSocket::bind((TARGET_IP, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let found = Ipv4Addr::new(192, 0, 2, 8);
    let answers = Answers::from([("b.example".to_owned(), vec![vec![IpAddr::V4(found)]])]);
    let _names = NameServer::start(socket, answers).unwrap();
    // Only the exit can resolve it.
    let network = network(&format!("{OUTSIDE}:{port}")).await;
    for way in ["exit", "tcp", "relay", "onion"] {
        let entrance = network.client.entrance(way).unwrap();
        assert_eq!(dig(entrance, "b.example").await, found.to_string(), "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quic_connection_carries_its_bytes_whole_through_every_tunnel() {
    let (server, certificate) = quic_server();
    let network = network(&server.local_addr().unwrap().to_string()).await;
    let echo = tokio::spawn(echo(server));
    let sent: Vec<u8> = (0..BULK_BYTES).map(|at| (at / 7 % 251) as u8).collect();
    for way in WAYS {
        let entrance = network.client.entrance(way).unwrap();
        let begun = std::time::Instant::now();
        let back = quic_echo(entrance, certificate.clone(), &sent).await;
        let took = begun.elapsed();
        eprintln!("{way}: {BULK_BYTES} bytes there and back in {took:?}");
        assert_eq!(back.len(), sent.len(), "{way}");
        let hashes = [&back, &sent].map(|bytes| digest(&SHA256, bytes));
        assert_eq!(hashes[0].as_ref(), hashes[1].as_ref(), "{way}");
    }
    let metrics = Metrics::read(&network.client).await.unwrap();
    for kind in ["direct", "relay", "onion"] {
        let bytes = metrics.sum(&format!(
            "wormholes_flow_bytes_total{{direction=\"up\",tunnel=\"{kind}\""
        ));
        assert!(bytes > BULK_BYTES as f64, "{kind}: {bytes}");
    }
    echo.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_never_slows_down_holds_up_no_other_flow_of_the_same_peers() {
    let sink = UdpSocket::bind((TARGET_IP, 0)).unwrap();
    let network = network(&sink.local_addr().unwrap().to_string()).await;
    let echo = EchoServer::start(TARGET_IP).await.unwrap();
    let socks = network.client.entrance("socks5").unwrap();
    let mut honest = HonestFlow::open(socks, echo.address()).await.unwrap();
    let flooded = network.client.entrance("exit").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let flood = std::thread::spawn(move || {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut sent = 0_u64;
        while !stopped.load(Relaxed) {
            sent += u64::from(socket.send_to(&[7; 1100], flooded).is_ok());
        }
        sent
    });
    let arrived = move || {
        sink.recv(&mut [0; 1]).unwrap();
    };
    tokio::task::spawn_blocking(arrived).await.unwrap();
    let begun = std::time::Instant::now();
    honest.trips(50).await.unwrap();
    let took = begun.elapsed();
    stop.store(true, Relaxed);
    let sent = flood.join().unwrap();
    let dropped = Metrics::read(&network.client).await.unwrap();
    let dropped = dropped.sum("wormholes_datagrams_dropped_total{reason=\"full\"");
    eprintln!(
        "50 trips of 1 MiB in {took:?} beside {sent} datagrams, {dropped} of them dropped here"
    );
    assert!(took < LIMIT / 2, "{took:?}");
}

/// A server that quinn makes, and the certificate that it shows.
fn quic_server() -> (Endpoint, CertificateDer<'static>) {
    let key = rcgen::generate_simple_self_signed(vec!["target".to_owned()]).unwrap();
    let certificate = CertificateDer::from(key.cert);
    let private = PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let config = ServerConfig::with_single_cert(vec![certificate.clone()], private.into());
    let endpoint = Endpoint::server(config.unwrap(), (TARGET_IP, 0).into()).unwrap();
    (endpoint, certificate)
}

/// Sends back what comes on the first stream of each connection.
async fn echo(server: Endpoint) {
    while let Some(incoming) = server.accept().await {
        tokio::spawn(async move {
            let connection = incoming.await.unwrap();
            let (mut send, mut receive) = connection.accept_bi().await.unwrap();
            while let Ok(Some(chunk)) = receive.read_chunk(1 << 16, true).await {
                send.write_chunk(chunk.bytes).await.unwrap();
            }
            send.finish().unwrap();
            connection.closed().await;
        });
    }
}

/// What comes back of `bytes` over a QUIC connection to whoever is behind `entrance`.
async fn quic_echo(
    entrance: SocketAddr,
    certificate: CertificateDer<'static>,
    bytes: &[u8],
) -> Vec<u8> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let config = ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let connecting = endpoint.connect_with(config, entrance, "target").unwrap();
    let connection = connecting.await.unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    let write = async {
        send.write_all(bytes).await.unwrap();
        send.finish().unwrap();
    };
    let (_, back) = tokio::join!(write, receive.read_to_end(bytes.len() + 1));
    connection.close(0_u32.into(), b"");
    endpoint.wait_idle().await;
    back.unwrap()
}
