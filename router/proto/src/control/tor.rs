//! What is asked and told of Tor.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a node stands with Tor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TorState {
    /// This daemon was built without it.
    Absent,
    /// config.toml does not have it on.
    Disabled,
    /// A command stopped it.
    Stopped,
    /// It is on its way into the network; flows wait for it.
    Starting,
    /// Flows may go.
    Ready,
    /// It cannot be.
    Failed,
}

/// Tor in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TorSummary {
    /// How it stands.
    pub state: TorState,
    /// How far it is on its way into the network.
    pub progress_percent: u8,
}

/// What `tor.status`, `tor.start`, `tor.stop` and `tor.new_identity` return.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TorReport {
    /// How it stands.
    pub state: TorState,
    /// How far it is on its way into the network.
    pub progress_percent: u8,
    /// Why it does not get on, where that is known.
    pub blocked: Option<String>,
    /// What was wrong last.
    pub error: Option<String>,
    /// Counts identities from 1: streams of different ones share no circuit.
    pub identity: u64,
    /// Streams through Tor that are open, of others to onion services here too.
    pub streams: u64,
    /// Bridges that it goes by; 0 is without.
    pub bridges: u64,
    /// It is a network of one's own.
    pub private_network: bool,
    /// The onion services of this node, its own address last.
    pub services: Vec<TorService>,
}

/// An onion service of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TorService {
    /// Of the service; `peers` is the address at which this node's peers connect.
    pub name: String,
    /// With `.onion`; none before it was ever up, and for observers.
    pub address: Option<String>,
    /// The port that others call.
    pub port: u16,
    /// Whether others find it.
    pub state: TorServiceState,
    /// How many find it; 0 is whoever knows its address.
    pub clients: usize,
    /// What is wrong with it; it may be reachable all the same.
    pub problem: Option<String>,
}

/// Whether others find an onion service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TorServiceState {
    /// Not yet.
    Publishing,
    /// They do.
    Reachable,
    /// They do not; it is tried again and again.
    Unreachable,
    /// Tor is not ready here.
    Stopped,
}

/// An onion service, by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TorServiceParams {
    /// As `tor.status` shows it.
    pub service: String,
}

/// What `tor.circuits` returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TorCircuits {
    /// Those that carry streams of this node, and some that did. The network's own and those to
    /// onion services here are not among them.
    pub circuits: Vec<TorCircuit>,
}

/// A circuit of Tor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TorCircuit {
    /// Unique in this process.
    pub id: String,
    /// Streams on it that are open.
    pub streams: usize,
    /// Streams that it ever carried.
    pub opened: u64,
    /// Its relays, the nearest first.
    pub relays: Vec<String>,
}

impl TorState {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Disabled => "disabled",
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Failed => "failed",
        }
    }
}

impl TorServiceState {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Publishing => "publishing",
            Self::Reachable => "reachable",
            Self::Unreachable => "unreachable",
            Self::Stopped => "stopped",
        }
    }
}
