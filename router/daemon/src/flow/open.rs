//! Opens a plan: its steps in order, the tunnels of a step at once, each held against `guard`.
//! Whether the next one is tried is decided by an error's remedy and nothing else.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use wormholes_proto::{NodeId, Reason, Remedy, Transport};
use wormholes_rules::{Marks, Plan, RuleRef, Step, Tunnel, TunnelKind};

use super::{
    Asked, Forbidden, Refusal, Tried,
    decide::{Choice, Trip},
    guard,
    moving::Terms,
};
use crate::{
    dial,
    names::short_id,
    node::NodeCore,
    pipe::CopyLimits,
    tunnel::{OpenError, Opened, TunnelRequest},
};

/// How long a tunnel may take to open; RFC 1928 clients give up at some 20 s.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How long a node may be dialled before the next step has its turn, which shall come within two
/// seconds: a handshake whose first packet was lost takes one.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Each query has a port of its own, and is answered or repeated by then (RFC 4787 leaves what is
/// known to be short out of its two minutes).
const DNS_IDLE: Duration = Duration::from_secs(20);
const DNS_PORT: u16 = 53;
/// An onion passes up to eight links.
const ONION_TIMEOUT: Duration = Duration::from_secs(30);
/// An onion service of Tor is met over six relays, after its descriptor was fetched over four; and at
/// the start the way into the network comes first.
const TOR_TIMEOUT: Duration = Duration::from_secs(60);
/// A destination that has to be made first takes a router some 20 s, or 40.
const I2P_TIMEOUT: Duration = Duration::from_secs(60);

/// A tunnel that stands, and what the plan said about it.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) opened: Opened,
    pub(super) limits: CopyLimits,
    /// None: the default of config.toml.
    pub(super) rule: Option<RuleRef>,
    pub(super) label: Option<String>,
    /// None: it travels as it opened until it ends.
    pub(super) moves: Option<Terms>,
}

/// A plan that did not open.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) refusal: Refusal,
    /// No other tunnel would do better.
    pub(super) is_final: bool,
    /// It may be the target's: to another one the same tunnel may open.
    pub(super) of_target: bool,
}

/// Addresses that a look-up found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) ips: Vec<IpAddr>,
    /// They are another node's word.
    pub(super) told: bool,
}

/// Opens the first step that can be opened; of a plan that sticks, from the one on that did last.
pub(super) async fn plan(trip: &Trip<'_>, choice: Choice) -> Result<Route, Failure> {
    let mut failure = Failure {
        refusal: Refusal::Blocked("the plan is empty".to_owned()),
        is_final: true,
        of_target: false,
    };
    let sticks = &trip.core.sticks;
    let turn = sticks.begin(&choice.plan, &trip.asked.target, Instant::now());
    let mut of_target = false;
    for place in 0..choice.plan.steps.len() {
        let number = turn.as_ref().map_or(place, |turn| turn.step_at(place));
        let Some(step) = choice.plan.steps.get(number) else {
            continue;
        };
        let is_last = place + 1 == choice.plan.steps.len();
        let patience = (!is_last).then_some(PATIENCE);
        // A sleep of no time at all takes up to a millisecond.
        if let Some(delay) = step.marks.delay {
            tokio::time::sleep(delay).await;
        }
        match race(trip, step, patience).await {
            Ok(opened) => {
                if let Some(turn) = turn {
                    turn.opened(number, of_target, Instant::now());
                }
                return Ok(Route {
                    limits: limits(trip, &step.marks),
                    label: step.marks.label.clone(),
                    rule: choice.rule,
                    moves: Terms::of(choice.plan, number, &opened),
                    opened,
                });
            }
            Err(failed) if failed.is_final => return Err(failed),
            Err(failed) => {
                of_target |= failed.of_target;
                failure = failed;
            }
        }
    }
    Err(failure)
}

