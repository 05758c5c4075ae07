//! How long a decision of `scripts/default.rhai` takes, with a set of 100,000 names.
//!
//! `cargo run --release -p wormholes-rules --example decision_rate`

#![expect(clippy::print_stdout, reason = "it prints what it measured")]

use std::{
    error::Error,
    fmt::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use wormholes_rules::{Conn, LoadEnv, Policy, ScriptSource, SetRegistry, Surroundings, World};

const NAMES: usize = 100_000;
const DECISIONS: usize = 50_000;
/// The floor that the project sets itself, for an optimised build.
const FLOOR: Duration = Duration::from_micros(10);

fn main() -> Result<(), Box<dyn Error>> {
    let mut text = String::new();
    for index in 0..NAMES {
        writeln!(text, "host{index}.tracker{}.example", index % 977)?;
    }
    let mut sets = SetRegistry::default();
    let start = Instant::now();
    sets.load("blocked", "blocked.txt", &text)?;
    println!("loading {NAMES} names: {:?}", start.elapsed());
    let env = LoadEnv {
        surroundings: Surroundings {
            sets: sets.into(),
            ..Surroundings::default()
        },
        ..LoadEnv::default()
    };
    let source = ScriptSource {
        name: "default.rhai".to_owned(),
        text: include_str!("../../../scripts/default.rhai").to_owned(),
    };
    let policy = Policy::load(&[source], &env).map_err(|faults| format!("{faults:?}"))?;
    let world = Arc::new(World::default());
    let mut times = Vec::with_capacity(DECISIONS);
    for index in 0..DECISIONS {
        // Half of the names are in the set.
        let flow = Conn::to(
            format!("host{index}.tracker{}.example", index % (2 * 977)),
            443,
        );
        let start = Instant::now();
        let decision = policy.route(&flow, &world, flow.now);
        times.push(start.elapsed());
        if let Some(error) = decision.trace.error {
            return Err(error.into());
        }
    }
    times.sort_unstable();
    let at = |per_mille: usize| {
        times
            .get(DECISIONS * per_mille / 1000)
            .copied()
            .unwrap_or_default()
    };
    println!(
        "one decision: p50 {:?}, p99 {:?} (floor for p50: {FLOOR:?})",
        at(500),
        at(990)
    );
    Ok(())
}
