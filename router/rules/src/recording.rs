//! A decision as it is kept: the question, all that its scripts read, and the answer.
//!
//! [`Policy::replay`](crate::Policy::replay) asks other scripts the same question over it. As JSON
//! it is what `wormholes script replay --save` writes and `--from` reads; a frozen text in the
//! tests guards that form.

pub(crate) mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wormholes_proto::NodeId;

use crate::{
    decision::{Outcome, RuleRef},
    plan::Plan,
    policy::Needs,
    state::KeptValue,
    verdict::Verdict,
    view::{Asked, Conn, ExitRequest, NodeView, RelayRequest, World},
};

/// What one decision may have read. Overflow: the decision is kept as one that cannot be replayed.
const MAX_READ_BYTES: usize = 64 * 1024;

/// A decision that can be replayed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// What was asked.
    pub question: Question,
    /// What the scripts read beside the question.
    pub reads: Reads,
    /// What they answered.
    pub answer: Answer,
    /// The rule that answered; none when no script did.
    pub rule: Option<RuleRef>,
}

/// What a hook was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "hook", content = "argument", rename_all = "lowercase")]
pub enum Question {
    /// How a flow shall travel.
    #[serde(with = "wire::shared")]
    Route(Arc<Conn>),
    /// Whether a node may connect.
    Accept {
        /// Which.
        #[serde(with = "wire::shared")]
        node: Arc<NodeView>,
        /// When.
        now: SystemTime,
    },
    /// Whether to carry traffic between two nodes.
    Relay(Box<RelayRequest>),
    /// Whether to dial a target for somebody.
    Exit(Box<ExitRequest>),
    /// What a plugin asks.
    Asked(Box<Asked>),
}

/// What the scripts answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Of `route`.
    Route(Outcome),
    /// Of the others; none when no script answered.
    Verdict(Option<Verdict>),
}

/// What the scripts of one decision read beside their argument.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reads {
    /// Why this is not all that decided; none: it is all.
    pub lost: Option<String>,
    /// The costly fields of `c` that were looked up.
    pub(crate) looked_up: Needs,
    /// Every node that a script held or that its argument leads to, and every relay of those.
    #[serde(with = "wire::nodes")]
    pub(crate) nodes: BTreeMap<NodeId, Arc<NodeView>>,
    /// What `peer(who)` and `relay(who)` found.
    pub(crate) found: BTreeMap<String, Option<NodeId>>,
    /// What `peers()` listed.
    pub(crate) peers: Option<Vec<NodeId>>,
    /// What `relays()` listed.
    pub(crate) relays: Option<Vec<NodeId>>,
    /// The sets that there were.
    #[serde(with = "wire::shared")]
    pub(crate) sets: Arc<BTreeSet<String>>,
    /// All sets that had a value, by value.
    pub(crate) members: BTreeMap<String, Vec<String>>,
    /// The facts that plugins published.
    #[serde(with = "wire::shared")]
    pub(crate) facts: Arc<BTreeSet<String>>,
    /// What each script kept and counted.
    pub(crate) states: BTreeMap<String, StateReads>,
    /// How large all of this is, about.
    #[serde(skip)]
    bytes: usize,
}

/// What one script read of its own state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StateReads {
    /// What was kept before the decision.
    pub(crate) kept: BTreeMap<String, Option<KeptValue>>,
    /// What was asked of each rate, in order, and whether it had one left.
    pub(crate) rates: BTreeMap<String, Vec<(RateAsk, bool)>>,
    /// What was asked of each quota, in order, and what it said.
    pub(crate) quotas: BTreeMap<String, Vec<(QuotaAsk, QuotaSaid)>>,
}

/// `rate(key, limit, window)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RateAsk {
    pub(crate) limit: u32,
    pub(crate) window: Duration,
}

/// `quota(key, amount, limit, window)` or `quota(key)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum QuotaAsk {
    Take {
        amount: u64,
        limit: u64,
        window: Duration,
    },
    Used,
}

/// What a quota said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum QuotaSaid {
    Fits(bool),
    Used(u64),
}

impl Question {
    /// The hook that was asked.
    pub fn hook(&self) -> &'static str {
        match self {
            Self::Route(_) => "route",
            Self::Accept { .. } => "accept",
            Self::Relay(_) => "relay",
            Self::Exit(_) => "exit",
            Self::Asked(_) => "asked",
        }
    }

    /// What it was about, in words for people: a target, or who asked for what.
    pub fn about(&self) -> String {
        match self {
            Self::Route(conn) => format!("{}:{}", conn.host, conn.port),
            Self::Accept { node, .. } => node.name.clone(),
            Self::Relay(request) => format!("{} to {}", request.from.name, request.to.name),
            Self::Exit(request) => {
                let from = request.from.as_ref();
                let from = from.map_or("an onion's asker", |from| &from.name);
                match request.port {
                    Some(port) => format!("{from} to {}:{port}", request.host),
                    None => format!("{from} for the address of {}", request.host),
                }
            }
            Self::Asked(asked) => format!("{} asks {}", asked.plugin, asked.name),
        }
    }

    /// The number of the flow that it was about.
    pub fn flow(&self) -> Option<u64> {
        match self {
            Self::Route(conn) => Some(conn.id),
            Self::Accept { .. } | Self::Relay(_) | Self::Exit(_) | Self::Asked(_) => None,
        }
    }
}

impl Recording {
    /// What a node is called that the decision saw; of another one, its id.
    pub fn name(&self, id: &NodeId) -> String {
        let node = self.reads.nodes.get(id);
        node.map_or_else(|| id.to_string(), |node| node.name.clone())
    }

