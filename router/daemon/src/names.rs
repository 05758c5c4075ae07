//! Names of nodes and their services: `<service>.<node>.wh`, and `<node>.wh` for the default
//! service. A node is named by its petname first, then by its whole id; people read the petname
//! and the beginning of the id.

use std::fmt;

use thiserror::Error;
use wormholes_proto::{NodeId, ServiceName};
use wormholes_rules::World;

/// Characters of an id that people tell it by: 40 bits, which they compare and no machine trusts.
pub(crate) const SHORT_ID_CHARS: usize = 8;

/// A node as people read it: `friend (6qkm8odu…)`, or the beginning of its id alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeName {
    /// Who it is.
    pub id: NodeId,
    /// What config.toml, or whoever added it, calls it; none for a node that is no peer.
    pub petname: Option<Box<str>>,
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = short_id(self.id);
        match &self.petname {
            Some(petname) => write!(f, "{petname} ({id})"),
            None => f.write_str(&id),
        }
    }
}

/// The beginning of an id. No petname: a script that compares names takes nobody for a peer whose
/// petname is how an id begins.
pub(crate) fn short_id(id: NodeId) -> String {
    let id = id.to_string();
    id.chars().take(SHORT_ID_CHARS).chain(['…']).collect()
}

/// What a `.wh` name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    /// The node; none when nobody here is called that.
    pub(crate) node: Option<NodeId>,
    /// The service; none is the node's default.
    pub(crate) service: Option<ServiceName>,
}

/// A name below `.wh` that cannot mean anything.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a .wh name is <node>.wh or <service>.<node>.wh")]
pub(crate) struct BadWhName;

/// Reads a name; `None` when it is not below `.wh`.
///
/// # Errors
/// [`BadWhName`] when it has too many or too few labels, or its service is no service name.
pub(crate) fn resolve(name: &str, world: &World) -> Result<Option<Named>, BadWhName> {
    if name == "wh" {
        return Err(BadWhName);
    }
    let Some(rest) = name.strip_suffix(".wh") else {
        return Ok(None);
    };
    let (service, node) = match rest.split_once('.') {
        Some((service, node)) => (Some(service), node),
        None => (None, rest),
    };
    if node.contains('.') {
        return Err(BadWhName);
    }
    let service = service.map(ServiceName::parse).transpose();
    Ok(Some(Named {
        node: world
            .find(node)
            .map(|view| view.id)
            .or_else(|| node.parse().ok()),
        service: service.map_err(|_| BadWhName)?,
    }))
}
