//! The client's part in building a circuit.

use std::{fmt, net::SocketAddr};

use rand_core::CryptoRng;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{
    id::NodeId,
    noise::{HandshakeError, Pattern, handshake_builder},
    record::OnionKey,
    stream::Reason,
    suite::Suite,
};

use super::{
    build::{
        CREATE_BODY_BYTES, CREATE_BYTES, CREATE_SLOT_BYTES, CREATED_BYTES, CREATED_SLOT_BYTES,
        Create, MAX_HOPS, STATUS_BYTES, Status, created_behind, next_create, previous_create_body,
        previous_created, prologue,
    },
    route::{NextHop, Route},
    schedule::{StreamKey, layer_keys},
    wrap::ClientCircuit,
};

/// One hop of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathHop {
    /// The node.
    pub id: NodeId,
    /// Where the hop before dials it.
    pub address: SocketAddr,
    /// The onion key to use.
    pub key: OnionKey,
}

/// A path that no circuit can be built on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StartError {
    /// Too few or too many hops.
    #[error("a path of {0} hops, 1 to {MAX_HOPS} are possible")]
    Hops(usize),
    /// A layer cannot be sealed, which no input causes.
    #[error("cannot seal an onion layer: {0}")]
    Seal(#[from] HandshakeError),
}

/// A circuit that did not come to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("hop {hop} of the onion path failed: {reason}")]
pub struct BuildError {
    /// The first hop that is not built, counted from 0.
    pub hop: usize,
    /// Why, by the word of the hop before; [`Reason::Handshake`] when what came back does not
    /// hold.
    pub reason: Reason,
}

/// A client that waits for CREATED.
pub struct ClientBuild {
    /// First hop first, 1 to [`MAX_HOPS`].
    layers: Vec<Layer>,
    pad_key: StreamKey,
}

struct Layer {
    suite: Suite,
    noise: snow::HandshakeState,
    stream_key: StreamKey,
}

