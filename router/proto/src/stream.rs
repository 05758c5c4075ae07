//! The first words on every stream between nodes: one OPEN, answered by ACCEPTED or REFUSED.
//!
//! ```text
//! OPEN    length u16 | kind u8 | body            length counts kind and body, 1 to 2047
//!   1 exit      transport u8 | target             dial it for the asker
//!   2 resolve   name length u8 | name             look it up, answer addresses
//!   3 service   transport u8 | name length u8     0 bytes of name: the node's default service of
//!             | name                              that transport
//!   4 relay     node id 32                        carry ciphertext to this registered node
//!   5 create    onion key id 8 | slots 1280       peel an onion layer (module `onion`)
//!   6 channel   -                                 kept for plugins; refused: unsupported
//!   7 register  record                            be reachable through this relay while the
//!                                                 connection lasts
//!   8 relayed   -                                 from a relay: a caller's Noise IK follows
//!   9 records   -                                 the whole set of signed records, then FIN
//!  10 mirror    -                                 from which address this connection is seen
//!  11 punch     candidates (module `punch`)       through a relay: dial these, while those of
//!                                                 the answer are dialled
//!  12 move      session 16                        a relayed session of this caller goes on here, after
//!                                                 GO (module `sealed`)
//! transport  6 tcp, 17 udp (the numbers of IP)
//! target  kind u8 (1 name, 4, 6) | length u8 + name, 4 B or 16 B | port u16
//!
//! ANSWER  length u16 | status u8 | body          length 1 to 1023
//!   0 accepted  body by kind: resolve: count u8 (1 to 32), each: kind u8 (4, 6), 4 B or 16 B;
//!               create: CREATED 512 B; records: load u8 (how full the fullest of the node's
//!               roles is, 255: full; missing: not told); mirror: an address; punch:
//!               candidates; others: empty
//!   1 refused   reason u8
//! ```
//! After ACCEPTED the stream carries the flow's bytes, or its datagrams as frames (module
//! `datagram`); FIN ends a direction, a reset ends both.

use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use crate::{
    address::{decode_ip, decode_list, encode_ip},
    id::NodeId,
    punch::{read_candidates, write_candidates},
    sealed::SessionId,
    target::{Host, ServiceName, Target},
    transport::Transport,
    wire::{Reader, WireError, Writer},
};

/// The largest OPEN with its length: a create (1,291 bytes) with room to spare.
pub const MAX_OPEN_BYTES: usize = 2049;
/// The largest answer with its length: CREATED (515 bytes), or all resolved addresses, fit.
pub const MAX_ANSWER_BYTES: usize = 1025;
/// Addresses in the answer to a resolve: more than any name needs.
pub const MAX_RESOLVED_ADDRESSES: usize = 32;

/// Bytes of the slots of a CREATE; `onion` owns what is in them.
const CREATE_SLOTS_BYTES: usize = 1280;

/// What the opener of a stream asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Open {
    /// Dial this target and join the stream with it.
    Exit(Transport, Target),
    /// Look this name up.
    Resolve(Host),
    /// Join the stream with a service of the node; `None` is its default service of that transport.
    Service(Transport, Option<ServiceName>),
    /// Carry ciphertext to a node that is registered here.
    Relay(NodeId),
    /// Peel one layer of an onion tunnel.
    Create {
        /// Which onion key the first slot is for.
        key_id: [u8; 8],
        /// Eight slots of 160 bytes.
        slots: Box<[u8; CREATE_SLOTS_BYTES]>,
    },
    /// A plugin's channel.
    Channel,
    /// Register the node whose encoded record follows.
    Register(Vec<u8>),
    /// A relay has a caller; Noise IK follows.
    Relayed,
    /// Send all signed records that this node hands out.
    Records,
    /// Tell from which address this connection comes.
    Mirror,
    /// Dial the asker at these candidates, and say where it may dial.
    Punch(Vec<SocketAddr>),
    /// Go on here with a session that came through a relay.
    Move(SessionId),
}

/// The answer to an OPEN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Granted, with the bytes that the kind adds.
    Accepted(Vec<u8>),
    /// Not granted.
    Refused(Reason),
}

