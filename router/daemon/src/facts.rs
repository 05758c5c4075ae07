//! What plugins know of other nodes, and scripts read as `p.credit`: whole numbers by kind and node, each
//! until its time is over. In memory only.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{PoisonError, RwLock},
    time::SystemTime,
};

use wormholes_host::Fact;
use wormholes_proto::NodeId;

use crate::clock::unix_ms;

/// From so many on, those whose time is over make room when there are twice as many as last held.
/// What holds is bounded by each plugin's `limits.facts`.
const MIN_KEPT: usize = 1024;

/// All facts.
#[derive(Debug, Default)]
pub(crate) struct Facts(RwLock<BTreeMap<String, Kind>>);

/// Those of one kind: they come from one plugin.
#[derive(Debug, Default)]
struct Kind {
    /// The value, and until when it holds: milliseconds since 1970.
    by_node: HashMap<NodeId, (i64, u64)>,
    /// How many held when it was last looked.
    held: usize,
}

impl Facts {
    /// Takes what was published.
    pub(crate) fn publish(&self, facts: Vec<Fact>) {
        let now_ms = unix_ms(SystemTime::now());
        let mut kinds = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for fact in facts {
            let kind = match kinds.get_mut(&*fact.kind) {
                Some(kind) => kind,
                None => kinds.entry(fact.kind.to_string()).or_default(),
            };
            match fact.value {
                Some(value) => kind.by_node.insert(fact.peer, value),
                None => kind.by_node.remove(&fact.peer),
            };
            kind.make_room(now_ms);
        }
    }

    /// Forgets all facts of these kinds.
    pub(crate) fn forget(&self, names: &BTreeSet<String>) {
        let mut kinds = self.0.write().unwrap_or_else(PoisonError::into_inner);
        kinds.retain(|name, _| !names.contains(name));
    }

    /// What holds about a node now.
    pub(crate) fn about(&self, node: &NodeId) -> BTreeMap<String, i64> {
        let kinds = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if kinds.is_empty() {
            return BTreeMap::new();
        }
        let now_ms = unix_ms(SystemTime::now());
        let known = kinds.iter().filter_map(|(name, kind)| {
            let (value, until_ms) = kind.by_node.get(node)?;
            (*until_ms > now_ms).then(|| (name.clone(), *value))
        });
        known.collect()
    }
}

impl Kind {
    fn make_room(&mut self, now_ms: u64) {
        if self.by_node.len() >= (self.held * 2).max(MIN_KEPT) {
            self.by_node.retain(|_, (_, until_ms)| *until_ms > now_ms);
            self.held = self.by_node.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: usize) -> NodeId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&number.to_be_bytes());
        NodeId::from_bytes(id)
    }

    fn fact(kind: &str, number: usize, value: Option<(i64, u64)>) -> Fact {
        Fact {
            kind: kind.into(),
            peer: node(number),
            value,
        }
    }

    #[test]
    fn a_fact_holds_until_it_is_taken_back_or_its_time_is_over() {
        let facts = Facts::default();
        facts.publish(vec![
            fact("credit", 1, Some((5, u64::MAX))),
            fact("debt", 1, Some((-7, u64::MAX))),
            fact("credit", 2, Some((9, 1))),
        ]);
        let both = [("credit".to_owned(), 5), ("debt".to_owned(), -7)];
        assert_eq!(facts.about(&node(1)), both.clone().into());
        assert!(facts.about(&node(2)).is_empty(), "long over");
        facts.publish(vec![fact("credit", 1, None)]);
        assert_eq!(facts.about(&node(1)), [both[1].clone()].into());
        facts.forget(&["debt".to_owned()].into());
        assert!(facts.about(&node(1)).is_empty());
    }

    #[test]
    fn what_is_over_makes_room() {
        let facts = Facts::default();
        for number in 0..MIN_KEPT * 8 {
            let until_ms = if number < 10 { u64::MAX } else { 1 };
            facts.publish(vec![fact("credit", number, Some((1, until_ms)))]);
        }
        let kinds = facts.0.read().unwrap();
        assert!(kinds["credit"].by_node.len() <= MIN_KEPT);
        drop(kinds);
        assert_eq!(facts.about(&node(9)).len(), 1);
    }
}
