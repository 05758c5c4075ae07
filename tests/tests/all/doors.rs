//! Ports, connections and requests of plugins end with what lets a plugin have them.

use std::{
    fs,
    net::{SocketAddr, TcpListener as Taken},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use wormholes_tests::{Daemon, Namespace, Setup, until};

const PORT: &str = "\"tcp-listen:6667\", ";

/// A node whose plugin listens at a port.
async fn porter(host: &Namespace) -> Daemon {
    let words = [("\"tls:6697\"", "\"tcp-listen:6667\"")];
    let setup = Setup::new("node").unwrap().in_namespace(host);
    let setup = setup.plugin_with("tests/porter", &words).unwrap();
    setup.start().await.unwrap()
}

fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 6667))
}

async fn ask(node: &Daemon, command: &str, arguments: Value) -> Value {
    let ask = json!({ "instance": "porter", "command": command, "arguments": arguments });
    node.call("plugin.ask", ask).await.unwrap()
}

/// Waits for so many lines that end so.
async fn hears(node: &Daemon, end: &str, number: usize) {
    let lines = async || {
        let lines = ask(node, "heard", json!({})).await;
        let lines: Vec<String> = serde_json::from_value(lines).unwrap();
        (lines.iter().filter(|line| line.ends_with(end)).count() == number).then_some(())
    };
    until(end, lines).await.unwrap();
}

async fn welcomed(host: &Namespace) -> TcpStream {
    let mut stream = host.connect(address()).unwrap();
    stream.read_exact(&mut [0; 8]).await.unwrap();
    stream
}

async fn ended(stream: &mut TcpStream) {
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_port_and_its_connections_close_with_the_grant_and_with_the_plugin() {
    let host = Namespace::new().unwrap();
    let node = porter(&host).await;
    let file = node.folder().join("config.toml");
    let granted = fs::read_to_string(&file).unwrap();
    assert!(granted.contains(PORT), "{granted}");
    let mut stream = welcomed(&host).await;
    fs::write(&file, granted.replace(PORT, "")).unwrap();
    node.cli(&["plugin", "update", "porter"]).unwrap();
    ended(&mut stream).await;
    hears(&node, "revoked", 1).await;
    assert!(host.connect(address()).is_err(), "nobody listens");

    // Another has the port by now: the new version runs, and who asked for it is told.
    let taken = || host.enter(|| Ok(Taken::bind(address())?)).unwrap();
    let other = taken();
    fs::write(&file, &granted).unwrap();
    let updated = node.cli(&["plugin", "update", "porter"]).unwrap();
    assert!(updated.contains("cannot listen on"), "{updated}");
    drop(other);
    let updated = node.cli(&["plugin", "update", "porter"]).unwrap();
    assert!(!updated.contains("cannot listen on"), "{updated}");
    let mut stream = welcomed(&host).await;
    node.cli(&["plugin", "remove", "porter"]).unwrap();
    ended(&mut stream).await;
    assert!(host.connect(address()).is_err(), "nobody listens");

    // One that cannot listen is not added at all.
    let other = taken();
    fs::write(&file, &granted).unwrap();
    let add = async || {
        node.call("plugin.add", json!({ "instance": "porter" }))
            .await
    };
    let refused = format!("{:#}", add().await.unwrap_err());
    assert!(refused.contains("cannot listen on"), "{refused}");
    let list = node.call("plugin.list", json!({})).await.unwrap();
    assert_eq!(list["plugins"], json!([]));
    drop(other);
    add().await.unwrap();
    welcomed(&host).await;
}

#[tokio::test]
async fn what_a_plugin_has_open_ends_when_it_is_stopped() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let granted = format!("tcp:{port}");
    let words = [("tcp:6667", granted.as_str())];
    let setup = Setup::new("node").unwrap();
    let setup = setup.script("rules.rhai", "fn route(c) { direct() }");
    let setup = setup.plugin_with("tests/porter", &words).unwrap();
    let node = setup.start().await.unwrap();
    let place = json!({ "host": "127.0.0.1", "port": port });
    ask(&node, "connect", place).await;
    let (mut socket, _) = server.accept().await.unwrap();
    let url = format!("http://127.0.0.1:{port}/");
    let asked = ask(&node, "begin", json!({ "url": url })).await;
    let (mut request, _) = server.accept().await.unwrap();
    request.read_exact(&mut [0; 16]).await.unwrap();
    socket.write_all(b"hello").await.unwrap();
    hears(&node, "hello", 1).await;

    node.cli(&["plugin", "stop", "porter"]).unwrap();
    ended(&mut socket).await;
    let mut rest = Vec::new();
    let _ = request.read_to_end(&mut rest).await;
    node.cli(&["plugin", "start", "porter"]).unwrap();
    hears(&node, "restarted", 1).await;
    hears(&node, &format!("fetched {asked} Unavailable"), 1).await;
}
