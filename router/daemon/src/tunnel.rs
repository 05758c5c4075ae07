//! Opens tunnels: one match over their kinds, and one error that says what may be done about it.

mod direct;
mod i2p;
mod moving;
mod onion;
mod punch;
mod relay;
mod resolve;
mod socks;
mod tor;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::time::{Instant, timeout};
use wormholes_proto::CarrierKind;
use wormholes_proto::{Answer, NodeId, Open, Reason, Remedy, ServiceName, Target, Transport};
use wormholes_rules::{Tunnel, TunnelKind};

pub(crate) use moving::ask_to_move;
pub(crate) use onion::OnionClient;
pub(crate) use relay::connect as seal_through_relay;
pub(crate) use resolve::resolve;
pub use socks::UpstreamError;

use onion::OnionPlan;

use crate::{
    carrier::{Link, LinkError},
    dial::DialError,
    i2p::{I2pError, WantedTunnels},
    names::NodeName,
    network::{Network, Wanted},
    peers::ConnectError,
    pipe::{Pipe, PipeError, Side},
    tor::TorFailure,
};

/// What a flow wants of a tunnel.
#[derive(Debug, Clone)]
pub struct TunnelRequest {
    /// TCP or UDP.
    pub transport: Transport,
    /// Where to; the end of the tunnel dials it, unless the tunnel ends at a service.
    pub target: Target,
    /// For tunnels that end at a peer's service: which; none is its default.
    pub service: Option<ServiceName>,
    /// Flows with different keys share no circuit. Only onions, Tor and I2P look at it; empty for the
    /// others.
    pub isolation: String,
    /// How long opening may take.
    pub timeout: Duration,
    /// What carries the connection to the first node; none takes any.
    pub carrier: Option<CarrierKind>,
    /// How long that node may be dialled, or however many stand in for each other there, when
    /// another tunnel waits for its turn: the dial then goes on for the next flow. None: as long
    /// as `timeout` lets it.
    pub patience: Option<Duration>,
}

impl TunnelRequest {
    fn first_node(&self) -> Wanted {
        Wanted {
            carrier: self.carrier,
            patience: self.patience,
            made_after: None,
        }
    }
}

/// A tunnel that stands.
#[derive(Debug)]
pub struct Opened {
    /// The target's side.
    pub side: Side,
    /// The nodes on the way, in order; empty for a local dial.
    pub path: Vec<NodeId>,
    /// What was opened.
    pub kind: TunnelKind,
}

impl Opened {
    /// The target's side of a TCP flow; `None` for a UDP flow.
    pub fn into_pipe(self) -> Option<Pipe> {
        match self.side {
            Side::Stream(pipe) => Some(pipe),
            Side::Datagrams(_) => None,
        }
    }
}

/// A tunnel that did not open.
#[derive(Debug, Clone, Error)]
pub enum OpenError {
    /// The plan blocks.
    #[error("blocked: {0}")]
    Blocked(String),
    /// The local dial failed.
    #[error("dialling from here: {0}")]
    Dial(#[from] DialError),
    /// A node could not be connected to.
    #[error("connecting to {node}: {source}")]
    Connect {
        /// Which one.
        node: NodeName,
        /// Why not.
        source: ConnectError,
    },
    /// A node refused.
    #[error("refused by {node}: {reason}")]
    Refused {
        /// Which one.
        node: NodeName,
        /// Its reason.
        reason: Reason,
    },
    /// The last hop has no such service for strangers, and over an onion everybody is one.
    #[error(
        "refused by {node}: no such service for strangers; who comes over an onion is one, and \
         needs a service with `min_trust = 0`"
    )]
    NoServiceForStrangers {
        /// The last hop.
        node: NodeName,
    },
    /// A hop of an onion path failed, as far as the hop before it can be believed.
    #[error("onion hop {node}: {}{}", hop_failure(*.reason), said(.witness.as_ref()))]
    Hop {
        /// Which one.
        node: NodeName,
        /// The hop before it, whose word this is; none where this node saw it by itself.
        witness: Option<NodeName>,
        /// What is said of it.
        reason: Reason,
    },
    /// No circuit came to be in its time. Which hop keeps silent, none of those before it can
    /// tell: all wait equally long, so that the wait tells no hop its position.
    #[error("no onion circuit over {hops} hops in time: one of them does not answer")]
    NoCircuit {
        /// How many there are.
        hops: usize,
    },
    /// The tunnel broke while it was being opened.
    #[error("tunnel to {node}: {source}")]
    Broken {
        /// The node that it was being opened to.
        node: NodeName,
        /// How.
        source: PipeError,
    },
    /// No onion path can be laid.
    #[error("no onion path: {0}")]
    NoPath(String),
    /// The upstream SOCKS server refused, or did not do its part.
    #[error("upstream {server}: {source}")]
    Upstream {
        /// Which one.
        server: SocketAddr,
        /// What it said or did.
        source: UpstreamError,
    },
    /// Tor, or what is behind it.
    #[error("tor: {0}")]
    Tor(#[from] TorFailure),
    /// The I2P router refused, or did not do its part.
    #[error("I2P router {router}: {source}")]
    I2p {
        /// Which one.
        router: SocketAddr,
        /// What it said or did.
        source: I2pError,
    },
    /// Nobody that can serve as what the plan wants is known.
    #[error("{0}")]
    NoWay(&'static str),
    /// The time was over.
    #[error("not open within {} ms", .0.as_millis())]
    TimedOut(Duration),
}

/// Where a tunnel failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// The rules of this node.
    Rule,
    /// This node.
    Local,
    /// The first node on the way, or its connection.
    Peer,
    /// A node further on, or the target behind it.
    Remote,
}

