//! Nodes whose keys follow from a number.

use anyhow::{Context, Result};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use ring::signature::{Ed25519KeyPair, KeyPair};
use wormholes_proto::{NodeId, NodeRecord, RecordError, Roles, SignedRecord, StaticKeypair, Suite};

/// Keeps a signature over a record from being one over anything else.
pub(crate) const RECORD_CONTEXT: &[u8] = b"wormholes node record 1\0";

/// A node's keys.
#[derive(Debug)]
pub struct TestNode {
    id: NodeId,
    signing: Ed25519KeyPair,
    noise: StaticKeypair,
}

impl TestNode {
    /// The keys of node `number`, always the same.
    ///
    /// # Errors
    /// When a library that makes keys fails.
    pub fn new(number: u8) -> Result<Self> {
        let signing = Ed25519KeyPair::from_seed_unchecked(&[number; 32])
            .ok()
            .context("make an Ed25519 key")?;
        let public = signing.public_key().as_ref().try_into()?;
        let mut rng = ChaCha20Rng::seed_from_u64(number.into());
        Ok(Self {
            id: NodeId::from_bytes(public),
            signing,
            noise: StaticKeypair::generate(&mut rng)?,
        })
    }

    /// Its id.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Its key for relayed ends.
    pub fn noise(&self) -> &StaticKeypair {
        &self.noise
    }

    /// A small record.
    pub fn record(&self, sequence: u64) -> NodeRecord {
        NodeRecord {
            id: self.id,
            sequence,
            addresses: vec![([127, 0, 0, 1], 4433).into()],
            noise_key: *self.noise.public(),
            suite: Suite::AesGcm,
            onion_keys: Vec::new(),
            roles: Roles::default(),
            exit_ports: Vec::new(),
            family: None,
            relays: Vec::new(),
        }
    }

    /// Signs a record with this node's key, whoever's it is.
    ///
    /// # Errors
    /// When the record is another node's or breaks a bound.
    pub fn sign(&self, record: &NodeRecord) -> Result<SignedRecord, RecordError> {
        record.sign(|message| {
            let mut signature = [0; 64];
            signature.copy_from_slice(self.signing.sign(message).as_ref());
            signature
        })
    }

    /// Signs whatever shall pass for a record.
    pub(crate) fn sign_bytes(&self, body: &[u8]) -> Vec<u8> {
        let signature = self.signing.sign(&[RECORD_CONTEXT, body].concat());
        [body, signature.as_ref()].concat()
    }

    /// [`TestNode::record`], signed.
    ///
    /// # Errors
    /// Never, while the small record is within its bounds.
    pub fn signed(&self, sequence: u64) -> Result<SignedRecord, RecordError> {
        self.sign(&self.record(sequence))
    }
}
