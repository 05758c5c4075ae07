//! Values as people read them.

use wormholes_proto::{
    NodeId,
    control::{PathNode, RuleName, ScriptDiagnostic},
};

/// As many as the daemon takes in its own texts.
const SHORT_ID_CHARS: usize = 8;

/// Text from elsewhere without what would steer the terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// `1.5 MiB`
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = "KiB";
    for larger in UNITS.iter().skip(1) {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    format!("{value:.1} {unit}")
}

/// `3d 4h`, `4h 5m`, `5m 6s`, `6s`
pub(crate) fn seconds(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m {rest}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// `250 ms`, then as [`seconds`]
pub(crate) fn milliseconds(count: u64) -> String {
    if count < 10_000 {
        format!("{count} ms")
    } else {
        seconds(count / 1000)
    }
}

/// `2026-11-21 05:17:35Z`, by the civil calendar (Hinnant, "chrono-compatible low-level date
/// algorithms").
pub(crate) fn utc(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let days = seconds / 86_400 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

/// `socks5`; `socks5, udp` where the entrance does not say it
pub(crate) fn entrance(kind: &str, network: &str) -> String {
    match network {
        "udp" if kind != network => format!("{kind}, {network}"),
        _ => kind.to_owned(),
    }
}

/// `default.rhai:12`, or `default`
pub(crate) fn rule(rule: Option<&RuleName>) -> String {
    rule.map_or_else(
        || "default".to_owned(),
        |rule| format!("{}:{}", clean(&rule.script), rule.line),
    )
}

/// `default.rhai:12:5: message`
pub(crate) fn diagnostic(diagnostic: &ScriptDiagnostic) -> String {
    clean(&diagnostic.to_string())
}

/// `bob (yhdoqba8…)`, or the beginning of the id where that is the name.
pub(crate) fn node(name: &str, id: &NodeId) -> String {
    let id = id.to_string();
    let id: String = id.chars().take(SHORT_ID_CHARS).chain(['…']).collect();
    if name == id {
        id
    } else {
        format!("{} ({id})", clean(name))
    }
}

/// `a > b > c`
pub(crate) fn path(nodes: &[PathNode]) -> String {
    let names: Vec<String> = nodes.iter().map(|node| clean(&node.name)).collect();
    names.join(" > ")
}

/// `a, b, c`, or `none` when there is nothing.
pub(crate) fn list<T: ToString>(items: impl IntoIterator<Item = T>, none: &str) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() {
        none.to_owned()
    } else {
        items.join(", ")
    }
}

/// At most `columns` characters; what is longer ends in `…`.
pub(crate) fn cut(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    let kept: String = text.chars().take(columns.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// `-` for what is not there.
pub(crate) fn or_dash(text: Option<&str>) -> String {
    text.map_or_else(|| "-".to_owned(), clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_572_864, "1.5 MiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        for (count, text) in [
            (9, "9s"),
            (69, "1m 9s"),
            (3_700, "1h 1m"),
            (90_000, "1d 1h"),
        ] {
            assert_eq!(seconds(count), text);
        }
        assert_eq!(milliseconds(9_999), "9999 ms");
        assert_eq!(milliseconds(10_000), "10s");
    }

    #[test]
    fn dates_are_of_the_civil_calendar() {
        for (unix_seconds, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_399, "2000-02-28 23:59:59Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (1_795_238_255, "2026-11-21 05:17:35Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(utc(unix_seconds * 1000), text);
        }
    }

    #[test]
    fn nothing_that_others_wrote_steers_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\r\n"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}");
    }
}
