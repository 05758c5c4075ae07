//! `cargo xtask bench PART`: measures optimised builds against what the machine can do.
//!
//! This installs what the router is held against, and builds; the program `wormholes-bench` of the
//! tests crate measures and prints the rows.

use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;

use crate::{
    setup,
    stage::{Stages, cargo, check, program, target_dir},
};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The part.
    part: Part,
    /// Print one JSON object on the last line of standard output.
    #[arg(long)]
    json: bool,
    /// Measure only the rows whose names hold this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// The parts that have benches.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Part {
    /// Bulk, echo, new flows, CPU and memory, for each kind of tunnel, against its floors.
    Router,
    /// Events, commits, messages and instances of plugins.
    Plugins,
    /// Flows through Tor beside bare arti and C tor, and onions beside three hops of Tor.
    Tor,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut stages = Stages::new();
    let rival = match arguments.part {
        Part::Router => Some(stages.run("setup", || {
            setup::packages(setup::BENCH_TOOLS)?;
            setup::sing_box()
        })?),
        Part::Plugins => {
            stages.run("setup", setup::bench_plugin)?;
            None
        }
        Part::Tor => {
            stages.run("setup", || setup::packages(setup::TOR_BENCH_TOOLS))?;
            None
        }
    };
    stages.run("build", || {
        check(cargo().args(["build", "--release", "--workspace", "--bins", "--locked"]))
    })?;
    let binaries = target_dir().join("release");
    let mut bench = program(binaries.join("wormholes-bench"));
    bench
        .env("WORMHOLES_BIN_DIR", &binaries)
        .envs(rival.map(|path| ("WORMHOLES_SING_BOX", path)))
        .env("WORMHOLES_COMPONENTS", setup::bench_components())
        .arg(match arguments.part {
            Part::Router => "router",
            Part::Plugins => "plugins",
            Part::Tor => "tor",
        });
    if arguments.json {
        bench.arg("--json");
    }
    if let Some(only) = &arguments.only {
        bench.args(["--only", only]);
    }
    stages.run("bench", || check(&mut bench))?;
    Ok(ExitCode::SUCCESS)
}
