//! The node record: what a node says about itself, signed with the key that is its id.
//!
//! ```text
//! RECORD       version u8 = 1 | id 32 | sequence u64 | noise key 32 | suite u8 | roles u8
//!              | addresses | onion keys | exit ports | family | relays | rest | signature 64
//! roles        bit 0 relay, bit 1 hop, bit 2 exit; others 0
//! addresses    count u8 (to 8) | each: kind u8 (4, 6) | 4 B or 16 B | port u16
//! onion keys   count u8 (to 4) | each: key id 8 | suite u8 | public 32 | expires u64
//! exit ports   count u8 (to 16) | each: first u16 | last u16
//! family       length u8 (to 32, 0 is none) | printable ASCII
//! relays       count u8 (to 4) | each: node id 32
//! rest         fields of later builds: signed, kept, not read
//! signature    Ed25519 over SIGNATURE_CONTEXT and all bytes before the signature
//! ```
//! Times are seconds since 1970. The sequence is the time of signing in milliseconds since 1970, or
//! one more than the node's last. The whole is at most 1,024 bytes. Of two records of a node the
//! one with the higher sequence is true, and an old one is true no longer (module `book`); a record
//! carries no secret and no promise that the addresses in it are the node's.

mod book;
mod set;

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use thiserror::Error;

use crate::{
    address::{decode_addresses, decode_list, encode_addresses, is_dialable},
    id::{NodeId, SIGNATURE_BYTES},
    roles::Roles,
    suite::Suite,
    wire::{Reader, WireError, Writer},
};

pub use book::{MAX_CLOCK_SKEW, MAX_RECORD_AGE, RECORD_RENEWAL, RecordBook, RecordOutcome};
pub use set::{MAX_SET_RECORDS, RecordSetError, RecordSetReader, encode_set};

/// The largest record with its signature.
pub const MAX_RECORD_BYTES: usize = 1024;
/// Addresses in a record: a few of each family, and those seen by peers.
pub const MAX_RECORD_ADDRESSES: usize = 8;
/// Onion keys in a record: the current and the old one, per suite.
pub const MAX_RECORD_ONION_KEYS: usize = 4;
/// Port ranges in the summary of the exit policy.
pub const MAX_RECORD_EXIT_PORTS: usize = 16;
/// Relays in a record: two in use and two spare.
pub const MAX_RECORD_RELAYS: usize = 4;
/// Bytes of a family's name: a short word or a fingerprint.
pub const MAX_FAMILY_BYTES: usize = 32;

/// Keeps a signature over a record from being one over anything else.
const SIGNATURE_CONTEXT: &[u8] = b"wormholes node record 1\0";

const VERSION: u8 = 1;

/// What a node says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// Who speaks.
    pub id: NodeId,
    /// When it was signed, in milliseconds since 1970; grows with each record of the node, and the
    /// highest is true.
    pub sequence: u64,
    /// Where the node can be dialled, at most [`MAX_RECORD_ADDRESSES`].
    pub addresses: Vec<SocketAddr>,
    /// X25519 key of relayed ends.
    pub noise_key: [u8; 32],
    /// The suite that the node's processor is fastest with.
    pub suite: Suite,
    /// Keys of onion layers, at most [`MAX_RECORD_ONION_KEYS`].
    pub onion_keys: Vec<OnionKey>,
    /// What the node does for others.
    pub roles: Roles,
    /// First and last port of the ranges that it exits to, at most [`MAX_RECORD_EXIT_PORTS`].
    pub exit_ports: Vec<(u16, u16)>,
    /// Nodes of one family have one operator; 1 to [`MAX_FAMILY_BYTES`] printable ASCII bytes.
    pub family: Option<String>,
    /// Where it is registered, at most [`MAX_RECORD_RELAYS`].
    pub relays: Vec<NodeId>,
}

/// A public key that opens one layer of an onion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnionKey {
    /// Names the key in a CREATE.
    pub key_id: [u8; 8],
    /// The suite that it is for.
    pub suite: Suite,
    /// X25519 public key.
    pub public: [u8; 32],
    /// Not to be used from then on; whole seconds.
    pub expires: SystemTime,
}

/// A record whose signature holds, with the bytes that were signed. Cheap to clone.
#[derive(Clone)]
pub struct SignedRecord {
    record: Arc<NodeRecord>,
    bytes: Bytes,
}

