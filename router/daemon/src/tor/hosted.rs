//! The onion services of this node: those of `[[service]]`, and the address at which its peers connect.

use std::{
    future::pending,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wormholes_tor::{Client, HostSettings, HostState, HostStatus, Hosted, Request, TorError};

use super::{Counted, Tor, TorFailure, calls, numbers, state_folder};
use crate::{
    carrier::descriptor_share,
    config::{Config, NODES_OWN, OnionServiceConfig, ServiceConfig},
    network::Network,
    pipe::Pipe,
    serve::hidden::Hidden,
};

/// Streams to one service at once. Overflow rule: the newcomer is sent away.
const MAX_STREAMS: usize = 1024;
/// What a connection at the node's own address takes: both ends of a pair of sockets.
const DESCRIPTORS: usize = 2;
/// A service that could not begin is tried again after this, and each time after twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest such pause; that after a service that ended by itself, too.
const RETRY: Duration = Duration::from_secs(30);
/// What was stopped lets go of a service's state when the last of its tasks has ended, which takes
/// milliseconds: where the pauses have come to this, some six seconds later, it is no longer that.
const STOPPED_LETS_GO: Duration = Duration::from_secs(5);
/// A service that nobody has found for so long begins anew: arti gives some descriptors up for good. Twice
/// as long each time until it is found, since one relay that does not answer keeps arti from saying that
/// others have the descriptor for five minutes, and whoever comes meanwhile is cut off by a new beginning.
const FOUND_WITHIN: Duration = Duration::from_secs(100);
/// The longest such wait.
const LONGEST_LOST: Duration = Duration::from_secs(1800);
/// Addresses that are wanted of one service at once. Overflow rule: the next one waits.
const MAX_RENEWALS: usize = 1;
/// Making a key and a name of it is quick.
const RENEW_WITHIN: Duration = Duration::from_secs(10);

/// An onion service of this node, as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostedState {
    /// Of the service, or [`NODES_OWN`].
    pub(crate) name: String,
    /// With `.onion`; none before it was ever up.
    pub(crate) address: Option<String>,
    pub(crate) port: u16,
    pub(crate) state: HostState,
    /// Who finds it; 0 is whoever knows its address.
    pub(crate) clients: usize,
    /// In the words of who has it.
    pub(crate) problem: Option<String>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Services {
    folder: PathBuf,
    all: Vec<Arc<Service>>,
}

#[derive(Debug)]
struct Service {
    /// What its keys go by, without the number of its address.
    keys: String,
    leads_to: LeadsTo,
    onion: OnionServiceConfig,
    /// Who wants another address for it; seen to by whoever keeps it up.
    renewals: (
        mpsc::Sender<Renewal>,
        tokio::sync::Mutex<mpsc::Receiver<Renewal>>,
    ),
    shown: Mutex<HostedState>,
    streams: Arc<Semaphore>,
}

/// Tells whoever wants another address what came of it.
type Renewal = oneshot::Sender<Result<(), String>>;

/// Who is at the other end.
#[derive(Debug)]
enum LeadsTo {
    /// A local port.
    Local(Hidden),
    /// The carrier of this node.
    Node,
}

impl LeadsTo {
    /// The node's own address has a share of the descriptors; strangers get half of that at most, as from
    /// any other source, so that there is room for peers.
    fn max_streams(&self) -> usize {
        match self {
            Self::Local(_) => MAX_STREAMS,
            Self::Node => (descriptor_share() / DESCRIPTORS).min(Semaphore::MAX_PERMITS),
        }
    }
}

impl Services {
    pub(super) fn of(config: &Config) -> Self {
        let named = config.services.iter().filter_map(|service| {
            let ServiceConfig { name, target, .. } = service;
            let onion = service.onion.clone()?;
            let leads_to = LeadsTo::Local(Hidden::new(name.clone(), *target));
            let keys = format!("service_{name}");
            Some(Service::new(name.as_str(), keys, leads_to, onion))
        });
        let own = config.tor.peers.then(|| {
            let onion = OnionServiceConfig {
                port: config.tor.peers_port,
                clients: Vec::new(),
            };
            Service::new(NODES_OWN, NODES_OWN.to_owned(), LeadsTo::Node, onion)
        });
        Self {
            folder: state_folder(config),
            all: named.chain(own).map(Arc::new).collect(),
        }
    }

    pub(super) fn states(&self) -> Vec<HostedState> {
        self.all.iter().map(|it| it.shown().clone()).collect()
    }

    /// Publishes all of them, in tasks of `hosting` that end with `stop`.
    pub(super) fn publish(
        &self,
        tor: &Arc<Tor>,
        network: &Arc<Network>,
        client: &Arc<Client>,
        (stop, hosting): (&CancellationToken, &TaskTracker),
    ) {
        for service in &self.all {
            let host = Host {
                folder: self.folder.clone(),
                service: Arc::clone(service),
                tor: Arc::clone(tor),
                network: Arc::clone(network),
                client: Arc::clone(client),
                stop: stop.clone(),
                tasks: hosting.clone(),
            };
            let stop = stop.clone();
            hosting.spawn(async move {
                stop.run_until_cancelled(Box::pin(host.run())).await;
            });
        }
    }

    /// None of them is up any more.
    pub(super) fn end(&self) {
        for service in &self.all {
            let mut shown = service.shown();
            shown.state = HostState::Stopped;
            shown.problem = None;
        }
    }

    pub(super) async fn renew(
        &self,
        name: &str,
        cut: &CancellationToken,
    ) -> Result<HostedState, TorFailure> {
        let mut named = self.all.iter();
        let service = named.find(|service| service.shown().name == name);
        let service = service.ok_or(TorFailure::Unknown)?;
        let (renewal, renewed) = oneshot::channel();
        let renewing = async {
            // Its receiver lives as long as the service.
            let _ = service.renewals.0.send(renewal).await;
            renewed.await
        };
        let renewing = cut.run_until_cancelled(timeout(RENEW_WITHIN, renewing));
        let late = |_| TorFailure::NotRenewed("it took too long".to_owned());
        let told = renewing.await.ok_or(TorFailure::Stopped)?.map_err(late)?;
        // Who would have told has ended with Tor.
        let told = told.map_err(|_| TorFailure::Stopped)?;
        told.map_err(TorFailure::NotRenewed)?;
        Ok(service.shown().clone())
    }
}

impl Service {
    fn new(name: &str, keys: String, leads_to: LeadsTo, onion: OnionServiceConfig) -> Self {
        let shown = HostedState {
            name: name.to_owned(),
            address: None,
            port: onion.port,
            state: HostState::Stopped,
            clients: onion.clients.len(),
            problem: None,
        };
        let (renewals, wanted) = mpsc::channel(MAX_RENEWALS);
        let streams = Arc::new(Semaphore::new(leads_to.max_streams()));
        Self {
            keys,
            leads_to,
            onion,
            renewals: (renewals, tokio::sync::Mutex::new(wanted)),
            shown: Mutex::new(shown),
            streams,
        }
    }

    fn shown(&self) -> MutexGuard<'_, HostedState> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows what became of it, and says it where that is new.
    fn judge(&self, status: HostStatus) {
        let mut shown = self.shown();
        let service = shown.name.as_str();
        match status.state {
            HostState::Reachable if shown.state != HostState::Reachable => {
                tracing::info!(service, "onion service published");
            }
            HostState::Unreachable if shown.state != HostState::Unreachable => {
                tracing::warn!(service, "onion service unreachable");
            }
            HostState::Reachable
            | HostState::Unreachable
            | HostState::Publishing
            | HostState::Stopped => {}
        }
        shown.state = status.state;
        shown.problem = status.problem;
    }
}

/// Keeps one service up.
struct Host {
    folder: PathBuf,
    service: Arc<Service>,
    tor: Arc<Tor>,
    network: Arc<Network>,
    client: Arc<Client>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Host {
    async fn run(self) {
        // The one before has ended by now.
        let mut renewals = self.service.renewals.1.lock().await;
        let mut pause = FIRST_RETRY;
        let mut patience = FOUND_WITHIN;
        let mut hosted = self.publish(pause);
        loop {
            if let Some(hosted) = hosted {
                pause = self.serve(hosted, &mut renewals, &mut patience).await;
            }
            // Whoever wants another address does not wait.
            hosted = match timeout(pause, renewals.recv()).await {
                Ok(Some(renewal)) => self.renew(renewal),
                Ok(None) | Err(_) => self.publish(pause),
            };
            pause = (pause * 2).min(RETRY);
        }
    }

    /// Publishes it at the address that it has. Where that fails, `pause` says how long it was tried.
    fn publish(&self, pause: Duration) -> Option<Hosted> {
        let service = &self.service;
        let error = match self.launch(numbers::current(&self.folder, &service.keys)) {
            Ok(hosted) => return Some(hosted),
            Err(error) => error,
        };
        let name = service.shown().name.clone();
        let state = match error == TorError::InUse && pause < STOPPED_LETS_GO {
            true => {
                tracing::debug!(
                    service = name,
                    "an onion service waits for the one before to end"
                );
                HostState::Publishing
            }
            false => {
                tracing::warn!(service = name, %error, "onion service not published");
                HostState::Unreachable
            }
        };
        service.judge(HostStatus {
            state,
            problem: Some(error.to_string()),
        });
        None
    }

    /// Publishes it at another address, in whose place the one that it has goes; where that fails,
    /// everything stays.
    fn renew(&self, renewal: Renewal) -> Option<Hosted> {
        // Who was told that it took too long shall not find it done.
        if renewal.is_closed() {
            return None;
        }
        let keys = &self.service.keys;
        let number = numbers::current(&self.folder, keys) + 1;
        let (told, hosted) = match self.launch(number) {
            Ok(hosted) => (Ok(()), Some(hosted)),
            Err(problem) => {
                // The highest number would count from the next start on.
                if let Err(error) = numbers::forget(&self.folder, keys, number) {
                    tracing::warn!(%error, "keys of an onion address that failed are still there");
                }
                (Err(problem.to_string()), None)
            }
        };
        // He may have gone just now.
        let _ = renewal.send(told);
        hosted
    }

    /// Publishes it at the address that has this number, and forgets the keys of all before.
    fn launch(&self, number: u32) -> Result<Hosted, TorError> {
        let service = &self.service;
        let settings = HostSettings {
            nickname: numbers::nickname(&service.keys, number),
            clients: service.onion.clients.clone(),
        };
        let hosted = self.client.host(&settings)?;
        let mut shown = service.shown();
        shown.address = Some(hosted.address().to_owned());
        shown.state = HostState::Publishing;
        shown.problem = None;
        drop(shown);
        if let Err(error) = numbers::forget_before(&self.folder, &service.keys, number) {
            tracing::warn!(%error, "keys of a former onion address are still there");
        }
        Ok(hosted)
    }

    /// Takes who comes, until the service is over, or nobody has found it for longer than `patience`; gives
    /// the pause until it begins anew.
    async fn serve(
        &self,
        mut hosted: Hosted,
        renewals: &mut mpsc::Receiver<Renewal>,
        patience: &mut Duration,
    ) -> Duration {
        let mut changes = hosted.watch();
        let mut lost_since = Some(Instant::now());
        loop {
            let is_found = self.service.shown().state == HostState::Reachable;
            lost_since = match is_found {
                true => None,
                false => lost_since.or_else(|| Some(Instant::now())),
            };
            if is_found {
                *patience = FOUND_WITHIN;
            }
            let give_up = lost_since.map(|since| since + *patience);
            let is_lost = async {
                match give_up {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            let request = tokio::select! {
                () = is_lost => {
                    let name = self.service.shown().name.clone();
                    tracing::warn!(service = name, "onion service not found: it begins anew");
                    *patience = LONGEST_LOST.min(*patience * 2);
                    return FIRST_RETRY;
                }
                Some(renewal) = renewals.recv() => {
                    if let Some(renewed) = self.renew(renewal) {
                        hosted = renewed;
                        changes = hosted.watch();
                        lost_since = Some(Instant::now());
                        *patience = FOUND_WITHIN;
                    }
                    continue;
                }
                Some(status) = changes.next() => {
                    self.service.judge(status);
                    continue;
                }
                request = hosted.next() => request,
            };
            match request {
                Some(request) => self.take(request),
                None => return RETRY,
            }
        }
    }

    fn take(&self, request: Request) {
        let place = Arc::clone(&self.service.streams).try_acquire_owned().ok();
        let is_there = request.port() == self.service.onion.port;
        let (Some(place), false, true) = (place, self.network.is_draining(), is_there) else {
            let refusing = self.stop.clone();
            let refusing = refusing.run_until_cancelled_owned(request.refuse());
            self.tasks.spawn(refusing);
            return;
        };
        let visit = Visit {
            request,
            cut: self.stop.clone(),
            counted: Counted::incoming(&self.tor.counts),
            place,
        };
        let (network, tor) = (Arc::clone(&self.network), Arc::clone(&self.tor));
        let service = Arc::clone(&self.service);
        let serving = async move {
            match &service.leads_to {
                LeadsTo::Local(hidden) => receive(&network, hidden, visit).await,
                LeadsTo::Node => tor.let_in(visit).await,
            }
        };
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(Box::pin(serving)).await;
        });
    }
}

/// Somebody who comes to a service.
struct Visit {
    /// What he wants.
    request: Request,
    /// When Tor stops.
    cut: CancellationToken,
    /// Counts him.
    counted: Counted,
    /// His, as long as he is there.
    place: OwnedSemaphorePermit,
}

/// Joins whoever comes with a service. Where nobody answers there he is sent away as from a port that
/// the onion service does not have.
async fn receive(network: &Network, service: &Hidden, visit: Visit) {
    let _serving = network.serving();
    let Some(far) = service.reach(network).await else {
        return visit.request.refuse().await;
    };
    let stream = match visit.request.accept().await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(service = %service.name(), %error, "whoever came through Tor has left");
            return;
        }
    };
    let near = Pipe::tor_hosted(stream, visit.cut, visit.counted);
    service.join(network, near, far).await;
    drop(visit.place);
}

