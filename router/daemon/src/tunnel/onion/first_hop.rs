//! Connections to first hops, made with throw-away keys: the hop learns an address, not a node.
//!
//! A hop whose door stays shut to strangers gets this node's own name, if it is a peer.

use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, timeout};
use wormholes_proto::{Answer, NodeId, Open, Reason, onion::PathHop};

use wormholes_proto::CarrierKind;

use super::{CircuitError, left};
use crate::{
    carrier::{Caller, CloseCode, Link, LinkError},
    counters::Counters,
    dial::first_to_open,
    network::{Network, Wanted},
    peers::{ConnectError, Dials, Wish, ways},
    pipe::Pipe,
};

/// Two tries of a handshake's first datagram.
const QUIC_FIRST: Duration = Duration::from_secs(2);
/// A dial that had less time says nothing about the hop: a handshake whose first datagram was lost
/// takes a second and a round trip.
const FAIR_TRY: Duration = Duration::from_millis(1250);
/// How long a hop is taken at its word that it lets friends in only: it learns who asks meanwhile.
const FRIENDS_ONLY_FOR: Duration = Duration::from_secs(10 * 60);
/// First hops at once: the guards and those that plans name. Overflow: those without a connection
/// are forgotten, then a newcomer is refused.
const MAX_FIRST_HOPS: usize = 64;

/// A first hop, and what its connection has to run over.
type Way = (NodeId, Option<CarrierKind>);

/// Connections to first hops.
#[derive(Debug, Default)]
pub(super) struct FirstHops(Mutex<HashMap<Way, Arc<FirstHop>>>);

#[derive(Debug, Default)]
struct FirstHop {
    door: Mutex<Door>,
    dials: Arc<Dials>,
}

/// How a hop is reached.
#[derive(Debug, Default)]
enum Door {
    #[default]
    Unknown,
    /// With a key that is good for this connection only.
    Stranger(Link),
    /// It let friends in only, as it said then.
    Friend(Instant),
}

/// Sends a CREATE to the first hop, and takes its answer; with the connection that it came on.
pub(super) async fn ask(
    network: &Arc<Network>,
    hop: &PathHop,
    wanted: Wanted,
    open: &Open,
) -> Result<(Link, Pipe, Answer), CircuitError> {
    let first_hop = network.onion().first_hops.entry((hop.id, wanted.carrier));
    let first_hop = first_hop.ok_or(CircuitError::Hop(0, Reason::Busy))?;
    let start = Instant::now();
    if !(first_hop.demands_friends() && is_peer(network, hop)) {
        let link = first_hop.stranger(network, hop.id, wanted).await?;
        match ask_link(network.counters(), &link, open).await {
            Err(reason) if reason == Reason::Denied && is_peer(network, hop) => {
                first_hop.make_friend();
            }
            Ok((_, Answer::Refused(Reason::Denied))) if is_peer(network, hop) => {
                first_hop.make_friend();
            }
            answered => return heard(network, link, answered),
        }
    }
    let wanted = left(wanted, start);
    let link = network.connect_over(hop.id, Some(hop.address), wanted);
    let link = link
        .await
        .map_err(|error| not_reached(network, &hop.id, &error, wanted))?;
    let answered = ask_link(network.counters(), &link, open).await;
    heard(network, link, answered)
}

/// Lets another guard go first for a while where it was the hop that did not answer, and not this
/// node that would not dial, or had no time to.
fn not_reached(
    network: &Network,
    id: &NodeId,
    error: &ConnectError,
    wanted: Wanted,
) -> CircuitError {
    tracing::debug!(%error, "first hop not reached");
    let is_its_doing = match error {
        ConnectError::Link(_) => true,
        ConnectError::Slow => wanted.patience >= Some(FAIR_TRY),
        ConnectError::NoAddress
        | ConnectError::Forbidden(_)
        | ConnectError::Myself
        | ConnectError::NoCarrier(_)
        | ConnectError::TooMany
        | ConnectError::BackingOff(_)
        | ConnectError::Tls(_) => false,
    };
    if is_its_doing {
        network.onion().paths.refused(id);
    }
    CircuitError::Hop(0, error.reason())
}

