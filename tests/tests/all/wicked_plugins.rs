//! A plugin that does its worst, on a real daemon: what each kind of it does to the flows and the plugins
//! beside it, one kind after the other. It is held against as many events at the same plugin that do
//! nothing: what the asking costs, and the asker on the same machine, is not the plugin's fault.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tokio::time::{Instant as TokioInstant, interval_at};
use wormholes_tests::{
    Burden, Daemon, EchoServer, Foremost, HonestFlow, LIMIT, Rounds, RpcError, Setup, call,
    soak_rounds, until_within,
};

/// All at once at one principal, which takes one event after the other: while one runs, the next ones
/// wait and the last ones are committed, so that it has no rest.
const WORKERS: usize = 4;
/// Of each kind, and no more, whatever they show.
const ROUNDS: usize = 9;
/// Flows to an echo server, openings of others, and events of another plugin, in half a round.
const WAITS: usize = 20;

/// One way to be wicked.
struct Kind {
    name: &'static str,
    /// Asked for by turns. They are alike: none has the time of the others.
    commands: &'static [&'static str],
    /// What the first of them is told, so that it did what it was to do.
    told: &'static str,
}

const BROKE: &str = "the plugin failed";
const FULL: &str = "raise limits.";

static KINDS: [Kind; 15] = [
    kind("a loop", &["loop"], BROKE),
    kind("a trap", &["break"], BROKE),
    kind("all memory", &["memory"], BROKE),
    kind("durable messages", &["messages"], FULL),
    kind("volatile messages", &["posts", "questions"], FULL),
    kind("the log", &["log"], "logged"),
    kind("timers", &["timers"], FULL),
    kind("facts", &["facts"], FULL),
    kind("state", &["write", "fill", "drizzle"], FULL),
    kind("scratch", &["scratch", "scratch-drizzle"], FULL),
    kind("wires", &["sockets", "room", "fetches", "credit"], FULL),
    kind(
        "what is not granted",
        &[
            "foreign-fact",
            "foreign-hook",
            "foreign-port",
            "foreign-socket",
            "foreign-answer",
            "split",
            "tunnel",
            "file",
        ],
        "that the manifest asks for",
    ),
    kind(
        "questions to the rules",
        &["deep-question", "wild-question"],
        "a question to the rules",
    ),
    kind("no answer", &["later"], "did not answer in time"),
    kind("forged answers", &["forge"], "nobody waits"),
];

