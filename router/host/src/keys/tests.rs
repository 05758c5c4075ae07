//! What is derived stays as it is, and what is signed is nothing else.

use std::collections::BTreeSet;

use aws_lc_rs::{digest, kem::EncapsulationKey};
use data_encoding::HEXLOWER;
use futures_util::future::BoxFuture;
use wormholes_proto::trunk::{Hello, IdentityKind, Name};

use super::*;
use crate::{
    http::HttpResponse,
    network::{Call, CallError, Datagram, FetchCall, Pipe, SocketCall},
    rules::{Fact, RuleQuestion, Ruling},
};

#[derive(Debug)]
struct Alone;

impl Network for Alone {
    fn call(&self, _: Call) -> BoxFuture<'static, Result<Box<dyn Pipe>, CallError>> {
        unreachable!("keys call nobody")
    }

    fn connect(&self, _: SocketCall) -> BoxFuture<'static, Result<Box<dyn Pipe>, Refusal>> {
        unreachable!("keys call nobody")
    }

    fn fetch(&self, _: FetchCall) -> BoxFuture<'static, Result<HttpResponse, Refusal>> {
        unreachable!("keys call nobody")
    }

    fn send_datagram(&self, _: Datagram) {}

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        pair.sign(message).as_ref().try_into().unwrap()
    }

    fn derive(&self, purpose: &[u8]) -> Zeroizing<[u8; 32]> {
        let digest = digest::digest(&digest::SHA256, purpose);
        Zeroizing::new(digest.as_ref().try_into().unwrap())
    }

    fn ask_rules(&self, _: RuleQuestion) -> Ruling {
        unreachable!("keys ask nobody")
    }

    fn publish(&self, _: Vec<Fact>) {}

    fn forget_facts(&self, _: &BTreeSet<String>) {}
}

fn holder<'a>(instance: &'a str, principal: &'a Principal) -> Holder<'a> {
    Holder {
        network: &Alone,
        instance,
        principal,
    }
}

fn domain(name: &str) -> Form {
    Form::Domain(name.to_owned())
}

/// Keys of people hang on them.
#[test]
fn what_is_derived_and_signed_keeps_its_bytes() {
    let (node, ann) = (Principal::Node, Principal::User("ann".into()));
    let purpose = |holder: &Holder<'_>| holder.purpose(&[DERIVED, &[1]].concat(), "dht");
    assert_eq!(
        purpose(&holder("chat", &node)),
        b"wormholes-plugin-key-v1\x01\x00\x04chat\x00\x03dht"
    );
    assert_eq!(
        purpose(&holder("chat", &ann)),
        b"wormholes-plugin-key-v1\x01\x01\x04chat\x03ann\x03dht"
    );
    assert_eq!(
        holder("chat", &ann).purpose(ALIAS, "me"),
        b"wormholes-alias-v1\x01\x04chat\x03ann\x02me"
    );
    assert_eq!(
        signed("pay", &domain("write-off"), b"7").unwrap(),
        b"wormholes-plugin-v1\0\x03pay\x09write-off7"
    );
    let derived = holder("chat", &ann).derived("dht", Algorithm::Ed25519);
    let public = derived.unwrap().public().unwrap();
    assert_eq!(HEXLOWER.encode(&public), PUBLIC);
}

/// Of `dht`, for ann, in `chat`, at a node whose secrets are SHA-256 of their purposes.
const PUBLIC: &str = "93c248477a0deb1482ed9ddb40adf18192e51486bf735a2b1d8297acc28ddb2e";

#[test]
fn each_instance_principal_label_and_algorithm_has_a_key_of_its_own() {
    let (node, ann) = (Principal::Node, Principal::User("ann".into()));
    let mut seen = std::collections::BTreeSet::new();
    for instance in ["a", "ab"] {
        for principal in [&node, &ann] {
            let holder = holder(instance, principal);
            assert!(seen.insert(holder.alias_seed("me").to_vec()));
            for label in ["me", "b", "bme"] {
                for algorithm in [Algorithm::Ed25519, Algorithm::X25519] {
                    let secret = holder.derived(label, algorithm).unwrap();
                    assert!(seen.insert(secret.bytes.to_vec()), "{instance} {label}");
                }
            }
        }
    }
}

