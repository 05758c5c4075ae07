//! The roles: what a node does for others.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::wire::WireError;

/// What a node does for others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Roles {
    /// Carries ciphertext between two peers.
    pub relay: bool,
    /// Peels onion layers.
    pub hop: bool,
    /// Dials targets.
    pub exit: bool,
}

impl Roles {
    const RELAY: u8 = 1;
    const HOP: u8 = 2;
    const EXIT: u8 = 4;

    /// The roles as a record carries them.
    pub(crate) fn bits(self) -> u8 {
        let bit = |on, bit| if on { bit } else { 0 };
        bit(self.relay, Self::RELAY) | bit(self.hop, Self::HOP) | bit(self.exit, Self::EXIT)
    }

    /// Reads what [`Roles::bits`] wrote; other bits are no role.
    pub(crate) fn from_bits(bits: u8) -> Result<Self, WireError> {
        if bits & !(Self::RELAY | Self::HOP | Self::EXIT) != 0 {
            return Err(WireError::Invalid("roles"));
        }
        Ok(Self {
            relay: bits & Self::RELAY != 0,
            hop: bits & Self::HOP != 0,
            exit: bits & Self::EXIT != 0,
        })
    }
}
