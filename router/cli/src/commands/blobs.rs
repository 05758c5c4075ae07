//! Blobs of plugins' commands: `@FILE` is streamed to the daemon before the command, and a blob that
//! is the answer is streamed to standard output or into a file.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use data_encoding::BASE64;
use serde_json::{Value, json};
use wormholes_proto::{
    blob::{BlobHasher, BlobId},
    control::{
        BlobAppendParams, BlobBeginParams, BlobBytes, BlobInfo, BlobParams, BlobReadParams,
        BlobUpload, Call, PluginArgumentKind, PluginAskParams, PluginCommand,
    },
};

use super::Context;
use crate::{client::Client, error::CliError};

/// Bytes of one piece: in base64, a line has room for it.
const PIECE_BYTES: usize = 32 << 10;

/// Sends the files that the words of a command name, and puts the daemon's numbers for them in their
/// place.
pub(super) fn upload(
    client: &mut Client,
    command: &PluginCommand,
    params: &mut PluginAskParams,
) -> Result<(), CliError> {
    let blobs = command.arguments.iter();
    let (instance, user) = (params.instance.clone(), params.user.clone());
    let begin = BlobBeginParams { instance, user };
    for argument in blobs.filter(|argument| argument.kind == PluginArgumentKind::Blob) {
        let given: Vec<&mut Value> = match params.arguments.get_mut(&argument.name) {
            None => Vec::new(),
            Some(Value::Array(many)) => many.iter_mut().collect(),
            Some(one) => vec![one],
        };
        for value in given {
            let word = value.as_str().unwrap_or_default();
            let Some(file) = word.strip_prefix('@') else {
                return Err(CliError::Usage {
                    message: format!("{} is a file, and was given as {word:?}", argument.name),
                    mend: "give it as @FILE, or as @- for standard input".to_owned(),
                });
            };
            let number = send(client, &begin, Path::new(file))?;
            *value = json!({ "upload": number });
        }
    }
    Ok(())
}

fn send(client: &mut Client, begin: &BlobBeginParams, path: &Path) -> Result<u64, CliError> {
    let unread = |source| CliError::ReadFile {
        path: path.to_owned(),
        source,
    };
    let mut file: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).map_err(unread)?)
    };
    let begun: BlobUpload = client.report(&Call::BlobBegin(begin.clone()))?;
    let upload = begun.upload;
    let mut hasher = BlobHasher::new();
    loop {
        let mut piece = Vec::new();
        let read = (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece);
        read.map_err(unread)?;
        if piece.is_empty() {
            break;
        }
        hasher.update(&piece);
        let bytes = BASE64.encode(&piece);
        let _: BlobUpload = client.report(&Call::BlobAppend(BlobAppendParams { upload, bytes }))?;
    }
    let kept: BlobInfo = client.report(&Call::BlobFinish(BlobParams { upload }))?;
    if kept.hash != hasher.finish().id().to_string() {
        return Err(CliError::Failed("the daemon got other bytes".to_owned()));
    }
    Ok(upload)
}

/// Writes the blob that a command answered with.
pub(super) fn download(
    context: &mut Context<'_>,
    client: &mut Client,
    asked: &BlobBeginParams,
    (answer, output): (&Value, Option<PathBuf>),
) -> Result<(), CliError> {
    let hash = answer.as_str().and_then(|hash| hash.parse::<BlobId>().ok());
    let Some(id) = hash else {
        let other = "the plugin's answer names no blob, which its plugin.toml says it does";
        return Err(CliError::Failed(other.to_owned()));
    };
    match output {
        // Whoever wants JSON, and no file, reads it by `blob.read`.
        None if context.output.json => context.output.value(answer),
        None => copy(client, asked, id, context.output.bytes()),
        Some(path) => {
            let mut file = File::create(&path).map_err(|error| unwritten(&path, &error))?;
            copy(client, asked, id, &mut file)?;
            file.sync_all().map_err(|error| unwritten(&path, &error))?;
            if context.output.json {
                context.output.value(answer)?;
            }
            Ok(())
        }
    }
}

fn copy(
    client: &mut Client,
    asked: &BlobBeginParams,
    id: BlobId,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let mut hasher = BlobHasher::new();
    loop {
        let call = Call::BlobRead(BlobReadParams {
            instance: asked.instance.clone(),
            user: asked.user.clone(),
            hash: id.to_string(),
            from: hasher.length(),
        });
        let part: BlobBytes = client.report(&call)?;
        let bytes = BASE64.decode(part.bytes.as_bytes()).unwrap_or_default();
        hasher.update(&bytes);
        out.write_all(&bytes)?;
        if bytes.is_empty() || hasher.length() >= part.length {
            break;
        }
    }
    if hasher.finish().id() != id {
        let damaged = "the blob is damaged on the daemon's disk: what was written is not all of it";
        return Err(CliError::Failed(damaged.to_owned()));
    }
    Ok(out.flush()?)
}

fn unwritten(path: &Path, error: &io::Error) -> CliError {
    CliError::File {
        path: path.to_owned(),
        message: format!("cannot be written: {error}"),
    }
}