/// Over QUIC, unless that does not answer for long: over TCP each circuit is a connection that the
/// wire sees, and one lost datagram is no reason for it.
async fn dial(
    network: &Network,
    caller: &Caller,
    id: NodeId,
    wanted: Option<CarrierKind>,
    addresses: &[SocketAddr],
) -> Option<Result<Link, LinkError>> {
    let over = async |kind| {
        let kinds = network.carrier().kinds();
        let ways = ways(kinds, None, Some(kind), addresses);
        first_to_open(&ways, |way| network.carrier().dial(caller, id, way)).await
    };
    if let Some(kind) = wanted {
        return over(kind).await;
    }
    let mut quic = pin!(over(CarrierKind::Quic));
    let failed = match timeout(QUIC_FIRST, quic.as_mut()).await {
        Ok(Some(Ok(link))) => return Some(Ok(link)),
        Ok(failed) => failed,
        Err(_) => {
            let mut tcp = pin!(over(CarrierKind::Tcp));
            return tokio::select! {
                dialled = quic.as_mut() => match dialled {
                    Some(Ok(link)) => Some(Ok(link)),
                    failed => tcp.await.or(failed),
                },
                dialled = tcp.as_mut() => match dialled {
                    Some(Ok(link)) => Some(Ok(link)),
                    failed => quic.await.or(failed),
                },
            };
        }
    };
    over(CarrierKind::Tcp).await.or(failed)
}

/// A hop that will not serve, or keeps silent, lets another guard go first for a while.
fn heard(
    network: &Network,
    link: Link,
    answered: Result<(Pipe, Answer), Reason>,
) -> Result<(Link, Pipe, Answer), CircuitError> {
    let refusal = match &answered {
        Ok((_, Answer::Refused(reason))) | Err(reason) => Some(*reason),
        Ok((_, Answer::Accepted(_))) => None,
    };
    if let Some(Reason::Busy | Reason::Denied | Reason::Unsupported | Reason::TimedOut) = refusal {
        network.onion().paths.refused(&link.peer());
    }
    let (pipe, answer) = answered.map_err(|reason| CircuitError::Hop(0, reason))?;
    Ok((link, pipe, answer))
}

async fn ask_link(counters: &Counters, link: &Link, open: &Open) -> Result<(Pipe, Answer), Reason> {
    let reason = |error: LinkError| ConnectError::from(error).reason();
    let asked = async {
        let mut pipe = link.open().await?;
        let sent = pipe.writer.send_open(open).await;
        let answer = match sent {
            Ok(()) => counters.answered(pipe.reader.read_answer().await),
            Err(error) => Err(error),
        };
        Ok(answer.map(|answer| (pipe, answer)))
    };
    let asked = link.while_alive(asked).await;
    match asked.flatten().map_err(reason)? {
        Ok(answered) => Ok(answered),
        Err(_) if link.is_closed() => Err(reason(link.closed().await)),
        Err(_) => Err(Reason::Handshake),
    }
}

/// Whether a circuit on the path needs no dial.
pub(super) fn is_connected(
    network: &Network,
    path: &[PathHop],
    carrier: Option<CarrierKind>,
) -> bool {
    let Some(PathHop { id, .. }) = path.first() else {
        return false;
    };
    let first_hops = &network.onion().first_hops;
    let first_hop = first_hops.hops().get(&(*id, carrier)).cloned();
    first_hop.is_some_and(|hop| match hop.demands_friends() {
        true => network.peers().link(id).is_some(),
        false => hop.standing().is_some(),
    })
}

/// A connection that has fallen silent is of no use to a new circuit.
pub(super) fn stands(link: &Link) -> bool {
    !link.is_closed() && !link.is_silent()
}

fn is_peer(network: &Network, hop: &PathHop) -> bool {
    network.peers().known().get(&hop.id).is_some()
}

