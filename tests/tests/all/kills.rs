//! kill -9 of a relay, a hop or an exit in mid-flow: flows that only send and flows that only
//! receive end with an error at both ends, and the next flow takes the next step of its plan.

use std::{io, net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use wormholes_tests::{Daemon, TestNetwork, socks5_connect, until};

/// A connection between nodes on which nothing comes is lost after 15 s; the rest is for a busy
/// machine.
const TIME_OUT: Duration = Duration::from_secs(25);

/// One step through the relay, the next straight to the same exit.
const RELAYED_THEN_DIRECT: &str = r#"
fn route(c) {
    let exit = peer("exit");
    exit.relayed(relay("relay")).exit().timeout("5s").or(exit.direct().exit())
}"#;
/// Every node with the role is needed for the first step.
const ONION_THEN_LOCAL: &str = r#"
fn route(c) { onion(4).timeout("5s").or(direct()) }"#;

#[tokio::test]
async fn a_killed_relay_ends_its_flows_and_the_next_takes_the_next_step() {
    let mut network = TestNetwork::start(RELAYED_THEN_DIRECT).await.unwrap();
    let mut flows = Flows::open(&network.client, "relay").await;
    network.relay.kill().unwrap();
    flows.end(&network.client).await;
    flows.target.end_too().await;
    next_takes(&network.client, &flows.target, json!(["exit"])).await;
}

#[tokio::test]
async fn a_killed_hop_ends_its_flows_and_the_next_takes_the_next_step() {
    let mut network = TestNetwork::start(ONION_THEN_LOCAL).await.unwrap();
    let mut flows = Flows::open(&network.client, "onion").await;
    let why = why(&network.client, 1).await;
    let middle = why["path"][2]["name"].as_str().unwrap();
    let hop = network.hops.iter_mut().find(|hop| hop.name() == middle);
    hop.unwrap().kill().unwrap();
    flows.end(&network.client).await;
    flows.target.end_too().await;
    next_takes(&network.client, &flows.target, json!([])).await;
}

#[tokio::test]
async fn a_killed_exit_ends_its_flows_and_the_next_takes_the_next_step() {
    let mut network = TestNetwork::start(ONION_THEN_LOCAL).await.unwrap();
    let mut flows = Flows::open(&network.client, "onion").await;
    network.exit.kill().unwrap();
    // The target saw the exit's own end of the connection close.
    flows.end(&network.client).await;
    next_takes(&network.client, &flows.target, json!([])).await;
}

/// Two flows in full swing: the first only sends, the second only receives.
struct Flows {
    sending: TcpStream,
    receiving: TcpStream,
    target: Target,
}

impl Flows {
    async fn open(client: &Daemon, tunnel: &str) -> Self {
        let target = Target::start().await;
        let mut sending = connect(client, target.address).await;
        sending.write_all(&[SINK; 100_000]).await.unwrap();
        let mut receiving = connect(client, target.address).await;
        receiving.write_all(&[SOURCE]).await.unwrap();
        receiving.read_exact(&mut vec![0; 100_000]).await.unwrap();
        for flow in [1, 2] {
            assert_eq!(why(client, flow).await["tunnel"], tunnel);
        }
        Self {
            sending,
            receiving,
            target,
        }
    }

    /// A cut must not look like an end: the program gets an error, not an empty read.
    async fn end(&mut self, client: &Daemon) {
        let sent = async { while self.sending.write_all(&[SINK; 10_000]).await.is_ok() {} };
        let received = async {
            let mut buffer = vec![0; 10_000];
            while let Ok(len) = self.receiving.read(&mut buffer).await {
                assert_ne!(len, 0, "the flow seemed to end well");
            }
        };
        let both = async { tokio::join!(sent, received) };
        let ended = tokio::time::timeout(TIME_OUT, both).await;
        ended.expect("the flows outlive their time-out");
        for flow in [1, 2] {
            let why = until("a flow's story to end", async || {
                let why = why(client, flow).await;
                (why["state"] == "ended").then_some(why)
            });
            let why = why.await.unwrap();
            assert!(why["end"].is_string(), "{why}");
        }
    }
}

/// What a connection to the target begins with.
const SINK: u8 = b'<';
const SOURCE: u8 = b'>';
const ECHO: u8 = b'=';

/// A server that only reads, only writes, or echoes, and tells how each of its connections ended.
struct Target {
    address: SocketAddr,
    ends: mpsc::UnboundedReceiver<io::Result<()>>,
}

impl Target {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.50.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ends) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let end = end.clone();
                tokio::spawn(async move { end.send(serve(stream).await) });
            }
        });
        Self { address, ends }
    }

    /// The target of both flows was not left with half of what was to come, or with nobody to
    /// send to.
    async fn end_too(&mut self) {
        for _ in 0..2 {
            let end = tokio::time::timeout(TIME_OUT, self.ends.recv()).await;
            let end = end.expect("the target waits for ever").unwrap();
            assert!(end.is_err(), "the connection seemed to end well");
        }
    }
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    match stream.read_u8().await? {
        SOURCE => loop {
            stream.write_all(&[SOURCE; 10_000]).await?;
        },
        ECHO => {
            let (mut reader, mut writer) = stream.split();
            tokio::io::copy(&mut reader, &mut writer).await.map(drop)
        }
        _ => tokio::io::copy(&mut stream, &mut tokio::io::sink())
            .await
            .map(drop),
    }
}

async fn connect(client: &Daemon, target: SocketAddr) -> TcpStream {
    let entrance = client.entrance("socks5").unwrap();
    let host = target.ip().to_string();
    socks5_connect(entrance, &host, target.port())
        .await
        .unwrap()
}

/// The third flow's first step fails, and its second one goes straight, along `path`.
async fn next_takes(client: &Daemon, target: &Target, path: Value) {
    let mut flow = connect(client, target.address).await;
    flow.write_all(&[ECHO, b'!']).await.unwrap();
    assert_eq!(flow.read_u8().await.unwrap(), b'!');
    let why = why(client, 3).await;
    let passed = why["path"].as_array().unwrap().iter();
    let passed: Value = passed.map(|node| node["name"].clone()).collect();
    assert_eq!((&why["tunnel"], passed), (&json!("direct"), path), "{why}");
    let steps = why["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 2, "{why}");
    assert!(steps[0]["error"].is_string(), "{why}");
}

async fn why(client: &Daemon, flow: u64) -> Value {
    client.call("why", json!({"flow": flow})).await.unwrap()
}
