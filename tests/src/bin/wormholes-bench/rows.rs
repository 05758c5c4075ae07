//! The rows: what is measured, against what, and where it stands to its floor.

use std::{future::Future, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::net::TcpStream;
use wormholes_tests::resident_bytes;

use crate::{
    decisions,
    load::{self, Way},
    network::{Network, Route},
    process, reference,
};

/// How long each single measurement takes.
const TIME: Duration = Duration::from_secs(2);
/// Ours and theirs alternate so often; medians are compared.
const ROUNDS: usize = 3;
/// Idle flows that memory is divided by.
const IDLE_FLOWS: usize = 1_000;
/// Those before them pay for what is there once.
const FIRST_IDLE_FLOWS: usize = 100;

/// Which rows are measured.
#[derive(Debug)]
pub(crate) enum Selection {
    All,
    /// Those whose names hold this.
    Holding(String),
}

/// One line of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// What is measured.
    name: String,
    /// Its value.
    value: f64,
    /// The unit of both values.
    unit: &'static str,
    /// What it is held against, with its value.
    against: Option<Against>,
    /// `value` by the other's value.
    ratio: Option<f64>,
    /// What the ratio, or without one the value, must reach; or must not pass, where less is
    /// better.
    floor: Option<f64>,
    /// Whether it does; true where there is no floor.
    ok: bool,
}

/// What a row is held against.
#[derive(Debug, Serialize)]
struct Against {
    name: &'static str,
    value: f64,
}

/// Whether more is better, and how much is enough.
#[derive(Debug, Clone, Copy)]
enum Floor {
    None,
    AtLeast(f64),
    AtMost(f64),
}

impl Selection {
    fn takes(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Holding(text) => name.contains(text),
        }
    }
}