/// Looks the target's name up through the first step that can.
pub(super) async fn lookup(trip: &Trip<'_>, plan: &Plan) -> Result<Found, Refusal> {
    let mut refusal = Refusal::Blocked("the plan is empty".to_owned());
    let mut steps = plan.steps.iter();
    while let Some(step) = steps.next() {
        let patience = (steps.len() > 0).then_some(PATIENCE);
        tokio::time::sleep(step.marks.delay.unwrap_or_default()).await;
        for tunnel in &step.tunnels {
            let start = trip.tries(tunnel);
            let what = format!("look-up through {}", describe(trip.core, tunnel));
            let (network, host) = (&trip.core.network, &trip.asked.target.host);
            if let Err(forbidden) = guard::check_localhost(network, host, tunnel) {
                trip.tried(what, start, Some(&forbidden), None);
                refusal = forbidden.into();
                continue;
            }
            let request = request(trip, tunnel, &step.marks, patience);
            let found = network.resolve(tunnel, &request).await;
            let error = found.as_ref().err();
            trip.tried(what, start, error, error.and_then(OpenError::node));
            match found {
                Ok(ips) => {
                    let told = !is_local(tunnel);
                    return Ok(Found { ips, told });
                }
                Err(error) => {
                    refusal = Refusal::of_lookup(&error, tunnel);
                    if error.kind().remedy == Remedy::GiveUp {
                        return Err(refusal);
                    }
                }
            }
        }
    }
    Err(refusal)
}

/// Opens all tunnels of a step at once; the first to open wins, the others are dropped, which ends
/// what they had begun.
async fn race(trip: &Trip<'_>, step: &Step, patience: Option<Duration>) -> Result<Opened, Failure> {
    if let [tunnel] = step.tunnels.as_slice() {
        return one(trip, tunnel, &step.marks, patience).await;
    }
    let start = Instant::now();
    let mut racers: Vec<&Tunnel> = step.tunnels.iter().collect();
    let open = async |tunnel| (tunnel, one(trip, tunnel, &step.marks, patience).await);
    let mut running: FuturesUnordered<_> = racers.iter().copied().map(open).collect();
    let mut failures: Vec<Failure> = Vec::new();
    while let Some((tunnel, result)) = running.next().await {
        racers.retain(|racer| !std::ptr::eq(*racer, tunnel));
        match result {
            Ok(opened) => {
                for loser in racers {
                    trip.tried(
                        describe(trip.core, loser),
                        start,
                        Some(&"lost the race"),
                        None,
                    );
                }
                return Ok(opened);
            }
            Err(failure) => failures.push(failure),
        }
    }
    let of_target = failures.iter().any(|failure| failure.of_target);
    // A failure that no other tunnel mends ends the plan, whichever racer was the last.
    let worst = failures.into_iter().max_by_key(|failure| failure.is_final);
    let worst = worst.unwrap_or_else(|| Failure {
        refusal: Refusal::Blocked("the step is empty".to_owned()),
        is_final: true,
        of_target,
    });
    Err(Failure { of_target, ..worst })
}

/// Opens one tunnel.
async fn one(
    trip: &Trip<'_>,
    tunnel: &Tunnel,
    marks: &Marks,
    patience: Option<Duration>,
) -> Result<Opened, Failure> {
    let start = trip.tries(tunnel);
    let what = describe(trip.core, tunnel);
    if let Err(forbidden) = check(trip, tunnel) {
        trip.tried(what, start, Some(&forbidden), None);
        return Err(Failure {
            refusal: forbidden.into(),
            is_final: false,
            of_target: true,
        });
    }
    let request = request(trip, tunnel, marks, patience);
    let opened = dial(trip, tunnel, &request).await;
    let error = opened.as_ref().err();
    trip.tried(what, start, error, error.and_then(OpenError::node));
    match opened {
        Ok(opened) => {
            let kind = opened.kind.as_str();
            let histogram = trip.core.metrics.flow_open.with_label_values(&[kind]);
            histogram.observe(start.elapsed().as_secs_f64());
            Ok(opened)
        }
        Err(error) => Err(Failure {
            refusal: Refusal::of_open(&error, tunnel),
            is_final: error.kind().remedy == Remedy::GiveUp,
            of_target: is_local(tunnel) || is_of_target(&error),
        }),
    }
}

fn request(
    trip: &Trip<'_>,
    tunnel: &Tunnel,
    marks: &Marks,
    patience: Option<Duration>,
) -> TunnelRequest {
    TunnelRequest {
        transport: trip.asked.transport,
        target: trip.asked.target.clone(),
        service: trip.conn.service.clone(),
        isolation: match tunnel.kind() {
            TunnelKind::Onion | TunnelKind::Tor | TunnelKind::I2p => isolation(trip.asked, marks),
            TunnelKind::Direct | TunnelKind::Relay | TunnelKind::Socks | TunnelKind::Block => {
                String::new()
            }
        },
        timeout: timeout(tunnel, marks),
        carrier: marks.carrier,
        patience,
    }
}

