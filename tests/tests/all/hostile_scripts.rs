//! Scripts that try to hold up or fill up the node, on a real daemon: what they do to the flows
//! beside them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use wormholes_tests::{
    Burden, Daemon, EchoServer, Foremost, HonestFlow, Setup, Turns, is_soak, soak_rounds,
    socks5_connect,
};

/// What one hostile decision may take. It gives way to others, so that in continuous integration
/// its time is that of whoever shares the machine.
const MAX_TIME: Duration = Duration::from_millis(50);
const MAX_TIME_IN_CI: Duration = Duration::from_secs(1);
/// What all of them together may fill.
const MAX_GROWTH_BYTES: u64 = 64 << 20;

/// Hostile for some targets only. What needs no more than to be written down to be hostile
/// (`sleep`, `replace`) does not get so far: it is refused when it is loaded.
const SCRIPT: &str = r#"
fn route(c) {
    switch c.host {
        "loop.example" => { loop { } }
        "try.example" => { loop { try { loop { } } catch { } } }
        "recursion.example" => down(1),
        "wide.example" => wide(0),
        "array.example" => { let a = [1]; loop { a += a; } }
        "copies.example" => { let a = []; for i in 0..1000 { a.push(i); } copies(a) }
        "map.example" => {
            let k = ""; k.pad(4000, 'k'); let m = #{}; let i = 0;
            loop { m[k + i] = i; i += 1; }
        }
        "string.example" => { let s = "x"; loop { s += s; } }
        "panic.example" => { let i = -9223372036854775807 - 1; loop { i % -1; } }
        "sort.example" => {
            let a = []; for i in 0..500 { a.push(i); }
            loop { a.sort(|x, y| -1); }
        }
        _ => direct()
    }
}
fn down(n) { down(n + 1) }
fn wide(n) { if n < 14 { wide(n + 1); wide(n + 1); wide(n + 1); } 0 }
fn copies(a) { let b = a; let c = a; let d = a; let e = a; let f = a; copies(a); b }
"#;
const HOSTILE: [&str; 10] = [
    "loop.example",
    "try.example",
    "recursion.example",
    "wide.example",
    "array.example",
    "copies.example",
    "map.example",
    "string.example",
    "panic.example",
    "sort.example",
];

#[tokio::test]
async fn hostile_decisions_end_in_block_and_other_flows_do_not_feel_them() {
    let _foremost = Foremost::take().await.unwrap();
    let node = node().await;
    let entrance = node.entrance("socks5").unwrap();
    let echo = EchoServer::start([127, 0, 0, 1].into()).await.unwrap();
    let mut honest = HonestFlow::open(entrance, echo.address()).await.unwrap();
    let fastest = Arc::<Mutex<BTreeMap<&str, Duration>>>::default();
    let times = Arc::clone(&fastest);
    // One after the other, so that there is always one.
    let hostile = Burden::start(1, move |_, turn| {
        let times = Arc::clone(&times);
        async move {
            let host = HOSTILE[turn % HOSTILE.len()];
            let start = Instant::now();
            let refused = socks5_connect(entrance, host, 80).await.err();
            let took = start.elapsed();
            let refused = refused.map(|error| error.to_string()).unwrap_or_default();
            anyhow::ensure!(refused.contains("reply code 2"), "{host}: {refused:?}");
            let mut times = times.lock().unwrap();
            let fastest = times.entry(host).or_insert(took);
            *fastest = took.min(*fastest);
            Ok(())
        }
    })
    .unwrap();
    let before = node.resident_bytes().unwrap();
    for _ in 0..soak_rounds(1) {
        let (mut trips, mut opens) = (Turns::default(), Turns::default());
        while trips.go_on() || opens.go_on() {
            hostile.rest().await.unwrap();
            let quiet = waits(&mut honest).await;
            hostile.work().await.unwrap();
            let burdened = waits(&mut honest).await;
            trips.take(&quiet.0, &burdened.0);
            opens.take(&quiet.1, &burdened.1);
            let grown = node.resident_bytes().unwrap().saturating_sub(before);
            assert!(grown < MAX_GROWTH_BYTES, "grew by {grown} bytes");
        }
        eprintln!("{}", trips.check("round trips").unwrap());
        eprintln!("{}", opens.check("new flows").unwrap());
    }
    hostile.rest().await.unwrap();
    // Whoever shares the machine makes some of the tries slow; a decision that is slow is so in
    // every one.
    let max_time = if is_soak() { MAX_TIME } else { MAX_TIME_IN_CI };
    let fastest = fastest.lock().unwrap();
    assert_eq!(fastest.len(), HOSTILE.len(), "{fastest:?}");
    assert!(fastest.values().all(|took| *took < max_time), "{fastest:?}");
}

async fn node() -> Daemon {
    Setup::new("target")
        .unwrap()
        .entrances()
        .config("[log]\nlevel = \"warn\"")
        .script("hostile.rhai", SCRIPT)
        .start()
        .await
        .unwrap()
}

/// Round trips of a flow that lives, and the opening of others.
async fn waits(honest: &mut HonestFlow) -> (Vec<Duration>, Vec<Duration>) {
    let trips = honest.trips(100).await.unwrap();
    (trips, honest.opens(100).await.unwrap())
}
