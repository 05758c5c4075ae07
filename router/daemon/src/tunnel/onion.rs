//! Onion tunnels, seen from the client: a path, a circuit on it, and the request inside.
//!
//! A path is kept per isolation key; every flow gets a circuit of its own on it, if possible one
//! that was built ahead. The client speaks with the first hop only.

mod first_hop;
mod paths;
mod spares;

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::time::timeout;
use wormholes_proto::{
    Answer, NodeId, Open, Reason, Remedy, Suite,
    onion::{CREATED_BYTES, ClientBuild, LastHop, PathHop, PathKey, PathRequest},
};

use wormholes_proto::CarrierKind;

use super::{OpenError, ask_on, left, refresh};
use crate::{
    carrier::Link,
    network::{Network, Wanted},
    pipe::{CellOpener, CellSealer, Pipe, PipeError},
};

use first_hop::{FirstHops, is_connected, stands};
use paths::Paths;
use spares::{Spare, Spares};

/// Paths that are tried for one flow, the same one with fresh keys included.
const MAX_ATTEMPTS: usize = 3;
/// What may hang gets one part in so many of the time that is left: the rest is for another try.
const PARTS: u32 = 3;
/// Building ahead holds nobody up; hops give up sooner.
const BUILD_AHEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// What this node keeps for its own onion tunnels.
#[derive(Debug)]
pub(crate) struct OnionClient {
    paths: Paths,
    first_hops: FirstHops,
    spares: Spares<Circuit>,
}

/// A circuit that is nobody's yet, and the connection to its first hop.
#[derive(Debug)]
struct Circuit {
    link: Link,
    pipe: Pipe,
}

/// What a plan says about an onion tunnel.
#[derive(Debug, Clone, Copy)]
pub(super) struct OnionPlan {
    pub(super) hops: u8,
    pub(super) via: Option<NodeId>,
    pub(super) to: Option<NodeId>,
    pub(super) friends_only: bool,
    /// What the connection to the first hop shall be like.
    pub(super) first: Wanted,
}

impl OnionClient {
    /// Reads the guards that `data_dir` keeps.
    pub(crate) fn new(data_dir: &std::path::Path) -> Self {
        Self {
            paths: Paths::new(data_dir),
            first_hops: FirstHops::default(),
            spares: Spares::new(),
        }
    }

    /// Guards of this node, the primary first.
    pub(crate) fn guards(&self) -> Vec<NodeId> {
        self.paths.guards()
    }

    /// Connections to first hops that were made for onions only.
    pub(crate) fn links(&self) -> Vec<Link> {
        self.first_hops.links()
    }

    /// Lets every first hop be dialled at once, whatever failed before or is being tried.
    pub(crate) fn start_afresh(&self) {
        self.first_hops.start_afresh();
    }
}

/// Opens a circuit as `plan` says and asks its last hop for `open`. Returns the path, the stream
/// and the answer's body. A path that hangs is given up in time for another within `timeout`,
/// which the caller keeps.
pub(super) async fn ask(
    network: &Arc<Network>,
    plan: OnionPlan,
    isolation: &str,
    open: &Open,
    timeout: Duration,
) -> Result<(Vec<NodeId>, Pipe, Vec<u8>), OpenError> {
    let mut time = TimeLeft {
        since: Instant::now(),
        timeout,
        first: plan.first,
        is_late: false,
    };
    let carrier = plan.first.carrier;
    let key = PathKey {
        // A circuit over another carrier is another circuit.
        isolation: format!("{} {isolation}", carrier.map_or("any", CarrierKind::as_str)),
        request: PathRequest {
            own: network.id(),
            hops: plan.hops,
            via: plan.via,
            to: plan.to,
            friends_only: plan.friends_only,
            last: last_hop(open),
            suite: Suite::fastest_here(),
        },
    };
    let mut failed = OpenError::NoWay("no onion path");
    for attempt in 0..MAX_ATTEMPTS {
        let paths = &network.onion().paths;
        let (path, kept) = paths.choose(network, &key, time.first_hop()).await?;
        if attempt > 0 && time.is_next_steps() && !is_connected(network, &path, carrier) {
            break;
        }
        match ask_over(network, &key, &path, open, time).await {
            Ok((pipe, body)) => {
                // A key that came once may never come again.
                if kept {
                    build_ahead(network, key, path.clone(), carrier);
                }
                return Ok((ids(&path), pipe, body));
            }
            Err(error) if error.is_answer() => return Err(error.into_open(network, &path)),
            Err(error) => {
                paths.forget(&key, &path);
                if error.remedy() == Some(Remedy::RefreshRecords) {
                    refresh(network, time.first_hop()).await;
                }
                time.is_late |= matches!(error, CircuitError::Hop(0, Reason::TimedOut));
                failed = error.into_open(network, &path);
                if time.part().is_zero() {
                    break;
                }
            }
        }
    }
    Err(failed)
}

