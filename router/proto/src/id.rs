//! The name of a node: its Ed25519 public key.

use std::{fmt, str::FromStr, sync::LazyLock};

use data_encoding::{Encoding, Specification};
use ring::signature::{ED25519, UnparsedPublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// Length of an Ed25519 signature (RFC 8032, section 5.1.6).
pub const SIGNATURE_BYTES: usize = 64;

/// 256 bits in groups of five make 52 characters.
const TEXT_CHARS: usize = 52;

/// A node id: an Ed25519 public key, printed as 52 characters of z-base-32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 32]);

/// Text that is not a node id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "not a node id: expected {TEXT_CHARS} characters of z-base-32 (ybndrfg8ejkmcpqxot1uwisza345h769)"
)]
pub struct ParseNodeIdError;

impl NodeId {
    /// Takes the 32 bytes of a public key.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the public key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether `signature` over `message` was made with this node's key.
    pub fn verifies(&self, message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }
}

#[expect(
    clippy::expect_used,
    reason = "the alphabet is a constant and every test would find it broken"
)]
pub(crate) fn zbase32() -> &'static Encoding {
    static ENCODING: LazyLock<Encoding> = LazyLock::new(|| {
        let mut spec = Specification::new();
        spec.symbols.push_str("ybndrfg8ejkmcpqxot1uwisza345h769");
        spec.encoding()
            .expect("z-base-32 is a valid base-32 alphabet")
    });
    &ENCODING
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&zbase32().encode(&self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

impl FromStr for NodeId {
    type Err = ParseNodeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = zbase32()
            .decode(text.as_bytes())
            .map_err(|_| ParseNodeIdError)?;
        bytes.try_into().map(Self).map_err(|_| ParseNodeIdError)
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_agree() {
        let id = NodeId::from_bytes([0xa5; 32]);
        let text = id.to_string();
        assert_eq!(text.len(), TEXT_CHARS);
        assert_eq!(text.parse(), Ok(id));
    }

    #[test]
    fn other_alphabets_lengths_and_spare_bits_are_refused() {
        for text in [
            "",
            "y",
            &"l".repeat(52),
            &"y".repeat(51),
            &"y".repeat(53),
            &"9".repeat(52),
        ] {
            assert_eq!(text.parse::<NodeId>(), Err(ParseNodeIdError), "{text}");
        }
    }
}
