//! Events, as a recording has them.

use std::sync::{Arc, atomic::AtomicBool};

use serde::{Deserialize, Serialize};
use wormholes_proto::NodeId;

use super::Blob;
use crate::{
    event::{
        Caller, Command, Content, Event, Incoming, Reason, Refusal, Request, RequestKind, Wish,
    },
    mail::Delivery,
    message::{Address, Identity, Note, text},
    rows::{Home, Space},
    rules::Usage,
};

/// What happened. A migration is in no recording: it runs on a copy of the rows, in commits of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Happened {
    Init(Reason),
    Timer {
        #[serde(with = "text")]
        name: Arc<str>,
        payload: Blob,
    },
    Request {
        id: u64,
        caller: Caller,
        #[serde(with = "text")]
        name: Arc<str>,
        body: Blob,
        deadline_ms: Option<u64>,
        is_operation: bool,
    },
    Canceled {
        request: u64,
    },
    Message {
        from: Address,
        own: Identity,
        #[serde(with = "text")]
        protocol: Arc<str>,
        content: Came,
        is_durable: bool,
    },
    Note {
        number: u64,
        note: Note,
    },
    Answer {
        id: u64,
        answer: Result<Blob, Refusal>,
    },
    Presence {
        peer: NodeId,
        online: bool,
        trust: u8,
    },
    Usage(Vec<Usage>),
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Came {
    Message(Blob),
    Gap(u16),
}

impl Happened {
    /// `None`: it is not recorded. What has to do with blobs, HTTP and connections is in no recording.
    pub(crate) fn of(event: &Event) -> Option<Self> {
        Some(match event {
            Event::Migrate { .. } => return None,
            Event::Init(reason) => Self::Init(*reason),
            Event::Timer { name, payload } => Self::Timer {
                name: Arc::clone(name),
                payload: payload[..].into(),
            },
            Event::Request(request) => match &request.wish {
                Wish::Command(command) if command.blobs.is_empty() => Self::Request {
                    id: request.id,
                    caller: command.caller.clone(),
                    name: Arc::clone(&command.name),
                    body: command.body[..].into(),
                    deadline_ms: request.deadline_ms,
                    is_operation: command.is_operation,
                },
                Wish::Command(_) | Wish::Http(_) => return None,
            },
            Event::Canceled { request, kind } => match kind {
                RequestKind::Command => Self::Canceled { request: *request },
                RequestKind::Http => return None,
            },
            Event::Fetched { .. }
            | Event::Socket { .. }
            | Event::Datagram(_)
            | Event::BlobFetched { .. } => return None,
            Event::Message(incoming) => Self::Message {
                from: incoming.from.clone(),
                own: incoming.own.clone(),
                protocol: Arc::clone(&incoming.protocol),
                content: match &incoming.content {
                    Content::Message(body) => Came::Message(body[..].into()),
                    Content::Gap(messages) => Came::Gap(*messages),
                },
                is_durable: incoming.delivery.is_some(),
            },
            Event::Note { number, note } => Self::Note {
                number: *number,
                note: Note::clone(note),
            },
            Event::Answer { id, answer } => Self::Answer {
                id: *id,
                answer: answer
                    .as_ref()
                    .map(|body| body[..].into())
                    .map_err(Clone::clone),
            },
            Event::Presence {
                peer,
                online,
                trust,
            } => Self::Presence {
                peer: *peer,
                online: *online,
                trust: *trust,
            },
            Event::Usage(usage) => Self::Usage(usage.to_vec()),
        })
    }

    /// The same again.
    pub(crate) fn event(&self, home: Home) -> Event {
        match self.clone() {
            Self::Init(reason) => Event::Init(reason),
            Self::Timer { name, payload } => Event::Timer {
                name,
                payload: payload.0.into(),
            },
            Self::Request {
                id,
                caller,
                name,
                body,
                deadline_ms,
                is_operation,
            } => Event::Request(Request {
                id,
                wish: Wish::Command(Command {
                    is_operation,
                    ..Command::new(caller, &name, &body.0)
                }),
                deadline_ms,
            }),
            Self::Canceled { request } => Event::Canceled {
                request,
                kind: RequestKind::Command,
            },
            Self::Message {
                from,
                own,
                protocol,
                content,
                is_durable,
            } => Event::Message(Arc::new(Incoming {
                from,
                own,
                protocol,
                content: content.into(),
                delivery: is_durable.then(|| delivery(home)),
                _room: None,
            })),
            Self::Note { number, note } => Event::Note {
                number,
                note: Arc::new(note),
            },
            Self::Answer { id, answer } => Event::Answer {
                id,
                answer: answer.map(|body| body.0.into()),
            },
            Self::Presence {
                peer,
                online,
                trust,
            } => Event::Presence {
                peer,
                online,
                trust,
            },
            Self::Usage(usage) => Event::Usage(usage.into()),
        }
    }

    /// The command's, the timer's or the protocol's name, for people.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Timer { name, .. } | Self::Request { name, .. } => name.to_string(),
            Self::Message { protocol, .. } => protocol.to_string(),
            Self::Canceled { request } => request.to_string(),
            Self::Answer { id, .. } => id.to_string(),
            Self::Presence { peer, .. } => peer.to_string(),
            Self::Init(_) | Self::Note { .. } | Self::Usage(_) => String::new(),
        }
    }
}

impl From<Came> for Content {
    fn from(came: Came) -> Self {
        match came {
            Came::Message(body) => Self::Message(body.0.into()),
            Came::Gap(messages) => Self::Gap(messages),
        }
    }
}

/// What says that a message is durable. Nobody hears of it: its rows stand beside all others.
fn delivery(home: Home) -> Delivery {
    Delivery {
        key: home.key(Space::Cursor, &[]),
        row: Vec::new(),
        forgotten: Vec::new(),
        refusal: home.key(Space::Refused, &[]),
        channel: 0,
        live: Arc::new(AtomicBool::new(true)),
        epoch: 0,
    }
}
