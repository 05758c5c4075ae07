//! Keys that an event creates, uses and forgets.

use wormholes_plugin::{Algorithm, Error, KeyPair, Principal, Result, host::Form};

use super::{ROW_BYTES, Transaction, quota};
use crate::{
    keys::{Secret, check_name, signed},
    net::alias,
};

impl Transaction {
    pub(super) fn create_key(&mut self, name: &str, algorithm: Algorithm) -> Result<Vec<u8>> {
        self.check_writable()?;
        check_name(name)?;
        if self.memory.keys.contains_key(name) {
            return Err(Error::invalid(
                "there is a key of this name; forget it, or choose another name",
            ));
        }
        let secret = Secret::create(algorithm, &mut self.random)?;
        if self.memory.keys.len() >= self.ground.manifest.limits.keys {
            return Err(quota("too many keys; raise limits.keys or forget some"));
        }
        self.check_no_step()?;
        let size = name.len() + secret.length();
        self.check_kept(u64::try_from(size).unwrap_or(u64::MAX))?;
        self.charge(size + ROW_BYTES)?;
        self.writes = true;
        let public = secret.public();
        self.memory.keys.insert(name.to_owned(), secret);
        public
    }

    pub(super) fn forget_key(&mut self, name: &str) -> Result<()> {
        self.check_writable()?;
        check_name(name)?;
        self.check_no_step()?;
        self.charge(name.len() + ROW_BYTES)?;
        self.writes = true;
        self.memory.keys.remove(name);
        Ok(())
    }

    pub(super) fn sign(&self, key: &KeyPair, form: Form<'_>, message: &[u8]) -> Result<[u8; 64]> {
        if *key == KeyPair::Node && self.ground.principal != Principal::Node {
            return Err(Error::denied(
                "the node's own principal alone signs as the node; use a key of the user",
            ));
        }
        if matches!((key, form), (KeyPair::Node | KeyPair::Alias(_), Form::Raw)) {
            return Err(Error::denied(
                "the node and its aliases sign for a domain; raw bytes are for derived and created keys",
            ));
        }
        let secret = self.secret(key, Algorithm::Ed25519)?;
        secret.sign(&signed(&self.ground.manifest.plugin.name, form, message)?)
    }

    pub(super) fn secret(&self, key: &KeyPair, algorithm: Algorithm) -> Result<Secret> {
        let (node, principal) = (&self.ground.node_id, &self.ground.principal);
        let secret = match key {
            KeyPair::Node => Secret::node(&self.ground.node_seed),
            KeyPair::Alias(name) => {
                check_name(name)?;
                alias(node, principal, name)
            }
            KeyPair::Derived(_) if algorithm == Algorithm::MlKem768 => {
                return Err(Error::invalid(
                    "keys of ML-KEM-768 are created, not derived",
                ));
            }
            KeyPair::Derived(label) => {
                check_name(label)?;
                Secret::derived(node, ("key", principal, label), algorithm)
            }
            KeyPair::Created(name) => {
                check_name(name)?;
                let secret = self.memory.keys.get(name).cloned();
                secret.ok_or_else(|| Error::not_found("no key was created under this name"))?
            }
        };
        secret.of(algorithm)
    }
}
