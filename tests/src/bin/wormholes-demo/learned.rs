//! What each node could learn, from three witnesses: packets at its address, its own debug log,
//! and its control socket.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use anyhow::Result;
use serde_json::{Value, json};
use wormholes_tests::{Captured, Daemon, SITE_GREETING, TestNetwork, udp_addresses};

use crate::row::Case;

/// The target of log lines in which a node says what a request let it see.
const LEARNED: &str = "wormholes::learned";

/// Facts by node, and those that should not be.
#[derive(Debug, Default)]
pub(crate) struct Learned {
    pub(crate) facts: BTreeMap<String, Vec<String>>,
    pub(crate) wrong: Vec<String>,
}

/// How long each node's log was before the request.
pub(crate) fn log_marks(network: &TestNetwork) -> BTreeMap<String, usize> {
    let length = |node: &&Daemon| (node.name().to_owned(), node.log().lines().len());
    network.nodes().iter().map(length).collect()
}

/// Asks all witnesses about all nodes but the client, which knows everything.
pub(crate) async fn collect(
    network: &TestNetwork,
    case: &Case,
    captured: &Captured,
    marks: &BTreeMap<String, usize>,
) -> Result<Learned> {
    let mut learned = Learned::default();
    let owners = owners(network)?;
    for node in network.nodes() {
        if node.name() == "client" {
            continue;
        }
        let addresses = owners.iter().filter(|(_, name)| *name == node.name());
        let addresses: Vec<_> = addresses.map(|(address, _)| *address).collect();
        let mut facts = from_packets(&addresses, case, captured, &owners);
        learned
            .wrong
            .extend(leaks(node, case, &addresses, captured));
        let mark = marks.get(node.name()).copied().unwrap_or(0);
        let said: Vec<_> = node
            .log()
            .lines()
            .split_off(mark.min(node.log().lines().len()));
        facts.extend(from_log(&said, network));
        learned
            .wrong
            .extend(secrets_in_log(node, case, &said, network));
        facts.extend(from_control(node).await?);
        if !facts.is_empty() {
            learned.facts.insert(node.name().to_owned(), facts);
        }
    }
    Ok(learned)
}

/// Which node has which UDP address. One that is bound to 0.0.0.0 sends from 127.0.0.1 here.
fn owners(network: &TestNetwork) -> Result<Vec<(SocketAddrV4, String)>> {
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

fn from_packets(
    addresses: &[SocketAddrV4],
    case: &Case,
    captured: &Captured,
    owners: &[(SocketAddrV4, String)],
) -> Vec<String> {
    let sum = |count: &dyn Fn(SocketAddrV4) -> u64| -> u64 {
        addresses.iter().map(|address| count(*address)).sum()
    };
    let packets = sum(&|address| captured.packets_at(address));
    if packets == 0 {
        return Vec::new();
    }
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

/// What the node's debug log says that it learned, with names in the place of node ids.
fn from_log(said: &[String], network: &TestNetwork) -> Vec<String> {
    let lines = said.iter().filter_map(|line| line.split_once(LEARNED));
    let mut facts: Vec<_> = lines
        .map(|(_, fact)| {
            let mut fact = fact.trim_start_matches(':').trim().to_owned();
            for node in network.nodes() {
                fact = fact.replace(&node.id().to_string(), node.name());
            }
            format!("log: {fact}")
        })
        .collect();
    facts.dedup();
    facts
}

/// A node in the middle must not even log what it cannot know.
fn secrets_in_log(
    node: &Daemon,
    case: &Case,
    said: &[String],
    network: &TestNetwork,
) -> Vec<String> {
    let is_end = case.path.last().is_some_and(|last| node.name() == *last);
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

/// What the roles say of themselves: counts, never targets.
async fn from_control(node: &Daemon) -> Result<Vec<String>> {
    let status = node.call("status", json!({})).await?;
    let role = |name: &str| {
        let active = status.pointer(&format!("/roles/{name}/active"));
        let active = active.and_then(Value::as_u64).unwrap_or(0);
        (active > 0).then(|| format!("control: {name} carries {active}"))
    };
    Ok(["relay", "hop", "exit"]
        .into_iter()
        .filter_map(role)
        .collect())
}
