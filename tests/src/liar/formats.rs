//! Every message of the wire as fields: the one place where they are listed for lying.
//!
//! The byte diagrams stand beside the encoders in `wormholes_proto`.

use std::{
    net::{IpAddr, SocketAddr},
    time::{SystemTime, UNIX_EPOCH},
};

use wormholes_proto::{Answer, NodeRecord, Open, Target, Transport};

use super::message::{
    Meaning,
    Meaning::{
        Address, Choice, Flags, Id, Length, Number, Padding, Port, Proof, Size,
        Target as TargetAddress, Text, Value,
    },
    Message,
};

const OPEN_KINDS: &[u8] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
/// Either is the asker's own business; 1 is neither.
const TRANSPORTS: &[u8] = &[6, 17];
const FAMILIES: &[u8] = &[1, 4, 6];
const REASONS: &[u8] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];
const CELL_KINDS: &[u8] = &[1, 2, 3, 4];

/// An OPEN with its length. A record inside is lied about by itself, with [`record`].
pub fn open(open: &Open) -> Message {
    let kind = |name, number: u8| {
        Message::new(name)
            .framed()
            .field("kind", Choice(OPEN_KINDS), [number])
    };
    match open {
        Open::Exit(by, to) => target(transport(kind("OPEN exit", 1), *by), to),
        Open::Resolve(host) => text(kind("OPEN resolve", 2), "name", &host.to_string()),
        Open::Service(by, name) => {
            let name = name.as_ref().map_or("", |name| name.as_str());
            text(transport(kind("OPEN service", 3), *by), "name", name)
        }
        Open::Relay(to) => kind("OPEN relay", 4).field("node", Id, to.as_bytes()),
        Open::Create { key_id, slots } => {
            let (slot, spare) = slots.split_at(160);
            kind("OPEN create", 5)
                .field("onion key id", Value, key_id)
                .field("slot 0", Proof, slot)
                .field("slots 1 to 7", Proof, spare)
        }
        Open::Channel => kind("OPEN channel", 6).free(),
        Open::Register(record) => kind("OPEN register", 7).field("record", Proof, record),
        Open::Relayed => kind("OPEN relayed", 8).free(),
        Open::Records => kind("OPEN records", 9).free(),
        Open::Mirror => kind("OPEN mirror", 10).free(),
        Open::Punch(candidates) => addresses(kind("OPEN punch", 11), candidates),
        Open::Move(session) => kind("OPEN move", 12).field("session", Value, session.as_bytes()),
    }
}

/// Who asks has every right to both.
fn transport(message: Message, transport: Transport) -> Message {
    let number = match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
    };
    message
        .field("transport", Choice(TRANSPORTS), [number])
        .free()
}

/// An ANSWER with its length; what an accepted one carries is lied about by itself.
pub fn answer(answer: &Answer) -> Message {
    match answer {
        Answer::Accepted(body) => {
            let message = Message::new("ANSWER accepted").framed();
            let message = message.field("status", Choice(&[1]), [0]);
            if body.is_empty() {
                message
            } else {
                message.field("body", Proof, body)
            }
        }
        Answer::Refused(reason) => Message::new("ANSWER refused")
            .framed()
            .field("status", Choice(&[0]), [1])
            .field("reason", Choice(REASONS), [reason.number()])
            .free(),
    }
}

/// The answer to a RESOLVE.
pub fn resolved(addresses: &[IpAddr]) -> Message {
    let message = Message::new("ANSWER resolved")
        .framed()
        .field("status", Choice(&[1]), [0])
        .field("count", Length, [count(addresses.len())]);
    addresses.iter().fold(message, |message, ip| {
        ip_address(message, *ip, &[4, 6], Address).free()
    })
}

/// Records as a node tells them to another.
pub fn set(record: &[u8]) -> Message {
    Message::new("set")
        .field("length", Length, length(record))
        .field("record", Proof, record)
}

