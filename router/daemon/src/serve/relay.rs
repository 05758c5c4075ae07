//! The relay role, and what comes to this node through relays of its own.

use std::{
    convert::Infallible,
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant, SystemTime},
};

use futures_util::future::join_all;
use wormholes_host::Service;
use wormholes_proto::{
    Answer, CircuitId, NodeId, Open, Reason, Rendezvous, RendezvousLimits, SignedRecord,
    encode_open,
    sealed::{HELLO_BYTES, OwnEnd, handle_hello},
};
use wormholes_rules::{Allowance, RelayRequest, Verdict};

use super::{Asker, Way, accept, log_end, punch, refuse, serve_target, while_asked};
use crate::{
    carrier::Link,
    config::RoleConfig,
    network::Network,
    pipe::{self, CopyLimits, Pipe, PipeError},
};

/// A registration lasts as long as its connection; this only clears what was missed.
const REGISTRATION: Duration = Duration::from_secs(1800);
/// The called node answers the relay, and the caller's first message comes, within this.
const CALLED_TIMEOUT: Duration = Duration::from_secs(10);
/// A registered node that has fallen silent may come back within this, or call anew from elsewhere:
/// the next step of the caller's plan shall have its turn within two seconds.
const COMES_BACK: Duration = Duration::from_millis(1500);
/// Between two looks whether it did: a word that comes tells nobody.
const LOOK: Duration = Duration::from_millis(50);

/// Who is registered here, and which circuits run.
#[derive(Debug)]
pub(crate) struct RelayDesk {
    rendezvous: Mutex<Rendezvous>,
    start: Instant,
}

/// A circuit in the book; dropping it closes it.
struct OpenCircuit<'a> {
    desk: &'a RelayDesk,
    id: CircuitId,
}

impl RelayDesk {
    /// Bytes and idle time of a circuit are for its copy to keep.
    pub(crate) fn new(config: &RoleConfig, max_registered: usize) -> Self {
        let limits = RendezvousLimits {
            max_registered,
            registration: REGISTRATION,
            max_circuits: config.max_circuits,
            max_circuits_per_peer: config.max_circuits_per_peer,
            max_bytes_per_circuit: None,
            idle: Duration::from_secs(u64::from(u32::MAX)),
        };
        Self {
            rendezvous: Mutex::new(Rendezvous::new(limits)),
            start: Instant::now(),
        }
    }

    /// Nodes registered here.
    pub(crate) fn registered(&self) -> Vec<NodeId> {
        self.rendezvous().records().map(SignedRecord::id).collect()
    }

    /// Forgets a node whose connection is gone.
    pub(crate) fn disconnected(&self, id: &NodeId) {
        self.rendezvous().handle_disconnected(id);
    }

    fn register(&self, peer: NodeId, record: SignedRecord) -> Result<(), Reason> {
        let now = self.start.elapsed();
        let mut rendezvous = self.rendezvous();
        while rendezvous.poll_expired(now).is_some() {}
        rendezvous.handle_register(now, peer, record)
    }

    fn open(&self, from: NodeId, to: NodeId) -> Result<OpenCircuit<'_>, Reason> {
        let now = self.start.elapsed();
        let id = self.rendezvous().handle_relay_request(now, from, to)?;
        Ok(OpenCircuit { desk: self, id })
    }

    fn rendezvous(&self) -> MutexGuard<'_, Rendezvous> {
        self.rendezvous
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OpenCircuit<'_> {
    fn drop(&mut self) {
        self.desk.rendezvous().handle_circuit_closed(self.id);
    }
}

/// Takes a registration.
pub(super) async fn register(network: &Network, asker: &Asker, record: &[u8], mut pipe: Pipe) {
    let registered = if network.config().relay.enabled {
        SignedRecord::decode(record)
            .map_err(|_| Reason::Malformed)
            .and_then(|record| {
                network.relay_desk().register(asker.id, record.clone())?;
                network.add_record(record);
                Ok(())
            })
    } else {
        Err(Reason::Unsupported)
    };
    match registered {
        Ok(()) => {
            tracing::debug!(peer = %network.named(asker.id), "registered");
            if accept(&mut pipe, Vec::new()).await {
                let _ = pipe.writer.finish().await;
            }
        }
        Err(reason) => {
            network.counters().relay.refuse(reason);
            refuse(pipe, reason).await;
        }
    }
}

