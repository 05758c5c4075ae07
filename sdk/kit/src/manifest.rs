//! What the kit reads of `plugin.toml`. A node reads all of it: `wormholed --check`.

use std::{collections::BTreeSet, time::Duration};

use serde::Deserialize;

/// How long whoever gives a command waits that says nothing of it.
const COMMAND_SECONDS: u64 = 30;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Manifest {
    pub(crate) plugin: About,
    pub(crate) capabilities: Capabilities,
    pub(crate) limits: Limits,
    pub(crate) instance: Instance,
    pub(crate) state: State,
    pub(crate) messages: Messages,
    pub(crate) http: Http,
    #[serde(rename = "command")]
    pub(crate) commands: Vec<Command>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct About {
    pub(crate) name: String,
}

/// Those whose parts are named; a world grants them all.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Capabilities {
    pub(crate) facts: BTreeSet<String>,
    pub(crate) rules: BTreeSet<String>,
    pub(crate) presence: bool,
    pub(crate) usage: bool,
    pub(crate) users: bool,
    pub(crate) http: BTreeSet<String>,
    pub(crate) sockets: BTreeSet<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Limits {
    write_kib: usize,
    state_mib: u64,
    user_state_mib: u64,
    scratch_mib: u64,
    pub(crate) timers: usize,
    log_kib: usize,
    pub(crate) requests: usize,
    pub(crate) operations: usize,
    /// Of one event.
    pub(crate) messages: usize,
    outbox_mib: usize,
    pub(crate) channels: usize,
    pub(crate) facts: usize,
    pub(crate) keys: usize,
    pub(crate) secrets: usize,
    blob_mib: u64,
    user_blob_mib: u64,
    one_blob_mib: u64,
    pub(crate) blob_fetches: usize,
    /// Of all principals.
    pub(crate) http: usize,
    pub(crate) sockets: usize,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Instance {
    pub(crate) mode: Mode,
    pub(crate) recycle: u32,
    pub(crate) poison: Poison,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    Warm,
    Fresh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Poison {
    Skip,
    Halt,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct State {
    pub(crate) schema: u32,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Messages {
    pub(crate) protocols: BTreeSet<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Http {
    pub(crate) queries: BTreeSet<String>,
    body_kib: usize,
    timeout_seconds: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Command {
    name: String,
    #[serde(default)]
    operation: bool,
    timeout_seconds: Option<u64>,
}

impl Manifest {
    /// How long whoever gives a command waits; `None`: for ever, it is an operation.
    pub(crate) fn patience(&self, command: &str) -> Option<Duration> {
        let seconds = self.described(command);
        let seconds = seconds.and_then(|command| command.timeout_seconds);
        let most = (!self.is_operation(command)).then_some(COMMAND_SECONDS);
        seconds.or(most).map(Duration::from_secs)
    }

    /// Whether a command goes on without whoever gave it.
    pub(crate) fn is_operation(&self, command: &str) -> bool {
        self.described(command)
            .is_some_and(|command| command.operation)
    }

    fn described(&self, command: &str) -> Option<&Command> {
        self.commands.iter().find(|known| known.name == command)
    }
}

impl Http {
    pub(crate) fn body_bytes(&self) -> usize {
        self.body_kib << 10
    }

    pub(crate) fn patience_ms(&self) -> u64 {
        self.timeout_seconds * 1000
    }
}

/// The node's.
impl Default for Http {
    fn default() -> Self {
        Self {
            queries: BTreeSet::new(),
            body_kib: 1024,
            timeout_seconds: 30,
        }
    }
}

impl Limits {
    pub(crate) fn write_bytes(&self) -> usize {
        self.write_kib << 10
    }

    pub(crate) fn state_bytes(&self) -> u64 {
        self.state_mib << 20
    }

    /// Of one user.
    pub(crate) fn user_state_bytes(&self) -> u64 {
        self.user_state_mib << 20
    }

    pub(crate) fn blob_bytes(&self) -> u64 {
        self.blob_mib << 20
    }

    /// Of one user.
    pub(crate) fn user_blob_bytes(&self) -> u64 {
        self.user_blob_mib << 20
    }

    /// Of one blob.
    pub(crate) fn one_blob_bytes(&self) -> u64 {
        self.one_blob_mib << 20
    }

    pub(crate) fn scratch_bytes(&self) -> u64 {
        self.scratch_mib << 20
    }

    pub(crate) fn outbox_bytes(&self) -> usize {
        self.outbox_mib << 20
    }

    pub(crate) fn log_bytes(&self) -> usize {
        self.log_kib << 10
    }
}

/// The node's.
impl Default for Limits {
    fn default() -> Self {
        Self {
            write_kib: 1024,
            state_mib: 64,
            user_state_mib: 16,
            scratch_mib: 4,
            timers: 1000,
            log_kib: 16,
            requests: 1024,
            operations: 256,
            messages: 256,
            outbox_mib: 16,
            channels: 4096,
            facts: 4096,
            keys: 1024,
            secrets: 10_000,
            blob_mib: 256,
            user_blob_mib: 64,
            one_blob_mib: 16,
            blob_fetches: 64,
            http: 64,
            sockets: 64,
        }
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
