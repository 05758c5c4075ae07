//! Relayed tunnels: Noise IK with the peer at the other end, through a node that both reach.

use std::sync::Arc;

use wormholes_proto::{
    Answer, NodeId, Open, Reason, SignedRecord, encode_open,
    sealed::{ANSWER_BYTES, Initiator, OwnEnd},
};

use super::{OpenError, ask_node, ask_on};
use crate::{
    network::{Network, Wanted},
    peers::relays,
    pipe::{Pipe, PipeError},
};

/// A peer is asked for through so many relays; each costs a part of the time.
const MAX_RELAYS: usize = 4;

/// Asks `to` for `open` on a stream of [`connect`]. Returns the relay, the stream and the answer's
/// body.
pub(super) async fn ask(
    network: &Arc<Network>,
    via: Option<NodeId>,
    to: NodeId,
    first: Wanted,
    open: &Open,
) -> Result<(NodeId, Pipe, Vec<u8>), OpenError> {
    let (relay, mut pipe) = connect(network, via, to, first).await?;
    let body = ask_on(network, &mut pipe, to, open).await?;
    Ok((relay, pipe, body))
}

/// A stream to `to` through `via`, or through any relay that may serve it, sealed between the two
/// ends. Returns the relay with it.
///
/// # Errors
/// [`OpenError`] of the last relay.
pub(crate) async fn connect(
    network: &Arc<Network>,
    via: Option<NodeId>,
    to: NodeId,
    first: Wanted,
) -> Result<(NodeId, Pipe), OpenError> {
    let mut record = record_of(network, to, first).await?;
    let relays = via.map_or_else(|| candidates(network, &to, &record), |via| vec![via]);
    let mut failed = OpenError::NoWay("no relay of the peer is known");
    for relay in relays.into_iter().take(MAX_RELAYS) {
        let mut sealed = seal(network, relay, first, &record).await;
        if refused_for(&sealed, Reason::Handshake) && network.refresh_records().await {
            // Its key may have changed: the new record says so.
            let newer = record_of(network, to, first).await?;
            if newer.record().noise_key != record.record().noise_key {
                record = newer;
                sealed = seal(network, relay, first, &record).await;
            }
        }
        if refused_for(&sealed, Reason::NoNode) {
            // It may have gone to other relays; who asks here goes on meanwhile.
            network.doubt_records();
        }
        match sealed {
            Ok(pipe) => return Ok((relay, pipe)),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn refused_for(sealed: &Result<Pipe, OpenError>, wanted: Reason) -> bool {
    matches!(sealed, Err(OpenError::Refused { reason, .. }) if *reason == wanted)
}

/// The peer's record: without it there is no key to seal for.
async fn record_of(
    network: &Arc<Network>,
    id: NodeId,
    first: Wanted,
) -> Result<SignedRecord, OpenError> {
    if let Some(record) = network.records().get(&id) {
        return Ok(record);
    }
    connect_relays(network, &id, first).await;
    network.refresh_records().await;
    let record = network.records().get(&id);
    record.ok_or(OpenError::NoWay("the peer's record is not known"))
}

/// Those that config.toml names as the peer's relays have its record.
async fn connect_relays(network: &Arc<Network>, id: &NodeId, first: Wanted) {
    let known = network.peers().known();
    for relay in relays(&known, known.get(id), None) {
        let connected = network.connect_over(relay, None, first);
        if let Err(error) = connected.await {
            tracing::debug!(relay = %network.named(relay), %error, "relay not reached");
        }
    }
}

/// Relays that may serve the peer, those that are connected first.
fn candidates(network: &Network, id: &NodeId, record: &SignedRecord) -> Vec<NodeId> {
    let known = network.peers().known();
    let mut relays = relays(&known, known.get(id), Some(record.record()));
    relays.retain(|relay| *relay != network.id());
    relays.sort_by_key(|relay| network.peers().link(relay).is_none());
    relays
}

/// Asks the relay for a circuit and does the handshake on it. The first message goes with the
/// request, so that it costs one round trip.
async fn seal(
    network: &Arc<Network>,
    relay: NodeId,
    first: Wanted,
    record: &SignedRecord,
) -> Result<Pipe, OpenError> {
    ask_node(network, relay, first, |pipe| {
        shake_hands(network, relay, record, pipe)
    })
    .await
}

async fn shake_hands(
    network: &Arc<Network>,
    relay: NodeId,
    record: &SignedRecord,
    mut pipe: Pipe,
) -> Result<Pipe, OpenError> {
    let to = record.id();
    let broken = |source| OpenError::Broken {
        node: network.named(relay),
        source,
    };
    let unsealed = || OpenError::Refused {
        node: network.named(to),
        reason: Reason::Handshake,
    };
    let own_record = network.own_record();
    let own = OwnEnd {
        noise: network.identity().noise(),
        record: &own_record,
    };
    let suite = own_record.record().suite.common(record.record().suite);
    let (initiator, hello) =
        Initiator::new(own, record, suite, &mut rand::rng()).map_err(|error| {
            tracing::debug!(%error, "cannot call through a relay");
            unsealed()
        })?;
    let first = [encode_open(&Open::Relay(to)), hello].concat();
    pipe.writer
        .write_chunk(first.into())
        .await
        .map_err(broken)?;
    let counters = network.counters();
    match counters
        .answered(pipe.reader.read_grant().await)
        .map_err(broken)?
    {
        Answer::Accepted(_) => {}
        Answer::Refused(Reason::Handshake) => return Err(unsealed()),
        Answer::Refused(reason) => {
            return Err(OpenError::Refused {
                node: network.named(relay),
                reason,
            });
        }
    }
    let answer = pipe.reader.read_exact(ANSWER_BYTES).await;
    let session = answer.and_then(|answer| {
        initiator.handle_answer(&answer).map_err(|error| {
            tracing::debug!(peer = %network.named(to), %error, "the other end does not hold");
            PipeError::Malformed("handshake")
        })
    });
    let session = counters.answered(session).map_err(|_| unsealed())?;
    network.add_record(session.peer);
    pipe.sealed(session.sealer, session.opener)
        .ok_or_else(unsealed)
}
