//! `script.*`: the scripts in force.

use std::sync::Arc;

use serde_json::json;
use wormholes_proto::control::{
    Access, ErrorCode, RpcError, ScriptFile, ScriptLoadParams, ScriptReport,
};

use super::answer::failed;
use crate::{
    config::DefaultRule,
    node::{NodeCore, ReloadError},
    policy::Scripts,
};

pub(super) fn list(core: &NodeCore, access: Access) -> ScriptReport {
    let rules = core.policy.current();
    let paths = rules.config.scripts.iter();
    let scripts = rules.script_names().into_iter().zip(paths);
    let (_, errors) = core.policy.errors();
    ScriptReport {
        generation: rules.number,
        scripts: scripts
            .map(|(name, path)| ScriptFile {
                name,
                path: (access == Access::Operator).then(|| path.clone()),
            })
            .collect(),
        by_command: rules.is_by_command(),
        default: match rules.default {
            DefaultRule::Block => "block".to_owned(),
            DefaultRule::Direct => "direct".to_owned(),
        },
        errors,
        can_roll_back: core.policy.can_roll_back(),
        restart_for: Vec::new(),
    }
}

pub(super) async fn load(
    core: &Arc<NodeCore>,
    params: ScriptLoadParams,
) -> Result<ScriptReport, RpcError> {
    let scripts = if params.scripts.is_empty() {
        Scripts::OfConfig
    } else {
        Scripts::Given(params.scripts)
    };
    match core.reload(scripts).await {
        Ok(reload) => Ok(ScriptReport {
            restart_for: reload.restart_for,
            ..list(core, Access::Operator)
        }),
        Err(ReloadError::Rules(error)) => Err(RpcError {
            data: Some(json!({ "diagnostics": error.diagnostics() })),
            ..RpcError::new(
                ErrorCode::Failed,
                "the scripts were not loaded; those before stay in force",
            )
        }),
        Err(error @ (ReloadError::Config(_) | ReloadError::Stopping)) => Err(failed(error)),
    }
}

pub(super) async fn roll_back(core: &Arc<NodeCore>) -> Result<ScriptReport, RpcError> {
    // `init` of the scripts runs in it.
    let policy = Arc::clone(&core.policy);
    let back = tokio::task::spawn_blocking(move || policy.rollback()).await;
    back.map_err(failed)?
        .map_err(|error| RpcError::new(ErrorCode::NotFound, error.to_string()))?;
    Ok(list(core, Access::Operator))
}
