//! Services of this node, used by others: local ports under a name.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use wormholes_proto::{Reason, ServiceName, Transport};

use super::{Asker, grant, log_end, refuse, while_asked};
use crate::{
    ban::Ban,
    dial::{self, DialError},
    network::Network,
    pipe::{self, CopyLimits, FlowBytes, Pipe, Side},
};

/// The service is on this machine or near it.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Joins `pipe` with the service; no name asks for the default one, the first of its transport in
/// config.toml.
pub(super) async fn serve(
    network: &Arc<Network>,
    asker: &Asker,
    transport: Transport,
    name: Option<&ServiceName>,
    mut pipe: Pipe,
) {
    let counters = &network.counters().service;
    let config = network.config();
    let mut services = config.services.iter();
    let found = services.find(|service| {
        service.transport == transport && name.is_none_or(|name| service.name == *name)
    });
    // A service that the asker may not use is none: who may use it is nobody else's business.
    let Some(service) = found.filter(|service| asker.trust >= service.min_trust) else {
        counters.refuse(Reason::NoService);
        return refuse(pipe, Reason::NoService).await;
    };
    let dialled = self::dial(network, transport, service.target);
    let far = match while_asked(&mut pipe, dialled).await {
        None => return,
        Some(Ok(far)) => far,
        Some(Err(error)) => {
            tracing::warn!(service = %service.name, %error, "the service does not answer");
            counters.refuse(error.reason());
            return refuse(pipe, error.reason()).await;
        }
    };
    counters.opened.fetch_add(1, Relaxed);
    if let Some(near) = grant(network, pipe, transport).await {
        let active = Active::new(&counters.active);
        let bytes = FlowBytes::part_of(vec![Arc::clone(&counters.bytes)]);
        let limits = CopyLimits {
            // The asker's end of a UDP flow may vanish without a word of it.
            idle: (transport == Transport::Udp).then_some(config.limits.udp_idle),
            ..CopyLimits::default()
        };
        let end = pipe::join(near, far, &limits, &bytes).await;
        drop(active);
        log_end(network, "service", asker, &end);
    }
}

/// Connects to a service at `target`.
///
/// # Errors
/// [`DialError`] when nobody answers there.
pub(super) async fn dial(
    network: &Network,
    transport: Transport,
    target: SocketAddr,
) -> Result<Side, DialError> {
    // Through an entrance of this node its peers would pass for local programs.
    if network.own_sockets().contains(transport, target) {
        return Err(DialError::from(Ban::Own));
    }
    dial::side(transport, &[target], DIAL_TIMEOUT, network.counters()).await
}

/// Counts a flow while it lives, also when it is dropped.
pub(super) struct Active<'a>(&'a std::sync::atomic::AtomicUsize);

impl<'a> Active<'a> {
    pub(super) fn new(count: &'a std::sync::atomic::AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
