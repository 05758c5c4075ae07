//! Plugins, as control tells of them; a plugin's manifest describes its commands in the same words.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How long the answer to a command may take that does not say so.
const COMMAND_SECONDS: u64 = 30;

/// What `plugin.list` returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PluginList {
    /// The instances, by name.
    pub plugins: Vec<PluginInfo>,
}

/// An instance of a plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PluginInfo {
    /// The instance's name in config.toml.
    pub name: String,
    /// The plugin's name in its manifest.
    pub plugin: String,
    /// Its version.
    pub version: String,
    /// Of its component, as `sha256sum` prints it.
    pub sha256: String,
    /// Of its rows.
    pub schema: u32,
    /// What it does, in one line.
    pub about: String,
    /// How it is.
    pub condition: PluginCondition,
    /// Why, when it does not run; or what was not done of its last change.
    pub why: Option<String>,
    /// What its rows have, keys and values.
    pub state_bytes: u64,
    /// Blobs that it holds, with those that it fetches and writes.
    pub blob_bytes: u64,
    /// Events that wait for their turn.
    pub waiting_events: u64,
    /// Durable messages that their receivers have not confirmed.
    pub waiting_messages: u64,
    /// Operations that go on.
    pub open_operations: u64,
    /// Events that ended well.
    pub events: u64,
    /// Events that its handlers refused.
    pub refused: u64,
    /// Events in which it broke or ran too long.
    pub broken: u64,
    /// Events that were given up.
    pub given_up: u64,
    /// Events and requests that ran into a limit, or asked for what they may not have.
    pub limit_hits: u64,
    /// Those by limit, the most first.
    pub limits: Vec<PluginLimitHits>,
    /// What `wormholes NAME …` offers.
    pub commands: Vec<PluginCommand>,
}

/// How often a plugin ran into one of its limits since it was loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PluginLimitHits {
    /// As `wormholes_plugin_limit_hits_total` names it: `messages`, `memory`, `denied`.
    pub limit: String,
    /// Events and requests, each once.
    pub hits: u64,
}

/// Whether a plugin, an instance, a command or an argument may bear this name.
pub fn is_instance_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.len() <= 32
        && name.bytes().all(fits)
        && name.as_bytes().first().is_some_and(u8::is_ascii_lowercase)
}

/// Names that no instance may bear: what the command line has for itself, now or later.
pub const RESERVED_INSTANCES: [&str; 31] = [
    "account",
    "bugreport",
    "completions",
    "config",
    "console",
    "events",
    "exit",
    "flows",
    "help",
    "hop",
    "i2p",
    "key",
    "manual",
    "netcheck",
    "node",
    "onion",
    "op",
    "peer",
    "peers",
    "ping",
    "plugin",
    "relay",
    "rule",
    "script",
    "service",
    "status",
    "tor",
    "update",
    "user",
    "web",
    "why",
];

/// How an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PluginCondition {
    /// Events run.
    Running,
    /// It broke too often: events wait for some seconds.
    Paused,
    /// It breaks whatever it is given: `plugin.start` has it try again.
    Parked,
    /// `plugin.stop` stopped it: `plugin.start` has it go on.
    Stopped,
}

/// Which lines of a plugin to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PluginLogParams {
    /// As config.toml names it.
    pub instance: String,
    /// Those with higher numbers only; default 0: all that are kept.
    #[serde(default)]
    pub after: u64,
    /// If there are none, wait for one, 20 seconds at most.
    #[serde(default)]
    pub wait: bool,
}

/// What `plugin.log` returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PluginLog {
    /// What the plugin said last, the oldest first: at most 1,000 lines and 256 KiB are kept, since the
    /// node started.
    pub lines: Vec<PluginLogLine>,
}

/// A line of a plugin's log, or of its standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PluginLogLine {
    /// Rises from line to line, from 1 at the node's start.
    pub number: u64,
    /// Milliseconds since 1970.
    pub at_unix_ms: u64,
    /// `trace`, `debug`, `info`, `warn` (standard error too) or `error`.
    pub level: String,
    /// Whose event said it: `node`, or a user.
    pub principal: String,
    /// What it said; cut after 4 KiB.
    pub text: String,
}

