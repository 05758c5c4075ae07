//! `cargo xtask soak fuzz`: libFuzzer on every parser, one after the other.
//!
//! The functions that it feeds are in `tests/src/fuzz.rs`, their programs in `tests/fuzz`. What it
//! learns stays below the target folder and is where the next run begins; what breaks a parser is
//! kept in `tests/fuzz/corpus`, where `cargo xtask test` meets it from then on. How often each was
//! run is written to `tests/fuzz/README.md`.

use std::{
    env::consts::ARCH,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{
    setup,
    stage::{Stages, check, program, target_dir, workspace},
};

/// Largest input, so that what is kept stays small.
const MAX_INPUT_BYTES: u32 = 4096;
/// No input may ask for more at once: a hundred times what the longest frame of any format is.
const MAX_ALLOCATION_MB: u32 = 64;
/// Of one input, on a machine that does other things too.
const MAX_SECONDS: u32 = 20;
/// What the table of runs begins with.
const TABLE: &str = "| target | executions | seconds | commit | found |\n|---|---|---|---|---|\n";

/// What a run of one target came to.
#[derive(Debug)]
struct Run {
    target: String,
    executions: u64,
    seconds: u64,
    /// Inputs that broke it, relative to the workspace.
    found: Vec<String>,
}

/// The targets, by name.
pub(crate) fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(fuzz_dir().join("targets"))? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into()));
    }
    names.sort();
    Ok(names)
}

/// Runs each of `targets` for so many seconds, all of them whatever is found.
///
/// # Errors
/// When something was found, or a target did not run.
pub(crate) fn run(stages: &mut Stages, targets: &[String], seconds: u32) -> Result<()> {
    let commit = commit()?;
    stages.run("fuzz setup", setup::nightly)?;
    let cargo_fuzz = stages.run("cargo-fuzz", setup::cargo_fuzz)?;
    stages.run("fuzz build", || build(&cargo_fuzz))?;
    let mut runs = Vec::new();
    let mut failed = Vec::new();
    for target in targets {
        match stages.run(&format!("fuzz::{target}"), || fuzz(target, seconds)) {
            Ok(run) => {
                run.print();
                note(&run, &commit)?;
                runs.push(run);
            }
            Err(error) => {
                eprintln!("error: {error:#}");
                failed.push(target.as_str());
            }
        }
    }
    for run in &runs {
        run.print();
    }
    let found: Vec<_> = runs.iter().filter(|run| !run.found.is_empty()).collect();
    if !failed.is_empty() {
        bail!("did not run to their end: {}", failed.join(" "));
    }
    if !found.is_empty() {
        bail!(
            "{} of {} targets broke; each input is kept: `cargo xtask test` runs it again until \
             the parser is mended, and from then on",
            found.len(),
            runs.len()
        );
    }
    Ok(())
}

fn fuzz_dir() -> PathBuf {
    workspace().join("tests/fuzz")
}

/// Below the target folder: other flags and another compiler than everything else.
fn build_dir() -> PathBuf {
    target_dir().join("fuzz")
}

fn triple() -> String {
    format!("{ARCH}-unknown-linux-gnu")
}

fn build(cargo_fuzz: &Path) -> Result<()> {
    check(
        program(cargo_fuzz)
            .args(["fuzz", "build", "--features", "libfuzzer", "--target"])
            .arg(triple())
            // What runs elsewhere, with its assertions and overflow checks on.
            .args(["--no-cfg-fuzzing", "--debug-assertions", "--fuzz-dir"])
            .arg(fuzz_dir())
            .arg("--target-dir")
            .arg(build_dir())
            .env("RUSTUP_TOOLCHAIN", "nightly")
            // It would link each of the programs for a minute.
            .env("CARGO_PROFILE_RELEASE_LTO", "off"),
    )
}

/// One target, its words in a log.
fn fuzz(target: &str, seconds: u32) -> Result<Run> {
    let learned = build_dir().join("corpus").join(target);
    let kept = fuzz_dir().join("corpus").join(target);
    for folder in [&learned, &kept] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let log_path = build_dir().join(format!("{target}.log"));
    let log = File::create(&log_path)?;
    let mut artifacts = kept.clone().into_os_string();
    artifacts.push("/found-");
    let started = Instant::now();
    let status = program(build_dir().join(triple()).join("release").join(target))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={MAX_INPUT_BYTES}"))
        .arg(format!("-malloc_limit_mb={MAX_ALLOCATION_MB}"))
        .arg(format!("-timeout={MAX_SECONDS}"))
        .arg(format!("-report_slow_units={MAX_SECONDS}"))
        .arg("-print_final_stats=1")
        .arg(joined("-artifact_prefix=", &artifacts))
        .args([&learned, &kept])
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .with_context(|| format!("cannot start {target}"))?;
    let seconds = started.elapsed().as_secs();
    let log = String::from_utf8_lossy(&fs::read(&log_path)?).into_owned();
    let run = Run {
        target: target.to_owned(),
        executions: executions(&log).unwrap_or_default(),
        seconds,
        found: found(&log),
    };
    if !status.success() {
        eprintln!("{}", reason(&log));
        if run.found.is_empty() {
            bail!("ended with {status}; see {}", log_path.display());
        }
    }
    Ok(run)
}

