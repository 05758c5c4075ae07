//! Keys that an event creates, uses and forgets.

use super::{Limit, Own, Transaction};
use crate::{
    event::{ErrorCode, Refusal},
    keys::{Algorithm, Form, Holder, Key, Secret, check_name, only_domains, signed, verifies},
    network::Network,
    store::StoreError,
};

/// An answer for the plugin, or a fault of the store.
type Told<T> = Result<Result<T, Refusal>, StoreError>;

/// Ends with the refusal of a call, if it is one.
macro_rules! granted {
    ($told:expr) => {
        match $told {
            Ok(granted) => granted,
            Err(refusal) => return Ok(Err(refusal)),
        }
    };
}

impl Transaction {
    /// A new key under a name; its public key.
    pub(crate) fn key_create(&mut self, name: &str, algorithm: Algorithm) -> Told<Vec<u8>> {
        granted!(self.check_writable());
        granted!(check_name(name));
        if self.row_get(Own::Key, name.as_bytes())?.is_some() {
            return Ok(Err(super::invalid(
                "there is a key of this name; forget it, or choose another name",
            )));
        }
        let secret = granted!(Secret::create(algorithm));
        let row = secret.encode();
        granted!(self.row_put(Own::Key, name.as_bytes(), Some(row))?);
        Ok(secret.public())
    }

    pub(crate) fn key_forget(&mut self, name: &str) -> Told<()> {
        granted!(self.check_writable());
        granted!(check_name(name));
        self.row_put(Own::Key, name.as_bytes(), None)
    }

    pub(crate) fn key_public(
        &self,
        network: &dyn Network,
        key: &Key,
        algorithm: Algorithm,
    ) -> Told<Vec<u8>> {
        if *key == Key::Node && algorithm == Algorithm::Ed25519 {
            return Ok(Ok(self.ground.node.as_bytes().to_vec()));
        }
        let secret = granted!(self.secret(network, key, algorithm)?);
        Ok(secret.public())
    }

    pub(crate) fn key_sign(
        &mut self,
        network: &dyn Network,
        key: &Key,
        form: &Form,
        message: &[u8],
    ) -> Told<Vec<u8>> {
        let signed = self.sign(network, key, form, message)?;
        let is_denied = |refusal: &Refusal| refusal.code == ErrorCode::Denied;
        if signed.as_ref().is_err_and(is_denied) {
            self.ran_into([Limit::Denied]);
        }
        Ok(signed)
    }

    fn sign(&self, network: &dyn Network, key: &Key, form: &Form, message: &[u8]) -> Told<Vec<u8>> {
        let holder = self.holder(network);
        if *key == Key::Node {
            return Ok(holder.sign_as_node(form, message));
        }
        if matches!((key, form), (Key::Alias(_), Form::Raw)) {
            return Ok(Err(only_domains()));
        }
        let secret = granted!(self.secret(network, key, Algorithm::Ed25519)?);
        let signed = granted!(signed(&self.ground.plugin, form, message));
        Ok(secret.sign(&signed))
    }

    pub(crate) fn key_agree(
        &self,
        network: &dyn Network,
        key: &Key,
        theirs: &[u8],
    ) -> Told<Vec<u8>> {
        let secret = granted!(self.secret(network, key, Algorithm::X25519)?);
        Ok(secret.agree(theirs))
    }

    pub(crate) fn key_decapsulate(
        &self,
        network: &dyn Network,
        key: &Key,
        ciphertext: &[u8],
    ) -> Told<Vec<u8>> {
        let secret = granted!(self.secret(network, key, Algorithm::MlKem768)?);
        Ok(secret.decapsulate(ciphertext))
    }

    pub(crate) fn key_verify(
        &self,
        by: &[u8],
        form: &Form,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        let signed = match form {
            // Whoever signed it, whatever it begins with.
            Form::Raw => Ok(message.to_vec()),
            Form::Domain(_) => signed(&self.ground.plugin, form, message),
        };
        signed.is_ok_and(|signed| verifies(by, &signed, signature))
    }

    fn secret(&self, network: &dyn Network, key: &Key, algorithm: Algorithm) -> Told<Secret> {
        let holder = self.holder(network);
        let secret = match key {
            Key::Node => Err(super::invalid("the key is of another algorithm")),
            Key::Alias(name) => check_name(name).map(|()| holder.alias(name)),
            Key::Derived(label) => holder.derived(label, algorithm),
            Key::Created(name) => {
                granted!(check_name(name));
                let row = self.row_get(Own::Key, name.as_bytes())?;
                let secret = row.as_deref().and_then(Secret::decode);
                secret.ok_or_else(|| {
                    let none = "no key was created under this name";
                    Refusal::new(ErrorCode::NotFound, none)
                })
            }
        };
        Ok(secret.and_then(|secret| secret.of(algorithm)))
    }

    fn holder<'a>(&'a self, network: &'a dyn Network) -> Holder<'a> {
        Holder {
            network,
            instance: &self.ground.plugin,
            principal: &self.stamp.principal,
        }
    }
}
