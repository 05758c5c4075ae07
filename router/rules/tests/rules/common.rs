//! A small world for scripts: friends, relays, sets.

use std::{sync::Arc, time::SystemTime};

use wormholes_proto::NodeId;
use wormholes_rules::{
    Conn, Decision, Diagnostic, LoadEnv, NodeView, Policy, ScriptSource, SetRegistry, Surroundings,
    World,
};

/// An id that is made of the name, so that messages can be read.
pub(crate) fn id(name: &str) -> NodeId {
    let mut bytes = [0; 32];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    NodeId::from_bytes(bytes)
}

pub(crate) fn node(name: &str, trust: u8) -> Arc<NodeView> {
    Arc::new(NodeView {
        is_peer: true,
        trust,
        online: true,
        rtt_ms: Some(20.0),
        has_address: true,
        relays: vec![id("r1")],
        ..NodeView::stranger(id(name), name)
    })
}

pub(crate) fn relay(name: &str, rtt_ms: f64) -> Arc<NodeView> {
    let mut relay = (*node(name, 1)).clone();
    relay.roles.relay = true;
    relay.rtt_ms = Some(rtt_ms);
    relay.into()
}

/// bob and carol are friends, eve is a stranger; r2 is nearer than r1.
pub(crate) fn world() -> Arc<World> {
    let nodes = vec![
        node("bob", 2),
        node("carol", 2),
        node("eve", 0),
        relay("r1", 30.0),
        relay("r2", 10.0),
    ];
    Arc::new(World::new(nodes))
}

/// A flow to port 443 of `host`; `.wh` names mean nodes of [`world`].
pub(crate) fn conn(host: &str) -> Conn {
    let node = host
        .ends_with(".wh")
        .then(|| world().find(host).map(|node| node.id));
    Conn {
        node: node.flatten(),
        ..Conn::to(host, 443)
    }
}

pub(crate) fn env() -> LoadEnv {
    let mut sets = SetRegistry::default();
    sets.load("ads", "ads.txt", "ads.example\n").unwrap();
    LoadEnv {
        surroundings: Surroundings {
            sets: sets.into(),
            ..Surroundings::default()
        },
        known_peers: Some(["bob", "carol", "r1", "r2"].map(str::to_owned).into()),
        records: true,
        ..LoadEnv::default()
    }
}

fn try_load(scripts: &[(&str, &str)]) -> Result<Policy, Vec<Diagnostic>> {
    let sources: Vec<_> = scripts
        .iter()
        .map(|(name, text)| ScriptSource {
            name: (*name).to_owned(),
            text: (*text).to_owned(),
        })
        .collect();
    Policy::load(&sources, &env())
}

pub(crate) fn load(scripts: &[(&str, &str)]) -> Policy {
    try_load(scripts).unwrap_or_else(|faults| panic!("{faults:#?}"))
}

pub(crate) fn load_error(script: &str) -> Vec<Diagnostic> {
    match try_load(&[("test.rhai", script)]) {
        Ok(_) => panic!("loads: {script}"),
        Err(faults) => faults,
    }
}

pub(crate) fn policy(script: &str) -> Policy {
    load(&[("test.rhai", script)])
}

pub(crate) fn route(script: &str, host: &str) -> Decision {
    policy(script).route(&conn(host).into(), &world(), SystemTime::UNIX_EPOCH)
}
