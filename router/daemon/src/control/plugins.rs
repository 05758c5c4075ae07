//! `plugin.*`: the plugins that run here.

use std::time::Duration;

use serde_json::Value;
use wormholes_host::{ErrorCode as PluginErrorCode, Refusal};
use wormholes_proto::control::{
    ErrorCode, PluginAskParams, PluginDead, PluginHealth, PluginInfo, PluginList, PluginLog,
    PluginLogParams, PluginParams, RpcError,
};

use crate::node::NodeCore;

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

pub(super) async fn ask(core: &NodeCore, params: PluginAskParams) -> Result<Value, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    let (instance, command) = (&params.instance, &params.command);
    let world = core.network.world();
    let (user, arguments) = (params.user.as_deref(), params.arguments);
    let answer = plugins.ask(instance, user, command, arguments, &world);
    answer.await.map_err(refused)
}

fn starting() -> RpcError {
    RpcError::new(ErrorCode::Busy, "the plugins are not started yet")
}

fn refused(refusal: Refusal) -> RpcError {
    let code = match refusal.code {
        PluginErrorCode::Denied => ErrorCode::Denied,
        PluginErrorCode::Invalid => ErrorCode::InvalidParams,
        PluginErrorCode::NotFound => ErrorCode::NotFound,
        PluginErrorCode::Quota | PluginErrorCode::Unavailable => ErrorCode::Busy,
        PluginErrorCode::Expired | PluginErrorCode::Failed => ErrorCode::Failed,
    };
    RpcError::new(code, refusal.message)
}
