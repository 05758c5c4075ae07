//! Programs that nobody here wrote, through each kind of tunnel.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
    process::Stdio,
};

use tempfile::TempDir;
use wormholes_tests::{
    Fetched, More, OUTSIDE, SITE_GREETING, Setup, Site, SshServer, TestNetwork, curl, run, until,
    workspace,
};

/// Kinds of tunnels; by the demo's script each serves one host.
const KINDS: [&str; 3] = ["direct", "relay", "onion"];

#[tokio::test]
async fn curl_fetches_through_every_tunnel_by_both_kinds_of_proxy() {
    let network = network(More::default()).await;
    for kind in KINDS {
        for (scheme, entrance) in [("socks5h", "socks5"), ("http", "http")] {
            let proxy = format!("{scheme}://{}", network.client.entrance(entrance).unwrap());
            let front = curl(&proxy, &url(&network, kind, "/"), &[]).await.unwrap();
            let body = String::from_utf8_lossy(&front.body);
            assert!(body.contains(SITE_GREETING), "{kind} {scheme}: {front:?}");
            let n_bytes = 2_000_003;
            let bulk = url(&network, kind, &format!("/bytes/{n_bytes}"));
            let bulk: Fetched = curl(&proxy, &bulk, &["--proxytunnel"]).await.unwrap();
            assert_eq!(bulk.body.len(), n_bytes, "{kind} {scheme}: {}", bulk.error);
        }
    }
}

#[tokio::test]
async fn curl_goes_by_socks4_to_an_address_and_by_4a_to_a_name() {
    let script = r#"fn route(c) {
        if c.ip != () || c.user == "curl" { direct() } else { block("who?") }
    }"#;
    let client = Setup::new("client").unwrap().entrances();
    let client = client.script("rules.rhai", script).start().await.unwrap();
    let site = Site::start("a site", Ipv4Addr::LOCALHOST, None).await;
    let site = site.unwrap();
    let (entrance, port) = (client.entrance("socks5").unwrap(), site.address().port());
    for (proxy, host, greeted) in [
        ("socks4://", "127.0.0.1", true),
        ("socks4a://curl@", "localhost", true),
        ("socks4a://somebody@", "localhost", false),
    ] {
        let (proxy, url) = (
            format!("{proxy}{entrance}"),
            format!("http://{host}:{port}/"),
        );
        let fetched = curl(&proxy, &url, &[]).await.unwrap();
        let body = String::from_utf8_lossy(&fetched.body);
        assert_eq!(body.contains(SITE_GREETING), greeted, "{fetched:?}");
        assert_eq!(fetched.error.contains("(91)"), !greeted, "{fetched:?}");
    }
}

#[tokio::test]
async fn a_blocked_name_is_refused_with_the_right_words() {
    let network = network(More::default()).await;
    let socks = format!("socks5h://{}", network.client.entrance("socks5").unwrap());
    let refused = curl(&socks, "http://tracker.blocked.example/", &[])
        .await
        .unwrap();
    // 97: curl could not go through the proxy; SOCKS reply 2: not allowed by the ruleset.
    assert_eq!(refused.exit, 97, "{refused:?}");
    assert!(refused.error.contains("(2)"), "{refused:?}");
    let http = format!("http://{}", network.client.entrance("http").unwrap());
    let refused = curl(&http, "http://tracker.blocked.example/", &[])
        .await
        .unwrap();
    assert_eq!(refused.status, 403, "{refused:?}");
}

#[tokio::test]
async fn git_clones_over_http_through_every_tunnel() {
    let folder = TempDir::new().unwrap();
    make_repository(folder.path());
    let network = network(More {
        files: Some(folder.path()),
        ..More::default()
    })
    .await;
    let proxy = format!("socks5h://{}", network.client.entrance("socks5").unwrap());
    for kind in KINDS {
        let clone = folder.path().join(kind);
        let url = url(&network, kind, "/files/repository.git");
        git(
            folder.path(),
            &["-c", &format!("http.proxy={proxy}"), "clone", &url, kind],
        )
        .await;
        let story = std::fs::read_to_string(clone.join("story.txt")).unwrap();
        assert_eq!(story, "once upon a time\n", "{kind}");
    }
}

