//! What each node could learn, from three witnesses: packets at its address, its own debug log,
//! and its control socket.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use anyhow::Result;
use serde_json::{Value, json};
use wormholes_proto::NodeId;
use wormholes_tests::{CLIENT, Captured, Daemon, SITE_GREETING, TestNetwork, udp_addresses};

use crate::row::Case;

/// The target of log lines in which a node says what a request let it see.
pub(crate) const LEARNED: &str = "wormholes::learned";

/// Keep-alives and acknowledgements of connections that stand anyway have some 40 bytes; a packet
/// that asks for something has at least its frames, a name and curl's request.
const CHATTER_BYTES: usize = 64;

/// Facts by node, and those that should not be.
#[derive(Debug, Default)]
pub(crate) struct Learned {
    pub(crate) facts: BTreeMap<String, Vec<String>>,
    pub(crate) wrong: Vec<String>,
}

/// How each node stood before the request.
#[derive(Debug)]
pub(crate) struct Before(BTreeMap<String, Standing>);

#[derive(Debug)]
struct Standing {
    log_lines: usize,
    roles: Vec<Carried>,
}

/// What a role says of itself: counts, never targets.
#[derive(Debug)]
struct Carried {
    role: &'static str,
    total: u64,
    active: u64,
    bytes: u64,
}

impl Before {
    pub(crate) async fn of(network: &TestNetwork) -> Result<Self> {
        let mut standings = BTreeMap::new();
        for node in network.nodes() {
            let standing = Standing {
                log_lines: node.log().lines().len(),
                roles: roles(node).await?,
            };
            standings.insert(node.name().to_owned(), standing);
        }
        Ok(Self(standings))
    }
}

/// Asks all witnesses about all nodes but the client, which knows everything. `path` has the nodes
/// that the request passed: no other learned anything.
pub(crate) async fn collect(
    network: &TestNetwork,
    case: &Case,
    path: &[String],
    captured: &Captured,
    before: &Before,
) -> Result<Learned> {
    let mut learned = Learned::default();
    let owners = owners(network)?;
    for node in network.nodes() {
        let Some(before) = before.0.get(node.name()).filter(|_| node.name() != CLIENT) else {
            continue;
        };
        let addresses = addresses(node, &owners);
        let mut facts = from_packets(&addresses, case, captured, &owners);
        learned
            .wrong
            .extend(leaks(node, case, &addresses, captured));
        let lines = node.log().lines();
        let said = lines.get(before.log_lines..).unwrap_or_default();
        facts.extend(from_log(said, network));
        learned
            .wrong
            .extend(secrets_in_log(node, case, path, said, network));
        facts.extend(from_control(node, before).await?);
        if !facts.is_empty() {
            if !path.iter().any(|name| name == node.name()) {
                let name = node.name();
                learned.wrong.push(format!("{name} is not on the way"));
            }
            learned.facts.insert(node.name().to_owned(), facts);
        }
    }
    Ok(learned)
}

/// Which node has which UDP address. One that is bound to 0.0.0.0 sends from 127.0.0.1 here.
pub(crate) fn owners(network: &TestNetwork) -> Result<Vec<(SocketAddrV4, String)>> {
    let mut owners = Vec::new();
    for node in network.nodes() {
        for address in udp_addresses(node.pid())? {
            let ip = if address.ip().is_unspecified() {
                Ipv4Addr::LOCALHOST
            } else {
                *address.ip()
            };
            let seen_as = SocketAddrV4::new(ip, address.port());
            owners.push((seen_as, node.name().to_owned()));
        }
    }
    Ok(owners)
}

/// The UDP addresses of one node.
pub(crate) fn addresses(node: &Daemon, owners: &[(SocketAddrV4, String)]) -> Vec<SocketAddrV4> {
    let own = owners.iter().filter(|(_, name)| name == node.name());
    own.map(|(address, _)| *address).collect()
}

