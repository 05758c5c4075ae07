//! Connections of plugins: to real servers, by the way that a script says, with credit both ways.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    process::{Child, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use wormholes_tests::{Daemon, Metrics, Namespace, Setup, until};

const RULES: &str = r#"
fn route(c) {
    if c.entrance != "plugin" || c.plugin != "porter" { return block("who is it"); }
    if c.label == "secret" { return block("not this one"); }
    direct()
}
"#;

/// A node whose plugin may connect to this port.
async fn porter(kind: &str, port: u16) -> Daemon {
    porter_with(kind, port, "").await
}

async fn porter_with(kind: &str, port: u16, config: &str) -> Daemon {
    let asked = if kind == "tls" {
        "tls:6697"
    } else {
        "tcp:6667"
    };
    let granted = format!("{kind}:{port}");
    let setup = Setup::new("node").unwrap().script("rules.rhai", RULES);
    let setup = setup
        .config("[metrics]\nlisten = \"127.0.0.1:0\"")
        .config(config);
    let setup = setup.name("irc.example", [127, 0, 0, 1].into());
    let words = [(asked, granted.as_str())];
    let setup = setup.plugin_with("tests/porter", &words).unwrap();
    setup.start().await.unwrap()
}

async fn ask(node: &Daemon, command: &str, arguments: Value) -> Result<Value, String> {
    let ask = json!({ "instance": "porter", "command": command, "arguments": arguments });
    let answer = node.call("plugin.ask", ask).await;
    answer.map_err(|error| format!("{error:#}"))
}

async fn connect(node: &Daemon, port: u16, more: Value) -> u64 {
    let mut arguments = json!({ "host": "irc.example", "port": port });
    let more = more.as_object().unwrap().clone();
    arguments.as_object_mut().unwrap().extend(more);
    ask(node, "connect", arguments)
        .await
        .unwrap()
        .as_u64()
        .unwrap()
}

async fn heard(node: &Daemon) -> Vec<String> {
    let lines = ask(node, "heard", json!({})).await.unwrap();
    serde_json::from_value(lines).unwrap()
}

/// Waits for a line that begins so.
async fn hears(node: &Daemon, begin: &str) -> String {
    let line = async || {
        heard(node)
            .await
            .into_iter()
            .find(|line| line.starts_with(begin))
    };
    until(begin, line).await.unwrap()
}

async fn server() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn accepted(listener: &TcpListener) -> TcpStream {
    listener.accept().await.unwrap().0
}

#[tokio::test]
async fn a_plugin_speaks_on_a_connection_that_a_script_allowed() {
    let (listener, address) = server().await;
    let node = porter("tcp", address.port()).await;
    let id = connect(&node, address.port(), json!({})).await;
    let mut stream = accepted(&listener).await;
    hears(&node, &format!("connected {id}")).await;
    stream.write_all(b"NOTICE * :hello\r\n").await.unwrap();
    hears(&node, &format!("data {id} 17 NOTICE * :hello")).await;
    ask(
        &node,
        "say",
        json!({ "connection": id, "text": "NICK porter\r\n" }),
    )
    .await
    .unwrap();
    let mut said = [0; 13];
    stream.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"NICK porter\r\n");
    // Said and closed: it is said before it is closed.
    ask(
        &node,
        "say",
        json!({ "connection": id, "text": "QUIT\r\n" }),
    )
    .await
    .unwrap();
    ask(&node, "close", json!({ "connection": id }))
        .await
        .unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"QUIT\r\n");
    let gone = ask(&node, "say", json!({ "connection": id, "text": "more" })).await;
    assert!(gone.unwrap_err().contains("the socket is closed"));

    let id = connect(&node, address.port(), json!({})).await;
    drop(accepted(&listener).await);
    hears(&node, &format!("closed {id} ended")).await;
    let id = connect(&node, address.port(), json!({ "label": "secret" })).await;
    hears(&node, &format!("closed {id} failed Denied")).await;
    let ungranted = json!({ "host": "irc.example", "port": address.port(), "tls": true });
    let ungranted = ask(&node, "connect", ungranted).await.unwrap_err();
    assert!(
        ungranted.contains("is not among the `sockets`"),
        "{ungranted}"
    );
    drop(listener);
    let id = connect(&node, address.port(), json!({})).await;
    hears(&node, &format!("closed {id} failed Unavailable")).await;
}

