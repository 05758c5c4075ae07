//! Hands out all records that this node has, to its peers, and says how loaded it is.

use super::accept;
use crate::{network::Network, pipe::Pipe};

/// Sends the whole set.
pub(super) async fn serve(network: &Network, mut pipe: Pipe) {
    if accept(&mut pipe, vec![load(network)]).await
        && let Err(error) = network.records().serve(pipe).await
    {
        tracing::debug!(%error, "records not sent");
    }
}

/// Of the fullest role; 255 is full.
fn load(network: &Network) -> u8 {
    let counters = network.counters();
    let roles = [
        network.relay().load(&counters.relay),
        network.hop().load(&counters.hop),
        network.exit().load(&counters.exit),
    ];
    roles.into_iter().max().unwrap_or(0)
}
