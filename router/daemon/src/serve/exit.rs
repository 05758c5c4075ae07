//! The exit role: targets dialled, and names looked up, for others.
//!
//! The order is the point: the name is resolved here, each address passes the ban list, config.toml
//! and the rules, and only addresses that passed are dialled.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use wormholes_proto::{Host, Target, encode_resolved};
use wormholes_rules::{Allowance, ExitRequest, NodeView, Verdict};

use super::{Asker, accept, log_end, refuse, while_asked};
use crate::{
    config::ExitConfig,
    dial::{self, DialError},
    network::Network,
    pipe::{self, Pipe},
};

/// The asker's own limit is 15 s; an answer has to reach it.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Looking a name up, with all tries.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Joins `pipe` with `target`.
pub(super) async fn serve(network: &Arc<Network>, asker: &Asker, target: &Target, mut pipe: Pipe) {
    let counters = &network.counters().exit;
    let place = match network.exit().enter(counters, asker.id) {
        Ok(place) => place,
        Err(reason) => {
            counters.refuse(reason);
            return refuse(pipe, reason).await;
        }
    };
    let opened = async {
        let (addresses, allowance) = permitted(network, asker, target).await?;
        let stream = dial::connect(&addresses, DIAL_TIMEOUT).await?;
        Ok::<_, DialError>((stream, allowance))
    };
    let (stream, allowance) = match while_asked(&mut pipe, opened).await {
        None => return,
        Some(Ok(opened)) => opened,
        Some(Err(error)) => {
            tracing::debug!(from = %asker.id, %error, "exit refused");
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
    if accept(&mut pipe, Vec::new()).await {
        let limits = place.limits(&allowance);
        let end = pipe::copy(pipe, Pipe::tcp(stream), &limits, &place.bytes).await;
        log_end("exit", asker, &end);
    }
}

/// Looks `host` up and answers with the addresses that an exit would dial.
pub(super) async fn resolve(network: &Arc<Network>, asker: &Asker, host: &Host, mut pipe: Pipe) {
    let counters = &network.counters().exit;
    let found = async {
        let _place = network.exit().enter(counters, asker.id)?;
        let target = Target::new(host.clone(), 0);
        let addresses = lookup(network, &target)
            .await
            .map_err(|error| error.reason())?;
        let config = &network.config().exit;
        let check = |address: SocketAddr| {
            not_banned(network, config, address)?;
            // What is dialled at no port is nobody's to look up here.
            let allowed = config
                .allow
                .iter()
                .any(|rule| rule.net.contains(&address.ip()));
            allowed.then_some(()).ok_or(DialError::Denied)
        };
        dial::permitted(addresses, check).map_err(|error| error.reason())
    };
    let addresses = match while_asked(&mut pipe, found).await {
        None => return,
        Some(Ok(addresses)) => addresses,
        Some(Err(reason)) => {
            counters.refuse(reason);
            return refuse(pipe, reason).await;
        }
    };
    let answer = encode_resolved(addresses.iter().map(SocketAddr::ip));
    if accept(&mut pipe, answer).await {
        let _ = pipe.writer.finish().await;
    }
}

async fn lookup(network: &Network, target: &Target) -> Result<Vec<SocketAddr>, DialError> {
    let resolve = network.resolver().resolve(target);
    let found = tokio::time::timeout(RESOLVE_TIMEOUT, resolve).await;
    found.unwrap_or(Err(DialError::TimedOut))
}

/// The addresses of `target` that may be dialled for `asker`, and the narrowest of the rules'
/// limits.
async fn permitted(
    network: &Arc<Network>,
    asker: &Asker,
    target: &Target,
) -> Result<(Vec<SocketAddr>, Allowance), DialError> {
    let config = &network.config().exit;
    let from = network.asker_view(asker);
    let bytes_today = network.exit().bytes_today(&asker.id);
    let mut allowance = Allowance::default();
    let addresses = dial::permitted(lookup(network, target).await?, |address| {
        not_banned(network, config, address)?;
        if !config.allow.iter().any(|rule| rule.allows(address)) {
            return Err(DialError::Denied);
        }
        let request = exit_request(&from, target, address, bytes_today);
        match network.gatekeeper().exit(&request) {
            Verdict::Allow(given) => {
                // A name's addresses are one target: the limits of all verdicts hold.
                allowance = allowance.narrowed(&given);
                Ok(())
            }
            Verdict::Deny(why) => {
                tracing::debug!(from = %from.name, why, "exit denied by rule");
                Err(DialError::Denied)
            }
        }
    })?;
    Ok((addresses, allowance))
}

fn exit_request(
    from: &Arc<NodeView>,
    target: &Target,
    address: SocketAddr,
    bytes_today: u64,
) -> ExitRequest {
    ExitRequest {
        from: Arc::clone(from),
        host: target.host.to_string(),
        ip: address.ip(),
        port: address.port(),
        bytes_today,
        now: SystemTime::now(),
    }
}

fn not_banned(
    network: &Network,
    config: &ExitConfig,
    address: SocketAddr,
) -> Result<(), DialError> {
    network
        .check_ban(address, config.allow_private)
        .map_err(DialError::from)
}
