//! `relay`, `hop` and `exit`: what the node does for others.

use std::sync::atomic::Ordering::Relaxed;

use wormholes_proto::control::{Role, RoleLimits, RoleReport, RoleSummary, RolesSummary};

use crate::{config::RoleConfig, counters::RoleCounters, node::NodeCore};

pub(super) fn summary(core: &NodeCore) -> RolesSummary {
    let (config, counters) = (&core.config, core.network.counters());
    let role = |config: &RoleConfig, counters: &RoleCounters| RoleSummary {
        enabled: config.enabled,
        active: counters.active.load(Relaxed),
    };
    RolesSummary {
        relay: role(&config.relay, &counters.relay),
        hop: role(&config.hop.role, &counters.hop),
        exit: role(&config.exit.role, &counters.exit),
    }
}

pub(super) fn relay(core: &NodeCore, role: Role) -> RoleReport {
    let registered = || {
        let ids = core.network.registered().into_iter();
        let mut names: Vec<String> = ids.map(|id| core.network.view(id).name.clone()).collect();
        names.sort();
        names
    };
    RoleReport {
        registered: (role == Role::Operator).then(registered),
        ..report("relay", &core.config.relay, &core.network.counters().relay)
    }
}

pub(super) fn hop(core: &NodeCore) -> RoleReport {
    report("hop", &core.config.hop.role, &core.network.counters().hop)
}

pub(super) fn exit(core: &NodeCore) -> RoleReport {
    let exit = &core.config.exit;
    let allow = exit.allow.iter().map(ToString::to_string);
    RoleReport {
        allow: allow.collect(),
        ..report("exit", &exit.role, &core.network.counters().exit)
    }
}

fn report(role: &str, config: &RoleConfig, counters: &RoleCounters) -> RoleReport {
    let refused = counters.refused().into_iter();
    RoleReport {
        role: role.to_owned(),
        enabled: config.enabled,
        active: counters.active.load(Relaxed),
        total: counters.opened.load(Relaxed),
        bytes: counters.bytes.load(Relaxed),
        refused: refused
            .map(|(reason, count)| (reason.to_string(), count))
            .collect(),
        limits: RoleLimits {
            max_circuits: config.max_circuits,
            max_circuits_per_peer: config.max_circuits_per_peer,
            bytes_per_second_per_peer: config.bytes_per_second_per_peer,
            max_bytes_per_circuit: config.max_bytes_per_circuit,
            idle_seconds: config.idle.as_secs(),
        },
        registered: None,
        allow: Vec::new(),
    }
}