/// Why a stream was refused. Numbers are the wire's and never change meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[repr(u8)]
pub enum Reason {
    /// The OPEN broke its format.
    #[error("malformed request")]
    Malformed = 1,
    /// This build or config does not do that.
    #[error("not supported by the node")]
    Unsupported = 2,
    /// A rule or the config forbids it.
    #[error("denied by the node's policy")]
    Denied = 3,
    /// A limit is reached; the same request may pass later.
    #[error("the node is at its limit")]
    Busy = 4,
    /// No such service.
    #[error("no such service")]
    NoService = 5,
    /// No node of that id is registered or known.
    #[error("no such node")]
    NoNode = 6,
    /// The name does not exist.
    #[error("name not found")]
    NameNotFound = 7,
    /// The address is one that exits never dial.
    #[error("forbidden address")]
    ForbiddenAddress = 8,
    /// The target's host cannot be reached.
    #[error("target unreachable")]
    Unreachable = 9,
    /// The target refused the connection.
    #[error("connection refused by the target")]
    ConnectionRefused = 10,
    /// The target did not answer in time.
    #[error("timed out")]
    TimedOut = 11,
    /// The onion key is unknown here; fetch records again.
    #[error("stale onion key")]
    StaleKey = 12,
    /// The handshake or its record does not hold.
    #[error("handshake failed")]
    Handshake = 13,
    /// No way leads to the target's network.
    #[error("network unreachable")]
    NetworkUnreachable = 14,
}

/// What the asker may do about a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Take the next tunnel of the plan.
    OtherTunnel,
    /// Fetch records, then the same again.
    RefreshRecords,
    /// No tunnel will do better: tell the program.
    GiveUp,
}

/// An OPEN or an answer that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StreamError {
    /// Its length is outside the bounds.
    #[error("frame of {0} bytes is outside the bounds")]
    Length(usize),
    /// Its content breaks the format.
    #[error("malformed frame: {0}")]
    Wire(#[from] WireError),
}

impl Reason {
    /// Every reason, in order of its number, which begins with 1.
    pub const ALL: [Self; 14] = [
        Self::Malformed,
        Self::Unsupported,
        Self::Denied,
        Self::Busy,
        Self::NoService,
        Self::NoNode,
        Self::NameNotFound,
        Self::ForbiddenAddress,
        Self::Unreachable,
        Self::ConnectionRefused,
        Self::TimedOut,
        Self::StaleKey,
        Self::Handshake,
        Self::NetworkUnreachable,
    ];

    /// The wire number.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Reads a wire number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|reason| reason.number() == number)
    }

    /// What the asker may do.
    pub fn remedy(self) -> Remedy {
        match self {
            Self::StaleKey => Remedy::RefreshRecords,
            Self::ForbiddenAddress | Self::NameNotFound | Self::NoService => Remedy::GiveUp,
            Self::Malformed
            | Self::Unsupported
            | Self::Denied
            | Self::Busy
            | Self::NoNode
            | Self::Unreachable
            | Self::NetworkUnreachable
            | Self::ConnectionRefused
            | Self::TimedOut
            | Self::Handshake => Remedy::OtherTunnel,
        }
    }
}

/// Writes an OPEN with its length.
pub fn encode_open(open: &Open) -> Vec<u8> {
    let mut body = Writer::new();
    match open {
        Open::Exit(transport, target) => {
            transport.encode(body.u8(1));
            target.encode(&mut body);
        }
        Open::Resolve(host) => {
            body.u8(2).short_bytes(host.to_string().as_bytes());
        }
        Open::Service(transport, name) => {
            transport.encode(body.u8(3));
            body.short_bytes(name.as_ref().map_or("", ServiceName::as_str).as_bytes());
        }
        Open::Relay(id) => {
            body.u8(4).bytes(id.as_bytes());
        }
        Open::Create { key_id, slots } => {
            body.u8(5).bytes(key_id).bytes(&slots[..]);
        }
        Open::Channel => {
            body.u8(6);
        }
        Open::Register(record) => {
            body.u8(7).bytes(record);
        }
        Open::Relayed => {
            body.u8(8);
        }
        Open::Records => {
            body.u8(9);
        }
        Open::Mirror => {
            body.u8(10);
        }
        Open::Punch(candidates) => write_candidates(candidates, body.u8(11)),
        Open::Move(session) => {
            body.u8(12).bytes(session.as_bytes());
        }
    }
    framed(body)
}

/// Reads an OPEN whose length was taken off: kind and body.
///
/// # Errors
/// [`StreamError`]; answer it with [`Reason::Malformed`].
pub fn decode_open(frame: &[u8]) -> Result<Open, StreamError> {
    bounded(frame, MAX_OPEN_BYTES)?;
    let mut reader = Reader::new(frame);
    let open = match reader.u8("kind")? {
        1 => Open::Exit(
            Transport::decode(&mut reader)?,
            Target::decode(&mut reader)?,
        ),
        2 => Open::Resolve(decode_host(&mut reader)?),
        3 => Open::Service(
            Transport::decode(&mut reader)?,
            decode_service(&mut reader)?,
        ),
        4 => Open::Relay(NodeId::from_bytes(reader.array("node id")?)),
        5 => Open::Create {
            key_id: reader.array("onion key id")?,
            slots: Box::new(reader.array("slots")?),
        },
        6 => Open::Channel,
        7 => return Ok(Open::Register(reader.rest().to_vec())),
        8 => Open::Relayed,
        9 => Open::Records,
        10 => Open::Mirror,
        11 => Open::Punch(read_candidates(&mut reader)?),
        12 => Open::Move(SessionId::from_bytes(reader.array("session")?)),
        _ => return Err(WireError::Invalid("kind").into()),
    };
    reader.finish()?;
    Ok(open)
}

