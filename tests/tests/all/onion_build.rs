//! How long a circuit takes to build: one round trip over the path, however many hops it has.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use futures_util::future::try_join_all;
use serde_json::json;
use wormholes_tests::{Conditions, Daemon, Foremost, Identity, Setup, Site, UdpLink, curl, until};

/// To a hop and back.
const LINK_ROUND_TRIP: Duration = Duration::from_millis(20);
const HOPS: u8 = 8;
/// More than circuits are kept ahead, so that some of these flows wait for theirs.
const FLOWS_AT_ONCE: usize = 6;

const SCRIPT: &str = r#"
fn route(c) {
    switch c.user {
        "two" => onion(2).closed(),
        "eight" => onion(8).closed(),
        _ => block("not in this test"),
    }
}
"#;

/// A hop, reached over its link.
struct Hop {
    _daemon: Daemon,
    _link: UdpLink,
}

async fn hop(number: u8, identity: &Identity, relay: &Daemon) -> anyhow::Result<Hop> {
    let ip = Ipv4Addr::new(127, 70 + number, 0, 1);
    let conditions = Conditions {
        delay: LINK_ROUND_TRIP / 2,
        loss: 0.0,
    };
    let link = UdpLink::start(IpAddr::V4(ip), conditions, u64::from(number)).await?;
    let exit = "[exit]\nenabled = true\nallow = [\"0.0.0.0/0\"]\nallow_private = true";
    let daemon = Setup::with_identity(&format!("hop-{number}"), identity)?
        .listen(&format!("{ip}:0"))
        .node(&format!("advertise = [\"{}\"]", link.address()))
        .config("[hop]\nenabled = true")
        .config(if number == HOPS { exit } else { "" })
        .config(&registered_with(relay)?)
        .start()
        .await?;
    link.connect(daemon.listen().expect("a hop listens"));
    Ok(Hop {
        _daemon: daemon,
        _link: link,
    })
}

fn registered_with(relay: &Daemon) -> anyhow::Result<String> {
    let address = relay.listen().expect("the relay listens");
    Ok(format!(
        "[[peer]]\nname = \"relay\"\nid = \"{}\"\naddresses = [\"{address}\"]\nregister = true",
        relay.id()
    ))
}

/// The longest wait for a first byte among flows that start together: circuit, OPEN and request
/// make three round trips where nothing was built ahead.
async fn slowest_first_byte(client: &Daemon, user: &str, url: &str) -> Duration {
    let proxy = format!("socks5h://{user}:x@{}", client.entrance("socks5").unwrap());
    // The first flow makes the path's links warm.
    assert_eq!(curl(&proxy, url, &[]).await.unwrap().status, 200);
    let mut best = Duration::MAX;
    for _ in 0..4 {
        let fetched = (0..FLOWS_AT_ONCE).map(|_| curl(&proxy, url, &[]));
        let fetched = try_join_all(fetched).await.unwrap();
        assert!(fetched.iter().all(|one| one.status == 200), "{fetched:?}");
        let slowest = fetched.iter().map(|one| one.first_byte).max().unwrap();
        best = best.min(slowest);
    }
    best
}

#[tokio::test(flavor = "multi_thread")]
async fn a_circuit_takes_one_round_trip_over_its_path() {
    let _foremost = Foremost::take().await.unwrap();
    let site = Site::start("outside", Ipv4Addr::LOCALHOST, None)
        .await
        .unwrap();
    let identities: Vec<_> = (1..=HOPS).map(|_| Identity::generate().unwrap()).collect();
    let mut client = Setup::new("client").unwrap();
    let relay = Setup::new("relay").unwrap().listen("127.70.0.1:0");
    let mut relay = relay
        .config("[relay]\nenabled = true")
        .peer_id("client", client.id(), 2, "");
    for (number, identity) in identities.iter().enumerate() {
        relay = relay.peer_id(&format!("hop-{number}"), identity.id(), 1, "");
    }
    let relay = relay.start().await.unwrap();
    let hops = try_join_all(
        (1..=HOPS)
            .zip(&identities)
            .map(|(number, identity)| hop(number, identity, &relay)),
    )
    .await
    .unwrap();
    client = client.entrances().script("rules.rhai", SCRIPT);
    let client = client.peer(&relay, 2).start().await.unwrap();
    until("the client to know all hops", async || {
        let peers = client.call("peers", json!({})).await.ok()?;
        let hop = |peer: &&serde_json::Value| peer.pointer("/roles/hop") == Some(&json!(true));
        let known = peers.get("peers")?.as_array()?.iter().filter(hop).count();
        (known == hops.len()).then_some(())
    })
    .await
    .unwrap();
    let url = format!("http://{}/", site.address());
    for (user, n_hops) in [("two", 2), ("eight", 8)] {
        let path = LINK_ROUND_TRIP * n_hops;
        let took = slowest_first_byte(&client, user, &url).await;
        // A circuit that is built hop by hop needs 3 round trips over two hops in all but the
        // path's own two, and 36 over eight: 4.5 paths for the circuit alone.
        assert!(
            took < path * 4 + LINK_ROUND_TRIP * 2,
            "{n_hops} hops took {took:?}"
        );
        assert!(
            took > path * 5 / 2,
            "{n_hops} hops took {took:?}: nothing was built"
        );
    }
}
