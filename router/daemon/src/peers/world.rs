//! The snapshot of all nodes that scripts see.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use wormholes_proto::{NodeId, NodeRecord, RecordBook};
use wormholes_rules::{NodeView, World};

use super::{Known, Peers};
use crate::{config::PeerConfig, facts::Facts, names::short_id};

/// How old a snapshot may be: round trips change slowly, and a flow pays nothing for a fresh one.
const MAX_AGE: Duration = Duration::from_secs(1);

/// The last snapshot.
#[derive(Debug, Default)]
pub(crate) struct WorldCache(Mutex<Option<(Instant, Arc<World>)>>);

impl WorldCache {
    /// The snapshot, made anew by `build` when it is old.
    pub(crate) fn get(&self, build: impl FnOnce() -> World) -> Arc<World> {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*cached {
            Some((made, world)) if made.elapsed() < MAX_AGE => Arc::clone(world),
            _ => {
                let world = Arc::new(build());
                *cached = Some((Instant::now(), Arc::clone(&world)));
                world
            }
        }
    }

    /// Something changed that scripts must see at once.
    pub(crate) fn expire(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Peers {
    /// Whether there is a connection to a node that is not closed.
    pub(crate) fn is_connected(&self, id: &NodeId) -> bool {
        let seat = self.seats().get(id).cloned();
        seat.is_some_and(|seat| seat.links().iter().any(|link| !link.is_closed()))
    }

    /// All peers of config.toml and all nodes of the book but this one, in order of name.
    pub(crate) fn world(&self, own: NodeId, book: &RecordBook, facts: &Facts) -> World {
        let known = self.known();
        let ids: BTreeSet<NodeId> = known
            .iter()
            .map(|peer| peer.id)
            .chain(book.iter().map(|record| record.id()))
            .filter(|id| *id != own)
            .collect();
        let view = |id| Arc::new(self.view(&known, id, book.record(&id), facts));
        let mut nodes: Vec<Arc<NodeView>> = ids.into_iter().map(view).collect();
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        World::new(nodes)
    }

    /// One node as scripts see it; `record` is its newest.
    pub(crate) fn view(
        &self,
        known: &Known,
        id: NodeId,
        record: Option<&NodeRecord>,
        facts: &Facts,
    ) -> NodeView {
        let config = known.get(&id);
        let link = self.link(&id);
        let has_address = config.is_some_and(|config| config.ways().next().is_some())
            || record.is_some_and(|record| !record.addresses.is_empty());
        NodeView {
            name: config.map_or_else(|| short_id(id), |config| config.name.clone()),
            is_peer: config.is_some(),
            id,
            trust: config.map_or(0, |config| config.trust),
            online: link.is_some(),
            rtt_ms: link.as_ref().map(|link| link.rtt().as_secs_f64() * 1000.0),
            loss: link.as_ref().map_or(0.0, super::Link::loss),
            load: link.as_ref().map_or(0.0, super::Link::load),
            has_address,
            relays: relays(known, config, record),
            roles: record.map(|record| record.roles).unwrap_or_default(),
            family: record.and_then(|record| record.family.clone()),
            facts: facts.about(&id),
        }
    }
}

/// Where a node can be reached through: what config.toml says, then what the node says.
pub(crate) fn relays(
    known: &Known,
    config: Option<&PeerConfig>,
    record: Option<&NodeRecord>,
) -> Vec<NodeId> {
    let via = config.into_iter().flat_map(|config| &config.via);
    let mut relays: Vec<NodeId> = via.filter_map(|name| known.id(name)).collect();
    for relay in record.into_iter().flat_map(|record| &record.relays) {
        if !relays.contains(relay) {
            relays.push(*relay);
        }
    }
    relays
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{
        config::Config,
        identity::Identity,
        names::{self, SHORT_ID_CHARS},
        records::OwnRecord,
    };

    /// A stranger's signed word about itself.
    fn record_of(stranger: &Identity) -> wormholes_proto::SignedRecord {
        let record = OwnRecord {
            config: &Config::default(),
            identity: stranger,
            listen: Vec::new(),
            onion_keys: Vec::new(),
            relays: Vec::new(),
        };
        record.sign(0).unwrap()
    }

    #[test]
    fn a_stranger_takes_over_no_petname() {
        let stranger = Identity::throw_away().unwrap();
        let id_text = stranger.id().to_string();
        // Whom this node calls as the stranger's id begins; the stranger's id sorts first.
        let friend = PeerConfig {
            name: id_text[..SHORT_ID_CHARS].to_owned(),
            id: NodeId::from_bytes([0xff; 32]),
            addresses: Vec::new(),
            onions: Vec::new(),
            trust: 2,
            via: Vec::new(),
            register: false,
        };
        let mut book = RecordBook::new();
        let own = NodeId::from_bytes([0; 32]);
        book.handle_record(SystemTime::now(), own, record_of(&stranger));
        let node_of = |peers: &[PeerConfig], name: &str| {
            let world = Peers::new(peers, 8).world(own, &book, &Facts::default());
            names::resolve(name, &world).unwrap().unwrap().node
        };
        let (short, whole) = (
            format!("web.{}.wh", friend.name),
            format!("web.{id_text}.wh"),
        );
        let (peer, nobody) = ([friend.clone()], []);
        assert_eq!(node_of(&peer, &short), Some(friend.id));
        assert_eq!(node_of(&nobody, &short), None);
        assert_eq!(node_of(&nobody, &whole), Some(stranger.id()));
        let world = Peers::new(&nobody, 8).world(own, &book, &Facts::default());
        let shown = &world.by_id(&stranger.id()).unwrap().name;
        assert!(world.find(shown).is_none(), "{shown} is for display");
        assert_ne!(*shown, friend.name, "a script would take it for the friend");
    }
}