#[tokio::test]
async fn neither_end_sends_more_than_the_other_one_takes() {
    let (listener, address) = server().await;
    let node = porter("tcp", address.port()).await;
    let id = connect(&node, address.port(), json!({ "credit": 10 })).await;
    let mut stream = accepted(&listener).await;
    stream.write_all(b"0123456789abcdef").await.unwrap();
    hears(&node, &format!("data {id} 10 0123456789")).await;
    ask(&node, "credit", json!({ "connection": id, "bytes": 4 }))
        .await
        .unwrap();
    hears(&node, &format!("data {id} 4 abcd")).await;
    ask(&node, "credit", json!({ "connection": id, "bytes": 1 }))
        .await
        .unwrap();
    hears(&node, &format!("data {id} 1 e")).await;
    let much = ask(
        &node,
        "credit",
        json!({ "connection": id, "bytes": 2 << 20 }),
    )
    .await;
    assert!(much.unwrap_err().contains("1 MiB of credit"));

    // Nobody reads: what the system takes and what there is room for, and no more.
    let mut poured = 0;
    let full = async || {
        let told = ask(&node, "pour", json!({ "connection": id }))
            .await
            .unwrap();
        poured += told[0].as_u64().unwrap();
        (told[0] == 0).then_some(told)
    };
    let told = until("a connection to be full", full).await.unwrap();
    assert!(
        told[2].as_str().unwrap().contains("does not take so much"),
        "{told}"
    );
    let metrics = Metrics::read(&node).await.unwrap();
    assert!(
        metrics.sum("wormholes_plugin_limit_hits_total{plugin=\"porter\",limit=\"room\"") > 0.5
    );
    let mut read = vec![0; usize::try_from(poured).unwrap()];
    stream.read_exact(&mut read).await.unwrap();
    assert!(read.iter().all(|byte| *byte == b'x'));
    hears(&node, &format!("writable {id}")).await;
    ask(&node, "say", json!({ "connection": id, "text": "again" }))
        .await
        .unwrap();
    let mut said = [0; 5];
    stream.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"again");
}

#[tokio::test]
async fn a_connection_ends_with_the_node_and_with_data_that_no_handler_takes() {
    let (listener, address) = server().await;
    let mut node = porter("tcp", address.port()).await;
    let id = connect(&node, address.port(), json!({})).await;
    let mut stream = accepted(&listener).await;
    stream.write_all(b"refuse this").await.unwrap();
    hears(&node, &format!("closed {id} lost")).await;
    assert_eq!(
        stream.read(&mut [0; 1]).await.unwrap_or(0),
        0,
        "it is closed"
    );

    let id = connect(&node, address.port(), json!({})).await;
    let mut stream = accepted(&listener).await;
    hears(&node, &format!("connected {id}")).await;
    node.kill().unwrap();
    assert_eq!(
        stream.read(&mut [0; 1]).await.unwrap_or(0),
        0,
        "it is closed"
    );
    node.restart().await.unwrap();
    let line = format!("closed {id} restarted");
    hears(&node, &line).await;
    node.kill().unwrap();
    node.restart().await.unwrap();
    let lines = heard(&node).await;
    assert_eq!(
        lines.iter().filter(|it| **it == line).count(),
        1,
        "{lines:?}"
    );
}

/// openssl at the other end.
struct TlsServer {
    child: Child,
    said: BufReader<ChildStdout>,
    port: u16,
}

