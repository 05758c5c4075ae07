//! What methods return.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{call::Access, event::EventKind, i2p::I2pSummary, tor::TorSummary};
use crate::id::NodeId;

/// The version of this protocol. Additions keep it; what would mislead an older client does not.
pub const PROTOCOL_VERSION: u32 = 1;

/// What `status` returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// [`PROTOCOL_VERSION`] of the daemon.
    pub protocol: u32,
    /// The name in its config; may be empty.
    pub name: String,
    /// Who it is.
    #[schemars(with = "String")]
    pub node_id: NodeId,
    /// The daemon's process.
    pub pid: u32,
    /// Since its start.
    pub uptime_seconds: u64,
    /// It stops: it takes no more flows, and waits until those that live have ended.
    pub draining: bool,
    /// Where peers reach it.
    pub listen: Vec<SocketAddr>,
    /// Where programs reach it.
    pub entrances: Vec<EntranceInfo>,
    /// Where `/metrics` is served; none when it is not.
    pub metrics: Option<SocketAddr>,
    /// Where plugins answer HTTP requests; none when they do not.
    pub http: Option<SocketAddr>,
    /// What it offers to peers.
    pub services: Vec<ServiceInfo>,
    /// What it does for others.
    pub roles: RolesSummary,
    /// Nodes that it knows.
    pub peers_known: usize,
    /// Nodes that it is connected with.
    pub peers_connected: usize,
    /// Relays that it asked to make it reachable.
    pub relays: Vec<RelayRegistration>,
    /// Its flows.
    pub flows: FlowTotals,
    /// Its scripts.
    pub scripts: ScriptReport,
    /// How it stands with Tor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tor: Option<TorSummary>,
    /// Its sessions at an I2P router; none where it has no such router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub i2p: Option<I2pSummary>,
    /// What the caller may do here.
    pub access: Access,
}

/// An entrance that is open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EntranceInfo {
    /// `socks5`, `http` or `tcp`.
    pub kind: String,
    /// Where it listens; the port is the real one.
    pub listen: SocketAddr,
    /// Its label.
    pub label: Option<String>,
}

/// A service that peers may use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceInfo {
    /// Its name.
    pub name: String,
    /// The least trust that may use it.
    pub min_trust: u8,
}

/// The roles in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RolesSummary {
    /// Carries ciphertext.
    pub relay: RoleSummary,
    /// Peels onion layers.
    pub hop: RoleSummary,
    /// Dials targets.
    pub exit: RoleSummary,
}

/// One role in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RoleSummary {
    /// On in the config.
    pub enabled: bool,
    /// Circuits or streams that it carries.
    pub active: usize,
}

/// A relay that shall make this node reachable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RelayRegistration {
    /// Its petname.
    pub name: String,
    /// It serves this node's record.
    pub registered: bool,
    /// Why not.
    pub error: Option<String>,
}

/// Flows counted since the start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlowTotals {
    /// Open.
    pub open: u64,
    /// Opened, by kind of tunnel.
    pub opened: BTreeMap<String, u64>,
    /// Blocked by a rule or the default.
    pub blocked: u64,
    /// Failed to open, or refused at a limit.
    pub failed: u64,
    /// From programs to targets.
    pub bytes_sent: u64,
    /// From targets to programs.
    pub bytes_received: u64,
}

/// What `flows` returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlowList {
    /// How many are open.
    pub open: u64,
    /// Newest first.
    pub flows: Vec<FlowInfo>,
}

/// An open flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlowInfo {
    /// Its number.
    pub flow: u64,
    /// The kind of entrance.
    pub entrance: String,
    /// `tcp` or `udp`.
    pub network: String,
    /// As asked for; none for observers.
    pub target: Option<String>,
    /// The kind of tunnel; none while it opens.
    pub tunnel: Option<String>,
    /// The nodes that it passes, nearest first; empty for observers.
    pub path: Vec<PathNode>,
    /// What decided; none is the default, or not yet.
    pub rule: Option<RuleName>,
    /// The label of the step taken; none for observers.
    pub label: Option<String>,
    /// Since it was asked for.
    pub age_ms: u64,
    /// From the program to the target.
    pub bytes_sent: u64,
    /// From the target to the program.
    pub bytes_received: u64,
}

/// A node of a path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PathNode {
    /// Petname, else the beginning of its id.
    pub name: String,
    /// Who it is.
    #[schemars(with = "String")]
    pub id: NodeId,
}

