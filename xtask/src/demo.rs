//! `cargo xtask demo`: a small network of real nodes, requests through it, and who learned what.
//!
//! This builds and installs; the program `wormholes-demo` of the tests crate does the rest.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    setup,
    stage::{Stages, cargo, check, program, target_dir},
};

/// How to run the demo.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Print one JSON object on the last line of standard output.
    #[arg(long)]
    json: bool,
    /// Leave the network up until Ctrl-C and print commands to play with it.
    #[arg(long)]
    stay: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut stages = Stages::new();
    stages.run("setup", || {
        setup::packages(setup::DEMO_TOOLS)?;
        setup::may_capture()
    })?;
    stages.run("build", || {
        check(cargo().args(["build", "--workspace", "--bins", "--locked"]))
    })?;
    let binaries = target_dir().join("debug");
    let mut demo = program(binaries.join("wormholes-demo"));
    demo.env("WORMHOLES_BIN_DIR", &binaries);
    if arguments.json {
        demo.arg("--json");
    }
    if arguments.stay {
        demo.arg("--stay");
    }
    stages.run("demo", || check(&mut demo))?;
    Ok(ExitCode::SUCCESS)
}
