//! Other nodes as scripts and people see them.

use std::sync::Arc;

use wormholes_proto::{NodeId, SignedRecord};
use wormholes_rules::{NodeView, World};

use super::Network;
use crate::{
    facts::Facts,
    names::NodeName,
    serve::{Asker, Way},
};

impl Network {
    /// Tells plugins of each peer that is connected.
    pub(crate) fn tell_presence(&self) {
        for link in self.peers.all_links() {
            if self.peers.known().get(&link.peer()).is_some() {
                self.trunk_desk.presence(self, link.peer());
            }
        }
    }

    /// All nodes as scripts see them, at most a second old.
    pub fn world(&self) -> Arc<World> {
        let build = || {
            let book = self.records.book();
            self.peers.world(self.id(), &book, &self.facts)
        };
        self.world.get(build)
    }

    /// A node as scripts see it now.
    pub(crate) fn view(&self, id: NodeId) -> Arc<NodeView> {
        let record = self.records.get(&id);
        let record = record.as_ref().map(SignedRecord::record);
        let known = self.peers.known();
        Arc::new(self.peers.view(&known, id, record, &self.facts))
    }

    /// A node as people read it.
    pub(crate) fn named(&self, id: NodeId) -> NodeName {
        let known = self.peers.known();
        let petname = known.get(&id).map(|peer| peer.name.as_str().into());
        NodeName { id, petname }
    }

    /// Who asks, as scripts see it; none through an onion, where the hop before only passes on.
    pub(crate) fn asker_view(&self, asker: &Asker) -> Option<Arc<NodeView>> {
        (asker.way != Way::Onion).then(|| self.view(asker.id))
    }

    /// Scripts see the change at once.
    pub(crate) fn expire_world(&self) {
        self.world.expire();
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }
}
