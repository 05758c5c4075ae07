//! How long the scripts take for a decision, recorded as the daemon records it by default.

use std::{
    fmt::Write,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use wormholes_rules::{Conn, LoadEnv, Policy, ScriptSource, SetRegistry, Surroundings, World};

/// Names of the large set.
const NAMES: usize = 100_000;
/// Domains that they are spread over.
const DOMAINS: usize = 977;
const DECISIONS: usize = 50_000;

/// What one decision in two, and in a hundred, takes at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

/// `scripts/default.rhai` with a set of 100,000 domains, which has half of the targets.
pub(crate) fn default_script() -> Result<Times> {
    let mut text = String::new();
    for index in 0..NAMES {
        writeln!(text, "host{index}.tracker{}.example", index % DOMAINS)?;
    }
    let mut sets = SetRegistry::default();
    sets.load("blocked", "blocked.txt", &text)?;
    let script = include_str!("../../../../scripts/default.rhai");
    let policy = policy("default.rhai", script, sets)?;
    times(&policy, |index| {
        format!("host{index}.tracker{}.example", index % (2 * DOMAINS))
    })
}

/// A script of as many rules as sets, each of which has some of the targets.
pub(crate) fn first_set(count: usize) -> Result<Times> {
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
        let flow = Conn::to(host(index), 443);
        let start = Instant::now();
        let decision = black_box(policy.route(&flow, &world, flow.now));
        times.push(start.elapsed());
        if let Some(error) = decision.trace.error {
            return Err(anyhow!(error));
        }
    }
    times.sort_unstable();
    let at = |per_cent: usize| times.get(DECISIONS * per_cent / 100).copied();
    Ok(Times {
        p50: at(50).unwrap_or_default(),
        p99: at(99).unwrap_or_default(),
    })
}
