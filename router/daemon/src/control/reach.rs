//! Reaches a peer as a flow could: straight where an address of it is known, an onion address too, else
//! through a relay.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;
use wormholes_proto::{NodeId, OnionAddress, Open, is_placeholder};

use crate::{
    carrier::Link,
    network::{Network, Wanted},
    node::NodeCore,
    pipe::{Pipe, PipeError},
    tunnel,
};

/// For each of the two ways, with the question and its answer.
const WAY_TIMEOUT: Duration = Duration::from_secs(7);
/// The same through Tor, as long as a dial there may take.
const TOR_TIMEOUT: Duration = Duration::from_secs(60);

/// A peer that answered.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) way: Way,
    /// From a question to its answer, whatever the answer is.
    pub(super) round_trip: Duration,
    /// What connecting took; none where the connection stood before.
    pub(super) connected: Option<Duration>,
}

/// How it was reached.
#[derive(Debug, Clone)]
pub(super) enum Way {
    Straight(SocketAddr),
    /// Through Tor, at this address of it; at none where it called.
    Tor(Option<OnionAddress>),
    /// Through this relay, sealed from end to end.
    Relay(NodeId),
}

/// A peer that was not reached.
#[derive(Debug)]
pub(super) struct Unreached {
    /// What came of each way.
    pub(super) why: String,
    /// What its operators may look at.
    pub(super) hint: &'static str,
}

/// Whether it is reached through Tor, or may have to be.
pub(super) fn may_need_tor(core: &NodeCore, id: NodeId) -> bool {
    addresses(core, id).iter().any(is_placeholder)
}

/// Tries the ways in their order.
pub(super) async fn reach(core: &Arc<NodeCore>, id: NodeId) -> Result<Reached, Unreached> {
    let stands = core.network.peers().link(&id).is_some();
    let has_address = !addresses(core, id).is_empty();
    let has_onion = may_need_tor(core, id);
    let has_relay = !core.network.view(id).relays.is_empty();
    let mut tried = Vec::new();
    if has_address {
        let limit = if has_onion { TOR_TIMEOUT } else { WAY_TIMEOUT };
        match within(limit, straight(core, id, stands)).await {
            Ok(reached) => return Ok(reached),
            Err(why) => tried.push(why),
        }
    }
    if has_relay {
        match within(WAY_TIMEOUT, relayed(core, id)).await {
            Ok(reached) => return Ok(reached),
            Err(why) => tried.push(format!("through a relay: {why}")),
        }
    }
    let hint = match (has_address, has_relay) {
        (true, _) if has_onion => {
            "is its daemon running with `peers = true` under [tor], this node among its peers, and \
             Tor ready here (`wormholes tor status`)?"
        }
        (true, _) => "is its daemon running, its UDP port open, and this node among its peers?",
        (false, true) => {
            "is it running, registered with a relay that knows both, and this node among its peers?"
        }
        (false, false) => {
            tried.push("neither an address nor a relay of it is known".to_owned());
            "set `addresses` or `via` at its [[peer]], or remove it and add its new invite"
        }
    };
    let why = tried.join("; ");
    Err(Unreached { why, hint })
}

/// Where its standing connection leads, else where it may be dialled.
fn addresses(core: &NodeCore, id: NodeId) -> Vec<SocketAddr> {
    match core.network.peers().link(&id) {
        Some(link) => vec![link.remote_address()],
        None => core.network.addresses_of(&id, None),
    }
}

async fn within(
    limit: Duration,
    way: impl Future<Output = Result<Reached, String>>,
) -> Result<Reached, String> {
    let reached = timeout(limit, way).await;
    reached.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

async fn straight(core: &Arc<NodeCore>, id: NodeId, stood: bool) -> Result<Reached, String> {
    let start = Instant::now();
    let link = core.network.connect(id, None).await;
    let link = link.map_err(|error| error.to_string())?;
    let connected = (!stood).then(|| start.elapsed());
    let pipe = link.open().await.map_err(|error| error.to_string())?;
    Ok(Reached {
        way: way_of(core, &link),
        round_trip: ask(&core.network, pipe)
            .await
            .map_err(|error| error.to_string())?,
        connected,
    })
}

/// Where a connection leads; what stands for an onion address tells nobody anything.
fn way_of(core: &NodeCore, link: &Link) -> Way {
    let address = link.remote_address();
    if !is_placeholder(&address) {
        return Way::Straight(address);
    }
    let known = core.network.peers().known();
    let peer = known.get(&link.peer());
    let mut onions = peer.into_iter().flat_map(|peer| &peer.onions);
    let onion = onions.find(|onion| onion.placeholder() == address);
    Way::Tor(onion.cloned())
}

async fn relayed(core: &Arc<NodeCore>, id: NodeId) -> Result<Reached, String> {
    let start = Instant::now();
    let sealed = tunnel::seal_through_relay(&core.network, None, id, Wanted::default()).await;
    let (relay, pipe) = sealed.map_err(|error| error.to_string())?;
    let connected = Some(start.elapsed());
    Ok(Reached {
        way: Way::Relay(relay.peer()),
        round_trip: ask(&core.network, pipe)
            .await
            .map_err(|error| error.to_string())?,
        connected,
    })
}

/// Any question does; the records that the peer may then begin to send are not read.
async fn ask(network: &Network, mut pipe: Pipe) -> Result<Duration, PipeError> {
    let start = Instant::now();
    pipe.writer.send_open(&Open::Records).await?;
    let answer = pipe.reader.read_answer().await;
    network.counters().answered(answer)?;
    Ok(start.elapsed())
}