#[tokio::test]
async fn ssh_runs_a_command_through_every_tunnel() {
    let server = SshServer::start([127, 50, 0, 1].into()).unwrap();
    let network = network(More {
        ssh: Some(server.address()),
        ..More::default()
    })
    .await;
    let entrance = network.client.entrance("socks5").unwrap();
    let port = server.address().port().to_string();
    for (kind, host) in [
        ("direct", "ssh.relay.wh"),
        ("relay", "ssh.friend.wh"),
        ("onion", OUTSIDE),
    ] {
        let said = ssh(&server, entrance, host, &port).await;
        assert_eq!(said, "hello over ssh\n", "{kind}");
    }
}

/// One page does it all: it fetches, opens a WebSocket, and reports what came of it.
#[tokio::test]
async fn chromium_shows_a_page_and_holds_a_websocket_through_every_tunnel() {
    let network = network(More::default()).await;
    let entrance = network.client.entrance("socks5").unwrap();
    for kind in KINDS {
        let profile = TempDir::new().unwrap();
        let mut chromium = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--remote-debugging-port=0",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("--proxy-server=socks5://{entrance}"))
            .arg("--proxy-bypass-list=<-loopback>")
            .arg(url(&network, kind, "/page"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let site = match kind {
            "direct" => &network.wiki,
            "relay" => &network.web,
            _ => &network.outside,
        };
        let report = until(&format!("Chromium's report over {kind}"), async || {
            let requests = site.requests();
            let paths = requests.into_iter().map(|request| request.path);
            paths.into_iter().find(|path| path.starts_with("/report/"))
        })
        .await;
        chromium.kill().unwrap();
        chromium.wait().unwrap();
        assert_eq!(report.unwrap(), "/report/100000-bytes-to-and-fro", "{kind}");
    }
}

async fn network(more: More<'_>) -> TestNetwork {
    let script = workspace::root().join("scripts/demo.rhai");
    let script = std::fs::read_to_string(script).unwrap();
    TestNetwork::start_with(&script, more).await.unwrap()
}

fn url(network: &TestNetwork, kind: &str, path: &str) -> String {
    match kind {
        "direct" => format!("http://wiki.relay.wh{path}"),
        "relay" => format!("http://web.friend.wh{path}"),
        _ => {
            let port = network.outside.address().port();
            format!("http://{OUTSIDE}:{port}{path}")
        }
    }
}

/// A bare repository that a plain file server can serve.
fn make_repository(folder: &Path) {
    let script = "git init -q -b main work && cd work && \
        echo 'once upon a time' > story.txt && git add story.txt && \
        git -c user.name=a -c user.email=a@a.example commit -q -m 'Begin' && cd .. && \
        git clone -q --bare work repository.git && \
        git -C repository.git update-server-info";
    run(Command::new("sh").args(["-ec", script]).current_dir(folder)).unwrap();
}

async fn git(folder: &Path, words: &[&str]) {
    let mut command = Command::new("git");
    command.args(words).current_dir(folder);
    // What a user configured must not send it past the proxy.
    command.env("GIT_CONFIG_GLOBAL", "/dev/null");
    command.env("NO_PROXY", "");
    tokio::task::spawn_blocking(move || run(&mut command))
        .await
        .unwrap()
        .unwrap();
}

async fn ssh(server: &SshServer, entrance: SocketAddr, host: &str, port: &str) -> String {
    let mut command = Command::new("ssh");
    command
        .args(["-F", "none", "-o", "BatchMode=yes"])
        .args(["-o", "StrictHostKeyChecking=no"])
        .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"])
        .arg("-o")
        .arg(format!("ProxyCommand=nc -X 5 -x {entrance} %h %p"))
        .arg("-i")
        .arg(server.user_key())
        .args(["-p", port, host, "echo hello over ssh"]);
    tokio::task::spawn_blocking(move || run(&mut command))
        .await
        .unwrap()
        .unwrap()
}