/// A record that is not to be believed, or cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RecordError {
    /// Longer than [`MAX_RECORD_BYTES`].
    #[error("record of {0} bytes, at most {MAX_RECORD_BYTES} are allowed")]
    TooLong(usize),
    /// Another build's format.
    #[error("record of version {0}, this build reads {VERSION}")]
    Version(u8),
    /// Its content breaks the format.
    #[error("malformed record: {0}")]
    Wire(#[from] WireError),
    /// The signature is not the node's.
    #[error("the record's signature does not hold")]
    Signature,
}

impl NodeRecord {
    /// When it was signed, by its sequence.
    pub fn signed_at(&self) -> SystemTime {
        signed_at(self.sequence)
    }

    /// Encodes the record and has it signed by `sign`, which holds the key that is `id`.
    ///
    /// # Errors
    /// [`RecordError::Wire`] names the field that breaks a bound; [`RecordError::Signature`] when
    /// `sign` used another key.
    pub fn sign(
        &self,
        sign: impl FnOnce(&[u8]) -> [u8; SIGNATURE_BYTES],
    ) -> Result<SignedRecord, RecordError> {
        self.check()?;
        let mut bytes = self.encode();
        let signature = sign(&signed_message(&bytes));
        bytes.extend_from_slice(&signature);
        SignedRecord::decode(&bytes)
    }

    /// Refuses what the format cannot carry; what it can carry wrongly the decoder refuses.
    fn check(&self) -> Result<(), WireError> {
        let family_fits = self.family.as_deref().is_none_or(is_family);
        let checks = [
            (
                self.addresses.len() <= MAX_RECORD_ADDRESSES,
                "address count",
            ),
            (self.addresses.iter().all(is_dialable), "address"),
            (
                self.onion_keys.len() <= MAX_RECORD_ONION_KEYS,
                "onion key count",
            ),
            (
                self.exit_ports.len() <= MAX_RECORD_EXIT_PORTS,
                "exit port count",
            ),
            (family_fits, "family"),
            (self.relays.len() <= MAX_RECORD_RELAYS, "relay count"),
        ];
        match checks.iter().find(|(fits, _)| !fits) {
            Some((_, field)) => Err(WireError::Invalid(field)),
            None => Ok(()),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer
            .u8(VERSION)
            .bytes(self.id.as_bytes())
            .u64(self.sequence)
            .bytes(&self.noise_key)
            .u8(self.suite.number())
            .u8(self.roles.bits());
        encode_addresses(&self.addresses, &mut writer);
        writer.u8(count(self.onion_keys.len()));
        for key in &self.onion_keys {
            writer
                .bytes(&key.key_id)
                .u8(key.suite.number())
                .bytes(&key.public)
                .u64(unix_seconds(key.expires));
        }
        writer.u8(count(self.exit_ports.len()));
        for (first, last) in &self.exit_ports {
            writer.u16(*first).u16(*last);
        }
        writer.short_bytes(self.family.as_deref().unwrap_or_default().as_bytes());
        writer.u8(count(self.relays.len()));
        for relay in &self.relays {
            writer.bytes(relay.as_bytes());
        }
        writer.into_vec()
    }

    /// Reads what [`NodeRecord::encode`] wrote, and skips what a later build wrote behind it.
    fn decode(reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        let version = reader.u8("version")?;
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        Ok(Self {
            id: NodeId::from_bytes(reader.array("id")?),
            sequence: reader.u64("sequence")?,
            noise_key: reader.array("noise key")?,
            suite: decode_suite(reader)?,
            roles: Roles::from_bits(reader.u8("roles")?)?,
            addresses: decode_addresses(reader, MAX_RECORD_ADDRESSES)?,
            onion_keys: decode_list(
                reader,
                MAX_RECORD_ONION_KEYS,
                "onion key count",
                decode_onion_key,
            )?,
            exit_ports: decode_list(
                reader,
                MAX_RECORD_EXIT_PORTS,
                "exit port count",
                decode_ports,
            )?,
            family: decode_family(reader)?,
            relays: decode_list(reader, MAX_RECORD_RELAYS, "relay count", |reader| {
                Ok(NodeId::from_bytes(reader.array("relay")?))
            })?,
        })
    }
}

impl SignedRecord {
    /// Reads a record and verifies its signature.
    ///
    /// # Errors
    /// [`RecordError`]; nothing of such a record is to be believed.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(RecordError::TooLong(bytes.len()));
        }
        let (body, signature) = bytes
            .split_last_chunk::<SIGNATURE_BYTES>()
            .ok_or(WireError::Truncated("signature"))?;
        let record = NodeRecord::decode(&mut Reader::new(body))?;
        if !record.id.verifies(&signed_message(body), signature) {
            return Err(RecordError::Signature);
        }
        Ok(Self {
            record: Arc::new(record),
            bytes: Bytes::copy_from_slice(bytes),
        })
    }

    /// Reads a record as [`decode`](Self::decode) does. Bytes that are those of `known` were
    /// verified when it became known: to do it again takes as long as agreeing on a key.
    ///
    /// # Errors
    /// [`RecordError`]; nothing of such a record is to be believed.
    pub(crate) fn decode_beside(bytes: &[u8], known: Option<&Self>) -> Result<Self, RecordError> {
        match known {
            Some(known) if known.bytes == bytes => Ok(known.clone()),
            Some(_) | None => Self::decode(bytes),
        }
    }

    /// Reads id and sequence without verifying anything: enough to pass over a record that is
    /// old news, never to take one.
    pub(crate) fn peek(bytes: &[u8]) -> Result<(NodeId, u64), RecordError> {
        let mut reader = Reader::new(bytes);
        let version = reader.u8("version")?;
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        let id = NodeId::from_bytes(reader.array("id")?);
        Ok((id, reader.u64("sequence")?))
    }

    /// What the node says.
    pub fn record(&self) -> &NodeRecord {
        &self.record
    }

    /// Who says it.
    pub fn id(&self) -> NodeId {
        self.record.id
    }

    /// The encoded record with its signature.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl PartialEq for SignedRecord {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for SignedRecord {}