/// What a key signs when a trunk or a record is signed, no plugin can have signed.
#[test]
fn no_signature_for_a_plugin_opens_a_trunk_or_is_a_record() {
    let principal = Principal::Node;
    let holder = holder("chat", &principal);
    let alias = holder.alias("me");
    let identity = NodeId::from_bytes(alias.public().unwrap().try_into().unwrap());
    let acceptor = NodeId::from_bytes([3; 32]);
    let hello = Hello {
        version: 1,
        instance: Name::try_from("chat").unwrap(),
        identity,
        kind: IdentityKind::Alias,
        unix_minutes: 60,
        nonce: [5; 16],
        signature: [0; 64],
    };
    let mut signs = Vec::new();
    let real = hello.clone().sign(&acceptor, |message| {
        signs = message.to_vec();
        alias.sign(message).unwrap().try_into().unwrap()
    });
    let skew = std::time::Duration::ZERO;
    assert_eq!(real.verify(&acceptor, 3_600_000, skew), Ok(()));
    let raw = signed("chat", &Form::Raw, &signs).unwrap_err();
    assert_eq!(raw.code, ErrorCode::Denied);
    // Whatever the domain, and wherever the plugin cuts it.
    for cut in 0..signs.len() {
        let name: String = signs[..cut].iter().map(|byte| char::from(*byte)).collect();
        if let Ok(bytes) = signed("chat", &domain(&name), &signs[cut..]) {
            let forged = alias.sign(&bytes).unwrap().try_into().unwrap();
            let forged = hello.clone().sign(&acceptor, |_| forged);
            assert!(forged.verify(&acceptor, 3_600_000, skew).is_err());
        }
    }
    let record: &[u8] = b"wormholes node record 1\0";
    for own in [
        record,
        SIGNED,
        DERIVED,
        ALIAS,
        b"wormholes derived secrets v1",
    ] {
        assert!(signed("chat", &Form::Raw, own).is_err());
        assert!(own == SIGNED || !own.starts_with(SIGNED) && !SIGNED.starts_with(own));
    }
}

#[test]
fn what_was_encapsulated_for_a_kept_key_is_opened() {
    let secret = Secret::create(Algorithm::MlKem768).unwrap();
    let kept = Secret::decode(&secret.encode()).unwrap();
    let public = EncapsulationKey::new(&ML_KEM_768, &kept.public().unwrap()).unwrap();
    let (ciphertext, shared) = public.encapsulate().unwrap();
    assert_eq!(
        kept.decapsulate(ciphertext.as_ref()).unwrap(),
        shared.as_ref()
    );
    let other = Secret::create(Algorithm::MlKem768).unwrap();
    assert_ne!(
        other.decapsulate(ciphertext.as_ref()).unwrap(),
        shared.as_ref()
    );
}

#[test]
fn two_keys_agree_and_none_does_with_a_point_that_gives_everybody_the_same() {
    let keys = [[1; 32], [2; 32]].map(|seed| Secret::from_seed(Algorithm::X25519, &seed));
    let [one, other] = keys.each_ref().map(|key| key.public().unwrap());
    let agreed = keys[0].agree(&other).unwrap();
    assert_eq!(agreed, keys[1].agree(&one).unwrap());
    assert_ne!(agreed, keys[0].agree(&one).unwrap());
    for theirs in [&[0; 32][..], &[1; 31], &[]] {
        assert_eq!(keys[0].agree(theirs).unwrap_err().code, ErrorCode::Invalid);
    }
}

#[test]
fn debug_output_shows_no_secret() {
    let secret = Secret::from_seed(Algorithm::Ed25519, &[0xab; 32]);
    assert_eq!(format!("{secret:?}"), "Secret { algorithm: Ed25519, .. }");
}
