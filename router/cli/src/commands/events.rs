//! `wormholes events`: a line for each, until the daemon stops or the reader has enough.

use serde_json::Value;
use wormholes_proto::control::{Call, Event, EventBody, EventKind, SubscribeParams, Subscribed};

use super::Context;
use crate::{error::CliError, format};

pub(super) fn run(context: &mut Context<'_>, kinds: Vec<EventKind>) -> Result<(), CliError> {
    let mut client = context.connect()?;
    let _: Subscribed = client.report(&Call::Subscribe(SubscribeParams { kinds }))?;
    while let Some(event) = client.event()? {
        if context.output.json {
            context.output.value(&event)?;
        } else {
            context.output.text(&render(&event))?;
        }
        context.output.flush()?;
    }
    Err(CliError::Closed)
}

/// A kind that a newer daemon has is shown as it came.
fn render(value: &Value) -> String {
    let Ok(event) = serde_json::from_value::<Event>(value.clone()) else {
        return format!("{}\n", format::clean(&value.to_string()));
    };
    let kind = event.body.kind().map_or("missed", EventKind::as_str);
    let words = format::clean(&words(&event.body));
    format!("{} {kind:<13} {words}\n", format::utc(event.at_unix_ms))
}

fn words(body: &EventBody) -> String {
    let target = |target: &Option<String>| target.clone().unwrap_or_else(|| "(hidden)".to_owned());
    match body {
        EventBody::FlowOpened {
            flow,
            entrance,
            target: to,
            tunnel,
            rule,
            open_ms,
        } => {
            let (to, rule) = (target(to), format::rule(rule.as_ref()));
            format!("{flow} {entrance} {to} by {tunnel} ({rule}, {open_ms} ms)")
        }
        EventBody::FlowMoved { flow, from, tunnel } => format!("{flow} from {from} to {tunnel}"),
        EventBody::FlowEnded {
            flow,
            tunnel,
            bytes_sent,
            bytes_received,
            duration_ms,
            error,
        } => {
            let (sent, received) = (format::bytes(*bytes_sent), format::bytes(*bytes_received));
            let time = format::milliseconds(*duration_ms);
            let end = error.as_deref().unwrap_or("closed");
            format!("{flow} {tunnel} {end} after {time}, {sent} sent, {received} received")
        }
        EventBody::FlowRefused {
            flow,
            entrance,
            target: to,
            rule,
            why,
        } => {
            let (to, rule) = (target(to), format::rule(rule.as_ref()));
            let why = why.as_deref().unwrap_or("refused");
            format!("{flow} {entrance} {to}: {why} ({rule})")
        }
        EventBody::PeerUp { peer, id } => format::node(peer, id),
        EventBody::PeerDown { peer, id, reason } => format!("{}: {reason}", format::node(peer, id)),
        EventBody::ScriptLoaded {
            generation,
            scripts,
        } => format!("generation {generation}: {}", scripts.join(", ")),
        EventBody::ScriptFailed { diagnostics } => {
            let lines = diagnostics.iter().map(format::diagnostic);
            lines.collect::<Vec<_>>().join("; ")
        }
        EventBody::Notify { level, message } => format!("{level}: {}", target(message)),
        EventBody::Missed { count } => format!("{count} events: read faster or ask for fewer"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wormholes_proto::NodeId;

    use super::*;

    #[test]
    fn events_are_lines() {
        let event = json!({
            "seq": 1, "at_unix_ms": 0, "kind": "flow-refused", "flow": 7, "entrance": "http",
            "target": "a\n.example:80", "rule": null, "why": "blocked",
        });
        let text =
            "1970-01-01 00:00:00Z flow-refused  7 http a\u{fffd}.example:80: blocked (default)\n";
        assert_eq!(render(&event), text);
        let peer = json!({
            "seq": 1, "at_unix_ms": 0, "kind": "peer-up", "peer": "bob",
            "id": NodeId::from_bytes([7; 32]),
        });
        let text = render(&peer);
        assert!(text.ends_with("peer-up       bob (yhdoqba8…)\n"), "{text}");
        let unknown = json!({"seq": 1, "kind": "comet"});
        assert_eq!(render(&unknown), "{\"kind\":\"comet\",\"seq\":1}\n");
    }
}
