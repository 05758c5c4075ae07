//! What happens to a principal, one thing at a time.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::OwnedSemaphorePermit;
use wormholes_proto::{
    NodeId,
    blob::BlobId,
    trunk::{self as wire, Failure},
};

use crate::{
    blobs::Pin,
    http::{HttpRequest, HttpResponse},
    mail::Delivery,
    message::{Address, Identity, Note, text},
    network::Datagram,
    rules::Usage,
    transaction::{Limit, Offered},
    wires::SocketNews,
};

/// The longest text of an error that is kept; the rest is cut.
const MAX_MESSAGE_BYTES: usize = 1024;
/// What is said where a failure of the disk leaves it open.
const LOST: &str = "the disk failed, and what was asked may be undone; look before you ask again";

/// Whom an event, its state, its timers and its keys are for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Principal {
    /// The node itself.
    Node,
    /// One of its users, by name.
    User(#[serde(with = "text")] Arc<str>),
}

/// What happens; a handler takes it.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// In the place of [`Event::Init`], where the rows are those of another schema: both handlers run.
    Migrate {
        /// Which.
        from: u32,
    },
    /// Before all others of a principal, since the reason.
    Init(Reason),
    /// A timer is due.
    Timer {
        /// Its name.
        name: Arc<str>,
        /// What it was set with.
        payload: Arc<[u8]>,
    },
    /// Somebody waits for an answer.
    Request(Request),
    /// Nobody waits for it any more.
    Canceled {
        /// The request's id.
        request: u64,
        /// What it was.
        kind: RequestKind,
    },
    /// Somebody sent a message.
    Message(Arc<Incoming>),
    /// Something is to be told.
    Note {
        /// Of its row.
        number: u64,
        note: Arc<Note>,
    },
    /// The answer to a question that it asked.
    Answer {
        /// The question's.
        id: u64,
        answer: Result<Bytes, Refusal>,
    },
    /// The answer to a request that it made by HTTP.
    Fetched {
        /// The question's.
        id: u64,
        answer: Result<Arc<HttpResponse>, Refusal>,
    },
    /// What became of a connection.
    Socket {
        /// The connection's.
        id: u64,
        news: SocketNews,
    },
    /// A datagram came to a port of the plugin's own.
    Datagram(Arc<Datagram>),
    /// A peer came or went.
    Presence {
        peer: NodeId,
        online: bool,
        trust: u8,
    },
    /// Scripts billed this.
    Usage(Arc<[Usage]>),
    /// What came of a blob that it fetches.
    BlobFetched {
        /// Of its row.
        id: u64,
        /// Its length; it stays as long as this is there.
        outcome: Result<(u64, Pin), Refusal>,
    },
}

/// What came on the way from another principal.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) from: Address,
    /// As whom this end is known there.
    pub(crate) own: Identity,
    pub(crate) protocol: Arc<str>,
    pub(crate) content: Content,
    /// What its commit has to hold; `None`: it is volatile.
    pub(crate) delivery: Option<Delivery>,
    /// Of its trunk, until it is handled.
    pub(crate) _room: Option<OwnedSemaphorePermit>,
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Message(Bytes),
    /// So many messages that are not to come.
    Gap(u16),
}

impl Incoming {
    /// Whether it may be handled in this epoch of the store.
    pub(crate) fn is_live(&self, epoch: u64) -> bool {
        let is_live =
            |delivery: &Delivery| delivery.epoch == epoch && delivery.live.load(Ordering::Acquire);
        self.delivery.as_ref().is_none_or(is_live)
    }
}

/// Why a principal is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reason {
    /// For the first time.
    Created,
    /// The node started, or forgot what was not durable after a disk error.
    Started,
    /// Another version of the plugin took over.
    Updated,
}

/// Somebody waits for an answer.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Unlike all others of this principal.
    pub id: u64,
    /// What is asked.
    pub wish: Wish,
    /// Milliseconds since 1970: canceled then; `None`: never.
    pub deadline_ms: Option<u64>,
}

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) enum Wish {
    /// A command, or a question of a plugin.
    Command(Command),
    /// It came by HTTP.
    Http(Arc<HttpRequest>),
}

