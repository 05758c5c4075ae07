//! Tunnels through I2P: a stream from a session at the I2P router, to a name that it finds.

use std::sync::Arc;

use wormholes_proto::{ServiceName, Transport, sam::I2pName};
use wormholes_rules::TunnelKind;

use super::{OpenError, Opened, TunnelRequest};
use crate::{
    i2p::{Owner, WantedTunnels},
    network::Network,
    pipe::Side,
};

/// Opens a stream to the target, from the kept destination of a name or from one of those flows'.
pub(super) async fn open(
    network: &Arc<Network>,
    keep: Option<&str>,
    wanted: WantedTunnels,
    request: &TunnelRequest,
) -> Result<Opened, OpenError> {
    if request.transport == Transport::Udp {
        return Err(OpenError::NoWay(
            "I2P carries streams: give `c.network == \"udp\"` another tunnel",
        ));
    }
    let name = I2pName::of(&request.target.host);
    let name = name.ok_or(OpenError::NoWay(
        "I2P leads to names that end with .i2p, and nowhere else",
    ))?;
    let i2p = network.i2p().ok_or(OpenError::NoWay(
        "this node has no I2P router: set `sam` in [i2p] of the config",
    ))?;
    let owner = match keep {
        None => Owner::Flows(request.isolation.clone()),
        Some(name) => {
            let name = ServiceName::parse(name);
            let name = name.map_err(|_| OpenError::NoWay("no destination is kept by that name"))?;
            Owner::Kept(name)
        }
    };
    let port = request.target.port;
    let opened = i2p.connect(network, (owner, wanted), (&name, port)).await;
    let pipe = opened.map_err(|source| OpenError::I2p {
        router: i2p.router(),
        source,
    })?;
    Ok(Opened {
        side: Side::Stream(pipe),
        path: Vec::new(),
        kind: TunnelKind::I2p,
    })
}
