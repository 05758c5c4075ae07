//! Destinations: whom I2P's streams lead to, and the keys of an own one, as I2P writes them.
//!
//! ```text
//! destination  encryption key 256, signing key 128, certificate: kind 1, length 2, so many bytes
//! keys         the destination, the secret encryption key, the secret signing key
//! ```
//! Both go as base64 with `-` and `~`. A destination's short name, `….b32.i2p`, is the SHA-256 of it.

use std::{fmt, sync::LazyLock};

use data_encoding::{BASE32_NOPAD, Encoding, Specification};
use ring::digest::{SHA256, digest};
use thiserror::Error;
use zeroize::Zeroizing;

/// Characters of keys as text; the longest kind that I2P has needs some three thousand.
pub const MAX_DESTINATION_KEYS_BYTES: usize = 4096;

/// The two keys.
const KEYS_BYTES: usize = 256 + 128;
/// Kind and length of the certificate.
const CERTIFICATE_HEAD_BYTES: usize = 3;
/// The shortest secret signing key, EdDSA's, and a secret encryption key of the same length.
const MIN_SECRET_BYTES: usize = 32 + 32;

const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-~";

/// The public part.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    text: String,
    short: String,
}

/// The secret part, and with it the public one. Wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct DestinationKeys {
    text: Zeroizing<String>,
    destination: Destination,
}

/// Text that is no destination, or no keys of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DestinationError {
    /// Not I2P's base64, or too much of it.
    #[error("not base64 as I2P writes it")]
    Base64,
    /// The bytes are too few or too many.
    #[error("not as long as it says")]
    Length,
}

impl Destination {
    /// Reads one.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub fn parse(text: &str) -> Result<Self, DestinationError> {
        let bytes = decode(text)?;
        if destination_bytes(&bytes)? != bytes.len() {
            return Err(DestinationError::Length);
        }
        Ok(Self::of(&bytes))
    }

    /// As I2P writes it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its name that no address book has to know: `….b32.i2p`.
    pub fn short_name(&self) -> &str {
        &self.short
    }

    fn of(bytes: &[u8]) -> Self {
        let hash = BASE32_NOPAD.encode(digest(&SHA256, bytes).as_ref());
        Self {
            text: base64().encode(bytes),
            short: format!("{}.b32.i2p", hash.to_ascii_lowercase()),
        }
    }
}

impl DestinationKeys {
    /// Reads keys.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub fn parse(text: &str) -> Result<Self, DestinationError> {
        let bytes = Zeroizing::new(decode(text)?);
        let public = destination_bytes(&bytes)?;
        let destination = bytes.get(..public).ok_or(DestinationError::Length)?;
        if bytes.len() < public + MIN_SECRET_BYTES {
            return Err(DestinationError::Length);
        }
        Ok(Self {
            text: Zeroizing::new(text.to_owned()),
            destination: Destination::of(destination),
        })
    }

    /// As I2P writes them: for the router, and the file that they are kept in.
    pub fn secret_text(&self) -> &str {
        &self.text
    }

    /// The public part.
    pub fn destination(&self) -> &Destination {
        &self.destination
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Destination").field(&self.short).finish()
    }
}

impl fmt::Debug for DestinationKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DestinationKeys(…)")
    }
}

fn decode(text: &str) -> Result<Vec<u8>, DestinationError> {
    if text.len() > MAX_DESTINATION_KEYS_BYTES {
        return Err(DestinationError::Base64);
    }
    let decoded = base64().decode(text.as_bytes());
    decoded.map_err(|_| DestinationError::Base64)
}

/// How many of `bytes` are the destination that they begin with.
fn destination_bytes(bytes: &[u8]) -> Result<usize, DestinationError> {
    let head = bytes.get(KEYS_BYTES..KEYS_BYTES + CERTIFICATE_HEAD_BYTES);
    let Some([_, high, low]) = head else {
        return Err(DestinationError::Length);
    };
    let certificate = u16::from_be_bytes([*high, *low]);
    let whole = KEYS_BYTES + CERTIFICATE_HEAD_BYTES + usize::from(certificate);
    if bytes.len() < whole {
        return Err(DestinationError::Length);
    }
    Ok(whole)
}

#[expect(clippy::expect_used, reason = "the alphabet is a constant")]
fn base64() -> &'static Encoding {
    static ENCODING: LazyLock<Encoding> = LazyLock::new(|| {
        let mut specification = Specification::new();
        specification.symbols.push_str(ALPHABET);
        specification.padding = Some('=');
        specification.encoding().expect("64 different symbols")
    });
    &ENCODING
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A destination with so many bytes of certificate, and so many secret bytes behind it.
    fn bytes(certificate: u16, secret: usize) -> Vec<u8> {
        let mut bytes = vec![7; KEYS_BYTES];
        bytes.push(5);
        bytes.extend(certificate.to_be_bytes());
        bytes.resize(bytes.len() + usize::from(certificate) + secret, 9);
        bytes
    }

    #[test]
    fn a_destination_is_as_long_as_its_certificate_says() {
        for certificate in [0, 4, 400] {
            let text = base64().encode(&bytes(certificate, 0));
            let destination = Destination::parse(&text).unwrap();
            assert_eq!(destination.as_str(), text);
        }
        for wrong in [bytes(4, 1), bytes(4, 0)[..390].to_vec(), vec![7; 386]] {
            let text = base64().encode(&wrong);
            assert_eq!(Destination::parse(&text), Err(DestinationError::Length));
        }
        for text in ["+/", "AAA", "A A=", "ä", &"A".repeat(5000)] {
            assert_eq!(Destination::parse(text), Err(DestinationError::Base64));
        }
    }

    #[test]
    fn keys_hold_their_destination_and_are_not_shown() {
        let text = base64().encode(&bytes(4, 288));
        let keys = DestinationKeys::parse(&text).unwrap();
        assert_eq!(keys.secret_text(), text);
        let public = base64().encode(&bytes(4, 0));
        assert_eq!(keys.destination().as_str(), public);
        assert_eq!(format!("{keys:?}"), "DestinationKeys(…)");
        for secret in [0, 63] {
            let text = base64().encode(&bytes(4, secret));
            assert_eq!(DestinationKeys::parse(&text), Err(DestinationError::Length));
        }
    }

    /// Frozen: as i2pd 2.45 shows it for this destination.
    #[test]
    fn the_short_name_is_the_hash() {
        let text = include_str!("vector.txt");
        let (destination, name) = text.trim_end().split_once(' ').unwrap();
        let destination = Destination::parse(destination).unwrap();
        assert_eq!(destination.short_name(), name);
    }
}
