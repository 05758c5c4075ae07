//! What a client asks of the router: nothing that a program or a script chose goes into a line but
//! what was checked here.

use std::fmt;

use super::destination::{Destination, DestinationKeys};
use crate::target::Host;

/// Hops of one tunnel: what routers build at most.
pub const MAX_TUNNEL_LENGTH: u8 = 7;
/// Tunnels of one direction: what routers build at most.
pub const MAX_TUNNEL_QUANTITY: u8 = 16;

/// What one connection to the router is for.
#[derive(Debug, Clone)]
pub enum SamRequest {
    /// Nothing: whether a router is there, and speaks.
    Greeting,
    /// A session: it lives as long as the connection.
    Session {
        /// Names it in other requests.
        id: SessionId,
        /// Whose it is; none has the router make a destination that ends with it.
        keys: Option<DestinationKeys>,
        /// Its tunnels.
        tunnels: TunnelSettings,
    },
    /// Nothing but whether a destination is found, as anybody else would look for it.
    Lookup {
        /// Its name, or its short name.
        name: I2pName,
    },
    /// A stream to somebody.
    Connect {
        /// From this session.
        session: SessionId,
        /// Whom the router finds: by its address book, or by the destination's short name.
        to: I2pName,
        /// What the other side may tell its services apart by.
        port: u16,
    },
    /// A stream from whoever calls next.
    Accept {
        /// At this session.
        session: SessionId,
    },
}

/// The name of a session; who knows it may use the session.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SessionId(String);

/// A name that ends with `.i2p`, in small letters.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct I2pName(String);

/// How the tunnels of a session are, in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TunnelSettings {
    /// Hops of each, 0 to [`MAX_TUNNEL_LENGTH`].
    pub length: u8,
    /// How many stand at once in each direction, 1 to [`MAX_TUNNEL_QUANTITY`].
    pub quantity: u8,
}

impl SessionId {
    /// Makes one that nobody guesses, of random bytes.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        let id = data_encoding::HEXLOWER.encode(&bytes);
        Self(format!("wormholes-{id}"))
    }
}

impl I2pName {
    /// The name of `host`, where I2P has it.
    pub fn of(host: &Host) -> Option<Self> {
        let name = host.name()?;
        let is_plain = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.')
        };
        let label = name.strip_suffix(".i2p")?;
        (!label.is_empty() && name.bytes().all(is_plain)).then(|| Self(name.to_owned()))
    }

    /// The short name of a destination, by which everybody finds it.
    pub fn of_destination(destination: &Destination) -> Self {
        Self(destination.short_name().to_owned())
    }

    /// As the router is asked for it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SamRequest {
    /// The line. A router of before 3.2 knows no ports.
    pub(super) fn line(&self, knows_ports: bool) -> String {
        match self {
            Self::Greeting => String::new(),
            Self::Session { id, keys, tunnels } => session(id, keys.as_ref(), *tunnels),
            Self::Lookup { name } => format!("NAMING LOOKUP NAME={}\n", name.0),
            Self::Connect { session, to, port } => {
                let to_port = match knows_ports {
                    true => format!(" TO_PORT={port}"),
                    false => String::new(),
                };
                let (session, to) = (&session.0, &to.0);
                format!("STREAM CONNECT ID={session} DESTINATION={to} SILENT=false{to_port}\n")
            }
            Self::Accept { session } => {
                format!("STREAM ACCEPT ID={} SILENT=false\n", session.0)
            }
        }
    }

    /// What the router's answer begins with.
    pub(super) fn answer(&self) -> &'static str {
        match self {
            Self::Greeting => "HELLO REPLY",
            Self::Session { .. } => "SESSION STATUS",
            Self::Lookup { .. } => "NAMING REPLY",
            Self::Connect { .. } | Self::Accept { .. } => "STREAM STATUS",
        }
    }
}

/// New destinations sign with Ed25519 (type 7); lease sets are encrypted for X25519, and for
/// ElGamal where the other side knows no other.
fn session(id: &SessionId, keys: Option<&DestinationKeys>, tunnels: TunnelSettings) -> String {
    let destination = match keys {
        Some(keys) => keys.secret_text(),
        None => "TRANSIENT SIGNATURE_TYPE=7",
    };
    let TunnelSettings { length, quantity } = tunnels;
    let id = &id.0;
    format!(
        "SESSION CREATE STYLE=STREAM ID={id} DESTINATION={destination} inbound.length={length} \
         outbound.length={length} inbound.quantity={quantity} outbound.quantity={quantity} \
         i2cp.leaseSetEncType=4,0\n"
    )
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionId(…)")
    }
}

impl fmt::Debug for I2pName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("I2pName(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(host: Host, expected: Option<&str>) {
        let name = I2pName::of(&host);
        assert_eq!(name.as_ref().map(I2pName::as_str), expected, "{host}");
    }

    #[test]
    fn only_names_of_i2p_go_into_a_line() {
        for name in ["a.i2p", "stats.example.i2p", "abc234.b32.i2p"] {
            check(Host::parse(name).unwrap(), Some(name));
        }
        for other in ["i2p", "a.onion", "a.example", "127.0.0.1", "a.i2p.example"] {
            check(Host::parse(other).unwrap(), None);
        }
        // A program that embeds a node may make such a host.
        for name in [
            "a b.i2p",
            "a\nHELLO.i2p",
            "a=b.i2p",
            ".i2p",
            "A.i2p",
            "\".i2p",
        ] {
            check(Host::Name(name.to_owned()), None);
        }
    }

    /// Frozen: routers that nobody here wrote read these lines.
    #[test]
    fn requests_keep_their_lines() {
        let session = SessionId::from_random([0xa5; 16]);
        let id = format!("ID=wormholes-{}", "a5".repeat(16));
        let tunnels = TunnelSettings {
            length: 2,
            quantity: 3,
        };
        let create = SamRequest::Session {
            id: session.clone(),
            keys: None,
            tunnels,
        };
        let line = format!(
            "SESSION CREATE STYLE=STREAM {id} DESTINATION=TRANSIENT SIGNATURE_TYPE=7 \
             inbound.length=2 outbound.length=2 inbound.quantity=3 outbound.quantity=3 \
             i2cp.leaseSetEncType=4,0\n"
        );
        assert_eq!(create.line(false), line);
        let connect = SamRequest::Connect {
            session: session.clone(),
            to: I2pName::of(&Host::parse("a.i2p").unwrap()).unwrap(),
            port: 80,
        };
        let line = format!("STREAM CONNECT {id} DESTINATION=a.i2p SILENT=false");
        assert_eq!(connect.line(false), format!("{line}\n"));
        assert_eq!(connect.line(true), format!("{line} TO_PORT=80\n"));
        let lookup = SamRequest::Lookup {
            name: I2pName::of(&Host::parse("a.i2p").unwrap()).unwrap(),
        };
        assert_eq!(lookup.line(true), "NAMING LOOKUP NAME=a.i2p\n");
        let accept = SamRequest::Accept { session };
        assert_eq!(
            accept.line(true),
            format!("STREAM ACCEPT {id} SILENT=false\n")
        );
        let shown = format!("{connect:?}");
        assert!(
            !shown.contains("a.i2p") && !shown.contains("a5a5"),
            "{shown}"
        );
    }
}
