//! `wormholes ping` and `netcheck`.

use std::{thread, time::Duration};

use serde_json::json;
use wormholes_proto::control::{Call, Check, NetReport, NoParams, PeerParams, PingReport};

use super::Context;
use crate::{
    error::CliError,
    format,
    output::{Output, Style, Tone},
    table::{Cell, Table},
};

/// As ping(8) does.
const PING_PAUSE: Duration = Duration::from_secs(1);

pub(super) fn ping(context: &mut Context<'_>, peer: &str, count: u32) -> Result<(), CliError> {
    let mut client = context.connect()?;
    let call = Call::Ping(PeerParams {
        peer: peer.to_owned(),
    });
    let mut reports: Vec<PingReport> = Vec::new();
    for index in 0..count {
        if index > 0 {
            thread::sleep(PING_PAUSE);
        }
        let report: PingReport = client.report(&call)?;
        if !context.output.json {
            context.output.text(&pong(&report))?;
            context.output.flush()?;
        }
        reports.push(report);
    }
    summary(context.output, &reports)
}

fn pong(report: &PingReport) -> String {
    let way = match (&report.address, &report.onion, &report.relay) {
        (Some(address), _, _) => format!(" at {address}"),
        (None, Some(onion), _) => format!(" at {}", format::clean(onion)),
        (None, None, Some(relay)) => format!(" through {}", format::clean(relay)),
        (None, None, None) if report.tor => " through Tor".to_owned(),
        (None, None, None) => String::new(),
    };
    let connected = report
        .connect_ms
        .map_or_else(String::new, |time| format!(", connected in {time:.1} ms"));
    format!(
        "{}{way}: {:.2} ms{connected}\n",
        format::clean(&report.name),
        report.rtt_ms
    )
}

fn summary(output: &mut Output, reports: &[PingReport]) -> Result<(), CliError> {
    let times = || reports.iter().map(|report| report.rtt_ms);
    let least = times().fold(f64::INFINITY, f64::min);
    let most = times().fold(0.0, f64::max);
    let count = u32::try_from(reports.len()).unwrap_or(u32::MAX);
    let mean = times().sum::<f64>() / f64::from(count.max(1));
    if output.json {
        return output.value(&json!({
            "pings": reports, "min_ms": least, "mean_ms": mean, "max_ms": most,
        }));
    }
    if count > 1 {
        let text = format!("{count} pings: least {least:.2}, mean {mean:.2}, most {most:.2} ms\n");
        output.text(&text)?;
    }
    Ok(())
}

pub(super) fn netcheck(context: &mut Context<'_>) -> Result<(), CliError> {
    let call = Call::Netcheck(NoParams {});
    let report: NetReport = context.connect()?.report(&call)?;
    context
        .output
        .report(&report, |style| render_checks(&report, style))?;
    let bad = report.checks.iter().filter(|check| !check.ok).count();
    if bad == 0 {
        return Ok(());
    }
    if context.output.json {
        return Err(CliError::Told);
    }
    let all = report.checks.len();
    Err(CliError::Failed(format!("{bad} of {all} checks failed")))
}

fn render_checks(report: &NetReport, style: Style) -> String {
    let mut table = Table::new(&["CHECK", "NAME", "RESULT", "~FOUND"]);
    for check in &report.checks {
        table.row(row(check));
    }
    let mut text = table.render(style);
    for check in &report.checks {
        if let Some(hint) = &check.hint {
            let (kind, name) = (format::clean(&check.kind), format::clean(&check.name));
            text += &format!("{kind} {name}: {}\n", format::clean(hint));
        }
    }
    text
}

fn row(check: &Check) -> [Cell; 4] {
    let result = if check.ok {
        Cell::toned(Tone::Good, "ok")
    } else {
        Cell::toned(Tone::Bad, "FAILED")
    };
    [
        check.kind.as_str().into(),
        check.name.as_str().into(),
        result,
        check.detail.as_str().into(),
    ]
}

#[cfg(test)]
mod tests {
    use wormholes_proto::NodeId;

    use super::*;

    #[test]
    fn a_ping_says_which_way_it_went() {
        let report = PingReport {
            name: "bob".to_owned(),
            id: NodeId::from_bytes([1; 32]),
            rtt_ms: 12.0,
            address: None,
            tor: true,
            onion: None,
            relay: None,
            connect_ms: None,
        };
        assert_eq!(pong(&report), "bob through Tor: 12.00 ms\n");
        let onion = PingReport {
            onion: Some("bob.onion:4433".to_owned()),
            connect_ms: Some(900.0),
            ..report
        };
        let told = "bob at bob.onion:4433: 12.00 ms, connected in 900.0 ms\n";
        assert_eq!(pong(&onion), told);
    }

    #[test]
    fn hints_follow_the_table() {
        let check = |name: &str, ok: bool, hint: Option<&str>| Check {
            kind: "peer".to_owned(),
            name: name.to_owned(),
            ok,
            detail: "found".to_owned(),
            hint: hint.map(str::to_owned),
        };
        let checks = vec![check("ada", true, None), check("bob", false, Some("do it"))];
        let expected = "\
CHECK  NAME  RESULT  FOUND
peer   ada   ok      found
peer   bob   FAILED  found
peer bob: do it
";
        let text = render_checks(&NetReport { checks }, Style::default());
        assert_eq!(text, expected);
    }
}
