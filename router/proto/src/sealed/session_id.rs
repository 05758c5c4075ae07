//! What both ends of a sealed session call it, and nobody else can: a secret of the two, since it
//! comes of their keys.

use std::fmt;

use ring::hmac;
use zeroize::Zeroizing;

const CONTEXT: &[u8] = b"wormholes moved session 1\0";
/// Nobody guesses one of so many bits.
const SESSION_ID_BYTES: usize = 16;

/// A session's name between its two ends.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId([u8; SESSION_ID_BYTES]);

impl SessionId {
    /// Of the keys that the Noise split gave: that of the caller's direction, and that of the other.
    pub(super) fn of_keys(up: &[u8; 32], down: &[u8; 32]) -> Self {
        let mut keys = Zeroizing::new([0; 64]);
        for (byte, key) in keys.iter_mut().zip(up.iter().chain(down)) {
            *byte = *key;
        }
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &keys[..]), CONTEXT);
        let tag: &[u8] = tag.as_ref();
        let mut id = [0; SESSION_ID_BYTES];
        for (byte, tag) in id.iter_mut().zip(tag) {
            *byte = *tag;
        }
        Self(id)
    }

    /// As it came over the wire.
    pub const fn from_bytes(bytes: [u8; SESSION_ID_BYTES]) -> Self {
        Self(bytes)
    }

    /// As it goes over the wire.
    pub const fn as_bytes(&self) -> &[u8; SESSION_ID_BYTES] {
        &self.0
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionId").finish_non_exhaustive()
    }
}
