//! Noise (revision 34) by snow: ring for hash and cipher, AWS-LC for X25519, and randomness that
//! the caller gives, so that a seeded run repeats byte for byte.
//!
//! Patterns in use: NK for each layer of an onion build (the asker is nobody), IK between two ends
//! behind a relay (both are somebody).

mod x25519;

use std::fmt;

use rand_core::{CryptoRng, RngCore, SeedableRng};
use snow::{
    Builder,
    params::{CipherChoice, DHChoice, HashChoice, NoiseParams},
    resolvers::{CryptoResolver, RingResolver},
    types::{Cipher, Dh, Hash, Random},
};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::suite::Suite;

use x25519::X25519;

/// Length of an X25519 key, public or private (RFC 7748, section 5).
pub const NOISE_KEY_BYTES: usize = 32;
/// Length of an AEAD tag in both suites.
pub(crate) const TAG_BYTES: usize = 16;

/// An X25519 key pair for Noise. The private half is wiped when dropped and never printed.
#[derive(Clone)]
pub struct StaticKeypair {
    public: [u8; NOISE_KEY_BYTES],
    private: Zeroizing<[u8; NOISE_KEY_BYTES]>,
}

/// A handshake that does not hold: the other side's bytes are wrong, or were tampered with. One
/// error for all causes, so that nobody learns which check failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("noise handshake failed")]
pub struct HandshakeError;

/// The handshake patterns in use (Noise, section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// The responder's key is known beforehand, the initiator has none.
    Nk,
    /// The responder's key is known beforehand, the initiator's goes with the first message.
    Ik,
}

impl StaticKeypair {
    /// Makes a key pair from the caller's randomness.
    ///
    /// # Errors
    /// [`HandshakeError`] when snow is built without Curve25519.
    pub fn generate(rng: &mut (impl CryptoRng + ?Sized)) -> Result<Self, HandshakeError> {
        let mut private = Zeroizing::new([0; NOISE_KEY_BYTES]);
        rng.fill_bytes(&mut private[..]);
        Self::from_private(*private)
    }

    /// Takes a private key, as it was stored.
    ///
    /// # Errors
    /// [`HandshakeError`] when it is refused, which no 32 bytes cause.
    pub fn from_private(private: [u8; NOISE_KEY_BYTES]) -> Result<Self, HandshakeError> {
        let private = Zeroizing::new(private);
        let pair = X25519::from_private(&private[..]).map_err(|_| HandshakeError)?;
        let public = *pair.public();
        Ok(Self { public, private })
    }

    /// The half that others know.
    pub fn public(&self) -> &[u8; NOISE_KEY_BYTES] {
        &self.public
    }

    /// The secret half, to be stored or used.
    pub fn private(&self) -> &[u8; NOISE_KEY_BYTES] {
        &self.private
    }
}

impl fmt::Debug for StaticKeypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticKeypair").finish_non_exhaustive()
    }
}

impl From<snow::Error> for HandshakeError {
    fn from(_: snow::Error) -> Self {
        Self
    }
}

/// Begins one handshake: the caller adds keys and prologue and builds one side of it, once.
///
/// # Errors
/// [`HandshakeError`] when snow does not know the protocol name.
pub(crate) fn handshake_builder<'keys>(
    pattern: Pattern,
    suite: Suite,
    rng: &mut (impl CryptoRng + ?Sized),
) -> Result<Builder<'keys>, HandshakeError> {
    let pattern = match pattern {
        Pattern::Nk => "NK",
        Pattern::Ik => "IK",
    };
    let name = format!("Noise_{pattern}_25519_{}_SHA256", suite.noise_name());
    let params: NoiseParams = name.parse()?;
    let mut seed = Zeroizing::new([0; 32]);
    rng.fill_bytes(&mut seed[..]);
    Ok(Builder::with_resolver(params, Box::new(Resolver { seed })))
}

/// The primitives of one handshake, and the seed of its ephemeral key.
struct Resolver {
    seed: Zeroizing<[u8; 32]>,
}

/// Randomness for snow, grown from the caller's.
struct SeededRandom(rand_chacha::ChaCha20Rng);

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        let rng = rand_chacha::ChaCha20Rng::from_seed(*self.seed);
        Some(Box::new(SeededRandom(rng)))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        (*choice == DHChoice::Curve25519).then(|| Box::new(X25519::default()) as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        RingResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        RingResolver.resolve_cipher(choice)
    }
}

impl Random for SeededRandom {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        self.0.fill_bytes(dest);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rng(seed: u64) -> rand_chacha::ChaCha20Rng {
        rand_chacha::ChaCha20Rng::seed_from_u64(seed)
    }

    /// RFC 7748, section 6.1: Bob's key pair.
    #[test]
    fn public_keys_are_those_of_the_rfc() {
        let key = |hex: &[u8]| data_encoding::HEXLOWER.decode(hex).unwrap();
        let private = key(b"5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
        let public = key(b"de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
        let pair = StaticKeypair::from_private(private.try_into().unwrap()).unwrap();
        assert_eq!(pair.public()[..], public);
    }

    fn check_ik(suite: Suite) {
        let (alice, bob) = (
            StaticKeypair::generate(&mut rng(1)).unwrap(),
            StaticKeypair::generate(&mut rng(2)).unwrap(),
        );
        let mut initiator = handshake_builder(Pattern::Ik, suite, &mut rng(3))
            .and_then(|b| Ok(b.local_private_key(alice.private())?))
            .and_then(|b| Ok(b.remote_public_key(bob.public())?))
            .and_then(|b| Ok(b.build_initiator()?))
            .unwrap();
        let mut responder = handshake_builder(Pattern::Ik, suite, &mut rng(4))
            .and_then(|b| Ok(b.local_private_key(bob.private())?))
            .and_then(|b| Ok(b.build_responder()?))
            .unwrap();
        let (mut wire, mut payload) = ([0; 256], [0; 256]);
        let n = initiator.write_message(b"hello", &mut wire).unwrap();
        let m = responder.read_message(&wire[..n], &mut payload).unwrap();
        assert_eq!(&payload[..m], b"hello");
        assert_eq!(responder.get_remote_static(), Some(&alice.public()[..]));
        let n = responder.write_message(b"welcome", &mut wire).unwrap();
        let m = initiator.read_message(&wire[..n], &mut payload).unwrap();
        assert_eq!(&payload[..m], b"welcome");
        assert_eq!(
            initiator.dangerously_get_raw_split(),
            responder.dangerously_get_raw_split()
        );
    }

    #[test]
    fn two_ends_agree_in_both_suites() {
        Suite::ALL.into_iter().for_each(check_ik);
    }

    #[test]
    fn a_seed_repeats_a_handshake_and_another_does_not() {
        let bob = StaticKeypair::generate(&mut rng(2)).unwrap();
        let first_message = |seed| {
            let mut wire = [0; 64];
            let mut initiator = handshake_builder(Pattern::Nk, Suite::ChaChaPoly, &mut rng(seed))
                .and_then(|b| Ok(b.remote_public_key(bob.public())?))
                .and_then(|b| Ok(b.build_initiator()?))
                .unwrap();
            let n = initiator.write_message(b"", &mut wire).unwrap();
            wire[..n].to_vec()
        };
        assert_eq!(first_message(9), first_message(9));
        assert_ne!(first_message(9), first_message(10));
    }

    #[test]
    fn a_private_key_is_never_printed() {
        let pair = StaticKeypair::generate(&mut rng(1)).unwrap();
        assert_eq!(format!("{pair:?}"), "StaticKeypair { .. }");
    }
}
