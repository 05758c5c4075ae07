//! Plans on real daemons: races over links of unlike speed, and a look-up through an onion.

use std::{net::Ipv4Addr, time::Duration};

use futures_util::future::try_join_all;
use serde_json::json;
use wormholes_tests::{
    Conditions, Daemon, EchoServer, Identity, More, SITE_GREETING, Setup, TestNetwork, UdpLink,
    curl, socks5_connect, until,
};

const OUTSIDE: Ipv4Addr = Ipv4Addr::new(127, 83, 0, 1);
/// One way; an exit next door has dialled the target long before.
const FAR: Duration = Duration::from_millis(300);
const EXIT: &str = "[exit]\nenabled = true\nallow = [\"0.0.0.0/0\"]\nallow_private = true";
const METRICS: &str = "[metrics]\nlisten = \"127.0.0.1:0\"";

#[tokio::test(flavor = "multi_thread")]
async fn of_two_exits_the_nearer_wins_and_why_tells_of_both() {
    const FLOWS: u64 = 12;
    let script = r#"fn route(c) {
        peer("far").direct().exit().race(peer("near").direct().exit())
    }"#;
    let conditions = Conditions {
        delay: FAR,
        loss: 0.0,
    };
    let link = UdpLink::start([127, 81, 0, 1].into(), conditions, 1);
    let link = link.await.unwrap();
    let client = Setup::new("client").unwrap().entrances().config(METRICS);
    let exit = |name: &str, listen: &str, keys: &str| {
        let setup = Setup::with_identity(name, &Identity::generate()?)?;
        let setup = setup.listen(listen).node(keys).config(EXIT).config(METRICS);
        anyhow::Ok(setup.peer_id("client", client.id(), 2, ""))
    };
    let advertise = format!("advertise = [\"{}\"]", link.address());
    let far = exit("far", "127.81.0.1:0", &advertise).unwrap();
    let near = exit("near", "127.82.0.1:0", "").unwrap();
    let (far, near) = tokio::try_join!(far.start(), near.start()).unwrap();
    link.connect(far.listen().unwrap());
    let over_link = format!("addresses = [\"{}\"]", link.address());
    let client =
        client
            .script("rules.rhai", script)
            .peer(&near, 2)
            .peer_id("far", far.id(), 2, &over_link);
    let client = client.start().await.unwrap();
    until("both exits to be connected", async || {
        let peers = client.call("peers", json!({})).await.ok()?;
        let mut peers = peers.get("peers")?.as_array()?.iter();
        peers.all(|peer| peer["online"] == true).then_some(())
    })
    .await
    .unwrap();

    let echo = EchoServer::start(OUTSIDE).await.unwrap();
    let (entrance, port) = (client.entrance("socks5").unwrap(), echo.address().port());
    let host = OUTSIDE.to_string();
    let flows = (0..FLOWS).map(|_| socks5_connect(entrance, &host, port));
    let flows = try_join_all(flows).await.unwrap();
    let all = FLOWS.to_string();
    assert_eq!(metric(&client, "wormholes_flows_open").await, all);
    for flow in 1..=FLOWS {
        let why = client.cli(&["why", &flow.to_string()]).unwrap();
        for part in [
            "direct to far, which exits against direct to near, which exits",
            "direct to near, which exits: opened",
            "direct to far, which exits: lost the race",
            "path       near",
        ] {
            assert!(why.contains(part), "{part:?} in {why}");
        }
    }
    // Behind a ping nothing is left on the way.
    client.cli(&["ping", "far", "--count", "1"]).unwrap();
    let at_exits = r#"wormholes_circuits_open{role="exit"}"#;
    becomes(&far, at_exits, "0").await;
    assert_eq!(metric(&near, at_exits).await, all);
    drop(flows);
    becomes(&client, "wormholes_flows_open", "0").await;
    becomes(&near, at_exits, "0").await;
}

/// The name is known to the exit alone; whoever asked anybody else would not find it.
#[tokio::test]
async fn a_name_is_looked_up_at_the_end_of_an_onion_and_dialled_from_here() {
    let script = r#"fn route(c) {
        if c.ip == () { return need("ip", onion(3)); }
        if c.ip == "127.50.0.1" { direct() } else { block(c.ip) }
    }"#;
    let more = More {
        client: "[exit]\nallow_private = true",
        ..More::default()
    };
    let network = TestNetwork::start_with(script, more).await.unwrap();
    let proxy = format!("socks5h://{}", network.client.entrance("socks5").unwrap());
    let fetched = curl(&proxy, &network.outside_url("/"), &[]).await.unwrap();
    let body = String::from_utf8_lossy(&fetched.body);
    assert!(body.contains(SITE_GREETING), "{fetched:?}");
    let why = network.client.cli(&["why", "1"]).unwrap();
    for part in [
        "need the address, through onion(3)",
        "c.ip = 127.50.0.1",
        "look-up through onion(3): opened",
        "direct: opened",
    ] {
        assert!(why.contains(part), "{part:?} in {why}");
    }
}

async fn metric(node: &Daemon, name: &str) -> String {
    let url = format!("http://{}/metrics", node.metrics().unwrap());
    let text = curl("", &url, &[]).await.unwrap().body;
    let text = String::from_utf8(text).unwrap();
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value
        .unwrap_or_else(|| panic!("no {name} in {text}"))
        .to_owned()
}

async fn becomes(node: &Daemon, name: &str, value: &str) {
    until(&format!("{name} to become {value}"), async || {
        (metric(node, name).await == value).then_some(())
    })
    .await
    .unwrap();
}
