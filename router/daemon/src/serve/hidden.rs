//! Services of this node, used through Tor: their onion services. Who comes is nobody.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use tokio_util::sync::CancellationToken;
use wormholes_proto::Transport;
use wormholes_tor::Request;

use super::service::{self, Active};
use crate::{
    network::Network,
    pipe::{self, CopyLimits, FlowBytes, Pipe, Side},
    tor::Counted,
};

/// Somebody who comes through Tor.
#[derive(Debug)]
pub(crate) struct Visit {
    /// What he wants.
    pub(crate) request: Request,
    /// When Tor stops.
    pub(crate) cut: CancellationToken,
    /// Counts him.
    pub(crate) counted: Counted,
}

/// Joins whoever comes with the service `name` at `target`. Where nobody answers there he is sent away
/// as from a port that the onion service does not have.
pub(crate) async fn serve(network: &Arc<Network>, name: &str, target: SocketAddr, visit: Visit) {
    let _serving = network.serving();
    let counters = &network.counters().service;
    let far = match service::dial(network, Transport::Tcp, target).await {
        Ok(far) => far,
        Err(error) => {
            tracing::warn!(service = name, %error, "the service does not answer");
            counters.refuse(error.reason());
            return visit.request.refuse().await;
        }
    };
    let stream = match visit.request.accept().await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(service = name, %error, "whoever came through Tor has left");
            return;
        }
    };
    counters.opened.fetch_add(1, Relaxed);
    let near = Side::Stream(Pipe::tor_hosted(stream, visit.cut, visit.counted));
    let active = Active::new(&counters.active);
    let bytes = FlowBytes::part_of(vec![Arc::clone(&counters.bytes)]);
    let end = pipe::join(near, far, &CopyLimits::default(), &bytes).await;
    drop(active);
    if let Some(stop) = end.stop {
        tracing::debug!(service = name, %stop, "a flow through Tor was cut");
    }
}
