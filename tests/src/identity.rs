//! A node's identity made before the node, so that others can be told of it first.

use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use anyhow::{Context, Result, anyhow};
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use wormholes_proto::NodeId;

/// A key pair that a daemon will find in its data folder.
pub struct Identity {
    id: NodeId,
    pair: Ed25519KeyPair,
    pkcs8: Vec<u8>,
}

impl Identity {
    /// Makes a new one.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> Result<Self> {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| anyhow!("no randomness"))?;
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref())
            .map_err(|_| anyhow!("a new key is no key"))?;
        let public = pair.public_key().as_ref().try_into()?;
        Ok(Self {
            id: NodeId::from_bytes(public),
            pair,
            pkcs8: pkcs8.as_ref().to_vec(),
        })
    }

    /// Who the node will be.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Signs as the node would.
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(self.pair.sign(message).as_ref());
        bytes
    }

    /// The secret, as TLS takes it.
    pub(crate) fn pkcs8(&self) -> Vec<u8> {
        self.pkcs8.clone()
    }

    /// Writes it where `wormholed` reads it.
    ///
    /// # Errors
    /// When the folder cannot be made or written.
    pub fn write(&self, data_dir: &Path) -> Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(data_dir)
            .context("cannot make the data folder")?;
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(data_dir.join("identity.key"))?
            .write_all(&self.pkcs8)?;
        Ok(())
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.id)
    }
}
