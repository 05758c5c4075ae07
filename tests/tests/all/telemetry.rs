//! Metrics, as Prometheus' own checker sees them.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use tokio::net::TcpStream;
use wormholes_tests::{More, Setup, TestNetwork, curl, tcp_listeners};

#[tokio::test]
async fn promtool_finds_nothing_to_complain_about() {
    let more = More {
        plugin: Some("plugins/echo"),
        ..More::default()
    };
    let network = TestNetwork::start_with("fn route(c) { onion(3) }", more)
        .await
        .unwrap();
    let proxy = format!("socks5h://{}", network.client.entrance("socks5").unwrap());
    let fetched = curl(&proxy, &network.outside_url("/"), &[]).await.unwrap();
    assert_eq!(fetched.status, 200, "{fetched:?}");
    for node in [&network.client, &network.relay] {
        let metrics = metrics(node).await;
        check_metrics(&metrics);
        for secret in [node.id().to_string().as_str(), "outside.example"] {
            assert!(!metrics.contains(secret), "a label says {secret}");
        }
    }
    let metrics = metrics(&network.client).await;
    for name in ["wormholes_flows", "wormholes_peers", "wormholes_plugin"] {
        assert!(metrics.contains(name), "{name} is missing:\n{metrics}");
    }
    assert!(metrics.contains("onion"), "no flow was counted:\n{metrics}");
}

#[tokio::test]
async fn silent_connections_keep_no_scraper_out() {
    const N_SILENT: usize = 200;
    let setup = Setup::new("quiet").unwrap();
    let setup = setup.config("[metrics]\nlisten = \"127.0.0.1:0\"");
    let node = setup.start().await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..N_SILENT {
        silent.push(TcpStream::connect(node.metrics().unwrap()).await.unwrap());
    }
    let metrics = metrics(&node).await;
    let refused = r#"wormholes_connections_refused_total{entrance="metrics",reason="full"} "#;
    assert!(metrics.contains(refused), "{metrics}");
}

#[tokio::test]
async fn nothing_is_served_where_metrics_are_off() {
    let node = Setup::new("quiet").unwrap().start().await.unwrap();
    assert_eq!(node.metrics(), None);
    assert_eq!(tcp_listeners(node.pid()).unwrap(), []);
}

async fn metrics(node: &wormholes_tests::Daemon) -> String {
    let url = format!("http://{}/metrics", node.metrics().unwrap());
    let fetched = curl("", &url, &[]).await.unwrap();
    assert_eq!(fetched.status, 200, "{fetched:?}");
    String::from_utf8(fetched.body).unwrap()
}

fn check_metrics(text: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = promtool.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}
