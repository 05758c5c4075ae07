//! Services of this node, used through Tor and I2P, where they are published. Who comes is nobody.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use wormholes_proto::Transport;

use super::service::{self, Active};
use crate::{
    network::Network,
    pipe::{self, CopyLimits, FlowBytes, Pipe, Side},
};

/// Connects to the service `name` at `target`; none when nobody answers there.
pub(crate) async fn reach(network: &Network, name: &str, target: SocketAddr) -> Option<Side> {
    match service::dial(network, Transport::Tcp, target).await {
        Ok(far) => Some(far),
        Err(error) => {
            tracing::warn!(service = name, %error, "the service does not answer");
            network.counters().service.refuse(error.reason());
            None
        }
    }
}

/// Joins whoever came with the service `name`.
pub(crate) async fn join(network: &Network, name: &str, near: Pipe, far: Side) {
    let counters = &network.counters().service;
    counters.opened.fetch_add(1, Relaxed);
    let active = Active::new(&counters.active);
    let bytes = FlowBytes::part_of(vec![Arc::clone(&counters.bytes)]);
    let near = Side::Stream(near);
    let end = pipe::join(near, far, &CopyLimits::default(), &bytes).await;
    drop(active);
    if let Some(stop) = end.stop {
        tracing::debug!(service = name, %stop, "a flow of nobody was cut");
    }
}