/// Joins the caller with a registered node. What they say is theirs.
pub(super) async fn serve(network: &Arc<Network>, asker: &Asker, to: NodeId, mut pipe: Pipe) {
    let counters = &network.counters().relay;
    let ahead = pipe.reader.take_ahead();
    let granted = async {
        let place = network.relay().enter(counters, asker.id)?;
        let circuit = network.relay_desk().open(asker.id, to)?;
        let allowance = ask_rules(network, asker, to).await?;
        place.bytes.moved_up(ahead.len() as u64);
        if let Some(witness) = network.witness() {
            witness.saw("relay", &ahead);
        }
        let far = call(network, to, &ahead).await?;
        Ok::<_, Reason>((place, circuit, allowance, far))
    };
    let (place, circuit, allowance, far) = match while_asked(&mut pipe, granted).await {
        None => return,
        Some(Ok(granted)) => granted,
        Some(Err(reason)) => {
            counters.refuse(reason);
            return refuse(pipe, reason).await;
        }
    };
    if accept(&mut pipe, Vec::new()).await {
        let limits = CopyLimits {
            witness: network.witness(),
            ..place.limits(&allowance)
        };
        let usage = network.usage();
        let bill = usage.bill(&allowance, Service::Relay, &place.bytes);
        let end = pipe::copy(pipe, far, &limits, &place.bytes).await;
        drop(bill);
        tracing::debug!(
            target: "wormholes::learned",
            role = "relay",
            from = %asker.id,
            to = %to,
            up_bytes = end.up_bytes,
            down_bytes = end.down_bytes,
            "relay learned who spoke with whom, and how much"
        );
        log_end(network, "relay", asker, &end);
    }
    drop(circuit);
}

async fn ask_rules(network: &Network, asker: &Asker, to: NodeId) -> Result<Allowance, Reason> {
    let request = RelayRequest {
        from: network.view(asker.id),
        to: network.view(to),
        bytes_today: network.relay().bytes_today(asker.id),
        now: SystemTime::now(),
    };
    match network.gatekeeper().relay(request).await {
        Verdict::Allow(allowance) => Ok(allowance),
        Verdict::Deny(why) => {
            let (from, to) = (network.named(asker.id), network.named(to));
            tracing::debug!(%from, %to, why, "relay denied by rule");
            Err(Reason::Denied)
        }
    }
}

/// Opens a stream to the registered node. It called; it is not called back. Where its connection
/// turns out to be dead, the same come to life or another one takes its place, once.
async fn call(network: &Network, to: NodeId, ahead: &[u8]) -> Result<Pipe, Reason> {
    let until = Instant::now() + COMES_BACK;
    let call = async {
        let link = standing(network, &to, until, |_| true).await?;
        let others = Others::beside(network, &link);
        let call = async {
            match call_over(network, &link, ahead).await {
                Err(Reason::Unreachable) => {
                    let trusted = |link: &Link| !others.doubts(link);
                    let link = standing(network, &to, until, trusted).await?;
                    call_over(network, &link, ahead).await
                }
                called => called,
            }
        };
        others.while_probed(call).await
    };
    let called = tokio::time::timeout(CALLED_TIMEOUT, call).await;
    called.unwrap_or(Err(Reason::TimedOut))
}

/// Connections to the same node beside the one that is tried, each with what it had acknowledged
/// then: what made that one die may have made these die too.
struct Others(Vec<(Link, u64)>);

impl Others {
    fn beside(network: &Network, link: &Link) -> Self {
        let mut links = network.peers().links_to(&link.peer());
        links.retain(|other| !other.is_same(link));
        let acknowledged = |link: Link| {
            let acknowledged = link.acknowledged();
            (link, acknowledged)
        };
        Self(links.into_iter().map(acknowledged).collect())
    }

    /// Whether `link` is one of these and has shown no sign of life since.
    fn doubts(&self, link: &Link) -> bool {
        let mut others = self.0.iter();
        others.any(|(other, before)| other.is_same(link) && link.acknowledged() == *before)
    }

    /// Does `call`, and asks these for a sign of life meanwhile.
    async fn while_probed<T>(&self, call: impl Future<Output = T>) -> T {
        let probes = self.0.iter().map(|(link, before)| link.shows_life(*before));
        let probed = async {
            join_all(probes).await;
            pending::<Infallible>().await
        };
        // Of a probe and a call that end together, whoever comes next shall know both ends.
        tokio::select! {
            biased;
            never = probed => match never {},
            called = call => called,
        }
    }
}

