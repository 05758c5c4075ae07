//! Scenarios that a seed draws, and the fewest steps of one that still fail.

use std::{
    any::Any,
    env,
    fmt::Debug,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::random::Random;

/// Runs one seed alone.
const SEED: &str = "WORMHOLES_SEED";

/// Draws steps by each of the seeds from 0 to `seeds`, and runs them; `run` panics when something
/// does not hold. `WORMHOLES_SEED=N` runs one alone.
///
/// # Panics
/// With the seed, and the shortest list of its steps that was found to fail.
pub fn check<S: Clone + Debug>(
    seeds: u64,
    draw: impl Fn(&mut Random) -> Vec<S>,
    run: impl Fn(u64, &[S]),
) {
    let alone = env::var(SEED).ok().and_then(|seed| seed.parse().ok());
    let seeds = alone.map_or(0..seeds, |seed| seed..seed + 1);
    for seed in seeds {
        let steps = draw(&mut Random::new(seed));
        let fails = |steps: &[S]| failure(|| run(seed, steps));
        if let Some(why) = fails(&steps) {
            let (fewest, why) = shrink(steps.clone(), why, fails);
            complain(seed, steps.len(), &fewest, &why);
        }
    }
}

/// Takes steps away for as long as the rest fails: halves, quarters, … single ones (Zeller and
/// Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002).
fn shrink<S: Clone>(
    mut steps: Vec<S>,
    mut why: String,
    fails: impl Fn(&[S]) -> Option<String>,
) -> (Vec<S>, String) {
    let mut part = steps.len().div_ceil(2);
    while part > 0 {
        let mut at = 0;
        let mut shrunk = false;
        while at < steps.len() {
            let kept = steps.iter().enumerate();
            let kept = kept.filter(|(number, _)| !(at..at + part).contains(number));
            let rest: Vec<S> = kept.map(|(_, step)| step.clone()).collect();
            match fails(&rest) {
                Some(reason) => {
                    (steps, why, shrunk) = (rest, reason, true);
                }
                None => at += part,
            }
        }
        // Single steps are tried again until none can go.
        if !(shrunk && part == 1) {
            part /= 2;
        }
    }
    (steps, why)
}

#[expect(clippy::panic, reason = "how a test fails")]
fn complain<S: Debug>(seed: u64, drawn: usize, fewest: &[S], why: &str) -> ! {
    let steps: String = fewest.iter().map(|step| format!("  {step:?}\n")).collect();
    let count = fewest.len();
    panic!("{SEED}={seed} fails, with {count} of its {drawn} steps:\n{steps}{why}");
}

fn failure(run: impl FnOnce()) -> Option<String> {
    catch_unwind(AssertUnwindSafe(run))
        .err()
        .map(|panic| said(&*panic))
}

/// What a panic said.
pub(crate) fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
    text.unwrap_or_else(|| "a panic without words".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_seed_is_shown_with_the_fewest_steps() {
        let draw = |random: &mut Random| (0..40).map(|_| random.of(0..20)).collect();
        let run = |_: u64, steps: &[u64]| {
            let first = steps.iter().position(|step| *step == 7);
            let then = steps.iter().rposition(|step| *step == 3);
            assert!(first.is_none() || then < first, "a 3 behind a 7");
        };
        let told = failure(|| check(100, draw, run)).unwrap();
        let (head, rest) = told.split_once('\n').unwrap();
        assert!(head.starts_with("WORMHOLES_SEED="), "{told}");
        assert!(head.ends_with("with 2 of its 40 steps:"), "{told}");
        assert_eq!(rest, "  7\n  3\na 3 behind a 7");
        check(100, draw, |_, steps| assert_eq!(steps.len(), 40));
    }
}
