//! `wormholes script`: the scripts of the daemon, and those on the disk.

use std::path::PathBuf;

use serde_json::Value;
use wormholes_proto::control::{
    Call, MAX_REQUEST_BYTES, NoParams, RpcError, ScriptDiagnostic, ScriptErrorInfo,
    ScriptLoadParams, ScriptReport, encode_request,
};

use super::{Context, field, offline, replay};
use crate::{args::ScriptCommand, error::CliError, format, output::Style, rule_files::script_text};

pub(super) fn run(context: &mut Context<'_>, command: ScriptCommand) -> Result<(), CliError> {
    match command {
        ScriptCommand::Check {
            files,
            deny_warnings,
        } => offline::check(context.output, &files, deny_warnings),
        ScriptCommand::Test(files) => offline::test(context.output, &files),
        ScriptCommand::List => context.show(&Call::ScriptList(NoParams {}), render),
        ScriptCommand::Load { files } => load(context, &files),
        ScriptCommand::Replay(args) => replay::run(context, &args),
        ScriptCommand::Rollback => context.show(&Call::ScriptRollback(NoParams {}), render),
    }
}

/// The files are read here: the daemon may run as a user who cannot read them.
fn load(context: &mut Context<'_>, files: &[PathBuf]) -> Result<(), CliError> {
    let scripts = files.iter().map(|file| script_text(file));
    let scripts = scripts.collect::<Result<_, CliError>>()?;
    let call = Call::ScriptLoad(ScriptLoadParams { scripts });
    if encode_request(0, &call).len() > MAX_REQUEST_BYTES {
        return Err(CliError::Failed(format!(
            "the scripts and their cases are more than the {} KiB that a request may have; name \
             them in `scripts` of [rules], and load without names",
            MAX_REQUEST_BYTES / 1024
        )));
    }
    let loaded = context.connect()?.report(&call);
    let report: ScriptReport =
        loaded.map_err(|error| with_diagnostics(error, context.output.json))?;
    context
        .output
        .report(&report, |style| render(&report, style))?;
    context.note_waiting(&report.restart_for)
}

fn render(report: &ScriptReport, style: Style) -> String {
    let rollback = if report.can_roll_back {
        " (rollback possible)"
    } else {
        ""
    };
    let mut text = field(
        style,
        "generation",
        &format!("{}{rollback}", report.generation),
    );
    for (index, script) in report.scripts.iter().enumerate() {
        let name = if index == 0 { "scripts" } else { "" };
        let path = script.path.as_ref().map(|path| path.display().to_string());
        text += &field(style, name, &path.unwrap_or_else(|| script.name.clone()));
    }
    if report.by_command {
        let until = "the next `script load` without names, SIGHUP or start";
        text += &field(style, "until", until);
        text += &field(style, "", "to keep them, name them in `scripts` of [rules]");
    }
    text += &field(style, "else", &report.default);
    for (index, warning) in report.warnings.iter().enumerate() {
        let name = if index == 0 { "warnings" } else { "" };
        text += &field(style, name, &warning.to_string());
    }
    text += &field(style, "errors", &report.errors.to_string());
    for error in &report.last_errors {
        text += &field(style, "", &last_error(error));
    }
    text
}

/// When, how often, in which hook, where and what.
pub(super) fn last_error(error: &ScriptErrorInfo) -> String {
    let (at, count, hook) = (format::utc(error.at_unix_ms), error.count, &error.hook);
    format!("{at} {count}x {hook} {}", error.fault)
}

/// A load that failed lists what is wrong: one line each, as compilers print it.
fn with_diagnostics(error: CliError, json: bool) -> CliError {
    let CliError::Rpc(RpcError {
        message,
        data: Some(data),
        ..
    }) = &error
    else {
        return error;
    };
    let diagnostics = data.get("diagnostics").cloned().unwrap_or(Value::Null);
    match serde_json::from_value::<Vec<ScriptDiagnostic>>(diagnostics) {
        Ok(diagnostics) if !json => {
            let lines: Vec<String> = diagnostics.iter().map(format::diagnostic).collect();
            CliError::Failed(format!("{}\n{}", format::clean(message), lines.join("\n")))
        }
        _ => error,
    }
}
