//! A plugin's component in the real host, for scenarios that also run in the kit's world.

use std::{fmt, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use wormholes_host::{Begun, Caller, Command, ErrorCode, Host, Manifest, Refusal, Source, Terms};
use wormholes_plugin::{Error, Principal, Result as Told};
use wormholes_plugin_kit::Drive;
use wormholes_proto::control::PluginCommand;

use crate::{binaries, plugin_host, wait::until_blocking, workspace};

/// How long a command may take that the manifest does not have.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(30);

/// One instance of a plugin in a host of its own, with all that its manifest asks for.
pub struct Hosted {
    runtime: Runtime,
    /// `None` only while it restarts.
    host: Option<Host>,
    folder: TempDir,
    source: Source,
    manifest: Manifest,
}

impl Hosted {
    /// A plugin of this workspace, by the folder that its manifest is in: `plugins/echo`.
    ///
    /// # Errors
    /// When it cannot be built or loaded.
    pub fn new(folder: &str) -> Result<Self> {
        Self::with_more(folder, "")
    }

    /// As [`Self::new`], with more sections of plugin.toml.
    ///
    /// # Errors
    /// When it cannot be built or loaded.
    pub fn with_more(folder: &str, sections: &str) -> Result<Self> {
        let path = workspace::root().join(folder).join("plugin.toml");
        let text = fs::read_to_string(&path)? + sections;
        let manifest = Manifest::parse(&text)?;
        let name = PathBuf::from(&manifest.plugin.wasm);
        let name = name.file_stem().and_then(|name| name.to_str());
        let component = binaries::component(name.context("a component has a name")?)?;
        let mut hosted = Self {
            runtime: Runtime::new()?,
            host: None,
            folder: TempDir::with_prefix("wormholes-hosted-")?,
            source: Source::new(path, text, fs::read(component)?),
            manifest,
        };
        binaries::share_compiled(hosted.folder.path())?;
        hosted.start()?;
        Ok(hosted)
    }

    fn start(&mut self) -> Result<()> {
        let (id, network) = plugin_host::alone(&[7; 32])?;
        let host = Host::open(self.folder.path(), id, network, None)?;
        let terms = Terms {
            grants: self.manifest.capabilities.clone(),
            ..Terms::default()
        };
        let name = &self.manifest.plugin.name;
        let loaded = host.load(name, self.source.clone(), terms);
        self.runtime.block_on(loaded)?;
        self.host = Some(host);
        Ok(())
    }

    fn host(&self) -> Told<&Host> {
        let host = self.host.as_ref();
        host.ok_or_else(|| Error::failed("the host did not start again"))
    }

    fn patience(&self, command: &str) -> Duration {
        let mut commands = self.manifest.commands.iter();
        let described = commands.find(|known| known.name == command);
        described.map_or(DEFAULT_PATIENCE, PluginCommand::patience)
    }
}

impl Drive for Hosted {
    fn request(&mut self, of: &Principal, command: &str, arguments: Value) -> Told<Value> {
        let (of, caller) = names(of);
        let body = arguments.to_string();
        let name = &self.manifest.plugin.name;
        let patience = self.patience(command);
        let command = Command::new(caller, command, body.as_bytes());
        let pending = self.host()?.request(name, of, command, patience);
        let answer = async { pending?.answer().await };
        told(self.runtime.block_on(answer))
    }

    fn query(&mut self, of: &Principal, command: &str, arguments: Value) -> Told<Value> {
        let (of, caller) = names(of);
        let body = arguments.to_string();
        let name = &self.manifest.plugin.name;
        let answer = self
            .host()?
            .query(name, of, caller, command, body.as_bytes());
        told(self.runtime.block_on(answer))
    }

    fn begin(&mut self, of: &Principal, command: &str, arguments: Value) -> Told<u64> {
        let (of, caller) = names(of);
        let body = arguments.to_string();
        let name = &self.manifest.plugin.name;
        let command = Command::new(caller, command, body.as_bytes());
        let begun = self.host()?.begin(name, of, command, None);
        match self.runtime.block_on(begun) {
            Ok(Begun::Operation(operation)) => Ok(operation.id),
            Ok(Begun::Done(_)) => Err(Error::failed("it was answered at once")),
            Err(refusal) => Err(error(refusal)),
        }
    }

    fn outcome(&mut self, _: &Principal, operation: u64) -> Option<Told<Value>> {
        let host = self.host().ok()?;
        let (_, outcome) = host.operation(operation).ok()?;
        let outcome = outcome?;
        self.runtime.block_on(host.collect(operation)).ok()?;
        Some(told(outcome))
    }

    fn add_user(&mut self, name: &str) {
        // One who is there is no error.
        if let Ok(host) = self.host() {
            let _there = self.runtime.block_on(host.add_user(name));
        }
    }

    fn restart(&mut self) {
        if let Some(host) = self.host.take() {
            self.runtime.block_on(host.close());
        }
        // What comes next is told that there is no host.
        let _told_then = self.start();
    }

    #[expect(clippy::panic, reason = "how a test fails")]
    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        if let Err(error) = until_blocking(what, || holds(self)) {
            panic!("{error}");
        }
    }
}

fn names(of: &Principal) -> (wormholes_host::Principal, Caller) {
    match of {
        Principal::Node => (wormholes_host::Principal::Node, Caller::Operator),
        Principal::User(name) => (
            wormholes_host::Principal::User(name.clone()),
            Caller::User(name.clone()),
        ),
    }
}

fn told(answer: Result<Vec<u8>, Refusal>) -> Told<Value> {
    let body = answer.map_err(error)?;
    serde_json::from_slice(&body)
        .map_err(|error| Error::failed(format!("the plugin's answer is no JSON: {error}")))
}

fn error(refusal: Refusal) -> Error {
    Error::new(code(refusal.code), refusal.message)
}

fn code(code: ErrorCode) -> wormholes_plugin::ErrorCode {
    use wormholes_plugin::ErrorCode as Theirs;
    match code {
        ErrorCode::Denied => Theirs::Denied,
        ErrorCode::Quota => Theirs::Quota,
        ErrorCode::Invalid => Theirs::Invalid,
        ErrorCode::NotFound => Theirs::NotFound,
        ErrorCode::Unavailable => Theirs::Unavailable,
        ErrorCode::Expired => Theirs::Expired,
        ErrorCode::Failed => Theirs::Failed,
    }
}

impl fmt::Debug for Hosted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.manifest.plugin.name;
        f.debug_struct("Hosted")
            .field("plugin", name)
            .finish_non_exhaustive()
    }
}
