//! Recordings of plugins, for control: switched on and off, and handed out a piece at a time.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

use data_encoding::{BASE64, HEXLOWER};
use wormholes_host::{ErrorCode, RecordAction, Refusal};
use wormholes_proto::control::{
    PluginAdvanceParams, PluginAdvanced, PluginRecordAction, PluginRecordParams, PluginRecording,
    PluginRecordingParams, PluginRecordingPiece,
};

use super::Plugins;

/// Of one answer, which holds it in base64.
const PIECE_BYTES: u64 = 1 << 20;
/// What a recording ends with: it names it.
const DIGEST_BYTES: usize = 32;
const MIB: u64 = 1 << 20;

impl Plugins {
    /// Switches a recording on or off; how it is by then.
    ///
    /// # Errors
    /// There is no such plugin, or its folder cannot be written.
    pub(crate) async fn record(
        &self,
        params: &PluginRecordParams,
    ) -> Result<PluginRecording, Refusal> {
        let action = params.action.map(|action| match action {
            PluginRecordAction::On => {
                RecordAction::On(params.mib.map(|mib| mib.saturating_mul(MIB)))
            }
            PluginRecordAction::Off => RecordAction::Off,
            PluginRecordAction::Forget => RecordAction::Forget,
        });
        let host = self.host(&params.instance)?;
        let report = host.record(&params.instance, action).await?;
        if action.is_some() {
            let (plugin, on) = (&params.instance, report.is_on);
            tracing::info!(plugin, on, "the recording of a plugin was switched");
        }
        Ok(PluginRecording {
            instance: params.instance.clone(),
            on: report.is_on,
            events: report.events,
            bytes: report.bytes,
            max_bytes: report.max_bytes,
            left_out: report.left_out,
            why: report.why,
        })
    }

    /// Moves the time of all plugins, where that is nobody else's.
    ///
    /// # Errors
    /// There is no such plugin, or the time is everybody's.
    pub(crate) async fn advance(
        &self,
        params: &PluginAdvanceParams,
    ) -> Result<PluginAdvanced, Refusal> {
        let host = self.host(&params.instance)?;
        host.manifest(&params.instance)?;
        host.advance(Duration::from_millis(params.ms)).await?;
        Ok(PluginAdvanced { ms: params.ms })
    }

    /// A piece of what was recorded.
    ///
    /// # Errors
    /// There is no such plugin, nothing was recorded, or another one had it saved anew.
    pub(crate) async fn recording(
        &self,
        params: &PluginRecordingParams,
    ) -> Result<PluginRecordingPiece, Refusal> {
        let host = self.host(&params.instance)?;
        let path = match &params.saved {
            None => host.save_recording(&params.instance).await?.0,
            Some(_) => host.saved_recording(&params.instance)?,
        };
        let (meant, offset) = (params.saved.clone(), params.offset);
        let read = move || piece(&path, meant.as_deref(), offset);
        let read = tokio::task::spawn_blocking(read).await;
        let unread = |why: String| Refusal::new(ErrorCode::Failed, why);
        read.map_err(|_| unread("the node stops".to_owned()))?
            .map_err(|error| unread(format!("the recording cannot be read: {error}")))
    }
}

fn piece(path: &Path, meant: Option<&str>, offset: u64) -> io::Result<PluginRecordingPiece> {
    let mut file = File::open(PathBuf::from(path))?;
    let bytes = file.metadata()?.len();
    let mut digest = [0; DIGEST_BYTES];
    file.seek(SeekFrom::Start(bytes.saturating_sub(digest.len() as u64)))?;
    file.read_exact(&mut digest)?;
    let saved = HEXLOWER.encode(&digest);
    if meant.is_some_and(|meant| meant != saved) {
        return Err(io::Error::other("it was saved anew meanwhile; begin again"));
    }
    file.seek(SeekFrom::Start(offset))?;
    let mut data = Vec::new();
    file.take(PIECE_BYTES).read_to_end(&mut data)?;
    Ok(PluginRecordingPiece {
        saved,
        bytes,
        data: BASE64.encode(&data),
    })
}
