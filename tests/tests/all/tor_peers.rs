//! Nodes that reach nothing but Tor: one that is behind a bridge, and two that are peers by their onion
//! addresses alone. Each is on a host of its own, with a wire to the relays.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use wormholes_tests::{
    Daemon, EchoServer, Identity, Namespace, SITE_GREETING, Setup, TOR_WEB, TorNetwork, curl_in,
    output, socks5_ask, there_and_back, until, until_within,
};

use crate::{
    long_fetch::{is_cut, long_fetch},
    watched::AT_HOME,
};

/// To publish a service, which arti does no oftener than once a minute, to find it, and to open a connection
/// over it.
const FOUND: Duration = Duration::from_secs(240);
const PATIENCE: Duration = Duration::from_secs(30);
const STREAM_BYTES: usize = 1 << 20;

const BY_TOR: &str = "fn route(c) { tor().timeout(\"30s\").closed() }";
const TO_PEER: &str = "fn route(c) { c.node.direct().timeout(\"60s\").closed() }";

/// Authorities and exits: all that there is of the network.
const RELAYS: &str = "{ 9.70.0.1, 9.71.0.1, 9.72.0.1, 9.73.0.1, 9.74.0.1 }";
const BRIDGE: &str = "9.75.0.1";

/// Counts what leaves the host: to `relays`, as nft tells them, and elsewhere.
fn watch(host: &Namespace, relays: &str) {
    let counters = format!(
        "table inet watched {{
            counter relays {{ }}
            counter other {{ }}
            chain output {{
                type filter hook output priority 0
                {AT_HOME}
                ip daddr {relays} counter name relays accept
                counter name other
            }}
        }}"
    );
    host.nft(&counters).unwrap();
}

fn calls_only_relays(host: &Namespace) {
    assert!(host.counted("relays").unwrap() > 0);
    assert_eq!(host.counted("other").unwrap(), 0, "packets elsewhere");
}

#[tokio::test]
async fn with_a_bridge_no_packet_goes_to_anybody_else() {
    let network = TorNetwork::start().await.unwrap();
    let mut bridge = network.bridge().await.unwrap();
    let hidden = format!(
        "bridges = [{:?}]\ntransports = {{ obfs4 = \"/usr/bin/obfs4proxy\" }}",
        bridge.obfs4
    );
    let plain = format!("bridges = [{:?}]", bridge.plain);
    let mut nodes = Vec::new();
    for (number, keys) in [(1, hidden), (2, plain)] {
        let host = network.neighbour(number).unwrap();
        watch(&host, BRIDGE);
        let node = Setup::new("client")
            .unwrap()
            .in_namespace(&host)
            .entrances();
        let node = node.config(&network.config(&keys));
        let node = node.script("rules.rhai", BY_TOR).start().await.unwrap();
        nodes.push((host, node));
    }
    for (host, node) in &nodes {
        let fetched = until_within(FOUND, "a page over the bridge", async || {
            fetches(host, node).await.then_some(())
        });
        fetched.await.unwrap();
        calls_only_relays(host);
    }
    let fetching = nodes
        .iter()
        .enumerate()
        .map(|(number, (host, node))| long_fetch(host, node, (&network.web, TOR_WEB), number));
    let mut fetching = join_all(fetching).await;
    bridge.kill().unwrap();
    for fetch in &mut fetching {
        is_cut(fetch).await;
    }
    for (host, node) in &nodes {
        assert!(!fetches(host, node).await, "a page without the bridge");
        calls_only_relays(host);
    }
}

async fn fetches(host: &Namespace, node: &Daemon) -> bool {
    let proxy = format!("socks5h://{}", node.entrance("socks5").unwrap());
    let url = format!("http://{TOR_WEB}/");
    let fetched = curl_in(host, &proxy, &url, &[]).await.unwrap();
    String::from_utf8_lossy(&fetched.body).contains(SITE_GREETING)
}

#[tokio::test]
async fn two_nodes_that_have_nothing_but_onion_addresses_are_peers() {
    let network = TorNetwork::start().await.unwrap();
    let (near, far) = (network.neighbour(1).unwrap(), network.neighbour(2).unwrap());
    for host in [&near, &far] {
        watch(host, RELAYS);
    }
    let echo = EchoServer::start_in(&far).unwrap();
    let (mut friend, client) = friends(&network, (&near, &far), &echo).await;
    let onion = onion_of(&friend).await;
    let at_onion = format!("friend at {onion}:4433: ");
    is_pinged(&client, "friend", &at_onion).await;
    comes_back(&near, &client).await;
    is_pinged(&client, "friend", &at_onion).await;
    is_pinged(&friend, "client", "client through Tor: ").await;
    shows_the_onion(&client, &onion).await;
    tells_how_tor_is(&friend, &onion);

    // It comes back with the address that it had.
    friend.kill().unwrap();
    friend.restart().await.unwrap();
    assert_eq!(onion_of(&friend).await, onion);
    comes_back(&near, &client).await;

    // Where Tor is what lacks, a ping says so.
    client.cli(&["tor", "stop"]).unwrap();
    let told = until("a ping to miss Tor", async || {
        let said = output_of(&client, &["ping", "friend", "--count", "1"]).stderr;
        let said = String::from_utf8_lossy(&said);
        said.contains("`wormholes tor start`").then_some(())
    });
    told.await.unwrap();
    let checks = output_of(&client, &["netcheck"]).stdout;
    let checks = String::from_utf8_lossy(&checks).into_owned();
    assert!(
        checks.contains("tor network: `wormholes tor start`"),
        "{checks}"
    );
    client.cli(&["tor", "start"]).unwrap();
    is_pinged(&client, "friend", &at_onion).await;
    for host in [&near, &far] {
        calls_only_relays(host);
    }
}

