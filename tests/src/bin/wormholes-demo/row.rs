//! One request through the client, and what is known of it afterwards.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};
use wormholes_tests::{Capture, Fetched, OUTSIDE, SCRIPT_NAME, SITE_GREETING, TestNetwork, curl};

use crate::{
    learned::{self, Before, Learned},
    quiet,
};

/// Enough to show a rate, small enough for an unoptimised build.
const BULK_BYTES: usize = 8 << 20;

/// A name to ask for, and what the script says about it.
#[derive(Debug)]
pub(crate) struct Case {
    /// The host name.
    pub(crate) name: &'static str,
    /// What the deciding line of the script says.
    pub(crate) line: &'static str,
    /// The tunnel that it shall take.
    pub(crate) tunnel: &'static str,
    /// The nodes that it may pass, in order; in an onion the first two are any of the hops.
    pub(crate) path: &'static [&'static str],
}

/// What the script promises.
pub(crate) const CASES: [Case; 4] = [
    Case {
        name: "wiki.relay.wh",
        line: "return c.node.best().closed();",
        tunnel: "direct",
        path: &["relay"],
    },
    Case {
        name: "web.friend.wh",
        line: "return c.node.best().closed();",
        tunnel: "relay",
        path: &["relay", "friend"],
    },
    Case {
        name: OUTSIDE,
        line: "return onion(3).closed();",
        tunnel: "onion",
        path: &["hop", "hop", "exit"],
    },
    Case {
        name: "tracker.blocked.example",
        line: "return block(\"the demo blocks this name\");",
        tunnel: "block",
        path: &[],
    },
];

/// A line of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) rule: String,
    pub(crate) tunnel: String,
    pub(crate) ok: bool,
    pub(crate) ttfb_ms: Option<f64>,
    pub(crate) mb_per_s: Option<f64>,
    pub(crate) learned: BTreeMap<String, Vec<String>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) wrong: Vec<String>,
    #[serde(skip)]
    pub(crate) flow: u64,
}

/// Asks twice: once for the first byte, once for a rate; looks at everything in between.
pub(crate) async fn ask(network: &TestNetwork, script: &str, case: &Case) -> Result<Row> {
    let url = url(network, case);
    let proxy = format!("socks5h://{}", network.client.entrance("socks5")?);
    let markers = [case.name.as_bytes(), SITE_GREETING.as_bytes()];
    quiet::wait(network).await?;
    let before = Before::of(network).await?;
    let mut events = network.client.events().await?;
    let capture = Capture::start(&markers)?;
    let front = curl(&proxy, &url, &[]).await?;
    let event = events
        .next(|event| is_about(event, case.name))
        .await
        .with_context(|| format!("no event about {}: {}", case.name, front.error))?;
    quiet::wait(network).await?;
    let captured = capture.finish();
    let flow = event.get("flow").and_then(Value::as_u64).unwrap_or(0);
    let why = network.client.call("why", json!({"flow": flow})).await?;
    let path = path(&why);
    let Learned { facts, mut wrong } =
        learned::collect(network, case, &path, &captured, &before).await?;
    wrong.extend(complaints(case, &front, &why));
    let promised = promised_rule(script, case.line);
    if promised.as_ref() != Some(&rule(&why)) {
        wrong.push(format!("decided by {}, not by {promised:?}", rule(&why)));
    }
    if captured.found_over_tcp(case.name.as_bytes()) == 0 {
        wrong.push("the capture missed what curl said to the entrance".to_owned());
    }
    let bulk = if case.tunnel == "block" {
        None
    } else {
        Some(curl(&proxy, &format!("{url}bytes/{BULK_BYTES}"), &[]).await?)
    };
    if let Some(bulk) = bulk.as_ref().filter(|b| b.body.len() != BULK_BYTES) {
        wrong.push(format!("{} of {BULK_BYTES} bytes came", bulk.body.len()));
    }
    Ok(Row {
        name: case.name.to_owned(),
        rule: rule(&why),
        tunnel: tunnel(&why),
        ok: wrong.is_empty(),
        ttfb_ms: bulk.as_ref().map(|_| front.first_byte.as_secs_f64() * 1e3),
        mb_per_s: bulk.map(|bulk| bulk.bytes_per_s / 1e6),
        learned: facts,
        wrong,
        flow,
    })
}

fn url(network: &TestNetwork, case: &Case) -> String {
    if case.name == OUTSIDE {
        network.outside_url("/")
    } else {
        format!("http://{}/", case.name)
    }
}

fn is_about(event: &Value, name: &str) -> bool {
    let text = |key| event.get(key).and_then(Value::as_str).unwrap_or_default();
    ["flow-opened", "flow-refused"].contains(&text("kind")) && text("target").starts_with(name)
}

/// How what happened differs from what the script says.
fn complaints(case: &Case, front: &Fetched, why: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    if tunnel(why) != case.tunnel {
        wrong.push(format!("took {}, not {}", tunnel(why), case.tunnel));
    }
    let path = path(why);
    let as_promised = path.len() == case.path.len()
        && path
            .iter()
            .zip(case.path)
            .all(|(node, wanted)| node.starts_with(wanted));
    if !as_promised {
        wrong.push(format!("passed {path:?}, not {:?}", case.path));
    }
    let greeted = String::from_utf8_lossy(&front.body).contains(SITE_GREETING);
    if greeted == (case.tunnel == "block") {
        wrong.push(format!(
            "curl: exit {}, HTTP {}, {}",
            front.exit, front.status, front.error
        ));
    }
    wrong
}

/// The tunnel that stood; `block` only where the script's plan was to block.
pub(crate) fn tunnel(why: &Value) -> String {
    let taken = why.get("tunnel").and_then(Value::as_str);
    let plan = last_decision(why).and_then(|decision| decision.get("plan")?.as_str());
    let blocked = plan.is_some_and(|plan| plan.starts_with("block"));
    taken
        .unwrap_or(if blocked { "block" } else { "none" })
        .to_owned()
}

/// Where the script has the line, in the form in which `why` names rules.
fn promised_rule(script: &str, line: &str) -> Option<String> {
    let number = script.lines().position(|text| text.contains(line))? + 1;
    Some(format!("{SCRIPT_NAME}:{number}"))
}

/// A flow is decided again when all steps failed.
pub(crate) fn last_decision(why: &Value) -> Option<&Value> {
    why.get("decisions")?.as_array()?.last()
}

/// The line of the last decision.
pub(crate) fn rule(why: &Value) -> String {
    let rule = last_decision(why).and_then(|decision| decision.get("rule"));
    let script = rule.and_then(|rule| rule.get("script")?.as_str());
    let line = rule.and_then(|rule| rule.get("line")?.as_u64());
    match (script, line) {
        (Some(script), Some(line)) => format!("{script}:{line}"),
        _ => "default".to_owned(),
    }
}

/// The names of the nodes that a flow passed.
pub(crate) fn path(why: &Value) -> Vec<String> {
    let nodes = why.get("path").and_then(Value::as_array);
    let names = nodes.into_iter().flatten().map(|node| node.get("name"));
    names
        .map(|name| name.and_then(Value::as_str).unwrap_or("?").to_owned())
        .collect()
}
