//! `wormholes`: the command line of a node. It knows only the control protocol, and the rule
//! engine for `script check` and `script test`, which need no daemon.
//!
//! Exit status: 0 done, 1 failed, 2 wrong usage, 3 the daemon is not running, 4 denied.

mod args;
mod client;
mod commands;
mod config_file;
mod daemon;
mod error;
mod format;
mod output;
mod progress;
mod rule_files;
mod table;

use std::process::ExitCode;

use crate::{args::Args, error::CliError, output::Output};

fn main() -> ExitCode {
    if let Some(answered) = commands::completions::answer() {
        return answered;
    }
    let args = match Args::of_process() {
        Ok(args) => args,
        Err((error, json)) => return usage(&error, json),
    };
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

/// People are answered by clap, and who asks for help or the version is too.
fn usage(error: &clap::Error, json: bool) -> ExitCode {
    if json && error.use_stderr() {
        let error = CliError::usage(error);
        Output::of_process(json).error(&error);
        return error.exit_code();
    }
    // When this cannot be printed, the exit status is all there is.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
