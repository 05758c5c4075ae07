//! Runs a recording of a plugin again, and prints a line of JSON for each event: the engine is here, and
//! `wormholes`, which people type, stays small without it.

use std::{
    fs,
    io::{self, BufWriter, Write as _},
    path::Path,
    time::Duration,
};

use anyhow::Context;
use wormholed::{Replay, Replayed, Verdict};
use wormholes_proto::control::{PluginReplay, PluginReplayLine, PluginReplayed, PluginVerdict};

/// The largest component.
const MAX_WASM_BYTES: u64 = 128 << 20;

pub(super) fn run(file: &Path, wasm: Option<&Path>) -> anyhow::Result<()> {
    let other = wasm.map(component).transpose()?;
    let mut output = BufWriter::new(io::stdout());
    let mut printed = Ok(());
    let replay = Replay::run(file, other, &mut |event| {
        if printed.is_ok() {
            printed = print(&mut output, &PluginReplayLine::Event(line(event)));
        }
    });
    let replay = replay.with_context(|| file.display().to_string())?;
    printed?;
    print(&mut output, &PluginReplayLine::Replay(summary(replay)))?;
    Ok(output.flush()?)
}

fn component(path: &Path) -> anyhow::Result<Vec<u8>> {
    let read = fs::metadata(path).and_then(|about| match about.len() {
        0..=MAX_WASM_BYTES => fs::read(path),
        _ => Err(io::Error::other("larger than 128 MiB")),
    });
    read.with_context(|| format!("cannot read {}", path.display()))
}

fn print(output: &mut impl io::Write, line: &PluginReplayLine) -> io::Result<()> {
    serde_json::to_writer(&mut *output, line)?;
    output.write_all(b"\n")
}

fn line(event: Replayed) -> PluginReplayed {
    let (verdict, why) = match event.verdict {
        Verdict::Agrees => (PluginVerdict::Agrees, None),
        Verdict::Differs(why) => (PluginVerdict::Differs, Some(why)),
        Verdict::Unknown(why) => (PluginVerdict::Unknown, Some(why)),
    };
    PluginReplayed {
        number: event.number,
        principal: event.principal,
        event: event.event,
        kind: event.kind,
        name: event.name,
        at_unix_ms: event.at_unix_ms,
        attempt: event.attempt,
        took_then_us: us(event.took_then),
        took_us: us(event.took),
        verdict,
        why,
    }
}

fn summary(replay: Replay) -> PluginReplay {
    PluginReplay {
        instance: replay.instance,
        events: replay.events,
        agree: replay.agree,
        differ: replay.differ,
        unknown: replay.unknown,
        took_then_us: us(replay.took_then),
        took_us: us(replay.took),
    }
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
