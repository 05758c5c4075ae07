//! `cargo xtask test`: formatting, lints, build, all tests, licences and sources of dependencies.
//!
//! Every stage runs even when one before it failed, so that one run shows all that is wrong. The
//! last line of standard output is `N passed, N failed`.

use std::{process::ExitCode, thread, time::Duration};

use anyhow::{Result, anyhow, bail};

use crate::{
    setup,
    stage::{Stages, cargo, check, program, target_dir, watch},
};

/// A cold clone on two busy cores takes a third of it; what passes this has lost its right
/// proportions.
const TIME_LIMIT: Duration = Duration::from_secs(50 * 60);

/// Tests that measure, or use a machine up, are run by themselves, one after the other.
const MEASURING: [&str; 11] = [
    "attrition::",
    "bad_input::",
    "endurance::",
    "hostile_scripts::",
    "leaks::",
    "lies::storm::",
    "marks::",
    "moves::",
    "onion_build::",
    "relay_open::",
    "wicked_plugins::",
];

/// Tests that take minutes and show nothing about a change of the code that others do not.
pub(crate) const ONLY_IN_SOAKS: [&str; 1] = ["package::static_programs"];

/// What the test binaries said, added up.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
}

pub(crate) fn run() -> Result<ExitCode> {
    let mut stages = Stages::new();
    let mut counts = Counts::default();
    // Downloads, tools and the build do not wait for each other.
    let tools = thread::spawn(|| {
        setup::packages(setup::TEST_TOOLS)?;
        setup::componentize_js()?;
        setup::cargo_deb()?;
        setup::cargo_deny().map(drop)
    });
    let outcomes = [
        stages.run("fmt", || {
            check(cargo().args(["fmt", "--all", "--", "--check"]))
        }),
        stages.run("build", || {
            check(cargo().args(["build", "--workspace", "--all-targets", "--locked"]))
        }),
        stages.run("setup", || {
            let tools = tools.join();
            tools.map_err(|_| anyhow!("what is installed could not be told"))?
        }),
        stages.run("plugins", setup::plugins),
        stages.run("test", || {
            let skipped = MEASURING.iter().chain(&ONLY_IN_SOAKS);
            let mut selection: Vec<_> = skipped.flat_map(|name| ["--skip", *name]).collect();
            let threads = test_threads();
            selection.extend(["--test-threads", &threads]);
            tests(&mut counts, &selection)
        }),
        stages.run("measure", || {
            tests(
                &mut counts,
                &[&MEASURING[..], &["--test-threads=1"]].concat(),
            )
        }),
        stages.run("clippy", clippy),
        stages.run("deny", deny),
    ];
    stages.print();
    let mut ok = true;
    for error in outcomes.into_iter().filter_map(Result::err) {
        eprintln!("error: {error:#}");
        ok = false;
    }
    if stages.elapsed() > TIME_LIMIT {
        eprintln!("error: took longer than {} s", TIME_LIMIT.as_secs());
        ok = false;
    }
    println!("{} passed, {} failed", counts.passed, counts.failed);
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Two for each core: tests with daemons wait more than they compute.
fn test_threads() -> String {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (2 * cores).to_string()
}

fn clippy() -> Result<()> {
    check(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))
}

/// Advisories are left out: their database is not reachable from every machine that runs this.
fn deny() -> Result<()> {
    let cargo_deny = setup::cargo_deny()?;
    check(program(cargo_deny).args([
        "--locked",
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ]))
}

/// Runs those of all tests that `selection`, arguments of each test binary, picks.
fn tests(sum: &mut Counts, selection: &[&str]) -> Result<()> {
    let mut command = cargo();
    command
        .args(["test", "--workspace", "--locked", "--no-fail-fast", "--"])
        .args(selection)
        .env("WORMHOLES_BIN_DIR", target_dir().join("debug"));
    let mut counts = Counts::default();
    let ok = watch(&mut command, |line| counts.add(line))?;
    sum.passed += counts.passed;
    sum.failed += counts.failed;
    if !ok || counts.failed > 0 {
        bail!("{} tests failed", counts.failed);
    }
    if counts.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

impl Counts {
    /// Adds a line like `test result: ok. 12 passed; 0 failed; …`; other lines count nothing.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        let number_before = |word: &str| {
            let words: Vec<_> = result.split([' ', ';', '.']).collect();
            words
                .windows(2)
                .find_map(|pair| match pair {
                    [number, name] if *name == word => number.parse::<usize>().ok(),
                    _ => None,
                })
                .unwrap_or(0)
        };
        self.passed += number_before("passed");
        self.failed += number_before("failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_test_binaries_add_up() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests",
            "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
            "test passed ... ok",
            "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out",
        ] {
            counts.add(line);
        }
        let expected = Counts {
            passed: 14,
            failed: 3,
        };
        assert_eq!(counts, expected);
    }
}
