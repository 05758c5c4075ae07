//! Wire formats and protocol machines of Wormholes.
//!
//! Sans-I/O: nothing here knows a socket, a clock or the system's randomness. Time and random
//! generators are arguments; machines have `handle_*` (input), `poll_*` (output), getters and
//! commands, and nothing else.

mod id;
mod stream;
mod target;
mod wire;

pub use id::{NodeId, ParseNodeIdError, SIGNATURE_BYTES};
pub use stream::{
    Answer, MAX_ANSWER_BYTES, MAX_OPEN_BYTES, Open, Reason, Remedy, StreamError, decode_answer,
    decode_open, encode_answer, encode_open,
};
pub use target::{Host, ParseTargetError, ServiceName, Target, is_special_use};
pub use wire::{Reader, WireError, Writer};
