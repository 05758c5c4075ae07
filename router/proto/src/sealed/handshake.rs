//! The two messages that make a sealed session.

use std::fmt;

use rand_core::CryptoRng;
use snow::HandshakeState;

use super::{Opener, SealedError, Sealer, SessionId};
use crate::{
    id::NodeId,
    noise::{NOISE_KEY_BYTES, Pattern, StaticKeypair, TAG_BYTES, handshake_builder},
    record::{MAX_RECORD_BYTES, RecordError, SignedRecord},
    suite::Suite,
    wire::{Reader, WireError},
};

pub(super) const VERSION: u8 = 1;
const CONTEXT: &[u8] = b"wormholes relayed ends 1\0";

/// A record of any size, with its length.
pub(super) const PAYLOAD_BYTES: usize = 2 + MAX_RECORD_BYTES;

/// Length of the caller's message, always.
pub const HELLO_BYTES: usize =
    2 + NOISE_KEY_BYTES + NOISE_KEY_BYTES + TAG_BYTES + PAYLOAD_BYTES + TAG_BYTES;
/// Length of the answer, always.
pub const ANSWER_BYTES: usize = NOISE_KEY_BYTES + PAYLOAD_BYTES + TAG_BYTES;

/// Who this node is to the other end.
#[derive(Debug, Clone, Copy)]
pub struct OwnEnd<'a> {
    /// The key that `record` carries.
    pub noise: &'a StaticKeypair,
    /// This node's newest record.
    pub record: &'a SignedRecord,
}

/// Two ends that know each other.
#[derive(Debug)]
pub struct Session {
    /// The other end's record, for the book: it may be newer than the known one.
    pub peer: SignedRecord,
    /// What both ends call the session when it shall go on by another stream.
    pub id: SessionId,
    /// What goes out.
    pub sealer: Sealer,
    /// What comes in.
    pub opener: Opener,
}

/// A caller that waits for the answer.
pub struct Initiator {
    noise: Box<HandshakeState>,
    suite: Suite,
    /// The newest known record of the other end.
    peer: SignedRecord,
}

