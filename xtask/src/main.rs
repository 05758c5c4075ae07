//! Development commands: `cargo xtask test | demo | bench | soak | dist`.
//!
//! Each installs what it needs and is missing, builds, and runs; stages say how long they took.
//! One file a command; `stage` runs programs, `setup` installs them.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool speaks on its standard streams"
)]

mod bench;
mod demo;
mod dist;
mod fuzz;
mod setup;
mod soak;
mod stage;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development commands of Wormholes.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check and test everything, as continuous integration does.
    Test,
    /// Start a small network of real nodes, send requests through it and show what happened.
    Demo(demo::Arguments),
    /// Measure against what the machine can do.
    Bench(bench::Arguments),
    /// Run tests at full size, for hours if need be.
    Soak(soak::Arguments),
    /// Build the Debian package.
    Dist(dist::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Test => test::run(),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Dist(arguments) => dist::run(&arguments),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
