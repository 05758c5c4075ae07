//! Facts that an event publishes, and whether it may ask the rules.

use std::sync::Arc;

use wormholes_proto::NodeId;

use super::{Effects, Limit, ROW_BYTES, Transaction, invalid};
use crate::{
    event::{Principal, Refusal},
    memory::Memory,
    rules::Fact,
};

/// The longest time of a fact: a day.
const MAX_TTL_MS: u64 = 86_400_000;
/// What it costs beside its kind.
const KEY_BYTES: usize = 32;

/// What a fact is about.
pub(super) type Place = (Arc<str>, NodeId);

impl Transaction {
    pub(crate) fn fact_set(
        &mut self,
        kind: &str,
        peer: NodeId,
        value: i64,
        ttl_ms: u64,
    ) -> Result<(), Refusal> {
        self.check_fact(kind)?;
        if !(1..=MAX_TTL_MS).contains(&ttl_ms) {
            return Err(invalid(
                "a fact lasts 1 ms to a day; publish it again before it ends",
            ));
        }
        let place = (Arc::from(kind), peer);
        let is_new = !self.has_fact(&place);
        if is_new && !self.has_room_for_facts() {
            return Err(self.hit(Limit::Facts));
        }
        self.charge(kind.len() + KEY_BYTES + ROW_BYTES)?;
        self.open_facts += usize::from(is_new);
        let until_ms = self.stamp.now_ms.saturating_add(ttl_ms);
        self.facts.insert(place, Some((value, until_ms)));
        Ok(())
    }

    pub(crate) fn fact_clear(&mut self, kind: &str, peer: NodeId) -> Result<(), Refusal> {
        self.check_fact(kind)?;
        self.charge(kind.len() + KEY_BYTES + ROW_BYTES)?;
        let place = (Arc::from(kind), peer);
        self.open_facts -= usize::from(self.has_fact(&place));
        self.facts.insert(place, None);
        Ok(())
    }

    /// Whether the rules may be asked this hook.
    pub(crate) fn check_ask(&mut self, hook: &str) -> Result<(), Refusal> {
        if self.ground.granted.rules.contains(hook) {
            return Ok(());
        }
        Err(self.denied(not_granted("rules", hook)))
    }

    fn check_fact(&mut self, kind: &str) -> Result<(), Refusal> {
        self.check_writable()?;
        if self.stamp.principal != Principal::Node {
            let node = "facts are the node's: send what you know to its principal";
            return Err(self.denied(node));
        }
        if !self.ground.granted.facts.contains(kind) {
            return Err(self.denied(not_granted("facts", kind)));
        }
        Ok(())
    }

    fn has_fact(&self, place: &Place) -> bool {
        match self.facts.get(place) {
            Some(own) => own.is_some(),
            None => self.memory.facts.contains_key(place),
        }
    }

    /// Those whose time is over make room.
    fn has_room_for_facts(&mut self) -> bool {
        let limit = self.ground.limits.facts as usize;
        if self.open_facts >= limit && !self.facts_are_pruned {
            self.facts_are_pruned = true;
            let now_ms = self.stamp.now_ms;
            let (own, before) = (&self.facts, self.memory.facts.len());
            self.memory
                .facts
                .retain(|place, until_ms| *until_ms > now_ms || own.contains_key(place));
            self.open_facts -= before - self.memory.facts.len();
        }
        self.open_facts < limit
    }

    /// What it published becomes real.
    pub(super) fn publish(
        facts: impl IntoIterator<Item = (Place, Option<(i64, u64)>)>,
        memory: &mut Memory,
        effects: &mut Effects,
    ) {
        for (place, value) in facts {
            let (kind, peer) = place.clone();
            match value {
                Some((_, until_ms)) => memory.facts.insert(place, until_ms),
                None => memory.facts.remove(&place),
            };
            effects.facts.push(Fact { kind, peer, value });
        }
    }
}

fn not_granted(capability: &str, name: &str) -> String {
    format!(
        "`{name}` is not among the `{capability}` that the manifest asks for and config.toml grants"
    )
}
