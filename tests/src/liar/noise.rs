//! Noise and what follows it, with every byte in the caller's hand: where the protocol's machines
//! make only what is right, this makes what is wrong under keys that are right.

use anyhow::{Context, Result, anyhow};
use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey};
use rand::RngCore;
use ring::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use snow::{
    Builder, HandshakeState,
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::{CryptoResolver, RingResolver},
    types::{Cipher, Dh, Hash, Random},
};
use wormholes_proto::{NodeId, StaticKeypair, Suite};

/// Ciphertext is so much longer than what is in it.
pub const TAG_BYTES: usize = 16;
/// A relayed end's sealed payload before it is sealed.
pub const SEALED_PAYLOAD_BYTES: usize = 1026;

/// A key that counts how often it was used.
pub struct CountingKey {
    key: LessSafeKey,
    next: u64,
}

impl CountingKey {
    /// A key of `suite`.
    ///
    /// # Errors
    /// When the key has another length.
    pub fn new(suite: Suite, key: &[u8]) -> Result<Self> {
        let algorithm = match suite {
            Suite::AesGcm => &AES_256_GCM,
            Suite::ChaChaPoly => &CHACHA20_POLY1305,
        };
        let key = UnboundKey::new(algorithm, key).map_err(|_| anyhow!("no key"))?;
        Ok(Self {
            key: LessSafeKey::new(key),
            next: 0,
        })
    }

    /// Encrypts in place and returns the tag, which stands for `with` too.
    ///
    /// # Errors
    /// When there is too much of it.
    pub fn seal(&mut self, with: &[u8], bytes: &mut [u8]) -> Result<[u8; TAG_BYTES]> {
        let number = self.next;
        self.next += 1;
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(number), Aad::from(with), bytes)
            .map_err(|_| anyhow!("not sealed"))?;
        Ok(tag.as_ref().try_into()?)
    }

    /// XORs `bytes` with the key's stream of that number.
    ///
    /// # Errors
    /// When there is too much of it.
    pub fn stream(&self, number: u64, bytes: &mut [u8]) -> Result<()> {
        let sealed = self
            .key
            .seal_in_place_separate_tag(nonce(number), Aad::empty(), bytes);
        sealed.map(drop).map_err(|_| anyhow!("no key stream"))
    }
}

impl std::fmt::Debug for CountingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CountingKey").finish_non_exhaustive()
    }
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// A handshake of the pattern `IK` or `NK` to be finished by the caller.
///
/// # Errors
/// Never, for these patterns.
pub(super) fn builder(pattern: &str, suite: Suite) -> Result<Builder<'static>> {
    let cipher = match suite {
        Suite::AesGcm => "AESGCM",
        Suite::ChaChaPoly => "ChaChaPoly",
    };
    let params = format!("Noise_{pattern}_25519_{cipher}_SHA256").parse()?;
    Ok(Builder::with_resolver(params, Box::new(Primitives)))
}

/// snow's primitives by ring, with what this build of it lacks.
struct Primitives;

struct Randomness;

impl CryptoResolver for Primitives {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Randomness))
    }

    fn resolve_dh(&self, _choice: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(X25519::default()))
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        RingResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        RingResolver.resolve_cipher(choice)
    }
}

impl Random for Randomness {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        rand::rng().fill_bytes(dest);
        Ok(())
    }
}