impl FirstHops {
    /// Connections that are not closed, those that have fallen silent included.
    pub(super) fn links(&self) -> Vec<Link> {
        let hops: Vec<Arc<FirstHop>> = self.hops().values().cloned().collect();
        let links = hops.iter().filter_map(|hop| match &*hop.door() {
            Door::Stranger(link) => Some(link.clone()),
            Door::Friend(_) | Door::Unknown => None,
        });
        links.filter(|link| !link.is_closed()).collect()
    }

    pub(super) fn start_afresh(&self) {
        for hop in self.hops().values() {
            hop.dials.start_afresh();
        }
    }

    fn entry(&self, way: Way) -> Option<Arc<FirstHop>> {
        let mut hops = self.hops();
        if let Some(hop) = hops.get(&way) {
            return Some(Arc::clone(hop));
        }
        if hops.len() >= MAX_FIRST_HOPS {
            hops.retain(|_, hop| !hop.is_idle());
        }
        if hops.len() >= MAX_FIRST_HOPS {
            return None;
        }
        let hop = Arc::new(FirstHop::default());
        hops.insert(way, Arc::clone(&hop));
        Some(hop)
    }

    fn hops(&self) -> MutexGuard<'_, HashMap<Way, Arc<FirstHop>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FirstHop {
    /// Nobody asks or dials it, and no connection stands.
    fn is_idle(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1 && self.standing().is_none()
    }

    fn demands_friends(&self) -> bool {
        matches!(*self.door(), Door::Friend(since) if since.elapsed() < FRIENDS_ONLY_FOR)
    }

    fn make_friend(&self) {
        *self.door() = Door::Friend(Instant::now());
    }

    fn standing(&self) -> Option<Link> {
        match &*self.door() {
            Door::Stranger(link) if stands(link) => Some(link.clone()),
            Door::Stranger(_) | Door::Friend(_) | Door::Unknown => None,
        }
    }

    /// The standing connection, or a new one. Cancel-safe; the dial goes on.
    async fn stranger(
        self: &Arc<Self>,
        network: &Arc<Network>,
        id: NodeId,
        wanted: Wanted,
    ) -> Result<Link, CircuitError> {
        let not_reached = |error, wanted| not_reached(network, &id, &error, wanted);
        let carrier = wanted.carrier;
        if let Some(kind) = carrier.filter(|kind| !network.carrier().kinds().contains(kind)) {
            return Err(not_reached(ConnectError::NoCarrier(kind), wanted));
        }
        let start = Instant::now();
        let mut moves = network.moves();
        loop {
            moves.mark_unchanged();
            if let Some(link) = self.standing() {
                return Ok(link);
            }
            let now = left(wanted, start);
            let entered = self.dials.enter(Wish::Own(carrier));
            let (dial, turn) = entered.map_err(|error| not_reached(error, now))?;
            if let Some(turn) = turn {
                let (hop, dialler) = (Arc::clone(self), Arc::clone(network));
                network.spawn(async move {
                    let is_outdated = || turn.is_outdated();
                    let dial = hop.dial(&dialler, id, carrier, is_outdated);
                    if let Some(dialled) = turn.dial(dial).await {
                        turn.end(dialled);
                    }
                });
            }
            tokio::select! {
                biased;
                // It may have gone nowhere: all who wait follow to one that begins after the move.
                _ = moves.changed() => {}
                ended = dial.ended(now.patience) => {
                    return ended.map_err(|error| not_reached(error, now));
                }
            }
        }
    }

    /// How an outdated dial fails says nothing about the hop: this machine moved meanwhile, or
    /// another dial was faster.
    async fn dial(
        &self,
        network: &Network,
        id: NodeId,
        carrier: Option<CarrierKind>,
        is_outdated: impl Fn() -> bool,
    ) -> Result<Link, ConnectError> {
        // The dial before it may have ended just now.
        if let Some(link) = self.standing() {
            return Ok(link);
        }
        let caller = Caller::throw_away().map_err(|error| {
            tracing::warn!(%error, "no throw-away key");
            ConnectError::Tls(Arc::new(error))
        })?;
        let start = Instant::now();
        let addresses = network.addresses_of(&id, None);
        let dialled = dial(network, &caller, id, carrier, &addresses).await;
        let paths = &network.onion().paths;
        let error = match dialled {
            Some(Ok(link)) => {
                paths.reached(&id);
                return Ok(self.take(link, start));
            }
            Some(Err(error)) => error.into(),
            // Its record, whose address is on the path, names none that may be dialled.
            None => ConnectError::Forbidden("its record names no other".to_owned()),
        };
        if let Some(link) = self.standing() {
            return Ok(link);
        }
        if !is_outdated() {
            paths.unreachable(&id);
        }
        Err(error)
    }