fn joined(head: &str, tail: &std::ffi::OsStr) -> std::ffi::OsString {
    let mut joined = std::ffi::OsString::from(head);
    joined.push(tail);
    joined
}

fn executions(log: &str) -> Option<u64> {
    let line = log.lines().rev();
    let mut counts = line.filter_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    counts.next()?.trim().parse().ok()
}

/// The inputs that libFuzzer wrote.
fn found(log: &str) -> Vec<String> {
    let paths = log
        .lines()
        .filter_map(|line| line.split_once("Test unit written to "));
    let root = format!("{}/", workspace().display());
    let paths = paths.map(|(_, path)| path.strip_prefix(&root).unwrap_or(path).to_owned());
    paths.collect()
}

/// What the program said when it broke: from the panic on, or libFuzzer's own words.
fn reason(log: &str) -> String {
    let lines = log.lines().skip_while(|line| {
        let begins = ["panicked at", "ERROR: "];
        !begins.iter().any(|word| line.contains(word))
    });
    lines.take(4).collect::<Vec<_>>().join("\n")
}

impl Run {
    fn print(&self) {
        let rate = self.executions / self.seconds.max(1);
        println!(
            "{:<16} {:>12} executions in {:>4} s, {rate:>7} a second, {} found",
            self.target,
            self.executions,
            self.seconds,
            self.found.len()
        );
        for path in &self.found {
            println!("    {path}");
        }
    }

    /// As a row of the table.
    fn row(&self, commit: &str) -> String {
        let found = self.found.len();
        format!(
            "| {} | {} | {} | {commit} | {found} |\n",
            self.target, self.executions, self.seconds
        )
    }
}

/// Writes the run into the table in place of the one before.
fn note(run: &Run, commit: &str) -> Result<()> {
    let path = fuzz_dir().join("README.md");
    let text = fs::read_to_string(&path)?;
    let text = with_row(&text, &targets()?, &run.target, &run.row(commit));
    fs::write(
        &path,
        text.context("tests/fuzz/README.md has lost its table")?,
    )?;
    Ok(())
}

/// `text` with this row in its table, which ends it; rows of targets that are gone go too.
fn with_row(text: &str, targets: &[String], target: &str, row: &str) -> Option<String> {
    let (head, rows) = text.split_once(TABLE)?;
    let of = |name: &str| {
        let begin = format!("| {name} |");
        let mut rows = rows.lines().filter(|row| row.starts_with(&begin));
        rows.next().map(|row| format!("{row}\n"))
    };
    let rows = targets.iter().filter_map(|name| match name == target {
        true => Some(row.to_owned()),
        false => of(name),
    });
    Some(format!("{head}{TABLE}{}", rows.collect::<String>()))
}

/// The commit that is built, with a `+` when files differ from it.
fn commit() -> Result<String> {
    let id = said(program("git").args(["rev-parse", "--short", "HEAD"]))?;
    let besides = ["--", ".", ":!tests/fuzz/README.md", ":!tests/fuzz/corpus"];
    let changed = said(program("git").args(["status", "--porcelain"]).args(besides))?;
    Ok(format!("{id}{}", if changed.is_empty() { "" } else { "+" }))
}

fn said(command: &mut Command) -> Result<String> {
    let output = command.output().context("cannot start git")?;
    if !output.status.success() {
        bail!("git: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_takes_the_place_of_the_one_before() {
        let run = |target: &str, executions| Run {
            target: target.to_owned(),
            executions,
            seconds: 60,
            found: Vec::new(),
        };
        let [a, b, gone] = [run("a", 1), run("b", 2), run("gone", 3)].map(|run| run.row("x"));
        let text = format!("Words.\n\n{TABLE}{b}{gone}");
        let targets = ["a", "b"].map(str::to_owned);
        let text = with_row(&text, &targets, "a", &a).unwrap();
        assert_eq!(text, format!("Words.\n\n{TABLE}{a}{b}"));
        let newer = run("a", 9).row("y");
        let text = with_row(&text, &targets, "a", &newer).unwrap();
        assert_eq!(text, format!("Words.\n\n{TABLE}{newer}{b}"));
        assert_eq!(with_row("Words.", &targets, "a", &newer), None);
    }

    #[test]
    fn a_log_tells_what_was_run_and_found() {
        let path = "tests/fuzz/corpus/open/found-crash-1";
        let log = format!(
            "thread '<unnamed>' panicked at src/x.rs:1:2:\nmore came out\n#1 in f\n\
             artifact_prefix='x'; Test unit written to {}/{path}\n\
             stat::number_of_executed_units: 4711\nstat::peak_rss_mb:   50\n",
            workspace().display()
        );
        assert_eq!(executions(&log), Some(4711));
        assert_eq!(found(&log), [path]);
        assert!(reason(&log).contains("more came out"));
        assert_eq!((executions(""), found("").len()), (None, 0));
    }
}
