//! Tor, as this node uses it: whether it runs and how far it is, who is dialled through it, and which
//! onion services of this node are up.
//!
//! ```text
//! start -> life: a client is made -> it bootstraps -> ready: flows go, onion services are published
//! stop  -> streams through it are cut, services go, the client rests
//! ```
//! A flow that comes before it is ready waits, as long as its plan lets it.

mod calls;
mod counts;
mod hosted;
mod life;
mod numbers;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use thiserror::Error;
use tokio::{
    net::UnixStream,
    sync::{OnceCell, mpsc, watch},
};
use tokio_util::sync::CancellationToken;
use wormholes_proto::{Host, Reason, Target, tcp::LinkToken};
use wormholes_tor::{Circuit, Client, Progress, Settings, TorError};

pub(crate) use counts::{Counted, Counts};
pub(crate) use hosted::HostedState;

use self::{calls::Onions, hosted::Services, life::Run};
use crate::{
    config::{Config, PeerConfig},
    pipe::Pipe,
};

/// Whether flows may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// config.toml does not have it on.
    Disabled,
    /// A command stopped it, or the node stops.
    Stopped,
    /// It is on its way into the network.
    Starting,
    /// Flows may go.
    Ready,
    /// It cannot be; `tor start` tries it again.
    Failed,
}

/// How it stands with Tor.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) phase: Phase,
    pub(crate) progress: Progress,
    /// Why it failed, or what was wrong last.
    pub(crate) error: Option<String>,
    /// There from the beginning of the way into the network on.
    client: Option<Arc<Client>>,
    /// Cuts all streams of the client.
    cut: CancellationToken,
}

/// Tor, of one node.
#[derive(Debug)]
pub(crate) struct Tor {
    /// None where config.toml does not have it on.
    settings: Option<Settings>,
    /// Made at the first start.
    client: OnceCell<Arc<Client>>,
    standing: watch::Sender<Standing>,
    /// Held while it starts or stops.
    run: tokio::sync::Mutex<Option<Run>>,
    services: Services,
    onions: Mutex<Onions>,
    /// Where connections to this node's own onion address are handed in.
    calls: OnceLock<mpsc::Sender<UnixStream>>,
    counts: Arc<Counts>,
    /// How many identities there were, this one included.
    identities: AtomicU64,
}

/// Something that does not go through Tor.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TorFailure {
    /// config.toml does not have it on.
    #[error("it is off: set `enabled = true` under [tor]")]
    Disabled,
    /// A command stopped it, or the node stops.
    #[error("it is stopped: `wormholes tor start` starts it")]
    Stopped,
    /// It did not start.
    #[error("it did not start: {0}")]
    NotStarted(String),
    /// An onion service has no new address.
    #[error("no new address, the one before stays: {0}")]
    NotRenewed(String),
    /// It did not get into the network in time.
    #[error(
        "not ready within {} ms: {percent} % of its way into the network{}",
        .waited.as_millis(), because(.blocked.as_deref())
    )]
    NotReady {
        /// How long that was.
        waited: Duration,
        /// How far it is.
        percent: u8,
        /// Why it does not get on, where that is known.
        blocked: Option<String>,
    },
    /// The address stands for no onion address that config.toml names.
    #[error("no peer has that onion address")]
    Unknown,
    /// Tor itself, or somebody behind it.
    #[error(transparent)]
    Tor(#[from] TorError),
}

impl Tor {
    /// What config.toml wants; it does nothing yet.
    pub(crate) fn new(config: &Config) -> Arc<Self> {
        let settings = config.tor.enabled.then(|| settings(config));
        let phase = match settings {
            Some(_) => Phase::Stopped,
            None => Phase::Disabled,
        };
        let tor = Self {
            settings,
            client: OnceCell::new(),
            standing: watch::Sender::new(Standing {
                phase,
                progress: Progress::default(),
                error: None,
                client: None,
                cut: CancellationToken::new(),
            }),
            run: tokio::sync::Mutex::default(),
            services: Services::of(config),
            onions: Mutex::default(),
            calls: OnceLock::new(),
            counts: Arc::default(),
            identities: AtomicU64::new(1),
        };
        tor.use_peers(&config.peers);
        Arc::new(tor)
    }

    /// Hands connections to this node's own onion address in at `calls`.
    pub(crate) fn hand_in_at(&self, calls: mpsc::Sender<UnixStream>) {
        // Set once: a node has one carrier.
        let _ = self.calls.set(calls);
    }

    /// Takes the onion addresses of peers that are known by now.
    pub(crate) fn use_peers(&self, peers: &[PeerConfig]) {
        let onions = peers.iter().flat_map(|peer| &peer.onions);
        *self.lock_onions() = onions.collect();
    }

    /// How it stands.
    pub(crate) fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Whether config.toml has it on.
    pub(crate) fn is_enabled(&self) -> bool {
        self.settings.is_some()
    }

    /// Whether it is a network of one's own.
    pub(crate) fn is_private(&self) -> bool {
        let settings = self.settings.as_ref();
        settings.is_some_and(|settings| settings.network.is_some())
    }

