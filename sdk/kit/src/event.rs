//! What happens to a principal.

use std::{net::SocketAddr, sync::Arc};

use wormholes_plugin::{Blob, Closing, Error, HttpRequest, HttpResponse, Reason, Request, Usage};

use crate::{
    mail::{Delivery, InKey, Note},
    net::Trip,
};

#[derive(Debug, Clone)]
pub(crate) enum Event {
    Migrate {
        from: u32,
    },
    Init(Reason),
    Timer {
        name: String,
        payload: Vec<u8>,
    },
    Request(Request),
    Canceled(u64),
    Http {
        id: u64,
        request: HttpRequest,
        deadline_ms: u64,
    },
    HttpCanceled(u64),
    Fetched {
        id: u64,
        answer: Result<HttpResponse, Error>,
    },
    Socket {
        id: u64,
        news: SocketNews,
    },
    Datagram {
        port: u16,
        from: SocketAddr,
        data: Vec<u8>,
    },
    Message {
        key: InKey,
        /// A body, or so many messages that expired.
        content: Result<Vec<u8>, u64>,
        /// `None`: it comes at most once.
        delivery: Option<(Delivery, Trip)>,
    },
    Note {
        number: u64,
        note: Note,
    },
    Answer {
        id: u64,
        answer: Result<Vec<u8>, Error>,
    },
    Presence {
        peer: [u8; 32],
        online: bool,
        trust: u8,
    },
    Usage(Vec<Usage>),
    BlobFetched {
        id: u64,
        blob: Blob,
        outcome: Result<Arc<[u8]>, Error>,
    },
}

/// What became of a connection.
#[derive(Debug, Clone)]
pub(crate) enum SocketNews {
    Connected,
    Opened(u16, String),
    Data(Vec<u8>),
    Writable(u32),
    Closed(Closing),
}

/// An event that did not succeed.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The handler said no: final.
    Refused(Error),
    /// It panicked, or the world had it trap.
    Broke(String),
}

impl Event {
    /// The request that somebody waits for.
    pub(crate) fn request(&self) -> Option<u64> {
        if let Self::Request(request) = self {
            return Some(request.id);
        }
        if let Self::Http { id, .. } = self {
            return Some(*id);
        }
        None
    }

    /// What it says, if that is bytes.
    pub(crate) fn body(&self) -> &[u8] {
        match self {
            Self::Request(request) => request.body.as_slice(),
            Self::Timer { payload, .. } => payload.as_slice(),
            Self::Message {
                content: Ok(body), ..
            }
            | Self::Answer {
                answer: Ok(body), ..
            } => body.as_slice(),
            Self::Message { .. }
            | Self::Answer { .. }
            | Self::Migrate { .. }
            | Self::Init(_)
            | Self::Canceled(_)
            | Self::Http { .. }
            | Self::HttpCanceled(_)
            | Self::Fetched { .. }
            | Self::Socket { .. }
            | Self::Datagram { .. }
            | Self::Note { .. }
            | Self::Presence { .. }
            | Self::Usage(_)
            | Self::BlobFetched { .. } => &[],
        }
    }
}

/// The longest text of an error that is kept; the rest is cut.
const MAX_MESSAGE_BYTES: usize = 1024;

/// As the host hands an error on.
pub(crate) fn cut(mut error: Error) -> Error {
    let end = error.message.floor_char_boundary(MAX_MESSAGE_BYTES);
    error.message.truncate(end);
    error
}
