//! Codes of errors: what a plugin says is what its asker is told, whoever hands it on between them.

use std::{iter, sync::Arc};

use anyhow::Result;
use serde_json::{Value, json};
use wormholes_host::{ErrorCode, Refusal};
use wormholes_plugin::Principal;
use wormholes_plugin_kit::{Drive, World};
use wormholes_tests::{HostNetwork, Hosted, PluginHost};
use wormholes_wicked::Wicked;

/// All of them; one more is not compiled before it has its place here.
fn codes() -> impl Iterator<Item = ErrorCode> {
    iter::successors(Some(ErrorCode::Denied), |code| match code {
        ErrorCode::Denied => Some(ErrorCode::Quota),
        ErrorCode::Quota => Some(ErrorCode::Invalid),
        ErrorCode::Invalid => Some(ErrorCode::NotFound),
        ErrorCode::NotFound => Some(ErrorCode::Unavailable),
        ErrorCode::Unavailable => Some(ErrorCode::Expired),
        ErrorCode::Expired => Some(ErrorCode::Failed),
        ErrorCode::Failed => None,
    })
}

/// From the plugin to its host, over the wire, through the asking plugin and back: all hands that a code
/// goes through.
#[tokio::test(flavor = "multi_thread")]
async fn every_code_comes_as_it_was_said_from_a_plugin_here_and_at_another_node() {
    let network = Arc::new(HostNetwork::default());
    let near = PluginHost::new(&network, "tests/wicked").await.unwrap();
    let far = PluginHost::new(&network, "tests/wicked").await.unwrap();
    let refusal = |told: Result<Value>| {
        let told = told.unwrap_err();
        told.downcast::<Refusal>().unwrap()
    };
    for code in codes() {
        let name = format!("{code:?}");
        let expected = Refusal::new(code, format!("{name}, as asked"));
        let here = far.ask("fail", json!({ "code": name })).await;
        assert_eq!(refusal(here), expected);
        let arguments = json!({ "node": far.id().as_bytes(), "code": name });
        let there = near.ask("fail-there", arguments).await;
        assert_eq!(refusal(there), expected);
    }
}

fn comes_as_it_was_said(node: &mut impl Drive) {
    for code in codes() {
        let name = format!("{code:?}");
        let told = node.request(&Principal::Node, "fail", json!({ "code": name }));
        let told = told.unwrap_err();
        assert_eq!(format!("{:?}", told.code), name);
        assert_eq!(told.message, format!("{name}, as asked"));
    }
}

#[test]
fn every_code_is_the_same_in_the_kit_and_in_the_host() {
    let manifest = wormholes_tests::workspace::root().join("tests/wicked/plugin.toml");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    comes_as_it_was_said(&mut World::<Wicked>::new(1, &manifest).at(0));
    comes_as_it_was_said(&mut Hosted::new("tests/wicked").unwrap());
}
