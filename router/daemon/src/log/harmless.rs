//! What a stranger may read: numbers, yes and no, and words of this program. A text is hidden unless
//! it is on a list, so that what is new is hidden until somebody thought about it.

use std::{borrow::Cow, net::SocketAddr};

use serde_json::{Map, Value};

/// What stands for a text that is not told.
pub(crate) const HIDDEN: &str = "[hidden]";

/// Values of config.toml, of reports and of log fields that nobody chose freely.
const WORDS: &[&str] = &[
    "0600",
    "0640",
    "0660",
    "0666",
    "absent",
    "accept",
    "added",
    "block",
    "blocked",
    "busy",
    "config",
    "crowded",
    "debug",
    "direct",
    "disabled",
    "embed",
    "error",
    "exit",
    "failed",
    "flows",
    "gone",
    "hop",
    "http",
    "i2p",
    "info",
    "init",
    "json",
    "kept",
    "learned",
    "name",
    "no-answer",
    "no-candidates",
    "no-circuit",
    "none",
    "not-dialable",
    "observer",
    "ok",
    "on_event",
    "onion",
    "operator",
    "peer-down",
    "peer-up",
    "plugin",
    "port-changes",
    "public",
    "publishing",
    "quic",
    "reachable",
    "ready",
    "refused",
    "relay",
    "resolve",
    "route",
    "service",
    "socks",
    "socks5",
    "spare",
    "starting",
    "stopped",
    "tcp",
    "text",
    "timeout",
    "tor",
    "trace",
    "udp",
    "unreachable",
    "warn",
];

/// Tables whose keys are names that somebody gave.
const NAMED: [&str; 4] = ["users", "sets", "plugin", "onion_clients"];

/// A text, or what stands for it.
pub(crate) fn text(text: &str) -> Cow<'static, str> {
    if let Some(word) = WORDS.iter().find(|word| **word == text) {
        return Cow::Borrowed(word);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Cow::Borrowed(kind_of(&address));
    }
    // As the standard library ends what the system said; the number says it without names.
    let number = text.rsplit_once("(os error ").and_then(|(_, end)| {
        let (number, _) = end.split_once(')')?;
        number.parse::<u16>().ok()
    });
    number.map_or(Cow::Borrowed(HIDDEN), |number| {
        Cow::Owned(format!("[hidden, os error {number}]"))
    })
}

/// A report with every text in it as [`text`] tells it. Its keys are told as they are, except those
/// of tables of names.
pub(crate) fn report(value: Value) -> Value {
    match value {
        Value::String(said) => Value::String(text(&said).into_owned()),
        Value::Array(values) => values.into_iter().map(report).collect(),
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(field).collect::<Map<_, _>>())
        }
        number @ (Value::Null | Value::Bool(_) | Value::Number(_)) => number,
    }
}

fn field((key, value): (String, Value)) -> (String, Value) {
    let names = value.as_object().filter(|_| NAMED.contains(&key.as_str()));
    let told = match names {
        Some(names) => Value::String(format!("[{} hidden]", names.len())),
        None => report(value),
    };
    (key, told)
}

fn kind_of(address: &SocketAddr) -> &'static str {
    let ip = address.ip();
    match (address, ip.is_loopback(), ip.is_unspecified()) {
        (SocketAddr::V4(_), true, _) => "[IPv4, loopback]",
        (SocketAddr::V4(_), _, true) => "[IPv4, any]",
        (SocketAddr::V4(_), false, false) => "[IPv4]",
        (SocketAddr::V6(_), true, _) => "[IPv6, loopback]",
        (SocketAddr::V6(_), _, true) => "[IPv6, any]",
        (SocketAddr::V6(_), false, false) => "[IPv6]",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_words_of_the_program_and_numbers_are_told() {
        for (said, told) in [
            ("socks5", "socks5"),
            ("Socks5", "[hidden]"),
            ("socks5 of alice", "[hidden]"),
            ("4711", "[hidden]"),
            ("", "[hidden]"),
            ("192.0.2.1:80", "[IPv4]"),
            ("[::]:4433", "[IPv6, any]"),
            ("127.0.0.1:1080", "[IPv4, loopback]"),
            ("bob.example:80", "[hidden]"),
            ("cannot dial bob (os error 111)", "[hidden, os error 111]"),
            ("(os error bob)", "[hidden]"),
        ] {
            assert_eq!(text(said), told, "{said}");
        }
    }

    #[test]
    fn reports_keep_their_shape() {
        let said = json!({
            "kind": "socks5", "label": "work", "users": {"alice": "pw"}, "n": 7, "on": true,
            "none": null, "list": [{"target": "bob.example:80"}],
        });
        let told = json!({
            "kind": "socks5", "label": HIDDEN, "users": "[1 hidden]", "n": 7, "on": true,
            "none": null, "list": [{"target": HIDDEN}],
        });
        assert_eq!(report(said), told);
    }
}
