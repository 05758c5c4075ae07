//! `peers` and `peer.*`: the nodes that this one knows.

use std::{net::SocketAddr, sync::Arc};

use tokio::time::Instant;
use wormholes_proto::{
    Invite, InviteRelay, MAX_RECORD_ADDRESSES, MAX_RECORD_RELAYS, NodeId,
    control::{
        ErrorCode, FailedPunch, InviteReport, PeerAddParams, PeerInfo, PeerList, PeerParams,
        PeerPath, PeerSource, RpcError,
    },
};
use wormholes_rules::NodeView;

use super::answer::failed;
use crate::node::NodeCore;

/// What an invite calls a node that has no name.
const NAMELESS: &str = "node";
/// Fewer characters of an id may be a typing error.
const MIN_ID_CHARS: usize = 4;

pub(super) fn list(core: &NodeCore) -> PeerList {
    let world = core.network.world();
    let nodes = world.nodes().iter();
    PeerList {
        peers: nodes.map(|node| info(core, node)).collect(),
    }
}

pub(super) async fn add(core: &Arc<NodeCore>, params: PeerAddParams) -> Result<PeerInfo, RpcError> {
    let invite: Invite = params.invite.parse().map_err(failed)?;
    if params.trust.is_some_and(|trust| trust > 3) {
        return Err(failed("trust is 0 to 3"));
    }
    let (own, worker) = (core.network.id(), Arc::clone(core));
    let add = move || {
        let (name, trust) = (params.name.as_deref(), params.trust);
        let config = worker.config_peers();
        worker.added.add(own, &config, &invite, name, trust)
    };
    let id = tokio::task::spawn_blocking(add)
        .await
        .map_err(failed)?
        .map_err(failed)?;
    core.use_added_peers();
    Ok(info(core, &core.network.view(id)))
}

pub(super) async fn remove(
    core: &Arc<NodeCore>,
    params: &PeerParams,
) -> Result<PeerInfo, RpcError> {
    let node = find(core, &params.peer)?;
    let removed = info(core, &node);
    let worker = Arc::clone(core);
    let remove = move || {
        let config = worker.config_peers();
        worker.added.remove(&config, node.id, &node.name)
    };
    tokio::task::spawn_blocking(remove)
        .await
        .map_err(failed)?
        .map_err(failed)?;
    core.use_added_peers();
    Ok(removed)
}

pub(super) fn invite(core: &NodeCore) -> Result<InviteReport, RpcError> {
    let record = core.network.own_record();
    let record = record.record();
    let name = Some(core.config.node.name.as_str()).filter(|name| !name.is_empty());
    let relays: Vec<InviteRelay> = record
        .relays
        .iter()
        .take(MAX_RECORD_RELAYS)
        .map(|relay| InviteRelay {
            id: *relay,
            addresses: addresses(core, *relay),
        })
        .collect();
    let mut hints = Vec::new();
    if record.addresses.is_empty() && relays.is_empty() {
        hints.push(
            "the invite names no way here: set `listen` or `advertise` in [node], or \
             `register = true` at a [[peer]] that relays"
                .to_owned(),
        );
    } else if record.addresses.iter().all(|a| a.ip().is_loopback()) && relays.is_empty() {
        hints.push("the invite works on this machine only: set `advertise` in [node]".to_owned());
    }
    let others = "they must be added here too: send their invite back, and `wormholes peer add` it";
    hints.push(others.to_owned());
    let addresses = record.addresses.clone();
    let invite = Invite::new(record.id, name.unwrap_or(NAMELESS), addresses, relays);
    Ok(InviteReport {
        invite: invite.map_err(failed)?.to_string(),
        hints,
    })
}

/// The node that `text` names: a petname, an id, or a beginning that fits one id only.
pub(super) fn find(core: &NodeCore, text: &str) -> Result<Arc<NodeView>, RpcError> {
    let world = core.network.world();
    if let Some(node) = world.find(text) {
        return Ok(Arc::clone(node));
    }
    // As it was shown, with the mark that it is cut.
    let text = text.trim_end_matches('…');
    let begins =
        |node: &&Arc<NodeView>| text.len() >= MIN_ID_CHARS && node.id.to_string().starts_with(text);
    let mut fitting = world.nodes().iter().filter(begins);
    let message = match (fitting.next(), fitting.next()) {
        (Some(node), None) => return Ok(Arc::clone(node)),
        (Some(_), Some(_)) => format!("several nodes' ids begin with {text:?}: type more of it"),
        (None, _) if is_own(core, text) => format!("{text:?} is this node itself"),
        (None, _) => format!("no peer is named {text:?}; `wormholes peers` lists them"),
    };
    Err(RpcError::new(ErrorCode::NotFound, message))
}

fn is_own(core: &NodeCore, text: &str) -> bool {
    !text.is_empty() && (text == core.config.node.name || text == core.network.id().to_string())
}

/// Where a node may be dialled: what the config says, then its own record.
fn addresses(core: &NodeCore, id: NodeId) -> Vec<SocketAddr> {
    let known = core.network.peers().known();
    let mut addresses = known
        .get(&id)
        .map(|peer| peer.addresses.clone())
        .unwrap_or_default();
    if let Some(record) = core.network.records().get(&id) {
        for address in &record.record().addresses {
            if !addresses.contains(address) {
                addresses.push(*address);
            }
        }
    }
    addresses.truncate(MAX_RECORD_ADDRESSES);
    addresses
}

/// Where a node may be dialled through Tor.
fn onions(core: &NodeCore, id: NodeId) -> Vec<String> {
    let known = core.network.peers().known();
    let onions = known.get(&id).into_iter().flat_map(|peer| &peer.onions);
    onions.map(ToString::to_string).collect()
}

fn info(core: &NodeCore, node: &NodeView) -> PeerInfo {
    let relays = node.relays.iter();
    PeerInfo {
        name: node.name.clone(),
        id: node.id,
        source: source(core, &node.id),
        trust: node.trust,
        online: node.online,
        carrier: core.network.carrier_to(&node.id),
        path: path(core, node),
        punch: failed_punch(core, node.id),
        rtt_ms: node.rtt_ms,
        loss: node.loss,
        load: node.load,
        addresses: addresses(core, node.id),
        onions: onions(core, node.id),
        relays: relays
            .map(|relay| core.network.view(*relay).name.clone())
            .collect(),
        roles: node.roles,
        family: node.family.clone(),
    }
}

fn path(core: &NodeCore, node: &NodeView) -> PeerPath {
    match core.network.peers().link(&node.id) {
        Some(link) if link.goes_through_tor() => PeerPath::Tor,
        Some(_) => PeerPath::Direct,
        None if node.relays.is_empty() => PeerPath::None,
        None => PeerPath::Relay,
    }
}

/// Why there is no direct path to a node, where one was to be made.
pub(super) fn failed_punch(core: &NodeCore, id: NodeId) -> Option<FailedPunch> {
    let failed = core.network.failed_punch(&id)?;
    let now = Instant::now();
    let left = failed.until.map(|until| until.duration_since(now));
    Some(FailedPunch {
        reason: failed.failure.code().to_owned(),
        why: failed.failure.to_string(),
        ago_seconds: now.duration_since(failed.at).as_secs(),
        retry_seconds: left.map_or(0, |left| left.as_secs()),
    })
}

fn source(core: &NodeCore, id: &NodeId) -> PeerSource {
    if core.is_config_peer(id) {
        PeerSource::Config
    } else if core.added.contains(id) {
        PeerSource::Added
    } else {
        PeerSource::Learned
    }
}
