//! Which nodes an onion path goes over.
//!
//! The last hop is the one that was asked for or any that fits; the first is the one that was
//! asked for or a guard; those between are any hops. The only hop of a path is both: guards that
//! fit come before others, so that the guards for such paths are best drawn from exits. No two hops
//! of a path have one family, one IPv4 /16 or one IPv6 /32: there is no switch to turn that off.
//! Nodes are weighed alike: what a record says of a node's capacity is the node's word.

use std::{
    net::{IpAddr, SocketAddr},
    time::SystemTime,
};

use rand_core::CryptoRng;
use thiserror::Error;

use crate::{id::NodeId, record::NodeRecord, suite::Suite};

use super::{build::MAX_HOPS, client::PathHop, guards::Guards};

/// Trust from which a node is a friend.
const FRIEND: u8 = 2;

/// Nodes looked at before the search gives up: many times what any sane network needs, and
/// milliseconds.
const MAX_STEPS: usize = 100_000;

/// A node that may become a hop.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// What it says about itself.
    pub record: &'a NodeRecord,
    /// What the owner of this node thinks of it: 0 stranger, 2 friend, 3 own device.
    pub trust: u8,
}

/// What the last hop is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LastHop {
    /// Its own services.
    Services,
    /// Dialling a target on this port.
    Exit(u16),
    /// Looking names up for others.
    Resolve,
}

/// What path is wanted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathRequest {
    /// The asking node, never a hop.
    pub own: NodeId,
    /// How many nodes are passed, the last included.
    pub hops: u8,
    /// The first hop; `None` takes a guard.
    pub via: Option<NodeId>,
    /// The last hop; `None` takes any that fits.
    pub to: Option<NodeId>,
    /// Only friends become hops, apart from `via` and `to`, which were named.
    pub friends_only: bool,
    /// What the last hop is for.
    pub last: LastHop,
    /// The suite to take where a hop offers it.
    pub suite: Suite,
}

/// No path.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PathError {
    /// The number of hops is out of range.
    #[error("an onion path has 1 to {MAX_HOPS} hops, not {0}")]
    Hops(u8),
    /// A named node has no record here, no address, no onion key that is good, or is this node.
    #[error("node {0} is not known as a hop")]
    NotAHop(NodeId),
    /// The named last hop does not do what is wanted of it.
    #[error("node {0} does not exit to that port")]
    NotAnExit(NodeId),
    /// No hop does what is wanted of the last one.
    #[error("no known hop exits to that port")]
    NoExit,
    /// No guard is known and up.
    #[error("no guard to begin an onion path with")]
    NoGuard,
    /// Families and networks leave too few hops.
    #[error("not enough hops of different families and networks for {0} hops")]
    TooFewHops(u8),
}

/// A usable candidate with what the choice depends on.
struct Node {
    hop: PathHop,
    holder: Holder,
    trust: u8,
    fits_last: bool,
}

/// By what nodes of one operator are told: no two such nodes are hops of one path, or guards of one
/// client.
pub(super) struct Holder {
    id: NodeId,
    family: Option<String>,
    prefixes: Vec<Prefix>,
}

/// Addresses that one operator is likely to hold together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prefix {
    V4([u8; 2]),
    V6([u8; 4]),
}

/// Chooses a path, first hop first.
///
/// # Errors
/// [`PathError`]; all but [`PathError::Hops`] may pass with more or newer records.
pub fn choose_path(
    candidates: &[Candidate<'_>],
    request: &PathRequest,
    guards: &Guards,
    now: SystemTime,
    rng: &mut (impl CryptoRng + ?Sized),
) -> Result<Vec<PathHop>, PathError> {
    let n_hops = usize::from(request.hops);
    if n_hops == 0 || n_hops > MAX_HOPS {
        return Err(PathError::Hops(request.hops));
    }
    let mut nodes: Vec<Node> = candidates
        .iter()
        .filter_map(|candidate| Node::new(candidate, request, now))
        .collect();
    shuffle(&mut nodes, rng);
    let firsts = first_hops(&nodes, request, guards, now)?;
    let lasts = last_hops(&nodes, request, &firsts)?;
    let middles: Vec<&Node> = nodes.iter().filter(|node| node.is_free(request)).collect();

    if n_hops == 1 {
        return Ok(lasts.first().map(|last| last.hop).into_iter().collect());
    }
    let mut steps = MAX_STEPS;
    // Every last hop is tried before the next guard: a last one close to the primary must not
    // push this node to a spare.
    for first in &firsts {
        for last in &lasts {
            let mut path = vec![*first];
            let mut ends = vec![*first, *last];
            if !first.conflicts(last)
                && extend(&mut path, &mut ends, &middles, n_hops - 2, &mut steps)
            {
                path.push(last);
                return Ok(path.iter().map(|node| node.hop).collect());
            }
        }
    }
    Err(PathError::TooFewHops(request.hops))
}

/// The hops that may come first, the best first.
fn first_hops<'n>(
    nodes: &'n [Node],
    request: &PathRequest,
    guards: &Guards,
    now: SystemTime,
) -> Result<Vec<&'n Node>, PathError> {
    if let Some(via) = request.via {
        return Ok(vec![find(nodes, via).ok_or(PathError::NotAHop(via))?]);
    }
    let mut firsts: Vec<&Node> = guards
        .first_hops(now)
        .into_iter()
        .filter_map(|id| find(nodes, id))
        .filter(|node| node.is_free(request))
        .collect();
    // Friends are few and known to watch over this node: any of them will do.
    if firsts.is_empty() && request.friends_only {
        firsts.extend(nodes.iter().filter(|node| node.is_free(request)));
    }
    if firsts.is_empty() && request.hops > 1 {
        return Err(PathError::NoGuard);
    }
    Ok(firsts)
}