    /// Bridges that it goes by.
    pub(crate) fn bridges(&self) -> usize {
        let settings = self.settings.as_ref();
        settings.map_or(0, |settings| settings.bridges.len())
    }

    /// What was counted.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How many identities there were, this one included.
    pub(crate) fn identities(&self) -> u64 {
        self.identities.load(Relaxed)
    }

    /// The onion services of this node, in the order of config.toml, its own address last.
    pub(crate) fn hosted(&self) -> Vec<HostedState> {
        self.services.states()
    }

    /// Opens a stream to `target`, an exit's or an onion service's; waits until Tor is ready. Streams
    /// of different `group`s share no circuit.
    ///
    /// # Errors
    /// [`TorFailure`].
    pub(crate) async fn open(&self, target: &Target, group: &str) -> Result<Pipe, TorFailure> {
        let (client, cut) = self.client().await?;
        let host = target.host.to_string();
        let opening = client.connect(&host, target.port, group);
        drop(client);
        let stream = unless_cut(&cut, opening).await?;
        let counted = Counted::outgoing(&self.counts);
        Ok(Pipe::tor(stream, cut, counted))
    }

    /// Has an exit look `host` up.
    ///
    /// # Errors
    /// [`TorFailure`].
    pub(crate) async fn resolve(
        &self,
        host: &Host,
        group: &str,
    ) -> Result<Vec<IpAddr>, TorFailure> {
        let (client, cut) = self.client().await?;
        let looking = client.resolve(&host.to_string(), group);
        drop(client);
        unless_cut(&cut, looking).await
    }

    /// Calls a peer at the onion address that `placeholder` stands for; `throw_away` is the link, where
    /// it is made under a throw-away key.
    ///
    /// # Errors
    /// [`TorFailure`].
    pub(crate) async fn call(
        &self,
        placeholder: SocketAddr,
        throw_away: Option<LinkToken>,
    ) -> Result<UnixStream, TorFailure> {
        let onion = self.lock_onions().find(&placeholder);
        let onion = onion.ok_or(TorFailure::Unknown)?;
        let (client, cut) = self.client().await?;
        let group = calls::group(&onion, throw_away);
        let opening = client.connect(onion.host(), onion.port(), &group);
        drop(client);
        let stream = unless_cut(&cut, opening).await?;
        let counted = Counted::outgoing(&self.counts);
        calls::join(stream, cut, counted)
    }

    /// Streams from now on share no circuit with those before; these go on.
    ///
    /// # Errors
    /// [`TorFailure`] where it does not run.
    pub(crate) fn take_new_identity(&self) -> Result<(), TorFailure> {
        let standing = self.standing();
        let client = standing.client.as_ref();
        let client = client.ok_or_else(|| not_there(&standing))?;
        client.take_new_identity();
        self.identities.fetch_add(1, Relaxed);
        tracing::info!("new Tor identity");
        Ok(())
    }

    /// The circuits that carry streams of this node.
    pub(crate) fn circuits(&self) -> Vec<Circuit> {
        let standing = self.standing();
        let client = standing.client.as_ref();
        client.map_or_else(Vec::new, |client| client.circuits())
    }

    /// Gives an onion service of this node a new address, and forgets the key of the one before. Done
    /// when it has it, which is before others find it there.
    ///
    /// # Errors
    /// [`TorFailure`] where Tor is not ready, or the address stays.
    pub(crate) async fn renew(&self, service: &str) -> Result<HostedState, TorFailure> {
        // Of how it stands no more is held meanwhile: with the client, its folder would be.
        let cut = {
            let standing = self.standing();
            match standing.phase {
                Phase::Ready => standing.cut,
                Phase::Disabled | Phase::Stopped | Phase::Starting | Phase::Failed => {
                    return Err(not_there(&standing));
                }
            }
        };
        self.services.renew(service, &cut).await
    }

    /// What a flow is told that waited for so long, where it is Tor that was not ready.
    pub(crate) fn lateness(&self, waited: Duration) -> Option<TorFailure> {
        let standing = self.standing();
        (standing.phase == Phase::Starting).then(|| TorFailure::NotReady {
            waited,
            percent: standing.progress.percent(),
            blocked: standing.progress.blocked.or(standing.error),
        })
    }

    /// The client, when it is ready, and what cuts its streams.
    async fn client(&self) -> Result<(Arc<Client>, CancellationToken), TorFailure> {
        let mut standing = self.standing.subscribe();
        let is_settled = |standing: &Standing| standing.phase != Phase::Starting;
        let settled = standing.wait_for(is_settled).await;
        // Its sender is this one's own.
        let settled = settled.map_err(|_| TorFailure::Stopped)?.clone();
        match (settled.phase, settled.client.clone()) {
            (Phase::Ready, Some(client)) => Ok((client, settled.cut)),
            (
                Phase::Ready | Phase::Disabled | Phase::Stopped | Phase::Starting | Phase::Failed,
                _,
            ) => Err(not_there(&settled)),
        }
    }

