//! What the kit reads of `plugin.toml`. A node reads all of it: `wormholed --check`.

use std::{collections::BTreeSet, time::Duration};

use serde::Deserialize;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Manifest {
    pub(crate) plugin: About,
    pub(crate) capabilities: Capabilities,
    pub(crate) limits: Limits,
    pub(crate) instance: Instance,
    pub(crate) state: State,
    pub(crate) messages: Messages,
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
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Limits {
    write_kib: usize,
    state_mib: u64,
    scratch_mib: u64,
    pub(crate) timers: usize,
    log_kib: usize,
    pub(crate) requests: usize,
    /// Of one event.
    pub(crate) messages: usize,
    outbox_mib: usize,
    pub(crate) channels: usize,
    pub(crate) facts: usize,
    pub(crate) keys: usize,
    pub(crate) secrets: usize,
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
pub(crate) struct Command {
    name: String,
    timeout_seconds: Option<u64>,
}

impl Manifest {
    /// How long whoever gives a command waits.
    pub(crate) fn patience(&self, command: &str) -> Duration {
        let mut commands = self.commands.iter();
        let described = commands.find(|known| known.name == command);
        let seconds = described.and_then(|command| command.timeout_seconds);
        Duration::from_secs(seconds.unwrap_or(30))
    }
}

impl Limits {
    pub(crate) fn write_bytes(&self) -> usize {
        self.write_kib << 10
    }

    pub(crate) fn state_bytes(&self) -> u64 {
        self.state_mib << 20
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
            scratch_mib: 4,
            timers: 1000,
            log_kib: 16,
            requests: 1024,
            messages: 256,
            outbox_mib: 16,
            channels: 4096,
            facts: 4096,
            keys: 1024,
            secrets: 10_000,
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
