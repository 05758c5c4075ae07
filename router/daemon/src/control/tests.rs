//! The socket as clients meet it: a real one, real lines, real uids.

use std::{
    fs::{Permissions, set_permissions},
    io::{Read, Write},
    net::Shutdown,
    os::unix::{fs::PermissionsExt, net::UnixStream as StdStream},
};

use rustix::process::Uid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use wormholes_proto::control::{EventBody, MAX_REQUEST_BYTES};

use super::*;
use crate::config::Config;

/// `nobody` of every Linux.
const STRANGER: u32 = 65_534;

struct Server {
    core: Arc<NodeCore>,
    server: ControlServer,
    _dir: tempfile::TempDir,
}

fn start(operators: Vec<u32>) -> Server {
    let dir = tempfile::tempdir().unwrap();
    set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let mut config = Config::default();
    config.control.socket = Some(dir.path().join("control.sock"));
    config.control.mode = 0o666;
    config.control.operators = operators;
    config.node.data_dir = dir.path().join("data");
    let (core, _) = crate::node::assemble(config, &crate::node::NodeOptions::default()).unwrap();
    let server = ControlServer::start(Arc::clone(&core)).unwrap();
    Server {
        core,
        server,
        _dir: dir,
    }
}

impl Server {
    async fn connect(&self) -> BufReader<UnixStream> {
        BufReader::new(UnixStream::connect(self.server.path()).await.unwrap())
    }

    /// What another uid gets for these bytes, on a thread of its own: uids belong to threads.
    async fn as_uid(&self, uid: u32, input: &[u8]) -> String {
        let (path, input) = (self.server.path().to_owned(), input.to_owned());
        let client = move || {
            let uid = Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid).expect("this test runs as root");
            let mut stream = StdStream::connect(path).unwrap();
            stream.write_all(&input).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut output = String::new();
            stream.read_to_string(&mut output).unwrap();
            output
        };
        tokio::task::spawn_blocking(|| std::thread::spawn(client).join().unwrap())
            .await
            .unwrap()
    }
}

fn request(method: &str, params: &Value) -> String {
    let line = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    format!("{line}\n")
}

async fn ask(client: &mut BufReader<UnixStream>, input: &[u8]) -> Value {
    client.write_all(input).await.unwrap();
    read(client).await
}

async fn read(client: &mut BufReader<UnixStream>) -> Value {
    let mut line = String::new();
    client.read_line(&mut line).await.unwrap();
    serde_json::from_str(&line).unwrap()
}

fn notify(message: &str) -> EventBody {
    EventBody::Notify {
        level: "info".to_owned(),
        message: Some(message.to_owned()),
    }
}

#[tokio::test]
async fn broken_lines_are_answered_and_the_next_one_still_works() {
    let server = start(Vec::new());
    let mut client = server.connect().await;
    for (line, code) in [
        ("{\n", -32700),
        ("\u{1}\u{2}\n", -32700),
        ("[]\n", -32600),
        (
            "\n\n{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"x\"}\n",
            -32601,
        ),
    ] {
        assert_eq!(
            ask(&mut client, line.as_bytes()).await["error"]["code"],
            code
        );
    }
    let line = request("rpc.discover", &json!({}));
    let (head, tail) = line.split_at(9);
    client.write_all(head.as_bytes()).await.unwrap();
    let answer = ask(&mut client, tail.as_bytes()).await;
    assert_eq!(answer["result"]["openrpc"], "1.3.2");
    server.server.shutdown().await;
}

#[tokio::test]
async fn a_line_beyond_the_bound_is_answered_once_and_the_next_one_still_works() {
    let server = start(Vec::new());
    let mut client = server.connect().await;
    // More than the kernel takes while nobody reads.
    let mut long = vec![b'a'; 16 * MAX_REQUEST_BYTES];
    long.push(b'\n');
    let answer = ask(&mut client, &long).await;
    assert_eq!(answer["error"]["code"], -32600);
    let said = answer["error"]["message"].as_str().unwrap();
    assert!(said.contains("at most 65536 bytes"), "{said}");
    let line = request("rpc.discover", &json!({}));
    assert!(ask(&mut client, line.as_bytes()).await["result"].is_object());
}

