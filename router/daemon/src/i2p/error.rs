//! Why I2P does not do what was asked.

use std::time::Duration;

use thiserror::Error;
use wormholes_proto::{
    Reason,
    sam::{SamError, SamRefusal},
};

use crate::dial::DialError;

/// A session or a stream that does not come to be.
#[derive(Debug, Clone, Error)]
pub enum I2pError {
    /// Nobody is where the config says.
    #[error("not reached: {0}; does it run, with its SAM where `sam` in [i2p] says?")]
    NotReached(DialError),
    /// It ended the connection.
    #[error("it hung up")]
    HungUp,
    /// It says nothing.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// It refused, or does not speak SAM.
    #[error(transparent)]
    Sam(#[from] SamError),
    /// There is room for no more sessions.
    #[error("all {0} sessions are in use; `sessions` in [i2p] allows more")]
    Full(usize),
    /// A kept destination has one set of tunnels.
    #[error(
        "the kept destination {0} is in use with other tunnels: give its length and quantity alike \
         in all plans, and in none where a service of that name is published"
    )]
    OtherTunnels(String),
    /// The file of a kept destination's key.
    #[error("the key of a kept destination: {0}")]
    Key(String),
    /// What was published is not found, though the session stands.
    #[error("it did not make the destination known to others; it is published anew")]
    NotKnown,
    /// The node stops.
    #[error("the router of this node stops")]
    Stopping,
}

impl I2pError {
    /// What the router says of the target; none when it was not asked, or speaks of itself.
    pub fn word(&self) -> Option<Reason> {
        let Self::Sam(SamError::Refused(refusal)) = self else {
            return None;
        };
        match refusal {
            SamRefusal::CannotReachPeer => Some(Reason::Unreachable),
            SamRefusal::InvalidKey => Some(Reason::NameNotFound),
            SamRefusal::TimedOut => Some(Reason::TimedOut),
            SamRefusal::AlreadyAccepting
            | SamRefusal::DuplicateDestination
            | SamRefusal::DuplicateId
            | SamRefusal::InvalidId
            | SamRefusal::Other(_) => None,
        }
    }
}
