//! How long the scripts take for a decision, recorded as the daemon records it by default.

use std::{fmt::Write, hint::black_box, sync::Arc, time::Instant};

use anyhow::{Context, Result, anyhow};
use wormholes_rules::{Conn, LoadEnv, Policy, ScriptSource, SetRegistry, Surroundings, World};

use crate::row::Row;

/// Names of the large set.
const NAMES: usize = 100_000;
/// Domains that they are spread over.
const DOMAINS: usize = 977;
const DECISIONS: usize = 50_000;

pub(crate) const DEFAULT_SCRIPT: &str = "rule decision, default script, set of 100,000 domains";
pub(crate) const FIRST_SET: &str = "rule decision, 1,000 sets by first_set";

/// What one decision in two, and in a hundred, takes at most, in microseconds.
#[derive(Debug, Clone, Copy)]
struct Times {
    p50: f64,
    p99: f64,
}

/// `scripts/default.rhai` with a set of 100,000 domains, which has half of the targets.
pub(crate) fn default_script() -> Result<Vec<Row>> {
    let mut text = String::new();
    for index in 0..NAMES {
        writeln!(text, "host{index}.tracker{}.example", index % DOMAINS)?;
    }
    let mut sets = SetRegistry::default();
    sets.load("blocked", "blocked.txt", &text)?;
    let script = include_str!("../../../../scripts/default.rhai");
    let policy = policy("default.rhai", script, sets)?;
    let times = times(&policy, |index| {
        format!("host{index}.tracker{}.example", index % (2 * DOMAINS))
    })?;
    Ok(vec![
        Row::alone(format!("{DEFAULT_SCRIPT}, p50"), times.p50, "us")?,
        Row::alone(format!("{DEFAULT_SCRIPT}, p99"), times.p99, "us")?,
    ])
}

/// A thousand rules against ten.
pub(crate) fn first_set() -> Result<Vec<Row>> {
    let ten = first_set_of(10)?.p50;
    let thousand = first_set_of(1000)?.p50;
    let row = Row::against(FIRST_SET, thousand, "us", "ten sets", ten)?;
    Ok(vec![row])
}

/// A script of as many rules as sets, each of which has some of the targets.
fn first_set_of(count: usize) -> Result<Times> {
    let mut sets = SetRegistry::default();
    let mut script = String::from("fn route(c) {\n    switch first_set(c.host) {\n");
    for set in 0..count {
        let lines: String = (0..20).map(|i| format!("h{i}.s{set}.example\n")).collect();
        sets.load(&format!("set{set}"), "set.txt", &lines)?;
        writeln!(script, "        \"set{set}\" => block(\"rule {set}\"),")?;
    }
    script += "        _ => pass()\n    }\n}\n";
    let policy = policy("rules.rhai", &script, sets)?;
    times(&policy, |index| format!("x.h3.s{}.example", index % count))
}

fn policy(name: &str, text: &str, sets: SetRegistry) -> Result<Policy> {
    let env = LoadEnv {
        surroundings: Surroundings {
            sets: sets.into(),
            ..Surroundings::default()
        },
        records: true,
        ..LoadEnv::default()
    };
    let source = ScriptSource {
        name: name.to_owned(),
        text: text.to_owned(),
    };
    Policy::load(&[source], &env).map_err(|faults| anyhow!("{faults:?}"))
}

fn times(policy: &Policy, host: impl Fn(usize) -> String) -> Result<Times> {
    let world = Arc::new(World::default());
    let mut times = Vec::with_capacity(DECISIONS);
    for index in 0..DECISIONS {
        let flow = Arc::new(Conn::to(host(index), 443));
        let start = Instant::now();
        let decision = black_box(policy.route(&flow, &world, flow.now));
        times.push(start.elapsed());
        if let Some(error) = decision.trace.error {
            return Err(anyhow!(error));
        }
    }
    times.sort_unstable();
    let at = |per_cent: usize| {
        let time = times.get(DECISIONS * per_cent / 100);
        let time = time.context("nothing was decided")?;
        anyhow::Ok(time.as_secs_f64() * 1e6)
    };
    Ok(Times {
        p50: at(50)?,
        p99: at(99)?,
    })
}
