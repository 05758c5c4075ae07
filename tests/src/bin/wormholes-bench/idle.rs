//! Idle flows: what each costs the client's node while nothing moves on it.

use anyhow::{Context, Result};
use tokio::net::TcpStream;
use wormholes_proto::CarrierKind;
use wormholes_tests::resident_bytes;

use crate::{
    ground::{Course, Ground},
    load,
    network::Network,
    route::{Route, Tunnel},
    row::Row,
};

/// Idle flows that memory is divided by.
const IDLE_FLOWS: usize = 1_000;
/// The same on a busy node.
const MANY: usize = 10_000;
/// Those before them pay for what is there once.
const FIRST_IDLE_FLOWS: usize = 100;

pub(crate) const MANY_IDLE_FLOWS: &str = "idle flow, client daemon, 10,000 of them";

/// The row of [`idle_flow`].
pub(crate) fn idle_row(route: Route) -> String {
    format!("{}, idle flow, client daemon", route.name())
}

/// Memory of the client's node for a flow on which nothing moves. All stay open: what a flow that
/// ended leaves behind would serve the next.
pub(crate) async fn idle_flow(ground: &mut Ground, route: Route) -> Result<Vec<Row>> {
    let course = ground.route(route).await?;
    let value = memory_of_flows(&course, IDLE_FLOWS, &mut ground.idle_flows).await?;
    Ok(vec![Row::alone(idle_row(route), value, "KiB")?])
}

/// The same among many, on nodes of their own.
pub(crate) async fn many_idle_flows(ground: &Ground) -> Result<Vec<Row>> {
    let network = Network::start(ground.load(), CarrierKind::Quic).await?;
    let course = network.course(Tunnel::Service)?;
    let value = memory_of_flows(&course, MANY, &mut Vec::new()).await?;
    Ok(vec![Row::alone(MANY_IDLE_FLOWS, value, "KiB")?])
}

/// KiB a flow. They are added to `flows`.
async fn memory_of_flows(course: &Course, count: usize, flows: &mut Vec<TcpStream>) -> Result<f64> {
    let client = *course.pids.first().context("nobody is on the way")?;
    flows.extend(load::idle(&course.way, FIRST_IDLE_FLOWS).await?);
    let before = resident_bytes(client)?;
    flows.extend(load::idle(&course.way, count).await?);
    let grown = resident_bytes(client)?.saturating_sub(before);
    Ok(grown as f64 / 1024.0 / count as f64)
}