/// Holds a tunnel against what no script can lift.
fn check(trip: &Trip<'_>, tunnel: &Tunnel) -> Result<(), Forbidden> {
    let (network, host) = (&trip.core.network, &trip.asked.target.host);
    guard::check(host, trip.conn.node, tunnel)?;
    guard::check_localhost(network, host, tunnel)?;
    if trip
        .asked
        .plugin
        .as_ref()
        .is_some_and(|plugin| plugin.hides_node)
    {
        guard::check_hides(tunnel)?;
    }
    if trip.told && is_local(tunnel) {
        let (transport, port) = (trip.asked.transport, trip.asked.target.port);
        guard::check_told(network, transport, &trip.conn.ips, port)?;
    }
    Ok(())
}

/// A local dial goes to the addresses that the script saw, when it saw any: a name that changes
/// between two look-ups does not get past a rule.
async fn dial(
    trip: &Trip<'_>,
    tunnel: &Tunnel,
    request: &TunnelRequest,
) -> Result<Opened, OpenError> {
    let network = &trip.core.network;
    if !is_local(tunnel) || trip.conn.ips.is_empty() {
        return network.open(tunnel, request).await;
    }
    let addresses = trip.conn.ips.iter();
    let addresses: Vec<_> = addresses
        .map(|ip| SocketAddr::new(*ip, request.target.port))
        .collect();
    let open = |address: SocketAddr| async move {
        let request = TunnelRequest {
            target: address.into(),
            ..request.clone()
        };
        network.open(tunnel, &request).await
    };
    let opened = tokio::time::timeout(request.timeout, dial::first_to_open(&addresses, open));
    match opened.await {
        Ok(Some(result)) => result,
        Ok(None) => Err(OpenError::NoWay("the name has no address")),
        Err(_) => Err(OpenError::TimedOut(request.timeout)),
    }
}

/// Whether a tunnel failed for what its target is, as far as that can be told.
fn is_of_target(error: &OpenError) -> bool {
    match error {
        OpenError::Refused { reason, .. } => !matches!(
            reason,
            Reason::Malformed
                | Reason::Unsupported
                | Reason::Busy
                | Reason::NoNode
                | Reason::StaleKey
                | Reason::Handshake
        ),
        OpenError::Upstream { source, .. } => source.word().is_some(),
        OpenError::I2p { source, .. } => source.word().is_some(),
        OpenError::Tor(failure) => failure.is_of_target(),
        OpenError::NoServiceForStrangers { .. } => true,
        OpenError::Blocked(_)
        | OpenError::Dial(_)
        | OpenError::Connect { .. }
        | OpenError::Hop { .. }
        | OpenError::NoCircuit { .. }
        | OpenError::Broken { .. }
        | OpenError::NoPath(_)
        | OpenError::NoWay(_)
        | OpenError::TimedOut(_) => false,
    }
}

/// Whether this node itself looks names up and dials.
fn is_local(tunnel: &Tunnel) -> bool {
    matches!(tunnel, Tunnel::Direct { to: None, .. })
}

fn timeout(tunnel: &Tunnel, marks: &Marks) -> Duration {
    let default = match tunnel.kind() {
        TunnelKind::Onion => ONION_TIMEOUT,
        TunnelKind::Tor => TOR_TIMEOUT,
        TunnelKind::I2p => I2P_TIMEOUT,
        TunnelKind::Direct | TunnelKind::Socks | TunnelKind::Relay | TunnelKind::Block => TIMEOUT,
    };
    marks.timeout.unwrap_or(default)
}

