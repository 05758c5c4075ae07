//! What went wrong, for the asker.

use thiserror::Error;

/// What handlers and the host's functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, for a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The manifest does not ask for it, config.toml does not grant it, or a rule forbids it.
    Denied,
    /// A limit of this event or of this plugin is reached.
    Quota,
    /// The arguments break a rule.
    Invalid,
    /// There is no such thing.
    NotFound,
    /// It may work later.
    Unavailable,
    /// Its time is over.
    Expired,
    /// The plugin that was asked failed.
    Failed,
}

/// What went wrong. A handler that returns it undoes its event; the asker is told.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct Error {
    /// For a program.
    pub code: ErrorCode,
    /// For people: what to do about it. The host keeps 1,024 bytes of it.
    pub message: String,
}

impl Error {
    /// An error.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// The arguments break a rule, which `message` states.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Invalid, message)
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotFound, message)
    }

    /// The caller may not do that.
    pub fn denied(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Denied, message)
    }

    /// A bug of the plugin, or rows that it cannot read.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Failed, message)
    }
}
