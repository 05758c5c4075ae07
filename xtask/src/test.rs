//! `cargo xtask test`: formatting, lints, build, all tests, licences and sources of dependencies.
//!
//! Every stage runs even when one before it failed, so that one run shows all that is wrong. The
//! last line of standard output is `N passed, N failed`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Result, anyhow, bail};

use crate::{
    setup,
    stage::{Stages, cargo, check, check_hearing, linting_cargo, program, target_dir, watch},
};

/// For a cold clone on two busy cores; what passes this has lost its right proportions.
const TIME_LIMIT: Duration = Duration::from_secs(50 * 60);

/// All that tests and their programs are made of.
const BUILD: [&str; 4] = ["build", "--workspace", "--all-targets", "--locked"];

/// Tests that measure, or use a machine up, are run by themselves, one after the other.
const MEASURING: [&str; 13] = [
    "attrition::",
    "bad_input::",
    "endurance::",
    "hostile_scripts::",
    "leaks::",
    "lies::storm::",
    "loops::",
    "marks::",
    "moves::",
    "onion_build::",
    "plugins_js::",
    "relay_open::",
    "wicked_plugins::",
];

/// Tests that take minutes and show nothing about a change of the code that others do not.
pub(crate) const ONLY_IN_SOAKS: [&str; 2] =
    ["package::static_programs", "tor_failures::without_tor"];

/// How much is repeated of what a failed test said.
const REASON_LINES: usize = 12;

/// What the test binaries said, added up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    passed: usize,
    failed: usize,
    /// Of each failed test its name and its panic's first lines.
    reasons: Vec<String>,
    /// The failed test whose output is being read, and how many lines of its panic are wanted yet.
    reading: Option<(String, Option<usize>)>,
}

