//! `wormholes status`: on a terminal one screen of 24 lines; elsewhere lines in full.

use wormholes_proto::control::{FlowTotals, RoleSummary, ScriptReport, Status};

use super::{NAME_COLUMNS, field, script::last_error, tor};
use crate::{
    format::{self, list},
    output::Style,
};

/// Errors of scripts that find room; `wormholes script list` shows all that are kept.
const MAX_ERRORS: usize = 3;

pub(super) fn render(status: &Status, style: Style) -> String {
    let columns = style.width.map(|width| width.saturating_sub(NAME_COLUMNS));
    let field = |name: &str, value: &str| {
        let value = columns.map_or_else(|| value.to_owned(), |columns| format::cut(value, columns));
        field(style, name, &value)
    };
    let uptime = format::seconds(status.uptime_seconds);
    let draining = if status.draining { ", draining" } else { "" };
    let head = format!(
        "wormholed {}, up {uptime}, process {}{draining}",
        status.version, status.pid
    );
    let mut text = field("node", &name(&status.name, &head));
    text += &field("id", &status.node_id.to_string());
    let listen = list(&status.listen, "nowhere: it only dials");
    text += &field("listen", &listen);
    text += &field("entrances", &list(entrances(status), "none"));
    if let Some(http) = status.http {
        text += &field("http", &http.to_string());
    }
    if let Some(metrics) = status.metrics {
        text += &field("metrics", &format!("http://{metrics}/metrics"));
    }
    let services = list(status.services.iter().map(|s| &s.name), "none");
    text += &field("services", &services);
    text += &field("roles", &roles(status));
    text += &field("relayed by", &list(relays(status), "none asked"));
    if let Some(summary) = &status.tor {
        text += &field("tor", &tor::state(summary.state, summary.progress_percent));
    }
    if let Some(i2p) = &status.i2p {
        let (ready, making, users) = (i2p.ready, i2p.making, i2p.users);
        let sessions = format!("{ready} sessions, {making} being made, {users} in use");
        text += &field("i2p", &sessions);
    }
    let (known, connected) = (status.peers_known, status.peers_connected);
    text += &field("peers", &format!("{known} known, {connected} connected"));
    for (name, value) in flows(&status.flows) {
        text += &field(name, &value);
    }
    text += &field("scripts", &scripts(&status.scripts));
    for error in status.scripts.last_errors.iter().take(MAX_ERRORS) {
        text += &field("", &last_error(error));
    }
    if !status.scripts.restart_for.is_empty() {
        let keys = status.scripts.restart_for.join(", ");
        text += &field("restart", &format!("needed by changed keys: {keys}"));
    }
    text += &field("you", &format!("{} of this node", status.access));
    text
}

