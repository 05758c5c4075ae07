//! Services of this node, used through Tor and I2P, where they are published. Who comes is nobody.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use wormholes_proto::{ServiceName, Transport};

use super::service::{self, Active};
use crate::{
    network::Network,
    pipe::{self, CopyLimits, FlowBytes, Pipe, Side},
};

/// A service that is published.
#[derive(Debug)]
pub(crate) struct Hidden {
    name: ServiceName,
    target: SocketAddr,
    /// It did not answer last. Strangers come as often as they like: an outage is told once.
    is_down: AtomicBool,
}

impl Hidden {
    /// The service `name` at `target`.
    pub(crate) fn new(name: ServiceName, target: SocketAddr) -> Self {
        Self {
            name,
            target,
            is_down: AtomicBool::new(false),
        }
    }

    pub(crate) fn name(&self) -> &ServiceName {
        &self.name
    }

    /// Connects to it; none when nobody answers there.
    pub(crate) async fn reach(&self, network: &Network) -> Option<Side> {
        let dialled = service::dial(network, Transport::Tcp, self.target).await;
        let was_down = self.is_down.swap(dialled.is_err(), Relaxed);
        let error = match dialled {
            Ok(far) => return Some(far),
            Err(error) => error,
        };
        if was_down {
            tracing::debug!(service = %self.name, %error, "the service does not answer");
        } else {
            tracing::warn!(service = %self.name, %error, "the service does not answer");
        }
        network.counters().service.refuse(error.reason());
        None
    }

    /// Joins whoever came with it.
    pub(crate) async fn join(&self, network: &Network, near: Pipe, far: Side) {
        let counters = &network.counters().service;
        counters.opened.fetch_add(1, Relaxed);
        let active = Active::new(&counters.active);
        let bytes = FlowBytes::part_of(vec![Arc::clone(&counters.bytes)]);
        let near = Side::Stream(near);
        let end = pipe::join(near, far, &CopyLimits::default(), &bytes).await;
        drop(active);
        if let Some(stop) = end.stop {
            tracing::debug!(service = %self.name, %stop, "a flow of nobody was cut");
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::{config::Config, gatekeeper::OpenGate, log::kept::Kept, network::NetworkOptions};

    #[tokio::test]
    async fn an_outage_is_told_once_however_many_come() {
        let (log, _logging) = Kept::begin();
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.node.data_dir = dir.path().join("data");
        let (options, gate) = (NetworkOptions::default(), Arc::new(OpenGate));
        let network = Network::start(config, options, gate, Arc::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let web = Hidden::new(ServiceName::parse("web").unwrap(), target);
        for expected in 1..=2 {
            assert!(web.reach(&network).await.is_some());
            // What is this node's own is reached by nobody.
            network.protect_socket(Transport::Tcp, target);
            for _ in 0..3 {
                assert!(web.reach(&network).await.is_none());
                assert_eq!(log.times("does not answer"), expected);
            }
            network.own_sockets().remove(Transport::Tcp, target);
        }
        network.shutdown().await;
    }
}