/// Peers on these hosts, one of which publishes its onion address, with a service, and the other knows
/// it.
async fn friends(
    network: &TorNetwork,
    (near, far): (&Namespace, &Namespace),
    echo: &EchoServer,
) -> (Daemon, Daemon) {
    let client = Identity::generate().unwrap();
    let friend = Setup::new("friend").unwrap().in_namespace(far);
    let friend = friend
        .config(&network.config("peers = true\npeers_port = 4433"))
        .peer_id("client", client.id(), 2, "")
        .service("echo", echo.address())
        .start()
        .await
        .unwrap();
    let addresses = format!("addresses = [\"{}:4433\"]", onion_of(&friend).await);
    let client = Setup::with_identity("client", &client).unwrap();
    let client = client
        .in_namespace(near)
        .entrances()
        .config(&network.config(""))
        .script("rules.rhai", TO_PEER)
        .peer_id("friend", friend.id(), 2, &addresses)
        .start()
        .await
        .unwrap();
    (friend, client)
}

/// What stands for the address inside is shown nowhere.
async fn shows_the_onion(client: &Daemon, onion: &str) {
    for words in ["peers", "netcheck"] {
        let said = client.cli(&[words]).unwrap();
        assert!(said.contains(&format!("{onion}:4433")), "{words}: {said}");
        assert!(!said.contains("[100:"), "{words}: {said}");
    }
    let peers = client.call("peers", json!({})).await.unwrap();
    let friends = peers["peers"].as_array().unwrap().iter();
    let known: Vec<&Value> = friends.filter(|peer| peer["name"] == "friend").collect();
    assert_eq!(known.len(), 1, "{peers}");
    assert_eq!(
        (&known[0]["online"], &known[0]["carrier"]),
        (&json!(true), &json!("tcp"))
    );
}

/// A ping says this; while they find each other, the next one does.
async fn is_pinged(node: &Daemon, peer: &str, told: &str) {
    let pinged = until_within(FOUND, told, async || {
        let said = node.cli(&["ping", peer, "--count", "1"]).ok()?;
        said.starts_with(told).then_some(())
    });
    pinged.await.unwrap();
}

/// The checks say it; a bug report too, but not where the node is.
fn tells_how_tor_is(friend: &Daemon, onion: &str) {
    let checks = friend.cli(&["netcheck"]).unwrap();
    for part in ["through Tor, ", "ready; ", "others find it"] {
        assert!(checks.contains(part), "{part} in {checks}");
    }
    let report = friend.cli(&["bugreport"]).unwrap();
    for part in ["state = \"ready\"", "services[0].state = \"reachable\""] {
        assert!(
            report.contains(&format!("\ntor.{part}")),
            "{part} in {report}"
        );
    }
    let name = onion.trim_end_matches(".onion");
    assert!(!report.contains(name), "{report}");
}

/// What a command says, whether it succeeds or not.
fn output_of(node: &Daemon, words: &[&str]) -> std::process::Output {
    output(&mut node.cli_command(words).unwrap()).unwrap()
}

/// The address at which a node takes its peers, once it is up.
async fn onion_of(node: &Daemon) -> String {
    let found = until_within(FOUND, "an onion address for peers", async || {
        let status = node.call("tor.status", json!({})).await.ok()?;
        let services = status["services"].as_array()?;
        let own = |service: &&Value| service["name"] == "peers" && service["state"] == "reachable";
        Some(services.iter().find(own)?["address"].as_str()?.to_owned())
    });
    found.await.unwrap()
}

/// A flow to the friend's service brings back what it is given; while they find each other, the next
/// one does.
async fn comes_back(host: &Namespace, client: &Daemon) {
    let entrance = client.entrance("socks5").unwrap();
    let echoed = until_within(FOUND, "an echo over Tor", async || {
        let mut stream = host.connect(entrance).unwrap();
        let reply = socks5_ask(&mut stream, "echo.friend.wh", 80).await.ok()?;
        (reply == 0).then_some(stream)
    });
    let mut stream = echoed.await.unwrap();
    let echoed = there_and_back(&mut stream, 13, STREAM_BYTES, PATIENCE).await;
    echoed.unwrap();
}
