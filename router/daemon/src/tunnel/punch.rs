//! Tunnels that become direct: on a connection to the peer where one stands; else through a relay, and
//! a direct path is made beside it for the next flow. Nothing is dialled for a flow: the address at
//! which a peer was met behind its NAT leads nowhere once the path is gone.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::time::sleep;
use wormholes_proto::{CarrierKind, NodeId, Open};

use super::{OpenError, Place, ask_on, ask_over, relay};
use crate::{
    carrier::{Link, LinkError},
    network::{Network, Wanted},
    pipe::Pipe,
};

/// A connection that shows no sign of life for so long leads nowhere: the relay has its turn.
const PATIENCE: Duration = Duration::from_millis(1500);

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
    let newest = |kind: CarrierKind| links.iter().rev().find(|link| link.carrier() == kind);
    let mut kinds = CarrierKind::ALL.into_iter().filter(|kind| fits(*kind));
    if let Some(link) = kinds.find_map(newest) {
        match ask_standing(network, link, first, open).await {
            Ok(Ok((pipe, body))) => return Ok((None, pipe, body)),
            // The path is gone; what was said of the request itself holds on any way.
            Ok(Err(error)) if error.kind().place == Place::Peer => {
                tracing::debug!(peer = %network.named(to), %error, "no direct path any more");
            }
            Ok(Err(error)) => return Err(error),
            Err(error) => {
                tracing::debug!(node = %network.named(to), %error, "dead connection");
                network.look_for_lost();
            }
        }
    }
    let (relay, pipe, body) = relay::ask(network, via, to, first, open).await?;
    if fits(CarrierKind::Quic) {
        network.punch(to, relay);
    }
    Ok((Some(relay), pipe, body))
}

/// Asks at the other end of a connection, as long as that shows signs of life. Who lives has time to
/// answer.
///
/// # Errors
/// [`LinkError`] when it was the connection that failed.
async fn ask_standing(
    network: &Network,
    link: &Link,
    first: Wanted,
    open: &Open,
) -> Result<Result<(Pipe, Vec<u8>), OpenError>, LinkError> {
    let patience = first.patience.map_or(PATIENCE, |own| own.min(PATIENCE));
    let acknowledged = link.acknowledged();
    let dead = async {
        sleep(patience).await;
        if link.acknowledged() != acknowledged {
            pending::<()>().await;
        }
    };
    let node = link.peer();
    let ask = |mut pipe: Pipe| async move {
        let body = ask_on(network, &mut pipe, node, open).await?;
        Ok::<_, OpenError>((pipe, body))
    };
    tokio::select! {
        () = dead => Err(LinkError::Silent),
        asked = ask_over(link, ask, false, false) => asked,
    }
}
