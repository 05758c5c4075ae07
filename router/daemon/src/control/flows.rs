//! `flows` and `why`: the connections that the node carries, and how they came to travel so.

use std::sync::atomic::Ordering::Relaxed;

use wormholes_proto::{
    NodeId,
    control::{
        Access, Because, DecisionInfo, ErrorCode, Explanation, FlowInfo, FlowList, FlowParams,
        FlowsParams, PathNode, RpcError, RuleName, StepTried,
    },
};
use wormholes_rules::{Outcome, Plan};

use crate::{
    clock::{ms, unix_ms},
    config::DefaultRule,
    flow::{Decided, Flow},
    node::NodeCore,
};

const DEFAULT_LIMIT: u32 = 100;
/// An answer stays far below the bound of a line.
const MAX_LIMIT: u32 = 1000;

pub(super) fn list(core: &NodeCore, access: Access, params: &FlowsParams) -> FlowList {
    let limit = params.limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT);
    let flows = core.flows.living(limit as usize);
    FlowList {
        open: core.flows.open() as u64,
        flows: flows.iter().map(|flow| info(core, access, flow)).collect(),
    }
}

pub(super) fn why(core: &NodeCore, params: &FlowParams) -> Result<Explanation, RpcError> {
    let flow = core.flows.find(params.flow).ok_or_else(|| {
        let kept = core.config.rules.record_decisions;
        let message = format!(
            "flow {} is not known: open flows and the last {kept} are (`record_decisions` in [rules])",
            params.flow
        );
        RpcError::new(ErrorCode::NotFound, message)
    })?;
    let story = flow.story();
    let decisions = story.decisions.iter();
    let tries = story.tries.into_iter();
    Ok(Explanation {
        flow: flow.id,
        at_unix_ms: unix_ms(flow.asked_at),
        state: story.state,
        entrance: flow.entrance.to_owned(),
        network: flow.transport.as_str().to_owned(),
        target: flow.target.to_string(),
        rule: story.rule.as_ref().map(RuleName::from),
        decisions: decisions.map(|decided| decision(core, decided)).collect(),
        steps: tries
            .map(|tried| StepTried {
                tunnel: tried.tunnel,
                error: tried.error,
                failed_at: tried.failed_at.map(|id| path_node(core, id)),
                took_ms: ms(tried.took),
            })
            .collect(),
        tunnel: story.tunnel.map(|kind| kind.as_str().to_owned()),
        path: path(core, &story.path),
        open_ms: story.open_took.map(ms),
        bytes_sent: flow.bytes.up.load(Relaxed),
        bytes_received: flow.bytes.down.load(Relaxed),
        end: story.end,
    })
}

fn info(core: &NodeCore, access: Access, flow: &Flow) -> FlowInfo {
    let story = flow.summary();
    let shown = access == Access::Operator;
    FlowInfo {
        flow: flow.id,
        entrance: flow.entrance.to_owned(),
        network: flow.transport.as_str().to_owned(),
        target: shown.then(|| flow.target.to_string()),
        tunnel: story.tunnel.map(|kind| kind.as_str().to_owned()),
        path: if shown {
            path(core, &story.path)
        } else {
            Vec::new()
        },
        rule: story.rule.as_ref().map(RuleName::from),
        // The script chose it, and may have put the host into it.
        label: story.label.filter(|_| shown),
        age_ms: ms(flow.asked.elapsed()),
        bytes_sent: flow.bytes.up.load(Relaxed),
        bytes_received: flow.bytes.down.load(Relaxed),
    }
}

fn path(core: &NodeCore, ids: &[NodeId]) -> Vec<PathNode> {
    ids.iter().map(|id| path_node(core, *id)).collect()
}

fn path_node(core: &NodeCore, id: NodeId) -> PathNode {
    PathNode {
        name: core.network.view(id).name.clone(),
        id,
    }
}

fn decision(core: &NodeCore, decided: &Decided) -> DecisionInfo {
    let trace = &decided.trace;
    let plan = match &decided.outcome {
        Outcome::Plan(plan) => plan_text(core, plan),
        Outcome::NeedIp(plan) => format!("need the address, through {}", plan_text(core, plan)),
        Outcome::NeedSni => "need the name in the TLS ClientHello".to_owned(),
        Outcome::Pass => match core.policy.current().default {
            DefaultRule::Block => "default: block".to_owned(),
            DefaultRule::Direct => "default: direct".to_owned(),
        },
    };
    let log = trace.log.iter();
    DecisionInfo {
        attempt: decided.attempt,
        generation: decided.generation,
        rule: trace.rule.as_ref().map(RuleName::from),
        plan,
        took_us: u64::try_from(trace.took.as_micros()).unwrap_or(u64::MAX),
        because: pairs(&trace.because),
        tags: pairs(&trace.tags),
        log: log.map(|message| message.text.clone()).collect(),
        error: trace.error.clone(),
    }
}

fn plan_text(core: &NodeCore, plan: &Plan) -> String {
    plan.text(&|id| core.network.view(*id).name.clone())
}

fn pairs(pairs: &[(String, String)]) -> Vec<Because> {
    let pair = |(name, value): &(String, String)| Because {
        name: name.clone(),
        value: value.clone(),
    };
    pairs.iter().map(pair).collect()
}
