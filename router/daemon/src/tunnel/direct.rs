//! Direct tunnels: a dial from here, or one stream to a peer.

use std::{sync::Arc, time::Duration};

use wormholes_proto::{NodeId, Open, Target, Transport};
use wormholes_rules::TunnelKind;

use super::{OpenError, Opened, ask_node, ask_on};
use crate::{
    ban::Ban,
    dial::{self, DialError},
    network::{Network, Wanted},
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
    first: Wanted,
    open: &Open,
) -> Result<(Pipe, Vec<u8>), OpenError> {
    let asked = ask_node(network, node, first, |mut pipe| async move {
        let body = ask_on(network, &mut pipe, node, open).await?;
        Ok((pipe, body))
    });
    let (answered, _) = asked.await?;
    Ok(answered)
}