/// Where it failed, and what may be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorKind {
    /// Where.
    pub place: Place,
    /// What to do: fallback is decided by this only.
    pub remedy: Remedy,
}

impl OpenError {
    /// Where it failed, and what may be done about it.
    pub fn kind(&self) -> ErrorKind {
        let place = match self {
            Self::Blocked(_) => Place::Rule,
            Self::Dial(_) | Self::NoPath(_) | Self::NoWay(_) | Self::TimedOut(_) => Place::Local,
            Self::Connect { .. } | Self::Broken { .. } => Place::Peer,
            Self::I2p { source, .. } if source.word().is_none() => Place::Local,
            Self::Refused { .. }
            | Self::NoServiceForStrangers { .. }
            | Self::Hop { .. }
            | Self::NoCircuit { .. }
            | Self::I2p { .. }
            | Self::Upstream { .. } => Place::Remote,
            Self::Tor(failure) if failure.is_of_target() => Place::Remote,
            Self::Tor(_) => Place::Local,
        };
        let remedy = match self {
            Self::Blocked(_) => Remedy::GiveUp,
            Self::Dial(DialError::SpecialUse) => Remedy::OtherTunnel,
            Self::Dial(error) => error.reason().remedy(),
            // An answer to a circuit only; whoever gives it to anything else lies.
            Self::Refused { reason: Reason::StaleKey, .. } => Remedy::OtherTunnel,
            Self::Refused { reason, .. } => reason.remedy(),
            // Another tunnel may lead there as a friend.
            Self::NoServiceForStrangers { .. }
            // A hop's word ends no plan: the paths that it is not on may do.
            | Self::Hop { .. }
            | Self::NoCircuit { .. }
            | Self::Connect { .. }
            | Self::Broken { .. }
            | Self::NoPath(_)
            | Self::I2p { .. }
            | Self::Upstream { .. }
            | Self::Tor(_)
            | Self::NoWay(_)
            | Self::TimedOut(_) => Remedy::OtherTunnel,
        };
        ErrorKind { place, remedy }
    }

    /// The node that did not do its part, where it was one.
    pub fn node(&self) -> Option<NodeId> {
        match self {
            Self::Connect { node, .. }
            | Self::Refused { node, .. }
            | Self::NoServiceForStrangers { node }
            | Self::Hop { node, .. }
            | Self::Broken { node, .. } => Some(node.id),
            Self::Blocked(_)
            | Self::Dial(_)
            | Self::NoPath(_)
            | Self::NoCircuit { .. }
            | Self::I2p { .. }
            | Self::Upstream { .. }
            | Self::Tor(_)
            | Self::NoWay(_)
            | Self::TimedOut(_) => None,
        }
    }

    /// The one reason of the wire's list that stands for it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Blocked(_) => Reason::Denied,
            Self::Dial(error) => error.reason(),
            Self::Connect { source, .. } => source.reason(),
            Self::Refused { reason, .. } => *reason,
            Self::I2p { source, .. } => source.word().unwrap_or(Reason::Unreachable),
            Self::Upstream { source, .. } => source.word().unwrap_or(Reason::Unreachable),
            Self::NoServiceForStrangers { .. } => Reason::NoService,
            Self::Tor(failure) => failure.reason(),
            Self::Hop { reason, .. } => match reason {
                Reason::Malformed
                | Reason::Unsupported
                | Reason::Busy
                | Reason::StaleKey
                | Reason::Handshake => *reason,
                // Said of a hop, these are no answer of the target's, nor of a rule here.
                Reason::Denied
                | Reason::NoService
                | Reason::NoNode
                | Reason::NameNotFound
                | Reason::ForbiddenAddress
                | Reason::Unreachable
                | Reason::NetworkUnreachable
                | Reason::ConnectionRefused
                | Reason::TimedOut => Reason::Unreachable,
            },
            Self::Broken { .. } | Self::NoPath(_) | Self::NoWay(_) => Reason::Unreachable,
            Self::NoCircuit { .. } | Self::TimedOut(_) => Reason::TimedOut,
        }
    }
}

