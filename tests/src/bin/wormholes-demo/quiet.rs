//! Waits until the network has nothing left to do: what is seen afterwards is of what is asked
//! afterwards, and what was seen before is all there is of what was asked before.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use wormholes_tests::{Capture, Captured, TestNetwork, until};

use crate::learned::{self, LEARNED, owners};

/// A request and what it leaves behind (a circuit that is built ahead, a connection that is
/// closed) go on without a longer pause, even on a busy machine.
const LONGEST_PAUSE: Duration = Duration::from_millis(150);

/// Returns when no flow is open at the client, nobody carries anything for others except circuits
/// that wait for a flow, and for a while no node sent a packet or said that it learned something.
pub(crate) async fn wait(network: &TestNetwork) -> Result<()> {
    let capture = Capture::start(&[])?;
    let (mut before, mut since) = (None, Instant::now());
    until("the network to be quiet", async || {
        let seen = traces(network, &capture.so_far()).ok()?;
        let busy = is_busy(network).await.ok()?;
        if busy || before.as_ref() != Some(&seen) {
            (before, since) = (Some(seen), Instant::now());
        }
        (since.elapsed() >= LONGEST_PAUSE).then_some(())
    })
    .await
}

/// For each node, how many packets and how many lines of log.
fn traces(network: &TestNetwork, captured: &Captured) -> Result<Vec<(u64, usize)>> {
    let owners = owners(network)?;
    let node = |node: &&wormholes_tests::Daemon| {
        let addresses = learned::addresses(node, &owners);
        let packets = addresses.into_iter().map(|at| captured.packets_at(at));
        (packets.sum(), node.log().matching(LEARNED).len())
    };
    Ok(network.nodes().iter().map(node).collect())
}

async fn is_busy(network: &TestNetwork) -> Result<bool> {
    for node in network.nodes() {
        let status = node.call("status", json!({})).await?;
        let count = |place| status.pointer(place).and_then(Value::as_u64).unwrap_or(0);
        let busy = ["/flows/open", "/roles/relay/active", "/roles/exit/active"];
        if busy.into_iter().any(|place| count(place) > 0) {
            return Ok(true);
        }
    }
    Ok(false)
}
