//! What the host asks of the node that it runs in: flows to the same plugins of other nodes, and
//! what plugins have to do with its rules.

use std::{collections::BTreeSet, fmt, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use wormholes_proto::{NodeId, Target};
use zeroize::Zeroizing;

use crate::{
    event::Refusal,
    http::{HttpHeaders, HttpResponse},
    rules::{Fact, RuleQuestion, Ruling},
};

/// The two directions of a flow; dropping it ends it.
pub trait Pipe: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl SocketKind {
    /// The word for it in manifests and grants.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }
}

impl SocketKind {
    /// What a port that a plugin listens at is granted as.
    pub fn door(self, port: u16) -> String {
        format!("{}-listen:{port}", self.as_str())
    }
}

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

/// How a plugin's flow to others than plugins travels: what `route(c)` reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireWay {
    /// `c.plugin`: the instance.
    pub plugin: String,
    /// `c.role`; may be empty.
    pub role: String,
    /// `c.label`; may be empty.
    pub label: String,
    /// Flows with different texts share no circuit.
    pub isolation: String,
}

/// A connection that a plugin asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketCall {
    /// How it travels.
    pub way: WireWay,
    /// What it speaks.
    pub kind: SocketKind,
    /// Where to.
    pub target: Target,
}

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketKind {
    /// Bytes.
    Tcp,
    /// Bytes inside TLS, which the node does.
    Tls,
}

/// A datagram to or from a port of a plugin's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// The instance.
    pub plugin: Arc<str>,
    /// Its port.
    pub port: u16,
    /// The other end.
    pub peer: SocketAddr,
    /// What it says.
    pub data: Bytes,
}

/// A request that a plugin makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchCall {
    /// How it travels.
    pub way: WireWay,
    /// `GET` and the like.
    pub method: String,
    /// Where, with `http` or `https`.
    pub url: String,
    /// But for `host`, and those of the connection.
    pub headers: HttpHeaders,
    /// All of it.
    pub body: Bytes,
}

/// The node around the host.
pub trait Network: fmt::Debug + Send + Sync + 'static {
    /// Opens a flow to where the node `to` takes trunks.
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Box<dyn Pipe>, CallError>>;

    /// Opens a connection to others, with TLS where it is asked for.
    fn connect(&self, call: SocketCall) -> BoxFuture<'static, Result<Box<dyn Pipe>, Refusal>>;

    /// Makes a request to others, at most once, and waits for all of its answer, which is no longer
    /// than [`MAX_HTTP_BODY_BYTES`](crate::MAX_HTTP_BODY_BYTES).
    fn fetch(&self, call: FetchCall) -> BoxFuture<'static, Result<HttpResponse, Refusal>>;

    /// Sends a datagram from a port that the node has opened for a plugin, if the rules let it go there.
    /// Must not block; what finds no room is dropped.
    fn send_datagram(&self, datagram: Datagram);

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
