//! What is told of other nodes.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{carrier::CarrierKind, id::NodeId, roles::Roles};

/// What `peers` returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PeerList {
    /// In order of name.
    pub peers: Vec<PeerInfo>,
}

/// A node that this one knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PeerInfo {
    /// Petname, else the beginning of its id.
    pub name: String,
    /// Who it is.
    #[schemars(with = "String")]
    pub id: NodeId,
    /// How it is known.
    pub source: PeerSource,
    /// 0 stranger, 1 friend of a friend, 2 friend, 3 own device.
    pub trust: u8,
    /// A connection stands.
    pub online: bool,
    /// What carries the standing connection.
    pub carrier: Option<CarrierKind>,
    /// Which way a flow to it takes, if its plan lets it.
    pub path: PeerPath,
    /// Why no direct path came to be when one was to be made through NATs; none: it did, or none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub punch: Option<FailedPunch>,
    /// Round trip over the standing connection.
    pub rtt_ms: Option<f64>,
    /// Lost packets, 0 to 1, over the standing connection; TCP hides them.
    pub loss: f64,
    /// How full the fullest of its roles is, 0 to 1, as it said at most five minutes ago.
    pub load: f64,
    /// Where it may be dialled.
    pub addresses: Vec<SocketAddr>,
    /// Where it may be dialled through Tor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub onions: Vec<String>,
    /// Names of relays that it may be reached through.
    pub relays: Vec<String>,
    /// What its record offers.
    pub roles: Roles,
    /// The family in its record.
    pub family: Option<String>,
}

/// Which way leads to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PeerPath {
    /// A connection stands.
    Direct,
    /// One stands, and Tor carries it.
    Tor,
    /// None stands; it has relays.
    Relay,
    /// None stands, and no relay is known.
    None,
}

/// The last direct path that did not come to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FailedPunch {
    /// The word for why: `no-candidates`, `no-circuit`, `refused`, `not-dialable`, `port-changes`,
    /// `no-answer`.
    pub reason: String,
    /// Why, in words for people.
    pub why: String,
    /// How long ago.
    pub ago_seconds: u64,
    /// How long flows stay with relays before the next try; 0: the next flow tries.
    pub retry_seconds: u64,
}

/// How a node is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PeerSource {
    /// It stands in config.toml.
    Config,
    /// `peer.add`.
    Added,
    /// From another node's record set, or it called.
    Learned,
}

/// What `peer.invite` returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InviteReport {
    /// For the other node's `peer.add`.
    pub invite: String,
    /// What stands in the way of using it.
    pub hints: Vec<String>,
}
