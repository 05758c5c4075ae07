//! What happens to a principal.

use std::sync::Arc;

use wormholes_plugin::{Blob, Error, Reason, Request, Usage};

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

/// An event that did not succeed.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The handler said no: final.
    Refused(Error),
    /// It panicked, or the world had it trap.
    Broke(String),
}

/// The longest text of an error that is kept; the rest is cut.
const MAX_MESSAGE_BYTES: usize = 1024;

/// As the host hands an error on.
pub(crate) fn cut(mut error: Error) -> Error {
    let end = error.message.floor_char_boundary(MAX_MESSAGE_BYTES);
    error.message.truncate(end);
    error
}
