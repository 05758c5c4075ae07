//! Direct tunnels: a dial from here, or one stream to a peer.

use std::{sync::Arc, time::Duration};

use wormholes_proto::CarrierKind;
use wormholes_proto::{NodeId, Open, Target, Transport};
use wormholes_rules::TunnelKind;

use super::{OpenError, Opened, ask_on, stream_to};
use crate::{
    ban::Ban,
    dial::{self, DialError},
    network::Network,
    pipe::Pipe,
};

/// The flow's own limit ends it earlier; this one is the system's.
const DIAL_TIMEOUT: Duration = Duration::from_secs(120);

/// Dials `target` from here. Private addresses are this machine's own business; the node's own
/// sockets are not: a flow to them would come back.
pub(super) async fn dial(
    network: &Network,
    transport: Transport,
    target: &Target,
) -> Result<Opened, OpenError> {
    let addresses = network.resolver().resolve(target).await?;
    let addresses = dial::permitted(addresses, |address| {
        if network.own_sockets().contains(transport, address) {
            Err(DialError::from(Ban::Own))
        } else {
            Ok(())
        }
    })?;
    let counters = network.counters();
    Ok(Opened {
        side: dial::side(transport, &addresses, DIAL_TIMEOUT, counters).await?,
        path: Vec::new(),
        kind: TunnelKind::Direct,
    })
}

/// Opens a stream to a peer and asks for `open`; the answer's body comes with it.
pub(super) async fn ask(
    network: &Arc<Network>,
    node: NodeId,
    carrier: Option<CarrierKind>,
    open: &Open,
) -> Result<(Pipe, Vec<u8>), OpenError> {
    let (link, mut pipe) = stream_to(network, node, carrier).await?;
    let body = match ask_on(network, &mut pipe, node, open).await {
        // A door shut on the whole connection says more than the broken stream on it.
        Err(OpenError::Broken { .. }) if link.is_closed() => {
            let (node, source) = (network.named(node), link.closed().await.into());
            return Err(OpenError::Connect { node, source });
        }
        other => other?,
    };
    Ok((pipe, body))
}
