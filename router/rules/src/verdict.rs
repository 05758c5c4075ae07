//! What `accept`, `relay` and `exit` return.

use std::time::Duration;

use serde::Serialize;

/// Yes with limits, or no.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Allowed, within these limits; config.toml's own still hold.
    Allow(Allowance),
    /// Refused; the reason is shown to the operator, never to the asker.
    Deny(String),
}

/// Limits of an allowance. `None` is: no limit beyond config.toml.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Allowance {
    /// Bytes a second.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Ends after so many bytes.
    pub max_bytes: Option<u64>,
    /// Ends after this time.
    pub max_time: Option<Duration>,
    /// Ends when nothing moved for so long.
    pub idle: Option<Duration>,
    /// What the peer may learn of this node's addresses (`accept` only).
    pub address: Option<AddressDisclosure>,
}

/// What a peer may learn of this node's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressDisclosure {
    /// All of them.
    Direct,
    /// The relays only.
    RelayOnly,
    /// None.
    None,
}
