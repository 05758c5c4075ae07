//! What the host asks of the node that it runs in: flows to the same plugins of other nodes, and
//! what plugins have to do with its rules.

use std::{collections::BTreeSet, fmt};

use futures_util::future::BoxFuture;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use wormholes_proto::NodeId;
use zeroize::Zeroizing;

use crate::rules::{Fact, RuleQuestion, Ruling};

/// The two directions of a flow; dropping it ends it.
pub trait Pipe: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Pipe for T {}

/// A flow that the rules are asked for: what `route(c)` reads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Call {
    /// The node.
    pub to: NodeId,
    /// `c.plugin`: the instance that calls.
    pub plugin: String,
    /// `c.role`; may be empty.
    pub role: String,
    /// `c.label`; may be empty.
    pub label: String,
    /// Calls with different texts share no circuit.
    pub isolation: String,
    /// Whoever is called must not learn which node calls: only tunnels that hide it will do.
    pub hides_node: bool,
}

/// A flow that does not open. Its text is for the log; it names no secret.
#[derive(Debug, Clone, Error)]
#[error("{why}")]
pub struct CallError {
    /// Why.
    pub why: String,
    /// No later call would do better, until the rules or the config change.
    pub is_final: bool,
}

/// The node around the host.
pub trait Network: fmt::Debug + Send + Sync + 'static {
    /// Opens a flow to where the node `to` takes trunks.
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Box<dyn Pipe>, CallError>>;

    /// Signs as the node. Whoever calls separates what it signs from all else.
    fn sign(&self, message: &[u8]) -> [u8; 64];

    /// A secret for a purpose, which says nothing about the node's others: the same for as long as
    /// the node has its identity.
    fn derive(&self, purpose: &[u8]) -> Zeroizing<[u8; 32]>;

    /// What the rules in force say, at once: a handler waits for it. Whatever fails denies.
    fn ask_rules(&self, question: RuleQuestion) -> Ruling;

    /// Scripts read these from now on. Facts of one kind come from one instance, in order. Must not
    /// block.
    fn publish(&self, facts: Vec<Fact>);

    /// What was published of these kinds is gone.
    fn forget_facts(&self, kinds: &BTreeSet<String>);
}
