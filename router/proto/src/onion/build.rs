//! The messages that build a circuit, and what client and hops both do to them.
//!
//! ```text
//! CREATE   onion key id 8 (beside it, in the OPEN) | 8 slots of 160
//! slot     Noise NK message 1: e 32 | route 112, encrypted | tag 16
//!          prologue: "wormholes onion 1\0" | suite u8 | hop id 32 | key id 8 | slots 1..7
//! a hop    opens slot 0, then
//!            slots <- (slots 1..7, 160 zeros) XOR stream(k, 0)         k from its route
//!          and sends that on. Sealed last, slot 0 stands for all that follow it.
//!
//! CREATED  8 slots of 64
//! slot     Noise NK message 2: e 32 | status u8, commitment 15, encrypted | tag 16
//!          status: 0 built; else a Reason: the hop behind this one failed
//!          commitment: SHA-256("wormholes onion 1 created" | the 512 bytes from behind), cut
//! a hop    slots <- (its slot, slots 0..6 XOR stream(k, 1))
//!          The last hop, and one whose next hop failed, begin with zeros from behind.
//! ```

use ring::digest::{Context, SHA256};

use crate::{
    id::NodeId,
    noise::{HandshakeError, TAG_BYTES},
    record::OnionKey,
    stream::Reason,
};

use super::{route::ROUTE_BYTES, schedule::StreamKey};

/// Most hops of a circuit, and slots of everything.
pub const MAX_HOPS: usize = 8;
/// Bytes of all slots of a CREATE.
pub const CREATE_BYTES: usize = MAX_HOPS * CREATE_SLOT_BYTES;
/// Bytes of a CREATED.
pub const CREATED_BYTES: usize = MAX_HOPS * CREATED_SLOT_BYTES;

/// Bytes of a Noise ephemeral key.
pub(super) const EPHEMERAL_BYTES: usize = 32;
/// Ephemeral key, route, tag.
pub(super) const CREATE_SLOT_BYTES: usize = EPHEMERAL_BYTES + ROUTE_BYTES + TAG_BYTES;
/// Ephemeral key, status, tag.
pub(super) const CREATED_SLOT_BYTES: usize = EPHEMERAL_BYTES + STATUS_BYTES + TAG_BYTES;

/// Slots 1..7 of a CREATE.
pub(super) const CREATE_BODY_BYTES: usize = CREATE_BYTES - CREATE_SLOT_BYTES;
/// Slots 1..7 of a CREATED.
pub(super) const CREATED_BODY_BYTES: usize = CREATED_BYTES - CREATED_SLOT_BYTES;

pub(super) const STATUS_BYTES: usize = 16;
/// The status number itself leaves 120 bits: a second preimage stays out of reach.
const COMMITMENT_BYTES: usize = STATUS_BYTES - 1;

/// Nonces under a route's `k`.
const CREATE_STREAM: u64 = 0;
const CREATED_STREAM: u64 = 1;

/// A CREATE: what an OPEN of that kind carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    /// Which onion key slot 0 is for.
    pub key_id: [u8; 8],
    /// The slots.
    pub slots: Box<[u8; CREATE_BYTES]>,
}

/// What a hop tells the client in its slot of CREATED.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Status {
    /// `None` is built; else why the hop behind this one was not.
    pub(super) failure: Option<Reason>,
    commitment: [u8; COMMITMENT_BYTES],
}

/// The Noise prologue of one layer: whoever changes the hop, the key or another slot breaks the
/// handshake.
pub(super) fn prologue(hop: &NodeId, key: &OnionKey, body: &[u8; CREATE_BODY_BYTES]) -> Vec<u8> {
    let mut prologue = b"wormholes onion 1\0".to_vec();
    prologue.push(key.suite.number());
    prologue.extend_from_slice(hop.as_bytes());
    prologue.extend_from_slice(&key.key_id);
    prologue.extend_from_slice(body);
    prologue
}

/// What a hop sends on: slots 1..7 of what it received, and one slot of stream.
pub(super) fn next_create(
    stream_key: &StreamKey,
    body: &[u8; CREATE_BODY_BYTES],
) -> Result<Box<[u8; CREATE_BYTES]>, HandshakeError> {
    let mut next = Box::new([0; CREATE_BYTES]);
    if let Some(head) = next.first_chunk_mut() {
        *head = *body;
    }
    stream_key.apply(CREATE_STREAM, &mut next[..])?;
    Ok(next)
}