impl fmt::Debug for SignedRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SignedRecord").field(&self.record).finish()
    }
}

fn signed_message(body: &[u8]) -> Vec<u8> {
    [SIGNATURE_CONTEXT, body].concat()
}

/// Lists are checked to be short before they are written.
fn count(len: usize) -> u8 {
    u8::try_from(len).unwrap_or(u8::MAX)
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn signed_at(sequence: u64) -> SystemTime {
    // A u64 of milliseconds is far within what a time holds.
    let since = Duration::from_millis(sequence);
    UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
}

/// Whether `text` may be the name of a family: 1 to [`MAX_FAMILY_BYTES`] printable ASCII bytes,
/// none of them a space.
pub fn is_family(text: &str) -> bool {
    (1..=MAX_FAMILY_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

fn decode_suite(reader: &mut Reader<'_>) -> Result<Suite, WireError> {
    Suite::from_number(reader.u8("suite")?).ok_or(WireError::Invalid("suite"))
}

fn decode_onion_key(reader: &mut Reader<'_>) -> Result<OnionKey, WireError> {
    Ok(OnionKey {
        key_id: reader.array("onion key id")?,
        suite: decode_suite(reader)?,
        public: reader.array("onion key")?,
        expires: UNIX_EPOCH
            .checked_add(Duration::from_secs(reader.u64("expiry")?))
            .ok_or(WireError::Invalid("expiry"))?,
    })
}

fn decode_ports(reader: &mut Reader<'_>) -> Result<(u16, u16), WireError> {
    let (first, last) = (reader.u16("exit ports")?, reader.u16("exit ports")?);
    if first <= last {
        Ok((first, last))
    } else {
        Err(WireError::Invalid("exit ports"))
    }
}

fn decode_family(reader: &mut Reader<'_>) -> Result<Option<String>, WireError> {
    let bytes = reader.short_bytes("family")?;
    if bytes.is_empty() {
        return Ok(None);
    }
    std::str::from_utf8(bytes)
        .ok()
        .filter(|text| is_family(text))
        .map(|text| Some(text.to_owned()))
        .ok_or(WireError::Invalid("family"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestNode, for_mutations};

    #[test]
    fn what_is_signed_is_read_back() {
        let node = TestNode::new(1);
        let empty = NodeRecord {
            addresses: Vec::new(),
            onion_keys: Vec::new(),
            roles: Roles::default(),
            exit_ports: Vec::new(),
            family: None,
            relays: Vec::new(),
            ..node.record(0)
        };
        for record in [node.record(u64::MAX), empty] {
            let signed = record.sign(|message| node.sign(message)).unwrap();
            assert_eq!(signed.record(), &record);
            assert_eq!(SignedRecord::decode(signed.bytes()), Ok(signed));
        }
    }

    /// Frozen: other builds read these bytes. Ed25519 signatures are deterministic.
    #[test]
    fn a_record_keeps_its_bytes() {
        let bytes = TestNode::new(1).signed(0x0102).bytes().to_vec();
        let text = data_encoding::HEXLOWER.encode(&bytes);
        assert_eq!(text, include_str!("record/vector.hex").trim());
    }

    #[test]
    fn fields_of_later_builds_are_signed_and_passed_over() {
        let node = TestNode::new(1);
        let mut bytes = node.record(3).encode();
        bytes.extend_from_slice(b"later");
        let signature = node.sign(&signed_message(&bytes));
        bytes.extend_from_slice(&signature);
        let read = SignedRecord::decode(&bytes).unwrap();
        assert_eq!(
            (read.record(), &read.bytes()[..]),
            (&node.record(3), &bytes[..])
        );
    }

    #[test]
    fn the_largest_record_fits() {
        let node = TestNode::new(1);
        let mut record = node.record(1);
        record.addresses = vec!["[2001:db8::1]:4433".parse().unwrap(); MAX_RECORD_ADDRESSES];
        record.onion_keys = vec![record.onion_keys[0]; MAX_RECORD_ONION_KEYS];
        record.exit_ports = vec![(1, 65535); MAX_RECORD_EXIT_PORTS];
        record.family = Some("x".repeat(MAX_FAMILY_BYTES));
        record.relays = vec![node.id(); MAX_RECORD_RELAYS];
        assert!(record.sign(|message| node.sign(message)).is_ok());
    }

    #[test]
    fn what_the_format_cannot_carry_is_not_signed() {
        type Change = fn(&mut NodeRecord);
        let cases: [(Change, &str); 8] = [
            (|r| r.addresses = vec![r.addresses[0]; 9], "address count"),
            (|r| r.addresses[0].set_port(0), "address"),
            (
                |r| r.onion_keys = vec![r.onion_keys[0]; 5],
                "onion key count",
            ),
            (|r| r.exit_ports = vec![(1, 2); 17], "exit port count"),
            (|r| r.exit_ports = vec![(2, 1)], "exit ports"),
            (|r| r.family = Some("x".repeat(33)), "family"),
            (|r| r.family = Some("two words".to_owned()), "family"),
            (|r| r.relays = vec![r.id; 5], "relay count"),
        ];
        let node = TestNode::new(1);
        for (change, field) in cases {
            let mut record = node.record(1);
            change(&mut record);
            let signed = record.sign(|message| node.sign(message));
            assert_eq!(signed, Err(WireError::Invalid(field).into()));
        }
    }

    #[test]
    fn another_key_or_context_does_not_sign() {
        let (node, other) = (TestNode::new(1), TestNode::new(2));
        let record = node.record(1);
        let wrong_key = record.sign(|message| other.sign(message));
        assert_eq!(wrong_key, Err(RecordError::Signature));
        let no_context = record.sign(|message| node.sign(&message[SIGNATURE_CONTEXT.len()..]));
        assert_eq!(no_context, Err(RecordError::Signature));
    }

    #[test]
    fn a_known_record_vouches_for_its_own_bytes_only() {
        let known = TestNode::new(1).signed(1);
        let beside = |bytes: &[u8]| SignedRecord::decode_beside(bytes, Some(&known));
        assert_eq!(beside(known.bytes()), Ok(known.clone()));
        for at in 0..known.bytes().len() {
            let mut forged = known.bytes().to_vec();
            forged[at] ^= 1;
            assert!(beside(&forged).is_err(), "byte {at}");
        }
        let newer = TestNode::new(1).signed(2);
        assert_eq!(beside(newer.bytes()), Ok(newer.clone()));
    }

    #[test]
    fn long_records_and_other_versions_are_told_apart() {
        let long = SignedRecord::decode(&[1; MAX_RECORD_BYTES + 1]);
        assert_eq!(long, Err(RecordError::TooLong(MAX_RECORD_BYTES + 1)));
        let mut bytes = TestNode::new(1).signed(1).bytes().to_vec();
        bytes[0] = 2;
        assert_eq!(SignedRecord::decode(&bytes), Err(RecordError::Version(2)));
    }

    #[test]
    fn damaged_records_are_refused() {
        let valid = TestNode::new(1).signed(1);
        for_mutations(valid.bytes(), |bytes| {
            assert!(SignedRecord::decode(bytes).is_err());
            let _ = SignedRecord::peek(bytes);
        });
    }
}
