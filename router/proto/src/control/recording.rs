//! Recordings of plugins, as control tells of them; and replays, as `wormholed` prints them for
//! `wormholes`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What to do with the recording of a plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PluginRecordParams {
    /// As config.toml names it.
    pub instance: String,
    /// None: nothing is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<PluginRecordAction>,
    /// With `on`: the most that is kept, in MiB, 1 to 1,024; default 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mib: Option<u64>,
}

/// What to do with the recording of a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PluginRecordAction {
    /// Begin, in place of what was recorded before; it goes on when the node starts anew.
    On,
    /// Record no more; what was recorded stays.
    Off,
    /// Record no more, and delete what was recorded.
    Forget,
}

/// What `plugin.record` returns: how the recording is by then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PluginRecording {
    /// As config.toml names it.
    pub instance: String,
    /// Whether events are recorded.
    pub on: bool,
    /// Events since the node started or it was switched on, those that were forgotten among them.
    pub events: u64,
    /// What is kept.
    pub bytes: u64,
    /// The most that is kept: beyond it the oldest events are forgotten.
    pub max_bytes: u64,
    /// How often a principal, or an event, was left out: it has more than a quarter of that, or to do
    /// with blobs, HTTP or connections.
    pub left_out: u64,
    /// Why it ended by itself.
    pub why: Option<String>,
}

/// Which piece of a recording to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PluginRecordingParams {
    /// As config.toml names it.
    pub instance: String,
    /// Which saved recording, as the first piece says; none: all that is recorded by now is saved, in
    /// the place of what was saved before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<String>,
    /// Where the piece begins.
    #[serde(default)]
    pub offset: u64,
}

/// What `plugin.recording` returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PluginRecordingPiece {
    /// Which saved recording it is of.
    pub saved: String,
    /// What all of it has.
    pub bytes: u64,
    /// At most 1 MiB of it, in base64.
    pub data: String,
}

/// How far to move the time of plugins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PluginAdvanceParams {
    /// As config.toml names it.
    pub instance: String,
    /// Milliseconds; a year at most.
    #[serde(default)]
    pub ms: u64,
}

/// What `plugin.advance` returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PluginAdvanced {
    /// By how much the time was moved, in milliseconds.
    pub ms: u64,
}

/// A line that `wormholed` prints of a replay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PluginReplayLine {
    /// An event ran again.
    Event(PluginReplayed),
    /// All did: the last line.
    Replay(PluginReplay),
}

/// An event that ran again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginReplayed {
    /// From 1 on, in the order of the recording.
    pub number: u64,
    /// Whose it was: `node`, or a user.
    pub principal: String,
    /// Its id, of this principal.
    pub event: u64,
    /// `request`, `timer`, `message`, …
    pub kind: String,
    /// The command's, the timer's or the protocol's name.
    pub name: String,
    /// Milliseconds since 1970.
    pub at_unix_ms: u64,
    /// How often it was tried before.
    pub attempt: u32,
    /// What its handler took then, in microseconds.
    pub took_then_us: u64,
    /// What it took now.
    pub took_us: u64,
    /// How it went.
    pub verdict: PluginVerdict,
    /// What was different first, or why nobody can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// How an event went again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PluginVerdict {
    /// It did the same.
    Agrees,
    /// It did something else.
    Differs,
    /// It did something else, after it was given what no recording holds.
    Unknown,
}

/// What came of a replay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginReplay {
    /// As config.toml named it.
    pub instance: String,
    /// Events.
    pub events: u64,
    /// Those that did the same.
    pub agree: u64,
    /// Those that did something else.
    pub differ: u64,
    /// Those of which nobody can tell.
    pub unknown: u64,
    /// What all handlers took then, in microseconds.
    pub took_then_us: u64,
    /// What they took now.
    pub took_us: u64,
}
