//! `blob.*`: blobs for commands of plugins, which come piece by piece before the command, and those
//! that plugins answer with.

use std::{collections::BTreeMap, sync::Arc};

use data_encoding::BASE64;
use serde_json::{Map, Value};
use tokio::sync::{Mutex, MutexGuard};
use wormholes_host::{Principal, Refusal, Upload};
use wormholes_proto::{
    blob::BlobId,
    control::{
        BlobAppendParams, BlobBeginParams, BlobBytes, BlobInfo, BlobParams, BlobReadParams,
        BlobUpload, ErrorCode, PluginArgumentKind, PluginCommand, RpcError,
    },
};

use super::plugins::{refused, starting};
use crate::node::NodeCore;

/// Blobs of one connection. Overflow: the newcomer is refused.
const MAX_UPLOADS: usize = 16;
/// What one call reads: its answer is far below what a line may have.
const READ_BYTES: usize = 256 << 10;

/// The blobs that a connection brings: those that no plugin holds go with it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Uploads(Arc<Mutex<All>>);

#[derive(Debug, Default)]
struct All {
    last: u64,
    uploads: BTreeMap<u64, Upload>,
}

pub(super) async fn begin(
    core: &NodeCore,
    uploads: &Uploads,
    params: BlobBeginParams,
) -> Result<BlobUpload, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    let mut all = uploads.0.lock().await;
    if all.uploads.len() >= MAX_UPLOADS {
        let many = format!("more than {MAX_UPLOADS} blobs on one connection");
        return Err(RpcError::new(ErrorCode::Busy, many));
    }
    let begun = plugins.upload(&params.instance, params.user).await;
    let begun = begun.map_err(refused)?;
    all.last += 1;
    let upload = all.last;
    all.uploads.insert(upload, begun);
    Ok(BlobUpload { upload, length: 0 })
}

pub(super) async fn append(
    uploads: &Uploads,
    params: &BlobAppendParams,
) -> Result<BlobUpload, RpcError> {
    let bytes = BASE64.decode(params.bytes.as_bytes());
    let bytes =
        bytes.map_err(|_| RpcError::new(ErrorCode::InvalidParams, "`bytes` is no base64"))?;
    let mut all = uploads.0.lock().await;
    let upload = all.find(params.upload)?;
    let appended = upload.append(bytes).await;
    let length = upload.length();
    if appended.is_err() {
        // Nothing comes of it any more: its place is free.
        all.uploads.remove(&params.upload);
    }
    appended.map_err(refused)?;
    Ok(BlobUpload {
        upload: params.upload,
        length,
    })
}

pub(super) async fn finish(uploads: &Uploads, params: &BlobParams) -> Result<BlobInfo, RpcError> {
    let mut all = uploads.0.lock().await;
    let upload = all.find(params.upload)?;
    let finished = upload.finish().await;
    let length = upload.length();
    if finished.is_err() {
        all.uploads.remove(&params.upload);
    }
    let id = finished.map_err(refused)?;
    Ok(BlobInfo {
        hash: id.to_string(),
        length,
    })
}

pub(super) async fn read(core: &NodeCore, params: BlobReadParams) -> Result<BlobBytes, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    let id: BlobId = params
        .hash
        .parse()
        .map_err(|error| RpcError::new(ErrorCode::InvalidParams, format!("hash: {error}")))?;
    let read = plugins.read_blob(&params.instance, params.user, id, params.from, READ_BYTES);
    let (bytes, length) = read.await.map_err(refused)?;
    Ok(BlobBytes {
        bytes: BASE64.encode(&bytes),
        length,
    })
}

impl Uploads {
    /// Puts names in the place of the blobs that a command takes, and gives those to `take`. They are the
    /// command's from then on: another one brings its own.
    ///
    /// # Errors
    /// One is not there, or is another principal's.
    pub(crate) async fn name<T>(
        &self,
        command: &PluginCommand,
        arguments: &mut Map<String, Value>,
        (instance, principal): (&str, &Principal),
        take: impl FnOnce(&[&Upload], &Map<String, Value>) -> T,
    ) -> Result<T, Refusal> {
        let mut all: MutexGuard<'_, All> = self.0.lock().await;
        let (mut named, mut numbers) = (Vec::new(), Vec::new());
        let blobs = command.arguments.iter();
        for argument in blobs.filter(|argument| argument.kind == PluginArgumentKind::Blob) {
            let given: Vec<&mut Value> = match arguments.get_mut(&argument.name) {
                None => Vec::new(),
                Some(Value::Array(many)) => many.iter_mut().collect(),
                Some(one) => vec![one],
            };
            for value in given {
                let number = value.get("upload").and_then(Value::as_u64);
                let upload = number.and_then(|number| all.uploads.get(&number));
                let upload = upload.filter(|upload| upload.is_for(instance, principal));
                let Some((upload, id)) = upload.and_then(|it| Some((it, it.id()?))) else {
                    let rule = format!(
                        "{}: give `{{\"upload\": NUMBER}}` of `blob.begin` on this connection, for \
                         the same instance and user, after `blob.finish`",
                        argument.name
                    );
                    return Err(Refusal::new(wormholes_host::ErrorCode::Invalid, rule));
                };
                *value = Value::String(id.to_string());
                named.push(upload);
                numbers.extend(number);
            }
        }
        let taken = take(&named, arguments);
        for number in numbers {
            all.uploads.remove(&number);
        }
        Ok(taken)
    }
}

impl All {
    fn find(&mut self, upload: u64) -> Result<&mut Upload, RpcError> {
        let none = || RpcError::new(ErrorCode::NotFound, "no such blob on this connection");
        self.uploads.get_mut(&upload).ok_or_else(none)
    }
}
