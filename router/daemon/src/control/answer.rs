//! What each call does: one match, a function each.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use wormholes_proto::control::{Access, Call, ErrorCode, PluginProgress, RpcError, discover};

use super::{
    blobs::{self, Uploads},
    bugreport, flows, netcheck, peers, plugins, recordings, roles, rules, status, tor,
};
use crate::node::NodeCore;

/// Carries out a call that its caller may make. `uploads` are of the connection; `told` hears of the progress of a plugin's command.
pub(super) async fn answer(
    core: &Arc<NodeCore>,
    (access, uploads): (Access, &Uploads),
    call: Call,
    told: impl FnMut(PluginProgress),
) -> Result<Value, RpcError> {
    match call {
        Call::Discover(_) => Ok(discover()),
        Call::Status(_) => encode(status::status(core, access)),
        Call::Peers(_) => encode(peers::list(core)),
        Call::PeerAdd(params) => encode(peers::add(core, params).await?),
        Call::PeerRemove(params) => encode(peers::remove(core, &params).await?),
        Call::PeerInvite(_) => encode(peers::invite(core)?),
        Call::Flows(params) => encode(flows::list(core, access, &params)),
        Call::Why(params) => encode(flows::why(core, &params)?),
        Call::Ping(params) => encode(netcheck::ping(core, &params).await?),
        Call::Netcheck(_) => encode(netcheck::netcheck(core).await),
        Call::ScriptList(_) => encode(rules::list(core, access)),
        Call::ScriptLoad(params) => encode(rules::load(core, params).await?),
        Call::ScriptRollback(_) => encode(rules::roll_back(core).await?),
        Call::ScriptDecisions(params) => encode(rules::decisions(core, &params)?),
        Call::Relay(_) => encode(roles::relay(core, access)),
        Call::Hop(_) => encode(roles::hop(core)),
        Call::Exit(_) => encode(roles::exit(core)),
        Call::TorStatus(_) => encode(tor::status(core, access)),
        Call::TorStart(_) => encode(tor::start(core, access).await?),
        Call::TorStop(_) => encode(tor::stop(core, access).await?),
        Call::TorNewIdentity(_) => encode(tor::new_identity(core, access)?),
        Call::TorNewOnion(params) => encode(tor::new_onion(core, access, &params).await?),
        Call::TorCircuits(_) => encode(tor::circuits(core)),
        Call::I2pStatus(_) => encode(status::i2p(core, access).await),
        Call::PluginList(_) => encode(plugins::list(core)),
        Call::PluginHealth(params) => encode(plugins::health(core, &params).await?),
        Call::PluginStart(params) => encode(plugins::start(core, &params)?),
        Call::PluginStop(params) => encode(plugins::stop(core, &params)?),
        Call::PluginLog(params) => encode(plugins::log(core, &params).await?),
        Call::PluginDead(params) => encode(plugins::dead(core, &params)?),
        Call::PluginClearDead(params) => encode(plugins::clear_dead(core, &params).await?),
        Call::PluginRecord(params) => encode(recordings::record(core, &params).await?),
        Call::PluginRecording(params) => encode(recordings::piece(core, &params).await?),
        Call::PluginAdvance(params) => encode(recordings::advance(core, &params).await?),
        Call::PluginAdd(params) => encode(plugins::add(core, params).await?),
        Call::PluginUpdate(params) => encode(plugins::update(core, params).await?),
        Call::PluginRollback(params) => encode(plugins::roll_back(core, params).await?),
        Call::PluginRemove(params) => encode(plugins::remove(core, params).await?),
        Call::PluginAsk(params) => plugins::ask(core, uploads, params, told).await,
        Call::BlobBegin(params) => encode(blobs::begin(core, uploads, params).await?),
        Call::BlobAppend(params) => encode(blobs::append(uploads, &params).await?),
        Call::BlobFinish(params) => encode(blobs::finish(uploads, &params).await?),
        Call::BlobRead(params) => encode(blobs::read(core, params).await?),
        Call::OpStart(params) => encode(plugins::begin(core, uploads, params).await?),
        Call::OpList(params) => encode(plugins::operations(core, &params)?),
        Call::OpWait(params) => encode(plugins::wait(core, params).await?),
        Call::OpCancel(params) => encode(plugins::cancel(core, &params).await?),
        Call::OpCollect(params) => encode(plugins::collect(core, &params).await?),
        Call::UserAdd(params) => encode(plugins::add_user(core, &params).await?),
        Call::UserList(_) => encode(plugins::users(core)?),
        Call::UserRemove(params) => encode(plugins::remove_user(core, &params).await?),
        Call::Key(_) => encode(status::key(core, access)),
        Call::BugReport(_) => encode(bugreport::report(core).await?),
        Call::Config(_) => encode(status::config(core)),
        Call::Subscribe(_) | Call::Unsubscribe(_) => Err(not_here()),
    }
}

/// Subscriptions are the connection's own matter.
fn not_here() -> RpcError {
    RpcError::new(ErrorCode::Internal, "the connection's own matter")
}

/// A report as JSON.
pub(super) fn encode(report: impl Serialize) -> Result<Value, RpcError> {
    serde_json::to_value(report)
        .map_err(|error| RpcError::new(ErrorCode::Internal, error.to_string()))
}

/// It was tried and did not work.
pub(super) fn failed(error: impl std::fmt::Display) -> RpcError {
    RpcError::new(ErrorCode::Failed, error.to_string())
}
