//! What the unit tests of this crate share: nodes with fixed keys, and damaged input.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use ring::signature::{Ed25519KeyPair, KeyPair};

use crate::{
    id::NodeId,
    noise::StaticKeypair,
    record::{NodeRecord, OnionKey, SignedRecord},
    roles::Roles,
    suite::Suite,
};

/// A node whose keys follow from a number.
pub(crate) struct TestNode {
    number: u8,
    signing: Ed25519KeyPair,
    pub(crate) noise: StaticKeypair,
}

impl TestNode {
    pub(crate) fn new(number: u8) -> Self {
        Self {
            number,
            signing: Ed25519KeyPair::from_seed_unchecked(&[number; 32]).unwrap(),
            noise: StaticKeypair::generate(&mut rng(number.into())).unwrap(),
        }
    }

    pub(crate) fn id(&self) -> NodeId {
        NodeId::from_bytes(self.signing.public_key().as_ref().try_into().unwrap())
    }

    /// A record with something in every field.
    pub(crate) fn record(&self, sequence: u64) -> NodeRecord {
        NodeRecord {
            id: self.id(),
            sequence,
            addresses: vec![
                format!("203.0.113.{}:4433", self.number).parse().unwrap(),
                "[2001:db8::1]:4433".parse().unwrap(),
            ],
            noise_key: *self.noise.public(),
            suite: Suite::AesGcm,
            onion_keys: vec![OnionKey {
                key_id: [7; 8],
                suite: Suite::ChaChaPoly,
                public: [8; 32],
                expires: UNIX_EPOCH + Duration::from_secs(1_900_000_000),
            }],
            roles: Roles {
                relay: true,
                hop: false,
                exit: true,
            },
            exit_ports: vec![(80, 80), (8000, 8999)],
            family: Some("example-family".to_owned()),
            relays: vec![NodeId::from_bytes([9; 32])],
        }
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.signing.sign(message).as_ref().try_into().unwrap()
    }

    pub(crate) fn signed(&self, sequence: u64) -> SignedRecord {
        self.record(sequence)
            .sign(|message| self.sign(message))
            .unwrap()
    }
}

/// The record of a hop at 127.N.0.1, with a key of each suite.
pub(crate) fn hop_record(number: u8, keys_expire: SystemTime) -> NodeRecord {
    let key = |suite| OnionKey {
        key_id: [number; 8],
        suite,
        public: [number; 32],
        expires: keys_expire,
    };
    NodeRecord {
        id: NodeId::from_bytes([number; 32]),
        sequence: 1,
        addresses: vec![([127, number, 0, 1], 4433).into()],
        noise_key: [0; 32],
        suite: Suite::AesGcm,
        onion_keys: Suite::ALL.map(key).to_vec(),
        roles: Roles {
            hop: true,
            ..Roles::default()
        },
        exit_ports: Vec::new(),
        family: None,
        relays: Vec::new(),
    }
}

pub(crate) fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

/// Runs `check` over every truncation of `valid`, over it with one bit flipped, and over random
/// input; a failure prints the seed.
pub(crate) fn for_mutations(valid: &[u8], mut check: impl FnMut(&[u8])) {
    for len in 0..valid.len() {
        report("truncated to", len as u64, || check(&valid[..len]));
    }
    for seed in 0..500 {
        report("seed", seed, || {
            let mut rng = rng(seed);
            let mut bytes = valid.to_vec();
            let at = rng.next_u32() as usize % bytes.len();
            bytes[at] ^= 1 << (rng.next_u32() % 8);
            check(&bytes);
            let mut noise = vec![0; rng.next_u32() as usize % 2048];
            rng.fill_bytes(&mut noise);
            check(&noise);
        });
    }
}

/// Says which case failed.
#[expect(clippy::print_stderr, reason = "the test runner shows it on failure")]
fn report(what: &str, number: u64, run: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        eprintln!("failed with {what} {number}");
        resume_unwind(panic);
    }
}
