//! What plugins answer by HTTP, to curl and openssl.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use wormholes_tests::{Daemon, Fetched, Metrics, Setup, browse, until};

const HTTP: &str = "[http]\nlisten = \"127.0.0.1:0\"";
const METRICS: &str = "[metrics]\nlisten = \"127.0.0.1:0\"";

async fn porter() -> Daemon {
    let setup = Setup::new("node").unwrap().config(HTTP).config(METRICS);
    let setup = setup.plugin("tests/porter").unwrap();
    setup.start().await.unwrap()
}

async fn get(node: &Daemon, path: &str, more: &[&str]) -> Fetched {
    let url = format!("http://{}{path}", node.http().unwrap());
    browse(&url, more).await.unwrap()
}

fn text(fetched: &Fetched) -> String {
    String::from_utf8_lossy(&fetched.body).into_owned()
}

async fn heard(node: &Daemon) -> Vec<String> {
    let ask = json!({ "instance": "porter", "command": "heard", "arguments": {} });
    let heard = node.call("plugin.ask", ask).await.unwrap();
    serde_json::from_value(heard).unwrap()
}

async fn hears(node: &Daemon, line: &str, times: usize) {
    let is_heard = async || {
        let lines = heard(node).await;
        (lines.iter().filter(|it| *it == line).count() == times).then_some(())
    };
    until(line, is_heard).await.unwrap();
}

#[tokio::test]
async fn pages_of_plugins_reach_curl_as_they_were_made() {
    let node = porter().await;
    let agent = ["--user-agent", "a browser", "--header", "X-Colour: green"];
    let echo = get(&node, "/porter/a%20b/echo?x=1&y", &agent).await;
    let echoed: Value = serde_json::from_slice(&echo.body).unwrap();
    assert_eq!(echoed["principal"], "node");
    assert_eq!(echoed["method"], "GET");
    assert_eq!(echoed["path"], "/porter/a%20b/echo", "not decoded");
    assert_eq!(echoed["query"], "x=1&y");
    assert_eq!(echoed["remote"], "127.0.0.1");
    assert_eq!(echoed["agent"], "a browser");
    let names = echoed["headers"].as_array().unwrap();
    assert!(names.contains(&json!("x-colour")), "{names:?}");
    assert!(!names.contains(&json!("connection")), "{names:?}");

    let posted = get(&node, "/porter/notes", &["--data", "a <b> & c"]).await;
    assert_eq!((posted.status, text(&posted).as_str()), (201, "kept\n"));
    // What is answered is durable, and a query sees what is.
    let page = get(&node, "/porter/notes", &["--include"]).await;
    let page = text(&page);
    assert!(page.contains("<li>a &lt;b&gt; &amp; c</li>"), "{page}");
    for header in [
        "content-type: text/html; charset=utf-8",
        "content-security-policy: default-src 'self'; script-src 'none'",
        "x-content-type-options: nosniff",
    ] {
        assert!(page.contains(header), "{header} in {page}");
    }
    let form = ["--data-urlencode", "note=one+two=3", "--location"];
    let shown = get(&node, "/porter/form", &form).await;
    assert!(
        text(&shown).contains("<li>one+two=3</li>"),
        "{}",
        text(&shown)
    );
    let head = get(&node, "/porter/notes", &["--head"]).await;
    assert!(text(&head).starts_with("HTTP/1.1 200"), "{}", text(&head));
    let big = get(&node, "/porter/big", &[]).await;
    assert_eq!(big.body.len(), 1 << 20);
}

