//! How long a circuit takes to build: one round trip over the path, however many hops it has.

use std::{net::Ipv4Addr, ops::Range, time::Duration};

use futures_util::future::try_join_all;
use wormholes_tests::{Daemon, Foremost, LongPath, Site, curl};

/// To a hop and back.
const LINK_ROUND_TRIP: Duration = Duration::from_millis(20);
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

/// The longest wait for a first byte among flows that start together: circuit, OPEN and request
/// make three round trips where nothing was built ahead. Of several rounds the best, until one is
/// within `limit`: a busy machine may hold some of them back.
async fn slowest_first_byte(client: &Daemon, user: &str, url: &str, limit: Duration) -> Duration {
    const ROUNDS: Range<usize> = 4..20;
    let proxy = format!("socks5h://{user}:x@{}", client.entrance("socks5").unwrap());
    // The first flow makes the path's links warm.
    assert_eq!(curl(&proxy, url, &[]).await.unwrap().status, 200);
    let mut best = Duration::MAX;
    for round in 0..ROUNDS.end {
        if round >= ROUNDS.start && best < limit {
            break;
        }
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
    let path = LongPath::start(LINK_ROUND_TRIP, SCRIPT).await.unwrap();
    let url = format!("http://{}/", site.address());
    for (user, n_hops) in [("two", 2), ("eight", 8)] {
        let round_trip = LINK_ROUND_TRIP * n_hops;
        // A circuit that is built hop by hop needs 3 round trips over two hops in all but the
        // path's own two, and 36 over eight: 4.5 paths for the circuit alone.
        let limit = round_trip * 4 + LINK_ROUND_TRIP * 2;
        let took = slowest_first_byte(&path.client, user, &url, limit).await;
        assert!(took < limit, "{n_hops} hops took {took:?}");
        assert!(
            took > round_trip * 5 / 2,
            "{n_hops} hops took {took:?}: nothing was built"
        );
    }
}
