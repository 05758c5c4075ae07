//! `plugin.toml`: what a plugin is, asks for, and offers. The host reads it, and the command line, for
//! who decides whether to trust a plugin.

mod limits;
mod wires;

use std::collections::BTreeSet;

use serde::Deserialize;
use thiserror::Error;

pub use self::{limits::Limits, wires::Http};
pub use crate::control::is_instance_name as is_name;
use crate::control::{PluginArgumentKind, PluginCommand};

/// The largest manifest: hundreds of commands fit.
pub const MAX_MANIFEST_BYTES: usize = 256 << 10;

/// Below what control waits for an answer.
const MAX_COMMAND_SECONDS: u64 = 110;

/// The longest that an operation may go on where its command says so: 30 days.
const MAX_OPERATION_SECONDS: u64 = 30 * 24 * 3600;

/// What commands of the command line take by themselves.
const CLIENTS_OWN: [&str; 4] = ["detach", "help", "json", "socket"];
/// And those that answer with a blob.
const OUTPUT: &str = "output";

/// Facts, and hooks, of one plugin.
const MAX_WORDS: usize = 16;
const MAX_WORD_BYTES: usize = 32;

/// A plugin's manifest. An unknown key is an error.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What it is.
    pub plugin: About,
    /// What it may do, when config.toml grants the same.
    #[serde(default)]
    pub capabilities: Capabilities,
    /// How much of everything.
    #[serde(default)]
    pub limits: Limits,
    /// How it is run.
    #[serde(default)]
    pub instance: Instance,
    /// The shape of what it keeps.
    #[serde(default)]
    pub state: State,
    /// What it says to others.
    #[serde(default)]
    pub messages: Messages,
    /// How it answers HTTP requests.
    #[serde(default)]
    pub http: Http,
    /// What `wormholes INSTANCE …` offers.
    #[serde(default, rename = "command")]
    pub commands: Vec<PluginCommand>,
}

/// What a plugin is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Its name: a letter, then letters, digits and `-`, all of them small; at most 32.
    pub name: String,
    /// Its version, for people.
    pub version: String,
    /// What it does, in one line.
    #[serde(default)]
    pub about: String,
    /// The component, beside the manifest.
    pub wasm: String,
}

/// What a plugin may do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capabilities {
    /// Keep rows.
    pub state: bool,
    /// Keep rows in memory.
    pub scratch: bool,
    /// Set timers.
    pub timers: bool,
    /// Send and receive messages.
    pub messages: bool,
    /// Publish these facts about peers, which scripts read as `p.NAME`; at most 16. A name is a small
    /// letter, then small letters, digits and `_`; at most 32.
    pub facts: BTreeSet<String>,
    /// Ask these hooks of rule scripts; at most 16, named as facts are.
    pub rules: BTreeSet<String>,
    /// Be told which peers are connected.
    pub presence: bool,
    /// Be told what rule scripts billed.
    pub usage: bool,
    /// Create keys, sign and agree with them.
    pub keys: bool,
    /// Keep rows that are sealed on disk.
    pub secret: bool,
    /// Hold blobs, fetch them from others, and give them to others.
    pub blobs: bool,
    /// Have principals for the users of the node; default: for the node alone.
    pub users: bool,
    /// Answer HTTP requests below these paths; at most 16. `/INSTANCE` stands for the instance's name.
    pub http: BTreeSet<String>,
    /// Make HTTP requests.
    pub fetch: bool,
    /// Connect to these ports of others, and listen at these; at most 16: `tcp:6667`, `tls:6697`,
    /// `tcp-listen:6667`, `tls-listen:6697`, `udp:6881`.
    pub sockets: BTreeSet<String>,
}

/// How a plugin is run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Instance {
    /// `warm` (default): memory lasts from event to event, until an error or `recycle`; `fresh`:
    /// each event begins with new memory.
    pub mode: Mode,
    /// Events after which a warm instance is replaced; default 10,000.
    pub recycle: u32,
    /// What becomes of an event that fails for the third time; default `skip`.
    pub poison: Poison,
}

/// How long memory lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// From event to event.
    Warm,
    /// For one event.
    Fresh,
}

/// What becomes of an event that fails again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Poison {
    /// It is dropped and counted, and the next one runs.
    Skip,
    /// The principal stops until an operator starts it again.
    Halt,
}

/// The shape of what a plugin keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// Raised when an older version's rows must be migrated; default 0.
    pub schema: u32,
}

/// What a plugin says to others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Messages {
    /// The protocols that it speaks: names of 1 to 64 bytes without control characters. Messages in
    /// others are neither sent nor taken.
    pub protocols: BTreeSet<String>,
}

