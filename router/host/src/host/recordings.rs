//! Recordings of instances: switched on and off, saved, and forgotten with what they are of.

use std::{fs, io, path::PathBuf, sync::Arc};

use super::{Host, Shared};
use crate::{
    event::{ErrorCode, Refusal},
    recording::{PluginFrame, RecordAction, RecordingReport, Saved, remove_folder},
};

impl Host {
    /// How the recording of an instance is, after this was done with it.
    ///
    /// # Errors
    /// There is no such instance, or the file system's.
    pub async fn record(
        &self,
        instance: &str,
        action: Option<RecordAction>,
    ) -> Result<RecordingReport, Refusal> {
        let loaded = self.shared.find(instance)?;
        let Some(action) = action else {
            return Ok(loaded.recorder.report());
        };
        let act = move || {
            let done = loaded.recorder.act(action);
            done.map(|()| loaded.recorder.report())
        };
        let done = self.shared.threads.spawn_blocking(act).await;
        done.map_err(|_| stops())?.map_err(|error| failed(&error))
    }

    /// Writes all that was recorded of an instance into one file, in the place of the one before; how
    /// many bytes it has.
    ///
    /// # Errors
    /// There is no such instance, nothing was recorded, or the file system's.
    pub async fn save_recording(&self, instance: &str) -> Result<(PathBuf, u64), Refusal> {
        let loaded = self.shared.find(instance)?;
        let shared = Arc::clone(&self.shared);
        let save = move || {
            let component = |plugin: &PluginFrame| {
                let kept = shared.kept.read(&loaded.name, &plugin.files);
                kept.ok().map(|source| source.wasm)
            };
            loaded.recorder.save(component)
        };
        let saved = self.shared.threads.spawn_blocking(save).await;
        let saved = saved
            .map_err(|_| stops())?
            .map_err(|error| failed(&error))?;
        let Saved { path, bytes } = saved;
        Ok((path, bytes))
    }

    /// Where what was saved last lies.
    ///
    /// # Errors
    /// There is no such instance.
    pub fn saved_recording(&self, instance: &str) -> Result<PathBuf, Refusal> {
        Ok(self.shared.find(instance)?.recorder.saved())
    }
}

impl Shared {
    /// An instance is gone with all that it kept.
    pub(super) async fn forget_recording(self: &Arc<Self>, name: &str) {
        let folder = self.recordings.join(name);
        let forgotten = self.threads.spawn_blocking(move || remove_folder(&folder));
        if let Ok(Err(error)) = forgotten.await {
            tracing::warn!(plugin = name, %error, "a plugin's recording cannot be deleted");
        }
    }

    /// All that was recorded goes, whosever it is; what is switched on begins anew.
    pub(super) async fn forget_recordings(self: &Arc<Self>) -> io::Result<()> {
        let shared = Arc::clone(self);
        let forget = move || shared.forget_recordings_now();
        let forgotten = self.threads.spawn_blocking(forget).await;
        forgotten.unwrap_or_else(|_| Err(io::Error::other("the plugins stop")))
    }

    fn forget_recordings_now(&self) -> io::Result<()> {
        let all = self.all();
        for loaded in &all {
            loaded.recorder.begin_anew()?;
        }
        let folders = match fs::read_dir(&self.recordings) {
            Ok(folders) => folders,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for folder in folders {
            let path = folder?.path();
            let is_loaded = all.iter().any(|loaded| path.ends_with(&*loaded.name));
            if !is_loaded {
                remove_folder(&path)?;
            }
        }
        Ok(())
    }
}

fn failed(error: &io::Error) -> Refusal {
    let code = if error.kind() == io::ErrorKind::InvalidInput {
        ErrorCode::Invalid
    } else {
        ErrorCode::Failed
    };
    Refusal::new(code, error.to_string())
}

fn stops() -> Refusal {
    Refusal::new(ErrorCode::Unavailable, "the plugins stop")
}