/// Slots 1..7 of the CREATE that [`next_create`] turns into `next`, whose last slot must be the
/// one that it appends.
pub(super) fn previous_create_body(
    stream_key: &StreamKey,
    next: &[u8; CREATE_BYTES],
) -> Result<[u8; CREATE_BODY_BYTES], HandshakeError> {
    let mut body = [0; CREATE_BODY_BYTES];
    if let Some(head) = next.first_chunk() {
        body = *head;
    }
    stream_key.apply(CREATE_STREAM, &mut body)?;
    Ok(body)
}

/// What a hop sends back: its slot, and slots 0..6 of what came from behind.
pub(super) fn previous_created(
    stream_key: &StreamKey,
    slot: [u8; CREATED_SLOT_BYTES],
    behind: &[u8; CREATED_BYTES],
) -> Result<[u8; CREATED_BYTES], HandshakeError> {
    let mut created = [0; CREATED_BYTES];
    if let Some((head, body)) = created.split_first_chunk_mut() {
        *head = slot;
        if let Some(kept) = behind.first_chunk::<CREATED_BODY_BYTES>() {
            body.copy_from_slice(kept);
        }
        stream_key.apply(CREATED_STREAM, body)?;
    }
    Ok(created)
}

/// What a hop received from behind, from what it sent back. `dropped` is the slot that it dropped.
pub(super) fn created_behind(
    stream_key: &StreamKey,
    created: &[u8; CREATED_BYTES],
    dropped: [u8; CREATED_SLOT_BYTES],
) -> Result<[u8; CREATED_BYTES], HandshakeError> {
    let mut behind = [0; CREATED_BYTES];
    if let Some((body, tail)) = behind.split_first_chunk_mut::<CREATED_BODY_BYTES>() {
        if let Some(kept) = created.last_chunk() {
            *body = *kept;
        }
        stream_key.apply(CREATED_STREAM, body)?;
        tail.copy_from_slice(&dropped);
    }
    Ok(behind)
}

impl Status {
    pub(super) fn new(failure: Option<Reason>, behind: &[u8; CREATED_BYTES]) -> Self {
        let mut hash = Context::new(&SHA256);
        hash.update(b"wormholes onion 1 created");
        hash.update(behind);
        let hash = hash.finish();
        let commitment = hash.as_ref().first_chunk().copied().unwrap_or_default();
        Self {
            failure,
            commitment,
        }
    }

    pub(super) fn encode(self) -> [u8; STATUS_BYTES] {
        let mut bytes = [self.failure.map_or(0, Reason::number); STATUS_BYTES];
        if let Some(tail) = bytes.last_chunk_mut() {
            *tail = self.commitment;
        }
        bytes
    }

    /// Reads a status; a number that names no reason is a broken handshake.
    pub(super) fn decode([number, commitment @ ..]: [u8; STATUS_BYTES]) -> Self {
        let failure = match number {
            0 => None,
            number => Some(Reason::from_number(number).unwrap_or(Reason::Handshake)),
        };
        Self {
            failure,
            commitment,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_wire() {
        assert_eq!((CREATE_SLOT_BYTES, CREATE_BYTES), (160, 1280));
        assert_eq!((CREATED_SLOT_BYTES, CREATED_BYTES), (64, 512));
    }

    #[test]
    fn what_a_hop_does_to_a_create_is_undone() {
        let body = [3; CREATE_BODY_BYTES];
        let key = |byte| StreamKey::new(&[byte; 32]).unwrap();
        let next = next_create(&key(1), &body).unwrap();
        assert_eq!(previous_create_body(&key(1), &next), Ok(body));
        assert_ne!(previous_create_body(&key(2), &next), Ok(body));
    }

    #[test]
    fn what_a_hop_does_to_a_created_is_undone() {
        let behind = std::array::from_fn(|i| u8::try_from(i % 251).unwrap());
        let key = StreamKey::new(&[1; 32]).unwrap();
        let created = previous_created(&key, [9; 64], &behind).unwrap();
        assert_eq!(created[..64], [9; 64]);
        let dropped = *behind.last_chunk().unwrap();
        assert_eq!(created_behind(&key, &created, dropped), Ok(behind));
    }

    #[test]
    fn a_status_comes_back_and_commits_to_all_bytes_from_behind() {
        let mut behind = [0; CREATED_BYTES];
        let status = Status::new(Some(Reason::StaleKey), &behind);
        assert_eq!(Status::decode(status.encode()), status);
        behind[CREATED_BYTES - 1] ^= 1;
        assert_ne!(Status::new(Some(Reason::StaleKey), &behind), status);
        assert_eq!(Status::decode([200; 16]).failure, Some(Reason::Handshake));
    }
}