/// The hops that may come last, the best first.
fn last_hops<'n>(
    nodes: &'n [Node],
    request: &PathRequest,
    firsts: &[&'n Node],
) -> Result<Vec<&'n Node>, PathError> {
    let only_first = request.via.filter(|_| request.hops == 1);
    let named = match (request.to, only_first) {
        (Some(to), Some(via)) if to != via => return Err(PathError::TooFewHops(1)),
        (to, only_first) => to.or(only_first),
    };
    if let Some(id) = named {
        let node = find(nodes, id).ok_or(PathError::NotAHop(id))?;
        return if node.fits_last {
            Ok(vec![node])
        } else {
            Err(PathError::NotAnExit(id))
        };
    }
    let mut lasts: Vec<&Node> = nodes.iter().collect();
    if request.hops == 1 {
        // The only hop is the first too: guards come before others, the primary first.
        let rank = |node: &Node| firsts.iter().position(|first| first.hop.id == node.hop.id);
        lasts.sort_by_key(|node| rank(node).unwrap_or(usize::MAX));
    }
    lasts.retain(|node| node.fits_last && node.is_free(request));
    if lasts.is_empty() {
        return Err(PathError::NoExit);
    }
    Ok(lasts)
}

/// Appends `n_more` hops to `path` that go with one another and with `taken`.
fn extend<'n>(
    path: &mut Vec<&'n Node>,
    taken: &mut Vec<&'n Node>,
    middles: &[&'n Node],
    n_more: usize,
    steps: &mut usize,
) -> bool {
    if n_more == 0 {
        return true;
    }
    let mut rest = middles;
    while let Some((node, after)) = rest.split_first() {
        rest = after;
        let Some(left) = steps.checked_sub(1) else {
            return false;
        };
        *steps = left;
        if taken.iter().any(|other| node.conflicts(other)) {
            continue;
        }
        path.push(node);
        taken.push(node);
        // Any order of the same hops is as good: those passed over need no second look.
        if extend(path, taken, after, n_more - 1, steps) {
            return true;
        }
        path.pop();
        taken.pop();
    }
    false
}

fn find(nodes: &[Node], id: NodeId) -> Option<&Node> {
    nodes.iter().find(|node| node.hop.id == id)
}

impl Node {
    fn new(candidate: &Candidate<'_>, request: &PathRequest, now: SystemTime) -> Option<Self> {
        let record = candidate.record;
        if record.id == request.own {
            return None;
        }
        Some(Self {
            hop: usable_hop(record, request.suite, now)?,
            holder: Holder::of(record),
            trust: candidate.trust,
            fits_last: fits_last(record, request.last),
        })
    }

    /// Whether the node may be taken without having been named.
    fn is_free(&self, request: &PathRequest) -> bool {
        self.trust >= FRIEND || !request.friends_only
    }

    fn conflicts(&self, other: &Self) -> bool {
        self.holder.conflicts(&other.holder)
    }
}

/// The node as a hop: it peels layers, has an address and a key that is good for now.
pub(super) fn usable_hop(
    record: &NodeRecord,
    preferred: Suite,
    now: SystemTime,
) -> Option<PathHop> {
    let address = *record.addresses.first().filter(|_| record.roles.hop)?;
    let key = record
        .onion_keys
        .iter()
        .filter(|key| now < key.expires)
        .max_by_key(|key| (key.suite == preferred, key.expires))?;
    Some(PathHop {
        id: record.id,
        address,
        key: *key,
    })
}

fn fits_last(record: &NodeRecord, last: LastHop) -> bool {
    match last {
        LastHop::Services => true,
        LastHop::Resolve => record.roles.exit,
        LastHop::Exit(port) => {
            let exits = |(first, end): &(u16, u16)| (*first..=*end).contains(&port);
            record.roles.exit && record.exit_ports.iter().any(exits)
        }
    }
}

impl Holder {
    pub(super) fn of(record: &NodeRecord) -> Self {
        Self {
            id: record.id,
            family: record.family.clone(),
            prefixes: record.addresses.iter().map(Prefix::of).collect(),
        }
    }

    pub(super) fn conflicts(&self, other: &Self) -> bool {
        self.id == other.id
            || (self.family.is_some() && self.family == other.family)
            || self
                .prefixes
                .iter()
                .any(|prefix| other.prefixes.contains(prefix))
    }
}

impl Prefix {
    fn of(address: &SocketAddr) -> Self {
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => {
                let [a, b, ..] = ip.octets();
                Self::V4([a, b])
            }
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.octets();
                Self::V6([a, b, c, d])
            }
        }
    }
}

/// Fisher and Yates; the bias of the remainder is below 2^-50.
pub(super) fn shuffle<T>(items: &mut [T], rng: &mut (impl CryptoRng + ?Sized)) {
    for end in (1..items.len()).rev() {
        let span = u64::try_from(end).unwrap_or(u64::MAX).saturating_add(1);
        let other = usize::try_from(rng.next_u64() % span).unwrap_or(end);
        items.swap(end, other);
    }
}

#[cfg(test)]
mod tests;
