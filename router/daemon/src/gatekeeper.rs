//! Who decides about others: the rule scripts, seen from the network.

use wormholes_rules::{Allowance, ExitRequest, NodeView, RelayRequest, RuleEvent, Verdict};

/// Answers to what others ask of this node. config.toml's limits and the invariants of the host
/// hold whatever it says; refusals by them never reach it.
pub trait Gatekeeper: Send + Sync + std::fmt::Debug {
    /// Whether this node may connect.
    fn accept(&self, node: &NodeView) -> Verdict;

    /// Whether ciphertext is carried.
    fn relay(&self, request: &RelayRequest) -> Verdict;

    /// Whether an address is dialled.
    fn exit(&self, request: &ExitRequest) -> Verdict;

    /// Something happened that scripts may note: `peer-up`, `peer-down`. Must not block.
    fn event(&self, event: RuleEvent);
}

/// Lets everything pass that config.toml allows: a node without rules.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenGate;

impl Gatekeeper for OpenGate {
    fn accept(&self, _node: &NodeView) -> Verdict {
        Verdict::Allow(Allowance::default())
    }

    fn relay(&self, _request: &RelayRequest) -> Verdict {
        Verdict::Allow(Allowance::default())
    }

    fn exit(&self, _request: &ExitRequest) -> Verdict {
        Verdict::Allow(Allowance::default())
    }

    fn event(&self, _event: RuleEvent) {}
}
