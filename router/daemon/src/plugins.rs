//! The plugins that config.toml names: read, checked and handed to their host.

mod blobs;
mod change;
mod datagrams;
mod doors;
mod network;
mod operations;
mod recordings;
mod users;
mod wires;

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fmt, mem,
    path::Path,
    pin::pin,
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
    time::Duration,
};

use serde_json::{Map, Value};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use wormholes_host::{
    Caller, Command, Condition, Datagram, DeadLetter, Ending, ErrorCode, Host, HostError, HttpPage,
    InstanceReport, LoadError, Pending, Pipe, PluginLine, Principal, Refusal, Source, Terms,
    Upload,
};
use wormholes_proto::{
    NodeId,
    control::{
        PluginArgumentKind, PluginAskParams, PluginCommand, PluginCondition, PluginDead,
        PluginDeadLetter, PluginInfo, PluginLimitHits, PluginLog, PluginLogLine, PluginProgress,
    },
};
use wormholes_rules::World;

pub(crate) use self::change::ChangeError;
pub use self::doors::DoorError;
use self::{change::open, doors::Doors};
use crate::{
    config::{Config, PluginConfig},
    control::Uploads,
    network::Network,
    node::NodeCore,
    serve::Trunks,
};

/// Of the host, below the data folder.
const FOLDER: &str = "plugins";
/// The manifest, beside the component.
const MANIFEST: &str = "plugin.toml";
/// How often plugins are told what scripts billed.
const USAGE_PERIOD: Duration = Duration::from_secs(1);
/// The largest component: JavaScript's are 12 MiB, Python's 18.
const MAX_WASM_BYTES: u64 = 128 << 20;

/// The host, where config.toml names plugins.
pub(crate) struct Plugins {
    host: RwLock<Option<Arc<Host>>>,
    /// What config.toml said of those that run, when they were loaded or updated last; by name.
    known: Mutex<BTreeMap<String, PluginConfig>>,
    /// One instance is added or removed at a time.
    changing: tokio::sync::Mutex<()>,
    /// Where they listen.
    doors: Doors,
}

/// A command, to whom it goes.
struct Asked {
    instance: String,
    command: PluginCommand,
    principal: Principal,
    caller: Caller,
    body: Vec<u8>,
    order: Command,
}

/// Where trunks come in. Weak: a host that ends waits until nobody has it.
struct Door(Weak<Host>);

impl Trunks for Door {
    fn answer(&self, trunk: Box<dyn Pipe>, from: Option<NodeId>) {
        if let Some(host) = self.0.upgrade() {
            host.answer_call(trunk, from);
        }
    }

    fn peer_is_up(&self, node: NodeId) {
        if let Some(host) = self.0.upgrade() {
            host.peer_is_up(node);
        }
    }

    fn presence(&self, node: NodeId, trust: u8, is_online: &dyn Fn() -> bool) {
        if let Some(host) = self.0.upgrade() {
            host.presence(node, trust, is_online);
        }
    }
}

/// Plugins that do not start.
#[derive(Debug, Error)]
pub enum PluginError {
    /// The host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// One of them.
    #[error("[plugin.{name}]: {error}")]
    Load {
        /// Which.
        name: String,
        /// Why. It is in the message, and no source of it: who prints both would say it twice.
        error: Box<LoadError>,
    },
    /// A port that it listens at.
    #[error("[plugin.{name}]: {error}")]
    Door {
        /// Whose.
        name: String,
        /// Why. As above.
        error: Box<DoorError>,
    },
}

impl Plugins {
    /// Starts the plugins of the node's config; no host runs where there are none.
    ///
    /// # Errors
    /// [`PluginError`] names what to mend.
    pub(crate) async fn start(core: &Arc<NodeCore>) -> Result<Self, PluginError> {
        let plugins = Self {
            host: RwLock::new(None),
            known: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            doors: Doors::default(),
        };
        if core.config.plugins.is_empty() {
            return Ok(plugins);
        }
        let host = open(core)?;
        for plugin in &core.config.plugins {
            let source = read(plugin)?;
            let loaded = host.load(&plugin.name, source, terms(plugin)).await;
            loaded.map_err(|error| load_error(plugin, error))?;
            plugins.runs(core, plugin);
        }
        let host = plugins.use_host(core, host);
        for plugin in &core.config.plugins {
            let doors = plugins.doors.follow(core, &host, plugin).await;
            doors.map_err(|error| door_error(plugin, error))?;
        }
        Ok(plugins)
    }

