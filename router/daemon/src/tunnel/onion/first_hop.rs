//! Connections to first hops, made with throw-away keys: the hop learns an address, not a node.
//!
//! A hop whose door stays shut to strangers gets this node's own name, if it is a peer.

use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::time::timeout;

use wormholes_proto::{Answer, NodeId, Open, Reason, onion::PathHop};

use wormholes_proto::CarrierKind;

use super::CircuitError;
use crate::{
    carrier::{Caller, Link, LinkError},
    counters::Counters,
    dial::first_to_open,
    network::{Network, Wanted},
    peers::{ConnectError, Dials, Wish, ways},
    pipe::Pipe,
};

/// Two tries of a handshake's first datagram.
const QUIC_FIRST: Duration = Duration::from_secs(2);
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
    let not_reached = |error: ConnectError| {
        tracing::debug!(%error, "first hop not reached");
        network.onion().paths.refused(&hop.id);
        CircuitError::Hop(0, error.reason())
    };
    if !(first_hop.demands_friends() && is_peer(network, hop)) {
        let link = first_hop.stranger(network, hop.id, wanted).await;
        let link = link.map_err(not_reached)?;
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
    let link = network.connect_over(hop.id, Some(hop.address), wanted);
    let link = link.await.map_err(not_reached)?;
    let answered = ask_link(network.counters(), &link, open).await;
    heard(network, link, answered)
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
    ) -> Result<Link, ConnectError> {
        if let Some(link) = self.standing() {
            return Ok(link);
        }
        let (dial, turn) = self.dials.enter(Wish::Own(wanted.carrier))?;
        if let Some(turn) = turn {
            let (hop, dialler) = (Arc::clone(self), Arc::clone(network));
            network.spawn(async move {
                turn.end(hop.dial(&dialler, id, wanted.carrier).await);
            });
        }
        dial.ended(wanted.patience).await
    }

    async fn dial(
        &self,
        network: &Network,
        id: NodeId,
        carrier: Option<CarrierKind>,
    ) -> Result<Link, ConnectError> {
        // The dial before it may have ended just now.
        if let Some(link) = self.standing() {
            return Ok(link);
        }
        let caller = Caller::throw_away().map_err(|error| {
            tracing::warn!(%error, "no throw-away key");
            ConnectError::Tls(Arc::new(error))
        })?;
        let addresses = network.addresses_of(&id, None);
        let dialled = dial(network, &caller, id, carrier, &addresses).await;
        let paths = &network.onion().paths;
        match dialled {
            Some(Ok(link)) => {
                paths.reached(&id);
                *self.door() = Door::Stranger(link.clone());
                Ok(link)
            }
            Some(Err(error)) => {
                paths.unreachable(&id);
                Err(error.into())
            }
            // Its record, whose address is on the path, names none that may be dialled.
            None => {
                paths.unreachable(&id);
                Err(ConnectError::Forbidden(
                    "its record names no other".to_owned(),
                ))
            }
        }
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

    async fn until(what: &str, condition: impl Fn() -> bool) {
        let mut looks = tokio::time::interval(Duration::from_millis(10));
        let holds = async {
            while !condition() {
                looks.tick().await;
            }
        };
        timeout(LIMIT, holds).await.expect(what);
    }

    #[tokio::test]
    async fn a_first_hop_whose_path_died_is_missed_before_a_flow_needs_it() {
        let wire = Wire::new(67).await;
        let (_one, hop) = network(|config| {
            config.node.listen = vec![([127, 67, 0, 2], 0).into()];
            config.node.advertise = vec![wire.address];
            config.hop.role.enabled = true;
        });
        wire.lead_to(hop.listen_addresses()[0]);
        let (_other, client) = network(|config| {
            config.node.listen = vec![([127, 67, 0, 3], 0).into()];
        });
        client.add_record(hop.own_record());
        let tunnel = Tunnel::Onion {
            hops: 1,
            via: None,
            to: Some(hop.id()),
            exit: false,
            friends_only: false,
        };
        let request = TunnelRequest {
            transport: wormholes_proto::Transport::Tcp,
            target: SocketAddr::from(([127, 0, 0, 1], 1)).into(),
            service: None,
            isolation: String::new(),
            timeout: LIMIT,
            carrier: None,
            patience: None,
        };
        let refused = client.open(&tunnel, &request).await.unwrap_err();
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
