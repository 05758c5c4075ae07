//! Hands out all records that this node has, to its peers.

use super::accept;
use crate::{network::Network, pipe::Pipe};

/// Sends the whole set.
pub(super) async fn serve(network: &Network, mut pipe: Pipe) {
    if accept(&mut pipe, Vec::new()).await
        && let Err(error) = network.records().serve(pipe).await
    {
        tracing::debug!(%error, "records not sent");
    }
}