/// The script's keys, else the entrance; and the login, or the plugin with its own key: programs that
/// say who they are, and plugins, never share a circuit.
fn isolation(asked: &Asked, marks: &Marks) -> String {
    let label = asked.label.iter().filter(|_| marks.isolate.is_empty());
    // Lengths keep ["a", "b"] and ["a,b"] apart.
    let keys = marks.isolate.iter().chain(label);
    let keys: String = keys.map(|key| format!("{}:{key},", key.len())).collect();
    let kind = if marks.isolate.is_empty() {
        "label"
    } else {
        "keys"
    };
    if let Some(plugin) = &asked.plugin {
        let (instance, own) = (&plugin.instance, &plugin.isolation);
        return format!("plugin {}:{instance},{kind} {keys}/{own}", instance.len());
    }
    let login = asked.login.as_ref().map(super::Login::isolation);
    format!("{kind} {keys}/{}", login.unwrap_or_default())
}

/// A UDP flow ends by silence, since nothing else ends it.
fn limits(trip: &Trip<'_>, marks: &Marks) -> CopyLimits {
    let silence = trip.core.config.limits.udp_idle;
    let idle = match (trip.asked.transport, trip.asked.target.port) {
        (Transport::Tcp, _) => None,
        (Transport::Udp, DNS_PORT) => Some(silence.min(DNS_IDLE)),
        (Transport::Udp, _) => Some(silence),
    };
    CopyLimits {
        idle,
        bandwidth_bytes_per_s: marks.bandwidth_bytes_per_s,
        paces: trip.core.pace.iter().cloned().collect(),
        max_bytes: marks.max_bytes,
        jitter: marks.jitter,
        pad_bytes: marks.pad_bytes,
        ..CopyLimits::default()
    }
}

impl Trip<'_> {
    /// A tunnel is tried from now on.
    fn tries(&self, tunnel: &Tunnel) -> Instant {
        self.flow
            .tell(|story| story.last_tried = Some(tunnel.kind()));
        Instant::now()
    }

    /// Keeps what came of a tunnel for `why`; `failed_at` is the node that did not do its part.
    fn tried(
        &self,
        tunnel: String,
        start: Instant,
        error: Option<&impl std::fmt::Display>,
        failed_at: Option<NodeId>,
    ) {
        if !self.core.flows.records() {
            return;
        }
        let tried = Tried {
            tunnel,
            error: error.map(ToString::to_string),
            failed_at,
            took: start.elapsed(),
        };
        self.flow.tell(|story| story.tries.push(tried));
    }
}

/// A tunnel as a person reads it, with petnames.
fn describe(core: &NodeCore, tunnel: &Tunnel) -> String {
    let world = core.network.world();
    let name = |id: &NodeId| {
        let view = world.by_id(id);
        view.map_or_else(|| short_id(*id), |view| view.name.clone())
    };
    tunnel.text(&name)
}

#[cfg(test)]
mod tests {
    use super::{super::Login, *};

    #[test]
    fn labels_and_logins_never_meet_in_one_key() {
        let key_with = |label: &str, user: &str, isolate: &[&str]| {
            let asked = Asked {
                label: Some(label.to_owned()),
                login: Some(Login::new(user, "pw")),
                ..Asked::test("192.0.2.1:80")
            };
            let marks = Marks {
                isolate: isolate.iter().map(|key| (*key).to_owned()).collect(),
                ..Marks::default()
            };
            isolation(&asked, &marks)
        };
        let key = |label, user| key_with(label, user, &[]);
        assert_ne!(key("a", "b/c"), key("a/b", "c"));
        assert_eq!(key("a", "b"), key("a", "b"));
        let site = |label, user| key_with(label, user, &["site"]);
        assert_ne!(site("a", "b"), site("a", "c"), "users share no circuit");
        assert_eq!(site("a", "b"), site("x", "b"), "the script said by what");
        assert_ne!(
            key_with("a", "b", &["x", "y"]),
            key_with("a", "b", &["x,y"])
        );
        assert_ne!(key("site", "b"), site("", "b"));
        let plugin = |instance: &str, own: &str| {
            let plugin = super::super::Caller {
                instance: instance.to_owned(),
                role: None,
                isolation: own.to_owned(),
                hides_node: false,
            };
            let asked = Asked {
                plugin: Some(plugin),
                ..Asked::test("192.0.2.1:80")
            };
            super::isolation(&asked, &Marks::default())
        };
        assert_eq!(plugin("chat", "ann"), plugin("chat", "ann"));
        assert_ne!(plugin("chat", "ann"), plugin("chat", "bob"));
        assert_ne!(plugin("chat", "ann"), plugin("mail", "ann"));
    }
}