/// Writes an answer with its length.
pub fn encode_answer(answer: &Answer) -> Vec<u8> {
    let mut body = Writer::new();
    match answer {
        Answer::Accepted(bytes) => body.u8(0).bytes(bytes),
        Answer::Refused(reason) => body.u8(1).u8(reason.number()),
    };
    framed(body)
}

/// Reads an answer whose length was taken off.
///
/// # Errors
/// [`StreamError`]: the other node broke the protocol.
pub fn decode_answer(frame: &[u8]) -> Result<Answer, StreamError> {
    bounded(frame, MAX_ANSWER_BYTES)?;
    let mut reader = Reader::new(frame);
    match reader.u8("status")? {
        0 => Ok(Answer::Accepted(reader.rest().to_vec())),
        1 => {
            let number = reader.u8("reason")?;
            reader.finish()?;
            let reason = Reason::from_number(number).ok_or(WireError::Invalid("reason"))?;
            Ok(Answer::Refused(reason))
        }
        _ => Err(WireError::Invalid("status").into()),
    }
}

/// Writes what ACCEPTED to a resolve adds; addresses beyond [`MAX_RESOLVED_ADDRESSES`] are left
/// out.
pub fn encode_resolved(addresses: impl ExactSizeIterator<Item = IpAddr>) -> Vec<u8> {
    let count = addresses.len().min(MAX_RESOLVED_ADDRESSES);
    let mut body = Writer::new();
    body.u8(u8::try_from(count).unwrap_or(u8::MAX));
    for ip in addresses.take(count) {
        encode_ip(ip, &mut body);
    }
    body.into_vec()
}

/// Reads what [`encode_resolved`] wrote: never empty.
///
/// # Errors
/// [`WireError`]: the other node broke the protocol.
pub fn decode_resolved(body: &[u8]) -> Result<Vec<IpAddr>, WireError> {
    let mut reader = Reader::new(body);
    let max = MAX_RESOLVED_ADDRESSES;
    let addresses = decode_list(&mut reader, max, "address count", decode_ip)?;
    reader.finish()?;
    if addresses.is_empty() {
        return Err(WireError::Invalid("address count"));
    }
    Ok(addresses)
}

fn bounded(frame: &[u8], max_with_length: usize) -> Result<(), StreamError> {
    let fits = (1..=max_with_length - 2).contains(&frame.len());
    if fits {
        Ok(())
    } else {
        Err(StreamError::Length(frame.len()))
    }
}

fn framed(body: Writer) -> Vec<u8> {
    let body = body.into_vec();
    let mut frame = Writer::new();
    frame
        .u16(u16::try_from(body.len()).unwrap_or(u16::MAX))
        .bytes(&body);
    frame.into_vec()
}

fn decode_host(reader: &mut Reader<'_>) -> Result<Host, WireError> {
    let bytes = reader.short_bytes("name")?;
    let text = std::str::from_utf8(bytes).map_err(|_| WireError::Invalid("name"))?;
    Host::parse(text)
        .ok()
        .filter(|host| host.name() == Some(text))
        .ok_or(WireError::Invalid("name"))
}

