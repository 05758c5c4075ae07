//! What this node does for others: every stream that comes in is read, authorised and served here.
//!
//! A stranger may only send a CREATE, and only where the hop role is on. Whoever comes through a
//! relay or an onion asks inside for targets and services only.

mod exit;
pub(crate) mod hidden;
mod hop;
mod moving;
mod punch;
mod records;
mod relay;
mod service;
#[cfg(test)]
mod tests;
mod trunk;

use std::{sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{sync::Notify, time::Instant};
use wormholes_proto::{Answer, NodeId, Open, Reason, Transport};
use wormholes_rules::{NodeView, RuleEvent, Verdict};

pub(crate) use hop::HopKeys;
pub(crate) use moving::MovingDesk;
pub(crate) use relay::RelayDesk;
pub(crate) use trunk::TrunkDesk;
pub use trunk::Trunks;

use crate::{
    carrier::{CloseCode, Incoming, Link, Standing},
    network::Network,
    pipe::{CopyEnd, Pipe, Side},
    role::Customer,
    sources::SourcePlace,
};

/// Whoever opens a stream says why within this.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection to a node that is no peer makes room after so long without a stream, whoever made
/// it: the next flow makes a new one in one round trip. So does one to a peer, when a newer one has
/// stood for as long.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Who asks, as far as it is known.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    /// The peer; for an onion the hop before.
    pub(crate) id: NodeId,
    /// Its trust; an onion's asker is nobody.
    pub(crate) trust: u8,
    /// How the request came.
    pub(crate) way: Way,
}

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// On a connection to a peer.
    Peer,
    /// On a connection to a stranger.
    Stranger,
    /// Sealed, through a relay.
    Relayed,
    /// In the last layer of an onion.
    Onion,
}

impl Asker {
    /// Whose account is charged.
    fn customer(&self) -> Customer {
        Customer {
            node: self.id,
            passes_on: self.way == Way::Onion,
        }
    }
}

/// Takes calls until the node stops.
pub(crate) async fn listen(network: Arc<Network>) {
    while let Some(incoming) = network.carrier().accept().await {
        let taker = Arc::clone(&network);
        network.spawn(async move { call(taker, incoming).await });
    }
}

async fn call(network: Arc<Network>, incoming: Incoming) {
    let is_peer = |id: &NodeId| network.peers().known().get(id).is_some();
    let link = match network.carrier().handshake(incoming, is_peer).await {
        Ok(Some(link)) => link,
        Ok(None) => return,
        Err(error) => {
            tracing::debug!(%error, "call failed");
            return;
        }
    };
    match admit(&network, &link).await {
        Ok(stranger) => serve_link(network, link, stranger, true).await,
        Err(code) => {
            network.counters().links_refused.fetch_add(1, Relaxed);
            link.close(code);
        }
    }
}

/// Decides who may connect; a stranger gets a place to hold.
async fn admit(network: &Arc<Network>, link: &Link) -> Result<Option<SourcePlace>, CloseCode> {
    if network.is_draining() {
        return Err(CloseCode::Busy);
    }
    let id = link.peer();
    let known = network.peers().known().get(&id).is_some();
    if id == network.id() || (!known && !network.config().hop.role.enabled) {
        return Err(CloseCode::Denied);
    }
    if let Verdict::Deny(why) = network.gatekeeper().accept(network.view(id)).await {
        tracing::debug!(peer = %network.named(id), why, "connection denied");
        return Err(CloseCode::Denied);
    }
    if !known {
        let circuits = network.config().hop.role.max_circuits_of_one();
        link.set_standing(Standing::Stranger, circuits);
        let place = network.peers().stranger(link.remote_address().ip());
        return place.map(Some).ok_or(CloseCode::Busy);
    }
    let config = network.config();
    let roles = [&config.relay, &config.hop.role, &config.exit.role];
    let circuits = roles.map(|role| role.max_circuits_of_one());
    let circuits = circuits.into_iter().fold(0, usize::saturating_add);
    link.set_standing(Standing::Known, circuits);
    network.peers().seat(link).map_err(|_| CloseCode::Busy)?;
    Ok(None)
}

/// Serves the streams of a connection until it closes. Strangers hold their place meanwhile.
/// Who is not `welcome` is called, and asks for nothing.
/// Boxed: serving a stream may connect to a further node, whose connection is served here too.
pub(crate) fn serve_link(
    network: Arc<Network>,
    link: Link,
    stranger: Option<SourcePlace>,
    welcome: bool,
) -> BoxFuture<'static, ()> {
    serve_streams(network, link, stranger, welcome).boxed()
}

