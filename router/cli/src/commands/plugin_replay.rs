//! `wormholes plugin replay`: runs a recording again, and shows where events part from it. The engine is
//! the daemon's: its program is started for it, and prints an event a line.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{ChildStdout, Stdio},
};

use serde::Serialize;
use wormholes_proto::control::{PluginReplay, PluginReplayLine, PluginReplayed, PluginVerdict};

use crate::{
    daemon,
    error::CliError,
    format,
    output::{Output, Style, Tone},
    table::{Cell, Table},
};

/// Events that are shown; JSON has them all.
const MAX_SHOWN: usize = 1000;

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    replay: PluginReplay,
    /// All of them, in order.
    all: Vec<PluginReplayed>,
}

pub(super) fn run(
    output: &mut Output,
    file: &Path,
    wasm: Option<&Path>,
    times: bool,
) -> Result<(), CliError> {
    let report = replay(file, wasm)?;
    output.report(&report, |style| render(&report, times, style))?;
    match (report.replay.differ, report.replay.unknown) {
        (0, 0) => Ok(()),
        (0, _) => Err(CliError::Unknown),
        _ => Err(CliError::Told),
    }
}

fn replay(file: &Path, wasm: Option<&Path>) -> Result<Report, CliError> {
    let mut command = daemon::command();
    command.arg("--replay").arg(file);
    if let Some(wasm) = wasm {
        command.arg("--wasm").arg(wasm);
    }
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| daemon::missing(&error))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let lines = stdout.map_or_else(|| Ok((None, Vec::new())), read);
    let mut said = String::new();
    // What cannot be read of it is not there to be told.
    if let Some(mut stderr) = stderr {
        let _ = stderr.read_to_string(&mut said);
    }
    let status = child.wait().map_err(|error| daemon::missing(&error))?;
    match lines? {
        (Some(replay), all) if status.success() => Ok(Report { replay, all }),
        _ => {
            let said = said.trim().trim_start_matches("wormholed: ").to_owned();
            let ended = format!("wormholed ended: {status}");
            Err(CliError::Failed(if said.is_empty() { ended } else { said }))
        }
    }
}

/// The events, and what came of it in the end.
fn read(stdout: ChildStdout) -> Result<(Option<PluginReplay>, Vec<PluginReplayed>), CliError> {
    let (mut replay, mut all) = (None, Vec::new());
    for line in BufReader::new(stdout).lines() {
        match serde_json::from_str(&line?).map_err(CliError::Answer)? {
            PluginReplayLine::Event(event) => all.push(event),
            PluginReplayLine::Replay(told) => replay = Some(told),
        }
    }
    Ok((replay, all))
}

fn render(report: &Report, times: bool, style: Style) -> String {
    let mut text = String::new();
    if times {
        text += &table(&report.all, style);
    }
    let parted = report.all.iter().filter(|event| event.why.is_some());
    for event in parted.clone().take(MAX_SHOWN) {
        text += &shown(event, style);
    }
    let more = parted.count().saturating_sub(MAX_SHOWN);
    if more > 0 {
        text += &format!("and {more} more; --json has them all\n");
    }
    let PluginReplay {
        instance,
        events,
        agree,
        differ,
        unknown,
        took_then_us,
        took_us,
    } = &report.replay;
    text += &format!(
        "{}: of {events} events {agree} did the same, {differ} something else, {unknown} cannot be \
         told; handlers took {}, recorded {}\n",
        format::clean(instance),
        time(*took_us),
        time(*took_then_us)
    );
    text
}

fn table(events: &[PluginReplayed], style: Style) -> String {
    let heads = [
        ">NUMBER",
        "AT",
        "FOR",
        "EVENT",
        ">RECORDED",
        ">NOW",
        "~NAME",
    ];
    let mut table = Table::new(&heads);
    for event in events.iter().take(MAX_SHOWN) {
        let tone = match event.verdict {
            PluginVerdict::Agrees => Tone::Plain,
            PluginVerdict::Differs => Tone::Bad,
            PluginVerdict::Unknown => Tone::Faint,
        };
        table.row([
            event.number.to_string().into(),
            format::utc(event.at_unix_ms).into(),
            event.principal.as_str().into(),
            Cell::toned(tone, &event.kind),
            time(event.took_then_us).into(),
            time(event.took_us).into(),
            event.name.as_str().into(),
        ]);
    }
    table.render(style)
}

fn shown(event: &PluginReplayed, style: Style) -> String {
    let what = format!("{} {}", event.kind, event.name);
    let head = style.paint(Tone::Head, &format::clean(what.trim()));
    let (principal, at) = (
        format::clean(&event.principal),
        format::utc(event.at_unix_ms),
    );
    let tone = match event.verdict {
        PluginVerdict::Unknown => Tone::Faint,
        PluginVerdict::Agrees | PluginVerdict::Differs => Tone::Bad,
    };
    let word = match event.verdict {
        PluginVerdict::Agrees => "agrees",
        PluginVerdict::Differs => "differs",
        PluginVerdict::Unknown => "cannot be told",
    };
    let why = format::clean(event.why.as_deref().unwrap_or_default());
    let number = event.number;
    format!(
        "{number} {head} of {principal} at {at}\n  {} {why}\n",
        style.paint(tone, &format!("{word}:"))
    )
}

/// `12 µs`, `3.4 ms`, `5.6 s`.
fn time(us: u64) -> String {
    match us {
        0..1000 => format!("{us} µs"),
        1000..1_000_000 => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        _ => format!("{}.{} s", us / 1_000_000, us % 1_000_000 / 100_000),
    }
}
