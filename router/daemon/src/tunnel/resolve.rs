//! Names, looked up where a tunnel ends.

use std::{net::IpAddr, sync::Arc};

use wormholes_proto::{NodeId, Open, decode_resolved};
use wormholes_rules::Tunnel;

use super::{OpenError, TunnelRequest, direct, onion, onion_plan, punch, relay, too_late, tor};
use crate::{network::Network, pipe::PipeError};

/// Looks the target's host up at the end of `tunnel`.
///
/// # Errors
/// [`OpenError`] as for [`super::open`].
pub(crate) async fn resolve(
    network: &Arc<Network>,
    tunnel: &Tunnel,
    request: &TunnelRequest,
) -> Result<Vec<IpAddr>, OpenError> {
    let timeout = request.timeout;
    let found = tokio::time::timeout(timeout, resolve_any(network, tunnel, request)).await;
    found.unwrap_or_else(|_| Err(too_late(network, tunnel, timeout)))
}

async fn resolve_any(
    network: &Arc<Network>,
    tunnel: &Tunnel,
    request: &TunnelRequest,
) -> Result<Vec<IpAddr>, OpenError> {
    let (host, first) = (&request.target.host, request.first_node());
    let open = Open::Resolve(host.clone());
    match tunnel {
        Tunnel::Direct { to: None, .. } => Ok(network.resolver().lookup(host).await?),
        Tunnel::Direct { to: Some(to), .. } => {
            let (_, body) = direct::ask(network, *to, first, &open).await?;
            decode_addresses(network, *to, &body)
        }
        Tunnel::Relay { via, to, .. } => {
            let (_, _, body) = relay::ask(network, *via, *to, first, &open).await?;
            decode_addresses(network, *to, &body)
        }
        Tunnel::Punch { via, to, .. } => {
            let (_, _, body) = punch::ask(network, *via, *to, first, &open).await?;
            decode_addresses(network, *to, &body)
        }
        Tunnel::Onion { .. } => {
            let plan = onion_plan(tunnel, first)?;
            let (path, _, body) =
                onion::ask(network, plan, &request.isolation, &open, request.timeout).await?;
            let last = path.last().copied().unwrap_or_else(|| network.id());
            decode_addresses(network, last, &body)
        }
        Tunnel::I2p { .. } => Err(OpenError::NoWay(
            "names of I2P have no addresses to look up",
        )),
        Tunnel::Socks { .. } => Err(OpenError::NoWay("a SOCKS server looks no names up")),
        Tunnel::Tor => tor::resolve(network, request).await,
        Tunnel::Block { why } => Err(OpenError::Blocked(why.clone())),
    }
}

/// Reads the answer to a RESOLVE.
fn decode_addresses(
    network: &Network,
    node: NodeId,
    body: &[u8],
) -> Result<Vec<IpAddr>, OpenError> {
    let addresses = decode_resolved(body).map_err(|_| PipeError::Malformed("addresses"));
    let addresses = network.counters().answered(addresses);
    addresses.map_err(|source| OpenError::Broken {
        node: network.named(node),
        source,
    })
}
