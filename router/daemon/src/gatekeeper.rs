//! Who decides about others: the rule scripts, seen from the network.

use std::sync::Arc;

use futures_util::{
    FutureExt,
    future::{BoxFuture, ready},
};
use wormholes_rules::{Allowance, ExitRequest, NodeView, RelayRequest, RuleEvent, Verdict};

/// Answers to what others ask of this node. config.toml's limits and the invariants of the host
/// hold whatever it says; refusals by them never reach it.
pub trait Gatekeeper: Send + Sync + std::fmt::Debug {
    /// Whether this node may connect.
    fn accept(&self, node: Arc<NodeView>) -> BoxFuture<'_, Verdict>;

    /// Whether ciphertext is carried.
    fn relay(&self, request: RelayRequest) -> BoxFuture<'_, Verdict>;

    /// Whether an address is dialled.
    fn exit(&self, request: ExitRequest) -> BoxFuture<'_, Verdict>;

    /// Something happened that scripts may note: `peer-up`, `peer-down`. Must not block.
    fn event(&self, event: RuleEvent);
}

/// Lets everything pass that config.toml allows: a node without rules.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenGate;

impl Gatekeeper for OpenGate {
    fn accept(&self, _node: Arc<NodeView>) -> BoxFuture<'_, Verdict> {
        ready(Verdict::Allow(Allowance::default())).boxed()
    }

    fn relay(&self, _request: RelayRequest) -> BoxFuture<'_, Verdict> {
        ready(Verdict::Allow(Allowance::default())).boxed()
    }

    fn exit(&self, _request: ExitRequest) -> BoxFuture<'_, Verdict> {
        ready(Verdict::Allow(Allowance::default())).boxed()
    }

    fn event(&self, _event: RuleEvent) {}
}
