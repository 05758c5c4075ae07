//! A plugin that does its worst, on a real daemon: what it does to the flows and the plugins beside it.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use wormholes_tests::{
    Burden, Daemon, EchoServer, Foremost, HonestFlow, RpcError, Setup, Turns, call, soak_rounds,
};

/// What it is asked, in turns. It never answers the last one.
const WORST: [&str; 13] = [
    "loop",
    "memory",
    "break",
    "write",
    "drizzle",
    "scratch",
    "scratch-drizzle",
    "timers",
    "messages",
    "posts",
    "questions",
    "log",
    "later",
];
/// Flows to an echo server, and events of another plugin, in one turn.
const WAITS: usize = 100;

#[tokio::test]
async fn neither_flows_nor_other_plugins_feel_one_that_does_its_worst() {
    let _foremost = Foremost::take().await.unwrap();
    let node = node().await;
    let entrance = node.entrance("socks5").unwrap();
    let echo = EchoServer::start([127, 0, 0, 1].into()).await.unwrap();
    let mut honest = HonestFlow::open(entrance, echo.address()).await.unwrap();
    let socket = node.socket();
    let worst = Burden::start(1, move |_, turn| {
        let socket = socket.clone();
        async move {
            // It is parked again and again.
            call(&socket, "plugin.start", json!({ "instance": "wicked" })).await?;
            let command = WORST[turn % WORST.len()];
            let arguments = json!({ "with": turn });
            let ask = json!({ "instance": "wicked", "command": command, "arguments": arguments });
            match call(&socket, "plugin.ask", ask).await {
                Err(error) if !error.is::<RpcError>() => Err(error),
                Ok(_) | Err(_) => Ok(()),
            }
        }
    })
    .unwrap();
    for _ in 0..soak_rounds(1) {
        let mut turns = [Turns::default(), Turns::default(), Turns::of_commits()];
        while turns.iter().any(Turns::go_on) {
            worst.rest().await.unwrap();
            let quiet = waits(&node, &mut honest).await;
            worst.work().await.unwrap();
            let burdened = waits(&node, &mut honest).await;
            for (turns, (quiet, burdened)) in turns.iter_mut().zip(quiet.iter().zip(&burdened)) {
                turns.take(quiet, burdened);
            }
        }
        for (turns, what) in turns.iter().zip(["round trips", "new flows", "events"]) {
            eprintln!("{}", turns.check(what).unwrap());
        }
    }
    worst.rest().await.unwrap();
    assert!(worst.done() >= WORST.len(), "{} turns", worst.done());
}

async fn node() -> Daemon {
    let setup = Setup::new("node").unwrap().entrances();
    let setup = setup.config("[log]\nlevel = \"warn\"");
    let setup = setup.script("rules.rhai", "fn route(c) { direct() }");
    let setup = setup.plugin("plugins/echo").unwrap();
    let setup = setup.plugin("tests/wicked").unwrap();
    setup.start().await.unwrap()
}

/// Round trips of a flow that lives, the opening of others, and another plugin's events.
async fn waits(node: &Daemon, honest: &mut HonestFlow) -> [Vec<Duration>; 3] {
    let trips = honest.trips(WAITS).await.unwrap();
    let opens = honest.opens(WAITS).await.unwrap();
    let mut events = Vec::with_capacity(WAITS);
    for _ in 0..WAITS {
        events.push(said(node).await.unwrap());
    }
    [trips, opens, events]
}

async fn said(node: &Daemon) -> Result<Duration> {
    let start = Instant::now();
    let say = json!({ "instance": "echo", "command": "say", "arguments": { "text": "well" } });
    node.call("plugin.ask", say).await?;
    Ok(start.elapsed())
}