/// A line of a script.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleName {
    /// The script's name.
    pub script: String,
    /// The line, from 1.
    pub line: u32,
}

/// What `why` returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The flow's number.
    pub flow: u64,
    /// When it was asked for, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Where it stands.
    pub state: FlowState,
    /// The kind of entrance.
    pub entrance: String,
    /// `tcp` or `udp`.
    pub network: String,
    /// As asked for.
    pub target: String,
    /// What decided last; none is the default.
    pub rule: Option<RuleName>,
    /// What the scripts said, in order: one answer for each look-up and attempt. Empty when
    /// decisions are not recorded.
    pub decisions: Vec<DecisionInfo>,
    /// Tunnels tried, in order.
    pub steps: Vec<StepTried>,
    /// The kind of tunnel taken.
    pub tunnel: Option<String>,
    /// The nodes that it passes, nearest first.
    pub path: Vec<PathNode>,
    /// From the request to the open tunnel.
    pub open_ms: Option<u64>,
    /// From the program to the target.
    pub bytes_sent: u64,
    /// From the target to the program.
    pub bytes_received: u64,
    /// Why it ended or was refused.
    pub end: Option<String>,
}

/// One answer of the scripts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DecisionInfo {
    /// 0, then 1 and 2 when all steps of an open plan failed.
    pub attempt: u8,
    /// The generation of scripts that decided.
    pub generation: u64,
    /// What decided; none is the default.
    pub rule: Option<RuleName>,
    /// The plan in words.
    pub plan: String,
    /// How long the scripts took.
    pub took_us: u64,
    /// What the scripts read, in order.
    pub because: Vec<Because>,
    /// What the scripts tagged the flow with.
    pub tags: Vec<Because>,
    /// What the scripts logged.
    pub log: Vec<String>,
    /// A script failed: the flow was blocked.
    pub error: Option<String>,
}

/// Where a flow stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FlowState {
    /// A tunnel is being opened.
    #[default]
    Opening,
    /// Bytes may pass.
    Open,
    /// It was open.
    Ended,
    /// It never opened.
    Refused,
}

/// A name and what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Because {
    /// What was read.
    pub name: String,
    /// What it held.
    pub value: String,
}

/// A tunnel that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepTried {
    /// The tunnel in words.
    pub tunnel: String,
    /// Why it failed; none opened.
    pub error: Option<String>,
    /// The node that could not be reached, refused, or broke off; none when it was none of them.
    pub failed_at: Option<PathNode>,
    /// How long it took.
    pub took_ms: u64,
}

/// What `script.decisions` returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DecisionList {
    /// The newest first.
    pub decisions: Vec<DecisionRecord>,
    /// Older ones that fit are kept too: ask for those before the last of these.
    pub more: bool,
}

/// A decision with all that its scripts read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DecisionRecord {
    /// Counts decisions from 1, of all hooks.
    pub number: u64,
    /// When it was made.
    pub at_unix_ms: u64,
    /// The rules that were in force.
    pub generation: u64,
    /// Question, reads and answer, as the rules of this version write them.
    pub recording: Value,
}

/// What `script.*` return.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScriptReport {
    /// Counts up with each load.
    pub generation: u64,
    /// In the order that they are asked.
    pub scripts: Vec<ScriptFile>,
    /// `script.load` gave them: the next one without scripts, a SIGHUP or a start takes those of
    /// config.toml.
    pub by_command: bool,
    /// What happens to flows that none answered.
    pub default: String,
    /// Runs of scripts that ended in an error since the start.
    pub errors: u64,
    /// The last of them, newest first; empty for observers, since an error may name a target.
    pub last_errors: Vec<ScriptErrorInfo>,
    /// What is odd in the scripts and no error, with its place.
    #[serde(default)]
    pub warnings: Vec<ScriptDiagnostic>,
    /// `script.rollback` has somewhere to go.
    pub can_roll_back: bool,
    /// Keys of config.toml (`limits.flows`; `[[entrance]]` for a list) that the last reload found
    /// changed since the start and that wait for a restart.
    pub restart_for: Vec<String>,
}

/// A script in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScriptFile {
    /// Its name in rules and errors.
    pub name: String,
    /// Where it was read; none for observers.
    pub path: Option<PathBuf>,
}