/// A record without its signature. What a node says of itself is its business, as far as it can be
/// read.
pub fn record(record: &NodeRecord) -> Message {
    let message = Message::new("record")
        .field("version", Choice(&[]), [1])
        .field("id", Id, record.id.as_bytes())
        .field("sequence", Number, record.sequence.to_be_bytes())
        .free()
        .field("noise key", Value, record.noise_key)
        .free()
        .field("suite", Choice(&[1, 2]), [record.suite.number()])
        .free()
        .field("roles", Flags(7), [roles(record)]);
    let message = addresses(message, &record.addresses);
    let message = record.onion_keys.iter().fold(
        message.field("onion key count", Length, [count(record.onion_keys.len())]),
        |message, key| {
            message
                .field("onion key id", Value, key.key_id)
                .free()
                .field("onion key suite", Choice(&[1, 2]), [key.suite.number()])
                .free()
                .field("onion key", Value, key.public)
                .free()
                .field(
                    "onion key expiry",
                    Number,
                    seconds(key.expires).to_be_bytes(),
                )
                .free()
        },
    );
    let message = record.exit_ports.iter().fold(
        message.field("exit port count", Length, [count(record.exit_ports.len())]),
        |message, (first, last)| {
            message
                .field("first exit port", Number, first.to_be_bytes())
                .free()
                .field("last exit port", Number, last.to_be_bytes())
                .free()
        },
    );
    let family = record.family.as_deref().unwrap_or_default();
    let message = text(message, "family", family);
    // Relays that are not counted pass for fields of later builds.
    let relays = message.field("relay count", Length, [count(record.relays.len())]);
    let relays = record.relays.iter().fold(relays.free(), |message, relay| {
        message.field("relay", Id, relay.as_bytes()).free()
    });
    relays.open_ended()
}

/// The signature at the end of a record, which stands for all before it.
pub fn signature(signed: &[u8]) -> Message {
    let (body, signature) = signed.split_at(signed.len().saturating_sub(64));
    Message::new("signature")
        .field("record", Proof, body)
        .field("signature", Proof, signature)
}

/// The first two bytes of a relayed caller's HELLO.
pub fn hello_head(suite: u8) -> Message {
    Message::new("HELLO")
        .field("version", Choice(&[]), [1])
        .field("suite", Choice(&[1, 2]), [suite])
}

/// What a HELLO and its answer seal: a record, padded to one size for all.
pub fn sealed_record(name: &'static str, record: &[u8], size: usize) -> Message {
    let length = u16::try_from(record.len()).unwrap_or(u16::MAX);
    let padding = vec![0; size.saturating_sub(2 + record.len())];
    Message::new(name)
        .field("record length", Length, length.to_be_bytes())
        .field("record", Proof, record)
        .field("padding", Padding, padding)
        .free()
}

/// What a frame between relayed ends seals.
pub fn frame(kind: u8, data: &[u8], padding: usize) -> Message {
    Message::new("frame")
        .open_ended()
        .field("kind", Choice(&[1, 2, 3]), [kind])
        .field("size", Size, length(data))
        .field("data", Value, data)
        .field("padding", Padding, vec![0; padding])
        .free()
}

/// A frame with a flow's bytes, which may be any.
pub fn data_frame(data: &[u8]) -> Message {
    Message::new("data frame")
        .open_ended()
        .field("kind", Choice(&[2, 3]), [1])
        .field("size", Size, length(data))
        .field("data", Value, data)
        .free()
}

/// A frame between relayed ends, as who carries it sees it.
pub fn sealed_frame(frame: &[u8]) -> Message {
    let (length, sealed) = frame.split_at(frame.len().min(2));
    Message::new("sealed frame")
        .field("length", Length, length)
        .field("ciphertext", Proof, sealed)
}