/// A command, or a question of a plugin.
#[derive(Debug, Clone)]
pub struct Command {
    /// Who asks.
    pub(crate) caller: Caller,
    /// The command.
    pub(crate) name: Arc<str>,
    /// Its arguments.
    pub(crate) body: Arc<[u8]>,
    /// Answered `later`, it outlives who asks, and the node.
    pub(crate) is_operation: bool,
    /// Blobs that it brings.
    pub(crate) blobs: Arc<[Offered]>,
}

impl Command {
    /// A request by its name, with its arguments.
    pub fn new(caller: Caller, name: &str, body: &[u8]) -> Self {
        Self {
            caller,
            name: name.into(),
            body: body.into(),
            is_operation: false,
            blobs: [].into(),
        }
    }

    /// Has it outlive who asks, and the node, when it is answered `later`.
    pub(crate) fn for_long(self) -> Self {
        Self {
            is_operation: true,
            ..self
        }
    }
}

/// Which of the two a request was: they are answered in different words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestKind {
    Command,
    Http,
}

impl Request {
    /// Which it is.
    pub(crate) fn kind(&self) -> RequestKind {
        match &self.wish {
            Wish::Command(_) => RequestKind::Command,
            Wish::Http(_) => RequestKind::Http,
        }
    }

    /// Whether it becomes an operation when it is answered `later`.
    pub(crate) fn operation(&self) -> Option<&Command> {
        match &self.wish {
            Wish::Command(command) => Some(command).filter(|command| command.is_operation),
            Wish::Http(_) => None,
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Caller {
    /// An operator of this node.
    Operator,
    /// One of its users.
    User(#[serde(with = "text")] Arc<str>),
    /// A plugin, of this node or of another one.
    Plugin {
        /// Who.
        from: Address,
        /// As whom the principal was asked.
        own: Identity,
    },
}

/// A question that changes nothing.
#[derive(Debug, Clone)]
pub(crate) enum Query {
    /// Whether all is well.
    Health,
    /// Whether somebody may have a blob that the principal holds.
    MayRead {
        /// Who.
        from: Address,
        /// As whom the principal was asked.
        own: Identity,
        /// Which blob.
        blob: BlobId,
    },
    /// A command that the manifest says is a query.
    Command {
        /// Who asks.
        caller: Caller,
        /// The command.
        name: String,
        /// Its arguments.
        body: Vec<u8>,
    },
    /// By HTTP, where the manifest says that it is one.
    Http(HttpRequest),
}

/// What a handler makes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The answer; of HTTP, as [`crate::HttpResponse`] is encoded.
    Done(Vec<u8>),
    /// A later event answers.
    Later,
}

/// What every event brings besides.
#[derive(Debug, Clone)]
pub(crate) struct Stamp {
    /// Rises with every event of this principal.
    pub id: u64,
    /// How often it was tried before.
    pub attempt: u32,
    /// Milliseconds since 1970, for the whole event.
    pub now_ms: u64,
    /// Whom it is for.
    pub principal: Principal,
    /// All of its randomness comes from here.
    pub seed: [u8; 32],
}

/// What went wrong, for a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorCode {
    /// Not granted.
    Denied,
    /// A limit is reached.
    Quota,
    /// The arguments break a rule.
    Invalid,
    /// There is no such thing.
    NotFound,
    /// It may work later.
    Unavailable,
    /// Its time is over.
    Expired,
    /// The plugin failed.
    Failed,
}

/// An answer that says no, for the asker.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Refusal {
    /// For a program.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// Cuts a message that is too long.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        message.shrink_to_fit();
        Self { code, message }
    }
}

impl Refusal {
    /// Nothing came in time.
    pub(crate) fn late() -> Self {
        Self::new(ErrorCode::Expired, Limit::Unanswered.mend())
    }

    /// An operator has no more use for it.
    pub(crate) fn canceled() -> Self {
        Self::new(ErrorCode::Expired, "it was canceled")
    }

    /// Its user is gone.
    pub(crate) fn removed() -> Self {
        Self::new(ErrorCode::Unavailable, "the user was removed")
    }

    /// What the event rested on was not made durable.
    pub(crate) fn lost() -> Self {
        Self::new(ErrorCode::Unavailable, LOST)
    }

