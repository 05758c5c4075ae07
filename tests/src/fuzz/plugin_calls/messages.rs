//! Messages, facts, questions to the rules, and keys.

use wormholes_host::trial::words::{
    facts,
    keys::{self, Algorithm, Form, Key},
    messages::{Host, Keeping},
    rules, types,
};

use super::{super::input::Input, Live, words::Words};

const MAX_BODY_BYTES: usize = 1 << 20;
const MAX_NAME_BYTES: usize = 128;

impl Live {
    pub(super) fn call_messages(&mut self, choice: u8, input: &mut Input<'_>) {
        match choice % 16 {
            0..8 => self.letter(choice % 8, input),
            8 => {
                let (to, protocol, own) = (input.address(), input.name(), input.identity());
                let _ = Host::waiting(self.imports(), to, protocol, own).unwrap();
            }
            9 => {
                let (to, protocol, own) = (input.address(), input.name(), input.identity());
                let _ = Host::reopen(self.imports(), to, protocol, own).unwrap();
            }
            10 => {
                let key = Host::alias_key(self.imports(), input.name()).unwrap();
                assert_eq!(key.len(), 32);
            }
            11..13 => {
                let (kind, peer) = (input.name(), input.public_key());
                let (value, ttl_ms) = (input.number().cast_signed(), input.number());
                let is_there = kind == "credit" && peer.len() == 32;
                let set = facts::Host::set(self.imports(), kind, peer, value, ttl_ms);
                if set.unwrap().is_ok() {
                    assert!(is_there && self.is_node() && !self.is_query);
                    assert!((1..=86_400_000).contains(&ttl_ms));
                }
            }
            13 => {
                let (kind, peer) = (input.name(), input.public_key());
                let cleared = facts::Host::clear(self.imports(), kind, peer);
                if cleared.unwrap().is_ok() {
                    assert!(self.is_node() && !self.is_query);
                }
            }
            _ => {
                let (hook, question) = (input.name(), input.text());
                let is_there = hook == "may";
                let ruling = rules::Host::ask(self.imports(), hook, question.clone());
                if ruling.unwrap().is_ok() {
                    assert!(is_there && question.trim_start().starts_with('{'));
                }
            }
        }
    }

    fn is_node(&self) -> bool {
        self.who == 0
    }

    fn letter(&mut self, choice: u8, input: &mut Input<'_>) {
        let (to, protocol, body) = (input.address(), input.name(), input.many());
        let (way, time_ms) = (input.way(), input.number());
        let words = [&way.role, &way.label, &way.isolation];
        let is_valid = ["p", "q"].contains(&protocol.as_str())
            && body.len() <= MAX_BODY_BYTES
            && words.iter().all(|word| word.len() <= MAX_NAME_BYTES);
        let imports = self.imports();
        let sent = match choice {
            0..4 => {
                let keeping = Keeping {
                    expires_ms: (choice & 1 == 1).then_some(time_ms),
                    report: choice & 2 == 2,
                };
                let (there, own) = (to.clone(), way.sender.clone());
                let sent = Host::send(imports, to, protocol.clone(), body, way, keeping).unwrap();
                if sent.is_ok() {
                    let waiting = Host::waiting(self.imports(), there, protocol, own);
                    assert!(waiting.unwrap() > 0);
                }
                sent.map(Some)
            }
            4 | 5 => Host::post(imports, to, protocol, body, way)
                .unwrap()
                .map(|()| None),
            _ => Host::ask(imports, to, protocol, body, way, time_ms)
                .unwrap()
                .map(Some),
        };
        match sent {
            Ok(id) => {
                assert!(is_valid && !self.is_query);
                if let Some(id) = id {
                    self.began(id);
                }
            }
            Err(error) => {
                let is_quota = matches!(error.code, types::ErrorCode::Quota);
                assert!(!is_quota || is_valid, "{}", error.message);
            }
        }
    }

    pub(super) fn call_keys(&mut self, choice: u8, input: &mut Input<'_>) {
        match choice % 8 {
            0 | 1 => {
                let (name, algorithm) = (input.name(), algorithm(input));
                let key = keys::Host::create(self.imports(), name.clone(), algorithm).unwrap();
                let Ok(key) = key else { return };
                assert!(!self.is_query && !self.has_steps);
                let created = Key::Created(name);
                let public = keys::Host::public(self.imports(), created, algorithm);
                assert_eq!(public.unwrap().unwrap(), key);
            }
            2 => {
                let name = input.name();
                let forgot = keys::Host::forget(self.imports(), name.clone()).unwrap();
                if forgot.is_ok() {
                    assert!(!self.is_query && !self.has_steps);
                    let created = Key::Created(name);
                    let public = keys::Host::public(self.imports(), created, algorithm(input));
                    assert!(public.unwrap().is_err());
                }
            }
            3 => {
                let (key, algorithm) = (key(input), algorithm(input));
                if let Ok(key) = keys::Host::public(self.imports(), key, algorithm).unwrap() {
                    assert!([32, 1184].contains(&key.len()));
                }
            }
            4 | 5 => self.sign(input),
            6 => {
                let (key, other) = (key(input), input.many());
                let agreed = match choice & 8 {
                    0 => keys::Host::agree(self.imports(), key, other),
                    _ => keys::Host::decapsulate(self.imports(), key, other),
                };
                if let Ok(agreed) = agreed.unwrap() {
                    assert_eq!(agreed.len(), 32);
                }
            }
            _ => {
                let (by, form, said) = (input.public_key(), form(input), input.many());
                let signature = input.many();
                let _ = keys::Host::verify(self.imports(), by, form, said, signature).unwrap();
            }
        }
    }

    /// What it signs is what others verify, and nothing that Wormholes itself says.
    fn sign(&mut self, input: &mut Input<'_>) {
        let (key, form, said) = (key(input), form(input), input.many());
        let imports = self.imports();
        let signed = keys::Host::sign(imports, key.clone(), form.clone(), said.clone());
        let Ok(signature) = signed.unwrap() else {
            return;
        };
        assert_eq!(signature.len(), 64);
        if matches!(form, Form::Raw) {
            assert!(!said.starts_with(b"wormholes"));
        }
        let public = keys::Host::public(self.imports(), key, Algorithm::Ed25519);
        let by = public.unwrap().unwrap();
        assert!(keys::Host::verify(self.imports(), by, form, said, signature).unwrap());
    }
}

fn algorithm(input: &mut Input<'_>) -> Algorithm {
    match input.byte() % 4 {
        0 | 1 => Algorithm::Ed25519,
        2 => Algorithm::X25519,
        _ => Algorithm::MlKem768,
    }
}

fn key(input: &mut Input<'_>) -> Key {
    match input.byte() % 5 {
        0 => Key::Node,
        1 => Key::Alias(input.name()),
        2 => Key::Derived(input.name()),
        _ => Key::Created(input.name()),
    }
}

fn form(input: &mut Input<'_>) -> Form {
    match input.perhaps(Words::name) {
        Some(domain) => Form::Domain(domain),
        None => Form::Raw,
    }
}
