//! What other nodes need to punch: from where they are seen, and a node that calls them while they call
//! it (`network::punch`).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::timeout;
use wormholes_proto::{CarrierKind, Reason, encode_candidates, encode_mirrored};

use super::{Asker, accept, refuse};
use crate::{carrier::Link, network::Network, pipe::Pipe};

/// The asker takes the answer within this, or gives up its place among the punches that run.
const TELL_TIME: Duration = Duration::from_secs(5);

/// Tells a peer from which address its connection comes. Of one over TCP that says nothing about UDP.
pub(super) async fn mirror(link: &Link, mut pipe: Pipe) {
    if link.carrier() != CarrierKind::Quic {
        return refuse(pipe, Reason::Unsupported).await;
    }
    let seen = link.remote_address();
    let seen = SocketAddr::new(seen.ip().to_canonical(), seen.port());
    if accept(&mut pipe, encode_mirrored(seen)).await {
        let _ = pipe.writer.finish().await;
    }
}

/// Tells a peer, who asks through `relay`, where this node may be called, and calls it.
pub(super) async fn serve(
    network: &Arc<Network>,
    asker: &Asker,
    relay: &Link,
    candidates: Vec<SocketAddr>,
    mut pipe: Pipe,
) {
    match network.grant_punch(asker.id, relay, candidates).await {
        Ok(granted) => {
            let tell = async {
                let told = accept(&mut pipe, encode_candidates(granted.own())).await;
                if told {
                    let _ = pipe.writer.finish().await;
                }
                told
            };
            if timeout(TELL_TIME, tell).await.unwrap_or(false) {
                // The stream ends with the asker's own end: cut off sooner, it might cut the answer.
                network.meet_granted(granted).await;
            }
        }
        Err(reason) => {
            tracing::debug!(peer = %network.named(asker.id), %reason, "punch refused");
            refuse(pipe, reason).await;
        }
    }
}
