//! Whom a message is from and for, in which protocol; and what an end says that went wrong.

use std::fmt;

use thiserror::Error;

use crate::wire::{Reader, WireError, Writer};

/// Bytes of a [`Name`]: one byte has its length.
pub const MAX_TRUNK_NAME_BYTES: usize = 255;
/// Bytes of a [`Failure`]'s message: what a person reads.
pub const MAX_FAILURE_BYTES: usize = 1024;

/// The name of an instance, a protocol or a user: 1 to 255 bytes of UTF-8 without control
/// characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

/// Text that is no [`Name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a name has 1 to {MAX_TRUNK_NAME_BYTES} bytes and no control characters")]
pub struct NameError;

/// Whom a message is for, or from, at a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Principal {
    /// The node itself.
    Node,
    /// One of its users.
    User(Name),
}

/// What is written on every message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Envelope {
    /// Who says it, at the sender's node.
    pub from: Principal,
    /// Whom it is for, at the receiver's node.
    pub to: Principal,
    /// What it is about.
    pub protocol: Name,
}

numbered! {
    /// What went wrong, for a program.
    ErrorCode, "error code" {
        /// Not allowed.
        #[error("denied")]
        Denied = 1,
        /// A limit is reached.
        #[error("over quota")]
        Quota = 2,
        /// The arguments break a rule.
        #[error("invalid")]
        Invalid = 3,
        /// There is no such thing.
        #[error("not found")]
        NotFound = 4,
        /// It may work later.
        #[error("unavailable")]
        Unavailable = 5,
        /// Its time is over.
        #[error("expired")]
        Expired = 6,
        /// The plugin that was asked failed.
        #[error("failed")]
        Failed = 7,
    } or Unknown
}

/// What went wrong at the other end.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{code}: {message}")]
pub struct Failure {
    code: ErrorCode,
    message: Box<str>,
}

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn encode(&self, writer: &mut Writer) {
        writer.short_bytes(self.0.as_bytes());
    }

    pub(super) fn decode(reader: &mut Reader<'_>, field: &'static str) -> Result<Self, WireError> {
        let text = std::str::from_utf8(reader.short_bytes(field)?);
        text.ok()
            .and_then(|text| Self::try_from(text).ok())
            .ok_or(WireError::Invalid(field))
    }
}

impl TryFrom<&str> for Name {
    type Error = NameError;

    fn try_from(text: &str) -> Result<Self, NameError> {
        let fits = (1..=MAX_TRUNK_NAME_BYTES).contains(&text.len());
        if fits && !text.chars().any(char::is_control) {
            Ok(Self(text.into()))
        } else {
            Err(NameError)
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Principal {
    pub(super) fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Node => {
                writer.u8(0);
            }
            Self::User(name) => name.encode(writer),
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>, field: &'static str) -> Result<Self, WireError> {
        let mut ahead = reader.clone();
        if ahead.u8(field)? == 0 {
            *reader = ahead;
            return Ok(Self::Node);
        }
        Name::decode(reader, field).map(Self::User)
    }
}

impl Envelope {
    pub(super) fn encode(&self, writer: &mut Writer) {
        self.from.encode(writer);
        self.to.encode(writer);
        self.protocol.encode(writer);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            from: Principal::decode(reader, "sender")?,
            to: Principal::decode(reader, "receiver")?,
            protocol: Name::decode(reader, "protocol")?,
        })
    }
}

impl Failure {
    /// What went wrong. Of the message, [`MAX_FAILURE_BYTES`] are kept.
    pub fn new(code: ErrorCode, message: &str) -> Self {
        let end = message.floor_char_boundary(MAX_FAILURE_BYTES);
        let message = message.get(..end).unwrap_or_default().into();
        Self { code, message }
    }

    /// For a program.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// For people.
    pub fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn decode(code: ErrorCode, message: &[u8]) -> Result<Self, WireError> {
        let invalid = WireError::Invalid("error message");
        match std::str::from_utf8(message) {
            Ok(text) if text.len() <= MAX_FAILURE_BYTES => Ok(Self::new(code, text)),
            Ok(_) | Err(_) => Err(invalid),
        }
    }
}
