//! Makes sessions: for those who ask, and ahead.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use wormholes_proto::{
    ServiceName,
    sam::{DestinationKeys, SamError, SamRefusal, SamRequest, SamState, SessionId, TunnelSettings},
};

use super::{I2p, I2pError, Owner, client::Talk, pool::Place, session::Session};
use crate::network::Network;

/// How long a router may take at most: i2pd looks every 20 s whether the tunnels stand.
const LONGEST_TRY: Duration = Duration::from_secs(125);
/// For a kept destination, of which the router may have an end left that never gets ready.
const TRIES: [Duration; 3] = [
    Duration::from_secs(45),
    Duration::from_secs(65),
    LONGEST_TRY,
];
/// Tunnels take longer than this: an answer that comes sooner is of a destination that i2pd is about
/// to close, since the connection of its last session has just ended. Nobody would reach it.
const TOO_SOON: Duration = Duration::from_secs(1);
/// i2pd (2.45) closes such a destination five seconds after its session.
const CLOSING: Duration = Duration::from_secs(8);
/// Looks this often for what has been idle for long.
const TICK: Duration = Duration::from_secs(5);

/// Fills a place of the table.
pub(super) async fn make_for(network: Arc<Network>, place: Place) {
    let Some(i2p) = network.i2p() else { return };
    let kept = match place.owner() {
        Owner::Kept(name) => Some(name.clone()),
        Owner::Flows(_) => None,
    };
    let made = make(&network, i2p, kept.as_ref(), place.tunnels()).await;
    place.fill(made);
}

/// Keeps spares ready, for as long as the node runs.
pub(super) async fn keep(network: Arc<Network>) {
    let Some(i2p) = network.i2p() else { return };
    loop {
        for tunnels in i2p.pool.missing_spares() {
            network.spawn(make_spare(Arc::clone(&network), tunnels));
        }
        let _ = timeout(TICK, i2p.pool.changed()).await;
    }
}

async fn make_spare(network: Arc<Network>, tunnels: TunnelSettings) {
    let Some(i2p) = network.i2p() else { return };
    match make(&network, i2p, None, tunnels).await {
        Ok(session) => {
            i2p.pool.add_spare(tunnels, Some(session));
        }
        Err(error) if i2p.pool.add_spare(tunnels, None) => {
            tracing::warn!(%error, "no I2P session can be made");
        }
        Err(error) => tracing::debug!(%error, "no I2P session can be made"),
    }
}

async fn make(
    network: &Arc<Network>,
    i2p: &I2p,
    kept: Option<&ServiceName>,
    tunnels: TunnelSettings,
) -> Result<Arc<Session>, I2pError> {
    let counters = &network.counters().i2p;
    let made = match kept {
        Some(name) => make_kept(i2p, name, tunnels).await,
        None => create(i2p, None, tunnels, LONGEST_TRY).await,
    };
    match &made {
        Ok(_) => counters.sessions_made.fetch_add(1, Relaxed),
        Err(_) => counters.sessions_failed.fetch_add(1, Relaxed),
    };
    let (talk, id, keys) = made?;
    let destination = keys.destination().clone();
    Ok(Session::hold(network, talk, id, (destination, tunnels)))
}

/// With the keys that are kept, or with new ones, which are kept before anybody can call them.
async fn make_kept(
    i2p: &I2p,
    name: &ServiceName,
    tunnels: TunnelSettings,
) -> Result<Created, I2pError> {
    let Some(keys) = i2p.keys.load(name).await? else {
        let created = create(i2p, None, tunnels, LONGEST_TRY).await?;
        i2p.keys.save(name, &created.2).await?;
        return Ok(created);
    };
    let mut is_doubted = false;
    let mut failed = I2pError::Stopping;
    for time in TRIES {
        let begun = Instant::now();
        match create(i2p, Some(&keys), tunnels, time).await {
            // Java's router may be that fast with tunnels of no hops: it is doubted once.
            Ok(_) if begun.elapsed() < TOO_SOON && !is_doubted => is_doubted = true,
            Ok(created) => return Ok(created),
            Err(
                error @ (I2pError::Silent(_)
                | I2pError::Sam(SamError::Refused(SamRefusal::DuplicateDestination))),
            ) => failed = error,
            Err(error) => return Err(error),
        }
        tracing::debug!("the router has an end left of a kept destination");
        sleep(CLOSING).await;
    }
    Err(failed)
}

/// A session's connection, its id, and its keys.
type Created = (Talk, SessionId, DestinationKeys);

async fn create(
    i2p: &I2p,
    keys: Option<&DestinationKeys>,
    tunnels: TunnelSettings,
    time: Duration,
) -> Result<Created, I2pError> {
    let id = SessionId::from_random(rand::random());
    let request = SamRequest::Session {
        id: id.clone(),
        keys: keys.cloned(),
        tunnels,
    };
    let create = async {
        let mut talk = Talk::begin(i2p.router, request).await?;
        match talk.answer().await? {
            SamState::Session(keys) => Ok((talk, id, keys)),
            SamState::NeedMore
            | SamState::Waiting
            | SamState::Greeted
            | SamState::Found
            | SamState::Connected
            | SamState::Called(_)
            | SamState::Failed(_) => Err(SamError::Malformed("no session").into()),
        }
    };
    let created = timeout(time, create).await;
    created.unwrap_or(Err(I2pError::Silent(time)))
}
