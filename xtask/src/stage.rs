//! Stages: programs run one after the other, their output passed through, their time taken.

use std::{
    env,
    ffi::OsString,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// The stages of one command, with the time that each took.
#[derive(Debug)]
pub(crate) struct Stages {
    started: Instant,
    done: Vec<(String, Duration, bool)>,
}

/// Where the workspace is.
pub(crate) fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Where cargo builds.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The cargo that runs this. What it said of this package is taken out of its environment: build
/// scripts that look at it would run again, and all that hangs on them.
pub(crate) fn cargo() -> Command {
    as_from_a_shell(program(cargo_path()))
}

/// As [`cargo`], and clippy looks at what is compiled: a run of its own would compile all dependencies
/// again. rustc makes the same of them, and of the workspace's crates all but its own optimisations
/// before LLVM's. What cargo starts in its turn does as it does.
pub(crate) fn linting_cargo() -> Command {
    let mut cargo = cargo();
    cargo.env("RUSTC_WORKSPACE_WRAPPER", "clippy-driver");
    cargo
}

/// As [`cargo`], with what others leave of the cores.
pub(crate) fn patient_cargo() -> Command {
    let mut nice = program("nice");
    nice.args(["-n", "19"]).arg(cargo_path());
    as_from_a_shell(nice)
}

fn cargo_path() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn as_from_a_shell(mut cargo: Command) -> Command {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// A program that will run in the workspace.
pub(crate) fn program(name: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(name);
    command.current_dir(workspace());
    command
}

impl Stages {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            done: Vec::new(),
        }
    }

    /// Runs `work` as a stage and prints what it took. A failure is kept and passed on.
    pub(crate) fn run<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        eprintln!("== {name}");
        let started = Instant::now();
        let outcome = work();
        let took = started.elapsed();
        eprintln!("== {name}: {:.1} s", took.as_secs_f64());
        self.done.push((name.to_owned(), took, outcome.is_ok()));
        outcome.with_context(|| format!("stage {name}"))
    }

    /// The time since the first stage.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// One line for each stage, to standard error.
    pub(crate) fn print(&self) {
        for (name, took, ok) in &self.done {
            let mark = if *ok { "ok" } else { "FAILED" };
            eprintln!("{:>8.1} s  {name:<8} {mark}", took.as_secs_f64());
        }
        eprintln!("{:>8.1} s  in all", self.elapsed().as_secs_f64());
    }
}

/// Runs a program to its end, and gives what it wrote to standard error, which is passed on.
///
/// # Errors
/// As of [`check`].
pub(crate) fn check_hearing(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    eprint!("{said}");
    if !output.status.success() {
        bail!("{} ended with {}", shown(command), output.status);
    }
    Ok(said)
}

/// Runs a program to its end with its output passed through.
///
/// # Errors
/// When it cannot start or ends with another status than 0.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs a program, passes each line of its standard output to `see` and on; true when it ended
/// with status 0.
pub(crate) fn watch(command: &mut Command, mut see: impl FnMut(&str)) -> Result<bool> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("cannot read its output")?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            see(&line);
        }
    }
    Ok(child.wait()?.success())
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
