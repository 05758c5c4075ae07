//! Keys whose secrets stay in the node. Capability `keys`.

use crate::{
    Context, Result,
    host::{self, Form},
};

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Signs. The public key has 32 bytes, a signature 64.
    Ed25519,
    /// Agrees on 32 bytes with another key of 32 bytes.
    X25519,
    /// Opens what others encapsulated for it: a public key of 1,184 bytes, ciphertexts of 1,088, and 32
    /// bytes that both ends have then. Such keys are created, not derived.
    MlKem768,
}

/// A key, of which the principal has the use.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeyPair {
    /// The node's id: signs for a domain alone, and for [`Principal::Node`](crate::Principal::Node)
    /// alone.
    Node,
    /// An alias, by which receivers know messages ([`Letter::alias`](crate::Letter::alias)): signs for
    /// a domain alone.
    Alias(String),
    /// Derived for a label, another one for each algorithm: there without being created, and always
    /// the same.
    Derived(String),
    /// Created under a name.
    Created(String),
}

impl KeyPair {
    /// The alias of this name.
    pub fn alias(name: impl Into<String>) -> Self {
        Self::Alias(name.into())
    }

    /// The key derived for this label.
    pub fn derived(label: impl Into<String>) -> Self {
        Self::Derived(label.into())
    }

    /// The key that was created under this name.
    pub fn created(name: impl Into<String>) -> Self {
        Self::Created(name.into())
    }

    /// Makes a random key, which is kept when the event is real; its public key.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorCode::Invalid): there is one of that name, or no key can have it;
    /// [`Quota`](crate::ErrorCode::Quota): `limits.keys`.
    pub fn create(_: &mut Context, name: &str, algorithm: Algorithm) -> Result<Vec<u8>> {
        host::with(|host| host.create_key(name, algorithm))
    }

    /// Destroys a created key, when the event is real. None of that name is no error.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorCode::Invalid): no key can have that name.
    pub fn forget(_: &mut Context, name: &str) -> Result<()> {
        host::with(|host| host.forget_key(name))
    }

    /// The public key.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorCode::NotFound): it was not created;
    /// [`Invalid`](crate::ErrorCode::Invalid): it is of another algorithm.
    pub fn public(&self, _: &Context, algorithm: Algorithm) -> Result<Vec<u8>> {
        host::with(|host| host.public_key(self, algorithm))
    }

    /// Signs a message for a domain, in this instance: what is signed for another one, or by another
    /// plugin, says nothing here.
    ///
    /// # Errors
    /// As of [`public`](Self::public); [`Denied`](crate::ErrorCode::Denied): a user's principal cannot
    /// sign as the node.
    pub fn sign(&self, _: &Context, domain: &str, message: &[u8]) -> Result<[u8; 64]> {
        host::with(|host| host.sign(self, Form::Domain(domain), message))
    }

    /// Signs bytes as they are, for formats of others, as BEP 44.
    ///
    /// # Errors
    /// As of [`public`](Self::public); [`Denied`](crate::ErrorCode::Denied): the key is the node's or
    /// an alias, or the bytes begin with `wormholes`.
    pub fn sign_raw(&self, _: &Context, message: &[u8]) -> Result<[u8; 64]> {
        host::with(|host| host.sign(self, Form::Raw, message))
    }

    /// Agrees with the holder of another X25519 key on 32 bytes, which both should hash before use.
    ///
    /// # Errors
    /// As of [`public`](Self::public); [`Invalid`](crate::ErrorCode::Invalid): their key is one of the
    /// few that give everybody the same.
    pub fn agree(&self, _: &Context, theirs: &[u8; 32]) -> Result<[u8; 32]> {
        host::with(|host| host.agree(self, theirs))
    }

    /// Opens a ciphertext of ML-KEM-768. What was made for another key gives other bytes, and no error.
    ///
    /// # Errors
    /// As of [`public`](Self::public); [`Invalid`](crate::ErrorCode::Invalid): it has not 1,088 bytes.
    pub fn decapsulate(&self, _: &Context, ciphertext: &[u8]) -> Result<[u8; 32]> {
        host::with(|host| host.decapsulate(self, ciphertext))
    }
}

impl Context {
    /// Whether a message was signed for a domain, in this instance, by an Ed25519 key: a node's id, an
    /// alias, or any other.
    pub fn verify(
        &self,
        by: &[u8; 32],
        domain: &str,
        message: &[u8],
        signature: &[u8; 64],
    ) -> bool {
        host::with(|host| host.verify(by, Form::Domain(domain), message, signature))
    }

    /// Whether an Ed25519 key signed these bytes.
    pub fn verify_raw(&self, by: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
        host::with(|host| host.verify(by, Form::Raw, message, signature))
    }
}