/// The list has the words for targets; a hop is none.
fn hop_failure(reason: Reason) -> String {
    if matches!(reason, Reason::Unreachable | Reason::TimedOut) {
        "not reached".to_owned()
    } else {
        reason.to_string()
    }
}

fn said(witness: Option<&NodeName>) -> String {
    witness.map_or_else(String::new, |hop| format!(", says {hop} before it"))
}

/// Opens `tunnel`. Dropping the future ends the attempt.
///
/// # Errors
/// [`OpenError`], whose kind says whether another tunnel may do better.
pub(crate) async fn open(
    network: &Arc<Network>,
    tunnel: &Tunnel,
    request: &TunnelRequest,
) -> Result<Opened, OpenError> {
    let timeout = request.timeout;
    let opened = tokio::time::timeout(timeout, open_any(network, tunnel, request)).await;
    opened.unwrap_or_else(|_| Err(too_late(network, tunnel, timeout)))
}

/// The time was over; where that is Tor's fault, how far it is.
fn too_late(network: &Network, tunnel: &Tunnel, timeout: Duration) -> OpenError {
    let late = matches!(tunnel, Tunnel::Tor).then(|| network.tor().lateness(timeout));
    late.flatten()
        .map_or(OpenError::TimedOut(timeout), OpenError::Tor)
}

async fn open_any(
    network: &Arc<Network>,
    tunnel: &Tunnel,
    request: &TunnelRequest,
) -> Result<Opened, OpenError> {
    let wanted = |exit: bool| match exit {
        true => Open::Exit(request.transport, request.target.clone()),
        false => Open::Service(request.transport, request.service.clone()),
    };
    let first = request.first_node();
    let opened = |pipe, path, kind| Opened {
        side: Side::between_nodes(pipe, request.transport, network.counters()),
        path,
        kind,
    };
    match tunnel {
        Tunnel::Direct { to: None, .. } => {
            direct::dial(network, request.transport, &request.target).await
        }
        Tunnel::Direct { to: Some(to), exit } => {
            let (pipe, _) = direct::ask(network, *to, first, &wanted(*exit)).await?;
            Ok(opened(pipe, vec![*to], TunnelKind::Direct))
        }
        Tunnel::Relay { via, to, exit } => {
            let (relay, pipe, _) = relay::ask(network, *via, *to, first, &wanted(*exit)).await?;
            Ok(opened(pipe, vec![relay, *to], TunnelKind::Relay))
        }
        Tunnel::Punch { via, to, exit } => {
            let (relay, pipe, _) = punch::ask(network, *via, *to, first, &wanted(*exit)).await?;
            let kind = relay.map_or(TunnelKind::Direct, |_| TunnelKind::Relay);
            Ok(opened(pipe, relay.into_iter().chain([*to]).collect(), kind))
        }
        Tunnel::Onion { to, exit, .. } => {
            // Without a named end the last hop is any that exits.
            let open = wanted(*exit || to.is_none());
            let plan = onion_plan(tunnel, first)?;
            let isolation = &request.isolation;
            let (path, pipe, _) =
                onion::ask(network, plan, isolation, &open, request.timeout).await?;
            Ok(opened(pipe, path, TunnelKind::Onion))
        }
        Tunnel::I2p {
            keep,
            length,
            quantity,
        } => {
            let wanted = WantedTunnels {
                length: *length,
                quantity: *quantity,
            };
            i2p::open(network, keep.as_deref(), wanted, request).await
        }
        Tunnel::Socks { server } => match request.transport {
            Transport::Tcp => socks::open(network, *server, &request.target).await,
            Transport::Udp => Err(OpenError::NoWay(
                "UDP does not go through an upstream SOCKS server: give `c.network == \"udp\"` \
                 another tunnel",
            )),
        },
        Tunnel::Tor => tor::open(network, request).await,
        Tunnel::Block { why } => Err(OpenError::Blocked(why.clone())),
    }
}