impl TlsServer {
    fn start(cert: &str, key: &str) -> Self {
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-naccept", "1"])
            .args(["-cert", cert, "-key", key])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut server = Self {
            said: BufReader::new(child.stdout.take().unwrap()),
            child,
            port: 0,
        };
        while server.port == 0 {
            let line = server.line();
            let port = line
                .strip_prefix("ACCEPT ")
                .and_then(|it| it.rsplit(':').next());
            server.port = port.and_then(|port| port.trim().parse().ok()).unwrap_or(0);
        }
        server
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.said.read_line(&mut line).unwrap() > 0, "openssl ended");
        line
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_connection_speaks_tls_with_the_server_that_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let made = rcgen::generate_simple_self_signed(vec!["irc.example".to_owned()]).unwrap();
    let cert = file("cert.pem", made.cert.pem());
    let key = file("key.pem", made.signing_key.serialize_pem());
    let mut server = TlsServer::start(&cert, &key);
    let roots = format!("[http]\nroots = {cert:?}");
    let node = porter_with("tls", server.port, &roots).await;
    let id = connect(&node, server.port, json!({ "tls": true })).await;
    hears(&node, &format!("connected {id}")).await;
    ask(
        &node,
        "say",
        json!({ "connection": id, "text": "NICK porter\n" }),
    )
    .await
    .unwrap();
    let (mut server, line) = tokio::task::spawn_blocking(move || {
        // It speaks of the handshake before.
        let mut line = server.line();
        while !line.starts_with("NICK") {
            line = server.line();
        }
        (server, line)
    })
    .await
    .unwrap();
    assert_eq!(line, "NICK porter\n");
    let stdin = server.child.stdin.as_mut().unwrap();
    stdin.write_all(b"welcome, porter\n").unwrap();
    hears(&node, &format!("data {id} 16 welcome, porter")).await;
    server.child.kill().unwrap();
    hears(&node, &format!("closed {id}")).await;
}

#[tokio::test]
async fn a_server_that_nobody_vouches_for_gets_no_connection() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["irc.example".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(vec!["irc.example".to_owned()]).unwrap();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let cert = file("cert.pem", made.cert.pem());
    let key = file("key.pem", made.signing_key.serialize_pem());
    let roots = file("roots.pem", other.cert.pem());
    let server = TlsServer::start(&cert, &key);
    let roots = format!("[http]\nroots = {roots:?}");
    let node = porter_with("tls", server.port, &roots).await;
    let id = connect(&node, server.port, json!({ "tls": true })).await;
    hears(&node, &format!("closed {id} failed Unavailable")).await;
}

/// Waits for so many lines that begin so.
async fn hears_of(node: &Daemon, begin: &str, number: usize) -> Vec<String> {
    let lines = async || {
        let lines = heard(node).await.into_iter();
        let lines: Vec<_> = lines.filter(|line| line.starts_with(begin)).collect();
        (lines.len() >= number).then_some(lines)
    };
    until(begin, lines).await.unwrap()
}

