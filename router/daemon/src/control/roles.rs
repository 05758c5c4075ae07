//! `relay`, `hop` and `exit`: what the node does for others.

use wormholes_proto::control::{Access, RoleLimits, RoleReport, RoleSummary, RolesSummary};

use crate::{config::RoleConfig, node::NodeCore, role::RoleStatus};

pub(super) fn summary(core: &NodeCore) -> RolesSummary {
    let role = |status: RoleStatus| RoleSummary {
        enabled: status.enabled,
        active: status.active,
    };
    RolesSummary {
        relay: role(core.network.relay_status()),
        hop: role(core.network.hop_status()),
        exit: role(core.network.exit_status()),
    }
}

pub(super) fn relay(core: &NodeCore, access: Access) -> RoleReport {
    let registered = || {
        let ids = core.network.registered().into_iter();
        let mut names: Vec<String> = ids.map(|id| core.network.view(id).name.clone()).collect();
        names.sort();
        names
    };
    RoleReport {
        registered: (access == Access::Operator).then(registered),
        ..report("relay", &core.config.relay, core.network.relay_status())
    }
}

pub(super) fn hop(core: &NodeCore) -> RoleReport {
    report("hop", &core.config.hop.role, core.network.hop_status())
}

pub(super) fn exit(core: &NodeCore) -> RoleReport {
    let exit = &core.config.exit;
    let allow = exit.allow.iter().map(ToString::to_string);
    RoleReport {
        allow: allow.collect(),
        ..report("exit", &exit.role, core.network.exit_status())
    }
}

fn report(role: &str, config: &RoleConfig, status: RoleStatus) -> RoleReport {
    RoleReport {
        role: role.to_owned(),
        enabled: status.enabled,
        active: status.active,
        total: status.opened,
        bytes: status.bytes,
        refused: status.refused.into_iter().collect(),
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
