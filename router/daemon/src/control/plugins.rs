//! `plugin.*`, `op.*` and `user.*`: the plugins that run here, what they are at, and for whom.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use tokio::sync::oneshot;
use wormholes_host::{ErrorCode as PluginErrorCode, Refusal};
use wormholes_proto::control::{
    ErrorCode, OperationInfo, OperationList, OperationListParams, OperationParams,
    OperationStarted, OperationWaitParams, PluginAskParams, PluginDead, PluginHealth, PluginInfo,
    PluginList, PluginLog, PluginLogParams, PluginParams, PluginProgress, PluginRemoveParams,
    PluginRemoved, RpcError, UserInfo, UserList, UserParams, UserRemoveParams,
};

use super::{answer::failed, blobs::Uploads};
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
    params: PluginParams,
) -> Result<PluginInfo, RpcError> {
    let running = Arc::clone(core);
    let change = async move {
        let plugins = running.plugins().ok_or_else(starting)?;
        let changed = plugins.add(&running, &params.instance).await;
        changed.map_err(unchanged)
    };
    to_its_end(core, change).await
}

pub(super) async fn update(
    core: &Arc<NodeCore>,
    params: PluginParams,
) -> Result<PluginInfo, RpcError> {
    let running = Arc::clone(core);
    let change = async move {
        let plugins = running.plugins().ok_or_else(starting)?;
        let changed = plugins.update(&running, &params.instance).await;
        changed.map_err(unchanged)
    };
    to_its_end(core, change).await
}

pub(super) async fn roll_back(
    core: &Arc<NodeCore>,
    params: PluginParams,
) -> Result<PluginInfo, RpcError> {
    let running = Arc::clone(core);
    let change = async move {
        let plugins = running.plugins().ok_or_else(starting)?;
        let changed = plugins.roll_back(&running, &params.instance).await;
        changed.map_err(unchanged)
    };
    to_its_end(core, change).await
}

pub(super) async fn remove(
    core: &Arc<NodeCore>,
    params: PluginRemoveParams,
) -> Result<PluginRemoved, RpcError> {
    let running = Arc::clone(core);
    let change = async move {
        let plugins = running.plugins().ok_or_else(starting)?;
        let removed = plugins.remove(&running, &params.instance, params.purge);
        removed.await.map_err(unchanged)?;
        Ok(PluginRemoved {
            name: params.instance,
            purged: params.purge,
        })
    };
    to_its_end(core, change).await
}

/// `told` hears of the progress.
pub(super) async fn ask(
    core: &NodeCore,
    uploads: &Uploads,
    params: PluginAskParams,
    told: impl FnMut(PluginProgress),
) -> Result<Value, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    let world = core.network.world();
    let answer = plugins.ask(params, (&world, uploads), told);
    answer.await.map_err(refused)
}

pub(super) async fn begin(
    core: &NodeCore,
    uploads: &Uploads,
    params: PluginAskParams,
) -> Result<OperationStarted, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    let world = core.network.world();
    plugins
        .begin(params, (&world, uploads))
        .await
        .map_err(refused)
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
    core.plugins()
        .ok_or_else(starting)?
        .users()
        .map_err(refused)
}

pub(super) async fn remove_user(
    core: &NodeCore,
    params: &UserRemoveParams,
) -> Result<UserInfo, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    let removed = plugins.remove_user(&params.name, params.purge);
    removed.await.map_err(refused)
}

/// Carries a change of a plugin out, though nobody stays to hear of it: the host does not stop in the
/// middle, and what the node knows of its plugins follows.
async fn to_its_end<T: Send + 'static>(
    core: &NodeCore,
    change: impl Future<Output = Result<T, RpcError>> + Send + 'static,
) -> Result<T, RpcError> {
    let (told, answer) = oneshot::channel();
    core.spawn_until_stop(async move {
        // Whoever asked may have left.
        let _ = told.send(change.await);
    });
    let stopped = || RpcError::new(ErrorCode::Unsettled, "the node stops");
    answer.await.unwrap_or_else(|_| Err(stopped()))
}

pub(super) fn starting() -> RpcError {
    RpcError::new(ErrorCode::Busy, "the plugins are not started yet")
}

/// What runs, runs on as it did.
fn unchanged(error: ChangeError) -> RpcError {
    match error {
        ChangeError::Refused(refusal) => refused(refusal),
        ChangeError::NotNamed(_) => RpcError::new(ErrorCode::NotFound, error.to_string()),
        ChangeError::Named(_)
        | ChangeError::Published { .. }
        | ChangeError::Answered { .. }
        | ChangeError::Config(_)
        | ChangeError::Plugin(_) => failed(error),
    }
}

/// What a plugin refused, as control says it.
pub(crate) fn refused(refusal: Refusal) -> RpcError {
    let code = match refusal.code {
        PluginErrorCode::Denied => ErrorCode::Denied,
        PluginErrorCode::Invalid => ErrorCode::InvalidParams,
        PluginErrorCode::NotFound => ErrorCode::NotFound,
        // Asked again at once, it may be done twice.
        PluginErrorCode::Unavailable if refusal.is_unsettled() => ErrorCode::Unsettled,
        PluginErrorCode::Quota | PluginErrorCode::Unavailable => ErrorCode::Busy,
        PluginErrorCode::Expired | PluginErrorCode::Failed => ErrorCode::Failed,
    };
    RpcError::new(code, refusal.message)
}

#[cfg(test)]
mod tests {
    use wormholes_host::Refusal;

    use super::{ErrorCode, PluginErrorCode, refused};

    /// What a program may do about it: no code of a plugin is without one of control.
    #[test]
    fn every_code_of_a_plugin_has_one_of_control() {
        for (said, told) in [
            (PluginErrorCode::Denied, ErrorCode::Denied),
            (PluginErrorCode::Invalid, ErrorCode::InvalidParams),
            (PluginErrorCode::NotFound, ErrorCode::NotFound),
            (PluginErrorCode::Quota, ErrorCode::Busy),
            (PluginErrorCode::Unavailable, ErrorCode::Busy),
            (PluginErrorCode::Expired, ErrorCode::Failed),
            (PluginErrorCode::Failed, ErrorCode::Failed),
        ] {
            assert!(refused(Refusal::new(said, "no")).is(told), "{said:?}");
        }
    }
}
