//! What is kept of a flow when it changes: its story, the metrics, an event and a line of log.

use std::{sync::atomic::Ordering::Relaxed, time::Instant};

use wormholes_proto::{
    NodeId, Transport,
    control::{EventBody, FlowState, RuleName},
};
use wormholes_rules::TunnelKind;

use super::{Asked, Moved, Refusal, Story, open::Route, table::Place};
use crate::{clock::ms, log::masked, node::NodeCore, tunnel::OpenError};

/// An open flow, until its end is recorded.
pub(super) struct Travelling<'a> {
    core: &'a NodeCore,
    flow: &'a Place,
    kind: TunnelKind,
    since: Instant,
}

/// A flow for which there was no place.
pub(super) fn turned_away(core: &NodeCore, asked: &Asked, refusal: &Refusal) {
    core.flows.count(|totals| totals.failed += 1);
    let labels = (asked.entrance, asked.transport);
    count(core, labels, "none", refusal.outcome());
}

/// A flow that did not open.
pub(super) fn refused(core: &NodeCore, flow: &Place, refusal: &Refusal) {
    let why = refusal.to_string();
    flow.tell(|story| {
        story.state = FlowState::Refused;
        story.end = Some(why.clone());
    });
    let blocked = refusal.outcome() == "blocked";
    core.flows.count(|totals| match blocked {
        true => totals.blocked += 1,
        false => totals.failed += 1,
    });
    let Story {
        rule, last_tried, ..
    } = flow.summary();
    let untried = if blocked { "block" } else { "none" };
    let tunnel = last_tried.map_or(untried, TunnelKind::as_str);
    let labels = (flow.entrance, flow.transport);
    count(core, labels, tunnel, refusal.outcome());
    tracing::info!(
        flow = flow.id,
        entrance = flow.entrance,
        network = flow.transport.as_str(),
        target = %masked(&flow.target),
        rule = rule.as_ref().map(tracing::field::display),
        outcome = refusal.outcome(),
        "flow refused"
    );
    tracing::debug!(flow = flow.id, target = %flow.target, %why, "flow refused");
    core.events.publish_with(|| EventBody::FlowRefused {
        flow: flow.id,
        entrance: flow.entrance.to_owned(),
        target: Some(flow.target.to_string()),
        rule: rule.as_ref().map(RuleName::from),
        why: Some(why),
    });
}

/// A flow that was a question for an address, and is answered.
pub(super) fn looked_up(core: &NodeCore, flow: &Place) {
    flow.tell(|story| story.state = FlowState::Ended);
    let last_tried = flow.summary().last_tried;
    let tunnel = last_tried.map_or("none", TunnelKind::as_str);
    count(core, (flow.entrance, flow.transport), tunnel, "ok");
    tracing::debug!(flow = flow.id, target = %flow.target, "name looked up");
}

/// A flow that was a question whether it may go.
pub(super) fn permitted(core: &NodeCore, flow: &Place) {
    flow.tell(|story| story.state = FlowState::Ended);
    let tunnel = TunnelKind::Direct.as_str();
    count(core, (flow.entrance, flow.transport), tunnel, "ok");
    tracing::debug!(flow = flow.id, target = %flow.target, "datagrams may go");
}

/// A flow whose tunnel stands.
pub(super) fn opened<'a>(core: &'a NodeCore, flow: &'a Place, route: &Route) -> Travelling<'a> {
    let kind = route.opened.kind;
    let took = flow.asked.elapsed();
    flow.tell(|story| {
        story.state = FlowState::Open;
        story.tunnel = Some(kind);
        story.path.clone_from(&route.opened.path);
        story.label.clone_from(&route.label);
        story.rule.clone_from(&route.rule);
        story.open_took = Some(took);
    });
    core.flows
        .count(|totals| *totals.opened.entry(kind).or_default() += 1);
    core.metrics.flows_open.inc();
    tracing::info!(
        flow = flow.id,
        entrance = flow.entrance,
        network = flow.transport.as_str(),
        target = %masked(&flow.target),
        rule = route.rule.as_ref().map(tracing::field::display),
        tunnel = kind.as_str(),
        ms = took.as_millis(),
        "flow opened"
    );
    tracing::debug!(flow = flow.id, target = %flow.target, "flow opened");
    core.events.publish_with(|| EventBody::FlowOpened {
        flow: flow.id,
        entrance: flow.entrance.to_owned(),
        target: Some(flow.target.to_string()),
        tunnel: kind.as_str().to_owned(),
        rule: route.rule.as_ref().map(RuleName::from),
        open_ms: ms(took),
    });
    Travelling {
        core,
        flow,
        kind,
        since: Instant::now(),
    }
}

/// A flow that came through a relay and goes on by a direct connection to `peer`.
pub(super) fn moved(core: &NodeCore, flow: &Place, peer: NodeId) {
    let tunnel = TunnelKind::Direct;
    // Under the lock of the totals: no byte counts for both tunnels, or for neither.
    let from = core.flows.count(|_| {
        let before = Moved {
            up: flow.bytes.up.load(Relaxed),
            down: flow.bytes.down.load(Relaxed),
        };
        let from = flow.tunnel().unwrap_or(TunnelKind::Relay);
        flow.tell(|story| {
            story.tunnel = Some(tunnel);
            story.path = vec![peer];
            story.moved_from = Some((from, before));
        });
        from
    });
    core.metrics.flows_moved.with_label_values(&["moved"]).inc();
    let (from, tunnel) = (from.as_str(), tunnel.as_str());
    tracing::info!(flow = flow.id, from, tunnel, "flow moved");
    core.events.publish_with(|| EventBody::FlowMoved {
        flow: flow.id,
        from: from.to_owned(),
        tunnel: tunnel.to_owned(),
    });
}

/// A flow that could not go on by a direct connection, and stays where it is.
pub(super) fn stays(core: &NodeCore, flow: &Place, error: &OpenError) {
    let metric = &core.metrics.flows_moved;
    metric.with_label_values(&["failed"]).inc();
    tracing::debug!(flow = flow.id, %error, "flow stays with its relay");
}

impl Travelling<'_> {
    /// The flow ended; `why` when it did not end well.
    pub(super) fn ended(self, why: Option<String>) {
        let Self {
            core, flow, kind, ..
        } = self;
        let kind = flow.tunnel().unwrap_or(kind);
        let (up, down) = (flow.bytes.up.load(Relaxed), flow.bytes.down.load(Relaxed));
        let outcome = if why.is_none() { "ok" } else { "broken" };
        let labels = (flow.entrance, flow.transport);
        count(core, labels, kind.as_str(), outcome);
        flow.tell(|story| {
            story.state = FlowState::Ended;
            story.end.clone_from(&why);
        });
        let lasted_ms = ms(self.since.elapsed());
        tracing::debug!(flow = flow.id, up, down, lasted_ms, why, "flow ended");
        core.events.publish_with(|| EventBody::FlowEnded {
            flow: flow.id,
            tunnel: kind.as_str().to_owned(),
            bytes_sent: up,
            bytes_received: down,
            duration_ms: lasted_ms,
            error: why,
        });
    }
}

impl Drop for Travelling<'_> {
    fn drop(&mut self) {
        self.core.metrics.flows_open.dec();
    }
}

fn count(core: &NodeCore, (entrance, transport): (&str, Transport), tunnel: &str, outcome: &str) {
    let labels = [entrance, transport.as_str(), tunnel, outcome];
    core.metrics.flows.with_label_values(&labels).inc();
}