    /// Whether what was asked may be done, or undone: the disk failed under it.
    pub fn is_unsettled(&self) -> bool {
        self.code == ErrorCode::Unavailable && self.message == LOST
    }

    /// The component has no handler of this kind.
    pub(crate) fn no_handler(interface: &str) -> Self {
        let missing = format!("the plugin does not export `{interface}`");
        Self::new(ErrorCode::NotFound, missing)
    }
}

impl Event {
    /// Whether it comes before all others of a principal.
    pub(crate) fn wakes(&self) -> bool {
        matches!(self, Self::Migrate { .. } | Self::Init(_))
    }

    /// The kind, as metrics name it.
    pub(crate) fn kind(&self) -> EventKind {
        match self {
            Self::Migrate { .. } => EventKind::Migrate,
            Self::Init(_) => EventKind::Init,
            Self::Timer { .. } => EventKind::Timer,
            Self::Request(request) => match request.kind() {
                RequestKind::Command => EventKind::Request,
                RequestKind::Http => EventKind::Http,
            },
            Self::Canceled { .. } => EventKind::Canceled,
            Self::Message(_) => EventKind::Message,
            Self::Note { .. } => EventKind::Note,
            Self::Answer { .. } => EventKind::Answer,
            Self::Fetched { .. } => EventKind::Fetched,
            Self::Socket { .. } => EventKind::Socket,
            Self::Datagram(_) => EventKind::Datagram,
            Self::Presence { .. } => EventKind::Presence,
            Self::Usage(_) => EventKind::Usage,
            Self::BlobFetched { .. } => EventKind::BlobFetched,
        }
    }
}

/// Kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// The rows of an older schema are turned into today's.
    Migrate,
    /// A principal wakes.
    Init,
    /// A timer is due.
    Timer,
    /// Somebody waits for an answer.
    Request,
    /// So does somebody who asked by HTTP.
    Http,
    /// Nobody waits for it any more.
    Canceled,
    /// A message came, or is not to come.
    Message,
    /// What became of a message or a channel.
    Note,
    /// A question was answered.
    Answer,
    /// A request that it made by HTTP was.
    Fetched,
    /// Something became of a connection.
    Socket,
    /// A datagram came.
    Datagram,
    /// A peer came or went.
    Presence,
    /// Scripts billed something.
    Usage,
    /// A blob came, or does not.
    BlobFetched,
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Migrate => "migrate",
            Self::Init => "init",
            Self::Timer => "timer",
            Self::Request => "request",
            Self::Http => "http",
            Self::Canceled => "canceled",
            Self::Message => "message",
            Self::Note => "note",
            Self::Answer => "answer",
            Self::Fetched => "fetched",
            Self::Socket => "socket",
            Self::Datagram => "datagram",
            Self::Presence => "presence",
            Self::Usage => "usage",
            Self::BlobFetched => "blob",
        })
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("node"),
            Self::User(name) => f.write_str(name),
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let code = match failure.code() {
            wire::ErrorCode::Denied => ErrorCode::Denied,
            wire::ErrorCode::Quota => ErrorCode::Quota,
            wire::ErrorCode::Invalid => ErrorCode::Invalid,
            wire::ErrorCode::NotFound => ErrorCode::NotFound,
            wire::ErrorCode::Unavailable => ErrorCode::Unavailable,
            wire::ErrorCode::Expired => ErrorCode::Expired,
            wire::ErrorCode::Failed | wire::ErrorCode::Unknown(_) => ErrorCode::Failed,
        };
        Self::new(code, failure.message())
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal.code {
            ErrorCode::Denied => wire::ErrorCode::Denied,
            ErrorCode::Quota => wire::ErrorCode::Quota,
            ErrorCode::Invalid => wire::ErrorCode::Invalid,
            ErrorCode::NotFound => wire::ErrorCode::NotFound,
            ErrorCode::Unavailable => wire::ErrorCode::Unavailable,
            ErrorCode::Expired => wire::ErrorCode::Expired,
            ErrorCode::Failed => wire::ErrorCode::Failed,
        };
        Self::new(code, &refusal.message)
    }
}