fn id_of(line: &str) -> u64 {
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

/// A node whose plugin listens, with TLS and without, and the certificate that it shows.
async fn listening(host: &Namespace) -> (Daemon, String) {
    let setup = Setup::new("node").unwrap().in_namespace(host);
    let made = rcgen::generate_simple_self_signed(vec!["irc.example".to_owned()]).unwrap();
    let file = |name: &str, text: String| {
        let path = setup.folder().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    };
    let cert = file("cert.pem", made.cert.pem());
    let key = file("key.pem", made.signing_key.serialize_pem());
    let setup = setup.config(&format!("[http]\ncertificate = {cert:?}\nkey = {key:?}"));
    let words = [("\"tls:6697\"", "\"tls-listen:6697\", \"tcp-listen:6667\"")];
    let setup = setup.plugin_with("tests/porter", &words).unwrap();
    (setup.start().await.unwrap(), cert)
}

#[tokio::test]
async fn clients_reach_the_ports_of_a_plugin_by_nc_and_openssl() {
    let host = Namespace::new().unwrap();
    let (node, cert) = listening(&host).await;
    let plain = ["127.0.0.1", "6667"];
    let secured = [
        "s_client",
        "-quiet",
        "-verify_return_error",
        "-verify_hostname",
        "irc.example",
    ];
    let secured = [
        &secured[..],
        &["-connect", "127.0.0.1:6697", "-CAfile", &cert],
    ]
    .concat();
    let clients = [("nc", &plain[..], 6667), ("openssl", &secured[..], 6697)];
    for (number, (program, arguments, port)) in (1..).zip(clients) {
        let mut client = host
            .command(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let opened = hears_of(&node, "opened", number).await.pop().unwrap();
        let id = id_of(&opened);
        assert_eq!(opened, format!("opened {id} {port} 127.0.0.1"));
        client
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"hello\n")
            .unwrap();
        hears(&node, &format!("data {id} 6 hello")).await;
        ask(
            &node,
            "say",
            json!({ "connection": id, "text": "goodbye\n" }),
        )
        .await
        .unwrap();
        ask(&node, "close", json!({ "connection": id }))
            .await
            .unwrap();
        let ended = tokio::task::spawn_blocking(move || {
            // openssl waits for the end of what it is to send.
            let mut said = String::new();
            let mut stdout = BufReader::new(client.stdout.take().unwrap());
            while !said.ends_with("goodbye\n") {
                assert!(stdout.read_line(&mut said).unwrap() > 0, "{said}");
            }
            drop(client.stdin.take());
            client.wait().unwrap();
            said
        });
        assert_eq!(ended.await.unwrap(), "welcome\ngoodbye\n", "{program}");
    }
}

#[tokio::test]
async fn as_many_come_to_a_port_from_one_address_as_may_and_whoever_leaves_makes_room() {
    let host = Namespace::new().unwrap();
    let (_node, _) = listening(&host).await;
    let address = "127.0.0.1:6667".parse().unwrap();
    let mut streams = Vec::new();
    for _ in 0..16 {
        let mut stream = host.connect(address).unwrap();
        stream.read_exact(&mut [0; 8]).await.unwrap();
        streams.push(stream);
    }
    let mut one_more = host.connect(address).unwrap();
    assert_eq!(one_more.read(&mut [0; 1]).await.unwrap_or(0), 0);
    streams.pop();
    let welcomed = async || {
        let mut stream = host.connect(address).ok()?;
        stream.read_exact(&mut [0; 8]).await.ok()
    };
    until("a place", welcomed).await.unwrap();
}

#[tokio::test]
async fn datagrams_come_to_a_port_of_a_plugin_and_go_where_a_script_lets_them() {
    let host = Namespace::new().unwrap();
    let rules = "fn route(c) {
        if c.entrance == \"plugin\" && c.network == \"udp\" && c.port != 7001 { return direct(); }
        block(\"not there\")
    }";
    let setup = Setup::new("node").unwrap().in_namespace(&host);
    let setup = setup.script("rules.rhai", rules);
    let words = [("tls:6697", "udp:6881")];
    let setup = setup.plugin_with("tests/porter", &words).unwrap();
    let node = setup.start().await.unwrap();
    let mut client = host
        .command("nc")
        .args(["-u", "127.0.0.1", "6881"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    client.stdin.as_mut().unwrap().write_all(b"ping\n").unwrap();
    hears(&node, "datagram 6881 ping").await;
    let answered = tokio::task::spawn_blocking(move || {
        let mut said = String::new();
        let mut stdout = BufReader::new(client.stdout.take().unwrap());
        stdout.read_line(&mut said).unwrap();
        client.kill().unwrap();
        client.wait().unwrap();
        said
    });
    assert_eq!(answered.await.unwrap(), "pong\n");

    // Of two that are written to, one is not to be, and what goes leaves from the port.
    let udp = |port: u16| host.udp(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    let (allowed, forbidden) = (udp(7000), udp(7001));
    for to in ["127.0.0.1:7001", "127.0.0.1:7000"] {
        let cast = json!({ "port": 6881, "to": to, "text": "hello" });
        ask(&node, "cast", cast).await.unwrap();
    }
    let mut buffer = [0; 16];
    let (length, from) = allowed.recv_from(&mut buffer).await.unwrap();
    assert_eq!((&buffer[..length], from.port()), (&b"hello"[..], 6881));
    // It was sent before the other one.
    assert!(forbidden.try_recv(&mut buffer).is_err());
    let other = json!({ "port": 6882, "to": "127.0.0.1:7000", "text": "hello" });
    let other = ask(&node, "cast", other).await.unwrap_err();
    assert!(other.contains("`udp:6882` is not among"), "{other}");
}
