//! Keys of principals, by the same algorithms and with the same words as the node's. A world's nodes
//! draw them from its seed, all but those of ML-KEM-768: they are new each time.

use aws_lc_rs::{
    agreement::{self, PrivateKey, UnparsedPublicKey},
    digest,
    kem::{Ciphertext, DecapsulationKey, ML_KEM_768},
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey as Verifier},
};
use wormholes_plugin::{Algorithm, Error, Principal, Result, host::Form};

use crate::random::Random;

const SIGNED: &[u8] = b"wormholes-plugin-v1\0";
const OWN: &[u8] = b"wormholes";
const MAX_NAME_BYTES: usize = 128;
const MAX_MESSAGE_BYTES: usize = 1 << 20;
const DECAPSULATION_KEY_BYTES: usize = 2400;
const CIPHERTEXT_BYTES: usize = 1088;

/// A key with its secret.
#[derive(Debug, Clone)]
pub(crate) struct Secret {
    algorithm: Algorithm,
    bytes: Vec<u8>,
}

impl Secret {
    /// What the seed decides.
    pub(crate) fn create(algorithm: Algorithm, random: &mut Random) -> Result<Self> {
        if algorithm != Algorithm::MlKem768 {
            let bytes = random.bytes(32);
            return Ok(Self { algorithm, bytes });
        }
        let key = DecapsulationKey::generate(&ML_KEM_768).map_err(|_| no_key())?;
        let public = key.encapsulation_key().map_err(|_| no_key())?;
        let (key, public) = (key.key_bytes(), public.key_bytes());
        let (key, public) = (key.map_err(|_| no_key())?, public.map_err(|_| no_key())?);
        let bytes = [key.as_ref(), public.as_ref()].concat();
        Ok(Self { algorithm, bytes })
    }

    /// The node's own.
    pub(crate) fn node(seed: &[u8; 32]) -> Self {
        Self {
            algorithm: Algorithm::Ed25519,
            bytes: seed.to_vec(),
        }
    }

    /// The same for as long as the node has its id.
    pub(crate) fn derived(
        node: &[u8; 32],
        (what, principal, name): (&str, &Principal, &str),
        algorithm: Algorithm,
    ) -> Self {
        let purpose = format!("{what} {algorithm:?} {principal:?} {name:?}");
        let seed = digest::digest(&digest::SHA256, &[node, purpose.as_bytes()].concat());
        Self {
            algorithm,
            bytes: seed.as_ref().to_vec(),
        }
    }

    /// What it takes of what a plugin keeps.
    pub(crate) fn length(&self) -> usize {
        1 + self.bytes.len()
    }

    pub(crate) fn of(self, algorithm: Algorithm) -> Result<Self> {
        if self.algorithm != algorithm {
            return Err(Error::invalid("the key is of another algorithm"));
        }
        Ok(self)
    }

    pub(crate) fn public(&self) -> Result<Vec<u8>> {
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

    pub(crate) fn sign(&self, signed: &[u8]) -> Result<[u8; 64]> {
        let signature = self.pair()?.sign(signed);
        signature.as_ref().try_into().map_err(|_| no_key())
    }

    pub(crate) fn agree(&self, theirs: &[u8]) -> Result<[u8; 32]> {
        let none = "their key gives no secret: it has 32 bytes, and is none of the few that give the \
                    same to everybody";
        let theirs = UnparsedPublicKey::new(&agreement::X25519, theirs);
        let agreed = |secret: &[u8]| secret.try_into().map_err(|_| no_key());
        agreement::agree(&self.x25519()?, theirs, Error::invalid(none), agreed)
    }

    pub(crate) fn decapsulate(&self, ciphertext: &[u8]) -> Result<[u8; 32]> {
        if ciphertext.len() != CIPHERTEXT_BYTES {
            return Err(Error::invalid("a ciphertext of ML-KEM-768 has 1,088 bytes"));
        }
        let key = self
            .bytes
            .get(..DECAPSULATION_KEY_BYTES)
            .ok_or_else(no_key)?;
        let key = DecapsulationKey::new(&ML_KEM_768, key).map_err(|_| no_key())?;
        let opened = key
            .decapsulate(Ciphertext::from(ciphertext))
            .map_err(|_| no_key())?;
        opened.as_ref().try_into().map_err(|_| no_key())
    }

    fn pair(&self) -> Result<Ed25519KeyPair> {
        Ed25519KeyPair::from_seed_unchecked(&self.bytes).map_err(|_| no_key())
    }

    fn x25519(&self) -> Result<PrivateKey> {
        PrivateKey::from_private_key(&agreement::X25519, &self.bytes).map_err(|_| no_key())
    }
}

/// The bytes that are signed in an instance.
pub(crate) fn signed(instance: &str, form: Form<'_>, message: &[u8]) -> Result<Vec<u8>> {
    if message.len() > MAX_MESSAGE_BYTES {
        return Err(Error::invalid(
            "what is signed has at most 1 MiB; sign its hash",
        ));
    }
    let domain = match form {
        Form::Raw if message.starts_with(OWN) => {
            let own = "raw bytes to sign must not begin with `wormholes`; sign for a domain";
            return Err(Error::denied(own));
        }
        Form::Raw => return Ok(message.to_vec()),
        Form::Domain(domain) => domain,
    };
    check_name(domain)?;
    let mut signed = SIGNED.to_vec();
    for part in [instance, domain] {
        signed.push(u8::try_from(part.len()).unwrap_or(u8::MAX));
        signed.extend_from_slice(part.as_bytes());
    }
    signed.extend_from_slice(message);
    Ok(signed)
}

pub(crate) fn verifies(by: &[u8; 32], signed: &[u8], signature: &[u8; 64]) -> bool {
    Verifier::new(&ED25519, by)
        .verify(signed, signature)
        .is_ok()
}

pub(crate) fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        return Err(Error::invalid(
            "names of keys, labels and domains have 1 to 128 bytes and no control characters",
        ));
    }
    Ok(())
}

fn no_key() -> Error {
    Error::failed("the key cannot be used; create another")
}
