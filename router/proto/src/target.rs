//! Where a flow wants to go, as it came in: a name is never resolved here.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use thiserror::Error;

use crate::wire::{Reader, WireError, Writer};

/// Bytes of a DNS name in text, hence at most 127 labels (RFC 1035, section 2.3.4).
pub const MAX_NAME_BYTES: usize = 253;

/// Suffixes that never leave in clear: DESIGN "Names"; RFC 7686, RFC 6762, RFC 8375.
const SPECIAL_USE: [&str; 6] = ["onion", "i2p", "wh", "local", "internal", "home.arpa"];

/// A host as a program named it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name: lower case, punycode, no final dot, at most 253 bytes.
    Name(String),
    /// An address literal.
    Ip(IpAddr),
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The host.
    pub host: Host,
    /// The port; 0 stands for a node's own choice in `.wh` names only.
    pub port: u16,
}

/// The name of a service: 1 to 63 characters of `a-z`, `0-9` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName(String);

/// Text that names no target.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseTargetError {
    /// Neither a name nor an address.
    #[error("not a host name or an address")]
    Host,
    /// No port, or one outside 1 to 65535.
    #[error("expected host:port with a port from 1 to 65535")]
    Port,
    /// Not a service name.
    #[error("a service name has 1 to 63 characters of a-z, 0-9 and '-'")]
    Service,
}

/// Whether `name`, however it is spelt, or a parent of it must never go to an outside resolver or direct.
pub fn is_special_use(name: &str) -> bool {
    // A program that embeds a node may make a `Host::Name` without `Host::parse`.
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    SPECIAL_USE.iter().any(|suffix| {
        name.strip_suffix(suffix)
            .is_some_and(|head| head.is_empty() || head.ends_with('.'))
    })
}

impl Host {
    /// Reads a name or an address literal (IPv6 with or without brackets).
    ///
    /// # Errors
    /// [`ParseTargetError::Host`] when it is neither. Spellings that some resolvers take for
    /// addresses (`0x7f.1`, `2130706433`, `010.0.0.1`) are refused here, so that what is checked
    /// is what is dialled.
    pub fn parse(text: &str) -> Result<Self, ParseTargetError> {
        let bare = text
            .strip_prefix('[')
            .and_then(|t| t.strip_suffix(']'))
            .unwrap_or(text);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(Self::Ip(ip));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let name = idna::domain_to_ascii(name).map_err(|_| ParseTargetError::Host)?;
        let valid = !name.is_empty()
            && name.len() <= MAX_NAME_BYTES
            && name.split('.').all(is_label)
            && !looks_numeric(&name);
        if valid {
            Ok(Self::Name(name))
        } else {
            Err(ParseTargetError::Host)
        }
    }

    /// The name, when it is one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Ip(_) => None,
        }
    }
}

/// A label as DNS allows it in host names, and `_`, which services use.
fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
}

/// A last label that inet_aton(3) would read as a number makes the whole an address (WHATWG URL,
/// "ends in a number").
fn looks_numeric(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    last.bytes().all(|b| b.is_ascii_digit())
        || last
            .strip_prefix("0x")
            .is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

impl Target {
    /// Joins a host and a port.
    pub fn new(host: Host, port: u16) -> Self {
        Self { host, port }
    }

    /// Appends: kind (1 name, 4, 6), the host, the port.
    pub fn encode(&self, writer: &mut Writer) {
        match &self.host {
            Host::Name(name) => writer.u8(1).short_bytes(name.as_bytes()),
            Host::Ip(IpAddr::V4(ip)) => writer.u8(4).bytes(&ip.octets()),
            Host::Ip(IpAddr::V6(ip)) => writer.u8(6).bytes(&ip.octets()),
        };
        writer.u16(self.port);
    }

    /// Reads what [`Target::encode`] wrote.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are cut or the name is no name.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let host = match reader.u8("host kind")? {
            1 => decode_name(reader)?,
            4 => Host::Ip(IpAddr::from(reader.array::<4>("address")?)),
            6 => Host::Ip(IpAddr::from(reader.array::<16>("address")?)),
            _ => return Err(WireError::Invalid("host kind")),
        };
        Ok(Self {
            host,
            port: reader.u16("port")?,
        })
    }
}

