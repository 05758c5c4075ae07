//! X25519 (RFC 7748) for snow, by AWS-LC: half the time of a handshake, and more, is spent here.
//!
//! snow's own implementation takes twice as long for a shared secret and five times for a public
//! key, accepts the points that make any secret zero, and leaves private keys in freed memory.

use aws_lc_rs::{
    agreement::{self, PrivateKey, UnparsedPublicKey},
    error::Unspecified,
};
use snow::{
    Error,
    types::{Dh, Random},
};
use zeroize::Zeroizing;

use super::NOISE_KEY_BYTES;

/// A key pair; without one nothing can be agreed on.
#[derive(Default)]
pub(super) struct X25519 {
    key: Option<PrivateKey>,
    private: Zeroizing<[u8; NOISE_KEY_BYTES]>,
    public: [u8; NOISE_KEY_BYTES],
}

impl X25519 {
    /// # Errors
    /// When AWS-LC refuses it, which no 32 bytes cause.
    pub(super) fn from_private(private: &[u8]) -> Result<Self, Unspecified> {
        let key = PrivateKey::from_private_key(&agreement::X25519, private)?;
        let mut pair = Self::default();
        pair.private.copy_from_slice(private);
        pair.public
            .copy_from_slice(key.compute_public_key()?.as_ref());
        pair.key = Some(key);
        Ok(pair)
    }

    pub(super) fn public(&self) -> &[u8; NOISE_KEY_BYTES] {
        &self.public
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        NOISE_KEY_BYTES
    }

    fn priv_len(&self) -> usize {
        NOISE_KEY_BYTES
    }

    fn set(&mut self, private: &[u8]) {
        *self = Self::from_private(private).unwrap_or_default();
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        let mut private = Zeroizing::new([0; NOISE_KEY_BYTES]);
        rng.try_fill_bytes(&mut private[..])?;
        *self = Self::from_private(&private[..]).map_err(|Unspecified| Error::Dh)?;
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &self.private[..]
    }

    /// Refuses a `public` of small order, whose secret is zero whatever the private key.
    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let key = self.key.as_ref().ok_or(Error::Dh)?;
        // snow hands over a buffer for the longest keys that it knows.
        let public = public.get(..NOISE_KEY_BYTES).ok_or(Error::Dh)?;
        let public = UnparsedPublicKey::new(&agreement::X25519, public);
        agreement::agree(key, public, Error::Dh, |secret| {
            let out = out.get_mut(..secret.len()).ok_or(Error::Dh)?;
            out.copy_from_slice(secret);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(hex: &str) -> [u8; NOISE_KEY_BYTES] {
        let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
        bytes.try_into().unwrap()
    }

    fn pair(private: &str) -> X25519 {
        X25519::from_private(&key(private)).unwrap()
    }

    /// RFC 7748, section 5.2: a scalar, a point, and what they make.
    #[test]
    fn secrets_are_those_of_the_rfc() {
        let pair = pair("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4");
        let point = key("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c");
        let expected = key("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552");
        let mut secret = [0; NOISE_KEY_BYTES];
        pair.dh(&point, &mut secret).unwrap();
        assert_eq!(secret, expected);
    }

    #[test]
    fn a_point_of_small_order_is_refused() {
        let bob = pair("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
        let mut secret = [0; NOISE_KEY_BYTES];
        for point in [0, 1] {
            let mut public = [0; NOISE_KEY_BYTES];
            public[0] = point;
            assert!(matches!(bob.dh(&public, &mut secret), Err(Error::Dh)));
        }
    }
}
