//! What `i2p.status` returns, and the short of it in `status`.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What `i2p.status` returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct I2pReport {
    /// The router that the config names; none: the node has no I2P.
    pub router: Option<SocketAddr>,
    /// Why the router cannot be used; none: it answers.
    pub error: Option<String>,
    /// Services that are to be published, in the order of the config.
    pub services: Vec<I2pServiceInfo>,
    /// Sessions that stand or are being made.
    pub sessions: Vec<I2pSessionInfo>,
    /// How many there may be at once.
    pub max_sessions: usize,
}

/// A service that is to be published.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct I2pServiceInfo {
    /// Its name.
    pub name: String,
    /// `….b32.i2p`, once it is published; none for observers.
    pub address: Option<String>,
    /// Why it is not published.
    pub error: Option<String>,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct I2pSessionInfo {
    /// `kept` by a name, `flows` of one isolation key, or a `spare`.
    pub used_by: String,
    /// The name of a kept destination.
    pub kept: Option<String>,
    /// It stands; else it is being made.
    pub ready: bool,
    /// `….b32.i2p`; none for observers.
    pub address: Option<String>,
    /// How many use it: streams, and a service that is published by it.
    pub users: usize,
    /// Hops of its tunnels.
    pub length: Option<u8>,
    /// Its tunnels of each direction.
    pub quantity: Option<u8>,
    /// Since somebody used it last.
    pub idle_seconds: u64,
}

/// The sessions in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct I2pSummary {
    /// Those that stand.
    pub ready: usize,
    /// Those that are being made.
    pub making: usize,
    /// How many use them.
    pub users: usize,
}