impl Row {
    fn new(
        name: String,
        unit: &'static str,
        value: f64,
        against: Option<(&'static str, f64)>,
        floor: Floor,
    ) -> Self {
        let ratio = against.map(|(_, other)| value / other);
        let held = ratio.unwrap_or(value);
        let (floor, ok) = match floor {
            Floor::None => (None, true),
            Floor::AtLeast(least) => (Some(least), held >= least),
            Floor::AtMost(most) => (Some(most), held <= most),
        };
        let against = against.map(|(name, value)| Against { name, value });
        Self {
            name,
            value,
            unit,
            against,
            ratio,
            floor,
            ok,
        }
    }

    /// Whether the floor is reached.
    pub(crate) fn ok(&self) -> bool {
        self.ok
    }

    /// The row as a line of a table.
    pub(crate) fn line(&self) -> String {
        let against = self
            .against
            .as_ref()
            .map_or_else(String::new, |a| format!("{} {:.1}", a.name, a.value));
        let ratio = self
            .ratio
            .map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        let floor = match (self.floor, self.ok) {
            (None, _) => String::new(),
            (Some(floor), true) => format!("{floor} ok"),
            (Some(floor), false) => format!("{floor} MISSED"),
        };
        format!(
            "{:<58} {:>10.1} {:<6} {against:<28} {ratio:>6}  {floor}",
            self.name, self.value, self.unit
        )
    }
}

/// The heading over [`Row::line`].
pub(crate) fn heading() -> String {
    format!(
        "{:<58} {:>10} {:<6} {:<28} {:>6}  floor",
        "row", "value", "unit", "against", "ratio"
    )
}

/// Measures the selected rows; each is handed to `done` as soon as it is known.
pub(crate) async fn measure(
    network: &Network,
    forward: &Way,
    raw: &Way,
    selection: &Selection,
    mut done: impl FnMut(Row),
) -> Result<()> {
    decide(selection, &mut done)?;
    for route in Route::ALL {
        let way = network.way(route)?;
        for streams in [1, 8] {
            let plural = if streams == 1 { "" } else { "s" };
            let name = format!("{}, {streams} stream{plural}", route.name());
            if selection.takes(&name) {
                done(bulk(name, network, route, raw, streams).await?);
            }
        }
        let name = format!("{}, echo", route.name());
        if selection.takes(&name) {
            for row in latency(&name, route, &way, forward).await? {
                done(row);
            }
        }
        let name = format!("{}, new flows", route.name());
        if selection.takes(&name) {
            let floor = match route {
                Route::Service => Floor::AtLeast(0.8),
                Route::Direct
                | Route::ServiceTcp
                | Route::Relay
                | Route::Onion1
                | Route::Onion3 => Floor::None,
            };
            done(rate(name, &way, forward, floor).await?);
        }
        let name = format!("{}, CPU per GB", route.name());
        if selection.takes(&name) {
            done(cpu(name, network, route).await?);
        }
    }
    let name = "service over QUIC by SOCKS5, new flows";
    if selection.takes(name) {
        done(rate(name.to_owned(), &network.socks_way()?, forward, Floor::None).await?);
    }
    // All stay open: what a flow that ended leaves behind would serve the next.
    let mut flows = Vec::new();
    for route in Route::ALL {
        let name = format!("{}, idle flow, client daemon", route.name());
        if selection.takes(&name) {
            done(idle(name, network, route, &mut flows).await?);
        }
    }
    Ok(())
}

/// Decisions of scripts: no byte of a flow moves.
fn decide(selection: &Selection, done: &mut impl FnMut(Row)) -> Result<()> {
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let name = "rule decision, default script, set of 100,000 domains";
    if selection.takes(name) {
        let times = decisions::default_script()?;
        for (which, time, floor) in [("p50", times.p50, 10.0), ("p99", times.p99, 100.0)] {
            let (name, floor) = (format!("{name}, {which}"), Floor::AtMost(floor));
            done(Row::new(name, "us", micros(time), None, floor));
        }
    }
    let name = "rule decision, 1,000 sets by first_set";
    if selection.takes(name) {
        let ten = micros(decisions::first_set(10)?.p50);
        let thousand = micros(decisions::first_set(1000)?.p50);
        let (against, floor) = (Some(("ten sets", ten)), Floor::AtMost(3.0));
        done(Row::new(name.to_owned(), "us", thousand, against, floor));
    }
    Ok(())
}

/// Bulk: local direct against raw TCP, a service against bare quinn, the others against the
/// service, which travels the same carrier without them.
async fn bulk(
    name: String,
    network: &Network,
    route: Route,
    raw: &Way,
    streams: usize,
) -> Result<Row> {
    let way = network.way(route)?;
    let service = network.way(Route::Service)?;
    let ours = || load::bulk(&way, streams, TIME);
    let (other_name, (value, other)) = match route {
        Route::Direct => (
            "raw TCP",
            alternate(ours, || load::bulk(raw, streams, TIME)).await?,
        ),
        Route::Service => (
            "bare quinn",
            alternate(ours, || reference::quinn_bulk(streams, TIME)).await?,
        ),
        Route::ServiceTcp | Route::Relay | Route::Onion1 | Route::Onion3 => (
            "service over QUIC",
            alternate(ours, || load::bulk(&service, streams, TIME)).await?,
        ),
    };
    let floor = match (route, streams) {
        (Route::Service, 1) => Floor::AtLeast(0.6),
        (Route::Relay, _) => Floor::AtLeast(0.45),
        (Route::Onion1, _) => Floor::AtLeast(0.5),
        _ => Floor::None,
    };
    let against = Some((other_name, other / 1e6));
    Ok(Row::new(name, "MB/s", value / 1e6, against, floor))
}

async fn latency(name: &str, route: Route, way: &Way, forward: &Way) -> Result<[Row; 2]> {
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for _ in 0..ROUNDS {
        let echo = load::echo(way, TIME).await;
        ours.push(echo.with_context(|| name.to_owned())?);
        theirs.push(
            load::echo(forward, TIME)
                .await
                .context("echo over the quinn forward")?,
        );
    }
    let micros = |echoes: &[load::Echo], of: fn(&load::Echo) -> Duration| {
        median(
            echoes
                .iter()
                .map(|echo| of(echo).as_secs_f64() * 1e6)
                .collect(),
        )
    };
    let floor = if route == Route::Service {
        Floor::AtMost(1.3)
    } else {
        Floor::None
    };
    let row = |which: &str, of: fn(&load::Echo) -> Duration, floor| {
        let against = ("quinn forward", micros(&theirs, of)?);
        anyhow::Ok(Row::new(
            format!("{name} {which}"),
            "us",
            micros(&ours, of)?,
            Some(against),
            floor,
        ))
    };
    Ok([
        row("p50", |echo| echo.p50, floor)?,
        row("p99", |echo| echo.p99, Floor::None)?,
    ])
}

async fn rate(name: String, way: &Way, forward: &Way, floor: Floor) -> Result<Row> {
    let (value, other) = alternate(|| load::rate(way, TIME), || load::rate(forward, TIME))
        .await
        .with_context(|| name.clone())?;
    let against = Some(("quinn forward", other));
    Ok(Row::new(name, "1/s", value, against, floor))
}

/// CPU of all nodes on the way, for a gigabyte over one stream.
async fn cpu(name: String, network: &Network, route: Route) -> Result<Row> {
    let pids = network.pids(route);
    let mut values = Vec::new();
    for _ in 0..ROUNDS {
        let before = process::cpu_seconds(&pids)?;
        let rate = load::bulk(&network.way(route)?, 1, TIME).await?;
        let gigabytes = rate * TIME.as_secs_f64() / 1e9;
        values.push((process::cpu_seconds(&pids)? - before) / gigabytes);
    }
    Ok(Row::new(name, "s", median(values)?, None, Floor::None))
}

/// Memory of the client's node for a flow on which nothing moves. They are added to `flows`.
async fn idle(
    name: String,
    network: &Network,
    route: Route,
    flows: &mut Vec<TcpStream>,
) -> Result<Row> {
    let (pid, way) = (network.client_pid(), network.way(route)?);
    let first = load::idle(&way, FIRST_IDLE_FLOWS).await;
    flows.extend(first.with_context(|| name.clone())?);
    let before = resident_bytes(pid)?;
    let more = load::idle(&way, IDLE_FLOWS).await;
    flows.extend(more.with_context(|| name.clone())?);
    let grown = resident_bytes(pid)?.saturating_sub(before);
    let value = grown as f64 / 1024.0 / IDLE_FLOWS as f64;
    Ok(Row::new(name, "KiB", value, None, Floor::AtMost(20.0)))
}

/// Medians of both, measured in turns.
async fn alternate<A, B>(ours: impl Fn() -> A, theirs: impl Fn() -> B) -> Result<(f64, f64)>
where
    A: Future<Output = Result<f64>>,
    B: Future<Output = Result<f64>>,
{
    let mut values = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        values.0.push(ours().await?);
        values.1.push(theirs().await?);
    }
    Ok((median(values.0)?, median(values.1)?))
}

fn median(mut values: Vec<f64>) -> Result<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values
        .get(values.len() / 2)
        .copied()
        .context("nothing was measured")
}