    /// An answer to its question, in words for people.
    pub fn text(&self, answer: &Answer) -> String {
        let plan = |plan: &Plan| plan.text(&|id| self.name(id));
        match answer {
            Answer::Route(Outcome::Plan(steps)) => plan(steps),
            Answer::Route(Outcome::NeedIp(steps)) => {
                format!("need the address, through {}", plan(steps))
            }
            Answer::Route(Outcome::NeedSni) => "need the name in the TLS ClientHello".to_owned(),
            Answer::Route(Outcome::Pass) | Answer::Verdict(None) => {
                "no script answers: as config.toml says".to_owned()
            }
            Answer::Verdict(Some(verdict)) => verdict.to_string(),
        }
    }

    /// How much memory it takes, about; nodes that others hold too count in full.
    pub fn bytes(&self) -> usize {
        let asked = match &self.question {
            Question::Asked(asked) => json_bytes(&asked.record),
            Question::Route(_)
            | Question::Accept { .. }
            | Question::Relay(_)
            | Question::Exit(_) => 0,
        };
        size_of::<Self>() + size_of::<Conn>() + self.reads.bytes + asked
    }
}

impl Reads {
    /// An empty record of a decision that stands on these sets and facts.
    pub(crate) fn new(
        looked_up: Needs,
        sets: &Arc<BTreeSet<String>>,
        facts: &Arc<BTreeSet<String>>,
    ) -> Self {
        Self {
            looked_up,
            sets: Arc::clone(sets),
            facts: Arc::clone(facts),
            ..Self::default()
        }
    }

    /// From here on this is not all that decides.
    pub(crate) fn lose(&mut self, why: &str) {
        *self = Self {
            lost: Some(why.to_owned()),
            ..Self::default()
        };
    }

    /// Keeps `node` and the relays that it is reached through.
    pub(crate) fn node(&mut self, world: &World, node: &Arc<NodeView>) {
        if self.nodes.contains_key(&node.id) || !self.takes(node_bytes(node)) {
            return;
        }
        self.nodes.insert(node.id, Arc::clone(node));
        self.relays_of(world, node);
    }

    /// Keeps the relays that a node is reached through, which may not be one of the world.
    pub(crate) fn relays_of(&mut self, world: &World, node: &NodeView) {
        for relay in node.relays.iter().filter_map(|id| world.by_id(id)) {
            self.node(world, relay);
        }
    }

    pub(crate) fn found(&mut self, who: &str, node: Option<&Arc<NodeView>>) {
        if !self.found.contains_key(who) && self.takes(text_bytes(who)) {
            let id = node.map(|node| node.id);
            self.found.insert(who.to_owned(), id);
        }
    }

    pub(crate) fn listed(&mut self, is_relay: bool, nodes: &[Arc<NodeView>]) {
        if self.takes(size_of_val(nodes) * 2) {
            let ids = Some(nodes.iter().map(|node| node.id).collect());
            match is_relay {
                true => self.relays = ids,
                false => self.peers = ids,
            }
        }
    }

    pub(crate) fn members(&mut self, value: &str, sets: &[&str]) {
        let names: usize = sets.iter().map(|name| text_bytes(name)).sum();
        if self.takes(text_bytes(value) + names) {
            let sets = sets.iter().map(|&name| name.to_owned()).collect();
            self.members.insert(value.to_owned(), sets);
        }
    }

    pub(crate) fn kept(&mut self, script: &str, key: &str, value: Option<&KeptValue>) {
        let bytes = value.map_or(0, KeptValue::len);
        if self.takes(text_bytes(key) + bytes) {
            let kept = &mut self.state(script).kept;
            kept.insert(key.to_owned(), value.cloned());
        }
    }

    pub(crate) fn rate(&mut self, script: &str, key: &str, ask: RateAsk, fits: bool) {
        if self.takes(text_bytes(key)) {
            let rates = &mut self.state(script).rates;
            rates.entry(key.to_owned()).or_default().push((ask, fits));
        }
    }

    pub(crate) fn quota(&mut self, script: &str, key: &str, ask: QuotaAsk, said: QuotaSaid) {
        if self.takes(text_bytes(key)) {
            let quotas = &mut self.state(script).quotas;
            quotas.entry(key.to_owned()).or_default().push((ask, said));
        }
    }

    fn state(&mut self, script: &str) -> &mut StateReads {
        self.states.entry(script.to_owned()).or_default()
    }

    /// Whether so much more may be kept.
    fn takes(&mut self, bytes: usize) -> bool {
        if self.lost.is_some() {
            return false;
        }
        self.bytes += bytes;
        if self.bytes > MAX_READ_BYTES {
            self.lose("it read more than 64 KiB");
            return false;
        }
        true
    }
}

/// A text in a map, and what stands beside it.
fn text_bytes(text: &str) -> usize {
    text.len() + 96
}

fn json_bytes(entries: &serde_json::Map<String, Value>) -> usize {
    fn of(value: &Value) -> usize {
        size_of::<Value>()
            + match value {
                Value::String(text) => text.len(),
                Value::Array(items) => items.iter().map(of).sum(),
                Value::Object(entries) => json_bytes(entries),
                Value::Null | Value::Bool(_) | Value::Number(_) => 0,
            }
    }
    let entries = entries.iter();
    entries
        .map(|(key, value)| text_bytes(key) + of(value))
        .sum()
}

fn node_bytes(node: &NodeView) -> usize {
    let facts: usize = node.facts.keys().map(|name| text_bytes(name)).sum();
    size_of::<NodeView>() + node.name.len() + size_of::<NodeId>() * (node.relays.len() + 1) + facts
}
