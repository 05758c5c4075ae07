//! Relayed tunnels: Noise IK with the peer at the other end, through a node that both reach.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};
use wormholes_proto::{
    Answer, NodeId, Open, Reason, SignedRecord, encode_open,
    sealed::{ANSWER_BYTES, Initiator, OwnEnd},
};

use super::{OpenError, ask_node, ask_on, left, refresh, refresh_since};
use crate::{
    carrier::Link,
    dial::first_to_open,
    network::{Network, Wanted},
    peers::relays,
    pipe::{Pipe, PipeError},
};

/// A peer is asked for through so many relays at most; each learns who asks for whom.
const MAX_RELAYS: usize = 4;
/// Where the next step of the plan waits for its turn, relays have so long to answer once the
/// patience is over: one that waited for a silent node says so then.
const ANSWER_TIME: Duration = Duration::from_millis(250);

/// Asks `to` for `open` on a stream of [`connect`]. Returns the relay, the stream and the answer's
/// body.
pub(super) async fn ask(
    network: &Arc<Network>,
    via: Option<NodeId>,
    to: NodeId,
    first: Wanted,
    open: &Open,
) -> Result<(NodeId, Pipe, Vec<u8>), OpenError> {
    let (link, mut pipe) = connect(network, via, to, first).await?;
    let relay = link.peer();
    let asked = link.while_alive(ask_on(network, &mut pipe, to, open)).await;
    let body = asked.map_err(|silent| OpenError::Connect {
        node: network.named(relay),
        source: silent.into(),
    })??;
    Ok((relay, pipe, body))
}

/// A stream to `to` through `via`, or through any relay that may serve it, sealed between the two
/// ends. Relays that are slow, or refuse, have the next one asked as well; the first that works is
/// taken. Returns the connection to it too.
///
/// # Errors
/// [`OpenError`] of the relay that failed last, or that none answered before the next step's turn.
pub(crate) async fn connect(
    network: &Arc<Network>,
    via: Option<NodeId>,
    to: NodeId,
    first: Wanted,
) -> Result<(Link, Pipe), OpenError> {
    let connected = connect_any(network, via, to, first);
    let Some(patience) = first.patience else {
        return connected.await;
    };
    // Relays that are asked later wait longer, each for itself.
    let time = patience.saturating_add(ANSWER_TIME);
    let connected = timeout(time, connected).await;
    connected.unwrap_or(Err(OpenError::TimedOut(time)))
}

async fn connect_any(
    network: &Arc<Network>,
    via: Option<NodeId>,
    to: NodeId,
    first: Wanted,
) -> Result<(Link, Pipe), OpenError> {
    let start = Instant::now();
    let record = record_of(network, to, first).await?;
    let mut relays = via.map_or_else(|| candidates(network, &to, &record), |via| vec![via]);
    relays.truncate(MAX_RELAYS);
    let through = |relay| through(network, relay, left(first, start), &record);
    let connected = first_to_open(&relays, through).await;
    connected.unwrap_or(Err(OpenError::NoWay("no relay of the peer is known")))
}

async fn through(
    network: &Arc<Network>,
    relay: NodeId,
    first: Wanted,
    record: &SignedRecord,
) -> Result<(Link, Pipe), OpenError> {
    let start = Instant::now();
    let mut sealed = seal(network, relay, first, record).await;
    if refused_for(&sealed, Reason::Handshake) {
        // Its key may have changed: the new record says so.
        refresh(network, left(first, start)).await;
        let newer = network.records().get(&record.id());
        let has_changed =
            |newer: &SignedRecord| newer.record().noise_key != record.record().noise_key;
        if let Some(newer) = newer.filter(has_changed) {
            sealed = seal(network, relay, left(first, start), &newer).await;
        }
    }
    if refused_for(&sealed, Reason::NoNode) {
        // It may have gone to other relays; who asks here goes on meanwhile.
        network.doubt_records();
    }
    sealed
}

fn refused_for<T>(sealed: &Result<T, OpenError>, wanted: Reason) -> bool {
    matches!(sealed, Err(OpenError::Refused { reason, .. }) if *reason == wanted)
}

/// The peer's record: without it there is no key to seal for. One of those that config.toml names
/// as the peer's relays has it.
async fn record_of(
    network: &Arc<Network>,
    id: NodeId,
    first: Wanted,
) -> Result<SignedRecord, OpenError> {
    if let Some(record) = network.records().get(&id) {
        return Ok(record);
    }
    let start = Instant::now();
    let known = network.peers().known();
    let mut relays = relays(&known, known.get(&id), None);
    relays.truncate(MAX_RELAYS);
    let unknown = OpenError::NoWay("the peer's record is not known");
    let ask = async |relay| {
        let link = network.connect_over(relay, None, left(first, start));
        let link = link.await.map_err(|source| OpenError::Connect {
            node: network.named(relay),
            source,
        })?;
        // A big set of it may have come a moment ago: the next step shall not have its turn for that.
        link.fetches().hurry();
        network.learn_from(&link, start).await;
        network.records().get(&id).ok_or_else(|| unknown.clone())
    };
    match first_to_open(&relays, ask).await {
        Some(Ok(record)) => return Ok(record),
        Some(Err(error)) => {
            tracing::debug!(peer = %network.named(id), %error, "no relay has the peer's record");
        }
        None => {}
    }
    // Others may have heard of it.
    refresh_since(network, left(first, start), start).await;
    network.records().get(&id).ok_or(unknown)
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
) -> Result<(Link, Pipe), OpenError> {
    let sealed = ask_node(network, relay, first, |pipe| {
        shake_hands(network, relay, record, pipe)
    });
    let (pipe, link) = sealed.await?;
    Ok((link, pipe))
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
    pipe.sealed(session.id, session.sealer, session.opener)
        .ok_or_else(unsealed)
}
