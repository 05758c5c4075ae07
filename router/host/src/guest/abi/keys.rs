//! Keys: the imports that create, use and forget them.

use std::sync::Arc;

use super::{
    Answer, State, told, types,
    wormholes::plugin::keys::{
        Algorithm as GivenAlgorithm, Form as GivenForm, Host, Key as GivenKey,
    },
};
use crate::{
    keys::{Algorithm, Form, Key},
    network::Network,
    transaction::Transaction,
};

impl State {
    /// The event that runs, and the node around it.
    fn holder(&mut self) -> wasmtime::Result<(&mut Transaction, Arc<dyn Network>)> {
        let network = self.plugin.around.network.clone();
        let network = network.ok_or_else(|| wasmtime::Error::msg("there is no node"))?;
        Ok((self.event()?, network))
    }
}

impl Host for State {
    fn create(&mut self, name: String, algorithm: GivenAlgorithm) -> Answer<Vec<u8>> {
        Ok(told(self.event()?.key_create(&name, algorithm.into())?))
    }

    fn forget(&mut self, name: String) -> Answer<()> {
        Ok(told(self.event()?.key_forget(&name)?))
    }

    fn public(&mut self, key: GivenKey, algorithm: GivenAlgorithm) -> Answer<Vec<u8>> {
        let (event, network) = self.holder()?;
        Ok(told(event.key_public(
            &*network,
            &key.into(),
            algorithm.into(),
        )?))
    }

    fn sign(&mut self, key: GivenKey, form: GivenForm, message: Vec<u8>) -> Answer<Vec<u8>> {
        let (event, network) = self.holder()?;
        let (key, form) = (key.into(), form.into());
        Ok(told(event.key_sign(&*network, &key, &form, &message)?))
    }

    fn agree(&mut self, key: GivenKey, theirs: Vec<u8>) -> Answer<Vec<u8>> {
        let (event, network) = self.holder()?;
        Ok(told(event.key_agree(&*network, &key.into(), &theirs)?))
    }

    fn decapsulate(&mut self, key: GivenKey, ciphertext: Vec<u8>) -> Answer<Vec<u8>> {
        let (event, network) = self.holder()?;
        let opened = event.key_decapsulate(&*network, &key.into(), &ciphertext);
        Ok(told(opened?))
    }

    fn verify(
        &mut self,
        by: types::PublicKey,
        form: GivenForm,
        message: Vec<u8>,
        signature: Vec<u8>,
    ) -> wasmtime::Result<bool> {
        let event = self.event()?;
        Ok(event.key_verify(&by, &form.into(), &message, &signature))
    }
}

impl From<GivenAlgorithm> for Algorithm {
    fn from(algorithm: GivenAlgorithm) -> Self {
        match algorithm {
            GivenAlgorithm::Ed25519 => Self::Ed25519,
            GivenAlgorithm::X25519 => Self::X25519,
            GivenAlgorithm::MlKem768 => Self::MlKem768,
        }
    }
}

impl From<GivenKey> for Key {
    fn from(key: GivenKey) -> Self {
        match key {
            GivenKey::Node => Self::Node,
            GivenKey::Alias(name) => Self::Alias(name),
            GivenKey::Derived(label) => Self::Derived(label),
            GivenKey::Created(name) => Self::Created(name),
        }
    }
}

impl From<GivenForm> for Form {
    fn from(form: GivenForm) -> Self {
        match form {
            GivenForm::Domain(domain) => Self::Domain(domain),
            GivenForm::Raw => Self::Raw,
        }
    }
}