async fn serve_streams(
    network: Arc<Network>,
    link: Link,
    stranger: Option<SourcePlace>,
    welcome: bool,
) {
    let known = stranger.is_none() && network.peers().known().get(&link.peer()).is_some();
    let answered = Arc::new(Notify::new());
    if known {
        network.expire_world();
        network.spawn(greet(
            Arc::clone(&network),
            link.clone(),
            Arc::clone(&answered),
        ));
    }
    let mut is_up = false;
    let lost = loop {
        let idle = network.idle_timeout();
        let is_kept = || stranger.is_none() && is_kept(&network, &link);
        let since = link.idle_since().filter(|_| !is_kept());
        let since = since.unwrap_or_else(Instant::now);
        let due = since.checked_add(idle).unwrap_or(since);
        let taken = tokio::select! {
            () = answered.notified(), if !is_up => {
                is_up = true;
                announce(&network, &link, "peer-up", String::new());
                network.trunk_desk().peer_is_up(link.peer());
                network.trunk_desk().presence(&network, link.peer());
                network.moving_desk().link_is_up();
                continue;
            }
            taken = tokio::time::timeout_at(due, link.accept()) => taken,
        };
        match taken {
            Ok(Ok(pipe)) => {
                let server = Arc::clone(&network);
                let opener = link.clone();
                network.spawn(async move { serve_stream(server, opener, pipe, welcome).await });
            }
            Ok(Err(error)) => break error,
            Err(_) => {
                let since = link.idle_since().filter(|_| !is_kept());
                if since.is_some_and(|since| since.elapsed() >= idle) {
                    link.close(CloseCode::Done);
                }
            }
        }
    };
    let gone = network.peers().unseat(&link);
    if gone {
        network.relay_desk().disconnected(&link.peer());
    }
    if known && gone {
        network.expire_world();
        network.trunk_desk().presence(&network, link.peer());
    }
    if is_up && gone {
        announce(&network, &link, "peer-down", lost.to_string());
    }
}

/// Whether a connection stands though nobody uses it: that to a peer, as long as there is no newer
/// one.
fn is_kept(network: &Network, link: &Link) -> bool {
    let (peers, long) = (network.peers(), network.idle_timeout());
    let is_peer = peers.known().get(&link.peer()).is_some();
    is_peer && !peers.is_superseded(network.id(), link, long)
}

/// Asks a peer for its records. Who is called learns only by the answer that it was let in: a link
/// that is closed by then was never up.
async fn greet(network: Arc<Network>, link: Link, answered: Arc<Notify>) {
    let mut since = link.made();
    while !link.is_closed() {
        network.learn_from(&link, since).await;
        if link.has_answered() {
            answered.notify_one();
            return;
        }
        since = Instant::now();
    }
}

fn announce(network: &Network, link: &Link, kind: &str, reason: String) {
    let peer: Arc<NodeView> = network.view(link.peer());
    tracing::info!(peer = %network.named(peer.id), kind, reason, "connection changed");
    network.expire_world();
    network.gatekeeper().event(RuleEvent {
        kind: kind.to_owned(),
        peer: Some(peer),
        reason,
    });
}

/// Whether the rules let in a node that was called from here: a call that this node makes opens
/// no door of its own.
pub(crate) async fn is_welcome(network: &Network, link: &Link) -> bool {
    let verdict = network.gatekeeper().accept(network.view(link.peer()));
    matches!(verdict.await, Verdict::Allow(_))
}

async fn serve_stream(network: Arc<Network>, link: Link, mut pipe: Pipe, welcome: bool) {
    let open = tokio::time::timeout(OPEN_TIMEOUT, pipe.reader.read_open()).await;
    let Ok(Ok(open)) = open else {
        network.counters().streams_refused.fetch_add(1, Relaxed);
        refuse(pipe, Reason::Malformed).await;
        return;
    };
    // Held before it is asked: who is not refused is waited for.
    let _serving = network.serving();
    if network.is_draining() {
        return refuse(pipe, Reason::Busy).await;
    }
    // Callers come through a relay that this node called; each is asked for by itself.
    if !welcome && !matches!(open, Open::Relayed) {
        network.counters().streams_refused.fetch_add(1, Relaxed);
        return refuse(pipe, Reason::Denied).await;
    }
    let trust = network
        .peers()
        .known()
        .get(&link.peer())
        .map(|peer| peer.trust);
    let asker = Asker {
        id: link.peer(),
        trust: trust.unwrap_or(0),
        way: if trust.is_some() {
            Way::Peer
        } else {
            Way::Stranger
        },
    };
    serve_open(&network, &asker, &link, open, pipe).await;
}

