//! `wormholes`: the command line of a node. It knows only the control protocol, and the rule
//! engine for `script check` and `script test`, which need no daemon.
//!
//! Exit status: 0 done, 1 failed, 2 wrong usage, 3 the daemon is not running, 4 denied.

mod args;
mod client;
mod commands;
mod error;
mod format;
mod output;
mod rule_files;
mod table;

use std::process::ExitCode;

use clap::Parser;

use crate::{args::Args, output::Output};

fn main() -> ExitCode {
    let args = Args::parse();
    let mut output = Output::of_process(args.json);
    let result = commands::run(args, &mut output);
    match result.and_then(|()| Ok(output.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            error.exit_code()
        }
    }
}