    /// The connection for circuits from now on: the one that was dialled since `start`, unless
    /// another stands by now. What the hop said meanwhile is kept.
    fn take(&self, link: Link, start: Instant) -> Link {
        let mut door = self.door();
        match &*door {
            Door::Stranger(standing) if stands(standing) => {
                link.close(CloseCode::Done);
                return standing.clone();
            }
            Door::Friend(since) if *since > start => {}
            Door::Stranger(_) | Door::Friend(_) | Door::Unknown => {
                *door = Door::Stranger(link.clone());
            }
        }
        link
    }

    fn door(&self) -> MutexGuard<'_, Door> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "../../../tests/network/wire.rs"]
mod wire;

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use wormholes_rules::Tunnel;

    use super::{wire::Wire, *};
    use crate::{
        config::Config, gatekeeper::OpenGate, network::NetworkOptions, tunnel::TunnelRequest,
    };

    const LIMIT: Duration = Duration::from_secs(30);

    fn network(edit: impl FnOnce(&mut Config)) -> (TempDir, Arc<Network>) {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.node.data_dir = dir.path().join("data");
        config.node.carriers = vec![CarrierKind::Quic];
        edit(&mut config);
        let (options, gate) = (NetworkOptions::default(), Arc::new(OpenGate));
        let network = Network::start(config, options, gate, Arc::default());
        (dir, network.unwrap())
    }

    fn onion(hop: &Network) -> Tunnel {
        onion_to(1, hop.id())
    }

    fn onion_to(hops: u8, to: NodeId) -> Tunnel {
        Tunnel::Onion {
            hops,
            via: None,
            to: Some(to),
            exit: false,
            friends_only: false,
        }
    }

    fn request() -> TunnelRequest {
        TunnelRequest {
            transport: wormholes_proto::Transport::Tcp,
            target: SocketAddr::from(([127, 0, 0, 1], 1)).into(),
            service: None,
            isolation: String::new(),
            timeout: LIMIT,
            carrier: None,
            patience: None,
        }
    }

    async fn until(what: &str, condition: impl Fn() -> bool) {
        let mut looks = tokio::time::interval(Duration::from_millis(10));
        let holds = async {
            while !condition() {
                looks.tick().await;
            }
        };
        timeout(LIMIT, holds).await.expect(what);
    }

    /// A client, and a hop that it finds at the end of the wire.
    async fn scene(number: u8) -> (Vec<TempDir>, Arc<Network>, Arc<Network>, Wire) {
        let wire = Wire::new(number).await;
        let (one, hop) = network(|config| {
            config.node.listen = vec![([127, number, 0, 2], 0).into()];
            config.node.advertise = vec![wire.address];
            config.hop.role.enabled = true;
        });
        wire.lead_to(hop.listen_addresses()[0]);
        let (other, client) = network(|config| {
            config.node.listen = vec![([127, number, 0, 3], 0).into()];
        });
        client.add_record(hop.own_record());
        (vec![one, other], client, hop, wire)
    }

    #[tokio::test]
    async fn of_two_dials_the_one_that_ends_first_makes_the_connection() {
        let (_dirs, client, hop, wire) = scene(68).await;
        let first_hop = FirstHop::default();
        let dial = || first_hop.dial(&client, hop.id(), None, || false);
        let (one, other) = tokio::join!(dial(), dial());
        let (one, other) = (one.unwrap(), other.unwrap());
        assert!(one.is_same(&other) && !one.is_closed());

        wire.cut();
        let missed = FirstHop::default();
        let (dialled, ()) = tokio::join!(missed.dial(&client, hop.id(), None, || false), async {
            let before = wire.called();
            until("it is dialled", || wire.called() > before).await;
            missed.make_friend();
            wire.mend();
        });
        assert!(dialled.is_ok());
        assert!(missed.demands_friends(), "what it said is not forgotten");
    }

