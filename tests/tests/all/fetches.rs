//! HTTP requests of plugins: by which way they travel, and that each has one answer.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};
use wormholes_tests::{Daemon, Metrics, Setup, Site, until};

/// Requests go out here, but for those that are to leave elsewhere, and those that shall not.
const RULES: &str = r#"
fn route(c) {
    if c.entrance != "plugin" || c.plugin != "porter" || c.role != "browser" { return block("who is it"); }
    if c.label == "secret" { return block("not this one"); }
    if c.label == "far" { return peer("bob").direct().exit().closed(); }
    direct()
}
"#;
const METRICS: &str = "[metrics]\nlisten = \"127.0.0.1:0\"";

/// A server that says what it is told to, once a connection, and then nothing more.
struct Sayer {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Sayer {
    async fn start(says: impl Into<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, says) = (listener.local_addr().unwrap(), says.into());
        let task = tokio::spawn(async move {
            let mut kept = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(&says).await;
                kept.push(stream);
            }
        });
        Self { address, task }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

impl Drop for Sayer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn ask(node: &Daemon, command: &str, arguments: Value) -> Result<Value, String> {
    let ask = json!({ "instance": "porter", "command": command, "arguments": arguments });
    let answer = node.call("plugin.ask", ask).await;
    answer.map_err(|error| format!("{error:#}"))
}

async fn fetch(node: &Daemon, url: &str) -> Result<Value, String> {
    ask(node, "fetch", json!({ "url": url })).await
}

#[tokio::test]
async fn a_request_of_a_plugin_travels_as_a_script_says() {
    let site = Site::start("a site", [127, 0, 0, 1].into(), None)
        .await
        .unwrap();
    let node = Setup::new("node").unwrap();
    let bob = Setup::new("bob")
        .unwrap()
        .listen("127.77.0.1:0")
        .config(METRICS);
    let bob = bob.config("[exit]\nenabled = true\nallow = [\"127.0.0.0/8\"]\nallow_private = true");
    let bob = bob.peer_id("node", node.id(), 2, "").start().await.unwrap();
    let node = node.entrances().peer(&bob, 2).script("rules.rhai", RULES);
    let node = node.plugin("tests/porter").unwrap().start().await.unwrap();
    let url = format!("http://{}/bytes/5000", site.address());

    let near = fetch(&node, &url).await.unwrap();
    assert_eq!(
        (near["status"].clone(), near["bytes"].clone()),
        (json!(200), json!(5000))
    );
    let exits = async || {
        let metrics = Metrics::read(&bob).await.unwrap();
        metrics.get("wormholes_circuits_total{role=\"exit\"}")
    };
    assert!(exits().await < 0.5);
    let far = ask(&node, "fetch", json!({ "url": url, "label": "far" })).await;
    assert_eq!(far.unwrap()["bytes"], 5000);
    assert!(exits().await > 0.5, "it left by bob");
    let refused = ask(&node, "fetch", json!({ "url": url, "label": "secret" })).await;
    assert!(refused.unwrap_err().contains("not this one"));
    assert_eq!(site.requests().len(), 2);
    let host = &site.requests()[0].host;
    assert_eq!(*host, site.address().to_string());
    // The router itself is no target.
    let own = format!("http://{}/", node.entrance("socks5").unwrap());
    let own = fetch(&node, &own).await.unwrap_err();
    assert!(own.contains("a port of this router itself"), "{own}");
}

#[tokio::test]
async fn each_request_has_one_answer_whatever_the_server_does() {
    let redirect =
        "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
    let redirect = Sayer::start(redirect).await;
    let long = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 2 << 20);
    let long = Sayer::start([long.into_bytes(), vec![b'x'; 2 << 20]].concat()).await;
    let cookies = "Set-Cookie: a=b\r\n".repeat(65);
    let wordy = format!("HTTP/1.1 200 OK\r\n{cookies}Content-Length: 0\r\n\r\n");
    let wordy = Sayer::start(wordy).await;
    let babble = Sayer::start("220 this is no web server\r\n").await;
    let silent = Sayer::start("").await;
    let endless = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n";
    let endless = Sayer::start(endless).await;
    let setup = Setup::new("node").unwrap().script("rules.rhai", RULES);
    let mut node = setup.plugin("tests/porter").unwrap().start().await.unwrap();