#[tokio::test]
async fn what_no_page_answers_has_the_status_that_says_why() {
    let node = porter().await;
    node.cli(&["user", "add", "ann"]).unwrap();
    let statuses = [
        ("/", 404),
        ("/porters", 404),
        ("/porter/nothing", 404),
        ("/porter/no", 403),
        ("/porter/bad", 500),
        ("/porter/break", 500),
        ("/porter/notes/sneak", 403),
        ("/.well-known/porter/echo", 200),
        ("/.well-known/other", 404),
        ("/~ann/porter/echo", 200),
        ("/~bob/porter/echo", 404),
        ("/~ann", 404),
        ("/porter/../porter/echo", 200),
    ];
    for (path, status) in statuses {
        let fetched = get(&node, path, &["--path-as-is"]).await;
        assert_eq!(fetched.status, status, "{path}: {}", text(&fetched));
    }
    let ann = get(&node, "/~ann/porter/echo", &[]).await;
    let ann: Value = serde_json::from_slice(&ann.body).unwrap();
    assert_eq!(ann["principal"], "ann");
    assert_eq!(ann["path"], "/porter/echo");
    // A page of another name must not reach what listens here.
    for (host, status) in [
        ("evil.example", 421),
        ("localhost", 200),
        ("127.0.0.1:99", 200),
        ("web.node.wh", 200),
        ("[::1]", 200),
        ("a b", 400),
    ] {
        let host = format!("Host: {host}");
        let fetched = get(&node, "/porter/echo", &["--header", &host]).await;
        assert_eq!(fetched.status, status, "{host}");
    }
    // A foreign page may have a browser read, which it does not see, and change nothing.
    let own = format!("Origin: http://{}", node.http().unwrap());
    for (header, status) in [
        ("Origin: http://evil.example", 403),
        ("Origin: null", 403),
        (&own, 201),
        ("Sec-Fetch-Site: cross-site", 403),
        ("Sec-Fetch-Site: same-site", 403),
        ("Sec-Fetch-Site: same-origin", 201),
        ("Sec-Fetch-Site: none", 201),
    ] {
        let posted = ["--header", header, "--data", "a note"];
        let posted = get(&node, "/porter/notes", &posted).await;
        assert_eq!(posted.status, status, "{header}");
        let read = get(&node, "/porter/notes", &["--header", header]).await;
        assert_eq!(read.status, 200, "{header}");
    }
    let metrics = Metrics::read(&node).await.unwrap();
    let refused = metrics.get("wormholes_http_refusals_total{reason=\"host\"}");
    assert!(refused > 0.5, "{refused}");
    assert!(metrics.get("wormholes_http_requests_total{status=\"4xx\"}") > 0.5);
}

#[tokio::test]
async fn connections_are_kept_and_bodies_are_bounded_whole_or_in_chunks() {
    let node = porter().await;
    let url = format!("http://{}/porter/echo", node.http().unwrap());
    let kept = browse(&url, &["--write-out", "%{num_connects};", &url]).await;
    let kept = text(&kept.unwrap());
    assert!(kept.contains("}1;"), "{kept}");
    assert!(
        kept.ends_with("}0;"),
        "the second has no connection of its own: {kept}"
    );
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: usize| {
        let path = folder.path().join(name);
        fs::write(&path, vec![b'x'; bytes]).unwrap();
        format!("@{}", path.display())
    };
    let (fits, long) = (file("fits", 256 << 10), file("long", (256 << 10) + 1));
    let chunked = ["--header", "Transfer-Encoding: chunked"];
    for more in [&[][..], &chunked] {
        let upload = |file| [&["--data-binary", file], more].concat();
        let fetched = get(&node, "/porter/echo", &upload(&fits)).await;
        let echoed: Value = serde_json::from_slice(&fetched.body).unwrap();
        assert_eq!(echoed["bytes"], 256 << 10, "{more:?}");
        let refused = get(&node, "/porter/echo", &upload(&long)).await;
        assert_eq!(refused.status, 413, "{more:?}");
    }
    let cookies = format!("Cookie: {}", "x".repeat(20_000));
    let refused = get(&node, "/porter/echo", &["--header", &cookies]).await;
    assert_eq!(refused.status, 431);
    let cookies = format!("Cookie: {}", "x".repeat(60_000));
    let refused = get(&node, "/porter/echo", &["--header", &cookies]).await;
    assert_eq!(refused.status, 431);
}

#[tokio::test]
async fn who_asks_waits_leaves_and_is_one_of_as_many_as_the_manifest_says() {
    let node = porter().await;
    let address = node.http().unwrap();
    let url = format!("http://{address}/porter/later");
    let mut waiting = Vec::new();
    for n in 1..=2 {
        let url = url.clone();
        waiting.push(tokio::spawn(
            async move { browse(&url, &[]).await.unwrap() },
        ));
        hears(&node, "waits", n).await;
    }
    let mut leaver = TcpStream::connect(address).await.unwrap();
    let head = format!("GET /porter/later HTTP/1.1\r\nHost: {address}\r\n\r\n");
    leaver.write_all(head.as_bytes()).await.unwrap();
    hears(&node, "waits", 3).await;
    let fourth = browse(&url, &[]).await.unwrap();
    assert_eq!(fourth.status, 503, "{}", text(&fourth));
    let metrics = Metrics::read(&node).await.unwrap();
    let hits = metrics.get("wormholes_plugin_limit_hits_total{plugin=\"porter\",limit=\"http\"}");
    assert!(hits > 0.5, "{hits}");
    // Who leaves is told of, and makes room.
    drop(leaver);
    hears(&node, "left", 1).await;
    let finish = async || {
        let finish = get(&node, "/porter/finish", &["--data", "at last"]).await;
        (finish.status == 200).then_some(())
    };
    until("a place", finish).await.unwrap();
    for waited in waiting {
        let waited = waited.await.unwrap();
        assert_eq!((waited.status, text(&waited).as_str()), (200, "at last"));
    }
}