/// A key pair of Curve25519, by AWS-LC.
#[derive(Default)]
struct X25519 {
    private: [u8; 32],
    public: [u8; 32],
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        self.public.len()
    }

    fn priv_len(&self) -> usize {
        self.private.len()
    }

    fn set(&mut self, private: &[u8]) {
        self.private.copy_from_slice(private);
        let pair = StaticKeypair::from_private(self.private);
        self.public = pair.map_or([0; 32], |pair| *pair.public());
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut private = [0; 32];
        rng.try_fill_bytes(&mut private)?;
        self.set(&private);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &self.private
    }

    fn dh(&self, theirs: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let own = PrivateKey::from_private_key(&agreement::X25519, &self.private);
        let theirs =
            UnparsedPublicKey::new(&agreement::X25519, theirs.get(..32).ok_or(snow::Error::Dh)?);
        agreement::agree(
            &own.map_err(|_| snow::Error::Dh)?,
            theirs,
            snow::Error::Dh,
            |shared| {
                out.get_mut(..32)
                    .ok_or(snow::Error::Dh)?
                    .copy_from_slice(shared);
                Ok(())
            },
        )
    }
}

/// Frames of one direction between relayed ends.
#[derive(Debug)]
pub struct Frames(CountingKey);

impl Frames {
    /// Seals whatever claims to be a frame, with its length.
    ///
    /// # Errors
    /// When there is too much of it.
    pub fn seal(&mut self, plain: &[u8]) -> Result<Vec<u8>> {
        let mut body = plain.to_vec();
        let tag = self.0.seal(&[], &mut body)?;
        body.extend(tag);
        Ok([&u16::try_from(body.len())?.to_be_bytes()[..], &body].concat())
    }
}

/// A caller through a relay that has sent its HELLO.
pub struct Caller {
    noise: HandshakeState,
    suite: Suite,
}

/// Calls `called`, whose key is `key`, with this payload. Returns what the HELLO holds behind its
/// first two bytes.
///
/// # Errors
/// When a key has no such form.
pub fn call(
    own: &[u8; 32],
    called: &NodeId,
    key: &[u8; 32],
    suite: Suite,
    payload: &[u8],
) -> Result<(Caller, Vec<u8>)> {
    let mut noise = builder("IK", suite)?
        .local_private_key(own)?
        .remote_public_key(key)?
        .prologue(&relayed_prologue(suite, called))?
        .build_initiator()?;
    let mut hello = vec![0; 32 + 32 + TAG_BYTES + payload.len() + TAG_BYTES];
    let len = noise.write_message(payload, &mut hello)?;
    hello.truncate(len);
    Ok((Caller { noise, suite }, hello))
}

impl Caller {
    /// Takes the answer; returns the frames that go out.
    ///
    /// # Errors
    /// When the answer does not hold.
    pub fn answered(mut self, answer: &[u8]) -> Result<Frames> {
        let mut payload = vec![0; answer.len()];
        self.noise.read_message(answer, &mut payload)?;
        let (ours, _) = self.noise.dangerously_get_raw_split();
        Ok(Frames(CountingKey::new(self.suite, &ours)?))
    }
}

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caller").finish_non_exhaustive()
    }
}

/// Answers a HELLO with this payload. Returns the answer and the frames that go out.
///
/// # Errors
/// When the HELLO does not hold.
pub fn answer_call(
    own: &[u8; 32],
    id: &NodeId,
    hello: &[u8],
    payload: &[u8],
) -> Result<(Vec<u8>, Frames)> {
    let ([_, suite], message) = hello.split_first_chunk().context("a short HELLO")?;
    let suite = Suite::from_number(*suite).context("an unknown suite")?;
    let mut noise = builder("IK", suite)?
        .local_private_key(own)?
        .prologue(&relayed_prologue(suite, id))?
        .build_responder()?;
    let mut theirs = vec![0; message.len()];
    noise.read_message(message, &mut theirs)?;
    let mut answer = vec![0; 32 + payload.len() + TAG_BYTES];
    let len = noise.write_message(payload, &mut answer)?;
    answer.truncate(len);
    let (_, ours) = noise.dangerously_get_raw_split();
    Ok((answer, Frames(CountingKey::new(suite, &ours)?)))
}

fn relayed_prologue(suite: Suite, called: &NodeId) -> Vec<u8> {
    let context = b"wormholes relayed ends 1\0";
    [&context[..], &[suite.number()], called.as_bytes()].concat()
}
