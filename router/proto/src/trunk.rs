//! A trunk: one flow between two nodes that carries what one plugin says to itself at the other:
//! channels of durable messages, posts, and asks.
//!
//! ```text
//! opener                                    acceptor: the service "wormholes-trunk", over TCP
//! HELLO                 ->
//!                       <-                  WELCOME, or REFUSED and the end
//! all others           <->                  all others
//!
//! FRAME   length u32 | kind u8 | body                 length counts kind and body, 1 to 1,049,600;
//!                                                     of the first frame each way at most 1,024
//!   1 hello            version u8 | instance name | identity 32 | u8 (1 node, 2 alias)
//!                      | minute u32 | nonce 16 | signature 64
//!   2 welcome          version u8
//!   3 refused          reason u8
//!   4 channel          number u32 | envelope | incarnation 16 | epoch u64 | next u64 | acked u64
//!   5 state            number u32 | messages u16 | bytes u32 | cursor u64 | chain 32, if cursor > 0
//!   6 channel refused  number u32 | reason u8
//!   7 data             number u32 | sequence u64 | body
//!   8 gap              number u32 | messages u16
//!   9 ack              number u32 | sequence u64 | count u16
//!                      | each: sequence u64 | code u8 | length u16 | text
//!  10 halt             number u32 | by u8 (1 the channel's sender, 2 its receiver) | reason u8
//!  11 post             envelope | body
//!  12 ask              ask u64 | envelope | left u64 | body
//!  13 answer           ask u64 | code u8 (0: a body follows; else a text) | body or text
//!  14 cancel           ask u64
//!  15 want             want u64 | from | to | blob 32 | first u32 | pieces u16 | u8 (1: with values)
//!  16 given            want u64 | length u64 | values, if the WANT is with them
//!  17 more             want u64 | pieces u16
//!  18 piece            want u64 | piece u32 | bytes
//!  19 not given        want u64 | code u8 | text
//!  20 unwant           want u64
//!  128 to 255          skipped; all others end the trunk
//! name       length u8 (1 to 255) | UTF-8 without control characters
//! envelope   from | to | protocol name                from, to: a name, or length 0: the node itself
//! text       at most 1,024 bytes of UTF-8             body: at most 1,048,576 bytes, to the end
//! signature  Ed25519 by `identity` over "wormholes-trunk-v1" | the acceptor's node id | the HELLO
//!            before the signature
//! ```
//! `minute` counts since 1970, rounded down: a finer clock would tell which aliases are one node.
//! `left` is in milliseconds from now. Numbers of channels, asks and wants are those of who opens the
//! channel, asks or wants, each with its own; both ends may do all of it.
//!
//! The opener tells the newest version that it speaks, at least 1; the acceptor the one that is
//! spoken, which is no newer. This is version 1. A newer one may have more reasons and codes, which
//! are read as unknown ones: never 0, and without an effect other than that of any of their kind.
//!
//! # A blob
//!
//! Who wants a blob of a principal at the other end says from which piece on, and how many pieces may
//! be on the way, at most 16; MORE adds to these. The other end answers GIVEN, and PIECE by PIECE in
//! their order until the last one; or NOT GIVEN at any time, which ends it. `blob` has names, pieces
//! and values: GIVEN has values where the WANT is with them and the blob has two pieces or more. UNWANT
//! ends it from the other side; what is on the way then means nothing any more. Who gives sends a piece
//! behind all other frames that wait, and one at a time, so that messages wait for one piece
//! at most, or for one GIVEN, whose values have up to 512 KiB.
//!
//! # A channel
//!
//! Durable messages of one sender to one receiver in one protocol, numbered from 1. Each end
//! remembers what both agree on as a number and the end of a hash chain over all until then:
//!
//! ```text
//! chain 0  SHA-256("wormholes-channel-v1" | incarnation 16 | sender's id 32 | from
//!          | receiver's id 32 | to | instance name | protocol name | epoch u64)
//! chain n  SHA-256(chain n-1 | u8 (0 message, 1 gap) | n u64 | body, if a message)
//! ```
//! The sender keeps each message until the receiver has acknowledged it; the receiver writes its
//! cursor in the commit that handles the message. A store has one incarnation, drawn at random and
//! told to nobody; each channel has its own of that, so that it does not tell which aliases are one
//! node: the first 16 bytes of
//!
//! ```text
//! SHA-256("wormholes-incarnation-v1" | the store's 16 | sender's id 32 | from
//!         | receiver's id 32 | to | instance name | protocol name)
//! ```
//! A sender with something to say sends CHANNEL.
//! It moves a channel only to a trunk that it began to open after the last one stood, so that the
//! receiver can tell a CHANNEL that it reads late: it is of a trunk that was welcomed before.
//! The receiver answers STATE as soon as nothing from an earlier trunk is on its way to a commit,
//! and takes nothing from an earlier trunk from then on: so what is beyond the cursor was not
//! handled, and will not be. ACK follows STATE at once if the cursor is beyond `acked`, since the
//! refusals of the last ACKs may be lost; the receiver keeps a refusal until the sender must have
//! it, which is when 256 messages more came, or an `acked` beyond it.
//! A message that expired becomes a gap only while nobody can have handled it, and the sender
//! commits that before GAP leaves: otherwise a crash would change what the chain is over. So that it
//! knows after a crash what nobody can have handled, it commits up to which number it may send,
//! a window ahead, and takes back what it did not use of that when the trunk is gone.
//!
//! A receiver whose plugin fails on a message for good halts the channel: it takes nothing more of
//! that history. But it tells how far it came, in this and each later trunk, until the sender opened
//! the channel anew: STATE, then ACK if the cursor is beyond `acked`, then HALT. So the sender knows
//! what was handled, and sends only the rest again, numbered from 1 in the next epoch.
//!
//! # Who went back
//!
//! An older copy of a store has forgotten what the other end remembers. Whatever the numbers, a
//! channel is then halted at both ends until both open it anew, with another epoch:
//!
//! - cursor < acked: the receiver has forgotten what it acknowledged. The receiver went back.
//! - cursor beyond all that this sender sent, `acked` before one that the receiver knows of (it has
//!   forgotten the refusals until there), or an epoch before the receiver's, or another
//!   incarnation: the sender has forgotten. The sender went back.
//! - acked <= cursor, and another chain there: numbers were given twice, which only the sender does.
//!   The sender went back.
//! - an epoch beyond the receiver's: the sender opened the channel anew and waits for the receiver
//!   to do so; but with acked > 0 the receiver did, and went back.
//!
//! A copy that lost nothing that the other end knows is not seen, and does no harm; nor is one
//! that says the very same again.