    /// Whether the plugins of `config` could start.
    ///
    /// # Errors
    /// [`PluginError`] names what to mend.
    pub(crate) fn check(config: &Config) -> Result<(), PluginError> {
        for plugin in &config.plugins {
            let source = read(plugin)?;
            let folder = config.node.data_dir.join(FOLDER);
            let checked = Host::check(&folder, &plugin.name, source, terms(plugin));
            checked.map_err(|error| load_error(plugin, error))?;
        }
        Ok(())
    }

    /// The instances, by name.
    pub(crate) fn list(&self) -> Vec<PluginInfo> {
        self.reports().into_iter().map(info).collect()
    }

    /// How the instances are, by name.
    pub(crate) fn reports(&self) -> Vec<InstanceReport> {
        let host = self.running();
        host.map(|host| host.instances()).unwrap_or_default()
    }

    /// What a plugin says of itself.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) async fn health(&self, instance: &str) -> Result<String, Refusal> {
        self.host(instance)?.health(instance).await
    }

    /// Has no event of a plugin begin until it is started again.
    ///
    /// # Errors
    /// There is none of that name.
    pub(crate) fn stop(&self, instance: &str) -> Result<PluginInfo, Refusal> {
        self.host(instance)?.stop(instance)?;
        self.info(instance)
    }

    /// What a plugin said since a line; waits for the next one as long as `patience`.
    ///
    /// # Errors
    /// There is none of that name.
    pub(crate) async fn log(
        &self,
        instance: &str,
        after: u64,
        patience: Duration,
    ) -> Result<PluginLog, Refusal> {
        // The host is not held meanwhile: a node that stops waits for who holds it.
        let lines = self.host(instance)?.lines(instance)?;
        let lines = lines.wait_after(after, patience).await;
        Ok(PluginLog {
            lines: lines.into_iter().map(line).collect(),
        })
    }

    /// Has a plugin that was parked or stopped go on.
    ///
    /// # Errors
    /// There is none of that name.
    pub(crate) fn restart(&self, instance: &str) -> Result<PluginInfo, Refusal> {
        self.host(instance)?.restart(instance)?;
        self.info(instance)
    }

    /// The events that were given up.
    ///
    /// # Errors
    /// There is none of that name, or the store cannot be read.
    pub(crate) fn dead(&self, instance: &str) -> Result<PluginDead, Refusal> {
        let (letters, dropped) = self.host(instance)?.dead_letters(instance)?;
        Ok(PluginDead {
            letters: letters.into_iter().map(letter).collect(),
            dropped,
        })
    }

    /// Deletes the events that were given up.
    ///
    /// # Errors
    /// There is none of that name, or the disk failed.
    pub(crate) async fn clear_dead(&self, instance: &str) -> Result<PluginInfo, Refusal> {
        self.host(instance)?.clear_dead_letters(instance).await?;
        self.info(instance)
    }

    fn info(&self, instance: &str) -> Result<PluginInfo, Refusal> {
        let mut infos = self.list().into_iter();
        infos
            .find(|info| info.name == instance)
            .ok_or_else(|| no_plugin(instance))
    }

    /// Gives a command of the manifest to a plugin. `told` hears of its progress.
    ///
    /// # Errors
    /// What it refused, or why it could not be asked.
    pub(crate) async fn ask(
        &self,
        params: PluginAskParams,
        around: (&World, &Uploads),
        told: impl FnMut(PluginProgress),
    ) -> Result<Value, Refusal> {
        let (host, asked) = self.asked(params, around).await?;
        let (instance, command) = (&asked.instance, &asked.command.name);
        let (principal, caller) = (asked.principal, asked.caller);
        let answer = if asked.command.query {
            host.query(instance, principal, caller, command, &asked.body)
                .await?
        } else if asked.command.operation {
            let operation = format!("{command} is an operation: `op.start` begins it");
            return Err(Refusal::new(ErrorCode::Invalid, operation));
        } else {
            let patience = asked.command.patience();
            let pending = host.request(instance, principal, asked.order, patience)?;
            answer(pending, told).await?
        };
        json(&answer)
    }

    /// Who is asked what, by whom.
    async fn asked(
        &self,
        params: PluginAskParams,
        (world, uploads): (&World, &Uploads),
    ) -> Result<(Arc<Host>, Asked), Refusal> {
        let host = self.host(&params.instance)?;
        let command = described(&host, &params.instance, &params.command)?;
        let mut arguments = params.arguments;
        name_nodes(&command, &mut arguments, world)?;
        let (principal, caller) = match params.user {
            None => (Principal::Node, Caller::Operator),
            Some(name) => {
                let name: Arc<str> = name.into();
                (Principal::User(Arc::clone(&name)), Caller::User(name))
            }
        };
        let whose = (params.instance.as_str(), &principal);
        let make = |blobs: &[&Upload], arguments: &Map<String, Value>| {
            let body = Value::Object(arguments.clone()).to_string().into_bytes();
            let order = Command::new(caller.clone(), &command.name, &body);
            (body, order.with_blobs(blobs.iter().copied()))
        };
        let made = uploads.name(&command, &mut arguments, whose, make);
        let (body, order) = made.await?;
        let asked = Asked {
            instance: params.instance,
            command,
            principal,
            caller,
            body,
            order,
        };
        Ok((host, asked))
    }

    /// Sends a datagram from a port of a plugin; false: there is no room for it.
    pub(crate) fn send_datagram(&self, datagram: Datagram) -> bool {
        self.doors.send(datagram)
    }

    /// Finds the plugin that answers an HTTP request, and takes a place there.
    ///
    /// # Errors
    /// None answers there, or it has too many already.
    pub(crate) fn http(&self, method: &str, path: &str) -> Result<HttpPage, Refusal> {
        let nothing = || Refusal::new(ErrorCode::NotFound, "nothing is here");
        self.running().ok_or_else(nothing)?.http(method, path)
    }

    /// Ends all plugins; what they were at is undone.
    pub(crate) async fn close(&self) {
        let host = self
            .host
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // Whoever is asking one has it until the answer.
        if let Some(host) = host.and_then(Arc::into_inner) {
            host.close().await;
        }
    }

    fn host(&self, instance: &str) -> Result<Arc<Host>, Refusal> {
        self.running().ok_or_else(|| no_plugin(instance))
    }

    fn running(&self) -> Option<Arc<Host>> {
        let host = self.host.read().unwrap_or_else(PoisonError::into_inner);
        host.clone()
    }
}

