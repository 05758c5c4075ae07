//! `wormholes i2p status`.

use wormholes_proto::control::{I2pReport, I2pServiceInfo, I2pSessionInfo};

use super::field;
use crate::{
    format,
    output::{Style, Tone},
    table::{Cell, Table},
};

pub(super) fn render(report: &I2pReport, style: Style) -> String {
    let field = |name: &str, value: &str| field(style, name, value);
    let Some(router) = report.router else {
        let mend = "`sam` under [i2p] names an I2P router";
        return [field("router", "none"), field("", mend)].concat();
    };
    let state = match &report.error {
        Some(error) => format!("{router}: NO, {error}"),
        None => format!("{router}, it answers"),
    };
    let mut text = field("router", &state);
    let (count, max) = (report.sessions.len(), report.max_sessions);
    text += &field("sessions", &format!("{count} of {max}"));
    for service in &report.services {
        text += &field("service", &published(service));
    }
    if report.sessions.is_empty() {
        return text;
    }
    let mut table = Table::new(&["USED BY", "STATE", "USERS", "TUNNELS", "IDLE", "~ADDRESS"]);
    for session in &report.sessions {
        table.row(row(session));
    }
    text += &table.render(style);
    text
}

fn published(service: &I2pServiceInfo) -> String {
    let name = &service.name;
    match (&service.address, &service.error) {
        (_, Some(error)) => format!("{name}: NO, {error}"),
        (Some(address), None) => format!("{name} at {address}"),
        (None, None) => format!("{name}, published"),
    }
}

fn row(session: &I2pSessionInfo) -> [Cell; 6] {
    let used_by = match &session.kept {
        Some(name) => format!("{} {name}", session.used_by),
        None => session.used_by.clone(),
    };
    let state = match session.ready {
        true => Cell::toned(Tone::Good, "ready"),
        false => Cell::toned(Tone::Head, "making"),
    };
    let tunnels = match (session.length, session.quantity) {
        (Some(length), Some(quantity)) => format!("{quantity} of {length} hops"),
        (None, _) | (_, None) => "-".to_owned(),
    };
    [
        used_by.as_str().into(),
        state,
        session.users.to_string().as_str().into(),
        tunnels.as_str().into(),
        format::seconds(session.idle_seconds).as_str().into(),
        session.address.as_deref().unwrap_or("-").into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_that_is_not_reached_is_told_and_so_are_services_and_sessions() {
        let report = I2pReport {
            router: Some(([127, 0, 0, 1], 7656).into()),
            error: Some("not reached".to_owned()),
            services: vec![I2pServiceInfo {
                name: "blog".to_owned(),
                address: Some("x.b32.i2p".to_owned()),
                error: None,
            }],
            sessions: vec![I2pSessionInfo {
                used_by: "kept".to_owned(),
                kept: Some("blog".to_owned()),
                ready: true,
                address: Some("x.b32.i2p".to_owned()),
                users: 1,
                length: Some(3),
                quantity: Some(2),
                idle_seconds: 0,
            }],
            max_sessions: 32,
        };
        let text = render(&report, Style::default());
        for said in [
            "127.0.0.1:7656: NO, not reached",
            "1 of 32",
            "blog at x.b32.i2p",
            "kept blog",
            "2 of 3 hops",
        ] {
            assert!(text.contains(said), "{said} in {text}");
        }
        let none = I2pReport {
            router: None,
            ..report
        };
        assert!(render(&none, Style::default()).contains("[i2p]"));
    }
}
