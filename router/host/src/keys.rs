//! Keys of principals: how they are derived, what they sign and agree on, and how those that were
//! created are kept. Which ones there are, a transaction knows.
//!
//! ```text
//! signed    "wormholes-plugin-v1" 0 | length u8, instance | length u8, domain | message
//! derived   the node's secret for: "wormholes-plugin-key-v1" | algorithm u8 | whose
//! whose     user? u8 | length u8, instance | length u8, user | length u8, label
//! kept      algorithm u8 | seed 32; of ML-KEM-768: decapsulation key 2400 | encapsulation key 1184
//! ```
//! Whatever Wormholes signs begins with `wormholes`, and what plugins have signed for a domain with words
//! that nothing else begins with. Raw bytes that begin so are refused: no key of a plugin speaks for a
//! node, an alias, or another plugin.

#[cfg(test)]
mod tests;

use std::fmt;

use aws_lc_rs::{
    agreement::{self, PrivateKey, UnparsedPublicKey},
    kem::{self, Ciphertext, DecapsulationKey, ML_KEM_768},
    signature::{Ed25519KeyPair, KeyPair as _},
};
use rand::RngCore as _;
use wormholes_proto::{NodeId, SIGNATURE_BYTES};
use zeroize::Zeroizing;

use crate::{
    event::{ErrorCode, Principal, Refusal},
    network::Network,
};

/// What all begins with that a plugin has signed for a domain.
const SIGNED: &[u8] = b"wormholes-plugin-v1\0";
const DERIVED: &[u8] = b"wormholes-plugin-key-v1";
const ALIAS: &[u8] = b"wormholes-alias-v1";
/// What all begins with that Wormholes signs.
const OWN: &[u8] = b"wormholes";
/// Names of keys, labels, aliases and domains.
const MAX_NAME_BYTES: usize = 128;
/// What is signed: as much as a row may have.
const MAX_MESSAGE_BYTES: usize = 1 << 20;
const SEED_BYTES: usize = 32;
const DECAPSULATION_KEY_BYTES: usize = 2400;
const CIPHERTEXT_BYTES: usize = 1088;

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Ed25519 = 1,
    X25519 = 2,
    MlKem768 = 3,
}

/// Which key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Key {
    Node,
    Alias(String),
    Derived(String),
    Created(String),
}

/// What a signature is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Form {
    Domain(String),
    Raw,
}

/// Whose keys they are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holder<'a> {
    pub(crate) network: &'a dyn Network,
    pub(crate) instance: &'a str,
    pub(crate) principal: &'a Principal,
}

/// A key that the host has the secret of; wiped when it is dropped.
pub(crate) struct Secret {
    algorithm: Algorithm,
    bytes: Zeroizing<Vec<u8>>,
}

impl Holder<'_> {
    /// What the key of an alias comes of.
    pub(crate) fn alias_seed(&self, name: &str) -> Zeroizing<[u8; SEED_BYTES]> {
        self.network.derive(&self.purpose(ALIAS, name))
    }

    /// The key of an alias.
    pub(crate) fn alias(&self, name: &str) -> Secret {
        Secret::from_seed(Algorithm::Ed25519, &self.alias_seed(name))
    }

    /// The key for a label.
    pub(crate) fn derived(&self, label: &str, algorithm: Algorithm) -> Result<Secret, Refusal> {
        if algorithm == Algorithm::MlKem768 {
            return Err(invalid("keys of ML-KEM-768 are created, not derived"));
        }
        check_name(label)?;
        let purpose = self.purpose(&[DERIVED, &[algorithm as u8]].concat(), label);
        let seed = self.network.derive(&purpose);
        Ok(Secret::from_seed(algorithm, &seed))
    }

    /// Signs as the node, for a domain.
    pub(crate) fn sign_as_node(&self, form: &Form, message: &[u8]) -> Result<Vec<u8>, Refusal> {
        if *self.principal != Principal::Node {
            return Err(denied(
                "the node's own principal alone signs as the node; use a key of the user",
            ));
        }
        let Form::Domain(_) = form else {
            return Err(only_domains());
        };
        let signed = signed(self.instance, form, message)?;
        Ok(self.network.sign(&signed).to_vec())
    }

    /// What the node's secret is derived for.
    fn purpose(&self, what: &[u8], name: &str) -> Vec<u8> {
        let (is_user, user) = match self.principal {
            Principal::Node => (0, ""),
            Principal::User(user) => (1, &**user),
        };
        let mut purpose = [what, &[is_user]].concat();
        for part in [self.instance, user, name] {
            push(&mut purpose, part);
        }
        purpose
    }
}

