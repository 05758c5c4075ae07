//! `cargo xtask soak [NAME]`: the tests that have a size, at full size.
//!
//! `fuzz` is one of them by its own rules (module `fuzz`).
//!
//! The others read `WORMHOLES_SOAK`, a factor for their number of rounds; continuous integration
//! runs them with 1. Those that last a time rather than rounds read `WORMHOLES_SOAK_MINUTES`.

use std::{path::Path, process::ExitCode};

use anyhow::{Result, bail};

use crate::{
    fuzz, setup,
    stage::{Stages, cargo, check, target_dir, workspace},
    test::ONLY_IN_SOAKS,
};

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One of them, `fuzz` or one of its targets; all without.
    name: Option<String>,
    /// How many times the rounds of continuous integration.
    #[arg(long, default_value_t = 30)]
    factor: u32,
    /// How long tests last that have no rounds: `endurance`.
    #[arg(long, default_value_t = 60)]
    minutes: u32,
    /// How long each target of `fuzz` runs.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    seconds: u32,
}

/// Every test module that has a size says so with one of these calls.
const MARKS: [&str; 3] = ["is_soak(", "soak_rounds(", "soak_time("];

/// All targets of the fuzzers; `fuzz::` and a target's name is that one.
const FUZZ: &str = "fuzz";

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let (mut tests, mut targets) = (names()?, fuzz::targets()?);
    if let Some(name) = arguments.name.as_deref().filter(|name| *name != FUZZ) {
        let of_fuzz = |target: &str| format!("{FUZZ}::{target}");
        let others = tests.iter().cloned();
        let all: Vec<_> = others
            .chain(targets.iter().map(|name| of_fuzz(name)))
            .collect();
        if !all.iter().any(|one| one == name) {
            bail!(
                "no soak of the name {name}; there are: {FUZZ} {}",
                all.join(" ")
            );
        }
        tests.retain(|test| test == name);
        targets.retain(|target| of_fuzz(target) == name);
    } else if arguments.name.is_some() {
        tests.clear();
    }
    let mut stages = Stages::new();
    if !tests.is_empty() {
        stages.run("setup", || setup::packages(setup::TEST_TOOLS))?;
        stages.run("build", || {
            check(cargo().args(["build", "--workspace", "--all-targets", "--locked"]))
        })?;
        stages.run("plugins", || setup::plugins(cargo()))?;
    }
    for name in tests {
        stages.run(&name, || soak(&name, arguments))?;
    }
    if !targets.is_empty() {
        fuzz::run(&mut stages, &targets, arguments.seconds)?;
    }
    stages.print();
    Ok(ExitCode::SUCCESS)
}

fn soak(name: &str, arguments: &Arguments) -> Result<()> {
    check(
        cargo()
            .args(["test", "--workspace", "--locked", "--test", "all", "--"])
            .arg(format!("{name}::"))
            .env("WORMHOLES_BIN_DIR", target_dir().join("debug"))
            .arg("--nocapture")
            .env("WORMHOLES_SOAK", arguments.factor.to_string())
            .env("WORMHOLES_SOAK_MINUTES", arguments.minutes.to_string()),
    )
}

/// The test modules that have a size, by name.
fn names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    add_names(&workspace().join("tests/tests/all"), "", &mut names)?;
    names.extend(ONLY_IN_SOAKS.map(str::to_owned));
    names.sort();
    Ok(names)
}

/// Those in a folder, whose path as a module is `parent`, and in the folders in it.
fn add_names(folder: &Path, parent: &str, names: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let name = format!("{parent}{stem}");
        let is_rust = path.extension().is_some_and(|extension| extension == "rs");
        if path.is_dir() {
            add_names(&path, &format!("{name}::"), names)?;
        } else if is_rust {
            let text = std::fs::read_to_string(&path)?;
            if MARKS.iter().any(|mark| text.contains(mark)) {
                names.push(name);
            }
        }
    }
    Ok(())
}