const fn kind(name: &'static str, commands: &'static [&'static str], told: &'static str) -> Kind {
    Kind {
        name,
        commands,
        told,
    }
}

#[tokio::test]
async fn neither_flows_nor_other_plugins_feel_one_that_does_its_worst() {
    let _foremost = Foremost::take().await.unwrap();
    let echo = EchoServer::start([127, 0, 0, 1].into()).await.unwrap();
    let mut felt = Vec::new();
    for kind in &KINDS {
        let mut scene = Scene::start(kind, &echo).await;
        let all = scene.measure().await;
        let name = kind.name;
        eprintln!("{name}: {} events", scene.handled().await);
        for (rounds, what) in all.iter().zip(["round trips", "new flows", "events"]) {
            let said = format!("{name}: {what} {rounds}");
            eprintln!("{said}");
            if !rounds.are_borne() {
                felt.push(said);
            }
        }
    }
    assert!(felt.is_empty(), "{felt:#?}");
}

/// A node with nothing on it but one kind of wickedness, a plugin and flows beside it.
struct Scene {
    worst: Burden,
    /// As often, nothing at all.
    nothing: Burden,
    /// What of it each worker begins after so many microseconds.
    period: Arc<AtomicU64>,
    honest: HonestFlow,
    node: Daemon,
}

impl Scene {
    async fn start(kind: &'static Kind, echo: &EchoServer) -> Self {
        let node = node(kind).await;
        let entrance = node.entrance("socks5").unwrap();
        let honest = HonestFlow::open(entrance, echo.address()).await.unwrap();
        let first = match ask(&node, kind, 0).await {
            Ok(answer) => answer.to_string(),
            Err(error) => format!("{error:#}"),
        };
        assert!(first.contains(kind.told), "{}: {first}", kind.name);
        let socket = node.socket();
        let worst = Burden::start(WORKERS, move |worker, turn| {
            let (socket, params) = (socket.clone(), kind.asked(turn * WORKERS + worker));
            async move { asked(&socket, params).await }
        });
        let (socket, period) = (node.socket(), Arc::new(AtomicU64::new(0)));
        let wanted = Arc::clone(&period);
        let nothing = Burden::start(WORKERS, move |_, _| {
            let (socket, period) = (socket.clone(), Duration::from_micros(wanted.load(Relaxed)));
            async move {
                let mut next = interval_at(TokioInstant::now() + period, period);
                let nothing = json!({ "instance": "wicked", "command": "nothing" });
                asked(&socket, nothing).await?;
                next.tick().await;
                Ok(())
            }
        });
        Self {
            worst: worst.unwrap(),
            nothing: nothing.unwrap(),
            period,
            honest,
            node,
        }
    }

    /// Half a round with it and half a round with as many events that do nothing, and so on: with, without,
    /// with, without. All that was waited counts.
    async fn measure(&mut self) -> [Rounds; 3] {
        // What is done once is done before.
        self.waits().await;
        let mut all = [Rounds::of_flows(), Rounds::of_flows(), Rounds::of_commits()];
        let mut handled = 0;
        for _ in 0..ROUNDS {
            let before = self.handled().await;
            let (start, done) = (Instant::now(), self.worst.done());
            self.worst.begin().await.unwrap();
            let burdened = self.waits().await;
            let done = u64::try_from(self.worst.done() - done).unwrap().max(1);
            let all_workers = start.elapsed() * u32::try_from(WORKERS).unwrap();
            let period = u64::try_from(all_workers.as_micros()).unwrap() / done;
            self.rest().await;
            handled += self.handled().await - before;
            self.period.store(period.max(1), Relaxed);
            self.nothing.begin().await.unwrap();
            let quiet = self.waits().await;
            self.nothing.rest().await.unwrap();
            for (rounds, (quiet, burdened)) in all.iter_mut().zip(quiet.into_iter().zip(burdened)) {
                rounds.take(quiet, burdened);
            }
        }
        assert!(handled >= ROUNDS as u64, "{handled} wicked events");
        all
    }

    /// Has nothing of it go on, and nothing wait. What its pace holds back for seconds is refused and
    /// not waited for, but for the one event that may be at its next try.
    async fn rest(&self) {
        self.worst.pause();
        let wicked = json!({ "instance": "wicked" });
        self.node.call("plugin.stop", wicked.clone()).await.unwrap();
        self.worst.rest_but(1).await.unwrap();
        self.node.call("plugin.start", wicked).await.unwrap();
        self.worst.rest().await.unwrap();
        until_within(LIMIT * 4, "nothing of it to wait", async || {
            let wicked = self.wicked().await;
            let waits = ["waiting_events", "waiting_messages"];
            waits.iter().all(|key| wicked[key] == 0).then_some(())
        })
        .await
        .unwrap();
    }

    /// Round trips of a flow that lives, the opening of others, and another plugin's events.
    async fn waits(&mut self) -> [Vec<Duration>; 3] {
        let count = soak_rounds(WAITS);
        let trips = self.honest.trips(count).await.unwrap();
        let opens = self.honest.opens(count).await.unwrap();
        let mut events = Vec::with_capacity(count);
        for _ in 0..count {
            events.push(said(&self.node).await.unwrap());
        }
        [trips, opens, events]
    }

    /// Events that it had, however they ended.
    async fn handled(&self) -> u64 {
        let wicked = self.wicked().await;
        let counts = ["events", "refused", "broken"].map(|key| wicked[key].as_u64().unwrap());
        counts.iter().sum()
    }

    async fn wicked(&self) -> Value {
        let list = self.node.call("plugin.list", json!({})).await.unwrap();
        let mut plugins = list["plugins"].as_array().unwrap().iter();
        let wicked = plugins.find(|plugin| plugin["name"] == "wicked");
        wicked.unwrap().clone()
    }
}

impl Kind {
    fn asked(&self, turn: usize) -> Value {
        let command = self.commands[turn % self.commands.len()];
        let with = match command {
            // A number near those of the requests that are open now; of the first one, the next.
            "forge" => (1 << 32) + turn + 1,
            // Four of them are all that it may keep: written anew, and the fifth refused.
            "fill" => turn % 5,
            _ => turn,
        };
        let arguments = json!({ "with": with });
        json!({ "instance": "wicked", "command": command, "arguments": arguments })
    }
}

/// Its log has what plugins say.
async fn node(kind: &Kind) -> Daemon {
    let setup = Setup::new("node").unwrap().entrances();
    let setup = setup.config("[log]\nlevel = \"info\"");
    let setup = setup.script("rules.rhai", "fn route(c) { direct() }");
    let setup = setup.plugin("plugins/echo").unwrap();
    // A loop uses up what it has: by default so much. Floods end before, on a slow machine as well.
    let event_ms = match kind.commands {
        ["loop"] => "event_ms = 50",
        _ => "event_ms = 300",
    };
    let setup = setup.plugin_with("tests/wicked", &[("event_ms = 300", event_ms)]);
    setup.unwrap().start().await.unwrap()
}

/// Asks, whatever is answered. It is paused, and parked, again and again.
async fn asked(socket: &Path, params: Value) -> Result<()> {
    call(socket, "plugin.start", json!({ "instance": "wicked" })).await?;
    match call(socket, "plugin.ask", params).await {
        Err(error) if !error.is::<RpcError>() => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

async fn ask(node: &Daemon, kind: &Kind, turn: usize) -> Result<Value> {
    node.call("plugin.ask", kind.asked(turn)).await
}

/// How long the other plugin takes to answer, which is the right answer.
async fn said(node: &Daemon) -> Result<Duration> {
    let start = Instant::now();
    let say = json!({ "instance": "echo", "command": "say", "arguments": { "text": "well" } });
    let answer = node.call("plugin.ask", say).await?;
    let took = start.elapsed();
    ensure!(answer["text"] == "well", "{answer}");
    Ok(took)
}
