//! `tor.*`: Tor as commands see and steer it.

use std::sync::Arc;

use wormholes_proto::control::{
    Access, ErrorCode, RpcError, TorCircuit, TorCircuits, TorReport, TorService, TorServiceParams,
    TorServiceState, TorState, TorSummary,
};
use wormholes_tor::HostState;

use super::answer::failed;
use crate::{
    config::NODES_OWN,
    node::NodeCore,
    tor::{HostedState, Phase, TorFailure},
};

pub(super) fn summary(core: &NodeCore) -> TorSummary {
    let standing = core.network.tor().standing();
    TorSummary {
        state: state(standing.phase),
        progress_percent: percent(standing.phase, standing.progress.percent()),
    }
}

pub(super) fn status(core: &NodeCore, access: Access) -> TorReport {
    let tor = core.network.tor();
    let standing = tor.standing();
    let services = tor.hosted().into_iter();
    TorReport {
        state: state(standing.phase),
        progress_percent: percent(standing.phase, standing.progress.percent()),
        blocked: standing.progress.blocked,
        error: standing.error,
        identity: tor.identities(),
        streams: tor.counts().open() as u64,
        bridges: tor.bridges() as u64,
        private_network: tor.is_private(),
        services: services.map(|it| service(it, access)).collect(),
    }
}

pub(super) async fn start(core: &Arc<NodeCore>, access: Access) -> Result<TorReport, RpcError> {
    let started = core.network.tor().start(&core.network).await;
    started.map_err(|failure| refused(&failure))?;
    Ok(status(core, access))
}

pub(super) async fn stop(core: &NodeCore, access: Access) -> Result<TorReport, RpcError> {
    let stopped = core.network.tor().stop().await;
    stopped.map_err(|failure| refused(&failure))?;
    Ok(status(core, access))
}

pub(super) fn new_identity(core: &NodeCore, access: Access) -> Result<TorReport, RpcError> {
    let taken = core.network.tor().take_new_identity();
    taken.map_err(|failure| refused(&failure))?;
    Ok(status(core, access))
}

pub(super) async fn new_onion(
    core: &NodeCore,
    access: Access,
    params: &TorServiceParams,
) -> Result<TorService, RpcError> {
    let name = &params.service;
    match core.network.tor().renew(name).await {
        Ok(renewed) => Ok(service(renewed, access)),
        Err(TorFailure::Unknown) => {
            let message = match name == NODES_OWN {
                true => "this node has no onion address of its own: set `peers = true` under [tor]"
                    .to_owned(),
                false => format!("no service {name:?} has `onion = true`"),
            };
            Err(RpcError::new(ErrorCode::NotFound, message))
        }
        Err(failure) => Err(refused(&failure)),
    }
}

pub(super) fn circuits(core: &NodeCore) -> TorCircuits {
    let circuits = core.network.tor().circuits().into_iter();
    let circuits = circuits.map(|circuit| TorCircuit {
        id: circuit.id,
        streams: circuit.streams,
        opened: circuit.opened,
        relays: circuit.relays,
    });
    TorCircuits {
        circuits: circuits.collect(),
    }
}

fn refused(failure: &TorFailure) -> RpcError {
    match wormholes_tor::IS_HERE {
        true => failed(format!("Tor: {failure}")),
        false => failed("this build has no Tor: it needs the feature `tor`"),
    }
}

fn state(phase: Phase) -> TorState {
    match phase {
        Phase::Disabled if !wormholes_tor::IS_HERE => TorState::Absent,
        Phase::Disabled => TorState::Disabled,
        Phase::Stopped => TorState::Stopped,
        Phase::Starting => TorState::Starting,
        Phase::Ready => TorState::Ready,
        Phase::Failed => TorState::Failed,
    }
}

/// Who is in is all the way in, whatever is downloaded anew meanwhile.
fn percent(phase: Phase, percent: u8) -> u8 {
    match phase {
        Phase::Ready => 100,
        Phase::Disabled | Phase::Stopped | Phase::Starting | Phase::Failed => percent,
    }
}

/// Where a service of this node is found is for those alone who may change it.
fn service(hosted: HostedState, access: Access) -> TorService {
    TorService {
        name: hosted.name,
        address: hosted.address.filter(|_| access == Access::Operator),
        port: hosted.port,
        state: match hosted.state {
            HostState::Publishing => TorServiceState::Publishing,
            HostState::Reachable => TorServiceState::Reachable,
            HostState::Unreachable => TorServiceState::Unreachable,
            HostState::Stopped => TorServiceState::Stopped,
        },
        clients: hosted.clients,
        problem: hosted.problem,
    }
}