/// Tells plugins what scripts billed, until the host is gone.
async fn tell_usage(host: Weak<Host>, network: Arc<Network>) {
    let mut ticks = tokio::time::interval(USAGE_PERIOD);
    // Never more often, whatever held this up.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(host) = host.upgrade() else {
            return;
        };
        host.usage(&network.usage().take());
    }
}

/// Whether the plugins that `config` names could start; needs no daemon.
///
/// # Errors
/// [`PluginError`] names what to mend.
pub fn check_plugins(config: &Config) -> Result<(), PluginError> {
    Plugins::check(config)
}

/// Waits for an answer, and tells of the progress until then.
async fn answer(
    mut pending: Pending,
    mut told: impl FnMut(PluginProgress),
) -> Result<Vec<u8>, Refusal> {
    let (_, none) = mpsc::channel(1);
    let mut steps = mem::replace(&mut pending.progress, none);
    let mut answer = pin!(pending.answer());
    loop {
        tokio::select! {
            biased;
            Some(step) = steps.recv() => told(progress(step.percent, step.text)),
            answer = &mut answer => return answer,
        }
    }
}

fn progress(percent: Option<u8>, text: String) -> PluginProgress {
    PluginProgress { percent, text }
}

/// What people are shown is JSON.
fn json(answer: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(answer).map_err(|_| {
        let broken = "the plugin answered with something that is not JSON";
        Refusal::new(ErrorCode::Failed, broken)
    })
}

/// What the manifest says of a command.
fn described(host: &Host, instance: &str, command: &str) -> Result<PluginCommand, Refusal> {
    let manifest = host.manifest(instance)?;
    let described = manifest.commands.iter().find(|known| known.name == command);
    described.cloned().ok_or_else(|| {
        let help =
            format!("{instance} has no command `{command}`; see `wormholes {instance} --help`");
        Refusal::new(ErrorCode::NotFound, help)
    })
}

/// Puts keys in the place of petnames and ids.
fn name_nodes(
    command: &PluginCommand,
    arguments: &mut Map<String, Value>,
    world: &World,
) -> Result<(), Refusal> {
    let are_nodes = command.arguments.iter();
    let are_nodes = are_nodes.filter(|argument| argument.kind == PluginArgumentKind::Peer);
    for argument in are_nodes {
        let given: Vec<&mut Value> = match arguments.get_mut(&argument.name) {
            None => Vec::new(),
            Some(Value::Array(many)) => many.iter_mut().collect(),
            Some(one) => vec![one],
        };
        for value in given {
            let name = value.as_str().unwrap_or_default();
            let known = world.find(name).map(|node| node.id);
            let Some(id) = known.or_else(|| name.parse().ok()) else {
                let unknown = format!(
                    "{}: no peer is called {name:?}; see `wormholes peer list`, or give a node's id",
                    argument.name
                );
                return Err(Refusal::new(ErrorCode::NotFound, unknown));
            };
            *value = Value::String(data_encoding::HEXLOWER.encode(NodeId::as_bytes(&id)));
        }
    }
    Ok(())
}

