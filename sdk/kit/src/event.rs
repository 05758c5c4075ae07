//! What happens to a principal.

use wormholes_plugin::{Error, Reason, Request};

#[derive(Debug, Clone)]
pub(crate) enum Event {
    Migrate { from: u32 },
    Init(Reason),
    Timer { name: String, payload: Vec<u8> },
    Request(Request),
    Canceled(u64),
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