impl ClientBuild {
    /// Makes a CREATE for the first hop of `path`.
    ///
    /// # Errors
    /// [`StartError::Hops`] when the path is empty or too long.
    pub fn new(
        path: &[PathHop],
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<(Self, Create), StartError> {
        let Some(first) = path.first().filter(|_| path.len() <= MAX_HOPS) else {
            return Err(StartError::Hops(path.len()));
        };
        let stream_keys: Vec<_> = path.iter().map(|_| random_key(rng)).collect();
        let mut body = body_at_last_hop(&stream_keys, rng)?;
        let mut slots = Box::new([0; CREATE_BYTES]);
        let mut layers = Vec::with_capacity(path.len());
        let mut behind: Option<&PathHop> = None;
        for (hop, stream_key) in path.iter().zip(stream_keys).rev() {
            if behind.is_some() {
                body = previous_create_body(&StreamKey::new(&stream_key)?, &slots)?;
            }
            let route = Route {
                next: behind.map(PathHop::as_next),
                stream_key,
            };
            let (layer, sealed) = seal_layer(hop, route, &body, rng)?;
            slots = sealed;
            layers.push(layer);
            behind = Some(hop);
        }
        layers.reverse();
        let build = Self {
            layers,
            pad_key: StreamKey::new(&random_key(rng))?,
        };
        let key_id = first.key.key_id;
        Ok((build, Create { key_id, slots }))
    }

    /// Takes the first hop's CREATED.
    ///
    /// # Errors
    /// [`BuildError`] names the first hop that is not built.
    pub fn handle_created(
        mut self,
        created: &[u8; CREATED_BYTES],
    ) -> Result<ClientCircuit, BuildError> {
        let mut statuses = Vec::with_capacity(self.layers.len());
        let mut seen = *created;
        for (hop, layer) in self.layers.iter_mut().enumerate() {
            let broken = |HandshakeError| BuildError::handshake(hop);
            let status = layer.read_slot(&seen).map_err(broken)?;
            statuses.push(status);
            if status.failure.is_some() {
                break;
            }
            // The dropped slot does not matter yet: it is never one that holds a status.
            seen = created_behind(&layer.stream_key, &seen, [0; CREATED_SLOT_BYTES])
                .map_err(broken)?;
        }
        self.check_commitments(created, &statuses)?;
        if let Some(reason) = statuses.last().and_then(|status| status.failure) {
            // Nobody is behind the last hop: if it speaks of a failure, the failure is itself.
            let hop = statuses.len().min(self.layers.len() - 1);
            return Err(BuildError { hop, reason });
        }
        self.into_circuit()
    }

    /// Checks that each hop received what the one behind it sent, spare slots included.
    fn check_commitments(
        &self,
        created: &[u8; CREATED_BYTES],
        statuses: &[Status],
    ) -> Result<(), BuildError> {
        let answered = self.layers.iter().zip(statuses);
        let mut dropped = Vec::with_capacity(statuses.len());
        let mut from_behind = [0; CREATED_BYTES];
        for (layer, _) in answered.clone().rev() {
            dropped.push(
                from_behind
                    .last_chunk()
                    .copied()
                    .unwrap_or([0; CREATED_SLOT_BYTES]),
            );
            let slot = [0; CREATED_SLOT_BYTES];
            from_behind = previous_created(&layer.stream_key, slot, &from_behind)
                .map_err(|HandshakeError| BuildError::handshake(0))?;
        }
        let mut seen = *created;
        for (hop, ((layer, status), dropped)) in answered.zip(dropped.into_iter().rev()).enumerate()
        {
            seen = created_behind(&layer.stream_key, &seen, dropped)
                .map_err(|HandshakeError| BuildError::handshake(hop))?;
            if Status::new(status.failure, &seen) != *status {
                return Err(BuildError::handshake(hop));
            }
        }
        Ok(())
    }

    fn into_circuit(self) -> Result<ClientCircuit, BuildError> {
        let mut keys = Vec::with_capacity(self.layers.len());
        for (hop, mut layer) in self.layers.into_iter().enumerate() {
            let layer_keys = layer_keys(layer.suite, &mut layer.noise);
            keys.push(layer_keys.map_err(|HandshakeError| BuildError::handshake(hop))?);
        }
        ClientCircuit::new(keys, self.pad_key).map_err(|_| BuildError::handshake(0))
    }
}

impl BuildError {
    fn handshake(hop: usize) -> Self {
        Self {
            hop,
            reason: Reason::Handshake,
        }
    }
}

impl Layer {
    fn read_slot(&mut self, created: &[u8; CREATED_BYTES]) -> Result<Status, HandshakeError> {
        let slot = created
            .first_chunk::<CREATED_SLOT_BYTES>()
            .ok_or(HandshakeError)?;
        let mut status = [0; STATUS_BYTES];
        self.noise.read_message(slot, &mut status)?;
        Ok(Status::decode(status))
    }
}

impl PathHop {
    fn as_next(&self) -> NextHop {
        NextHop {
            id: self.id,
            address: self.address,
            key_id: self.key.key_id,
        }
    }
}

/// Slots 1..7 as the last hop gets them: random ones, then one from each hop before it.
fn body_at_last_hop(
    stream_keys: &[Zeroizing<[u8; 32]>],
    rng: &mut (impl CryptoRng + ?Sized),
) -> Result<[u8; CREATE_BODY_BYTES], HandshakeError> {
    let mut body = [0; CREATE_BODY_BYTES];
    let before_last = stream_keys.split_last().map_or(&[][..], |(_, head)| head);
    for stream_key in before_last {
        if let Some(next) = next_create(&StreamKey::new(stream_key)?, &body)?.last_chunk() {
            body = *next;
        }
    }
    let n_appended = before_last.len() * CREATE_SLOT_BYTES;
    if let Some(random) = body.get_mut(..CREATE_BODY_BYTES - n_appended) {
        rng.fill_bytes(random);
    }
    Ok(body)
}

/// Seals one layer over `body`.
fn seal_layer(
    hop: &PathHop,
    route: Route,
    body: &[u8; CREATE_BODY_BYTES],
    rng: &mut (impl CryptoRng + ?Sized),
) -> Result<(Layer, Box<[u8; CREATE_BYTES]>), HandshakeError> {
    let prologue = prologue(&hop.id, &hop.key, body);
    let mut noise = handshake_builder(Pattern::Nk, hop.key.suite, rng)?
        .remote_public_key(&hop.key.public)?
        .prologue(&prologue)?
        .build_initiator()?;
    let mut slots = Box::new([0; CREATE_BYTES]);
    let (slot, rest) = slots
        .split_first_chunk_mut::<CREATE_SLOT_BYTES>()
        .ok_or(HandshakeError)?;
    noise.write_message(&route.encode(), slot)?;
    rest.copy_from_slice(body);
    let layer = Layer {
        suite: hop.key.suite,
        noise,
        stream_key: StreamKey::new(&route.stream_key)?,
    };
    Ok((layer, slots))
}

fn random_key(rng: &mut (impl CryptoRng + ?Sized)) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    rng.fill_bytes(&mut key[..]);
    key
}

impl fmt::Debug for ClientBuild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuild")
            .field("hops", &self.layers.len())
            .finish_non_exhaustive()
    }
}