    fn lock_onions(&self) -> MutexGuard<'_, Onions> {
        self.onions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TorFailure {
    /// The one reason of the wire's list that stands for it.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Disabled
            | Self::Stopped
            | Self::NotStarted(_)
            | Self::NotRenewed(_)
            | Self::Unknown => Reason::Unreachable,
            Self::NotReady { .. } => Reason::TimedOut,
            Self::Tor(error) => match error {
                TorError::Refused => Reason::ConnectionRefused,
                TorError::NameNotFound => Reason::NameNotFound,
                TorError::TimedOut => Reason::TimedOut,
                TorError::PrivateAddress | TorError::BadTarget => Reason::ForbiddenAddress,
                TorError::Absent
                | TorError::Settings(_)
                | TorError::Folder(_)
                | TorError::NoExit
                | TorError::Unreachable
                | TorError::NoService
                | TorError::NoKey
                | TorError::WrongKey
                | TorError::InUse
                | TorError::Other(_) => Reason::Unreachable,
            },
        }
    }

    /// Whether it says something of the target, rather than of the way there.
    pub(crate) fn is_of_target(&self) -> bool {
        match self {
            Self::Disabled
            | Self::Stopped
            | Self::NotStarted(_)
            | Self::NotRenewed(_)
            | Self::NotReady { .. }
            | Self::Unknown => false,
            Self::Tor(error) => match error {
                TorError::Refused
                | TorError::NameNotFound
                | TorError::TimedOut
                | TorError::Unreachable
                | TorError::PrivateAddress
                | TorError::BadTarget
                | TorError::NoService
                | TorError::NoKey
                | TorError::WrongKey => true,
                TorError::Absent
                | TorError::Settings(_)
                | TorError::Folder(_)
                | TorError::NoExit
                | TorError::InUse
                | TorError::Other(_) => false,
            },
        }
    }
}

/// Where Tor is no way, why.
fn not_there(standing: &Standing) -> TorFailure {
    match standing.phase {
        Phase::Disabled => TorFailure::Disabled,
        Phase::Stopped | Phase::Ready => TorFailure::Stopped,
        Phase::Starting => TorFailure::NotReady {
            waited: Duration::ZERO,
            percent: standing.progress.percent(),
            blocked: standing.progress.blocked.clone(),
        },
        Phase::Failed => TorFailure::NotStarted(standing.error.clone().unwrap_or_default()),
    }
}

/// What comes of `work`, unless Tor is stopped meanwhile.
async fn unless_cut<T>(
    cut: &CancellationToken,
    work: impl Future<Output = Result<T, TorError>>,
) -> Result<T, TorFailure> {
    match cut.run_until_cancelled(work).await {
        Some(done) => Ok(done?),
        None => Err(TorFailure::Stopped),
    }
}

fn because(blocked: Option<&str>) -> String {
    blocked.map_or_else(String::new, |why| format!("; {why}"))
}

fn settings(config: &Config) -> Settings {
    let tor = &config.tor;
    let transports = tor.transports.iter();
    Settings {
        folder: state_folder(config),
        network: tor.network.clone(),
        bridges: tor.bridges.clone(),
        transports: transports
            .map(|(name, program)| (name.clone(), program.clone()))
            .collect(),
        authorizations: tor.authorizations.clone(),
    }
}

fn state_folder(config: &Config) -> PathBuf {
    let state_dir = config.tor.state_dir.clone();
    state_dir.unwrap_or_else(|| config.node.data_dir.join("tor"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tor(enabled: bool) -> Arc<Tor> {
        let mut config = Config::default();
        config.tor.enabled = enabled;
        Tor::new(&config)
    }

    #[tokio::test]
    async fn where_tor_is_off_nothing_waits_for_it() {
        let target: Target = "a.example:80".parse().unwrap();
        let refused = tor(false).open(&target, "").await.unwrap_err();
        assert_eq!(refused, TorFailure::Disabled);
        let stopped = tor(true);
        assert_eq!(
            stopped.open(&target, "").await.unwrap_err(),
            TorFailure::Stopped
        );
        assert_eq!(stopped.take_new_identity(), Err(TorFailure::Stopped));
        assert_eq!(stopped.identities(), 1);
        assert_eq!(stopped.lateness(Duration::ZERO), None);
    }

    #[tokio::test]
    async fn who_waited_in_vain_hears_how_far_tor_is() {
        let tor = tor(true);
        tor.standing.send_modify(|standing| {
            standing.phase = Phase::Starting;
            standing.progress.fraction = 0.15;
            standing.progress.blocked = Some("no consensus".to_owned());
        });
        let late = tor.lateness(Duration::from_secs(2)).unwrap();
        let expected = "not ready within 2000 ms: 15 % of its way into the network; no consensus";
        assert_eq!(late.to_string(), expected);
        assert_eq!(late.reason(), Reason::TimedOut);
    }

    #[tokio::test]
    async fn only_onion_addresses_of_peers_are_called() {
        let stranger = "[100::1:2:3:4]:4433".parse().unwrap();
        let refused = tor(true).call(stranger, None).await.unwrap_err();
        assert_eq!(refused, TorFailure::Unknown);
    }
}
