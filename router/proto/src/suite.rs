//! Which cipher a Noise handshake and what follows it use, and the nonces that count under its keys.
//! X25519 and SHA-256 are the same in both suites.

use std::fmt;

use ring::aead::{self, Nonce};

/// A cipher suite. The number is the wire's and never changes meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Suite {
    /// AES-256-GCM: 6 to 8 GB/s a core where the processor has AES and carry-less multiplication.
    AesGcm = 1,
    /// ChaCha20-Poly1305: 1.4 to 2.6 GB/s a core on any processor, and free of table look-ups.
    ChaChaPoly = 2,
}

impl Suite {
    /// Every suite, the preferred first.
    pub const ALL: [Self; 2] = [Self::AesGcm, Self::ChaChaPoly];

    /// The wire number.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Reads a wire number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.number() == number)
    }

    /// What two nodes use, of which each is fastest with one: AES only where both have it.
    pub fn common(self, other: Self) -> Self {
        match (self, other) {
            (Self::AesGcm, Self::AesGcm) => Self::AesGcm,
            (Self::ChaChaPoly, _) | (_, Self::ChaChaPoly) => Self::ChaChaPoly,
        }
    }

    /// The faster suite on this processor. AES without hardware is slow, or leaks the key by time.
    pub fn fastest_here() -> Self {
        if processor_has_aes() {
            Self::AesGcm
        } else {
            Self::ChaChaPoly
        }
    }

    /// The cipher itself.
    pub(crate) fn aead(self) -> &'static aead::Algorithm {
        match self {
            Self::AesGcm => &aead::AES_256_GCM,
            Self::ChaChaPoly => &aead::CHACHA20_POLY1305,
        }
    }

    /// The suite's name in a Noise protocol name (Noise, section 12).
    pub(crate) const fn noise_name(self) -> &'static str {
        match self {
            Self::AesGcm => "AESGCM",
            Self::ChaChaPoly => "ChaChaPoly",
        }
    }
}

/// A nonce that counts: 4 zero bytes and the number, 8 bytes big-endian. No key may see a number
/// twice.
pub(crate) fn counter_nonce(number: u64) -> Nonce {
    let mut bytes = [0; aead::NONCE_LEN];
    if let Some(low) = bytes.last_chunk_mut() {
        *low = number.to_be_bytes();
    }
    Nonce::assume_unique_for_key(bytes)
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AesGcm => "aes-256-gcm",
            Self::ChaChaPoly => "chacha20-poly1305",
        })
    }
}

#[cfg(target_arch = "x86_64")]
fn processor_has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn processor_has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn processor_has_aes() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aes_is_used_where_both_have_it() {
        for other in Suite::ALL {
            assert_eq!(Suite::AesGcm.common(other), other);
            assert_eq!(Suite::ChaChaPoly.common(other), Suite::ChaChaPoly);
        }
    }

    #[test]
    fn numbers_survive_the_wire() {
        for suite in Suite::ALL {
            assert_eq!(Suite::from_number(suite.number()), Some(suite));
        }
        assert_eq!((1..=2).filter_map(Suite::from_number).count(), 2);
        assert_eq!(Suite::from_number(0), None);
        assert_eq!(Suite::from_number(3), None);
    }
}
