//! Services of this node, used by others: local ports under a name.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use wormholes_proto::{Reason, ServiceName};

use super::{Asker, accept, log_end, refuse, while_asked};
use crate::{
    ban::{Ban, Transport},
    dial::{self, DialError},
    network::Network,
    pipe::{self, CopyLimits, FlowBytes, Pipe},
};

/// The service is on this machine or near it.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Joins `pipe` with the service; no name asks for the default one, the first in config.toml.
pub(super) async fn serve(
    network: &Arc<Network>,
    asker: &Asker,
    name: Option<&ServiceName>,
    mut pipe: Pipe,
) {
    let counters = &network.counters().service;
    let services = &network.config().services;
    let found = match name {
        Some(name) => services.iter().find(|service| service.name == *name),
        None => services.first(),
    };
    // A service that the asker may not use is none: who may use it is nobody else's business.
    let Some(service) = found.filter(|service| asker.trust >= service.min_trust) else {
        counters.refuse(Reason::NoService);
        return refuse(pipe, Reason::NoService).await;
    };
    // Through an entrance of this node its peers would pass for local programs.
    let dialled = async {
        if network
            .own_sockets()
            .contains(Transport::Tcp, service.target)
        {
            return Err(DialError::from(Ban::Own));
        }
        dial::connect(&[service.target], DIAL_TIMEOUT).await
    };
    let stream = match while_asked(&mut pipe, dialled).await {
        None => return,
        Some(Ok(stream)) => stream,
        Some(Err(error)) => {
            tracing::warn!(service = %service.name, %error, "the service does not answer");
            counters.refuse(error.reason());
            return refuse(pipe, error.reason()).await;
        }
    };
    counters.opened.fetch_add(1, Relaxed);
    if accept(&mut pipe, Vec::new()).await {
        let active = Active::new(&counters.active);
        let bytes = FlowBytes::part_of(vec![Arc::clone(&counters.bytes)]);
        let limits = CopyLimits::default();
        let end = pipe::copy(pipe, Pipe::tcp(stream), &limits, &bytes).await;
        drop(active);
        log_end(network, "service", asker, &end);
    }
}

/// Counts a flow while it lives, also when it is dropped.
struct Active<'a>(&'a std::sync::atomic::AtomicUsize);

impl<'a> Active<'a> {
    fn new(count: &'a std::sync::atomic::AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