fn no_plugin(instance: &str) -> Refusal {
    let missing = format!("no plugin runs as `{instance}`; see `wormholes plugin list`");
    Refusal::new(ErrorCode::NotFound, missing)
}

/// Reads a plugin's files.
fn read(plugin: &PluginConfig) -> Result<Source, PluginError> {
    let file = |path: &Path| {
        let read = std::fs::metadata(path).and_then(|about| match about.len() {
            // A pipe that nobody writes to would hold the change up for ever.
            _ if !about.is_file() => Err(std::io::Error::other("it is no regular file")),
            0..=MAX_WASM_BYTES => std::fs::read(path),
            _ => Err(std::io::Error::other("larger than 128 MiB")),
        });
        read.map_err(|error| {
            let path = path.to_owned();
            load_error(plugin, LoadError::Read { path, error })
        })
    };
    let wasm = file(&plugin.wasm)?;
    let path = plugin.wasm.with_file_name(MANIFEST);
    let manifest = String::from_utf8_lossy(&file(&path)?).into_owned();
    Ok(Source::new(path, manifest, wasm))
}

fn terms(plugin: &PluginConfig) -> Terms {
    Terms {
        grants: plugin.grants.clone(),
        config: plugin.config.clone(),
        strangers: plugin.strangers,
        sha256: plugin.sha256,
    }
}

fn load_error(plugin: &PluginConfig, error: LoadError) -> PluginError {
    PluginError::Load {
        name: plugin.name.clone(),
        error: Box::new(error),
    }
}

fn door_error(plugin: &PluginConfig, error: DoorError) -> PluginError {
    PluginError::Door {
        name: plugin.name.clone(),
        error: Box::new(error),
    }
}

fn info(report: InstanceReport) -> PluginInfo {
    let counts = &report.counts;
    let ended = |endings: &[Ending]| {
        let counts = counts.events.iter();
        let those = counts.filter(|((_, ending), _)| endings.contains(ending));
        those.map(|(_, count)| count).sum()
    };
    let (condition, why) = match report.condition {
        Condition::Running => (PluginCondition::Running, None),
        Condition::Paused => (PluginCondition::Paused, None),
        Condition::Parked(why) => (PluginCondition::Parked, Some(why)),
        Condition::Stopped => (PluginCondition::Stopped, None),
    };
    let limits = counts.limits.iter().map(|(limit, hits)| PluginLimitHits {
        limit: limit.to_string(),
        hits: *hits,
    });
    let mut limits: Vec<_> = limits.collect();
    limits.sort_by_key(|limit| Reverse(limit.hits));
    let manifest = Arc::unwrap_or_clone(report.manifest);
    PluginInfo {
        name: report.name.to_string(),
        plugin: manifest.plugin.name,
        version: manifest.plugin.version,
        sha256: data_encoding::HEXLOWER.encode(&report.sha256),
        schema: manifest.state.schema,
        about: manifest.plugin.about,
        condition,
        why,
        state_bytes: report.kept_bytes,
        blob_bytes: report.blob_bytes,
        waiting_events: report.waiting as u64,
        waiting_messages: report.waiting_messages,
        open_operations: report.open_operations as u64,
        events: ended(&[Ending::Done]),
        refused: ended(&[Ending::Refused]),
        broken: ended(&[Ending::Trapped, Ending::TimedOut]),
        given_up: counts.given_up,
        limit_hits: counts.limits.values().sum(),
        limits,
        commands: manifest.commands,
    }
}

fn line(line: PluginLine) -> PluginLogLine {
    PluginLogLine {
        number: line.number,
        at_unix_ms: line.at_unix_ms,
        level: line.level.as_str().to_lowercase(),
        principal: line.principal,
        text: line.text.to_string(),
    }
}

fn letter(letter: DeadLetter) -> PluginDeadLetter {
    PluginDeadLetter {
        number: letter.number,
        at_unix_ms: letter.at_unix_ms,
        principal: letter.principal,
        kind: letter.kind,
        name: letter.name,
        fault: letter.fault,
        body: data_encoding::BASE64.encode(&letter.body),
        body_bytes: letter.body_bytes,
    }
}

impl fmt::Debug for Plugins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Plugins").field(&self.list().len()).finish()
    }
}
