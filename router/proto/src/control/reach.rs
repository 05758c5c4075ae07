//! What `ping` and `netcheck` return.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::NodeId;

/// What `ping` returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PingReport {
    /// The peer's name.
    pub name: String,
    /// Who it is.
    #[schemars(with = "String")]
    pub id: NodeId,
    /// From asking to answer over the connection.
    pub rtt_ms: f64,
    /// The other end of the connection; none when it was reached through a relay, or through Tor.
    pub address: Option<SocketAddr>,
    /// The connection goes through Tor.
    #[serde(default)]
    pub tor: bool,
    /// The onion address that it leads to; none when the peer called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onion: Option<String>,
    /// The name of the relay between; none when it was reached straight.
    pub relay: Option<String>,
    /// The connection was made for this; how long that took.
    pub connect_ms: Option<f64>,
}

/// What `netcheck` returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetReport {
    /// All that was looked at.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// `listen`, `buffers`, `peer`, `relay`, `tor`, `i2p`.
    pub kind: String,
    /// Which.
    pub name: String,
    /// It is as it should be.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What may be done about it.
    pub hint: Option<String>,
}