/// A manifest that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ManifestError {
    /// It is larger than [`MAX_MANIFEST_BYTES`].
    #[error("the manifest is larger than {MAX_MANIFEST_BYTES} bytes")]
    TooLong,
    /// It is not TOML, or has a key that is not known.
    #[error("{0}")]
    Syntax(String),
    /// A value is out of range.
    #[error("{key}: {rule}")]
    Value {
        /// Which.
        key: String,
        /// What it must be.
        rule: &'static str,
    },
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// [`ManifestError`] says which key to mend.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        if text.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLong);
        }
        let manifest: Self =
            toml::from_str(text).map_err(|error| ManifestError::Syntax(error.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        name("plugin.name", &self.plugin.name)?;
        if self.plugin.wasm.is_empty() || self.plugin.wasm.contains('/') {
            return Err(value(
                "plugin.wasm",
                "must be the name of a file beside the manifest",
            ));
        }
        self.limits.check()?;
        let Capabilities { facts, rules, .. } = &self.capabilities;
        for (key, words) in [("capabilities.facts", facts), ("capabilities.rules", rules)] {
            if words.len() > MAX_WORDS || !words.iter().all(|word| is_word(word)) {
                let rule = "has at most 16 names: a small letter, then small letters, digits and `_`; \
                            at most 32";
                return Err(value(key, rule));
            }
        }
        self.check_wires()?;
        if self.instance.recycle == 0 {
            return Err(value("instance.recycle", "must be at least 1"));
        }
        let is_protocol =
            |name: &String| (1..=64).contains(&name.len()) && !name.chars().any(char::is_control);
        if !self.messages.protocols.iter().all(is_protocol) {
            let rule = "each has 1 to 64 bytes and no control character";
            return Err(value("messages.protocols", rule));
        }
        let mut names = BTreeSet::new();
        for command in &self.commands {
            let key = format!("command {}", command.name);
            name(&key, &command.name)?;
            if !names.insert(&command.name) {
                return Err(value(&key, "is there twice"));
            }
            check_command(command, &key)?;
        }
        Ok(())
    }
}

impl Capabilities {
    /// What both say.
    pub fn both(&self, other: &Self) -> Self {
        Self {
            state: self.state && other.state,
            scratch: self.scratch && other.scratch,
            timers: self.timers && other.timers,
            messages: self.messages && other.messages,
            facts: &self.facts & &other.facts,
            rules: &self.rules & &other.rules,
            presence: self.presence && other.presence,
            usage: self.usage && other.usage,
            keys: self.keys && other.keys,
            secret: self.secret && other.secret,
            blobs: self.blobs && other.blobs,
            users: self.users && other.users,
            http: &self.http & &other.http,
            fetch: self.fetch && other.fetch,
            sockets: &self.sockets & &other.sockets,
        }
    }

    /// Those that are lists of words.
    pub fn words(&self) -> [(&'static str, &BTreeSet<String>); 4] {
        [
            ("facts", &self.facts),
            ("rules", &self.rules),
            ("http", &self.http),
            ("sockets", &self.sockets),
        ]
    }

    /// Those that are there, but for those that are lists of words.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let all = [
            ("state", self.state),
            ("scratch", self.scratch),
            ("timers", self.timers),
            ("messages", self.messages),
            ("presence", self.presence),
            ("usage", self.usage),
            ("keys", self.keys),
            ("secret", self.secret),
            ("blobs", self.blobs),
            ("users", self.users),
            ("fetch", self.fetch),
        ];
        all.into_iter()
            .filter_map(|(name, is_there)| is_there.then_some(name))
    }

    /// What an import of this interface needs, and whether it is there; `None` for an interface
    /// that no capability opens.
    pub fn for_interface(&self, interface: &str) -> Option<(&'static str, bool)> {
        Some(match interface {
            "state" => ("state", self.state),
            "scratch" => ("scratch", self.scratch),
            "timers" => ("timers", self.timers),
            "messages" => ("messages", self.messages),
            "facts" => ("facts", !self.facts.is_empty()),
            "rules" => ("rules", !self.rules.is_empty()),
            "keys" => ("keys", self.keys),
            "secret" => ("secret", self.secret),
            "blobs" => ("blobs", self.blobs),
            "http" => ("http", !self.http.is_empty()),
            "fetch" => ("fetch", self.fetch),
            "sockets" => ("sockets", !self.sockets.is_empty()),
            _ => return None,
        })
    }
}

impl Default for Instance {
    fn default() -> Self {
        Self {
            mode: Mode::Warm,
            recycle: 10_000,
            poison: Poison::Skip,
        }
    }
}

