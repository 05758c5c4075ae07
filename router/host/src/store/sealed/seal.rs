//! A key that seals, and what comes of it: AES-256-GCM-SIV and HMAC-SHA-256 of AWS-LC.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey},
    hmac,
};
use rand::RngCore as _;
use zeroize::Zeroizing;

pub(super) const NONCE_BYTES: usize = 12;
const KEY_BYTES: usize = 32;

/// Wiped when it is dropped.
pub(super) struct Key(Zeroizing<[u8; KEY_BYTES]>);

impl Key {
    pub(super) fn random() -> Self {
        let mut key = Self(Zeroizing::default());
        rand::rng().fill_bytes(&mut key.0[..]);
        key
    }

    /// A key for one purpose, which says nothing about those for others.
    pub(super) fn derive(&self, purpose: &[u8]) -> Self {
        Self(Zeroizing::new(self.digest(purpose)))
    }

    /// What only holders of the key can tell from anything else.
    pub(super) fn digest(&self, bytes: &[u8]) -> [u8; KEY_BYTES] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0[..]);
        let mut digest = [0; KEY_BYTES];
        digest.copy_from_slice(hmac::sign(&key, bytes).as_ref());
        digest
    }

    /// Seals `content` for the place `about`. Keys of rows seal once in their life, so that the nonce
    /// may be the same for all of them.
    pub(super) fn seal_once(&self, about: &[u8], content: Vec<u8>) -> Option<Vec<u8>> {
        self.seal([0; NONCE_BYTES], about, content)
    }

    pub(super) fn open_once(&self, about: &[u8], sealed: Vec<u8>) -> Option<Vec<u8>> {
        self.open([0; NONCE_BYTES], about, sealed)
    }

    /// Another key, sealed under this one, behind the nonce.
    pub(super) fn wrap(&self, about: &[u8], key: &Self) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_BYTES];
        rand::rng().fill_bytes(&mut nonce);
        let sealed = self.seal(nonce, about, key.0.to_vec())?;
        Some([&nonce[..], &sealed].concat())
    }

    pub(super) fn unwrap(&self, about: &[u8], wrapped: &[u8]) -> Option<Self> {
        let (nonce, sealed) = wrapped.split_first_chunk()?;
        let opened = Zeroizing::new(self.open(*nonce, about, sealed.to_vec())?);
        let mut key = Self(Zeroizing::default());
        (opened.len() == KEY_BYTES).then(|| key.0.copy_from_slice(&opened))?;
        Some(key)
    }

    fn seal(
        &self,
        nonce: [u8; NONCE_BYTES],
        about: &[u8],
        mut content: Vec<u8>,
    ) -> Option<Vec<u8>> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.cipher()?
            .seal_in_place_append_tag(nonce, Aad::from(about), &mut content)
            .ok()?;
        Some(content)
    }

    fn open(&self, nonce: [u8; NONCE_BYTES], about: &[u8], mut sealed: Vec<u8>) -> Option<Vec<u8>> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let cipher = self.cipher()?;
        let opened = cipher.open_in_place(nonce, Aad::from(about), &mut sealed);
        let length = opened.ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }

    fn cipher(&self) -> Option<LessSafeKey> {
        let key = UnboundKey::new(&AES_256_GCM_SIV, &self.0[..]).ok()?;
        Some(LessSafeKey::new(key))
    }
}

impl From<&[u8; KEY_BYTES]> for Key {
    fn from(key: &[u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(*key))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").finish_non_exhaustive()
    }
}
