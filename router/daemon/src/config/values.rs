//! Values of config.toml that have a text form of their own.

use std::{fmt, net::SocketAddr, str::FromStr};

use thiserror::Error;
use wormholes_proto::CarrierKind;

use super::{ExitRule, hint::suggestion};

/// Words of tracing for how much is said, the least first.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Text that is no exit rule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("expected block:ports, like \"0.0.0.0/0:80,443\" or \"::/0:1024-65535\"")]
pub struct ParseExitRuleError;

impl FromStr for ExitRule {
    type Err = ParseExitRuleError;

    /// `address/prefix`, then for some ports only `:` and ports or ranges with commas.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, rest) = text.split_once('/').ok_or(ParseExitRuleError)?;
        let (prefix, ports) = match rest.split_once(':') {
            Some((prefix, ports)) => (prefix, Some(ports)),
            None => (rest, None),
        };
        let net = format!("{address}/{prefix}");
        let net = net
            .parse::<ipnet::IpNet>()
            .map_err(|_| ParseExitRuleError)?;
        let ports = ports.map_or(Ok(Vec::new()), |ports| {
            ports.split(',').map(port_range).collect()
        });
        Ok(Self {
            net: net.trunc(),
            ports: ports?,
        })
    }
}

impl ExitRule {
    /// Whether the rule lets `address` be dialled.
    pub fn allows(&self, address: SocketAddr) -> bool {
        let port = address.port();
        let port_allowed = self.ports.is_empty()
            || self
                .ports
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&port));
        port_allowed && self.net.contains(&address.ip())
    }
}

impl fmt::Display for ExitRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.net.fmt(f)?;
        for (i, (first, last)) in self.ports.iter().enumerate() {
            f.write_str(if i == 0 { ":" } else { "," })?;
            if first == last {
                first.fmt(f)?;
            } else {
                write!(f, "{first}-{last}")?;
            }
        }
        Ok(())
    }
}

fn port_range(text: &str) -> Result<(u16, u16), ParseExitRuleError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0);
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        _ => Err(ParseExitRuleError),
    }
}

/// A carrier by its name.
pub(super) fn carrier(text: &str) -> Result<CarrierKind, &'static str> {
    CarrierKind::from_name(text).ok_or("expected \"quic\" or \"tcp\"")
}

/// A file mode in octal, like `0600`.
pub(super) fn file_mode(text: &str) -> Result<u32, &'static str> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| mode & !0o777 == 0 && mode & 0o600 == 0o600)
        .ok_or("expected an octal mode that lets the owner read and write, like \"0600\"")
}

/// A level, or a filter of tracing: directives with commas between. Tracing takes a word that is
/// no level for the name of a module, shows all of that one and nothing of the rest.
pub(super) fn log_level(text: &str) -> Result<String, String> {
    let level = |directive: &str| {
        let level = directive
            .rsplit_once('=')
            .map_or(directive, |(_, level)| level);
        level.trim().to_ascii_lowercase()
    };
    let mut levels = text.split(',').map(level);
    if let Some(unknown) = levels.find(|level| !LEVELS.contains(&level.as_str())) {
        return Err(format!(
            "`{unknown}` is no level ({}), alone or in a filter like \"warn,wormholed=debug\"{}",
            LEVELS.join(", "),
            suggestion(&unknown, LEVELS.into_iter()),
        ));
    }
    tracing_subscriber::EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|_| {
            "expected a level like \"info\" or a filter like \"warn,wormholed=debug\"".to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<&str>) {
        let rule = text.parse::<ExitRule>().ok().map(|rule| rule.to_string());
        assert_eq!(rule.as_deref(), expected, "{text}");
    }

    #[test]
    fn exit_rules_have_a_block_and_ports() {
        check("0.0.0.0/0:80,443", Some("0.0.0.0/0:80,443"));
        check("10.1.2.3/8", Some("10.0.0.0/8"));
        check("::/0:1-1023,8080", Some("::/0:1-1023,8080"));
        check("2001:db8::/32:443", Some("2001:db8::/32:443"));
        for text in [
            "",
            "0.0.0.0",
            "0.0.0.0/33",
            "::/0:0",
            "::/0:9-1",
            "::/0:x",
            "a/0",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn exit_rules_allow_what_is_within_them() {
        let rule: ExitRule = "192.0.2.0/24:80,8000-8010".parse().unwrap();
        let allows = |address: &str| rule.allows(address.parse().unwrap());
        assert!(allows("192.0.2.9:80") && allows("192.0.2.9:8010"));
        assert!(!allows("192.0.2.9:81") && !allows("192.0.3.1:80"));
    }

    #[test]
    fn a_log_level_is_a_level_or_a_filter_of_levels() {
        for text in [
            "info",
            "WARN",
            "off",
            "warn,wormholed=debug",
            "info,script=trace",
            "wormholed[flow{id=7}]=trace",
        ] {
            assert_eq!(log_level(text).as_deref(), Ok(text));
        }
        for (text, said) in [
            ("inof", "`inof` is no level (off, error, "),
            ("inof", "debug\"; did you mean `info`?"),
            ("warning", "; did you mean `warn`?"),
            ("verbose", "debug\""),
            ("wormholed", "`wormholed` is no level"),
            ("info,wormholed=debgu", "; did you mean `debug`?"),
            ("info,quinn", "`quinn` is no level"),
            ("info,", "`` is no level"),
            ("", "`` is no level"),
            ("a=b=c", "`c` is no level"),
        ] {
            let error = log_level(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn modes_are_octal_and_the_owners() {
        assert_eq!(file_mode("0660"), Ok(0o660));
        for text in ["", "0999", "0400", "1600", "rw"] {
            assert!(file_mode(text).is_err(), "{text}");
        }
    }
}
