//! Trunks of other nodes' plugins: each is counted, and handed to whoever answers for the plugins
//! here. What travels on it is not looked at.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use wormholes_host::Pipe as HostPipe;
use wormholes_proto::{NodeId, Reason, Transport};

use super::{Asker, Way, grant, log_end, refuse};
use crate::{
    config::RoleConfig,
    network::Network,
    pipe::{self, CopyLimits, Pipe, Side},
    role::Role,
};

/// At once, in all. Overflow rule: the newcomer is refused as busy.
const MAX_TRUNKS: usize = 1024;
/// At once, of one node: a trunk for each of its plugins and aliases, and of each an old one that has
/// not ended yet. Of all who come in onions through one hop, half of all. Overflow rule: as above.
const MAX_TRUNKS_OF_ONE: usize = 64;

/// Who answers for the plugins of this node.
pub trait Trunks: Send + Sync + 'static {
    /// A trunk came, from a node where that is known.
    fn answer(&self, trunk: Box<dyn HostPipe>, from: Option<NodeId>);

    /// A node can be reached again.
    fn peer_is_up(&self, node: NodeId) {
        let _ = node;
    }

    /// A connection to a peer was made, or the last one is gone; `is_online` says what is so.
    fn presence(&self, node: NodeId, trust: u8, is_online: &dyn Fn() -> bool) {
        let _ = (node, trust, is_online);
    }
}

impl<F: Fn(Box<dyn HostPipe>, Option<NodeId>) + Send + Sync + 'static> Trunks for F {
    fn answer(&self, trunk: Box<dyn HostPipe>, from: Option<NodeId>) {
        self(trunk, from);
    }
}

/// Where trunks come in.
pub(crate) struct TrunkDesk {
    /// None: no plugins run here.
    answer: OnceLock<Box<dyn Trunks>>,
    places: Role,
}

impl TrunkDesk {
    pub(crate) fn new() -> Self {
        Self {
            answer: OnceLock::new(),
            places: Role::new(RoleConfig {
                enabled: true,
                max_circuits: MAX_TRUNKS,
                max_circuits_per_peer: MAX_TRUNKS_OF_ONE,
                ..RoleConfig::default()
            }),
        }
    }

    /// Hands trunks to `answer` from now on; the first to ask for them gets them all.
    pub(crate) fn open(&self, answer: Box<dyn Trunks>) {
        // Set once: a node has one host of plugins.
        let _ = self.answer.set(answer);
    }

    /// Tells whoever answers that a node can be reached.
    pub(crate) fn peer_is_up(&self, node: NodeId) {
        if let Some(trunks) = self.answer.get() {
            trunks.peer_is_up(node);
        }
    }

    /// Tells whoever answers that a peer came or went.
    pub(crate) fn presence(&self, network: &Network, node: NodeId) {
        let Some(trunks) = self.answer.get() else {
            return;
        };
        let peers = network.peers();
        let trust = peers.known().get(&node).map_or(0, |peer| peer.trust);
        trunks.presence(node, trust, &|| peers.is_connected(&node));
    }
}

/// Hands the trunk over, and copies until either end is done or the node stops.
pub(super) async fn serve(network: &Arc<Network>, asker: &Asker, pipe: Pipe) {
    let counters = &network.counters().service;
    let Some(trunks) = network.trunk_desk().answer.get() else {
        // As any service that is not there.
        counters.refuse(Reason::NoService);
        return refuse(pipe, Reason::NoService).await;
    };
    let places = &network.trunk_desk().places;
    let place = match places.enter(counters, asker.customer()) {
        Ok(place) => place,
        Err(reason) => {
            counters.refuse(reason);
            return refuse(pipe, reason).await;
        }
    };
    let Some(near) = grant(network, pipe, Transport::Tcp).await else {
        return;
    };
    let (far, end) = Pipe::memory();
    trunks.answer(Box::new(end), asker.known());
    let (far, limits) = (Side::Stream(far), CopyLimits::default());
    let joined = pipe::join(near, far, &limits, &place.bytes);
    // No trunk ends by itself: a stop does not wait for it.
    if let Some(end) = network.until_drain(joined).await {
        log_end(network, "trunk", asker, &end);
    }
}

impl Asker {
    /// The node, if it is the one that wants something.
    fn known(&self) -> Option<NodeId> {
        match self.way {
            Way::Peer | Way::Relayed => Some(self.id),
            Way::Stranger | Way::Onion => None,
        }
    }
}

impl fmt::Debug for TrunkDesk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrunkDesk")
            .field("is_open", &self.answer.get().is_some())
            .finish_non_exhaustive()
    }
}
