//! `ping` and `netcheck`: what of the network can be reached from here, and why not.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use tokio::time::timeout;
use wormholes_proto::{
    NodeId, Open, ServiceName,
    control::{Check, NetReport, PeerParams, PingReport, RpcError},
};
use wormholes_rules::Tunnel;

use super::{answer::failed, peers};
use crate::{
    carrier::{self, Link},
    config::PeerConfig,
    node::NodeCore,
    tunnel::{OpenError, TunnelRequest},
};

/// To connect and to answer, each.
const REACH_TIMEOUT: Duration = Duration::from_secs(10);
/// Peers that are tried at once; the others wait for their turn.
const MAX_AT_ONCE: usize = 32;
/// Peers that are tried at all: with those at once and the time for each, a check ends in two
/// minutes.
const MAX_TRIED: usize = 256;

pub(super) async fn ping(
    core: &Arc<NodeCore>,
    params: &PeerParams,
) -> Result<PingReport, RpcError> {
    let node = peers::find(core, &params.peer)?;
    let stood = core.network.peers().link(&node.id).is_some();
    let start = Instant::now();
    let link = connect(core, node.id).await.map_err(|error| {
        if node.has_address || node.relays.is_empty() {
            failed(error)
        } else {
            failed(format!("{error}; `wormholes netcheck` tries its relays"))
        }
    })?;
    let connected = start.elapsed();
    let round_trip = round_trip(&link).await.map_err(failed)?;
    Ok(PingReport {
        name: node.name.clone(),
        id: node.id,
        rtt_ms: millis(round_trip),
        address: Some(link.remote_address()),
        connect_ms: (!stood).then(|| millis(connected)),
    })
}

pub(super) async fn netcheck(core: &Arc<NodeCore>) -> NetReport {
    let mut checks = listen_checks(core);
    checks.push(buffer_check());
    let mut peers = core.added.with(&core.config.peers);
    peers.truncate(MAX_TRIED);
    let reached: Vec<Check> = stream::iter(peers)
        .map(|peer| peer_check(Arc::clone(core), peer))
        .buffered(MAX_AT_ONCE)
        .collect()
        .await;
    checks.extend(reached);
    checks.extend(registration_checks(core));
    NetReport { checks }
}

