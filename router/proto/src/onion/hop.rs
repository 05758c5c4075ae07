//! A hop's part in building a circuit: open one slot of CREATE, fill one of CREATED.

use std::{fmt, net::SocketAddr};

use rand_core::CryptoRng;
use zeroize::Zeroizing;

use crate::{
    id::NodeId,
    noise::{HandshakeError, Pattern, StaticKeypair, handshake_builder},
    record::OnionKey,
    stream::Reason,
    suite::Suite,
};

use super::{
    build::{
        CREATE_BODY_BYTES, CREATE_BYTES, CREATE_SLOT_BYTES, CREATED_BYTES, CREATED_SLOT_BYTES,
        Create, Status, next_create, previous_created, prologue,
    },
    peel::{HopCircuit, LastCircuit},
    route::{ROUTE_BYTES, Route},
    schedule::{LayerKeys, StreamKey, layer_keys},
};

/// What a hop does about a CREATE.
#[derive(Debug)]
pub enum CreateOutcome {
    /// The onion key is unknown or over: refuse with [`Reason::StaleKey`].
    Stale,
    /// Replayed, tampered with or malformed: reset the stream without a word.
    Drop,
    /// Another hop follows.
    Forward(Box<Forward>),
    /// This node is the last hop.
    Last {
        /// The answer.
        created: Box<[u8; CREATED_BYTES]>,
        /// The circuit, ready for cells.
        circuit: Box<LastCircuit>,
    },
}

/// A CREATE on its way to the next hop.
#[derive(Debug)]
pub struct Forward {
    /// The next hop's node.
    pub next: NodeId,
    /// Where the client says that it is. Dial it only as a node: the carrier must prove `next`.
    pub address: SocketAddr,
    /// What to send there.
    pub create: Create,
    /// Waits for the answer.
    pub pending: HopPending,
}

/// A hop that waits for CREATED from behind. The caller bounds how many there are, and how long.
pub struct HopPending {
    suite: Suite,
    noise: snow::HandshakeState,
    stream_key: StreamKey,
}

/// Opens slot 0 of a CREATE to one of this node's onion keys.
pub(super) fn open_create(
    id: &NodeId,
    key: &OnionKey,
    keypair: &StaticKeypair,
    slots: &[u8; CREATE_BYTES],
    rng: &mut (impl CryptoRng + ?Sized),
) -> Result<CreateOutcome, HandshakeError> {
    let (slot, body) = slots
        .split_first_chunk::<CREATE_SLOT_BYTES>()
        .ok_or(HandshakeError)?;
    let body: &[u8; CREATE_BODY_BYTES] = body.try_into().map_err(|_| HandshakeError)?;
    let prologue = prologue(id, key, body);
    let mut noise = handshake_builder(Pattern::Nk, key.suite, rng)?
        .local_private_key(keypair.private())?
        .prologue(&prologue)?
        .build_responder()?;
    let mut route = Zeroizing::new([0; ROUTE_BYTES]);
    noise.read_message(slot, &mut route[..])?;
    let route = Route::decode(&route[..]).map_err(|_| HandshakeError)?;

    let pending = HopPending {
        suite: key.suite,
        noise,
        stream_key: StreamKey::new(&route.stream_key)?,
    };
    match route.next {
        None => {
            let (created, keys) = pending.answer(None, &[0; CREATED_BYTES])?;
            Ok(CreateOutcome::Last {
                created: Box::new(created),
                circuit: Box::new(LastCircuit::new(keys)),
            })
        }
        // A hop that is its own neighbour would only help to find its position.
        Some(next) if next.id == *id => Err(HandshakeError),
        Some(next) => Ok(CreateOutcome::Forward(Box::new(Forward {
            next: next.id,
            address: next.address,
            create: Create {
                key_id: next.key_id,
                slots: next_create(&pending.stream_key, body)?,
            },
            pending,
        }))),
    }
}

impl HopPending {
    /// Takes the next hop's CREATED: what to send back, and the circuit.
    ///
    /// # Errors
    /// [`HandshakeError`] when the handshake cannot go on, which no input causes.
    pub fn handle_created(
        self,
        behind: &[u8; CREATED_BYTES],
    ) -> Result<([u8; CREATED_BYTES], HopCircuit), HandshakeError> {
        let (created, keys) = self.answer(None, behind)?;
        Ok((created, HopCircuit::new(keys)))
    }

    /// The next hop failed, by refusal, silence or anything else: what to send back, before the
    /// stream is ended.
    ///
    /// # Errors
    /// [`HandshakeError`] when the handshake cannot go on, which no input causes.
    pub fn handle_failure(self, reason: Reason) -> Result<[u8; CREATED_BYTES], HandshakeError> {
        let (created, _) = self.answer(Some(reason), &[0; CREATED_BYTES])?;
        Ok(created)
    }

    fn answer(
        mut self,
        failure: Option<Reason>,
        behind: &[u8; CREATED_BYTES],
    ) -> Result<([u8; CREATED_BYTES], (LayerKeys, LayerKeys)), HandshakeError> {
        let status = Status::new(failure, behind).encode();
        let mut slot = [0; CREATED_SLOT_BYTES];
        self.noise.write_message(&status, &mut slot)?;
        let keys = layer_keys(self.suite, &mut self.noise)?;
        Ok((previous_created(&self.stream_key, slot, behind)?, keys))
    }
}

impl fmt::Debug for HopPending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HopPending").finish_non_exhaustive()
    }
}
