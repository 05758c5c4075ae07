//! What plugins cost: an event, a commit, a message, an instance.
//!
//! Hosts run in this process, but for those of the daemons that tell each other something; all their
//! stores lie beside each other on one disk, whose own figures are measured with them.

use std::{
    fs::OpenOptions,
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use serde_json::json;
use tempfile::TempDir;
use wormholes_tests::{HostNetwork, PluginHost, anonymous_bytes, until, until_within};

use crate::{network::as_shipped, process::start_this_giving_back, row::Row, table::Table};

pub(crate) const EVENT: &str = "plugin event: one read, one write, one message";
pub(crate) const DURABLE_EVENTS: &str = "durable events a second, 1,024 in flight";
pub(crate) const DURABLE_EVENTS_OF: &str = "the disk's";
pub(crate) const DECISION: &str = "decision of 1,024 operations between two hosts";
pub(crate) const MESSAGE: &str = "durable message between two daemons, p50";
pub(crate) const MESSAGE_OF: &str = "3 fdatasyncs and 1 ms";
pub(crate) const IDLE: &str = "idle instance";
const RESTING: &str = "principal at rest";
pub(crate) const LOAD: &str = "load from cache";
const DISK: &str = "fdatasync of 4 KiB, p50";

/// All rows that are measured by themselves, in their order.
pub(crate) const ROWS: [&str; 7] = [
    EVENT,
    DURABLE_EVENTS,
    MESSAGE,
    DECISION,
    LOAD,
    IDLE,
    RESTING,
];

const METER: &str = "tests/meter";
const RULES: &str = "fn route(c) { c.node.direct().closed() }";
const ROUNDS: usize = 20;
const EVENTS: u32 = 500;
const IN_FLIGHT: usize = 1024;
/// What no host passes, however fast its disk is.
const MOST_EVENTS: f64 = 50_000.0;
const MEASURED: Duration = Duration::from_secs(10);
const OPERATIONS: u64 = 1024;
const DECISIONS: u64 = 100;
const MESSAGES: usize = 300;
const INSTANCES: usize = 1000;
/// After this nobody holds what an instance needs for an event alone.
const IDLE_AFTER: Duration = Duration::from_secs(3);
/// After this nobody holds an instance who had no event.
const RESTED: Duration = Duration::from_secs(25);
const LOADS: usize = 50;
const SYNCS: usize = 200;

/// Measures the rows whose names hold `only`, in order.
pub(crate) async fn measure(only: &str, table: &mut Table<'_>) -> Result<()> {
    let wanted = |names: &[&str]| names.iter().any(|name| name.contains(only));
    ensure!(wanted(&ROWS), "no row's name holds {only:?}");
    let disk = disk()?;
    table.show(Row::alone(DISK, disk.as_secs_f64() * 1e3, "ms")?);
    if wanted(&[EVENT]) {
        table.add([event().await?]);
    }
    if wanted(&[DURABLE_EVENTS]) {
        table.add([durable_events(disk).await?]);
    }
    if wanted(&[MESSAGE]) {
        table.add([message(disk).await?]);
    }
    if wanted(&[DECISION]) {
        table.add([decision().await?]);
    }
    if wanted(&[LOAD]) {
        table.add([load().await?]);
    }
    if wanted(&[IDLE, RESTING]) {
        table.add(idle().await?);
    }
    Ok(())
}

/// What a file of the disk takes to be made durable.
fn disk() -> Result<Duration> {
    let folder = TempDir::new()?;
    let path = folder.path().join("sync");
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let mut times = Vec::new();
    for _ in 0..SYNCS {
        let start = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    median(times)
}

fn median(mut times: Vec<Duration>) -> Result<Duration> {
    times.sort_unstable();
    times
        .get(times.len() / 2)
        .copied()
        .context("nothing was measured")
}

/// Many events that follow each other: the time in the handlers alone, of the round in the middle. Their
/// messages wait for a node that is not there.
async fn event() -> Result<Row> {
    let host = PluginHost::new(&Arc::default(), METER).await?;
    let spent = || -> Result<(Duration, u64)> {
        let report = host.host()?.instances().pop().context("it is loaded")?;
        let events = report.counts.events.values().sum();
        Ok((report.counts.handler_time, events))
    };
    host.ask("aim", json!({ "node": vec![7; 32] })).await?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let before = spent()?;
        try_join_all((0..EVENTS).map(|_| host.ask("step", json!({})))).await?;
        let after = spent()?;
        let events = u32::try_from(after.1 - before.1)?;
        ensure!(events >= EVENTS, "{events} events");
        rounds.push((after.0 - before.0) / events);
    }
    Row::alone(EVENT, median(rounds)?.as_secs_f64() * 1e6, "us")
}

async fn durable_events(disk: Duration) -> Result<Row> {
    let host = PluginHost::new(&Arc::default(), METER).await?;
    let done = AtomicU64::new(0);
    let start = Instant::now();
    let ask = async || {
        while start.elapsed() < MEASURED {
            host.ask("write", json!({})).await?;
            done.fetch_add(1, Relaxed);
        }
        Ok::<(), anyhow::Error>(())
    };
    try_join_all((0..IN_FLIGHT).map(|_| ask())).await?;
    let rate = done.load(Relaxed) as f64 / start.elapsed().as_secs_f64();
    let most = MOST_EVENTS.min(IN_FLIGHT as f64 / disk.as_secs_f64());
    Row::against(DURABLE_EVENTS, rate, "1/s", DURABLE_EVENTS_OF, most)
}

/// From a command at one daemon until it knows that the other one has handled the message and keeps what
/// came of it: three events, each durable before the next one begins.
async fn message(disk: Duration) -> Result<Row> {
    let setup = |name| Ok::<_, anyhow::Error>(as_shipped(name)?.script("rules.rhai", RULES));
    let (ann, bob) = (setup("ann")?, setup("bob")?.listen("127.0.0.1:0"));
    let bob = bob.peer_id("ann", ann.id(), 3, "").plugin(METER)?;
    let bob = bob.start().await?;
    let ann = ann.peer(&bob, 3).plugin(METER)?.start().await?;
    let node = bob.id().as_bytes().to_vec();
    let tell = json!({
        "instance": "meter", "command": "tell", "arguments": { "node": node },
    });
    let mut times = Vec::new();
    for _ in 0..MESSAGES {
        let start = Instant::now();
        ann.call("plugin.ask", tell.clone()).await?;
        times.push(start.elapsed());
    }
    let bound = 3.0 * disk.as_secs_f64() + 0.001;
    let p50 = median(times)?.as_secs_f64();
    Row::against(MESSAGE, p50 * 1e3, "ms", MESSAGE_OF, bound * 1e3)
}

async fn decision() -> Result<Row> {
    let network: Arc<HostNetwork> = Arc::default();
    let commits = Arc::new(AtomicU64::new(0));
    let mut hosts = Vec::new();
    for _ in 0..2 {
        let mut host = PluginHost::new(&network, METER).await?;
        host.close().await?;
        let seen = Arc::clone(&commits);
        let observer = move |_: &_| {
            seen.fetch_add(1, Relaxed);
        };
        host.open(Some(Box::new(observer))).await?;
        hosts.push(host);
    }
    let [from, to] = hosts.as_slice() else {
        unreachable!("two were made")
    };
    let node = to.id().as_bytes().to_vec();
    let decide = json!({ "node": node, "times": OPERATIONS });
    let handled = async || {
        let count = to.query("count").await.ok()?;
        count.as_u64()
    };
    let first = handled().await.context("it counts")?;
    let mut before = 0;
    // The first one begins a channel, too.
    for decision in 0..=DECISIONS {
        if decision == 1 {
            before = commits.load(Relaxed);
        }
        from.ask("decide", decide.clone()).await?;
        let enough = Some(first + decision + 1);
        until("it is handled", async || {
            (handled().await == enough).then_some(())
        })
        .await?;
    }
    let commits = (commits.load(Relaxed) - before) as f64 / DECISIONS as f64;
    Row::alone(DECISION, commits, "commits")
}

/// A plugin whose code was compiled before, in a host that runs.
async fn load() -> Result<Row> {
    let host = PluginHost::new(&Arc::default(), METER).await?;
    let mut times = Vec::new();
    for _ in 0..LOADS {
        times.push(host.reload().await?);
    }
    let p50 = median(times)?;
    Row::alone(LOAD, p50.as_secs_f64() * 1e3, "ms")
}

/// What principals take that have done something, when they rest, and an instance before that.
async fn idle() -> Result<Vec<Row>> {
    let (_child, said) = start_this_giving_back(&["instances"]).await?;
    let (with_instance, resting) = said.split_once(' ').context("two numbers")?;
    let kib = |bytes: &str| Ok::<_, anyhow::Error>(bytes.parse::<f64>()? / 1024.0);
    let (with_instance, resting) = (kib(with_instance)?, kib(resting)?);
    let idle = Row::alone(IDLE, with_instance - resting, "KiB")?;
    Ok(vec![idle, Row::alone(RESTING, resting, "KiB")?])
}

/// Bytes of each of many principals that have done something: with an instance that is idle, and at
/// rest. Without what all instances of a component share, the image of their memory.
pub(crate) async fn instances() -> Result<(u64, u64)> {
    let host = PluginHost::new(&Arc::default(), METER).await?;
    let name = |user: usize| format!("user-{user}");
    for user in 0..10 + INSTANCES {
        host.host()?.add_user(&name(user)).await?;
    }
    let ask = async |user: usize| {
        let asked = host.ask_as(Some(&name(user)), "write", json!({})).await;
        asked.map(drop)
    };
    // What is there once is paid for.
    try_join_all((0..10).map(ask)).await?;
    let before = anonymous_bytes(std::process::id())?;
    try_join_all((10..10 + INSTANCES).map(ask)).await?;
    let since = Instant::now();
    let idle = async || (since.elapsed() > IDLE_AFTER).then_some(());
    until("all to be idle", idle).await?;
    let each = || -> Result<u64> {
        let grown = anonymous_bytes(std::process::id())?.saturating_sub(before);
        Ok(grown / INSTANCES as u64)
    };
    let with_instance = each()?;
    let rested = async || (since.elapsed() > RESTED).then_some(());
    until_within(2 * RESTED, "all to rest", rested).await?;
    Ok((with_instance, each()?))
}