    let moved = fetch(&node, &redirect.url()).await.unwrap();
    assert_eq!(moved["status"], 302);
    assert_eq!(
        moved["location"], "http://127.0.0.1:1/",
        "nobody follows it"
    );
    for server in [&long, &wordy] {
        let refused = fetch(&node, &server.url()).await.unwrap_err();
        assert!(refused.contains("is longer than"), "{refused}");
    }
    let refused = fetch(&node, &babble.url()).await.unwrap_err();
    assert!(refused.contains("does not speak HTTP"), "{refused}");
    for server in [&silent, &endless] {
        let late = json!({ "url": server.url(), "seconds": 1 });
        let late = ask(&node, "fetch", late).await.unwrap_err();
        assert!(late.contains("in time"), "{late}");
    }
    let nobody = fetch(&node, "http://127.0.0.1:1/").await.unwrap_err();
    assert!(nobody.contains("refused"), "{nobody}");
    for url in [
        "ftp://a.example/",
        "http://user@127.0.0.1/",
        "http://0x7f.1/",
        "http:///",
    ] {
        assert!(fetch(&node, url).await.is_err(), "{url}");
    }

    // What was asked and kept is answered after kill -9 as well: nobody knows what became of it.
    let id = ask(&node, "begin", json!({ "url": silent.url() }))
        .await
        .unwrap();
    node.kill().unwrap();
    node.restart().await.unwrap();
    let line = format!("fetched {id} Expired");
    let told = async || {
        let lines = ask(&node, "heard", json!({})).await.unwrap();
        let lines = lines.as_array().unwrap().clone();
        lines.contains(&json!(line)).then_some(lines)
    };
    let lines = until("the answer", told).await.unwrap();
    assert_eq!(lines.iter().filter(|it| **it == json!(line)).count(), 1);
}

/// openssl's own web server.
struct TlsSite {
    child: Child,
    port: u16,
}

impl TlsSite {
    fn start(cert: &str, key: &str) -> Self {
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-www"])
            .args(["-cert", cert, "-key", key])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        let mut accepts = lines.map_while(Result::ok).filter_map(|line| {
            let address = line.strip_prefix("ACCEPT ")?.to_owned();
            address.rsplit(':').next()?.parse().ok()
        });
        let port = accepts.next().expect("openssl listens");
        Self { child, port }
    }
}

impl Drop for TlsSite {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_server_is_believed_that_shows_a_certificate_of_those_who_are_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let names = vec!["tls.example".to_owned()];
    let made = rcgen::generate_simple_self_signed(names.clone()).unwrap();
    let cert = file("cert.pem", made.cert.pem());
    let key = file("key.pem", made.signing_key.serialize_pem());
    let stranger = rcgen::generate_simple_self_signed(names).unwrap();
    let strange_cert = file("strange-cert.pem", stranger.cert.pem());
    let strange_key = file("strange-key.pem", stranger.signing_key.serialize_pem());
    let (site, strange) = (
        TlsSite::start(&cert, &key),
        TlsSite::start(&strange_cert, &strange_key),
    );
    let setup = Setup::new("node").unwrap().script("rules.rhai", RULES);
    let setup = setup.config(&format!("[http]\nroots = {cert:?}"));
    let setup = setup.name("tls.example", [127, 0, 0, 1].into());
    let node = setup.plugin("tests/porter").unwrap().start().await.unwrap();
    let fetched = fetch(&node, &format!("https://tls.example:{}/", site.port))
        .await
        .unwrap();
    assert_eq!(fetched["status"], 200, "{fetched}");
    for url in [
        format!("https://tls.example:{}/", strange.port),
        format!("https://127.0.0.1:{}/", site.port),
    ] {
        let refused = fetch(&node, &url).await.unwrap_err();
        assert!(refused.contains("TLS with the server failed"), "{refused}");
    }
}
