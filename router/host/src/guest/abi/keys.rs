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
        let created = self
            .event()?
            .key_creation(|event| event.key_create(&name, algorithm.into()));
        Ok(told(created?))
    }

    fn forget(&mut self, name: String) -> Answer<()> {
        let forgotten = self
            .event()?
            .sealed_deletion(|event| event.key_forget(&name));
        Ok(told(forgotten?))
    }

    fn public(&mut self, key: GivenKey, algorithm: GivenAlgorithm) -> Answer<Vec<u8>> {
        let (event, network) = self.holder()?;
        let (key, algorithm) = (key.into(), algorithm.into());
        let public = event.public_call(|event| event.key_public(&*network, &key, algorithm));
        Ok(told(public?))
    }

    fn sign(&mut self, key: GivenKey, form: GivenForm, message: Vec<u8>) -> Answer<Vec<u8>> {
        let (event, network) = self.holder()?;
        let (key, form) = (key.into(), form.into());
        let signed = event.hidden_call(|event| event.key_sign(&*network, &key, &form, &message));
        Ok(told(signed?))
    }

    fn agree(&mut self, key: GivenKey, theirs: Vec<u8>) -> Answer<Vec<u8>> {
        let (event, network) = self.holder()?;
        let key = key.into();
        let agreed = event.hidden_call(|event| event.key_agree(&*network, &key, &theirs));
        Ok(told(agreed?))
    }

    fn decapsulate(&mut self, key: GivenKey, ciphertext: Vec<u8>) -> Answer<Vec<u8>> {
        let (event, network) = self.holder()?;
        let key = key.into();
        let opened = event.hidden_call(|event| event.key_decapsulate(&*network, &key, &ciphertext));
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
