//! Wire formats and protocol machines of Wormholes.
//!
//! Sans-I/O: nothing here knows a socket, a clock or the system's randomness. Time and random
//! generators are arguments; machines have `handle_*` (input), `poll_*` (output), getters and
//! commands, and nothing else.

mod address;
pub mod blob;
mod carrier;
pub mod control;
mod datagram;
mod id;
mod invite;
pub mod manifest;
mod noise;
pub mod onion;
mod onion_address;
mod punch;
mod record;
mod rendezvous;
mod roles;
pub mod sam;
pub mod sealed;
mod socks;
mod stream;
mod suite;
mod target;
pub mod tcp;
#[cfg(test)]
mod testing;
mod transport;
pub mod trunk;
mod wire;

pub use address::is_dialable;
pub use carrier::CarrierKind;
pub use datagram::{
    FRAME_HEAD_BYTES, FrameReader, LANE_HEAD_BYTES, MAX_DATAGRAM_BYTES, decode_lane, encode_frame,
    encode_lane,
};
pub use id::{NodeId, ParseNodeIdError, SIGNATURE_BYTES};
pub use invite::{INVITE_PREFIX, Invite, InviteError, InviteRelay, MAX_INVITE_NAME_BYTES};
pub use noise::{HandshakeError, NOISE_KEY_BYTES, StaticKeypair};
pub use onion_address::{OnionAddress, ParseOnionAddressError, is_placeholder};
pub use punch::{
    MAX_CANDIDATES, decode_candidates, decode_mirrored, encode_candidates, encode_mirrored,
};
pub use record::{
    MAX_CLOCK_SKEW, MAX_FAMILY_BYTES, MAX_RECORD_ADDRESSES, MAX_RECORD_AGE, MAX_RECORD_BYTES,
    MAX_RECORD_EXIT_PORTS, MAX_RECORD_ONION_KEYS, MAX_RECORD_RELAYS, MAX_SET_RECORDS, NodeRecord,
    OnionKey, RECORD_RENEWAL, RecordBook, RecordError, RecordOutcome, RecordSetError,
    RecordSetReader, SignedRecord, encode_set, is_family,
};
pub use rendezvous::{CircuitId, Expired, Rendezvous, RendezvousLimits};
pub use roles::Roles;
pub use socks::{
    CredentialsError, MAX_CREDENTIAL_BYTES, MAX_SOCKS_MESSAGE_BYTES, SocksAuth, SocksClient,
    SocksClientError, SocksClientState, SocksClientStep, SocksCredentials, SocksDatagramError,
    SocksReply, SocksServer, SocksServerError, SocksServerState, SocksServerStep, SocksVersion,
    decode_socks_datagram, encode_socks_datagram_head,
};
pub use stream::{
    Answer, MAX_ANSWER_BYTES, MAX_OPEN_BYTES, MAX_RESOLVED_ADDRESSES, Open, Reason, Remedy,
    StreamError, decode_answer, decode_open, decode_resolved, encode_answer, encode_open,
    encode_resolved,
};
pub use suite::Suite;
pub use target::{Host, MAX_NAME_BYTES, ParseTargetError, ServiceName, Target, is_special_use};
pub use transport::Transport;
pub use wire::{Reader, WireError, Writer};
