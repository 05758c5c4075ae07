//! Keys: the imports that create, use and forget them.

use super::bindings::wormholes::plugin::keys;
use crate::{Algorithm, Error, KeyPair, Result, host::Form};

pub(super) fn create(name: &str, algorithm: Algorithm) -> Result<Vec<u8>> {
    keys::create(name, algorithm.into()).map_err(Error::from)
}

pub(super) fn forget(name: &str) -> Result<()> {
    keys::forget(name).map_err(Error::from)
}

pub(super) fn public(key: &KeyPair, algorithm: Algorithm) -> Result<Vec<u8>> {
    keys::public(&key.into(), algorithm.into()).map_err(Error::from)
}

pub(super) fn sign(key: &KeyPair, form: Form<'_>, message: &[u8]) -> Result<[u8; 64]> {
    array(keys::sign(&key.into(), &form.into(), message))
}

pub(super) fn agree(key: &KeyPair, theirs: &[u8; 32]) -> Result<[u8; 32]> {
    array(keys::agree(&key.into(), theirs))
}

pub(super) fn decapsulate(key: &KeyPair, ciphertext: &[u8]) -> Result<[u8; 32]> {
    array(keys::decapsulate(&key.into(), ciphertext))
}

pub(super) fn verify(by: &[u8; 32], form: Form<'_>, message: &[u8], signature: &[u8; 64]) -> bool {
    keys::verify(by, &form.into(), message, signature)
}

fn array<const N: usize>(
    told: std::result::Result<Vec<u8>, super::types::Error>,
) -> Result<[u8; N]> {
    let bytes = told.map_err(Error::from)?;
    let other = |_| Error::failed("the node gave another length; build for its ABI");
    bytes.try_into().map_err(other)
}

impl From<Algorithm> for keys::Algorithm {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Ed25519 => Self::Ed25519,
            Algorithm::X25519 => Self::X25519,
            Algorithm::MlKem768 => Self::MlKem768,
        }
    }
}

impl From<&KeyPair> for keys::Key {
    fn from(key: &KeyPair) -> Self {
        match key {
            KeyPair::Node => Self::Node,
            KeyPair::Alias(name) => Self::Alias(name.clone()),
            KeyPair::Derived(label) => Self::Derived(label.clone()),
            KeyPair::Created(name) => Self::Created(name.clone()),
        }
    }
}

impl From<Form<'_>> for keys::Form {
    fn from(form: Form<'_>) -> Self {
        match form {
            Form::Domain(domain) => Self::Domain(domain.to_owned()),
            Form::Raw => Self::Raw,
        }
    }
}
