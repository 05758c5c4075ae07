//! `cargo xtask demo`: a small network of real nodes, requests through it, and who learned what.
//!
//! This builds and installs; the program `wormholes-demo` of the tests crate does the rest.

use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use anyhow::Result;
use serde_json::json;

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
    /// Show Tor and I2P instead, in private networks of their own.
    #[arg(long, conflicts_with = "stay")]
    tor: bool,
    /// Leave the network up until Ctrl-C and print commands to play with it.
    #[arg(long)]
    stay: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    // In this process: a signal to it reaches the demo, which cleans up.
    let failed = prepare(arguments).map(|mut demo| demo.exec().into());
    let error = failed.unwrap_or_else(|error| error);
    if arguments.json {
        println!(
            "{}",
            json!({"ok": false, "rows": [], "error": format!("{error:#}")})
        );
    }
    Err(error)
}

/// Installs and builds what the demo needs.
fn prepare(arguments: &Arguments) -> Result<Command> {
    let mut stages = Stages::new();
    stages.run("setup", || {
        setup::packages(setup::DEMO_TOOLS)?;
        if arguments.tor {
            setup::packages(setup::TOR_DEMO_TOOLS)?;
        }
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
    if arguments.tor {
        demo.arg("--tor");
    }
    if arguments.stay {
        demo.arg("--stay");
    }
    Ok(demo)
}
