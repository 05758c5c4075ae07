//! `wormholes plugin record`: switches a recording on and off, and takes it home.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use data_encoding::BASE64;
use serde_json::json;
use wormholes_proto::control::{
    Call, PluginRecordAction, PluginRecordParams, PluginRecording, PluginRecordingParams,
    PluginRecordingPiece,
};

use super::{Context, field, name_of};
use crate::{
    args::RecordWord,
    client::Client,
    error::CliError,
    format,
    output::{Style, Tone},
};

pub(super) fn run(
    context: &mut Context<'_>,
    instance: String,
    action: Option<RecordWord>,
    mib: Option<u64>,
    save: Option<&Path>,
) -> Result<(), CliError> {
    if mib.is_some() && action != Some(RecordWord::On) {
        return Err(CliError::Usage {
            message: "--mib goes with `on`".to_owned(),
            mend: "leave it out".to_owned(),
        });
    }
    let mut client = context.connect()?;
    // What is to be deleted is saved before.
    if let Some(path) = save {
        let bytes = self::save(&mut client, &instance, path)?;
        if action.is_none() {
            let told = json!({ "instance": instance, "file": path, "bytes": bytes });
            let shown = path.display().to_string();
            return context.output.report(&told, |style| {
                field(
                    style,
                    &instance,
                    &format!("{} saved to {shown}", format::bytes(bytes)),
                )
            });
        }
    }
    let action = action.map(|action| match action {
        RecordWord::On => PluginRecordAction::On,
        RecordWord::Off => PluginRecordAction::Off,
        RecordWord::Forget => PluginRecordAction::Forget,
    });
    let call = Call::PluginRecord(PluginRecordParams {
        instance,
        action,
        mib,
    });
    context.show(&call, render)
}

/// Writes what was recorded to a new file; how many bytes it has.
pub(super) fn save(client: &mut Client, instance: &str, path: &Path) -> Result<u64, CliError> {
    let mut piece: PluginRecordingPiece = client.report(&call(instance, None, 0))?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options
        .open(path)
        .map_err(|error| unwritten(path, &error))?;
    let written = copy(client, instance, &mut piece, &mut file);
    if written.is_err() {
        // A part of it is good for nothing.
        let _ = std::fs::remove_file(path);
    }
    match written {
        Err(CliError::Print(error)) => Err(unwritten(path, &error)),
        Err(error) => Err(error),
        Ok(()) => Ok(piece.bytes),
    }
}

fn copy(
    client: &mut Client,
    instance: &str,
    piece: &mut PluginRecordingPiece,
    file: &mut File,
) -> Result<(), CliError> {
    let mut offset = 0;
    loop {
        let data = BASE64.decode(piece.data.as_bytes());
        let data = data.map_err(|error| CliError::Failed(error.to_string()))?;
        file.write_all(&data)?;
        offset += data.len() as u64;
        if offset >= piece.bytes || data.is_empty() {
            return Ok(());
        }
        let saved = Some(piece.saved.clone());
        *piece = client.report(&call(instance, saved, offset))?;
    }
}

fn call(instance: &str, saved: Option<String>, offset: u64) -> Call {
    Call::PluginRecording(PluginRecordingParams {
        instance: instance.to_owned(),
        saved,
        offset,
    })
}

fn unwritten(path: &Path, error: &std::io::Error) -> CliError {
    CliError::File {
        path: path.to_owned(),
        message: format!("cannot be written: {error}"),
    }
}

fn render(recording: &PluginRecording, style: Style) -> String {
    let state = match recording.on {
        true => style.paint(Tone::Good, "on"),
        false => style.paint(Tone::Faint, "off"),
    };
    let name = name_of(style, &recording.instance);
    let (bytes, most) = (
        format::bytes(recording.bytes),
        format::bytes(recording.max_bytes),
    );
    let mut text = format!("{name}{state}\n");
    text += &field(style, "events", &recording.events.to_string());
    text += &field(style, "keeps", &format!("{bytes} of {most}"));
    if recording.left_out > 0 {
        let more = format!(
            "{} times: more than a quarter of that, or to do with blobs, HTTP or connections",
            recording.left_out
        );
        text += &field(style, "left out", &more);
    }
    if let Some(why) = &recording.why {
        text += &field(style, "ended", why);
    }
    text
}
