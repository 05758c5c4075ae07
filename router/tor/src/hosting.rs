//! Onion services that are hosted here.

use std::{fmt, sync::Arc, time::Duration};

use arti_client::config::onion_service::OnionServiceConfigBuilder;
use futures_util::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{BoxStream, Stream as FuturesStream},
};
use safelog::DisplayRedacted;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tor_cell::relaycell::msg::{Connected, End, EndReason};
use tor_hsservice::{
    OnionServiceConfig, RendRequest, RunningOnionService, StreamRequest,
    status::{OnionServiceStatus, State},
};
use tor_proto::stream::IncomingStreamRequest;

use crate::{
    client::Arti,
    error::{TorError, whole},
    report::{HostState, HostStatus},
    settings::HostSettings,
    stream::Stream,
};

/// Callers of a service at once, each with a circuit. Overflow rule: the newcomer gets no answer.
const MAX_CALLERS: usize = 512;
/// Streams that callers asked for and nobody took yet. Overflow rule: those behind them wait at their
/// callers.
const MAX_WAITING: usize = 64;
/// A caller is met where he waits, three hops away, or not at all.
const MEET_WITHIN: Duration = Duration::from_secs(60);
/// A caller who has had no stream open for so long, from the beginning or since his last one, gives his
/// place back: else a few hundred who want nothing would keep all others out.
const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// An onion service that is hosted here, until this is dropped.
pub struct Hosted {
    service: Arc<RunningOnionService>,
    address: String,
    requests: mpsc::Receiver<Request>,
    _stop: DropGuard,
}

/// A stream that somebody wants.
pub struct Request {
    request: StreamRequest,
    port: u16,
    /// Its caller has a stream open as long as this is there.
    open: watch::Receiver<()>,
}

impl Hosted {
    /// Publishes a service.
    pub(crate) fn launch(arti: &Arti, settings: &HostSettings) -> Result<Self, TorError> {
        let launched = arti.launch_onion_service(config(settings)?);
        let launched = launched.map_err(|error| TorError::of(&error))?;
        let none = || TorError::Other("the onion service has no key".to_owned());
        let (service, callers) = launched.ok_or_else(none)?;
        let id = service.onion_address().ok_or_else(none)?;
        let (sender, requests) = mpsc::channel(MAX_WAITING);
        let stop = CancellationToken::new();
        let taking = take_callers(callers.boxed(), sender, stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(taking));
        Ok(Self {
            address: id.display_unredacted().to_string(),
            service,
            requests,
            _stop: stop.drop_guard(),
        })
    }

    /// What others call it by, with `.onion`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether others find it, now and whenever that may have changed.
    pub fn watch(&self) -> BoxStream<'static, HostStatus> {
        let events = self.service.status_events();
        let mut history = History::default();
        events.map(move |status| history.judge(&status)).boxed()
    }

    /// The next stream that somebody wants; none when the service is over. Cancel-safe.
    pub async fn next(&mut self) -> Option<Request> {
        self.requests.recv().await
    }
}

impl Request {
    /// At which of its ports the service is called.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Takes it.
    ///
    /// # Errors
    /// [`TorError`] when the caller is gone.
    pub fn accept(self) -> BoxFuture<'static, Result<Stream, TorError>> {
        let Self { request, open, .. } = self;
        let accepting = request.accept(Connected::new_empty());
        async move {
            let stream = accepting.await;
            stream
                .map(|stream| Stream::taken(stream, open))
                .map_err(|error| TorError::Other(whole(&error)))
        }
        .boxed()
    }

    /// Sends the caller away, as any onion service does that has nobody at a port.
    pub fn refuse(self) -> BoxFuture<'static, ()> {
        async move {
            // Who is gone needs no answer.
            let _ = self
                .request
                .reject(End::new_with_reason(EndReason::DONE))
                .await;
        }
        .boxed()
    }
}

/// What a service went through, without which its state says little.
#[derive(Debug, Default)]
struct History {
    has_begun: bool,
    was_up: bool,
}

impl History {
    fn judge(&mut self, status: &OnionServiceStatus) -> HostStatus {
        let problem = status.current_problem();
        HostStatus {
            state: self.state(status.state()),
            problem: problem.map(|problem| format!("{problem:?}")),
        }
    }

    /// Arti begins anew with each consensus, while what it published stays up; and where a consensus
    /// knows one time period alone, the upload for the other one fails for good, which nobody needs.
    fn state(&mut self, state: State) -> HostState {
        let is_up = [
            State::Running,
            State::DegradedReachable,
            State::DegradedUnreachable,
        ];
        if is_up.contains(&state) {
            self.was_up = true;
        }
        let is_over = state == State::Shutdown && self.has_begun;
        self.has_begun |= state != State::Shutdown;
        let is_lost = [State::Recovering, State::Broken].contains(&state);
        match (is_over, is_lost, self.was_up) {
            (true, _, _) => HostState::Stopped,
            (false, true, _) => HostState::Unreachable,
            (false, false, true) => HostState::Reachable,
            (false, false, false) => HostState::Publishing,
        }
    }
}

