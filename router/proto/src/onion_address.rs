//! Where an onion service of Tor is called: a name that is its key, and a port.
//!
//! Only the shape is checked here. Whether the key in it is one, Tor finds out.

use std::{
    fmt,
    net::{Ipv6Addr, SocketAddr},
    str::FromStr,
};

use data_encoding::BASE32_NOPAD;
use thiserror::Error;

/// A key, a checksum of two bytes, and the version (Tor's rend-spec-v3, section 6).
const NAME_BYTES: usize = 35;
const VERSION: u8 = 3;
/// The discard-only block of RFC 6666, 100::/64: what is in there is no host, so that nothing sent
/// there by mistake reaches anybody.
const PLACEHOLDER_SEGMENTS: [u16; 4] = [0x100, 0, 0, 0];

/// The name of an onion service, and one of its ports.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OnionAddress {
    /// 56 small letters and digits, then `.onion`.
    host: String,
    port: u16,
}

/// Text that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected 56 letters and digits, `.onion` and a port, like \"….onion:4433\"")]
pub struct ParseOnionAddressError;

impl OnionAddress {
    /// The name, with `.onion`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// An address that stands for this one where only an address of the internet fits. Nothing is
    /// ever sent there.
    pub fn placeholder(&self) -> SocketAddr {
        let bytes = key_bytes(&self.host).unwrap_or_default();
        let segment = |index: usize| {
            let byte = |index| u16::from(bytes.get(index).copied().unwrap_or_default());
            byte(index * 2) << 8 | byte(index * 2 + 1)
        };
        let [a, b, c, d] = PLACEHOLDER_SEGMENTS;
        let ip = Ipv6Addr::new(a, b, c, d, segment(0), segment(1), segment(2), segment(3));
        SocketAddr::new(ip.into(), self.port)
    }
}

/// Whether `address` may stand for an onion address.
pub fn is_placeholder(address: &SocketAddr) -> bool {
    match address {
        SocketAddr::V4(_) => false,
        SocketAddr::V6(v6) => v6.ip().segments().starts_with(&PLACEHOLDER_SEGMENTS),
    }
}

impl FromStr for OnionAddress {
    type Err = ParseOnionAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or(ParseOnionAddressError)?;
        let host = host.to_ascii_lowercase();
        let port = port.parse().ok().filter(|port| *port != 0);
        key_bytes(&host).ok_or(ParseOnionAddressError)?;
        Ok(Self {
            host,
            port: port.ok_or(ParseOnionAddressError)?,
        })
    }
}

impl fmt::Display for OnionAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// What the name of a service of the version that there is says.
fn key_bytes(host: &str) -> Option<Vec<u8>> {
    let name = host.strip_suffix(".onion")?.to_ascii_uppercase();
    let bytes = BASE32_NOPAD.decode(name.as_bytes()).ok()?;
    (bytes.len() == NAME_BYTES && bytes.last() == Some(&VERSION)).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(key: u8) -> String {
        let mut bytes = [key; NAME_BYTES];
        bytes[NAME_BYTES - 1] = VERSION;
        BASE32_NOPAD.encode(&bytes).to_ascii_lowercase() + ".onion"
    }

    #[test]
    fn an_onion_address_is_a_name_of_the_version_that_there_is_and_a_port() {
        let text = format!("{}:4433", name(7));
        let address: OnionAddress = text.parse().unwrap();
        assert_eq!(address.to_string(), text);
        assert_eq!((address.host(), address.port()), (&*name(7), 4433));
        assert_eq!(
            text.to_ascii_uppercase().replace("ONION", "onion").parse(),
            Ok(address)
        );
        let old = format!("{}:4433", "a".repeat(16) + ".onion");
        for bad in [
            "",
            "x.onion:1",
            &name(7),
            &format!("{}:0", name(7)),
            &old,
            &text[1..],
        ] {
            assert_eq!(
                bad.parse::<OnionAddress>(),
                Err(ParseOnionAddressError),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_placeholder_is_no_host_and_stands_for_one_address() {
        let address = |key, port| {
            format!("{}:{port}", name(key))
                .parse::<OnionAddress>()
                .unwrap()
        };
        let placeholder = address(7, 4433).placeholder();
        assert_eq!(placeholder.to_string(), "[100::707:707:707:707]:4433");
        assert!(is_placeholder(&placeholder));
        assert_ne!(placeholder, address(7, 4434).placeholder());
        assert_ne!(placeholder, address(8, 4433).placeholder());
        assert!(!is_placeholder(&"[2001:db8::1]:4433".parse().unwrap()));
        assert!(!is_placeholder(&"127.0.0.1:4433".parse().unwrap()));
    }
}