fn check_command(command: &PluginCommand, key: &str) -> Result<(), ManifestError> {
    if command.operation && command.query {
        return Err(value(key, "a query changes nothing, and is no operation"));
    }
    if command.operation && command.blob {
        return Err(value(
            key,
            "the result of an operation is no blob; a command reads it",
        ));
    }
    let (most, rule) = if command.operation {
        let rule = "timeout_seconds of an operation must be 1 to 2,592,000";
        (MAX_OPERATION_SECONDS, rule)
    } else {
        (MAX_COMMAND_SECONDS, "timeout_seconds must be 1 to 110")
    };
    if command
        .timeout_seconds
        .is_some_and(|seconds| !(1..=most).contains(&seconds))
    {
        return Err(value(key, rule));
    }
    let mut names = BTreeSet::new();
    let (mut optional, mut many) = (false, false);
    for argument in &command.arguments {
        name(
            &format!("{key}, argument {}", argument.name),
            &argument.name,
        )?;
        let is_flag = argument.kind == PluginArgumentKind::Flag;
        let is_blob = argument.kind == PluginArgumentKind::Blob;
        let is_output = command.blob && argument.name == OUTPUT;
        let rule = if is_output || CLIENTS_OWN.contains(&argument.name.as_str()) {
            "has an argument with a name that the command line has itself"
        } else if !names.insert(&argument.name) {
            "has an argument twice"
        } else if is_flag && !argument.option {
            "has a flag that is no option"
        } else if is_blob && command.query {
            "is a query, which cannot keep the blob that it takes"
        } else if is_blob && !argument.values.is_empty() {
            "has a blob that is to be one of some texts"
        } else if argument.option {
            continue;
        } else if many {
            "has an argument behind one that takes all"
        } else if optional && !argument.optional {
            "has a needed argument behind one that may be left out"
        } else {
            (optional, many) = (argument.optional, argument.many);
            continue;
        };
        return Err(value(key, rule));
    }
    Ok(())
}

/// Whether scripts can write it as a field or as a function.
fn is_word(word: &str) -> bool {
    let rest = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let begins = word.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    begins && word.len() <= MAX_WORD_BYTES && word.bytes().all(rest)
}

/// # Errors
/// When it is no name.
fn name(key: &str, name: &str) -> Result<(), ManifestError> {
    if is_name(name) {
        return Ok(());
    }
    let rule = "must be a small letter, then small letters, digits and `-`; at most 32";
    Err(value(key, rule))
}

fn value(key: &str, rule: &'static str) -> ManifestError {
    ManifestError::Value {
        key: key.to_owned(),
        rule,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECHO: &str = "[plugin]\nname = 'echo'\nversion = '1'\nwasm = 'echo.wasm'\n";

    fn error(more: &str) -> String {
        let parsed = Manifest::parse(&format!("{ECHO}{more}"));
        parsed.map(drop).unwrap_err().to_string()
    }

    #[test]
    fn a_manifest_needs_only_a_name_a_version_and_a_component() {
        let manifest = Manifest::parse(ECHO).unwrap();
        assert_eq!(manifest.limits, Limits::default());
        assert_eq!(manifest.instance.mode, Mode::Warm);
        assert!(!manifest.capabilities.state);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(error("colour = 1").contains("unknown field `colour`"));
        assert!(error("[limits]\nmemory_mib = 0").starts_with("limits.memory_mib: "));
        assert!(error("[instance]\nrecycle = 0").starts_with("instance.recycle: "));
        assert!(error("[[command]]\nname = 'Say'").starts_with("command Say: "));
        let facts = "[capabilities]\nfacts = ['credit', 'Trust']";
        assert!(error(facts).starts_with("capabilities.facts: "));
        for path in ["blog", "/blog/", "/a//b", "/a/../b", "/~alice", "/a?b"] {
            let http = format!("[capabilities]\nhttp = ['{path}']");
            assert!(error(&http).starts_with("capabilities.http: "), "{path}");
        }
        for socket in ["tcp", "tcp:0", "tcp:070", "sctp:1", "tcp:65536"] {
            let sockets = format!("[capabilities]\nsockets = ['{socket}']");
            assert!(
                error(&sockets).starts_with("capabilities.sockets: "),
                "{socket}"
            );
        }
        assert!(error("[http]\nbody_kib = 1025").starts_with("http.body_kib: "));
        let twice = "[[command]]\nname = 'say'\n[[command]]\nname = 'say'";
        assert_eq!(error(twice), "command say: is there twice");
        let order = "[[command]]\nname = 'say'\n[[command.argument]]\nname = 'a'\noptional = true\n\
                     [[command.argument]]\nname = 'b'";
        assert!(error(order).contains("needed argument behind"));
        let command = |more: &str| error(&format!("[[command]]\nname = 'say'\n{more}"));
        assert!(command("query = true\noperation = true").contains("is no operation"));
        assert!(command("timeout_seconds = 111").ends_with("must be 1 to 110"));
        assert!(command("operation = true\ntimeout_seconds = 0").contains("of an operation"));
        let argument =
            |more: &str| command(&format!("{more}\n[[command.argument]]\nname = 'output'"));
        assert!(argument("blob = true").contains("the command line has itself"));
        let blob = "query = true\n[[command.argument]]\nname = 'a'\nkind = 'blob'";
        assert!(command(blob).contains("cannot keep the blob"));
        assert!(command("operation = true\nblob = true").contains("is no blob"));
        assert!(error("[limits]\none_blob_mib = 1025").starts_with("limits.one_blob_mib: "));
        let silent = error("[limits]\nlog_kib_per_second = 0");
        assert!(silent.starts_with("limits.log_kib_per_second: "));
        assert!(Manifest::parse(&" ".repeat(MAX_MANIFEST_BYTES + 1)).is_err());
    }
}