/// What a hop is told in its slot of CREATE, when another hop follows.
pub fn route(next: &[u8; 32], address: SocketAddr, key_id: &[u8; 8], k: &[u8; 32]) -> Message {
    let (family, ip, rest) = match address.ip() {
        IpAddr::V4(ip) => (4, ip.octets().to_vec(), 12),
        IpAddr::V6(ip) => (6, ip.octets().to_vec(), 0),
    };
    Message::new("route")
        .field("flags", Choice(&[1]), [0])
        .field("next node", Id, next)
        .field("address family", Choice(&[4, 6]), [family])
        .field("address", TargetAddress, ip)
        .field("address padding", Padding, vec![0; rest])
        .field("port", Port, address.port().to_be_bytes())
        .field("next key id", Value, key_id)
        .field("stream key", Value, k)
        .free()
        .field("rest", Padding, [0; 20])
}

/// What the last hop is told.
pub fn last_route(k: &[u8; 32]) -> Message {
    Message::new("route of the last")
        .field("flags", Choice(&[0]), [1])
        .field("next hop", Padding, [0; 59])
        .field("stream key", Value, k)
        .free()
        .field("rest", Padding, [0; 20])
}

/// What a hop seals into its slot of CREATED.
pub fn status(commitment: &[u8; 15]) -> Message {
    Message::new("status")
        .field("status", Choice(REASONS), [0])
        .field("commitment", Proof, commitment)
}

/// What a cell holds between client and last hop.
pub fn cell(kind: u8, data: &[u8], size: usize) -> Message {
    let padding = size.saturating_sub(3 + data.len());
    Message::new("cell")
        .open_ended()
        .field("type", Choice(CELL_KINDS), [kind])
        .field("length", Size, length(data))
        .field("data", Proof, data)
        .field("padding", Padding, vec![0; padding])
        .free()
}

/// A cell with a flow's bytes, which may be any.
pub fn data_cell(data: &[u8], size: usize) -> Message {
    let padding = size.saturating_sub(3 + data.len());
    Message::new("data cell")
        .open_ended()
        .field("type", Choice(&[1, 2, 4]), [3])
        .field("length", Size, length(data))
        .free()
        .field("data", Value, data)
        .free()
        .field("padding", Padding, vec![0; padding])
        .free()
}

/// A cell, as who carries it sees it.
pub fn sealed_cell(cell: &[u8]) -> Message {
    let (class, rest) = cell.split_at(cell.len().min(1));
    let (slot, rest) = rest.split_at(rest.len().min(16));
    let (spare, payload) = rest.split_at(rest.len().min(112));
    Message::new("sealed cell")
        .field("class", Choice(&[1]), class)
        .field("slot 0", Proof, slot)
        .field("slots 1 to 7", Proof, spare)
        .field("payload", Proof, payload)
}

fn target(message: Message, target: &Target) -> Message {
    let message = match &target.host {
        wormholes_proto::Host::Name(name) => {
            let message = message.field("host kind", Choice(FAMILIES), [1]);
            text(message, "host name", name)
        }
        wormholes_proto::Host::Ip(ip) => ip_address(message, *ip, FAMILIES, TargetAddress),
    };
    message.field("port", Port, target.port.to_be_bytes())
}

fn text(message: Message, name: &'static str, text: &str) -> Message {
    message
        .field(name, Length, [count(text.len())])
        .field(name, Text, text)
}

fn addresses(message: Message, addresses: &[SocketAddr]) -> Message {
    let message = message.field("address count", Length, [count(addresses.len())]);
    addresses.iter().fold(message, |message, address| {
        ip_address(message, address.ip(), &[4, 6], Address).field(
            "port",
            Port,
            address.port().to_be_bytes(),
        )
    })
}

fn ip_address(message: Message, ip: IpAddr, families: &'static [u8], meaning: Meaning) -> Message {
    let (family, bytes) = match ip {
        IpAddr::V4(ip) => (4, ip.octets().to_vec()),
        IpAddr::V6(ip) => (6, ip.octets().to_vec()),
    };
    message
        .field("address kind", Choice(families), [family])
        .field("address", meaning, bytes)
}