/// An error of a script while it ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScriptErrorInfo {
    /// When it last happened, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The hook that was asked: `route`, `accept`, …
    pub hook: String,
    /// How often it happened since the start; an error that was not seen for long is forgotten.
    pub count: u64,
    /// Where, and what.
    #[serde(flatten)]
    pub fault: ScriptDiagnostic,
}

/// Something wrong with a script. `script.load` that fails holds a list of them in `data`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScriptDiagnostic {
    /// The script's name.
    pub script: String,
    /// From 1; 0: the script as a whole.
    pub line: u32,
    /// From 1; 0: the line as a whole.
    pub column: u32,
    /// What is wrong.
    pub message: String,
}

/// What `relay`, `hop` and `exit` return.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RoleReport {
    /// `relay`, `hop` or `exit`.
    pub role: String,
    /// On in the config.
    pub enabled: bool,
    /// Circuits or streams that it carries.
    pub active: usize,
    /// Carried since the start.
    pub total: u64,
    /// Bytes carried since the start, both directions together.
    pub bytes: u64,
    /// Refused since the start, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Its limits.
    pub limits: RoleLimits,
    /// Relay: names of the nodes that are reachable through it; none for observers.
    pub registered: Option<Vec<String>>,
    /// Exit: what the config allows to dial.
    pub allow: Vec<String>,
}

/// Limits of a role; 0 is no limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RoleLimits {
    /// At once, in all.
    pub max_circuits: usize,
    /// At once, per peer.
    pub max_circuits_per_peer: usize,
    /// Per peer.
    pub bytes_per_second_per_peer: u64,
    /// Of one circuit.
    pub max_bytes_per_circuit: u64,
    /// A circuit on which nothing moves ends after this.
    pub idle_seconds: u64,
}

/// What `key` returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KeyInfo {
    /// The Ed25519 key that is the node's name.
    #[schemars(with = "String")]
    pub node_id: NodeId,
    /// The X25519 key for relayed ends, in hexadecimal.
    pub noise_key: String,
    /// Keys for onion layers; empty without the hop role.
    pub onion_keys: Vec<OnionKeyInfo>,
    /// Where the secret is kept; none for observers.
    pub identity_file: Option<PathBuf>,
}

/// A key for onion layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OnionKeyInfo {
    /// In hexadecimal.
    pub key_id: String,
    /// The cipher.
    pub suite: String,
    /// Seconds since 1970.
    pub expires_unix_seconds: u64,
}

/// What `config` returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigReport {
    /// The config in force as TOML; passwords read `…`.
    pub toml: String,
    /// Where it was read; none for a node without a file.
    pub file: Option<PathBuf>,
    /// As in [`ScriptReport`]: keys whose values in the file are others, and wait for a restart.
    pub restart_for: Vec<String>,
}

/// What `bugreport` returns. Its texts are words of the program; `[hidden]` stands for all others: no
/// name, id, target, address, path, key or password is in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BugReport {
    /// Of wormholed.
    pub version: String,
    /// What the process holds.
    pub process: ProcessInfo,
    /// The config in force, by section.
    pub config: Value,
    /// As [`Status`].
    pub status: Value,
    /// As [`PeerList`], of at most 200 nodes.
    pub peers: Value,
    /// As [`RoleReport`]: relay, hop, exit; and what `tor.status` and `i2p.status` return: tor, i2p.
    pub roles: Value,
    /// As Prometheus reads them.
    pub metrics: String,
    /// The last lines of the log of level info and above, the oldest first.
    pub log: Vec<String>,
}

/// What the daemon's process holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessInfo {
    /// Resident memory.
    pub resident_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Open file descriptors.
    pub open_files: u64,
    /// How many may be open.
    pub max_open_files: u64,
}

/// What `events.subscribe` and `events.unsubscribe` return.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Subscribed {
    /// The kinds that will be sent.
    pub kinds: Vec<EventKind>,
}

impl fmt::Display for FlowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening => "opening",
            Self::Open => "open",
            Self::Ended => "ended",
            Self::Refused => "refused",
        })
    }
}

/// As compilers print it: `default.rhai:12:5: message`.
impl fmt::Display for ScriptDiagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.script)?;
        match (self.line, self.column) {
            (0, _) => {}
            (line, 0) => write!(f, ":{line}")?,
            (line, column) => write!(f, ":{line}:{column}")?,
        }
        write!(f, ": {}", self.message)
    }
}
