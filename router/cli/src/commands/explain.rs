//! `wormholes why FLOW`: what was asked, what decided, what was tried, what came of it.

use wormholes_proto::control::{Because, DecisionInfo, Explanation, StepTried};

use super::field;
use crate::{
    format,
    output::{Style, Tone},
};

pub(super) fn render(why: &Explanation, style: Style) -> String {
    let field = |name: &str, value: &str| field(style, name, value);
    let mut text = field("flow", &format!("{} ({})", why.flow, why.state));
    text += &field(
        "asked",
        &format!("{} at {}", why.target, format::utc(why.at_unix_ms)),
    );
    let entrance = format::entrance(&why.entrance, &why.network);
    text += &field("entrance", &entrance);
    if why.decisions.is_empty() {
        text += &field("rule", &format::rule(why.rule.as_ref()));
    }
    for decision in &why.decisions {
        text += &decided(decision, style);
    }
    // That a plan blocks is no tunnel that was tried.
    let steps = why.steps.iter().filter(|step| !is_block(step));
    for (index, step) in steps.enumerate() {
        text += &tried(style, index, step);
    }
    if let Some(tunnel) = &why.tunnel {
        let opened = why.open_ms.map(format::milliseconds);
        let opened = opened.map_or_else(String::new, |time| format!(", open after {time}"));
        text += &field("tunnel", &format!("{tunnel}{opened}"));
    }
    if !why.path.is_empty() {
        text += &field("path", &format::path(&why.path));
    }
    text += &field(
        "bytes",
        &format!(
            "{} sent, {} received",
            format::bytes(why.bytes_sent),
            format::bytes(why.bytes_received)
        ),
    );
    if let Some(end) = &why.end {
        text += &field("end", if is_decided(why, end) { "blocked" } else { end });
    }
    text
}

fn is_block(step: &StepTried) -> bool {
    step.tunnel.starts_with("block: ")
}

/// Whether a decision that is shown says why it ended so.
fn is_decided(why: &Explanation, end: &str) -> bool {
    let block = end.replacen("blocked: ", "block: ", 1);
    let mut decisions = why.decisions.iter();
    decisions.any(|decision| decision.plan.contains(&block))
}

fn decided(decision: &DecisionInfo, style: Style) -> String {
    let field = |name: &str, value: &str| field(style, name, value);
    let rule = match &decision.rule {
        Some(_) => format::rule(decision.rule.as_ref()),
        None => "no script answered".to_owned(),
    };
    let again = match decision.attempt {
        0 => String::new(),
        attempt => format!(", attempt {attempt}"),
    };
    let (generation, took) = (decision.generation, decision.took_us);
    let mut text = field(
        "rule",
        &format!("{rule} (generation {generation}, {took} us{again})"),
    );
    text += &pairs(style, "because", &decision.because);
    text += &pairs(style, "tags", &decision.tags);
    for line in &decision.log {
        text += &field("log", line);
    }
    // A script that fails blocks: its error is the whole plan.
    text += &match &decision.error {
        Some(error) => field("error", error),
        None => field("plan", &decision.plan),
    };
    text
}

fn pairs(style: Style, name: &str, pairs: &[Because]) -> String {
    pairs
        .iter()
        .enumerate()
        .map(|(index, pair)| {
            let name = if index == 0 { name } else { "" };
            field(style, name, &format!("{} = {}", pair.name, pair.value))
        })
        .collect()
}

fn tried(style: Style, index: usize, step: &StepTried) -> String {
    let name = if index == 0 { "tried" } else { "" };
    let took = format::milliseconds(step.took_ms);
    let (tone, result) = match &step.error {
        None => (Tone::Good, "opened".to_owned()),
        Some(error) => (Tone::Bad, format::clean(error)),
    };
    let mut line = field(style, name, &step.tunnel);
    line.pop();
    format!("{line}: {} ({took})\n", style.paint(tone, &result))
}

#[cfg(test)]
mod tests {
    use wormholes_proto::{
        NodeId,
        control::{FlowState, PathNode, RuleName},
    };

    use super::*;

    fn explanation() -> Explanation {
        let pair = |name: &str, value: &str| Because {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let step = |tunnel: &str, error: Option<&str>| StepTried {
            tunnel: tunnel.to_owned(),
            error: error.map(str::to_owned),
            failed_at: None,
            took_ms: 12,
        };
        Explanation {
            flow: 7,
            at_unix_ms: 1_795_238_255_000,
            state: FlowState::Open,
            entrance: "socks5".to_owned(),
            network: "tcp".to_owned(),
            target: "a.example:443".to_owned(),
            rule: None,
            decisions: vec![DecisionInfo {
                attempt: 0,
                generation: 3,
                rule: Some(RuleName {
                    script: "default.rhai".to_owned(),
                    line: 12,
                }),
                plan: "direct to bob, else onion(3)".to_owned(),
                took_us: 41,
                because: vec![pair("c.host", "a.example"), pair("set(ads).has", "false")],
                tags: Vec::new(),
                log: vec!["a line".to_owned()],
                error: None,
            }],
            steps: vec![
                step("direct to bob", Some("timed out")),
                step("onion(3)", None),
            ],
            tunnel: Some("onion".to_owned()),
            path: vec![PathNode {
                name: "ada".to_owned(),
                id: NodeId::from_bytes([1; 32]),
            }],
            open_ms: Some(30),
            bytes_sent: 1,
            bytes_received: 2,
            end: None,
        }
    }

    fn refused(plan: &str, error: Option<&str>) -> String {
        let mut why = explanation();
        why.state = FlowState::Refused;
        (why.tunnel, why.path, why.open_ms) = (None, Vec::new(), None);
        why.decisions[0].plan = plan.to_owned();
        why.decisions[0].error = error.map(str::to_owned);
        why.steps = vec![StepTried {
            tunnel: plan.to_owned(),
            error: Some(plan.replace("block:", "blocked:")),
            failed_at: None,
            took_ms: 0,
        }];
        why.end = Some(plan.replace("block:", "blocked:"));
        render(&why, Style::default())
    }

    #[test]
    fn the_reason_of_a_block_is_said_once() {
        let text = refused("block: not today", None);
        assert_eq!(text.matches("not today").count(), 1, "{text}");
        assert!(text.contains("plan       block: not today\n"), "{text}");
        assert!(text.ends_with("end        blocked\n"), "{text}");
        let error = "a.rhai:2: no number";
        let text = refused(&format!("block: {error}"), Some(error));
        assert_eq!(text.matches("no number").count(), 1, "{text}");
        assert!(text.contains("error      a.rhai:2: no number\n"), "{text}");
        assert!(text.ends_with("end        blocked\n"), "{text}");
    }

    #[test]
    fn a_decision_reads_from_question_to_end() {
        let expected = "\
flow       7 (open)
asked      a.example:443 at 2026-11-21 05:17:35Z
entrance   socks5
rule       default.rhai:12 (generation 3, 41 us)
because    c.host = a.example
           set(ads).has = false
log        a line
plan       direct to bob, else onion(3)
tried      direct to bob: timed out (12 ms)
           onion(3): opened (12 ms)
tunnel     onion, open after 30 ms
path       ada
bytes      1 B sent, 2 B received
";
        assert_eq!(render(&explanation(), Style::default()), expected);
    }
}