impl Secret {
    /// Random.
    pub(crate) fn create(algorithm: Algorithm) -> Result<Self, Refusal> {
        if algorithm != Algorithm::MlKem768 {
            let mut seed = Zeroizing::new([0; SEED_BYTES]);
            rand::rng().fill_bytes(&mut seed[..]);
            return Ok(Self::from_seed(algorithm, &seed));
        }
        let key = DecapsulationKey::generate(&ML_KEM_768).map_err(|_| no_key())?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(DECAPSULATION_KEY_BYTES * 2));
        bytes.extend_from_slice(key.key_bytes().map_err(|_| no_key())?.as_ref());
        let public = key.encapsulation_key().map_err(|_| no_key())?;
        bytes.extend_from_slice(public.key_bytes().map_err(|_| no_key())?.as_ref());
        Ok(Self { algorithm, bytes })
    }

    fn from_seed(algorithm: Algorithm, seed: &[u8; SEED_BYTES]) -> Self {
        Self {
            algorithm,
            bytes: Zeroizing::new(seed.to_vec()),
        }
    }

    pub(crate) fn decode(row: &[u8]) -> Option<Self> {
        let (algorithm, bytes) = row.split_first()?;
        let algorithm = match algorithm {
            1 => Algorithm::Ed25519,
            2 => Algorithm::X25519,
            3 => Algorithm::MlKem768,
            _ => return None,
        };
        Some(Self {
            algorithm,
            bytes: Zeroizing::new(bytes.to_vec()),
        })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        [&[self.algorithm as u8], &self.bytes[..]].concat()
    }

    /// It, if it is of this algorithm.
    pub(crate) fn of(self, algorithm: Algorithm) -> Result<Self, Refusal> {
        if self.algorithm != algorithm {
            return Err(invalid("the key is of another algorithm"));
        }
        Ok(self)
    }

    pub(crate) fn public(&self) -> Result<Vec<u8>, Refusal> {
        match self.algorithm {
            Algorithm::Ed25519 => Ok(self.pair()?.public_key().as_ref().to_vec()),
            Algorithm::X25519 => {
                let public = self.x25519()?.compute_public_key().map_err(|_| no_key())?;
                Ok(public.as_ref().to_vec())
            }
            Algorithm::MlKem768 => {
                let public = self.bytes.get(DECAPSULATION_KEY_BYTES..);
                public.map(<[u8]>::to_vec).ok_or_else(no_key)
            }
        }
    }

    pub(crate) fn sign(&self, signed: &[u8]) -> Result<Vec<u8>, Refusal> {
        Ok(self.pair()?.sign(signed).as_ref().to_vec())
    }

    pub(crate) fn agree(&self, theirs: &[u8]) -> Result<Vec<u8>, Refusal> {
        let none = "their key gives no secret: it has 32 bytes, and is none of the few that give the \
                    same to everybody";
        let theirs = UnparsedPublicKey::new(&agreement::X25519, theirs);
        let agreed = |secret: &[u8]| Ok(secret.to_vec());
        agreement::agree(&self.x25519()?, theirs, invalid(none), agreed)
    }

    pub(crate) fn decapsulate(&self, ciphertext: &[u8]) -> Result<Vec<u8>, Refusal> {
        if ciphertext.len() != CIPHERTEXT_BYTES {
            return Err(invalid("a ciphertext of ML-KEM-768 has 1,088 bytes"));
        }
        let key = self
            .bytes
            .get(..DECAPSULATION_KEY_BYTES)
            .ok_or_else(no_key)?;
        let key = DecapsulationKey::<kem::AlgorithmId>::new(&ML_KEM_768, key);
        let opened = key
            .map_err(|_| no_key())?
            .decapsulate(Ciphertext::from(ciphertext));
        Ok(opened.map_err(|_| no_key())?.as_ref().to_vec())
    }

    fn pair(&self) -> Result<Ed25519KeyPair, Refusal> {
        Ed25519KeyPair::from_seed_unchecked(&self.bytes).map_err(|_| no_key())
    }

    fn x25519(&self) -> Result<PrivateKey, Refusal> {
        PrivateKey::from_private_key(&agreement::X25519, &self.bytes).map_err(|_| no_key())
    }
}

/// The bytes that are signed in an instance.
pub(crate) fn signed(instance: &str, form: &Form, message: &[u8]) -> Result<Vec<u8>, Refusal> {
    if message.len() > MAX_MESSAGE_BYTES {
        return Err(invalid("what is signed has at most 1 MiB; sign its hash"));
    }
    match form {
        Form::Raw if message.starts_with(OWN) => Err(denied(
            "raw bytes to sign must not begin with `wormholes`; sign for a domain",
        )),
        Form::Raw => Ok(message.to_vec()),
        Form::Domain(domain) => {
            check_name(domain)?;
            let mut signed = SIGNED.to_vec();
            for part in [instance, domain] {
                push(&mut signed, part);
            }
            signed.extend_from_slice(message);
            Ok(signed)
        }
    }
}

/// Whether a signature over those bytes is that of a key.
pub(crate) fn verifies(by: &[u8], signed: &[u8], signature: &[u8]) -> bool {
    let (Ok(by), Ok(signature)) = (by.try_into(), signature.try_into()) else {
        return false;
    };
    let signature: &[u8; SIGNATURE_BYTES] = signature;
    NodeId::from_bytes(by).verifies(signed, signature)
}

pub(crate) fn check_name(name: &str) -> Result<(), Refusal> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        return Err(invalid(
            "names of keys, labels and domains have 1 to 128 bytes and no control characters",
        ));
    }
    Ok(())
}

/// What keys that others know for something else may not sign.
pub(crate) fn only_domains() -> Refusal {
    denied("the node and its aliases sign for a domain; raw bytes are for derived and created keys")
}

fn push(bytes: &mut Vec<u8>, part: &str) {
    // Names have at most 255 bytes.
    bytes.push(u8::try_from(part.len()).unwrap_or(u8::MAX));
    bytes.extend_from_slice(part.as_bytes());
}

/// What AWS-LC never says of keys that it made itself.
fn no_key() -> Refusal {
    Refusal::new(ErrorCode::Failed, "the key cannot be used; create another")
}

fn invalid(rule: &str) -> Refusal {
    Refusal::new(ErrorCode::Invalid, rule)
}

fn denied(why: &str) -> Refusal {
    Refusal::new(ErrorCode::Denied, why)
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}