fn from_packets(
    addresses: &[SocketAddrV4],
    case: &Case,
    captured: &Captured,
    owners: &[(SocketAddrV4, String)],
) -> Vec<String> {
    let sum = |count: &dyn Fn(SocketAddrV4) -> u64| -> u64 {
        addresses.iter().map(|address| count(*address)).sum()
    };
    let largest = addresses.iter().map(|at| captured.largest_at(*at)).max();
    if largest.unwrap_or(0) <= CHATTER_BYTES {
        return Vec::new();
    }
    let packets = sum(&|address| captured.packets_at(address));
    let neighbours = addresses
        .iter()
        .flat_map(|address| captured.neighbours(*address));
    let mut names: Vec<_> = neighbours
        .map(|neighbour| {
            let owner = owners.iter().find(|(address, _)| *address == neighbour);
            owner.map_or_else(|| neighbour.to_string(), |(_, name)| name.clone())
        })
        .collect();
    names.sort();
    names.dedup();
    let asked = sum(&|address| captured.found_at(case.name.as_bytes(), address));
    let content = sum(&|address| captured.found_at(SITE_GREETING.as_bytes(), address));
    vec![
        format!("packets: {packets}, with {}", names.join(", ")),
        format!("packets that show the name asked: {asked}, the content: {content}"),
    ]
}

/// Between nodes nothing may be readable, whatever the tunnel.
fn leaks(
    node: &Daemon,
    case: &Case,
    addresses: &[SocketAddrV4],
    captured: &Captured,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for marker in [case.name, SITE_GREETING] {
        let found: u64 = addresses
            .iter()
            .map(|address| captured.found_at(marker.as_bytes(), *address))
            .sum();
        if found > 0 {
            wrong.push(format!(
                "{found} packets of {} show {marker:?}",
                node.name()
            ));
        }
    }
    wrong
}

/// What the node's debug log says that it learned, with names in the place of node ids. Other keys
/// are those that the client threw away afterwards.
fn from_log(said: &[String], network: &TestNetwork) -> Vec<String> {
    let lines = said.iter().filter_map(|line| line.split_once(LEARNED));
    let mut facts: Vec<_> = lines
        .map(|(_, fact)| {
            let mut fact = fact.trim_start_matches(':').trim().to_owned();
            for node in network.nodes() {
                fact = fact.replace(&node.id().to_string(), node.name());
            }
            let words = fact.split_whitespace();
            let words: Vec<_> = words.map(without_key).collect();
            let fact = words.join(" ");
            format!("log: {fact}")
        })
        .collect();
    facts.dedup();
    facts
}

/// `previous=<52 characters>` as `previous=(a throw-away key)`.
fn without_key(word: &str) -> String {
    match word.split_once('=') {
        Some((field, value)) if value.parse::<NodeId>().is_ok() => {
            format!("{field}=(a throw-away key)")
        }
        _ => word.to_owned(),
    }
}

/// A node in the middle must not even log what it cannot know.
fn secrets_in_log(
    node: &Daemon,
    case: &Case,
    path: &[String],
    said: &[String],
    network: &TestNetwork,
) -> Vec<String> {
    let is_end = path.last().is_some_and(|last| node.name() == last);
    let client_id = network.client.id().to_string();
    let mut secrets = Vec::new();
    if !is_end {
        secrets.push(case.name);
    }
    if case.tunnel == "onion" && is_end {
        secrets.push(client_id.as_str());
    }
    let says = |secret: &&&str| said.iter().any(|line| line.contains(**secret));
    secrets
        .iter()
        .filter(says)
        .map(|secret| format!("the log of {} says {secret:?}", node.name()))
        .collect()
}

/// What the roles carried since.
async fn from_control(node: &Daemon, before: &Standing) -> Result<Vec<String>> {
    let roles = roles(node).await?;
    let since = roles.iter().zip(&before.roles);
    Ok(since
        .filter_map(|(role, before)| {
            let more = role.total.saturating_sub(before.total);
            let bytes = role.bytes.saturating_sub(before.bytes);
            let waiting = match role.active {
                0 => String::new(),
                active => format!(", {active} built ahead"),
            };
            let fact = format!(
                "control: {} carried {more}{waiting}, {bytes} bytes",
                role.role
            );
            (more > 0 || bytes > 0).then_some(fact)
        })
        .collect())
}

async fn roles(node: &Daemon) -> Result<Vec<Carried>> {
    let mut roles = Vec::new();
    for role in ["relay", "hop", "exit"] {
        let report = node.call(role, json!({})).await?;
        let count = |key| report.get(key).and_then(Value::as_u64).unwrap_or(0);
        roles.push(Carried {
            role,
            total: count("total"),
            active: count("active"),
            bytes: count("bytes"),
        });
    }
    Ok(roles)
}