/// Takes only the one spelling that [`Host::parse`] yields, so that two nodes never differ on it.
fn decode_name(reader: &mut Reader<'_>) -> Result<Host, WireError> {
    let bytes = reader.short_bytes("host name")?;
    let text = std::str::from_utf8(bytes).map_err(|_| WireError::Invalid("host name"))?;
    match Host::parse(text) {
        Ok(Host::Name(name)) if name == text => Ok(Host::Name(name)),
        Ok(_) | Err(_) => Err(WireError::Invalid("host name")),
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: Host::Ip(address.ip()),
            port: address.port(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            host @ (Host::Name(_) | Host::Ip(_)) => write!(f, "{host}:{}", self.port),
        }
    }
}

impl FromStr for Target {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or(ParseTargetError::Port)?;
        if host.contains(':') && !host.starts_with('[') {
            return Err(ParseTargetError::Port);
        }
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or(ParseTargetError::Port)?;
        Ok(Self {
            host: Host::parse(host)?,
            port,
        })
    }
}

impl ServiceName {
    /// Where every node takes the trunks of plugins; no other service is called so.
    pub fn trunk() -> Self {
        Self("wormholes-trunk".to_owned())
    }

    /// Whether it is [`ServiceName::trunk`].
    pub fn is_trunk(&self) -> bool {
        *self == Self::trunk()
    }

    /// Checks a name.
    ///
    /// # Errors
    /// [`ParseTargetError::Service`] when it is empty, too long, or holds another character.
    pub fn parse(text: &str) -> Result<Self, ParseTargetError> {
        let valid = is_label(text) && !text.contains('_');
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseTargetError::Service)
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<&str>) {
        assert_eq!(
            text.parse::<Target>()
                .ok()
                .map(|t| t.to_string())
                .as_deref(),
            expected,
            "{text}"
        );
    }

    #[test]
    fn targets_have_one_spelling() {
        check("Example.COM.:80", Some("example.com:80"));
        check("bücher.example:443", Some("xn--bcher-kva.example:443"));
        check("[::1]:22", Some("[::1]:22"));
        check("10.0.0.1:1", Some("10.0.0.1:1"));
        check("_xmpp._tcp.example:5222", Some("_xmpp._tcp.example:5222"));
    }

    #[test]
    fn spellings_that_hide_an_address_are_refused() {
        for host in [
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "127.1",
            "1.2.3.4.5",
            "a.0x1",
            "",
        ] {
            check(&format!("{host}:80"), None);
        }
        check("::1:80", None);
        check("host", None);
        check("host:0", None);
        check("host:65536", None);
        check("a b:80", None);
    }

    #[test]
    fn special_use_names_match_whole_labels() {
        for name in [
            "x.onion",
            "onion",
            "a.b.i2p",
            "shop.bob.wh",
            "printer.local",
            "1.home.arpa",
            "X.Onion",
            "x.onion.",
        ] {
            assert!(is_special_use(name), "{name}");
        }
        for name in ["onion.example", "notonion", "arpa", "xhome.arpa"] {
            assert!(!is_special_use(name), "{name}");
        }
    }

    #[test]
    fn the_wire_takes_only_the_canonical_name() {
        let target: Target = "a.example:80".parse().unwrap();
        let mut writer = Writer::new();
        target.encode(&mut writer);
        let bytes = writer.into_vec();
        assert_eq!(Target::decode(&mut Reader::new(&bytes)), Ok(target));
        for name in ["A.example", "a.example.", "127.0.0.1", "0x7f"] {
            let mut writer = Writer::new();
            writer.u8(1).short_bytes(name.as_bytes()).u16(80);
            let bytes = writer.into_vec();
            let read = Target::decode(&mut Reader::new(&bytes));
            assert_eq!(read, Err(WireError::Invalid("host name")), "{name}");
        }
    }
}
