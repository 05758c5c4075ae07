//! `bugreport`: the other reports, with every text in them hidden that a person may have chosen.

use std::fs;

use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use serde_json::{Value, json};
use wormholes_proto::control::{Access, BugReport, ProcessInfo, RpcError};

use super::{
    answer::{encode, failed},
    peers, roles, status, tor,
};
use crate::{log, node::NodeCore};

/// A report is for people; of thousands of nodes they look at some.
const MAX_PEERS: usize = 200;

pub(super) async fn report(core: &NodeCore) -> Result<BugReport, RpcError> {
    let config: Value = toml::from_str(&status::config(core).toml).map_err(failed)?;
    let mut peers = peers::list(core);
    peers.peers.truncate(MAX_PEERS);
    let roles = json!({
        "relay": encode(roles::relay(core, Access::Operator))?,
        "hop": encode(roles::hop(core))?,
        "exit": encode(roles::exit(core))?,
        "tor": encode(tor::status(core, Access::Operator))?,
        "i2p": encode(status::i2p(core, Access::Operator).await)?,
    });
    let metrics = core.render_metrics_without_names().map_err(failed)?;
    Ok(BugReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        process: process(),
        config: log::harmless::report(config),
        status: harmless(status::status(core, Access::Operator))?,
        peers: harmless(peers)?,
        roles: log::harmless::report(roles),
        metrics: String::from_utf8_lossy(&metrics).into_owned(),
        log: log::recent_lines(),
    })
}

fn harmless(report: impl Serialize) -> Result<Value, RpcError> {
    encode(report).map(log::harmless::report)
}

/// What proc(5) tells of this process; 0 where it tells nothing.
fn process() -> ProcessInfo {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let number = |name: &str| {
        let mut values = status.lines().filter_map(|line| line.strip_prefix(name));
        let value = values.next()?.split_whitespace().next()?;
        value.parse::<u64>().ok()
    };
    let files = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    ProcessInfo {
        resident_bytes: number("VmRSS:").unwrap_or(0).saturating_mul(1024),
        threads: number("Threads:").unwrap_or(0),
        open_files: files as u64,
        max_open_files: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
    }
}
