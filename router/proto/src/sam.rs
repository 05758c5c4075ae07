//! SAM, the protocol by which programs use an I2P router (version 3.1 and later, streams alone): the
//! lines that a client and the router exchange before the bytes of a stream begin.
//!
//! ```text
//! client                                        router
//! HELLO VERSION MIN=3.1 MAX=3.3              -> <- HELLO REPLY RESULT=OK VERSION=…
//! SESSION CREATE STYLE=STREAM ID=… …         -> <- SESSION STATUS RESULT=OK DESTINATION=keys
//! STREAM CONNECT ID=… DESTINATION=x.i2p …    -> <- STREAM STATUS RESULT=OK, then the stream
//! STREAM ACCEPT ID=… SILENT=false            -> <- STREAM STATUS RESULT=OK, later
//!                                               <- the caller's destination, then the stream
//! ```
//! Each line is a connection's own: one for the session, which lives as long as that connection, and
//! one for each stream. What the router says is bounded and believed in nothing but its own part.
//!
//! Why not the crate `yosemite` (0.6.3): its sessions and streams connect and read by themselves, to
//! 127.0.0.1 alone, and keep the lines private, so that these are neither fuzzed nor tested without
//! sockets. It reads lines of any length, and panics at some that no router means to send. It does not
//! know the results DUPLICATED_DEST, INVALID_ID and ALREADY_ACCEPTING, which tell here whether a kept
//! destination is to be waited for or made anew, and does not compare the keys that it is told of with
//! those that it asked for.

mod client;
mod destination;
mod line;
mod request;

pub use client::{SamClient, SamState, SamStep};
pub use destination::{Destination, DestinationError, DestinationKeys, MAX_DESTINATION_KEYS_BYTES};
pub use line::{MAX_SAM_LINE_BYTES, SamError, SamRefusal};
pub use request::{
    I2pName, MAX_TUNNEL_LENGTH, MAX_TUNNEL_QUANTITY, SamRequest, SessionId, TunnelSettings,
};