/// What `plugin.health` returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PluginHealth {
    /// The plugin's own words.
    pub health: String,
}

/// What `plugin.dead` returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PluginDead {
    /// The last events that broke the plugin three times and were given up, the oldest first; at most
    /// 100.
    pub letters: Vec<PluginDeadLetter>,
    /// How many left the list since the node started because there were too many.
    pub dropped: u64,
}

/// An event that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PluginDeadLetter {
    /// Rises from letter to letter of an instance.
    pub number: u64,
    /// When it was given up: milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Whom it was for: `node`, or a user.
    pub principal: String,
    /// What it was: `request`, `timer`, `canceled`.
    pub kind: String,
    /// The command's or the timer's name.
    pub name: String,
    /// What broke the plugin the last time.
    pub fault: String,
    /// The beginning of its body, 4 KiB at most, in base64.
    pub body: String,
    /// What the body had before it was cut.
    pub body_bytes: u64,
}

/// An instance, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PluginParams {
    /// As config.toml names it.
    pub instance: String,
}

/// An instance that is to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PluginRemoveParams {
    /// As config.toml named it.
    pub instance: String,
    /// All that it keeps goes too; default: it stays for the next instance of that name.
    #[serde(default)]
    pub purge: bool,
}

/// What `plugin.remove` returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PluginRemoved {
    /// The instance's name.
    pub name: String,
    /// Whether all that it kept is gone.
    pub purged: bool,
}

/// A command for a plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PluginAskParams {
    /// As config.toml names it.
    pub instance: String,
    /// The user that it is for; none: the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The command's name.
    pub command: String,
    /// Its arguments by name.
    #[serde(default)]
    pub arguments: Map<String, Value>,
    /// Whether to send what the plugin tells of its progress before the answer, as notifications
    /// `progress` with the request's id, a `percent` (0 to 100, or null) and a `text`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub progress: bool,
}

/// How far a request is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PluginProgress {
    /// 0 to 100; none: the plugin does not say.
    pub percent: Option<u8>,
    /// For people; may be empty.
    pub text: String,
}

/// A command that a plugin offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PluginCommand {
    /// Its name: the name of the request.
    pub name: String,
    /// What it does, in one line.
    #[serde(default)]
    pub about: String,
    /// It changes nothing, and is answered beside all others from what is durable.
    #[serde(default)]
    pub query: bool,
    /// What is not answered at once outlives whoever asked, and the node: `op.start` begins it.
    #[serde(default)]
    pub operation: bool,
    /// Its answer is the hash of a blob that the plugin holds, as 64 hexadecimal digits: whoever asks
    /// may want its bytes (`blob.read`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub blob: bool,
    /// What it takes, in order.
    #[serde(default, rename = "argument")]
    pub arguments: Vec<PluginArgument>,
    /// How long the answer may take; 1 to 110, default 30. Of an operation: when it is canceled, 1 to
    /// 2,592,000, default never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
}

impl PluginCommand {
    /// How long whoever asks waits, if it is no operation.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.unwrap_or(COMMAND_SECONDS))
    }
}

/// One argument of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PluginArgument {
    /// The key in the JSON object that the handler gets.
    pub name: String,
    /// What it is, in one line.
    #[serde(default)]
    pub about: String,
    /// Its JSON type; default text.
    #[serde(default)]
    pub kind: PluginArgumentKind,
    /// `--name VALUE` (or `--name` for a flag) instead of a place.
    #[serde(default)]
    pub option: bool,
    /// May be left out; options may always.
    #[serde(default)]
    pub optional: bool,
    /// Takes all that follows, as an array; the last one only.
    #[serde(default)]
    pub many: bool,
    /// All that it may be; empty: anything.
    #[serde(default)]
    pub values: Vec<String>,
}

/// The JSON type of an argument.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PluginArgumentKind {
    /// A string.
    #[default]
    Text,
    /// An integer.
    Integer,
    /// A number.
    Number,
    /// `true` when it is there; an option.
    Flag,
    /// A node: a petname or an id. The plugin is given its key as 64 hexadecimal digits.
    Peer,
    /// A blob: `{"upload": 1}`, as `blob.begin` returned it. The plugin is given its hash as 64
    /// hexadecimal digits, and may hold it.
    Blob,
}