/// The time that opening may take.
#[derive(Debug, Clone, Copy)]
struct TimeLeft {
    since: Instant,
    timeout: Duration,
    first: Wanted,
    /// A first hop kept silent: where the next step of the plan waits for its turn, another has
    /// what is left of the patience.
    is_late: bool,
}

/// A circuit that was not built, or was of no use.
#[derive(Debug)]
enum CircuitError {
    /// A hop, counted from 0, failed.
    Hop(usize, Reason),
    /// No hop said anything in time, or one said so of those behind it.
    TimedOut,
    /// The circuit broke.
    Broken(PipeError),
    /// The last hop's answer: the circuit did its work.
    Answer(OpenError),
}

impl CircuitError {
    fn is_answer(&self) -> bool {
        matches!(self, Self::Answer(_))
    }

    fn remedy(&self) -> Option<Remedy> {
        match self {
            Self::Hop(_, reason) => Some(reason.remedy()),
            Self::TimedOut | Self::Broken(_) | Self::Answer(_) => None,
        }
    }

    fn into_open(self, network: &Network, path: &[PathHop]) -> OpenError {
        match self {
            Self::Hop(index, reason) => match path.get(index) {
                Some(hop) => OpenError::Hop {
                    node: network.named(hop.id),
                    witness: witness(path, index, reason).map(|hop| network.named(hop.id)),
                    reason,
                },
                None => OpenError::NoWay("an onion hop failed"),
            },
            Self::TimedOut => OpenError::NoCircuit { hops: path.len() },
            Self::Broken(source) => match path.first() {
                Some(first) => OpenError::Broken {
                    node: network.named(first.id),
                    source,
                },
                None => OpenError::NoWay("the onion circuit broke"),
            },
            Self::Answer(error) => as_stranger(error),
        }
    }
}

/// The hop whose word a failure is. The first hop speaks for itself, and a handshake that does not
/// hold shows here.
fn witness(path: &[PathHop], index: usize, reason: Reason) -> Option<&PathHop> {
    let before = index.checked_sub(1)?;
    path.get(before).filter(|_| reason != Reason::Handshake)
}

async fn ask_over(
    network: &Arc<Network>,
    key: &PathKey,
    path: &[PathHop],
    open: &Open,
    time: TimeLeft,
) -> Result<(Pipe, Vec<u8>), CircuitError> {
    let last = path.last().map_or_else(|| network.id(), |hop| hop.id);
    let spare = network.onion().spares.take(key, path, Instant::now());
    if let Some(spare) = spare.filter(|spare| stands(&spare.link)) {
        let asked = spare.ask(network, last, open);
        match timeout(time.part(), asked).await {
            // It died while it waited: a new one will do, or tell that the path is dead.
            Ok(Err(CircuitError::Broken(_))) | Err(_) => {}
            Ok(asked) => return asked,
        }
    }
    let circuit = build(network, path, time.first_hop(), time.part()).await?;
    circuit.ask(network, last, open).await
}

impl Circuit {
    /// Asks the last hop, as long as the first one shows signs of life.
    async fn ask(
        mut self,
        network: &Network,
        last: NodeId,
        open: &Open,
    ) -> Result<(Pipe, Vec<u8>), CircuitError> {
        let asked = ask_on(network, &mut self.pipe, last, open);
        match self.link.while_alive(asked).await {
            Ok(Ok(body)) => Ok((self.pipe, body)),
            Ok(Err(OpenError::Broken { source, .. })) => Err(CircuitError::Broken(source)),
            Ok(Err(error)) => Err(CircuitError::Answer(error)),
            Err(_) => {
                network.onion().paths.refused(&self.link.peer());
                Err(CircuitError::Hop(0, Reason::TimedOut))
            }
        }
    }
}

/// The last hop's refusal, to one whom it knows for nobody.
fn as_stranger(error: OpenError) -> OpenError {
    if let OpenError::Refused {
        node,
        reason: Reason::NoService,
    } = error
    {
        return OpenError::NoServiceForStrangers { node };
    }
    error
}