#[tokio::test]
async fn requests_end_with_503_when_the_node_stops_and_leave_nothing_when_it_is_killed() {
    let mut node = porter().await;
    let later = |node: &Daemon| {
        let url = format!("http://{}/porter/later", node.http().unwrap());
        tokio::spawn(async move { browse(&url, &[]).await.unwrap() })
    };
    let waiting = later(&node);
    hears(&node, "waits", 1).await;
    assert!(node.stop().await.unwrap().success());
    let stopped = waiting.await.unwrap();
    assert_eq!(stopped.status, 503, "{}", text(&stopped));
    assert!(text(&stopped).contains("the node stops"));

    node.restart().await.unwrap();
    let waiting = later(&node);
    hears(&node, "waits", 2).await;
    node.kill().unwrap();
    assert_ne!(waiting.await.unwrap().exit, 0, "the connection broke");
    node.restart().await.unwrap();
    let finish = get(&node, "/porter/finish", &["--data", "x"]).await;
    assert_eq!(text(&finish), "finished\n", "nobody waits any more");
}

#[tokio::test]
async fn who_says_nothing_or_too_slowly_is_sent_away() {
    let node = porter().await;
    let address = node.http().unwrap();
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /porter/echo HTTP/1.1\r\nHo")
        .await
        .unwrap();
    let mut rest = Vec::new();
    let (first, second) = (silent.read_to_end(&mut rest).await, slow.read_u8().await);
    assert!(first.is_ok() && rest.is_empty(), "{rest:?}");
    assert!(second.is_err(), "{second:?}");
    let metrics = Metrics::read(&node).await.unwrap();
    let slow = metrics.get("wormholes_http_refusals_total{reason=\"slow\"}");
    assert!(slow > 1.5, "{slow}");
}

/// A key and a certificate of its own in `folder`, as an operator has them.
fn certificate(folder: &Path, name: &str) -> [String; 2] {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    fs::write(&cert, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    [cert, key].map(|path| path.display().to_string())
}

#[tokio::test]
async fn pages_are_served_over_tls_to_curl_and_openssl() {
    let setup = Setup::new("node").unwrap();
    let [cert, key] = certificate(setup.folder(), "pages.example");
    let setup = setup.config(&format!(
        "{HTTP}\ndomain = \"pages.example\"\ncertificate = {cert:?}\nkey = {key:?}"
    ));
    let setup = setup.plugin("tests/porter").unwrap();
    let node = setup.start().await.unwrap();
    let address = node.http().unwrap();
    let there = format!("pages.example:{}:127.0.0.1", address.port());
    let url = format!("https://pages.example:{}/porter/echo", address.port());
    let trusted = ["--cacert", &cert, "--resolve", &there];
    let fetched = browse(&url, &trusted).await.unwrap();
    assert_eq!(fetched.status, 200, "{}", fetched.error);
    let old = [&trusted[..], &["--tls-max", "1.2"]].concat();
    assert_eq!(browse(&url, &old).await.unwrap().status, 200);
    let other = [&trusted[..], &["--header", "Host: other.example"]].concat();
    assert_eq!(browse(&url, &other).await.unwrap().status, 421);
    // Nothing is said without TLS.
    assert_ne!(get(&node, "/porter/echo", &[]).await.exit, 0);

    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-servername", "pages.example"])
        .args(["-connect", &address.to_string(), "-CAfile", &cert])
        .args(["-verify_return_error"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let request = b"GET /porter/echo HTTP/1.1\r\nHost: pages.example\r\nConnection: close\r\n\r\n";
    client.stdin.as_mut().unwrap().write_all(request).unwrap();
    let said = tokio::task::spawn_blocking(move || client.wait_with_output().unwrap());
    let said = String::from_utf8(said.await.unwrap().stdout).unwrap();
    assert!(said.starts_with("HTTP/1.1 200 OK"), "{said}");
}

#[tokio::test]
async fn a_key_that_others_may_read_opens_no_gateway() {
    let setup = Setup::new("node").unwrap();
    let [cert, key] = certificate(setup.folder(), "pages.example");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let setup = setup.config(&format!(
        "{HTTP}\ndomain = \"pages.example\"\ncertificate = {cert:?}\nkey = {key:?}"
    ));
    let failed = format!("{:#}", setup.start().await.expect_err("it starts"));
    assert!(failed.contains("others may read it: chmod 640"), "{failed}");
}
