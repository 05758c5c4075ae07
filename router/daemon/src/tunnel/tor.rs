//! Tunnels through Tor: to an onion service, or by an exit, which gets names unresolved.

use std::net::IpAddr;

use wormholes_proto::Transport;
use wormholes_rules::TunnelKind;

use super::{OpenError, Opened, TunnelRequest};
use crate::{network::Network, pipe::Side};

/// Opens a stream to the target. Before Tor is ready the flow waits.
pub(super) async fn open(network: &Network, request: &TunnelRequest) -> Result<Opened, OpenError> {
    if request.transport == Transport::Udp {
        return Err(OpenError::NoWay(
            "UDP does not go through Tor: give `c.network == \"udp\"` another tunnel",
        ));
    }
    let opened = network.tor().open(&request.target, &request.isolation);
    Ok(Opened {
        side: Side::Stream(opened.await?),
        path: Vec::new(),
        kind: TunnelKind::Tor,
    })
}

/// Has an exit look the target's host up.
pub(super) async fn resolve(
    network: &Network,
    request: &TunnelRequest,
) -> Result<Vec<IpAddr>, OpenError> {
    let host = &request.target.host;
    Ok(network.tor().resolve(host, &request.isolation).await?)
}
