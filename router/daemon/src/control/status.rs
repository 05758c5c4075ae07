//! `status`, `key` and `config`: what the node is.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use wormholes_proto::control::{
    Access, ConfigReport, EntranceInfo, FlowTotals, I2pReport, KeyInfo, OnionKeyInfo,
    PROTOCOL_VERSION, RelayRegistration, ServiceInfo, Status,
};

use super::{config_text::config_text, roles, rules, tor};
use crate::{clock::unix_seconds, config::Config, i2p::I2p, identity, node::NodeCore};

pub(super) fn status(core: &NodeCore, access: Access) -> Status {
    let world = core.network.world();
    let online = world.nodes().iter().filter(|node| node.online).count();
    let services = core.config.services.iter();
    let services = services.map(|service| ServiceInfo {
        name: service.name.to_string(),
        min_trust: service.min_trust,
    });
    let entrances = core.entrances().iter();
    let entrances = entrances.map(|entrance| EntranceInfo {
        kind: entrance.kind.to_owned(),
        listen: entrance.listen,
        label: entrance.label.clone(),
    });
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL_VERSION,
        name: core.config.node.name.clone(),
        node_id: core.network.id(),
        pid: std::process::id(),
        uptime_seconds: core.started.elapsed().as_secs(),
        draining: core.stop.is_cancelled(),
        listen: core.network.listen_addresses(),
        entrances: entrances.collect(),
        metrics: core.metrics_address(),
        http: core.http_address(),
        services: services.collect(),
        roles: roles::summary(core),
        peers_known: world.nodes().len(),
        peers_connected: online,
        relays: relays(core),
        flows: totals(core),
        scripts: rules::list(core, access),
        tor: core.network.tor().is_enabled().then(|| tor::summary(core)),
        i2p: core.network.i2p().map(I2p::summary),
        access,
    }
}

pub(super) fn key(core: &NodeCore, access: Access) -> KeyInfo {
    let record = core.network.own_record();
    let record = record.record();
    let onion_keys = record.onion_keys.iter().map(|key| OnionKeyInfo {
        key_id: HEXLOWER.encode(&key.key_id),
        suite: key.suite.to_string(),
        expires_unix_seconds: unix_seconds(key.expires),
    });
    let file = core.config.node.data_dir.join(identity::IDENTITY_FILE);
    KeyInfo {
        node_id: record.id,
        noise_key: HEXLOWER.encode(&record.noise_key),
        onion_keys: onion_keys.collect(),
        identity_file: (access == Access::Operator).then_some(file),
    }
}

pub(super) async fn i2p(core: &NodeCore, access: Access) -> I2pReport {
    match core.network.i2p() {
        Some(i2p) => i2p.report(&core.config, access == Access::Operator).await,
        None => I2pReport {
            router: None,
            error: None,
            services: Vec::new(),
            sessions: Vec::new(),
            max_sessions: 0,
        },
    }
}

/// The config of the start, with the rules and the peers that are in force.
pub(super) fn config(core: &NodeCore) -> ConfigReport {
    let config = Config {
        rules: core.policy.current().config.clone(),
        peers: core.all_peers(),
        plugins: core.plugin_configs(),
        ..core.config.clone()
    };
    ConfigReport {
        toml: config_text(&config),
        file: config.file.clone(),
        restart_for: core.restart_for(),
    }
}

fn relays(core: &NodeCore) -> Vec<RelayRegistration> {
    let registrations = core.network.registrations().into_iter();
    let mut relays: Vec<RelayRegistration> = registrations
        .map(|(id, state)| RelayRegistration {
            name: core.network.view(id).name.clone(),
            registered: state.is_ok(),
            error: state.err(),
        })
        .collect();
    relays.sort_by(|one, other| one.name.cmp(&other.name));
    relays
}

fn totals(core: &NodeCore) -> FlowTotals {
    let totals = core.flows.totals();
    let opened: BTreeMap<String, u64> = totals
        .opened
        .iter()
        .map(|(kind, count)| (kind.as_str().to_owned(), *count))
        .collect();
    let bytes = totals.all_bytes();
    FlowTotals {
        open: core.flows.open() as u64,
        opened,
        blocked: totals.blocked,
        failed: totals.failed,
        bytes_sent: bytes.up,
        bytes_received: bytes.down,
    }
}
