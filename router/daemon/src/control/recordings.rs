//! `plugin.record` and `plugin.recording`: what plugins' events did, for who wants to see it again; and
//! `plugin.advance`, for who tries one.

use wormholes_proto::control::{
    PluginAdvanceParams, PluginAdvanced, PluginRecordParams, PluginRecording,
    PluginRecordingParams, PluginRecordingPiece, RpcError,
};

use super::plugins::{refused, starting};
use crate::node::NodeCore;

pub(super) async fn record(
    core: &NodeCore,
    params: &PluginRecordParams,
) -> Result<PluginRecording, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    plugins.record(params).await.map_err(refused)
}

pub(super) async fn advance(
    core: &NodeCore,
    params: &PluginAdvanceParams,
) -> Result<PluginAdvanced, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    plugins.advance(params).await.map_err(refused)
}

pub(super) async fn piece(
    core: &NodeCore,
    params: &PluginRecordingParams,
) -> Result<PluginRecordingPiece, RpcError> {
    let plugins = core.plugins().ok_or_else(starting)?;
    plugins.recording(params).await.map_err(refused)
}