fn config(settings: &HostSettings) -> Result<OnionServiceConfig, TorError> {
    let odd = |error: &dyn std::error::Error| TorError::Settings(whole(error));
    let nickname = settings.nickname.parse();
    let mut builder = OnionServiceConfigBuilder::default();
    builder.nickname(nickname.map_err(|error: tor_hsservice::InvalidNickname| odd(&error))?);
    if !settings.clients.is_empty() {
        builder.restricted_discovery().enabled(true);
    }
    for (name, key) in &settings.clients {
        let name = name.parse().map_err(|_| {
            TorError::Settings(format!(
                "{name:?} is no name for a client of an onion service"
            ))
        })?;
        let key = key.parse();
        let key =
            key.map_err(|error: tor_hscrypto::pk::HsClientDescEncKeyParseError| odd(&error))?;
        let clients = builder.restricted_discovery().static_keys();
        clients.access().push((name, key));
    }
    builder.build().map_err(|error| odd(&error))
}

/// Meets those who call, until the service is over. Each one's streams wait for nobody else's.
async fn take_callers(
    mut callers: BoxStream<'static, RendRequest>,
    sender: mpsc::Sender<Request>,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(MAX_CALLERS));
    while let Some(caller) = callers.next().await {
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::debug!("an onion service has too many callers");
            continue;
        };
        let sender = sender.clone();
        let serving = async move {
            let _place = place;
            match timeout(MEET_WITHIN, caller.accept()).await {
                Ok(Ok(streams)) => pass_on(streams, sender).await,
                Ok(Err(error)) => {
                    tracing::debug!(error = %whole(&error), "a caller of an onion service was not met");
                }
                Err(_) => tracing::debug!("a caller of an onion service was not met in time"),
            }
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(serving.boxed()));
    }
}

/// Passes on what one caller asks for, until he leaves or has wanted nothing for too long.
async fn pass_on(
    mut streams: impl FuturesStream<Item = StreamRequest> + Unpin,
    sender: mpsc::Sender<Request>,
) {
    // Each stream that is open has a receiver.
    let open = watch::Sender::new(());
    loop {
        let request = tokio::select! {
            request = streams.next() => request,
            () = fell_idle(&open) => return,
        };
        let Some(request) = request else {
            return;
        };
        let IncomingStreamRequest::Begin(begin) = request.request() else {
            // Nothing else is for an onion service: whoever asks for it breaks the protocol.
            let _ = request.shutdown_circuit();
            return;
        };
        let port = begin.port();
        let open = open.subscribe();
        let request = Request {
            request,
            port,
            open,
        };
        if sender.send(request).await.is_err() {
            return;
        }
    }
}

/// Ends when no stream has been open for too long.
async fn fell_idle(open: &watch::Sender<()>) {
    open.closed().await;
    sleep(IDLE_LIMIT).await;
}

impl fmt::Debug for Hosted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hosted").finish_non_exhaustive()
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_caller_who_wants_nothing_gives_his_place_back() {
        let start = Instant::now();
        let (sender, _requests) = mpsc::channel(1);
        let nothing = futures_util::stream::pending::<StreamRequest>().boxed();
        pass_on(nothing, sender).await;
        assert!(start.elapsed() >= IDLE_LIMIT, "{:?}", start.elapsed());

        let open = watch::Sender::new(());
        let stream = open.subscribe();
        let busy = timeout(IDLE_LIMIT * 2, fell_idle(&open)).await;
        assert!(busy.is_err(), "he has a stream");
        drop(stream);
        let start = Instant::now();
        fell_idle(&open).await;
        assert!(start.elapsed() >= IDLE_LIMIT, "{:?}", start.elapsed());
    }

    #[test]
    fn a_service_that_was_up_is_taken_to_be_up_while_arti_begins_anew() {
        let mut history = History::default();
        let states = [
            (State::Shutdown, HostState::Publishing),
            (State::Bootstrapping, HostState::Publishing),
            (State::DegradedUnreachable, HostState::Reachable),
            (State::Bootstrapping, HostState::Reachable),
            (State::Recovering, HostState::Unreachable),
            (State::Running, HostState::Reachable),
            (State::Broken, HostState::Unreachable),
            (State::Shutdown, HostState::Stopped),
        ];
        for (state, expected) in states {
            assert_eq!(history.state(state), expected, "{state:?}");
        }
    }

    #[test]
    fn a_service_with_clients_is_found_by_them_alone() {
        let settings = |clients: &[(&str, &str)]| HostSettings {
            nickname: "service_web_1".to_owned(),
            clients: clients
                .iter()
                .map(|(name, key)| ((*name).to_owned(), (*key).to_owned()))
                .collect(),
        };
        let open = config(&settings(&[])).unwrap();
        let key = "descriptor:x25519:ZPRRMIV6DV6SJFL7SFBSVLJ5VUNPGCDFEVZ7M23LTLVTCCXJQBKA";
        let closed = config(&settings(&[("alice", key)])).unwrap();
        assert_ne!(
            open, closed,
            "arti takes no keys where it does not ask for them"
        );
        for bad in [("alice", "x"), ("Alice!", key)] {
            let refused = config(&settings(&[bad]));
            assert!(matches!(refused, Err(TorError::Settings(_))), "{bad:?}");
        }
    }
}