pub(crate) fn run() -> Result<ExitCode> {
    let mut stages = Stages::new();
    let mut outcome = Outcome::default();
    // Downloads, tools and the build do not wait for each other.
    let tools = thread::spawn(tools);
    let mut deny_tool = None;
    let stages_ended = [
        stages.run("fmt", || {
            check(cargo().args(["fmt", "--all", "--", "--check"]))
        }),
        stages.run("build", || check(linting_cargo().args(BUILD))),
        stages.run("clippy", clippy),
        stages.run("setup", || {
            deny_tool = Some(ended(tools)??);
            Ok(())
        }),
        stages.run("plugins", || setup::plugins(linting_cargo())),
        stages.run("test", || {
            let skipped = MEASURING.iter().chain(&ONLY_IN_SOAKS);
            let mut selection: Vec<_> = skipped.flat_map(|name| ["--skip", *name]).collect();
            let threads = test_threads();
            selection.extend(["--test-threads", &threads]);
            tests(&mut outcome, &selection)
        }),
        stages.run("measure", || {
            let selection = [&MEASURING[..], &["--test-threads=1"]].concat();
            tests(&mut outcome, &selection)
        }),
        stages.run("deny", || {
            let tool = deny_tool.map_or_else(setup::cargo_deny, |tool| ended(tool)?);
            deny(&tool?)
        }),
    ];
    stages.print();
    let mut ok = true;
    for error in stages_ended.into_iter().filter_map(Result::err) {
        eprintln!("error: {error:#}");
        ok = false;
    }
    if stages.elapsed() > TIME_LIMIT {
        eprintln!("error: took longer than {} s", TIME_LIMIT.as_secs());
        ok = false;
    }
    // Last, where somebody looks who has a long log's end alone.
    for reason in &outcome.reasons {
        println!("{reason}");
    }
    println!("{} passed, {} failed", outcome.passed, outcome.failed);
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Gets what tests start; then what the last stage alone wants, whose thread this gives.
fn tools() -> Result<JoinHandle<Result<PathBuf>>> {
    setup::packages(setup::TEST_TOOLS)?;
    setup::componentize_js()?;
    setup::cargo_deb()?;
    Ok(thread::spawn(setup::cargo_deny))
}

/// What a thread made.
fn ended<T>(thread: JoinHandle<T>) -> Result<T> {
    let made = thread.join();
    made.map_err(|_| anyhow!("what is installed could not be told"))
}

/// Two for each core: tests with daemons wait more than they compute.
fn test_threads() -> String {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (2 * cores).to_string()
}

/// Has all that was built say again what clippy found in it.
fn clippy() -> Result<()> {
    let said = check_hearing(linting_cargo().args(BUILD))?;
    let found = said.lines().filter(|line| line.starts_with("warning"));
    match found.count() {
        0 => Ok(()),
        found => bail!("{found} warnings"),
    }
}

/// Advisories are left out: their database is not reachable from every machine that runs this.
fn deny(cargo_deny: &Path) -> Result<()> {
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
fn tests(outcome: &mut Outcome, selection: &[&str]) -> Result<()> {
    let mut command = linting_cargo();
    command
        .args(["test", "--workspace", "--locked", "--no-fail-fast", "--"])
        .args(selection)
        .env("WORMHOLES_BIN_DIR", target_dir().join("debug"));
    let before = (outcome.passed, outcome.failed);
    let ok = watch(&mut command, |line| outcome.add(line))?;
    let failed = outcome.failed - before.1;
    if !ok || failed > 0 {
        bail!("{failed} tests failed");
    }
    if outcome.passed == before.0 {
        bail!("no test ran");
    }
    Ok(())
}

impl Outcome {
    fn add(&mut self, line: &str) {
        self.add_result(line);
        self.add_reason(line);
    }

    /// Keeps what follows `---- NAME stdout ----` from the panic on, up to where it says how to get
    /// more, or another thing begins.
    fn add_reason(&mut self, line: &str) {
        if let Some(header) = line.strip_prefix("---- ") {
            let name = header.strip_suffix(" stdout ----");
            self.reading = name.map(|name| (name.to_owned(), None));
            return;
        }
        let Some((name, wanted)) = &mut self.reading else {
            return;
        };
        if wanted.is_none() && line.starts_with("thread '") && line.contains(" panicked at ") {
            self.reasons.push(format!("FAILED {name}"));
            *wanted = Some(REASON_LINES);
        }
        match wanted {
            Some(0) => self.reading = None,
            Some(_) if line.is_empty() || line.starts_with("note: run with ") => {
                self.reading = None
            }
            Some(lines) => {
                *lines -= 1;
                self.reasons.push(format!("    {line}"));
            }
            None => {}
        }
    }

    /// Adds a line like `test result: ok. 12 passed; 0 failed; …`; other lines count nothing.
    fn add_result(&mut self, line: &str) {
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
        let mut outcome = Outcome::default();
        for line in [
            "running 3 tests",
            "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
            "test passed ... ok",
            "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out",
        ] {
            outcome.add(line);
        }
        assert_eq!((outcome.passed, outcome.failed), (14, 3));
    }

    #[test]
    fn of_a_failed_test_its_panic_is_kept_and_no_log() {
        let mut outcome = Outcome::default();
        for line in [
            "failures:",
            "",
            "---- ways::open stdout ----",
            "warm: 3 s",
            "",
            "thread 'ways::open' (17) panicked at tests/all/ways.rs:7:9:",
            "[",
            "    \"late\",",
            "]",
            "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace",
            "---- log of ann ----",
            "thread 'a' panicked at b",
            "---- ways::shut stdout ----",
            "thread 'ways::shut' panicked at tests/all/ways.rs:9:1:",
            "no",
            "",
            "failures:",
            "    ways::open",
        ] {
            outcome.add(line);
        }
        let expected = [
            "FAILED ways::open",
            "    thread 'ways::open' (17) panicked at tests/all/ways.rs:7:9:",
            "    [",
            "        \"late\",",
            "    ]",
            "FAILED ways::shut",
            "    thread 'ways::shut' panicked at tests/all/ways.rs:9:1:",
            "    no",
        ];
        assert_eq!(outcome.reasons, expected);
    }
}
