//! `script.*`: the scripts in force.

use std::sync::Arc;

use serde_json::json;
use wormholes_proto::control::{
    Access, DecisionList, DecisionRecord, DecisionsParams, ErrorCode, RpcError, ScriptDiagnostic,
    ScriptErrorInfo, ScriptFile, ScriptLoadParams, ScriptReport,
};

use super::answer::{encode, failed};
use crate::{
    clock::unix_ms,
    config::DefaultRule,
    node::{NodeCore, ReloadError},
    policy::{ScriptError, Scripts},
};

/// Decisions of one answer, as JSON: a quarter of what a line may have. One alone takes less.
const MAX_DECISION_BYTES: usize = 1 << 20;

pub(super) fn list(core: &NodeCore, access: Access) -> ScriptReport {
    let rules = core.policy.current();
    let paths = rules.config.scripts.iter();
    let scripts = rules.script_names().into_iter().zip(paths);
    let (last_errors, errors) = core.policy.errors();
    let last_errors = last_errors.iter().filter(|_| access == Access::Operator);
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
        last_errors: last_errors.map(error_info).collect(),
        warnings: rules
            .warnings()
            .filter(|_| access == Access::Operator)
            .collect(),
        can_roll_back: core.policy.can_roll_back(),
        restart_for: core.restart_for(),
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
        Ok(_) => Ok(list(core, Access::Operator)),
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

/// Kept decisions, as many as one answer holds.
pub(super) fn decisions(
    core: &NodeCore,
    params: &DecisionsParams,
) -> Result<DecisionList, RpcError> {
    if core.config.rules.record_decisions == 0 {
        return Err(failed(
            "no decisions are kept: `record_decisions` in [rules] is 0",
        ));
    }
    let limit = params.limit.map_or(usize::MAX, |limit| limit as usize);
    let kept = core
        .policy
        .decisions_before(params.before.unwrap_or(u64::MAX));
    let (mut decisions, mut bytes) = (Vec::new(), 0);
    for decision in kept.iter().take(limit) {
        let recording = encode(&decision.recording)?;
        bytes += recording.to_string().len();
        if bytes > MAX_DECISION_BYTES && !decisions.is_empty() {
            break;
        }
        decisions.push(DecisionRecord {
            number: decision.number,
            at_unix_ms: unix_ms(decision.at),
            generation: decision.generation,
            recording,
        });
    }
    let more = decisions.len() < kept.len().min(limit);
    Ok(DecisionList { decisions, more })
}

fn error_info(error: &ScriptError) -> ScriptErrorInfo {
    ScriptErrorInfo {
        at_unix_ms: unix_ms(error.at),
        hook: error.hook.to_owned(),
        count: error.count,
        fault: fault(&error.message),
    }
}

/// `default.rhai:12: what is wrong`, taken apart.
fn fault(text: &str) -> ScriptDiagnostic {
    let parts = text.split_once(": ").and_then(|(place, message)| {
        let (script, line) = place.rsplit_once(':')?;
        Some((script, line.parse().ok()?, message))
    });
    let (script, line, message) = parts.unwrap_or(("", 0, text));
    ScriptDiagnostic {
        script: script.to_owned(),
        line,
        column: 0,
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, script: &str, line: u32, message: &str) {
        let fault = fault(text);
        let parts = (fault.script.as_str(), fault.line, fault.message.as_str());
        assert_eq!(parts, (script, line, message), "{text}");
    }

    #[test]
    fn an_error_is_taken_apart_into_place_and_words() {
        check("a.rhai:3: no number: x", "a.rhai", 3, "no number: x");
        check("a:b.rhai:0: too slow", "a:b.rhai", 0, "too slow");
        check("no place: at all", "", 0, "no place: at all");
        check("cut off", "", 0, "cut off");
    }
}
