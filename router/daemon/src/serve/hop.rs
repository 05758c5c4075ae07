//! The hop role: onion layers peeled for others.
//!
//! A hop learns the node before it, the node behind it, and how much went by. The last hop learns
//! the node before it and the target.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use wormholes_proto::{
    Answer, NodeId, Open, Reason, Suite,
    onion::{CREATE_BYTES, CREATED_BYTES, CreateOutcome, Forward, LastCircuit, OnionKeys},
};
use wormholes_rules::Allowance;

use super::{Asker, Way, accept, log_end, refuse, serve_target, while_asked};
use crate::{
    ban::Ban,
    identity::Identity,
    network::Network,
    pipe::{self, CellOpener, CellSealer, CellTurner, CopyLimits, Pipe, PipeError, Toll},
    role::{Customer, Place},
};

/// Reaching the next hop and hearing its answer, equal at each hop: a wait that shrank along the
/// path would tell a hop its position. So the first one's is over first, and blames nobody.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(12);

/// A circuit that nobody uses is let go after this; clients build ahead for a minute.
const UNUSED_TIMEOUT: Duration = Duration::from_secs(90);

/// This node's onion keys, in memory only.
#[derive(Debug)]
pub(crate) struct HopKeys(Mutex<OnionKeys>);

impl HopKeys {
    /// Makes the first keys.
    ///
    /// # Errors
    /// [`wormholes_proto::HandshakeError`] when none can be made.
    pub(crate) fn new(identity: &Identity) -> Result<Self, wormholes_proto::HandshakeError> {
        // ChaChaPoly is for callers without AES hardware, and fast everywhere.
        let suites: &[Suite] = match Suite::fastest_here() {
            Suite::AesGcm => &Suite::ALL,
            Suite::ChaChaPoly => &[Suite::ChaChaPoly],
        };
        let keys = OnionKeys::new(identity.id(), suites, SystemTime::now(), &mut rand::rng())?;
        Ok(Self(Mutex::new(keys)))
    }

    /// For this node's record.
    pub(crate) fn published(&self) -> Vec<wormholes_proto::OnionKey> {
        self.keys().published()
    }

    /// Changes whenever what is published does.
    pub(crate) fn revision(&self) -> u64 {
        self.keys().revision()
    }

    /// Replaces keys that had their day.
    pub(crate) fn rotate(&self) {
        if let Err(error) = self
            .keys()
            .handle_timeout(SystemTime::now(), &mut rand::rng())
        {
            tracing::warn!(%error, "cannot renew the onion keys");
        }
    }

    fn handle_create(&self, key_id: &[u8; 8], slots: &[u8; CREATE_BYTES]) -> CreateOutcome {
        let now = SystemTime::now();
        self.keys()
            .handle_create(now, key_id, slots, &mut rand::rng())
    }