    #[tokio::test]
    async fn a_dial_that_failed_has_those_who_wait_take_what_stands() {
        let (_dirs, client, hop, wire) = scene(69).await;
        let (_other_dirs, other_client, other_hop, _wire) = scene(70).await;
        let connected = FirstHop::default();
        let standing = connected.dial(&other_client, other_hop.id(), None, || false);
        let standing = standing.await.unwrap();
        wire.cut();
        let first_hop = FirstHop::default();
        let (dialled, ()) = tokio::join!(first_hop.dial(&client, hop.id(), None, || true), async {
            until("it is dialled", || wire.called() > 0).await;
            *first_hop.door() = Door::Stranger(standing.clone());
        });
        assert!(dialled.unwrap().is_same(&standing));
    }

    #[tokio::test]
    async fn a_hop_is_not_blamed_for_a_carrier_that_this_node_does_not_speak() {
        let (_dirs, client, hop, wire) = scene(71).await;
        let request = TunnelRequest {
            carrier: Some(CarrierKind::Tcp),
            ..request()
        };
        let refused = client.open(&onion(&hop), &request).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::Unsupported, "{refused}");
        assert_eq!(wire.called(), 0);
    }

    #[tokio::test]
    async fn a_hop_is_blamed_for_its_silence_and_not_for_what_this_node_did() {
        let (_dir, client) = network(|_| {});
        let hops = [72, 73].map(|number| {
            network(|config| {
                config.node.listen = vec![([127, number, 0, 1], 0).into()];
                config.hop.role.enabled = true;
            })
        });
        for (_, hop) in &hops {
            client.add_record(hop.own_record());
        }
        // No such hop: nothing is dialled, and guards are chosen.
        let nowhere = onion_to(2, NodeId::from_bytes([9; 32]));
        client.open(&nowhere, &request()).await.unwrap_err();
        let paths = &client.onion().paths;
        let [primary, second] = paths.first_hops()[..] else {
            panic!("{:?}", paths.first_hops());
        };
        let no_answer = || LinkError::NoAnswer {
            address: ([127, 72, 0, 1], 1).into(),
        };
        let hasty = FAIR_TRY - Duration::from_millis(1);
        for (error, patience, is_blamed) in [
            (ConnectError::Link(no_answer()), hasty, true),
            (ConnectError::Slow, FAIR_TRY, true),
            (ConnectError::Slow, hasty, false),
            (ConnectError::BackingOff(no_answer()), FAIR_TRY, false),
            (ConnectError::TooMany, FAIR_TRY, false),
            (ConnectError::NoCarrier(CarrierKind::Tcp), FAIR_TRY, false),
            (ConnectError::Forbidden(String::new()), FAIR_TRY, false),
        ] {
            let wanted = Wanted {
                patience: Some(patience),
                ..Wanted::default()
            };
            let failed = not_reached(&client, &primary, &error, wanted);
            assert!(matches!(failed, CircuitError::Hop(0, _)), "{failed:?}");
            let first = if is_blamed { second } else { primary };
            assert_eq!(paths.first_hops()[0], first, "{error:?} in {patience:?}");
            paths.reached(&primary);
        }
    }

    #[tokio::test]
    async fn a_first_hop_whose_path_died_is_missed_before_a_flow_needs_it() {
        let (_dirs, client, hop, wire) = scene(67).await;
        let refused = client.open(&onion(&hop), &request()).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::NoService, "{refused}");
        let links = client.onion().links();
        let [link] = links.as_slice() else {
            panic!("{links:?}");
        };
        assert!(wire.called() > 0 && !link.is_silent());
        wire.cut();
        until("it is missed", || link.is_silent()).await;
        wire.mend();
        until("it is back", || !link.is_silent()).await;
    }
}