fn flows(totals: &FlowTotals) -> [(&'static str, String); 3] {
    let FlowTotals {
        open,
        opened,
        blocked,
        failed,
        bytes_sent,
        bytes_received,
    } = totals;
    let opened = opened.iter().map(|(kind, count)| format!("{kind} {count}"));
    let (sent, received) = (format::bytes(*bytes_sent), format::bytes(*bytes_received));
    [
        (
            "flows",
            format!("{open} open, {blocked} blocked, {failed} failed"),
        ),
        ("opened", list(opened, "none")),
        ("bytes", format!("{sent} sent, {received} received")),
    ]
}

fn relays(status: &Status) -> Vec<String> {
    status
        .relays
        .iter()
        .map(|relay| {
            let why = relay.error.as_deref().unwrap_or("no answer so far");
            match relay.registered {
                true => relay.name.clone(),
                false => format!("{}: NO, {why}", relay.name),
            }
        })
        .collect()
}

fn name(name: &str, head: &str) -> String {
    if name.is_empty() {
        head.to_owned()
    } else {
        format!("{name} ({head})")
    }
}

fn entrances(status: &Status) -> Vec<String> {
    status
        .entrances
        .iter()
        .map(|entrance| format!("{} {}", entrance.kind, entrance.listen))
        .collect()
}

fn roles(status: &Status) -> String {
    let role = |name: &str, role: &RoleSummary| {
        if role.enabled {
            format!("{name} on ({} active)", role.active)
        } else {
            format!("{name} off")
        }
    };
    let roles = &status.roles;
    format!(
        "{}, {}, {}",
        role("relay", &roles.relay),
        role("hop", &roles.hop),
        role("exit", &roles.exit)
    )
}

fn scripts(report: &ScriptReport) -> String {
    let names = list(report.scripts.iter().map(|script| &script.name), "none");
    let by_command = if report.by_command { " by command" } else { "" };
    format!(
        "generation {}{by_command}, {} errors, else {}: {names}",
        report.generation, report.errors, report.default
    )
}

#[cfg(test)]
mod tests {
    use wormholes_proto::{
        NodeId,
        control::{
            Access, EntranceInfo, I2pSummary, RelayRegistration, RolesSummary, ScriptDiagnostic,
            ScriptErrorInfo, ScriptFile, ServiceInfo, TorState, TorSummary,
        },
    };

    use super::*;

    fn role(active: usize) -> RoleSummary {
        RoleSummary {
            enabled: active > 0,
            active,
        }
    }

    fn busy() -> Status {
        Status {
            version: "0.1.0".to_owned(),
            protocol: 1,
            name: "a name that somebody typed without an end, and then typed some more".to_owned(),
            node_id: NodeId::from_bytes([7; 32]),
            pid: 4_194_304,
            uptime_seconds: 90_061,
            draining: true,
            listen: vec!["[::]:4433".parse().unwrap(); 9],
            entrances: (1080..1089).map(entrance).collect(),
            metrics: Some(([127, 0, 0, 1], 9101).into()),
            http: None,
            services: vec![
                ServiceInfo {
                    name: "web".to_owned(),
                    min_trust: 2,
                };
                40
            ],
            roles: RolesSummary {
                relay: role(1000),
                hop: role(1000),
                exit: role(0),
            },
            peers_known: 4096,
            peers_connected: 1024,
            relays: vec![
                RelayRegistration {
                    name: "harbour".to_owned(),
                    registered: false,
                    error: Some("no answer".to_owned()),
                };
                20
            ],
            i2p: Some(I2pSummary {
                ready: 256,
                making: 16,
                users: usize::MAX,
            }),
            flows: FlowTotals {
                open: u64::MAX,
                ..FlowTotals::default()
            },
            scripts: scripts(),
            tor: Some(TorSummary {
                state: TorState::Starting,
                progress_percent: 15,
            }),
            access: Access::Operator,
        }
    }

    fn scripts() -> ScriptReport {
        ScriptReport {
            generation: 3,
            scripts: vec![
                ScriptFile {
                    name: "default.rhai".to_owned(),
                    path: None,
                };
                30
            ],
            default: "block".to_owned(),
            errors: 640,
            last_errors: vec![error(); 64],
            warnings: Vec::new(),
            can_roll_back: false,
            restart_for: vec!["limits.flows".to_owned(); 9],
            by_command: true,
        }
    }

    fn entrance(port: u16) -> EntranceInfo {
        EntranceInfo {
            kind: "socks5".to_owned(),
            listen: ([127, 0, 0, 1], port).into(),
            label: None,
        }
    }

    fn error() -> ScriptErrorInfo {
        ScriptErrorInfo {
            at_unix_ms: 1_795_238_255_000,
            hook: "route".to_owned(),
            count: 10,
            fault: ScriptDiagnostic {
                script: "default.rhai".to_owned(),
                line: 12,
                column: 0,
                message: "a script may take 10 ms, and this one took more than that".to_owned(),
            },
        }
    }

    #[test]
    fn the_busiest_node_fits_a_screen() {
        let screen = Style {
            color: false,
            width: Some(80),
        };
        let text = render(&busy(), screen);
        assert!(text.lines().count() <= 24, "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(text.contains(&NodeId::from_bytes([7; 32]).to_string()));
        assert!(text.contains("relay on (1000 active)"));
        assert!(text.contains("exit off"));
        let error = "           2026-11-21 05:17:35Z 10x route default.rhai:12: a script";
        assert_eq!(text.matches(error).count(), MAX_ERRORS, "{text}");
    }

    #[test]
    fn where_no_screen_is_nothing_is_cut() {
        let text = render(&busy(), Style::default());
        assert!(!text.contains('…'), "{text}");
        assert!(text.contains("took more than that\n"), "{text}");
    }
}
