//! Tunnels that become direct: on a connection to the peer where one stands; else through a relay, and
//! a direct path is made beside it for the next flow.

use std::sync::Arc;

use wormholes_proto::{CarrierKind, NodeId, Open};

use super::{OpenError, Place, direct, relay};
use crate::{
    network::{Network, Wanted},
    pipe::Pipe,
};

/// Asks `to` for `open`. Returns the relay if one was passed, the stream and the answer's body.
pub(super) async fn ask(
    network: &Arc<Network>,
    via: Option<NodeId>,
    to: NodeId,
    first: Wanted,
    open: &Open,
) -> Result<(Option<NodeId>, Pipe, Vec<u8>), OpenError> {
    let fits = |kind| first.carrier.is_none_or(|wanted| wanted == kind);
    let links = network.peers().links_to(&to);
    if links.iter().any(|link| fits(link.carrier())) {
        match direct::ask(network, to, first, open).await {
            Ok((pipe, body)) => return Ok((None, pipe, body)),
            // The path is gone; what was said of the request itself holds on any way.
            Err(error) if error.kind().place == Place::Peer => {
                tracing::debug!(peer = %network.named(to), %error, "no direct path any more");
            }
            Err(error) => return Err(error),
        }
    }
    let (relay, pipe, body) = relay::ask(network, via, to, first, open).await?;
    if fits(CarrierKind::Quic) {
        network.punch(to, relay);
    }
    Ok((Some(relay), pipe, body))
}