fn decode_service(reader: &mut Reader<'_>) -> Result<Option<ServiceName>, WireError> {
    let bytes = reader.short_bytes("service")?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| WireError::Invalid("service"))?;
    ServiceName::parse(text)
        .map(Some)
        .map_err(|_| WireError::Invalid("service"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_open(open: &Open, expected: &[u8]) {
        let bytes = encode_open(open);
        assert_eq!(bytes, expected, "{open:?}");
        assert_eq!(decode_open(&bytes[2..]).as_ref(), Ok(open));
    }

    /// Frozen: other builds speak these bytes.
    #[test]
    fn opens_keep_their_bytes() {
        let target = "a.example:80".parse().unwrap();
        check_open(
            &Open::Exit(Transport::Tcp, target),
            b"\x00\x0f\x01\x06\x01\x09a.example\x00\x50",
        );
        check_open(
            &Open::Exit(Transport::Udp, "1.2.3.4:443".parse().unwrap()),
            b"\x00\x09\x01\x11\x04\x01\x02\x03\x04\x01\xbb",
        );
        check_open(
            &Open::Resolve(Host::Name("b.example".into())),
            b"\x00\x0b\x02\x09b.example",
        );
        check_open(
            &Open::Service(Transport::Tcp, None),
            b"\x00\x03\x03\x06\x00",
        );
        check_open(
            &Open::Service(Transport::Udp, ServiceName::parse("web").ok()),
            b"\x00\x06\x03\x11\x03web",
        );
        check_open(&Open::Channel, b"\x00\x01\x06");
        check_open(&Open::Register(vec![1, 2]), b"\x00\x03\x07\x01\x02");
        check_open(&Open::Relayed, b"\x00\x01\x08");
        check_open(&Open::Records, b"\x00\x01\x09");
        check_open(&Open::Mirror, b"\x00\x01\x0a");
        let candidates = vec!["203.0.113.5:4433".parse().unwrap()];
        check_open(
            &Open::Punch(candidates),
            b"\x00\x09\x0b\x01\x04\xcb\x00\x71\x05\x11\x51",
        );
        check_open(
            &Open::Move(SessionId::from_bytes(*b"sixteen bytes id")),
            b"\x00\x11\x0csixteen bytes id",
        );
    }

    #[test]
    fn long_opens_come_back_whole() {
        let id = NodeId::from_bytes([3; 32]);
        for open in [
            Open::Relay(id),
            Open::Create {
                key_id: [9; 8],
                slots: Box::new([7; CREATE_SLOTS_BYTES]),
            },
        ] {
            assert_eq!(decode_open(&encode_open(&open)[2..]), Ok(open));
        }
    }

    /// Frozen: other builds speak these bytes.
    #[test]
    fn resolved_addresses_keep_their_bytes() {
        let addresses: [IpAddr; 2] = ["203.0.113.5".parse().unwrap(), "::1".parse().unwrap()];
        let bytes = encode_resolved(addresses.into_iter());
        let expected = b"\x02\x04\xcb\0\x71\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01";
        assert_eq!(bytes, expected);
        assert_eq!(decode_resolved(&bytes), Ok(addresses.to_vec()));
    }

    #[test]
    fn resolved_addresses_are_at_least_one_and_fit_an_answer() {
        let many = encode_resolved(vec![IpAddr::from([1_u16; 8]); 40].into_iter());
        assert_eq!(
            decode_resolved(&many).unwrap().len(),
            MAX_RESOLVED_ADDRESSES
        );
        assert!(encode_answer(&Answer::Accepted(many)).len() <= MAX_ANSWER_BYTES);
        let none = encode_resolved(std::iter::empty());
        let too_many = [vec![33], vec![4; 33 * 5]].concat();
        for body in [none, too_many] {
            let read = decode_resolved(&body);
            assert_eq!(read, Err(WireError::Invalid("address count")));
        }
        let trailing = decode_resolved(b"\x01\x04\x01\x02\x03\x04\x05");
        assert_eq!(trailing, Err(WireError::Trailing(1)));
    }

    #[test]
    fn every_reason_survives_the_wire() {
        for number in 0..=255 {
            let frame = [1, number];
            match decode_answer(&frame) {
                Ok(Answer::Refused(reason)) => {
                    assert_eq!(encode_answer(&Answer::Refused(reason))[2..], frame);
                }
                Ok(Answer::Accepted(_)) => panic!("{number} was accepted"),
                Err(error) => assert_eq!(error, WireError::Invalid("reason").into()),
            }
        }
        assert_eq!(
            Reason::ALL.len(),
            (1..=255).filter_map(Reason::from_number).count()
        );
    }

    #[test]
    fn broken_frames_are_named() {
        assert_eq!(decode_open(&[]), Err(StreamError::Length(0)));
        assert_eq!(decode_open(&[8; 2048]), Err(StreamError::Length(2048)));
        assert_eq!(decode_open(&[8, 0]), Err(WireError::Trailing(1).into()));
        assert_eq!(decode_open(&[200]), Err(WireError::Invalid("kind").into()));
        assert_eq!(
            decode_open(&[4, 1]),
            Err(WireError::Truncated("node id").into())
        );
        assert_eq!(
            decode_open(b"\x03\x06\x03A-b"),
            Err(WireError::Invalid("service").into())
        );
        assert_eq!(
            decode_open(b"\x03\x07\x00"),
            Err(WireError::Invalid("transport").into())
        );
        assert_eq!(
            decode_answer(&[2]),
            Err(WireError::Invalid("status").into())
        );
    }
}