/// A connection to the registered node that is not silent, and `fits`, as soon as there is one: the
/// newest, over QUIC before TCP.
async fn standing(
    network: &Network,
    to: &NodeId,
    until: Instant,
    fits: impl Fn(&Link) -> bool,
) -> Result<Link, Reason> {
    let mut looks = tokio::time::interval(LOOK);
    let standing = async {
        loop {
            looks.tick().await;
            let links = network.peers().links_to(to).into_iter().rev();
            if let Some(link) = links.filter(&fits).min_by_key(Link::carrier) {
                return link;
            }
        }
    };
    let standing = tokio::time::timeout_at(until.into(), standing).await;
    standing.map_err(|_| Reason::NoNode)
}

/// What the caller sent `ahead` goes along with the request, as it came: the handshake needs no
/// round trip of its own for that.
async fn call_over(network: &Network, link: &Link, ahead: &[u8]) -> Result<Pipe, Reason> {
    let ask = async {
        let mut pipe = link.open().await.map_err(|_| Reason::Unreachable)?;
        let request = [&encode_open(&Open::Relayed), ahead].concat();
        let sent = pipe.writer.write_chunk(request.into()).await;
        sent.map_err(|_| Reason::Unreachable)?;
        let granted = pipe.reader.read_grant().await;
        Ok((network.counters().answered(granted), pipe))
    };
    let answered = link.while_alive(ask).await;
    let (granted, pipe) = answered.unwrap_or(Err(Reason::Unreachable))?;
    match granted {
        Ok(Answer::Accepted(_)) => Ok(pipe),
        Ok(Answer::Refused(reason)) => Err(reason),
        Err(_) if link.is_closed() => Err(Reason::Unreachable),
        // The called cut the caller off before its answer was here.
        Err(_) => Err(Reason::Handshake),
    }
}

/// Takes a caller that a relay of this node's own brings. Whoever does not prove to be a peer sees
/// a reset, whatever the cause.
pub(super) async fn called(network: &Arc<Network>, relay: &Link, mut pipe: Pipe) {
    let known = network.peers().known();
    if !known.get(&relay.peer()).is_some_and(|peer| peer.register) {
        network.counters().streams_refused.fetch_add(1, Relaxed);
        return refuse(pipe, Reason::Denied).await;
    }
    let taken = async {
        if !accept(&mut pipe, Vec::new()).await {
            return Err(PipeError::Reset);
        }
        take_caller(network, pipe).await
    };
    match tokio::time::timeout(CALLED_TIMEOUT, taken).await {
        Ok(Ok((asker, open, mut pipe))) => {
            let (from, by) = (network.named(asker.id), network.named(relay.peer()));
            tracing::debug!(%from, relay = %by, "called through a relay");
            if let Open::Punch(candidates) = open {
                return punch::serve(network, &asker, relay, candidates, pipe).await;
            }
            let handover = pipe.take_handover();
            let desk = network.moving_desk();
            let movable = handover.and_then(|handover| desk.enter(asker.id, handover));
            serve_target(network, &asker, open, pipe).await;
            drop(movable);
        }
        Ok(Err(error)) => {
            network.counters().streams_refused.fetch_add(1, Relaxed);
            tracing::debug!(relay = %network.named(relay.peer()), %error, "caller refused");
        }
        Err(_) => {
            network.counters().streams_refused.fetch_add(1, Relaxed);
        }
    }
}

async fn take_caller(network: &Network, pipe: Pipe) -> Result<(Asker, Open, Pipe), PipeError> {
    let mut pipe = pipe;
    let hello = pipe.reader.read_exact(HELLO_BYTES).await?;
    let own_record = network.own_record();
    let own = OwnEnd {
        noise: network.identity().noise(),
        record: &own_record,
    };
    let known = |id: &NodeId| network.records().get(id);
    let (session, answer) =
        handle_hello(own, &hello, known, &mut rand::rng()).map_err(|error| {
            tracing::debug!(%error, "a caller's handshake does not hold");
            PipeError::Malformed("handshake")
        })?;
    let id = session.peer.id();
    let trust = network.peers().known().get(&id).map(|peer| peer.trust);
    let trust = trust.ok_or(PipeError::Malformed("caller that is no peer"))?;
    if let Verdict::Deny(_) = network.gatekeeper().accept(network.view(id)).await {
        return Err(PipeError::Malformed("caller that a rule denies"));
    }
    pipe.writer.write_chunk(answer.into()).await?;
    let sealed = pipe.sealed(session.id, session.sealer, session.opener);
    let mut pipe = sealed.ok_or(PipeError::Malformed("stream"))?;
    // Its first frame proves that the caller is here now and no replay.
    let open = pipe.reader.read_open().await?;
    network.add_record(session.peer);
    let asker = Asker {
        id,
        trust,
        way: Way::Relayed,
    };
    Ok((asker, open, pipe))
}
