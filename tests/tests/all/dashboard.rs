//! The Grafana dashboard, its queries answered by a real Prometheus that scrapes real nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddrV4,
    path::Path,
    process::Stdio,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, net::TcpStream, process::Child};
use wormholes_tests::{Daemon, More, TestNetwork, curl, tcp_listeners, until, workspace};

/// What Grafana puts in the place of variables.
const VARIABLES: [(&str, &str); 2] = [("$__rate_interval", "5s"), ("$instance", ".*")];
/// Of a metric that is a histogram: names that are its own.
const PARTS: [&str; 3] = ["_bucket", "_sum", "_count"];

/// A target of a panel.
#[derive(Debug)]
struct Query {
    panel: String,
    expression: String,
    legend: String,
}

struct Prometheus {
    child: Child,
    _folder: TempDir,
}

impl Prometheus {
    fn start(nodes: &[&Daemon]) -> Self {
        let folder = TempDir::new().unwrap();
        let targets: Vec<String> = nodes
            .iter()
            .map(|n| n.metrics().unwrap().to_string())
            .collect();
        let config = format!(
            "global: {{ scrape_interval: 200ms, scrape_timeout: 200ms }}\n\
             scrape_configs:\n- job_name: wormholes\n  static_configs:\n  - targets: {targets:?}\n"
        );
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, config).unwrap();
        let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let mut prometheus = tokio::process::Command::new("setpriv");
        prometheus.args(["--pdeathsig", "KILL", "prometheus"]);
        prometheus.args(["--web.listen-address=127.0.0.1:0", "--log.level=error"]);
        prometheus.arg(flag("config.file", &file));
        prometheus.arg(flag("storage.tsdb.path", &folder.path().join("data")));
        prometheus.stdout(Stdio::null()).stderr(Stdio::null());
        let child = prometheus.kill_on_drop(true).spawn().unwrap();
        let _folder = folder;
        Self { child, _folder }
    }

    async fn address(&self) -> SocketAddrV4 {
        let pid = self.child.id().unwrap();
        let listening = until("prometheus to listen", async || {
            tcp_listeners(pid).ok()?.pop()
        });
        listening.await.unwrap()
    }
}

/// The labels of each series that Prometheus answers with; it must find the query good.
async fn ask(server: SocketAddrV4, expression: &str) -> Vec<BTreeSet<String>> {
    let query = format!("query={expression}");
    let url = format!("http://{server}/api/v1/query");
    let answer = curl("", &url, &["--data-urlencode", &query]).await.unwrap();
    // It listens before it has read its data.
    if answer.status == 503 {
        return Vec::new();
    }
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(answer.status, 200, "{expression}: {body}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    let series = answer["data"]["result"].as_array().unwrap().iter();
    let labels = |series: &Value| {
        series["metric"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect()
    };
    series.map(labels).collect()
}

#[tokio::test]
async fn every_query_of_the_dashboard_is_answered_and_every_metric_is_on_it() {
    let more = More {
        plugin: Some("plugins/echo"),
        ..More::default()
    };
    let network = TestNetwork::start_with("fn route(c) { onion(3) }", more)
        .await
        .unwrap();
    let nodes = [&network.client, &network.relay];
    let prometheus = Prometheus::start(&nodes);
    let server = prometheus.address().await;
    use_everything(&network).await;

    let queries = queries();
    assert!(queries.len() > 20, "{queries:?}");
    for query in &queries {
        let mut expression = query.expression.clone();
        for (name, value) in VARIABLES {
            expression = expression.replace(name, value);
        }
        assert!(!expression.contains('$'), "{expression}");
        let what = format!("an answer to {expression} of {}", query.panel);
        let answered = until(&what, async || {
            let series = ask(server, &expression).await;
            (!series.is_empty()).then_some(series)
        });
        // A label that the metric lacks would be missing, and the legend empty.
        for labels in answered.await.unwrap() {
            for name in named(&query.legend) {
                assert!(labels.contains(&name), "{query:?} has {labels:?}");
            }
        }
    }

    let shown: BTreeSet<String> = queries
        .iter()
        .flat_map(|query| metrics_in(&query.expression))
        .collect();
    let mut exported = BTreeSet::new();
    for node in nodes {
        let url = format!("http://{}/metrics", node.metrics().unwrap());
        let text = curl("", &url, &[]).await.unwrap().body;
        let text = String::from_utf8(text).unwrap();
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        exported.extend(types.filter_map(|line| Some(line.split_once(' ')?.0.to_owned())));
    }
    assert_eq!(shown, exported);
}

/// Grafana refuses what it cannot lay out.
#[test]
fn panels_have_places_of_their_own() {
    let mut taken = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard()["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{panel}");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                let other = taken.insert((x, y), panel["title"].to_string());
                assert_eq!(other, None, "{panel}");
            }
        }
    }
}

/// Has each metric that begins with its first event begin.
async fn use_everything(network: &TestNetwork) {
    let client = &network.client;
    let entrance = client.entrance("socks5").unwrap();
    let proxy = format!("socks5h://{entrance}");
    let fetched = curl(&proxy, &network.outside_url("/"), &[]).await.unwrap();
    assert_eq!(fetched.status, 200, "{fetched:?}");
    let mut nonsense = TcpStream::connect(entrance).await.unwrap();
    nonsense.write_all(b"nonsense").await.unwrap();
    // No service of the relay is called so.
    let script = "fn route(c) { peer(\"relay\").direct().closed() }";
    fs::write(client.folder().join("other.rhai"), script).unwrap();
    client.cli(&["script", "load", "other.rhai"]).unwrap();
    let refused = curl(&proxy, "http://nothing.relay.wh/", &[]).await.unwrap();
    assert_ne!(refused.exit, 0, "{refused:?}");
    client.cli(&["echo", "say", "hello"]).unwrap();
}

fn dashboard() -> Value {
    let file = workspace::root().join("packaging/grafana/wormholes.json");
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

fn queries() -> Vec<Query> {
    let mut queries = Vec::new();
    for panel in dashboard()["panels"].as_array().unwrap() {
        let targets = panel["targets"].as_array().into_iter().flatten();
        queries.extend(targets.map(|target| Query {
            panel: panel["title"].as_str().unwrap().to_owned(),
            expression: target["expr"].as_str().unwrap().to_owned(),
            legend: target["legendFormat"].as_str().unwrap().to_owned(),
        }));
    }
    queries
}

/// The labels that a legend names: `{{role}}`.
fn named(legend: &str) -> Vec<String> {
    let after = legend.split("{{").skip(1);
    after
        .filter_map(|text| Some(text.split_once("}}")?.0.to_owned()))
        .collect()
}

fn metrics_in(expression: &str) -> Vec<String> {
    let words = expression.split(|c: char| !c.is_alphanumeric() && c != '_');
    let words = words.filter(|word| word.starts_with("wormholes_"));
    let whole = |word: &str| {
        let part = PARTS.iter().find_map(|part| word.strip_suffix(part));
        part.unwrap_or(word).to_owned()
    };
    words.map(whole).collect()
}
