//! kill -9 of a relay, a hop or an exit in mid-flow: that flow ends, the next takes another way.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use wormholes_tests::{
    Daemon, EchoServer, LIMIT, OUTSIDE, SITE_GREETING, TestNetwork, curl, socks5_connect,
};

/// One step through the relay, the next straight to the same exit.
const RELAYED_THEN_DIRECT: &str = r#"
fn route(c) {
    let exit = peer("exit");
    exit.relayed(relay("relay")).exit().timeout("5s").or(exit.direct().exit())
}"#;
const ONION_THEN_BLOCK: &str = r#"
fn route(c) {
    onion(3).timeout("5s").or(onion(2).timeout("5s")).or(block("no way is left"))
}"#;

#[tokio::test]
async fn a_killed_relay_ends_its_flow_and_the_next_goes_straight() {
    let mut network = TestNetwork::start(RELAYED_THEN_DIRECT).await.unwrap();
    let echo = EchoServer::start([127, 50, 0, 1].into()).await.unwrap();
    let mut flow = open_flow(&network, &echo).await;
    assert_eq!(last_why(&network.client).await["tunnel"], "relay");
    network.relay.kill().unwrap();
    ends_with_an_error(&mut flow).await;
    fetches(&network).await;
    let why = last_why(&network.client).await;
    assert_eq!(why["tunnel"], "direct", "{why}");
    assert_eq!(why["steps"].as_array().unwrap().len(), 2, "{why}");
}

#[tokio::test]
async fn a_killed_hop_ends_its_flow_and_the_next_passes_others() {
    let mut network = TestNetwork::start(ONION_THEN_BLOCK).await.unwrap();
    let echo = EchoServer::start([127, 50, 0, 1].into()).await.unwrap();
    let mut flow = open_flow(&network, &echo).await;
    let why = last_why(&network.client).await;
    let middle = why["path"][1]["name"].as_str().unwrap().to_owned();
    let hop = network.hops.iter_mut().find(|hop| hop.name() == middle);
    hop.unwrap().kill().unwrap();
    ends_with_an_error(&mut flow).await;
    fetches(&network).await;
    let why = last_why(&network.client).await;
    assert_eq!(why["tunnel"], "onion", "{why}");
    let path = why["path"].as_array().unwrap();
    assert!(
        path.iter().all(|node| node["name"] != middle.as_str()),
        "{why}"
    );
}

#[tokio::test]
async fn a_killed_exit_ends_its_flow_and_the_next_is_told_so() {
    let mut network = TestNetwork::start(ONION_THEN_BLOCK).await.unwrap();
    let echo = EchoServer::start([127, 50, 0, 1].into()).await.unwrap();
    let mut flow = open_flow(&network, &echo).await;
    network.exit.kill().unwrap();
    ends_with_an_error(&mut flow).await;
    let proxy = format!("socks5h://{}", network.client.entrance("socks5").unwrap());
    let mut events = network.client.events().await.unwrap();
    let fetched = curl(&proxy, &network.outside_url("/"), &[]).await.unwrap();
    assert_ne!(fetched.exit, 0, "{fetched:?}");
    let refused = events.next(|e| e["kind"] == "flow-refused").await.unwrap();
    let why = network.client.call("why", json!({"flow": refused["flow"]}));
    let why = why.await.unwrap();
    assert!(why.to_string().contains("no way is left"), "{why}");
}

/// A flow that has carried something.
async fn open_flow(network: &TestNetwork, echo: &EchoServer) -> TcpStream {
    let entrance = network.client.entrance("socks5").unwrap();
    let port = echo.address().port();
    let mut flow = socks5_connect(entrance, OUTSIDE, port).await.unwrap();
    flow.write_all(b"there").await.unwrap();
    let mut back = [0; 5];
    flow.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"there");
    flow
}

/// A cut must not look like an end: the program gets a reset, not an empty read.
async fn ends_with_an_error(flow: &mut TcpStream) {
    let read = async {
        loop {
            // Something to carry makes the loss show.
            let written = flow.write_all(b"still there?").await;
            let mut buffer = [0; 64];
            match (written, flow.read(&mut buffer).await) {
                (Err(_), _) | (_, Err(_)) => return,
                (_, Ok(0)) => panic!("the flow seemed to end well"),
                (Ok(()), Ok(_)) => {}
            }
        }
    };
    tokio::time::timeout(LIMIT, read)
        .await
        .expect("the flow hangs");
}

async fn fetches(network: &TestNetwork) {
    let proxy = format!("socks5h://{}", network.client.entrance("socks5").unwrap());
    let fetched = curl(&proxy, &network.outside_url("/"), &[]).await.unwrap();
    let body = String::from_utf8_lossy(&fetched.body);
    assert!(body.contains(SITE_GREETING), "{fetched:?}");
}

/// The newest flow that the client explains.
async fn last_why(client: &Daemon) -> Value {
    let mut last = Value::Null;
    for flow in 1.. {
        match client.call("why", json!({"flow": flow})).await {
            Ok(why) => last = why,
            Err(_) if flow > 1 => return last,
            Err(_) => {}
        }
    }
    last
}
