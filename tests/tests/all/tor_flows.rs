//! Flows through a private Tor network to a site behind its exits, and what the exits count of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use wormholes_proto::{Host, Target};
use wormholes_tests::{
    Association, CircuitAtExit, Daemon, ExitCells, Metrics, SITE_GREETING, Site, TOR_ECHO, TOR_WEB,
    TorNetwork, curl_in, is_soak, socks5_ask, socks5_resolve, there_and_back, until, until_within,
};

/// A plan's time for a bootstrap and a circuit on a busy machine.
const OPEN: Duration = Duration::from_secs(60);
/// Of a stream on which nothing comes.
const PATIENCE: Duration = Duration::from_secs(30);
/// More than fits into all buffers on the way.
const UNREAD_BYTES: usize = 60_000_000;
/// A flow that has not moved in so many looks has stalled.
const STILL_LOOKS: usize = 10;
/// A page of this size comes in 200 cells of at most 498 bytes and a few more.
const PAGE_BYTES: usize = 100_000;
const PAGE_CELLS: u64 = 200;
/// Arti may have several circuits of one group: that two flows take different ones is no wonder, that so
/// many do is.
const SHARING_TRIES: usize = 8;

/// Labels of entrances say which group a flow is of.
const GROUPS: &str = r#"
fn route(c) {
    switch c.label {
        "plain" => tor().closed(),
        "shared-1" | "shared-2" => tor(#{ isolate: "shared" }).closed(),
        "label" => tor(#{ isolate: c.label }).closed(),
        "list-1" | "list-2" => tor(#{ isolate: [c.host, c.label] }).closed(),
        "list-3" => tor(#{ isolate: ["another host", "list-1"] }).closed(),
        "app" => tor(#{ isolate: c.app }).closed(),
        _ => block("not in this test"),
    }
}
"#;
/// Groups, and for each of their flows the label of its entrance and its user.
const FLOWS: [(&str, &[(&str, &str)]); 8] = [
    (
        "plain",
        &[("plain", ""), ("plain", ""), ("plain", ""), ("plain", "")],
    ),
    ("plain of ann", &[("plain", "ann:x@")]),
    ("plain of bob", &[("plain", "bob:x@")]),
    ("label", &[("label", "")]),
    (
        "list",
        &[
            ("list-1", ""),
            ("list-1", ""),
            ("list-1", ""),
            ("list-1", ""),
        ],
    ),
    ("list that ends otherwise", &[("list-2", "")]),
    ("list that begins otherwise", &[("list-3", "")]),
    (
        "curl",
        &[("app", ""), ("app", ""), ("app", ""), ("app", "")],
    ),
];

/// Circuits are told apart by the exits: what the client says of itself proves nothing.
#[tokio::test]
async fn flows_share_a_circuit_within_their_group_alone_and_none_with_an_old_identity() {
    let network = TorNetwork::start().await.unwrap();
    let mut exits = network.exit_cells().await.unwrap();
    let mut node = network.node("client", "").unwrap();
    let labels = [
        "plain", "shared-1", "shared-2", "label", "list-1", "list-2", "list-3", "app",
    ];
    for label in labels {
        node = node.config(&format!(
            "[[entrance]]\nkind = \"socks5\"\nlisten = \"127.0.0.1:0\"\nlabel = {label:?}"
        ));
    }
    let node = node.script("rules.rhai", GROUPS).start().await.unwrap();
    let mut groups: BTreeMap<_, BTreeSet<CircuitAtExit>> = BTreeMap::new();
    for (group, flows) in FLOWS {
        for (label, user) in flows {
            let circuit = fetch(&network, &node, &mut exits, label, user).await;
            groups.entry(group).or_default().insert(circuit);
        }
    }
    let circuit = fetch_by_hand(&network, &node, &mut exits, "app").await;
    groups.insert("another program", BTreeSet::from([circuit]));
    let shared = fetch_by_two_entrances(&network, &node, &mut exits).await;
    groups.insert("shared", shared);
    let n_circuits: usize = groups.values().map(BTreeSet::len).sum();
    let all: BTreeSet<_> = groups.values().flatten().cloned().collect();
    assert_eq!(all.len(), n_circuits, "groups share a circuit: {groups:#?}");
    for group in ["plain", "list", "curl"] {
        assert!(groups[group].len() < 4, "nothing is shared: {groups:#?}");
    }

    node.cli(&["tor", "new-identity"]).unwrap();
    for (label, user) in [("plain", ""), ("shared-1", ""), ("plain", "ann:x@")] {
        let circuit = fetch(&network, &node, &mut exits, label, user).await;
        assert!(
            !all.contains(&circuit),
            "{label} {user:?} has an old circuit"
        );
    }
    let status = node.call("tor.status", json!({})).await.unwrap();
    assert_eq!(status["identity"], 2, "{status}");
    circuits_are_shown(&node).await;
}

/// Each with its three relays, to programs and to people.
async fn circuits_are_shown(node: &Daemon) {
    let circuits = node.call("tor.circuits", json!({})).await.unwrap();
    let circuits = circuits["circuits"].as_array().unwrap();
    assert!(!circuits.is_empty(), "what is idle is gone");
    let said = node.cli(&["tor", "circuits"]).unwrap();
    assert_eq!(said.lines().count(), circuits.len(), "{said}");
    for circuit in circuits {
        let relays: Vec<String> = serde_json::from_value(circuit["relays"].clone()).unwrap();
        assert_eq!(relays.len(), 3, "{circuit}");
        let exit = &relays[2];
        assert!(
            exit.starts_with("9.73.0.1") || exit.starts_with("9.74.0.1"),
            "{circuit}"
        );
        let begin = format!("circuit    {}: ", circuit["id"].as_str().unwrap());
        let end = relays.join(", ");
        let is_it = |line: &str| line.starts_with(&begin) && line.ends_with(&end);
        assert!(said.lines().any(is_it), "{circuit} in {said}");
    }
}

/// The circuits of flows that come by two entrances, one of which at least both had: the script gives them
/// the same key.
async fn fetch_by_two_entrances(
    network: &TorNetwork,
    node: &Daemon,
    exits: &mut ExitCells,
) -> BTreeSet<CircuitAtExit> {
    let (mut first, mut second) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..SHARING_TRIES {
        first.insert(fetch(network, node, exits, "shared-1", "").await);
        second.insert(fetch(network, node, exits, "shared-2", "").await);
        if !first.is_disjoint(&second) {
            return &first | &second;
        }
    }
    panic!("entrances share no circuit: {first:#?} {second:#?}");
}

/// The circuit over which a page comes.
async fn fetch(
    network: &TorNetwork,
    node: &Daemon,
    exits: &mut ExitCells,
    label: &str,
    user: &str,
) -> CircuitAtExit {
    let proxy = format!("socks5h://{user}{}", node.entrance(label).unwrap());
    let url = format!("http://{TOR_WEB}/bytes/{PAGE_BYTES}");
    let fetched = curl_in(network.host(), &proxy, &url, &[]).await.unwrap();
    assert_eq!(fetched.body.len(), PAGE_BYTES, "{label}: {}", fetched.error);
    exits.next_circuit(PAGE_CELLS).await.unwrap()
}

/// The same by another program than curl: this one.
async fn fetch_by_hand(
    network: &TorNetwork,
    node: &Daemon,
    exits: &mut ExitCells,
    label: &str,
) -> CircuitAtExit {
    let entrance = node.entrance(label).unwrap();
    let mut stream = network.host().connect(entrance).unwrap();
    assert_eq!(socks5_ask(&mut stream, TOR_WEB, 80).await.unwrap(), 0);
    let request = format!("GET /bytes/{PAGE_BYTES} HTTP/1.1\r\nHost: {TOR_WEB}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut page = vec![0; PAGE_BYTES];
    let read = timeout(PATIENCE, stream.read_exact(&mut page)).await;
    read.unwrap().unwrap();
    exits.next_circuit(PAGE_CELLS).await.unwrap()
}

const BY_TOR: &str = "fn route(c) { tor().timeout(\"60s\").closed() }";
/// Of a site beside the exits.
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 1);

#[tokio::test]
async fn programs_use_tor_by_both_proxies_and_what_may_not_go_there_is_refused() {
    let network = TorNetwork::start().await.unwrap();
    let node = network.node("client", "").unwrap();
    let node = node
        .config("[metrics]\nlisten = \"127.0.0.1:0\"")
        .script("rules.rhai", BY_TOR);
    let node = node.start().await.unwrap();
    let url = format!("http://{TOR_WEB}/");
    for kind in ["socks5", "http"] {
        let scheme = if kind == "http" { "http" } else { "socks5h" };
        let proxy = format!("{scheme}://{}", node.entrance(kind).unwrap());
        // By CONNECT, as browsers do for what is encrypted.
        let fetched = curl_in(network.host(), &proxy, &url, &["--proxytunnel"]).await;
        let fetched = fetched.unwrap();
        let page = String::from_utf8_lossy(&fetched.body).into_owned();
        assert!(page.contains(SITE_GREETING), "{kind}: {}", fetched.error);
    }
    // Nobody but an exit asked, three hops away, and by name.
    for request in network.web.requests() {
        let from = request.from.ip().to_string();
        assert!(["9.73.0.1", "9.74.0.1"].contains(&from.as_str()), "{from}");
        assert_eq!(request.host, TOR_WEB);
    }
    is_told_to_be_ready(&network, &node).await;
    bytes_come_back(&network, &node).await;
    local_addresses_are_refused(&network, &node).await;
    private_addresses_are_dialled_where_the_network_has_them(&network, &node).await;
    datagrams_are_refused(&network, &node).await;
    stopped_and_started(&network, &node).await;
}

/// By metrics, in the log, and by the command line.
async fn is_told_to_be_ready(network: &TorNetwork, node: &Daemon) {
    let metrics = Metrics::read_in(network.host(), node).await.unwrap();
    assert_eq!(metrics.get("wormholes_tor_ready"), 1.0);
    assert_eq!(metrics.get("wormholes_tor_bootstrap_ratio"), 1.0);
    let opened = metrics.get("wormholes_tor_streams_total{direction=\"out\"}");
    assert!(opened >= 2.0, "{opened}");
    let progress = node.log().wait("Tor bootstrap").await.unwrap();
    assert!(progress.contains("percent="), "{progress}");
    let status = node.cli(&["tor", "status"]).unwrap();
    for part in ["state      ready\n", "network    one of its own"] {
        assert!(status.contains(part), "{part} in {status}");
    }
}

/// 10 MB there and back; in a soak 100.
async fn bytes_come_back(network: &TorNetwork, node: &Daemon) {
    let n_bytes = if is_soak() { 100 << 20 } else { 10 << 20 };
    let entrance = node.entrance("socks5").unwrap();
    let mut stream = network.host().connect(entrance).unwrap();
    let reply = socks5_ask(&mut stream, TOR_ECHO, 7).await.unwrap();
    assert_eq!(reply, 0);
    let echoed = there_and_back(&mut stream, 7, n_bytes, PATIENCE).await;
    echoed.unwrap();
}

/// The exit would dial what is local to itself.
async fn local_addresses_are_refused(network: &TorNetwork, node: &Daemon) {
    let entrance = node.entrance("socks5").unwrap();
    let names = ["localhost", "printer.localhost"];
    for target in ["127.0.0.1", "10.1.2.3", "::1"].into_iter().chain(names) {
        let mut events = node.events().await.unwrap();
        let mut stream = network.host().connect(entrance).unwrap();
        let reply = socks5_ask(&mut stream, target, 80).await.unwrap();
        assert_ne!(reply, 0, "{target}");
        let refused = events.next(|event| event["kind"] == "flow-refused").await;
        let why = why(node, &refused.unwrap()).await;
        assert_eq!(why["tunnel"], Value::Null, "{why}");
    }
    for name in names {
        let mut stream = network.host().connect(entrance).unwrap();
        let found = socks5_resolve(&mut stream, name).await;
        assert!(found.is_err(), "{name}: {found:?}");
    }
    let asked = network.names.asked();
    let local = |name: &String| name.ends_with("localhost");
    assert!(!asked.iter().any(local), "an exit heard of it: {asked:?}");
}

/// The site is private, and where the exits are. Nobody asks them for it, unless the config says that
/// theirs is a network in which such addresses mean something.
async fn private_addresses_are_dialled_where_the_network_has_them(
    network: &TorNetwork,
    node: &Daemon,
) {
    let address = format!("{PRIVATE}/32");
    let host = network.host();
    host.ip(&["address", "add", &address, "dev", "lo"]).unwrap();
    let site = Site::start_in(host, "private", (PRIVATE, 80).into()).unwrap();
    let insider = network.node("insider", "").unwrap();
    // [tor.network] is the last section so far.
    let insider = insider.config("allow_private = true");
    let insider = insider.script("rules.rhai", BY_TOR).start().await.unwrap();
    let url = format!("http://{PRIVATE}/");
    for (client, is_open) in [(node, false), (&insider, true)] {
        let proxy = format!("socks5h://{}", client.entrance("socks5").unwrap());
        let fetched = curl_in(host, &proxy, &url, &[]).await.unwrap();
        let page = String::from_utf8_lossy(&fetched.body).into_owned();
        let name = client.name();
        assert_eq!(
            page.contains(SITE_GREETING),
            is_open,
            "{name}: {}",
            fetched.error
        );
    }
    let requests = site.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    let from = requests[0].from.ip().to_string();
    assert!(["9.73.0.1", "9.74.0.1"].contains(&from.as_str()), "{from}");
}

async fn datagrams_are_refused(network: &TorNetwork, node: &Daemon) {
    let control = network
        .host()
        .connect(node.entrance("socks5").unwrap())
        .unwrap();
    let socket = network.host().udp(([127, 0, 0, 1], 0).into()).unwrap();
    let association = Association::open(control, socket, None).await.unwrap();
    let mut events = node.events().await.unwrap();
    let echo = Target::new(Host::parse(TOR_ECHO).unwrap(), 7);
    let asked = association.ask(&echo, b"to and fro");
    let refused = events.next(|event| event["kind"] == "flow-refused");
    let refused = tokio::select! {
        answer = asked => panic!("a datagram went through Tor: {answer:?}"),
        refused = refused => refused.unwrap(),
    };
    let why = why(node, &refused).await;
    let said = why["steps"][0]["error"].as_str().unwrap();
    assert!(said.contains("UDP does not go through Tor"), "{why}");
}

/// Whose program takes nothing more of what comes.
async fn unread_flow(network: &TorNetwork, node: &Daemon) -> TcpStream {
    let entrance = node.entrance("socks5").unwrap();
    let mut stream = network.host().connect(entrance).unwrap();
    assert_eq!(socks5_ask(&mut stream, TOR_WEB, 80).await.unwrap(), 0);
    let request = format!("GET /bytes/{UNREAD_BYTES} HTTP/1.1\r\nHost: {TOR_WEB}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut last, mut still) = (0, 0);
    until_within(OPEN, "a flow that nobody reads to stall", async || {
        let flows = node.call("flows", json!({})).await.unwrap();
        let bytes = flows["flows"][0]["bytes_received"].as_u64()?;
        still = if bytes == last { still + 1 } else { 0 };
        last = bytes;
        (bytes > 0 && still == STILL_LOOKS).then_some(())
    })
    .await
    .unwrap();
    stream
}

/// Stopped, Tor ends what goes through it, also what waits for its program; it opens nothing, and says
/// who starts it; started again, it does.
async fn stopped_and_started(network: &TorNetwork, node: &Daemon) {
    let mut unread = unread_flow(network, node).await;
    node.cli(&["tor", "stop"]).unwrap();
    until("all flows to end", async || {
        let flows = node.call("flows", json!({})).await.unwrap();
        (flows["open"] == 0).then_some(())
    })
    .await
    .unwrap();
    let mut page = Vec::new();
    let ended = timeout(PATIENCE, unread.read_to_end(&mut page)).await;
    let ended = ended.expect("the connection stands");
    assert!(ended.is_err() && page.len() < UNREAD_BYTES, "{ended:?}");
    let state = async || {
        let status = node.call("tor.status", json!({})).await.unwrap();
        status["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(state().await, "stopped");
    let metrics = Metrics::read_in(network.host(), node).await.unwrap();
    assert_eq!(metrics.get("wormholes_tor_ready"), 0.0);
    let entrance = node.entrance("socks5").unwrap();
    let proxy = format!("socks5h://{entrance}");
    let url = format!("http://{TOR_WEB}/");
    let mut events = node.events().await.unwrap();
    let fetched = curl_in(network.host(), &proxy, &url, &[]).await.unwrap();
    assert_ne!(fetched.exit, 0, "{fetched:?}");
    let refused = events.next(|event| event["kind"] == "flow-refused").await;
    let why = why(node, &refused.unwrap()).await;
    let said = why["steps"][0]["error"].as_str().unwrap();
    assert!(said.contains("wormholes tor start"), "{why}");

    a_taken_folder_is_reported(network, node).await;
    node.cli(&["tor", "start"]).unwrap();
    until_within(OPEN, "Tor to be ready again", async || {
        (state().await == "ready").then_some(())
    })
    .await
    .unwrap();
    until("a flow after a new start", async || {
        let fetched = curl_in(network.host(), &proxy, &url, &[]).await.unwrap();
        (fetched.exit == 0).then_some(())
    })
    .await
    .unwrap();
}

/// Another process has the folder that Tor needs.
async fn a_taken_folder_is_reported(network: &TorNetwork, node: &Daemon) {
    let taken = node.folder().join("data/tor");
    let other = network.node("other", &format!("state_dir = {taken:?}"));
    let other = other.unwrap().script("rules.rhai", BY_TOR);
    let other = other.start().await.unwrap();
    let status = until("Tor to fail", async || {
        let status = other.call("tor.status", json!({})).await.unwrap();
        (status["state"] == "failed").then_some(status)
    });
    let status = status.await.unwrap();
    let error = status["error"].as_str().unwrap_or_default();
    assert!(error.contains("it is in use"), "{status}");
    let refused = other.cli(&["tor", "start"]).unwrap_err();
    let said = format!("{refused:#}");
    assert!(said.contains("it is in use"), "{said}");
}

async fn why(node: &Daemon, event: &Value) -> Value {
    let flow = json!({ "flow": event["flow"] });
    node.call("why", flow).await.unwrap()
}
