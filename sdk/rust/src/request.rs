//! Requests: each is answered once.

use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::{Address, Error, Identity, Result};

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// An operator of this node, by the command line.
    Operator,
    /// One of its users.
    User(Arc<str>),
    /// A plugin, of this node or of another one, by [`Letter::ask`](crate::Letter::ask).
    Plugin {
        /// Who.
        from: Address,
        /// As whom this principal was asked.
        own: Identity,
    },
}

/// Somebody waits for an answer.
#[derive(Debug, Clone)]
pub struct Request {
    /// For [`Context::finish`](crate::Context::finish); unlike all others of this principal.
    pub id: u64,
    /// Who asks.
    pub caller: Caller,
    /// The command, or the protocol of a plugin that asks.
    pub name: String,
    /// From the command line: a JSON object of its arguments.
    pub body: Vec<u8>,
    /// Canceled then: milliseconds since 1970; `None`: never.
    pub deadline_ms: Option<u64>,
}

/// What a handler returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The answer. To the command line: JSON, which is shown.
    Done(Vec<u8>),
    /// [`Context::finish`](crate::Context::finish) will answer, in this event or a later one. Of a
    /// command that the manifest says `operation = true` of, also after the node started anew: what the
    /// handler keeps for it belongs into rows on disk.
    Later,
}

impl Request {
    /// All arguments, as a type that names them.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorCode::Invalid) says which one is missing or of another type.
    pub fn arguments<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| Error::invalid(error.to_string()))
    }

    /// One argument; an option that is missing is `None` where `T` is an `Option`.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorCode::Invalid): it is missing, or of another type.
    pub fn argument<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let mut arguments: Map<String, Value> = self.arguments()?;
        let value = arguments.remove(name).unwrap_or_default();
        serde_json::from_value(value)
            .map_err(|error| Error::invalid(format!("argument `{name}`: {error}")))
    }
}

impl Reply {
    /// An answer in JSON.
    ///
    /// # Errors
    /// [`Failed`](crate::ErrorCode::Failed): JSON cannot say it.
    pub fn done<T: Serialize + ?Sized>(answer: &T) -> Result<Self> {
        json(answer).map(Self::Done)
    }
}

/// An answer to a query, or to [`Context::finish`](crate::Context::finish), in JSON.
///
/// # Errors
/// [`Failed`](crate::ErrorCode::Failed): JSON cannot say it.
pub fn json<T: Serialize + ?Sized>(answer: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(answer).map_err(|error| Error::failed(error.to_string()))
}