impl TimeLeft {
    /// How long to wait for something that may hang.
    fn part(self) -> Duration {
        let part = self.timeout.saturating_sub(self.since.elapsed()) / PARTS;
        match self.first_hop().patience {
            Some(patience) if self.is_late => part.min(patience),
            Some(_) | None => part,
        }
    }

    /// Nothing is dialled any more: the next step of the plan has its turn.
    fn is_next_steps(self) -> bool {
        self.first_hop().patience == Some(Duration::ZERO)
    }

    /// What is wanted of the first hop by now.
    fn first_hop(self) -> Wanted {
        left(self.first, self.since.into())
    }
}

/// Builds a circuit: one CREATE to the first hop, one CREATED back.
async fn build(
    network: &Arc<Network>,
    path: &[PathHop],
    first: Wanted,
    time: Duration,
) -> Result<Circuit, CircuitError> {
    let built = timeout(time, try_build(network, path, first)).await;
    let built = built.unwrap_or(Err(CircuitError::TimedOut));
    let counters = network.counters();
    match &built {
        Ok(_) => counters.circuits_built.fetch_add(1, Relaxed),
        Err(error) => {
            tracing::debug!(?error, hops = path.len(), "no onion circuit");
            counters.circuits_failed.fetch_add(1, Relaxed)
        }
    };
    built
}

async fn try_build(
    network: &Arc<Network>,
    path: &[PathHop],
    first: Wanted,
) -> Result<Circuit, CircuitError> {
    let hop = path.first().ok_or(CircuitError::Hop(0, Reason::NoNode))?;
    let (build, create) = ClientBuild::new(path, &mut rand::rng())
        .map_err(|_| CircuitError::Hop(0, Reason::Malformed))?;
    let open = Open::Create {
        key_id: create.key_id,
        slots: create.slots,
    };
    let (link, pipe, answer) = first_hop::ask(network, hop, first, &open).await?;
    let created: [u8; CREATED_BYTES] = match answer {
        Answer::Accepted(created) => created
            .try_into()
            .map_err(|_| CircuitError::Hop(0, Reason::Malformed))?,
        Answer::Refused(reason) => return Err(CircuitError::Hop(0, reason)),
    };
    let circuit = build.handle_created(&created).map_err(|error| {
        if error.reason == Reason::TimedOut {
            // Some hop's wait was over, which says nothing of the one behind it.
            CircuitError::TimedOut
        } else {
            CircuitError::Hop(error.hop, error.reason)
        }
    })?;
    let (sealer, opener) = circuit.split();
    let pipe = pipe.onion(
        CellSealer::Client(Box::new(sealer)),
        CellOpener::Client(opener),
        None,
    );
    let pipe = pipe.ok_or(CircuitError::Hop(0, Reason::Unsupported))?;
    Ok(Circuit { link, pipe })
}

/// Has a circuit ready for the next flow on this path, for a while.
fn build_ahead(
    network: &Arc<Network>,
    key: PathKey,
    path: Vec<PathHop>,
    carrier: Option<CarrierKind>,
) {
    if !network.onion().spares.claim(&key, Instant::now()) {
        return;
    }
    let builder = Arc::clone(network);
    network.spawn(async move {
        let spares = &builder.onion().spares;
        let first = Wanted {
            carrier,
            ..Wanted::default()
        };
        match build(&builder, &path, first, BUILD_AHEAD_TIMEOUT).await {
            Err(_) => spares.release(&key),
            Ok(circuit) => {
                let spare = Spare {
                    path,
                    circuit,
                    built: Instant::now(),
                };
                if spares.keep(key, spare) {
                    spares.let_go_in_time().await;
                }
            }
        }
    });
}

fn last_hop(open: &Open) -> LastHop {
    match open {
        Open::Exit(_, target) => LastHop::Exit(target.port),
        Open::Resolve(_) => LastHop::Resolve,
        Open::Service(..)
        | Open::Relay(_)
        | Open::Create { .. }
        | Open::Channel
        | Open::Register(_)
        | Open::Relayed
        | Open::Records
        | Open::Mirror
        | Open::Punch(_)
        | Open::Move(_) => LastHop::Services,
    }
}

fn ids(path: &[PathHop]) -> Vec<NodeId> {
    path.iter().map(|hop| hop.id).collect()
}