/// A set with a number from 1 on for each on the wire, which never changes its meaning. `or Unknown`
/// keeps those that a later build adds.
macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident, $field:literal { $($(#[$doc:meta])* $variant:ident = $number:literal,)* } $(or $unknown:ident)?) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
            $(
                /// One that this build does not know.
                #[error("{0}")]
                $unknown($crate::trunk::UnknownNumber),
            )?
        }

        impl $name {
            /// The wire's number.
            pub const fn number(self) -> u8 {
                match self {
                    $(Self::$variant => $number,)*
                    $(Self::$unknown(unknown) => unknown.0,)?
                }
            }

            /// Reads a wire's number; 0 is none.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    $(1.. => Some(Self::$unknown($crate::trunk::UnknownNumber(number))),)?
                    _ => None,
                }
            }

            pub(super) fn decode(reader: &mut $crate::wire::Reader<'_>) -> Result<Self, $crate::wire::WireError> {
                let number = reader.u8($field)?;
                Self::from_number(number).ok_or($crate::wire::WireError::Invalid($field))
            }
        }
    };
}

mod blob;
mod chain;
mod decoder;
mod fetch;
mod frame;
mod hello;
mod name;
mod receiver;
#[cfg(test)]
mod scenario;
mod sender;
#[cfg(test)]
mod tests;

use thiserror::Error;

pub use blob::{BlobFrame, MAX_PIECES_AHEAD, Want};
pub use chain::{ChannelKey, Halt, History, Link, Position};
pub use decoder::{Decoder, FrameError};
pub use fetch::{BlobFetch, FetchError, Fetched};
pub use frame::{
    Ack, Channel, ChannelRefusal, End, Frame, MAX_BODY_BYTES, MAX_FRAME_BYTES, MAX_REFUSALS,
    Refusal, State, TrunkRefusal, Window,
};
pub use hello::{Hello, IdentityKind, MAX_HELLO_SKEW, TRUNK_VERSION};
pub use name::{
    Envelope, ErrorCode, Failure, MAX_FAILURE_BYTES, MAX_TRUNK_NAME_BYTES, Name, NameError,
    Principal,
};
pub use receiver::{Arrival, ArrivalContent, ChannelReceiver, ReceiverRow};
pub use sender::{
    ChannelSender, Content, Outcome, Report, Row, RowOrder, SenderCommit, SenderRow, Wanted,
};

/// A number to which only a later build gives a meaning. It is never one that this build knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[error("number {0}, which only a newer version knows")]
pub struct UnknownNumber(u8);

/// What no honest other end sends on a channel. It ends the trunk; the channel goes on with the
/// next one, since nothing of it was committed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ChannelError {
    /// STATE or ACK where none was due.
    #[error("an answer on a channel that asked for none")]
    Unasked,
    /// ACK before the last one, or beyond what was sent.
    #[error("message {0} is acknowledged out of turn")]
    Ack(u64),
    /// A refusal of what this ACK does not cover, of a gap, or out of order.
    #[error("message {0} is refused out of turn")]
    Refusal(u64),
    /// DATA or GAP before STATE.
    #[error("messages on a channel that is not open yet")]
    NotOpen,
    /// Another message than the next one.
    #[error("message {got} came where {expected} is next")]
    Order {
        /// The next one's number.
        expected: u64,
        /// The number that came.
        got: u64,
    },
    /// More than the window lets be on the way.
    #[error("more messages than the window allows")]
    Window,
}