#[tokio::test]
async fn silent_connections_are_bounded() {
    let server = start(Vec::new());
    let mut silent = Vec::new();
    let refused = loop {
        let mut client = server.connect().await;
        let line = request("rpc.discover", &json!({}));
        let answer = ask(&mut client, line.as_bytes()).await;
        if answer["error"].is_object() {
            break answer;
        }
        silent.push(client);
    };
    assert_eq!(refused["error"]["code"], -32003);
    assert_eq!(silent.len(), 32);
}

#[tokio::test]
async fn another_uid_observes_and_changes_nothing() {
    let server = start(Vec::new());
    for (method, params) in [
        ("peer.add", json!({"invite": "x"})),
        ("peer.remove", json!({"peer": "x"})),
        ("peer.invite", json!({})),
        ("why", json!({"flow": 1})),
        ("ping", json!({"peer": "x"})),
        ("netcheck", json!({})),
        ("script.load", json!({})),
        ("script.rollback", json!({})),
        ("config", json!({})),
    ] {
        let line = request(method, &params);
        let answer = server.as_uid(STRANGER, line.as_bytes()).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["error"]["code"], -32001, "{method}: {answer}");
    }
    let line = request("rpc.discover", &json!({}));
    let answer = server.as_uid(STRANGER, line.as_bytes()).await;
    assert!(answer.contains("\"result\""), "{answer}");
}

#[tokio::test]
async fn the_operators_of_the_config_may_do_all() {
    let server = start(vec![STRANGER]);
    let line = request("why", &json!({"flow": 1}));
    let answer = server.as_uid(STRANGER, line.as_bytes()).await;
    assert!(!answer.contains("-32001"), "{answer}");
}

#[tokio::test]
async fn subscribers_get_what_they_asked_for_between_answers() {
    let server = start(Vec::new());
    let mut client = server.connect().await;
    let line = request("events.subscribe", &json!({"kinds": ["notify"]}));
    let answer = ask(&mut client, line.as_bytes()).await;
    assert_eq!(answer["result"]["kinds"], json!(["notify"]));
    server.core.events.publish(EventBody::ScriptLoaded {
        generation: 1,
        scripts: Vec::new(),
    });
    server.core.events.publish(notify("hello"));
    let event = read(&mut client).await;
    assert_eq!(event["method"], "event");
    assert_eq!(event["params"]["message"], "hello");
    let line = request("events.unsubscribe", &json!({}));
    ask(&mut client, line.as_bytes()).await;
    server.core.events.publish(notify("unheard"));
    let line = request("rpc.discover", &json!({}));
    assert!(ask(&mut client, line.as_bytes()).await["result"].is_object());
}

#[tokio::test]
async fn a_subscriber_that_says_no_more_listens_on_until_it_leaves() {
    let server = start(Vec::new());
    let mut client = server.connect().await;
    let line = request("events.subscribe", &json!({"kinds": ["notify"]}));
    client.write_all(line.as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    assert!(read(&mut client).await["result"].is_object());
    for message in ["one", "two"] {
        server.core.events.publish(notify(message));
        assert_eq!(read(&mut client).await["params"]["message"], message);
    }
    // The one that takes connections, and the one that serves this client.
    assert_eq!(server.server.tasks.len(), 2);
    drop(client);
    let left = async {
        while server.server.tasks.len() > 1 {
            tokio::task::yield_now().await;
        }
    };
    let left = tokio::time::timeout(Duration::from_secs(30), left).await;
    left.expect("the place of a client that left is free");
}

#[tokio::test]
async fn a_stop_ends_connections_and_removes_the_socket() {
    let server = start(Vec::new());
    let path = server.server.path().to_owned();
    let mut client = server.connect().await;
    server.server.shutdown().await;
    let mut line = String::new();
    // Not yet accepted, it is reset.
    assert!(matches!(client.read_line(&mut line).await, Ok(0) | Err(_)));
    assert!(!path.exists());
}
