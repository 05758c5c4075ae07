//! `wormholes relay | hop | exit`.

use wormholes_proto::control::RoleReport;

use super::field;
use crate::{format, output::Style};

pub(super) fn render(report: &RoleReport, style: Style) -> String {
    let field = |name: &str, value: &str| field(style, name, value);
    let state = if report.enabled { "on" } else { "off" };
    let mut text = field("role", &format!("{} {state}", report.role));
    if !report.enabled {
        let section = format!("`enabled = true` under [{}] turns it on", report.role);
        text += &field("", &section);
        return text;
    }
    let limits = &report.limits;
    text += &field(
        "active",
        &format!(
            "{} of {} (of one peer at most {})",
            report.active, limits.max_circuits, limits.max_circuits_per_peer
        ),
    );
    text += &field(
        "carried",
        &format!("{}, {} in all", format::bytes(report.bytes), report.total),
    );
    text += &field(
        "limits",
        &format!(
            "{} a second for each peer, {} for each circuit, {} idle",
            or_all(limits.bytes_per_second_per_peer),
            or_all(limits.max_bytes_per_circuit),
            format::seconds(limits.idle_seconds)
        ),
    );
    for (reason, count) in &report.refused {
        text += &field("refused", &format!("{count} {reason}"));
    }
    if let Some(registered) = &report.registered {
        text += &field("registered", &format::list(registered, "none"));
    }
    if report.role == "exit" {
        text += &field("allows", &format::list(&report.allow, "none"));
    }
    text
}

/// 0 is no limit.
fn or_all(bytes: u64) -> String {
    if bytes == 0 {
        "any bytes".to_owned()
    } else {
        format::bytes(bytes)
    }
}
