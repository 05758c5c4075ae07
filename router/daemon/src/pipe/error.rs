//! How a direction of a pipe breaks.

use std::io::{self, ErrorKind};

use thiserror::Error;

/// A direction that broke.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PipeError {
    /// The other end broke it off.
    #[error("reset by the other end")]
    Reset,
    /// It ended where more was due.
    #[error("cut off")]
    Cut,
    /// What came breaks its format or does not verify.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// What carries it broke.
    #[error("broken: {0}")]
    Broken(String),
    /// As many bytes as this node's limit allows have moved.
    #[error("byte limit reached")]
    Limit,
}

impl PipeError {
    /// Whether the other end broke the protocol, rather than just off.
    pub(crate) fn is_breach(&self) -> bool {
        match self {
            Self::Cut | Self::Malformed(_) => true,
            Self::Reset | Self::Broken(_) | Self::Limit => false,
        }
    }
}

/// What a socket says of it.
pub(crate) fn broken(error: &io::Error) -> PipeError {
    let kind = error.kind();
    if kind == ErrorKind::ConnectionReset || kind == ErrorKind::BrokenPipe {
        PipeError::Reset
    } else {
        PipeError::Broken(kind.to_string())
    }
}