async fn connect(core: &Arc<NodeCore>, id: NodeId) -> Result<Link, String> {
    match timeout(REACH_TIMEOUT, core.network.connect(id, None)).await {
        Ok(Ok(link)) => Ok(link),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

/// From an OPEN to its answer, whatever the answer is. The records that the peer then begins to
/// send are not read.
async fn round_trip(link: &Link) -> Result<Duration, String> {
    let ask = async {
        let mut pipe = link.open().await.map_err(|error| error.to_string())?;
        let start = Instant::now();
        let sent = pipe.writer.send_open(&Open::Records).await;
        sent.map_err(|error| error.to_string())?;
        let answer = pipe.reader.read_answer().await;
        answer
            .map(|_| start.elapsed())
            .map_err(|error| error.to_string())
    };
    let asked = timeout(REACH_TIMEOUT, ask).await;
    asked.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

fn listen_checks(core: &NodeCore) -> Vec<Check> {
    let listen = core.network.listen_addresses();
    let advertised = &core.network.own_record();
    let advertised = &advertised.record().addresses;
    if listen.is_empty() {
        return vec![Check {
            kind: "listen".to_owned(),
            name: "-".to_owned(),
            ok: true,
            detail: "nowhere: this node only dials".to_owned(),
            hint: None,
        }];
    }
    let told = told(advertised);
    let check = |address: &SocketAddr| Check {
        kind: "listen".to_owned(),
        name: address.to_string(),
        ok: true,
        detail: format!("bound; peers are told {told}"),
        hint: advertised.is_empty().then(|| {
            "set `advertise` in [node] to the address that peers can dial, or register with a relay"
                .to_owned()
        }),
    };
    listen.iter().map(check).collect()
}

fn told(addresses: &[SocketAddr]) -> String {
    if addresses.is_empty() {
        return "no address".to_owned();
    }
    let addresses = addresses.iter().map(ToString::to_string);
    addresses.collect::<Vec<_>>().join(", ")
}

fn buffer_check() -> Check {
    let granted = carrier::granted_buffers();
    let (large, detail) = match &granted {
        Ok((receive, send, wanted)) => (
            receive.min(send) >= wanted,
            format!(
                "{} KiB to receive, {} KiB to send, {} KiB wanted",
                receive / 1024,
                send / 1024,
                wanted / 1024
            ),
        ),
        Err(error) => (false, error.to_string()),
    };
    let wanted = granted.map_or(0, |(_, _, wanted)| wanted);
    Check {
        kind: "buffers".to_owned(),
        name: "udp".to_owned(),
        // Small ones are slow, and nothing is unreachable for it.
        ok: true,
        detail,
        hint: (!large).then(|| {
            format!(
                "transfers will be slower; as root: sysctl -w net.core.rmem_max={wanted} \
                 net.core.wmem_max={wanted}"
            )
        }),
    }
}

async fn peer_check(core: Arc<NodeCore>, peer: PeerConfig) -> Check {
    let core = &core;
    let has_address = !peers::addresses(core, peer.id).is_empty();
    let stands = core.network.peers().link(&peer.id).is_some();
    let reached = if has_address || stands {
        reach_direct(core, peer.id).await
    } else if core.network.view(peer.id).relays.is_empty() {
        Err("neither an address nor a relay of it is known".to_owned())
    } else {
        reach_relayed(core, peer.id).await
    };
    let hint = match &reached {
        Ok(_) => None,
        Err(_) if has_address => Some(
            "is its daemon running, its UDP port open, and this node among its peers?".to_owned(),
        ),
        Err(_) => Some("is it running, and registered with a relay that knows both?".to_owned()),
    };
    Check {
        kind: "peer".to_owned(),
        name: peer.name,
        ok: reached.is_ok(),
        detail: reached.unwrap_or_else(|why| why),
        hint,
    }
}

async fn reach_direct(core: &Arc<NodeCore>, id: NodeId) -> Result<String, String> {
    let link = connect(core, id).await?;
    let round_trip = round_trip(&link).await?;
    let address = link.remote_address();
    Ok(format!("{address}, {:.1} ms", millis(round_trip)))
}

/// Asks the peer through its relay for a service that it does not have: its refusal shows that it
/// is there.
async fn reach_relayed(core: &Arc<NodeCore>, id: NodeId) -> Result<String, String> {
    let target = "netcheck.wh:1"
        .parse()
        .map_err(|_| "no target".to_owned())?;
    let request = TunnelRequest {
        target,
        service: ServiceName::parse("netcheck").ok(),
        isolation: String::new(),
        timeout: REACH_TIMEOUT,
    };
    let tunnel = Tunnel::Relay {
        via: None,
        to: id,
        exit: false,
    };
    let start = Instant::now();
    let opened = core.network.open(&tunnel, &request).await;
    let reached = match opened {
        Ok(_) => Ok(()),
        Err(OpenError::Refused { node, .. }) if node.id == id => Ok(()),
        Err(error) => Err(error.to_string()),
    };
    reached.map(|()| format!("through a relay, {:.1} ms", millis(start.elapsed())))
}

fn registration_checks(core: &NodeCore) -> Vec<Check> {
    let registrations = core.network.registrations().into_iter();
    registrations
        .map(|(id, state)| Check {
            kind: "relay".to_owned(),
            name: core.network.view(id).name.clone(),
            ok: state.is_ok(),
            detail: match &state {
                Ok(()) => "registered: peers reach this node through it".to_owned(),
                Err(why) => format!("not registered: {why}"),
            },
            hint: state.is_err().then(|| {
                "does it run with [relay] enabled, and is this node among its peers?".to_owned()
            }),
        })
        .collect()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
