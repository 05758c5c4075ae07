//! `plugin.*`, `op.*` and `user.*`: the plugins that run here, what they are at, and for whom.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use wormholes_host::{ErrorCode as PluginErrorCode, Refusal};
use wormholes_proto::control::{
    ErrorCode, OperationInfo, OperationList, OperationListParams, OperationParams,
    OperationStarted, OperationWaitParams, PluginAskParams, PluginDead, PluginHealth, PluginInfo,
    PluginList, PluginLog, PluginLogParams, PluginParams, PluginProgress, PluginRemoveParams,
    PluginRemoved, RpcError, UserInfo, UserList, UserParams, UserRemoveParams,
};

use super::answer::failed;
use crate::{node::NodeCore, plugins::ChangeError};

/// How long a call waits for a plugin's next line: it is asked again then.
const LOG_PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn list(core: &NodeCore) -> PluginList {
    PluginList {
        plugins: core
            .plugins()
            .map(|plugins| plugins.list())
            .unwrap_or_default(),
    }
}

pub(super) async fn health(
    core: &NodeCore,
    params: &PluginParams,
) -> Result<PluginHealth, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    let health = plugins.health(&params.instance).await.map_err(refused)?;
    Ok(PluginHealth { health })
}

pub(super) fn start(core: &NodeCore, params: &PluginParams) -> Result<PluginInfo, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    plugins.restart(&params.instance).map_err(refused)
}

pub(super) fn stop(core: &NodeCore, params: &PluginParams) -> Result<PluginInfo, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    plugins.stop(&params.instance).map_err(refused)
}

pub(super) async fn log(core: &NodeCore, params: &PluginLogParams) -> Result<PluginLog, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    let patience = if params.wait {
        LOG_PATIENCE
    } else {
        Duration::ZERO
    };
    let log = plugins.log(&params.instance, params.after, patience);
    log.await.map_err(refused)
}

pub(super) fn dead(core: &NodeCore, params: &PluginParams) -> Result<PluginDead, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    plugins.dead(&params.instance).map_err(refused)
}

pub(super) async fn clear_dead(
    core: &NodeCore,
    params: &PluginParams,
) -> Result<PluginInfo, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    plugins.clear_dead(&params.instance).await.map_err(refused)
}

pub(super) async fn add(
    core: &Arc<NodeCore>,
    params: &PluginParams,
) -> Result<PluginInfo, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    let added = plugins.add(core, &params.instance).await;
    added.map_err(unchanged)
}

pub(super) async fn update(
    core: &Arc<NodeCore>,
    params: &PluginParams,
) -> Result<PluginInfo, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    let updated = plugins.update(core, &params.instance).await;
    updated.map_err(unchanged)
}

pub(super) async fn roll_back(
    core: &Arc<NodeCore>,
    params: &PluginParams,
) -> Result<PluginInfo, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    let rolled_back = plugins.roll_back(core, &params.instance).await;
    rolled_back.map_err(unchanged)
}

pub(super) async fn remove(
    core: &Arc<NodeCore>,
    params: &PluginRemoveParams,
) -> Result<PluginRemoved, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    let removed = plugins.remove(core, &params.instance, params.purge).await;
    removed.map_err(unchanged)?;
    Ok(PluginRemoved {
        name: params.instance.clone(),
        purged: params.purge,
    })
}

/// `told` hears of the progress.
pub(super) async fn ask(
    core: &NodeCore,
    params: PluginAskParams,
    told: impl FnMut(PluginProgress),
) -> Result<Value, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    let world = core.network.world();
    let answer = plugins.ask(params, &world, told);
    answer.await.map_err(refused)
}

pub(super) async fn begin(
    core: &NodeCore,
    params: PluginAskParams,
) -> Result<OperationStarted, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    let world = core.network.world();
    plugins.begin(params, &world).await.map_err(refused)
}

pub(super) fn operations(
    core: &NodeCore,
    params: &OperationListParams,
) -> Result<OperationList, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    Ok(plugins.operations(params.user.as_deref()))
}

pub(super) async fn wait(
    core: &NodeCore,
    params: OperationWaitParams,
) -> Result<OperationInfo, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    plugins.wait(params).await.map_err(refused)
}

pub(super) async fn cancel(
    core: &NodeCore,
    params: &OperationParams,
) -> Result<OperationInfo, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    plugins.cancel(params.operation).await.map_err(refused)
}

pub(super) async fn collect(
    core: &NodeCore,
    params: &OperationParams,
) -> Result<OperationInfo, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    plugins.collect(params.operation).await.map_err(refused)
}

pub(super) async fn add_user(core: &NodeCore, params: &UserParams) -> Result<UserInfo, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    plugins.add_user(&params.name).await.map_err(refused)
}

pub(super) fn users(core: &NodeCore) -> Result<UserList, RpcError> {
    Ok(core.plugins().ok_or_else(starting)?.users())
}

pub(super) async fn remove_user(
    core: &NodeCore,
    params: &UserRemoveParams,
) -> Result<UserInfo, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    let removed = plugins.remove_user(&params.name, params.purge);
    removed.await.map_err(refused)
}

fn starting() -> RpcError {
    RpcError::new(ErrorCode::Busy, "the plugins are not started yet")
}

/// What runs, runs on as it did.
fn unchanged(error: ChangeError) -> RpcError {
    match error {
        ChangeError::Refused(refusal) => refused(refusal),
        ChangeError::NotNamed(_) => RpcError::new(ErrorCode::NotFound, error.to_string()),
        ChangeError::Named(_) | ChangeError::Config(_) | ChangeError::Plugin(_) => failed(error),
    }
}

/// What a plugin refused, as control says it.
pub(crate) fn refused(refusal: Refusal) -> RpcError {
    let code = match refusal.code {
        PluginErrorCode::Denied => ErrorCode::Denied,
        PluginErrorCode::Invalid => ErrorCode::InvalidParams,
        PluginErrorCode::NotFound => ErrorCode::NotFound,
        PluginErrorCode::Quota | PluginErrorCode::Unavailable => ErrorCode::Busy,
        PluginErrorCode::Expired | PluginErrorCode::Failed => ErrorCode::Failed,
    };
    RpcError::new(code, refusal.message)
}