fn onion_plan(tunnel: &Tunnel, first: Wanted) -> Result<OnionPlan, OpenError> {
    match tunnel {
        Tunnel::Onion {
            hops,
            via,
            to,
            friends_only,
            ..
        } => Ok(OnionPlan {
            hops: *hops,
            via: *via,
            to: *to,
            friends_only: *friends_only,
            first,
        }),
        Tunnel::Direct { .. }
        | Tunnel::Relay { .. }
        | Tunnel::Punch { .. }
        | Tunnel::I2p { .. }
        | Tunnel::Socks { .. }
        | Tunnel::Tor
        | Tunnel::Block { .. } => Err(OpenError::NoWay("not an onion tunnel")),
    }
}

/// Asks `node` for something on a new stream, on the standing connection or a new one. One that
/// turns out to be dead is replaced, once: no byte of a flow has left by then. Returns the one that
/// was asked on.
async fn ask_node<T, F: Future<Output = Result<T, OpenError>>>(
    network: &Arc<Network>,
    node: NodeId,
    first: Wanted,
    ask: impl Fn(Pipe) -> F,
) -> Result<(T, Link), OpenError> {
    let start = Instant::now();
    let mut wanted = first;
    loop {
        let link = network.connect_over(node, None, wanted);
        let link = link.await.map_err(|source| OpenError::Connect {
            node: network.named(node),
            source,
        })?;
        // A new link was alive just now: where nothing else waits for its turn, a busy node has time.
        let is_new = wanted.made_after.is_some();
        let has_time = is_new && first.patience.is_none();
        match ask_over(&link, &ask, is_new, has_time).await {
            Ok(asked) => return asked.map(|asked| (asked, link)),
            // A door shut on the whole connection says more than the broken stream on it.
            Err(source) if is_new || matches!(source, LinkError::Closed(_)) => {
                let (node, source) = (network.named(node), source.into());
                return Err(OpenError::Connect { node, source });
            }
            Err(error) => {
                tracing::debug!(node = %network.named(node), %error, "dead connection");
                network.look_for_lost();
            }
        }
        wanted = Wanted {
            // Others that stood as long may be as dead.
            made_after: Some(start),
            ..left(first, start)
        };
    }
}

/// What was wanted at `start`, with what is left of the patience.
fn left(first: Wanted, start: Instant) -> Wanted {
    let left = |patience: Duration| patience.saturating_sub(start.elapsed());
    Wanted {
        patience: first.patience.map(left),
        ..first
    }
}

/// Fetches records anew; those that have come are there, whether or not all came in time.
async fn refresh(network: &Arc<Network>, first: Wanted) {
    refresh_since(network, first, Instant::now()).await;
}

/// As [`refresh`], but for what somebody began to fetch after `since`.
async fn refresh_since(network: &Arc<Network>, first: Wanted, since: Instant) {
    let refresh = network.refresh_records_since(since);
    match first.patience {
        Some(patience) => drop(timeout(patience, refresh).await),
        None => drop(refresh.await),
    }
}

/// # Errors
/// [`LinkError`] when it was the connection that failed.
async fn ask_over<T, F: Future<Output = Result<T, OpenError>>>(
    link: &Link,
    ask: impl Fn(Pipe) -> F,
    is_new: bool,
    has_time: bool,
) -> Result<Result<T, OpenError>, LinkError> {
    let asked = async { Ok(ask(link.open().await?).await) };
    let asked = match has_time {
        true => asked.await?,
        false => link.while_alive(asked).await??,
    };
    match asked {
        Err(OpenError::Broken { .. }) if link.is_closed() => Err(link.closed().await),
        // One of its connections is gone, as after a sleep, and the others' pulse has not told yet.
        Err(OpenError::Broken { .. }) if !is_new && link.carrier() == CarrierKind::Tcp => {
            Err(LinkError::Silent)
        }
        asked => Ok(asked),
    }
}

/// Sends an OPEN to `node` at the other end of `pipe`, and takes its answer.
async fn ask_on(
    network: &Network,
    pipe: &mut Pipe,
    node: NodeId,
    open: &Open,
) -> Result<Vec<u8>, OpenError> {
    let broken = |source| OpenError::Broken {
        node: network.named(node),
        source,
    };
    pipe.writer.send_open(open).await.map_err(broken)?;
    let answer = if let Open::Resolve(_) = open {
        let answer = pipe.reader.read_answer().await;
        // Nothing else is said: whatever carries it is free for the next.
        let _ = pipe.writer.finish().await;
        answer
    } else {
        pipe.reader.read_grant().await
    };
    let answer = network.counters().answered(answer);
    match answer.map_err(broken)? {
        Answer::Accepted(body) => Ok(body),
        Answer::Refused(reason) => {
            // Who refused has ended the stream.
            let _ = pipe.writer.finish().await;
            Err(OpenError::Refused {
                node: network.named(node),
                reason,
            })
        }
    }
}