impl Tor {
    /// Hands a connection of another node to the carrier.
    async fn let_in(&self, visit: Visit) {
        let Ok(stream) = visit.request.accept().await else {
            return;
        };
        let held = (visit.counted, visit.place);
        if let (Ok(call), Some(calls)) = (calls::join(stream, visit.cut, held), self.calls.get()) {
            // The carrier goes with the node.
            let _ = calls.send(call).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services() -> Services {
        let mut config = Config::default();
        config.tor.peers = true;
        let name = |name: &str| wormholes_proto::ServiceName::parse(name).unwrap();
        let service = |text: &str, onion| ServiceConfig {
            name: name(text),
            target: "127.0.0.1:8080".parse().unwrap(),
            transport: wormholes_proto::Transport::Tcp,
            min_trust: 0,
            onion,
            i2p: false,
        };
        let onion = OnionServiceConfig {
            port: 80,
            clients: Vec::new(),
        };
        config.services = vec![service("web", Some(onion)), service("ssh", None)];
        Services::of(&config)
    }

    #[test]
    fn what_config_names_is_shown_before_it_is_up() {
        let states = services().states();
        let names: Vec<_> = states
            .iter()
            .map(|state| (state.name.as_str(), state.port, state.state))
            .collect();
        let expected = [
            ("web", 80, HostState::Stopped),
            ("peers", 4433, HostState::Stopped),
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn connections_at_the_nodes_own_address_take_a_share_of_the_descriptors() {
        let most = LeadsTo::Node.max_streams();
        assert!(most > 0 && most * DESCRIPTORS <= descriptor_share());
    }

    #[tokio::test]
    async fn nobody_waits_for_a_new_address_when_tor_is_stopped() {
        let (services, cut) = (services(), CancellationToken::new());
        let unknown = services.renew("mail", &cut).await.unwrap_err();
        assert_eq!(unknown, TorFailure::Unknown);
        cut.cancel();
        let stopped = services.renew("web", &cut).await.unwrap_err();
        assert_eq!(stopped, TorFailure::Stopped);
    }

    #[tokio::test]
    async fn who_wants_a_new_address_is_told_what_came_of_it() {
        let (services, cut) = (services(), CancellationToken::new());
        let mut wanted = services.all[0].renewals.1.lock().await;
        for (told, expected) in [
            (Ok(()), None),
            (
                Err("no room".to_owned()),
                Some(TorFailure::NotRenewed("no room".to_owned())),
            ),
        ] {
            let (renewed, ()) = tokio::join!(services.renew("web", &cut), async {
                let renewal = wanted.recv().await.unwrap();
                renewal.send(told).unwrap();
            });
            assert_eq!(renewed.err(), expected);
        }
        let (stopped, ()) = tokio::join!(services.renew("web", &cut), async {
            drop(wanted.recv().await);
        });
        assert_eq!(stopped.unwrap_err(), TorFailure::Stopped);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_done_any_more_for_whoever_was_told_that_it_took_too_long() {
        let services = services();
        let late = services.renew("web", &CancellationToken::new()).await;
        assert!(matches!(late, Err(TorFailure::NotRenewed(_))), "{late:?}");
        let mut wanted = services.all[0].renewals.1.lock().await;
        assert!(wanted.recv().await.unwrap().is_closed());
    }
}
