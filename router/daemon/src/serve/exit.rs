//! The exit role: targets dialled, and names looked up, for others.
//!
//! The order is the point: the name is resolved here, each address passes the ban list, config.toml
//! and the rules, and only addresses that passed are dialled, or told.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use wormholes_host::Service;
use wormholes_proto::{Host, Reason, Target, Transport, encode_resolved};
use wormholes_rules::{Allowance, ExitRequest, Verdict};

use super::{Asker, accept, grant, log_end, refuse, while_asked};
use crate::{
    config::{ExitConfig, ExitRule},
    dial::{self, DialError},
    network::Network,
    pipe::{self, Pipe},
};

/// The asker's own limit is 15 s; an answer has to reach it.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Looking a name up, with all tries.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Joins `pipe` with `target`.
pub(super) async fn serve(
    network: &Arc<Network>,
    asker: &Asker,
    transport: Transport,
    target: &Target,
    mut pipe: Pipe,
) {
    let counters = &network.counters().exit;
    let place = match network.exit().enter(counters, asker.customer()) {
        Ok(place) => place,
        Err(reason) => {
            counters.refuse(reason);
            return refuse(pipe, reason).await;
        }
    };
    let opened = async {
        let dialled = Some((transport, target.port));
        let (addresses, allowance) = permitted(network, asker, &target.host, dialled).await?;
        let counters = network.counters();
        let far = dial::side(transport, &addresses, DIAL_TIMEOUT, counters).await?;
        Ok::<_, DialError>((far, allowance))
    };
    let (far, allowance) = match while_asked(&mut pipe, opened).await {
        None => return,
        Some(Ok(opened)) => opened,
        Some(Err(error)) => {
            tracing::debug!(from = %network.named(asker.id), %error, "exit refused");
            counters.refuse(error.reason());
            return refuse(pipe, error.reason()).await;
        }
    };
    tracing::debug!(
        target: "wormholes::learned",
        role = "exit",
        previous = %asker.id,
        way = ?asker.way,
        %target,
        "exit learned the target and the node before"
    );
    if let Some(near) = grant(network, pipe, transport).await {
        let limits = place.limits(&allowance);
        let usage = network.usage();
        let bill = usage.bill(&allowance, Service::Exit, &place.bytes);
        let end = pipe::join(near, far, &limits, &place.bytes).await;
        drop(bill);
        log_end(network, "exit", asker, &end);
    }
}

/// Looks `host` up and answers with the addresses that an exit would dial. What is asked and
/// answered counts as bytes; the limits of a verdict are for streams that stay.
pub(super) async fn resolve(network: &Arc<Network>, asker: &Asker, host: &Host, mut pipe: Pipe) {
    let counters = &network.counters().exit;
    let found = async {
        let place = network.exit().enter(counters, asker.customer())?;
        let (addresses, allowance) =
            permitted(network, asker, host, None)
                .await
                .map_err(|error| {
                    tracing::debug!(from = %network.named(asker.id), %error, "look-up refused");
                    error.reason()
                })?;
        let answer = encode_resolved(addresses.iter().map(SocketAddr::ip));
        let _bill = network
            .usage()
            .bill(&allowance, Service::Exit, &place.bytes);
        place.pass(host.to_string().len(), answer.len()).await;
        Ok::<_, Reason>(answer)
    };
    let answer = match while_asked(&mut pipe, found).await {
        None => return,
        Some(Ok(answer)) => answer,
        Some(Err(reason)) => {
            counters.refuse(reason);
            return refuse(pipe, reason).await;
        }
    };
    if accept(&mut pipe, answer).await {
        let _ = pipe.writer.finish().await;
    }
}

/// The addresses of `host` that may be dialled by that transport at that port for `asker`, or told
/// when there is none; and the narrowest of the rules' limits.
async fn permitted(
    network: &Arc<Network>,
    asker: &Asker,
    host: &Host,
    dialled: Option<(Transport, u16)>,
) -> Result<(Vec<SocketAddr>, Allowance), DialError> {
    let config = &network.config().exit;
    let port = dialled.map(|(_, port)| port);
    let from = network.asker_view(asker);
    let bytes_today = network.exit().bytes_today(asker.customer());
    let addresses = lookup(network, host, port.unwrap_or(0)).await?;
    let addresses = dial::permitted(addresses, |address| {
        let transport = dialled.map_or(Transport::Tcp, |(transport, _)| transport);
        not_banned(network, config, transport, address)?;
        let listed = |rule: &ExitRule| match port {
            Some(_) => rule.allows(address),
            // What is dialled at no port is nobody's to look up here.
            None => rule.net.contains(&address.ip()),
        };
        let listed = config.allow.iter().any(listed);
        listed.then_some(()).ok_or(DialError::Denied)
    })?;
    let mut passed = Vec::new();
    let mut allowance = Allowance::default();
    for address in addresses {
        let request = ExitRequest {
            from: from.clone(),
            host: host.to_string(),
            network: dialled.map(|(transport, _)| transport.as_str()),
            ip: address.ip(),
            port,
            bytes_today,
            now: SystemTime::now(),
        };
        match network.gatekeeper().exit(request).await {
            Verdict::Allow(given) => {
                // A name's addresses are one target: the limits of all verdicts hold.
                allowance = allowance.narrowed(&given);
                passed.push(address);
            }
            Verdict::Deny(why) => {
                tracing::debug!(from = %asker.id, why, "exit denied by rule");
            }
        }
    }
    if passed.is_empty() {
        return Err(DialError::Denied);
    }
    Ok((passed, allowance))
}

async fn lookup(network: &Network, host: &Host, port: u16) -> Result<Vec<SocketAddr>, DialError> {
    let target = Target::new(host.clone(), port);
    let resolve = network.resolver().resolve(&target);
    let found = tokio::time::timeout(RESOLVE_TIMEOUT, resolve).await;
    found.unwrap_or(Err(DialError::TimedOut))
}

fn not_banned(
    network: &Network,
    config: &ExitConfig,
    transport: Transport,
    address: SocketAddr,
) -> Result<(), DialError> {
    network
        .check_ban(transport, address, config.allow_private)
        .map_err(DialError::from)
}