fn roles(record: &NodeRecord) -> u8 {
    let bit = |is_on: bool, bit: u8| if is_on { bit } else { 0 };
    bit(record.roles.relay, 1) | bit(record.roles.hop, 2) | bit(record.roles.exit, 4)
}

fn length(data: &[u8]) -> [u8; 2] {
    u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes()
}

fn count(len: usize) -> u8 {
    u8::try_from(len).unwrap_or(u8::MAX)
}

fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

    use wormholes_proto::{
        Host, NodeId, OnionKey, Reason, Roles, ServiceName, Suite, encode_answer, encode_open,
        sealed::SessionId,
    };

    use super::*;
    use crate::TestNode;

    #[test]
    fn every_byte_of_an_open_belongs_to_a_field() {
        let opens = [
            Open::Exit(
                Transport::Tcp,
                Target::new(Host::Name("a.example".to_owned()), 80),
            ),
            Open::Exit(Transport::Udp, SocketAddr::from(([1, 2, 3, 4], 443)).into()),
            Open::Resolve(Host::Name("b.example".to_owned())),
            Open::Service(Transport::Tcp, ServiceName::parse("web").ok()),
            Open::Relay(NodeId::from_bytes([3; 32])),
            Open::Create {
                key_id: [9; 8],
                slots: Box::new([7; 1280]),
            },
            Open::Channel,
            Open::Register(vec![1, 2]),
            Open::Relayed,
            Open::Records,
            Open::Mirror,
            Open::Punch(vec![([10, 0, 0, 1], 4433).into()]),
            Open::Move(SessionId::from_bytes([6; 16])),
        ];
        let mut kinds = BTreeSet::new();
        for sample in &opens {
            let bytes = encode_open(sample);
            assert_eq!(open(sample).bytes(), bytes, "{sample:?}");
            kinds.insert(bytes[2]);
        }
        let all: BTreeSet<_> = OPEN_KINDS.iter().copied().collect();
        assert_eq!(kinds, all, "a kind has no sample");
        let unknown = wormholes_proto::decode_open(&[13]);
        assert!(unknown.is_err(), "kind 13 is new: give it its fields here");
    }

    #[test]
    fn every_byte_of_an_answer_belongs_to_a_field() {
        let body = [&[2, 4, 127, 0, 0, 1, 6][..], &[1; 16]].concat();
        let addresses = [Ipv4Addr::LOCALHOST.into(), [1; 16].into()];
        let whole = encode_answer(&Answer::Accepted(body.clone()));
        assert_eq!(resolved(&addresses).bytes(), whole);
        for sample in [
            Answer::Accepted(Vec::new()),
            Answer::Accepted(body),
            Answer::Refused(Reason::Busy),
        ] {
            assert_eq!(answer(&sample).bytes(), encode_answer(&sample));
        }
        let known = (0..=u8::MAX).filter(|number| Reason::from_number(*number).is_some());
        assert_eq!(known.collect::<Vec<_>>(), REASONS);
    }

    #[test]
    fn every_byte_of_a_record_belongs_to_a_field() {
        let node = TestNode::new(1).unwrap();
        let mut full = node.record(7);
        full.addresses = vec![
            ([203, 0, 113, 1], 4433).into(),
            "[2001:db8::1]:1".parse().unwrap(),
        ];
        full.onion_keys = vec![OnionKey {
            key_id: [1; 8],
            suite: Suite::ChaChaPoly,
            public: [2; 32],
            expires: UNIX_EPOCH + Duration::from_secs(1_900_000_000),
        }];
        full.roles = Roles {
            relay: true,
            hop: false,
            exit: true,
        };
        full.exit_ports = vec![(80, 80), (8000, 8999)];
        full.family = Some("family".to_owned());
        full.relays = vec![node.id()];
        let signed = node.sign(&full).unwrap();
        let (body, _signature) = signed.bytes().split_last_chunk::<64>().unwrap();
        assert_eq!(record(&full).bytes(), body);
        let encoded = wormholes_proto::encode_set([&signed]);
        assert_eq!(set(signed.bytes()).bytes(), encoded);
    }
}
