//! `ping` and `netcheck`: what of the network can be reached from here, and why not.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use wormholes_proto::control::{
    Access, Check, NetReport, PeerParams, PingReport, RpcError, TorService, TorServiceState,
    TorState,
};

use super::{
    answer::failed,
    peers,
    reach::{Reached, Way, may_need_tor, reach},
    tor,
};
use crate::{carrier, config::PeerConfig, node::NodeCore};

/// Peers that are tried at once; the others wait for their turn.
const MAX_AT_ONCE: usize = 32;
/// Peers that are tried at all: with those at once and the time for each, a check ends in two
/// minutes. Through Tor each may take one of them, so that there is one turn.
const MAX_TRIED: usize = 256;

pub(super) async fn ping(
    core: &Arc<NodeCore>,
    params: &PeerParams,
) -> Result<PingReport, RpcError> {
    let node = peers::find(core, &params.peer)?;
    let reached = reach(core, node.id).await.map_err(|unreached| {
        let name = core.network.named(node.id);
        failed(format!(
            "{name} is not reached: {}; {}",
            unreached.why, unreached.hint
        ))
    })?;
    let mut report = PingReport {
        name: node.name.clone(),
        id: node.id,
        rtt_ms: millis(reached.round_trip),
        address: None,
        tor: false,
        onion: None,
        relay: None,
        connect_ms: reached.connected.map(millis),
    };
    match reached.way {
        Way::Straight(address) => report.address = Some(address),
        Way::Tor(onion) => {
            report.tor = true;
            report.onion = onion.map(|onion| onion.to_string());
        }
        Way::Relay(relay) => report.relay = Some(core.network.view(relay).name.clone()),
    }
    Ok(report)
}

pub(super) async fn netcheck(core: &Arc<NodeCore>) -> NetReport {
    let mut checks = listen_checks(core);
    checks.push(buffer_check());
    checks.extend(peer_checks(core).await);
    checks.extend(registration_checks(core));
    checks.extend(punch_checks(core));
    checks.extend(tor_checks(core));
    checks.extend(i2p_checks(core).await);
    NetReport { checks }
}

async fn peer_checks(core: &Arc<NodeCore>) -> Vec<Check> {
    let peers = core.all_peers().into_iter();
    let (mut by_tor, mut others): (Vec<_>, Vec<_>) =
        peers.partition(|peer| may_need_tor(core, peer.id));
    by_tor.truncate(MAX_AT_ONCE);
    others.truncate(MAX_TRIED);
    let check = |peers: Vec<PeerConfig>| {
        stream::iter(peers)
            .map(move |peer| peer_check(Arc::clone(core), peer))
            .buffered(MAX_AT_ONCE)
            .collect::<Vec<Check>>()
    };
    let (others, by_tor) = tokio::join!(check(others), check(by_tor));
    [others, by_tor].concat()
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
            detail: match core.config.tor.peers {
                true => "nowhere but at its onion address",
                false => "nowhere: this node only dials",
            }
            .to_owned(),
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
    let reached = reach(&core, peer.id).await;
    let found = |reached: &Reached| {
        let way = match &reached.way {
            Way::Straight(address) => address.to_string(),
            Way::Tor(Some(onion)) => onion.to_string(),
            Way::Tor(None) => "through Tor".to_owned(),
            Way::Relay(relay) => format!("through {}", core.network.view(*relay).name),
        };
        format!("{way}, {:.1} ms", millis(reached.round_trip))
    };
    Check {
        kind: "peer".to_owned(),
        name: peer.name,
        ok: reached.is_ok(),
        hint: reached
            .as_ref()
            .err()
            .map(|unreached| unreached.hint.to_owned()),
        detail: match reached {
            Ok(reached) => found(&reached),
            Err(unreached) => unreached.why,
        },
    }
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

/// Peers to whom no direct path could be made. Flows reach them by relays, so that nothing is wrong.
fn punch_checks(core: &NodeCore) -> Vec<Check> {
    let missed = core.all_peers().into_iter().filter_map(|peer| {
        if core.network.peers().link(&peer.id).is_some() {
            return None;
        }
        let failed = peers::failed_punch(core, peer.id)?;
        Some(Check {
            kind: "punch".to_owned(),
            name: peer.name,
            ok: true,
            detail: format!("no direct path ({}): {}", failed.reason, failed.why),
            hint: Some(
                "flows go through a relay; a forwarded UDP port at one end, told by `advertise` \
                 in [node] there, makes a direct path"
                    .to_owned(),
            ),
        })
    });
    missed.take(MAX_TRIED).collect()
}

/// Whether Tor is ready, and others find what is here, where config.toml has it on.
fn tor_checks(core: &NodeCore) -> Vec<Check> {
    let report = tor::status(core, Access::Operator);
    let (found, hint) = match report.state {
        TorState::Absent | TorState::Disabled => return Vec::new(),
        TorState::Ready => (
            Ok(format!("ready; {} streams are open", report.streams)),
            "",
        ),
        TorState::Starting => {
            let mut told = format!("{} % of its way into the network", report.progress_percent);
            for why in [report.blocked, report.error].into_iter().flatten() {
                told += &format!("; {why}");
            }
            let hint = "is the clock right, and is Tor blocked here? `bridges` in [tor] are a way \
                        around";
            (Err(told), hint)
        }
        TorState::Stopped => (
            Err("a command stopped it".to_owned()),
            "`wormholes tor start` starts it",
        ),
        TorState::Failed => (
            Err(report.error.unwrap_or_default()),
            "mend that, then `wormholes tor start`",
        ),
    };
    let network = check("tor", "network".to_owned(), found, hint);
    let services = report.services.into_iter().map(onion_check);
    [network].into_iter().chain(services).collect()
}

fn onion_check(service: TorService) -> Check {
    let problem = service.problem;
    let problem = problem.map_or_else(String::new, |problem| format!("; {problem}"));
    let found = match service.state {
        TorServiceState::Reachable => Ok(format!("others find it{problem}")),
        TorServiceState::Publishing => Err(format!("not published so far{problem}")),
        TorServiceState::Unreachable => Err(format!("others do not find it{problem}")),
        TorServiceState::Stopped => Err(format!("not published while Tor is not ready{problem}")),
    };
    let hint = "once Tor is ready that takes up to a minute, and it is tried again and again";
    check("tor", service.name, found, hint)
}

async fn i2p_checks(core: &NodeCore) -> Vec<Check> {
    let Some(i2p) = core.network.i2p() else {
        return Vec::new();
    };
    let report = i2p.report(&core.config, false).await;
    let ready = report.sessions.iter().filter(|it| it.ready).count();
    let answers = Ok(format!("it answers; {ready} sessions stand"));
    let router = check(
        "i2p",
        i2p.router().to_string(),
        report.error.map_or(answers, Err),
        "start an I2P router, with SAM on; `sam` in [i2p] says where",
    );
    let services = report.services.into_iter().map(|service| {
        let found = service.error.map_or(Ok("published".to_owned()), Err);
        let hint = "a new session takes a router 20 s and more";
        check("i2p", service.name, found, hint)
    });
    [router].into_iter().chain(services).collect()
}

/// What was found, or else what is wrong, with what may be done about it.
fn check(kind: &str, name: String, found: Result<String, String>, hint: &str) -> Check {
    Check {
        kind: kind.to_owned(),
        name,
        ok: found.is_ok(),
        hint: found.is_err().then(|| hint.to_owned()),
        detail: found.unwrap_or_else(|wrong| wrong),
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