impl Initiator {
    /// Calls the node whose newest known record is `peer`; the bytes are to be sent first.
    ///
    /// # Errors
    /// [`SealedError::OwnRecord`] when `own` does not fit together.
    pub fn new(
        own: OwnEnd<'_>,
        peer: &SignedRecord,
        suite: Suite,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<(Self, Vec<u8>), SealedError> {
        own.check()?;
        let mut noise = handshake_builder(Pattern::Ik, suite, rng)
            .map_err(|_| SealedError::Handshake)?
            .local_private_key(own.noise.private())?
            .remote_public_key(&peer.record().noise_key)?
            .prologue(&prologue(suite, &peer.id()))?
            .build_initiator()?;
        let mut hello = vec![0; HELLO_BYTES];
        let (head, message) = hello
            .split_first_chunk_mut::<2>()
            .ok_or(SealedError::Handshake)?;
        *head = [VERSION, suite.number()];
        noise.write_message(&payload(own.record), message)?;
        let initiator = Self {
            noise: Box::new(noise),
            suite,
            peer: peer.clone(),
        };
        Ok((initiator, hello))
    }

    /// Takes the answer, [`ANSWER_BYTES`] long.
    ///
    /// # Errors
    /// [`SealedError`]: the answer is not from the node that was called.
    pub fn handle_answer(mut self, answer: &[u8]) -> Result<Session, SealedError> {
        if answer.len() != ANSWER_BYTES {
            return Err(SealedError::Length(answer.len()));
        }
        let record = read_payload(&mut self.noise, answer)?;
        let peer = SignedRecord::decode_beside(&record, Some(&self.peer))?;
        if peer.id() != self.peer.id() {
            return Err(SealedError::WrongNode(peer.id()));
        }
        check_peer(&self.noise, &peer, Some(&self.peer))?;
        let (ours, theirs) = self.noise.dangerously_get_raw_split();
        Ok(Session {
            peer,
            id: SessionId::of_keys(&ours, &theirs),
            sealer: Sealer::new(self.suite, ours)?,
            opener: Opener::new(self.suite, theirs)?,
        })
    }
}

/// Takes a caller's HELLO, [`HELLO_BYTES`] long, and makes the answer. `known` tells the newest
/// known record of a node. Nothing may be done for the caller before its first frame opens: a
/// HELLO can be a replay.
///
/// # Errors
/// [`SealedError`]; to be told to the caller as nothing but a reset.
pub fn handle_hello(
    own: OwnEnd<'_>,
    hello: &[u8],
    known: impl FnOnce(&NodeId) -> Option<SignedRecord>,
    rng: &mut (impl CryptoRng + ?Sized),
) -> Result<(Session, Vec<u8>), SealedError> {
    own.check()?;
    let (&[version, suite], message) = hello
        .split_first_chunk::<2>()
        .filter(|_| hello.len() == HELLO_BYTES)
        .ok_or(SealedError::Length(hello.len()))?;
    if version != VERSION {
        return Err(SealedError::Version(version));
    }
    let suite = Suite::from_number(suite).ok_or(SealedError::Suite(suite))?;
    let mut noise = handshake_builder(Pattern::Ik, suite, rng)
        .map_err(|_| SealedError::Handshake)?
        .local_private_key(own.noise.private())?
        .prologue(&prologue(suite, &own.record.id()))?
        .build_responder()?;
    let record = read_payload(&mut noise, message)?;
    let (id, _) = SignedRecord::peek(&record)?;
    let known = known(&id);
    let peer = SignedRecord::decode_beside(&record, known.as_ref())?;
    check_peer(&noise, &peer, known.as_ref())?;
    let mut answer = vec![0; ANSWER_BYTES];
    noise.write_message(&payload(own.record), &mut answer)?;
    let (theirs, ours) = noise.dangerously_get_raw_split();
    let session = Session {
        peer,
        id: SessionId::of_keys(&theirs, &ours),
        sealer: Sealer::new(suite, ours)?,
        opener: Opener::new(suite, theirs)?,
    };
    Ok((session, answer))
}

impl OwnEnd<'_> {
    fn check(&self) -> Result<(), SealedError> {
        if self.record.record().noise_key == *self.noise.public() {
            Ok(())
        } else {
            Err(SealedError::OwnRecord)
        }
    }
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Initiator")
            .field("peer", &self.peer.id())
            .finish_non_exhaustive()
    }
}

impl From<snow::Error> for SealedError {
    fn from(_: snow::Error) -> Self {
        Self::Handshake
    }
}

pub(super) fn prologue(suite: Suite, called: &NodeId) -> Vec<u8> {
    [CONTEXT, &[suite.number()], called.as_bytes()].concat()
}

pub(super) fn payload(record: &SignedRecord) -> Vec<u8> {
    let len = u16::try_from(record.bytes().len()).unwrap_or(u16::MAX);
    let mut payload = [&len.to_be_bytes(), &record.bytes()[..]].concat();
    payload.resize(PAYLOAD_BYTES, 0);
    payload
}

/// The record, as it was sent.
fn read_payload(noise: &mut HandshakeState, message: &[u8]) -> Result<Vec<u8>, SealedError> {
    let mut payload = vec![0; PAYLOAD_BYTES];
    noise.read_message(message, &mut payload)?;
    let mut reader = Reader::new(&payload);
    let mut field = || -> Result<_, WireError> {
        let len = usize::from(reader.u16("record length")?);
        Ok(reader.bytes(len, "record")?.to_vec())
    };
    Ok(field().map_err(RecordError::from)?)
}

fn check_peer(
    noise: &HandshakeState,
    peer: &SignedRecord,
    known: Option<&SignedRecord>,
) -> Result<(), SealedError> {
    if noise.get_remote_static() != Some(&peer.record().noise_key[..]) {
        return Err(SealedError::WrongKey(peer.id()));
    }
    if known.is_some_and(|known| known.record().sequence > peer.record().sequence) {
        return Err(SealedError::OldRecord(peer.id()));
    }
    Ok(())
}