    fn keys(&self) -> MutexGuard<'_, OnionKeys> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Peels one layer.
pub(super) async fn serve(
    network: &Arc<Network>,
    asker: &Asker,
    key_id: &[u8; 8],
    slots: &[u8; CREATE_BYTES],
    pipe: Pipe,
) {
    let counters = &network.counters().hop;
    let customer = Customer {
        node: asker.id,
        passes_on: is_hop(network, &asker.id),
    };
    let place = match network.hop().enter(counters, customer) {
        Ok(place) => place,
        Err(reason) => {
            counters.refuse(reason);
            return refuse(pipe, reason).await;
        }
    };
    let outcome = network.hop_keys().handle_create(key_id, slots);
    network.publish_new_keys();
    match outcome {
        CreateOutcome::Stale => {
            counters.refuse(Reason::StaleKey);
            refuse(pipe, Reason::StaleKey).await;
        }
        // Without a word: the pipe resets as it is dropped.
        CreateOutcome::Drop => counters.refuse(Reason::Handshake),
        CreateOutcome::Forward(forward) => pass_on(network, asker, &place, *forward, pipe).await,
        CreateOutcome::Last { created, circuit } => {
            end(network, asker, &place, &created, *circuit, pipe).await;
        }
    }
}

/// Whether the node says of itself that it is a hop: then it asks for others.
fn is_hop(network: &Network, id: &NodeId) -> bool {
    let book = network.records().book();
    book.record(id).is_some_and(|record| record.roles.hop)
}

/// The last hop: what was asked for inside is served like any request.
async fn end(
    network: &Arc<Network>,
    asker: &Asker,
    place: &Place<'_>,
    created: &[u8; CREATED_BYTES],
    circuit: LastCircuit,
    mut pipe: Pipe,
) {
    if !accept(&mut pipe, created.to_vec()).await {
        return;
    }
    let (down, up) = circuit.split();
    let limits = place.limits(&Allowance::default());
    let Some(pipe) = pipe.onion(
        CellSealer::Last(Box::new(up)),
        CellOpener::Last(Box::new(down)),
        Some(Toll::new(limits.clone(), Arc::clone(&place.bytes))),
    ) else {
        return;
    };
    tokio::select! {
        () = serve_inside(network, asker, pipe) => {}
        stop = pipe::watch(&limits, &place.bytes) => {
            tracing::debug!(role = "last hop", from = %network.named(asker.id), %stop, "circuit ended");
        }
    }
}

/// What the client asked the last hop for. A circuit that was built ahead waits for its flow.
async fn serve_inside(network: &Arc<Network>, asker: &Asker, mut pipe: Pipe) {
    let asked = tokio::time::timeout(UNUSED_TIMEOUT, pipe.reader.read_open());
    let open = match asked.await {
        Ok(Ok(open)) => open,
        Ok(Err(error)) => {
            if error.is_breach() {
                network.counters().streams_refused.fetch_add(1, Relaxed);
            }
            return;
        }
        Err(_) => return,
    };
    let inside = Asker {
        id: asker.id,
        trust: 0,
        way: Way::Onion,
    };
    tracing::debug!(
        target: "wormholes::learned",
        role = "last hop",
        previous = %asker.id,
        "last hop learned the node before it and that it is last"
    );
    serve_target(network, &inside, open, pipe).await;
}

/// A hop between.
async fn pass_on(
    network: &Arc<Network>,
    asker: &Asker,
    place: &Place<'_>,
    forward: Forward,
    mut pipe: Pipe,
) {
    let Forward {
        next,
        address,
        create,
        pending,
    } = forward;
    let open = Open::Create {
        key_id: create.key_id,
        slots: create.slots,
    };
    let counters = &network.counters().hop;
    let behind = call(network, next, address, &open);
    let behind = tokio::time::timeout(FORWARD_TIMEOUT, behind);
    let behind = async { behind.await.unwrap_or(Err(Reason::TimedOut)) };
    let (mut far, created) = match while_asked(&mut pipe, behind).await {
        None => return,
        Some(Ok(behind)) => behind,
        Some(Err(reason)) => {
            counters.refuse(reason);
            if let Ok(created) = pending.handle_failure(reason)
                && accept(&mut pipe, created.to_vec()).await
            {
                let _ = pipe.writer.finish().await;
            }
            return;
        }
    };
    let Ok((created, circuit)) = pending.handle_created(&created) else {
        return;
    };
    if !accept(&mut pipe, created.to_vec()).await {
        return;
    }
    let (down, up) = circuit.split();
    let (Some(near), Some(turned)) = (
        pipe.turning(CellTurner::Down(down)),
        far.turning(CellTurner::Up(up)),
    ) else {
        return;
    };
    far = turned;
    let limits = CopyLimits {
        witness: network.witness(),
        ..place.limits(&Allowance::default())
    };
    let end = pipe::copy(near, far, &limits, &place.bytes).await;
    tracing::debug!(
        target: "wormholes::learned",
        role = "hop",
        previous = %asker.id,
        next = %next,
        up_bytes = end.up_bytes,
        down_bytes = end.down_bytes,
        "hop learned its neighbours, and how much went by"
    );
    log_end(network, "hop", asker, &end);
}

/// Sends CREATE to the next hop, on the connection that stands or a new one, and takes CREATED.
async fn call(
    network: &Arc<Network>,
    next: NodeId,
    address: SocketAddr,
    open: &Open,
) -> Result<(Pipe, [u8; CREATED_BYTES]), Reason> {
    let link = network
        .connect_for_stranger(next, address, |address| check_next(network, address))
        .await
        .map_err(|error| {
            tracing::debug!(next = %network.named(next), %error, "next hop not reached");
            match error.reason() == Reason::ForbiddenAddress {
                true => Reason::ForbiddenAddress,
                false => Reason::Unreachable,
            }
        })?;
    let counters = network.counters();
    let asked = async {
        let mut pipe = link.open().await.map_err(|_| Reason::Unreachable)?;
        let sent = pipe.writer.send_open(open).await;
        sent.map_err(|_| Reason::Unreachable)?;
        let answer = pipe.reader.read_answer().await;
        Ok((counters.answered(answer), pipe))
    };
    let asked = link.while_alive(asked).await;
    let (answer, pipe) = asked.unwrap_or(Err(Reason::Unreachable))?;
    match answer {
        Ok(Answer::Accepted(created)) => {
            let created = created.try_into();
            let created = created.map_err(|_| PipeError::Malformed("CREATED"));
            let created = counters.answered(created).map_err(|_| Reason::Handshake)?;
            Ok((pipe, created))
        }
        Ok(Answer::Refused(reason)) => Err(reason),
        Err(_) => Err(Reason::Unreachable),
    }
}

/// A client or somebody's record chose the address, so that it may not send this node into its own
/// neighbourhood; unless that is the only place where this node tells others that it is.
fn check_next(network: &Network, address: SocketAddr) -> Result<(), Ban> {
    let own = network.own_record();
    let allow_private = network.config().hop.allow_private;
    network.check_near(address, allow_private, &own.record().addresses)
}