/// Each is boxed: a stream needs no room for what it was not opened for.
async fn serve_open(network: &Arc<Network>, asker: &Asker, link: &Link, open: Open, pipe: Pipe) {
    match open {
        Open::Exit(..) | Open::Resolve(_) | Open::Service(..) if asker.way == Way::Peer => {
            Box::pin(serve_target(network, asker, open, pipe)).await;
        }
        Open::Records if asker.way == Way::Peer => records::serve(network, pipe).await,
        Open::Register(record) if asker.way == Way::Peer => {
            relay::register(network, asker, &record, pipe).await;
        }
        Open::Relay(to) if asker.way == Way::Peer => {
            Box::pin(relay::serve(network, asker, to, pipe)).await
        }
        Open::Relayed if asker.way == Way::Peer => {
            Box::pin(relay::called(network, link, pipe)).await
        }
        Open::Mirror if asker.way == Way::Peer => punch::mirror(link, pipe).await,
        Open::Move(session) if asker.way == Way::Peer => {
            moving::serve(network, asker, link, &session, pipe).await;
        }
        Open::Create { key_id, slots } => {
            Box::pin(hop::serve(network, asker, &key_id, &slots, pipe)).await
        }
        Open::Exit(..)
        | Open::Resolve(_)
        | Open::Service(..)
        | Open::Relay(_)
        | Open::Channel
        | Open::Register(_)
        | Open::Relayed
        | Open::Records
        | Open::Mirror
        | Open::Punch(_)
        | Open::Move(_) => {
            network.counters().streams_refused.fetch_add(1, Relaxed);
            refuse(pipe, Reason::Denied).await;
        }
    }
}

/// Serves what anybody who was let in may ask for, on whatever way the request came.
pub(crate) async fn serve_target(network: &Arc<Network>, asker: &Asker, open: Open, pipe: Pipe) {
    match open {
        Open::Exit(transport, target) => {
            exit::serve(network, asker, transport, &target, pipe).await;
        }
        Open::Resolve(host) => exit::resolve(network, asker, &host, pipe).await,
        Open::Service(Transport::Tcp, Some(name)) if name.is_trunk() => {
            trunk::serve(network, asker, pipe).await;
        }
        Open::Service(transport, name) => {
            service::serve(network, asker, transport, name.as_ref(), pipe).await;
        }
        Open::Relay(_)
        | Open::Create { .. }
        | Open::Channel
        | Open::Register(_)
        | Open::Relayed
        | Open::Records
        | Open::Mirror
        | Open::Punch(_)
        | Open::Move(_) => {
            network.counters().streams_refused.fetch_add(1, Relaxed);
            refuse(pipe, Reason::Denied).await;
        }
    }
}

/// Does `work` for whoever waits at the other end of `pipe`; `None` when nobody does any more. What
/// was begun is dropped then, and gives its place back.
async fn while_asked<T>(pipe: &mut Pipe, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        () = pipe.reader.aborted() => None,
    }
}

/// Tells the asker why not.
pub(crate) async fn refuse(mut pipe: Pipe, reason: Reason) {
    // Who does not listen to the refusal misses nothing else.
    if pipe
        .writer
        .send_answer(&Answer::Refused(reason))
        .await
        .is_ok()
    {
        let _ = pipe.writer.finish().await;
    }
}

/// Grants what was asked for.
async fn accept(pipe: &mut Pipe, body: Vec<u8>) -> bool {
    let answer = Answer::Accepted(body);
    pipe.writer.send_answer(&answer).await.is_ok()
}

/// Grants the flow that was asked for on `pipe`; `None` when nobody waits for it any more. Its
/// datagrams may come as soon as the answer has left.
async fn grant(network: &Network, pipe: Pipe, transport: Transport) -> Option<Side> {
    let mut side = Side::between_nodes(pipe, transport, network.counters());
    let answer = Answer::Accepted(Vec::new());
    side.send_answer(&answer).await.ok().map(|()| side)
}

/// Counts and logs the end of a flow that was served.
fn log_end(network: &Network, role: &'static str, asker: &Asker, end: &CopyEnd) {
    network.counters().flow_ended(end.stop.as_ref());
    let why = end
        .stop
        .as_ref()
        .map_or_else(|| "done".to_owned(), ToString::to_string);
    tracing::debug!(
        role,
        from = %network.named(asker.id),
        up_bytes = end.up_bytes,
        down_bytes = end.down_bytes,
        why,
        "flow served"
    );
}
