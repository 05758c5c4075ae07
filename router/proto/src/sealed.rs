//! Relayed ends: what two nodes speak through a relay, so that it carries only ciphertext.
//!
//! ```text
//! caller                                      called
//! HELLO   version u8 = 1 | suite u8                        1124 bytes
//!         | Noise IK message 1: e 32, s 48, payload 1042
//!                                   ->
//!                                   <-  ANSWER  Noise IK message 2: e 32, payload 1042
//! frames                           <->  frames             1074 bytes
//!
//! payload  length u16 | the sender's signed record | zeros to 1026; sealed, so 16 more
//! prologue context | suite u8 | id of the called 32
//! FRAME    length u16 (19 to 65535) | sealed: kind u8 (1 data, 2 end, 3 move) | size u16 | data | zeros
//! ```
//! Each direction has its own key from the Noise split; the nonce is 4 zero bytes and the number
//! of the frame, 8 bytes big-endian. After each 65,536 frames the key gives way to the next
//! (Noise, section 11.3) and the numbers start again.
//!
//! Both sides check that the record in the payload belongs to the key of the handshake, and that
//! it is not older than the one they know. A direction ends with an END frame: a stream that ends
//! without it was cut. HELLO and ANSWER have one size for all, so that they tell nothing of the
//! record inside.
//!
//! A session may go on by another stream between the same two ends, as by a direct one when there is
//! a path (OPEN kind 12, module `stream`). Each direction goes over by itself: its MOVE frame is the
//! last on the stream before, and the next frame, under the same key and by the next number, is the
//! first on the other one. So nothing is sent twice, and whoever reads the first stream up to MOVE
//! and the other one then has all in order, whichever came first. Of both ends only those send MOVE
//! that agreed on the other stream before: builds that know no MOVE refuse the OPEN.
//!
//! ```text
//! session  the first 16 bytes of HMAC-SHA-256 under both keys of the Noise split, that of the
//!          caller's direction first, of "wormholes moved session 1" and a zero byte
//! OPEN move(session)   ->
//!                      <-   ACCEPTED         the called holds the stream for its session
//! GO       u8 = 1      ->                    both ends use it from now on
//! frames               <->  frames           of each direction behind its MOVE
//! ```
//! Without GO nothing has changed, and the session stays where it is.
//!
//! A HELLO can be replayed to the called, who answers it; nothing that follows can be made by who
//! replays. So nothing may happen for a caller before its first frame opens.

mod frame;
mod handshake;
#[cfg(test)]
mod moved;
mod session_id;
#[cfg(test)]
mod tests;

use thiserror::Error;

use crate::{id::NodeId, record::RecordError};

pub use frame::{Frame, Opener, Sealer};
pub use handshake::{ANSWER_BYTES, HELLO_BYTES, Initiator, OwnEnd, Session, handle_hello};
pub use session_id::SessionId;

/// What the caller says on another stream when both ends use it from now on.
pub const GO: u8 = 1;

/// Why two ends do not come together, or no longer trust the stream. For the own log only: the
/// other side sees a reset, the same for all causes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SealedError {
    /// The own record does not name the own key.
    #[error("this node's record does not carry its noise key")]
    OwnRecord,
    /// The message has another length.
    #[error("handshake message of {0} bytes")]
    Length(usize),
    /// Another build's format.
    #[error("relayed ends of version {0}")]
    Version(u8),
    /// Unknown suite.
    #[error("unknown suite {0}")]
    Suite(u8),
    /// The Noise message does not hold: meant for another key, or tampered with.
    #[error("noise handshake failed")]
    Handshake,
    /// The payload holds no good record.
    #[error("the other end's record: {0}")]
    Record(#[from] RecordError),
    /// The record is another node's than was called.
    #[error("called another node, {0} answered")]
    WrongNode(NodeId),
    /// The record names another key than the handshake used.
    #[error("the record of {0} does not carry the key of its handshake")]
    WrongKey(NodeId),
    /// A newer record of that node is known.
    #[error("{0} came with a record that is older than the known one")]
    OldRecord(NodeId),
    /// A frame was tampered with, replayed, reflected, left out or put in another place.
    #[error("a frame does not open")]
    Frame,
    /// The stream ended without END.
    #[error("the stream was cut")]
    Cut,
    /// Bytes or frames after END, or after MOVE on the same stream.
    #[error("data after the end")]
    AfterEnd,
}
