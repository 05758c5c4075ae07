//! Services of this node, published as destinations: whoever learns of one may call.
//!
//! Callers are accepted one after the other (STREAM ACCEPT) rather than forwarded by the router: so
//! their number is bounded here, the router keeps those waiting for whom there is no place, and no
//! port of this machine takes their streams from whoever else connects to it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use wormholes_proto::{
    Reason, ServiceName,
    sam::{Destination, I2pName, SamError, SamRefusal, SamRequest, SamState},
};

use super::{I2p, I2pError, Owner, Stream, WantedTunnels, client::Talk, session::InUse};
use crate::{
    config::ServiceConfig, counters::RoleCounters, network::Network, pipe::Pipe,
    serve::hidden::Hidden,
};

/// A service that ended its side is done, as far as its caller is silent: most close both.
const SERVICE_SILENCE: Duration = Duration::from_millis(250);
/// The router takes an ACCEPT at once.
const ACCEPT_TIME: Duration = Duration::from_secs(10);
/// After a session that could not be made, or ended, and after an ACCEPT that failed; twice as long each
/// time, up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// What stood for so long did not end for a reason that holds on.
const STEADY: Duration = Duration::from_secs(60);
/// How long a router may take to make a destination known to others. i2pd (2.45) tries when the first
/// tunnels stand; where those that lead out are missing then, it tries again in ten minutes.
const KNOWN_WITHIN: Duration = Duration::from_secs(60);
/// It is asked this often whether it is.
const LOOK: Duration = Duration::from_secs(2);
/// Whoever called waits so long for a place, as in i2pd for being accepted.
const PLACE_TIME: Duration = Duration::from_secs(10);

/// What became of each service that is to be published.
#[derive(Debug, Default)]
pub(super) struct Published(Mutex<BTreeMap<ServiceName, State>>);

/// Where a service is published; an error until it is.
pub(super) type State = Result<Destination, String>;

impl Published {
    fn set(&self, name: &ServiceName, state: State) {
        self.lock().insert(name.clone(), state);
    }

    pub(super) fn get(&self, name: &ServiceName) -> Option<State> {
        self.lock().get(name).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceName, State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Places for streams of callers, of all services together. A service takes one for whoever called, and
/// none for the ACCEPT that waits: those that nobody calls would hold what others need. Where none gets
/// free in time, the caller is cut off.
#[derive(Debug)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    /// The last who called got none. Strangers call as often as they like: it is told once.
    are_taken: AtomicBool,
}

impl Places {
    pub(super) fn new(max_streams: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(max_streams)),
            are_taken: AtomicBool::new(false),
        }
    }

    /// One for whoever called a service; none, counted as a refusal, when none got free in time.
    async fn take(
        &self,
        service: &ServiceName,
        counters: &RoleCounters,
    ) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.free).acquire_owned();
        // Closed never: the places live as long as the node.
        let place = timeout(PLACE_TIME, place).await.ok().and_then(Result::ok);
        let were_taken = self.are_taken.swap(place.is_none(), Relaxed);
        if place.is_none() {
            if were_taken {
                tracing::debug!(%service, "no place for a caller by I2P");
            } else {
                tracing::warn!(
                    %service,
                    "no place for a caller by I2P; `max_streams` in [i2p] allows more"
                );
            }
            counters.refuse(Reason::Busy);
        }
        place
    }
}

/// The pauses between tries that fail one after the other.
#[derive(Debug)]
struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(PAUSE)
    }
}

impl Pauses {
    /// The next one, after a try that failed when it had stood for so long.
    fn after(&mut self, stood: Duration) -> Duration {
        let pause = if stood > STEADY { PAUSE } else { self.0 };
        self.0 = (pause * 2).min(LONGEST_PAUSE);
        pause
    }
}

/// Keeps a service published, for as long as the node takes requests.
pub(super) async fn publish(network: Arc<Network>, service: ServiceConfig) {
    let Some(i2p) = network.i2p() else { return };
    let service = Arc::new(Hidden::new(service.name, service.target));
    let name = service.name();
    let mut pauses = Pauses::default();
    let mut is_doubted = true;
    loop {
        let begun = Instant::now();
        let over = network
            .until_drain(published(&network, i2p, &service, is_doubted))
            .await;
        let Some(error) = over else { return };
        // A router that looks destinations up for sessions alone never finds it: it is asked once.
        is_doubted = !matches!(error, I2pError::NotKnown);
        let pause = pauses.after(begun.elapsed());
        if pause == PAUSE {
            tracing::warn!(service = %name, %error, "the service is not published over I2P");
        } else {
            tracing::debug!(service = %name, %error, "the service is not published over I2P");
        }
        i2p.published.set(name, Err(error.to_string()));
        sleep(pause).await;
    }
}

/// Publishes a service and serves who calls, until that fails; or, if that is doubted, until it turns
/// out that nobody can find it.
async fn published(
    network: &Arc<Network>,
    i2p: &I2p,
    service: &Arc<Hidden>,
    is_doubted: bool,
) -> I2pError {
    let owner = Owner::Kept(service.name().clone());
    let session = i2p.session(network, &owner, WantedTunnels::default()).await;
    let session = match session {
        Ok(session) => session,
        Err(error) => return error,
    };
    let was_called = CancellationToken::new();
    let known = async {
        if is_doubted && !is_known(i2p, &session, &was_called).await {
            return;
        }
        let destination = session.destination().clone();
        i2p.published.set(service.name(), Ok(destination));
        tracing::info!(service = %service.name(), "the service is published over I2P");
        std::future::pending().await
    };
    tokio::select! {
        error = serve_callers(network, i2p, service, (&session, &was_called)) => error,
        () = session.ended() => I2pError::HungUp,
        () = known => {
            session.end();
            I2pError::NotKnown
        }
    }
}

/// Whether others find a destination, as soon as they do, or call it. While somebody uses its session it is
/// looked for on: the keys would be free for a new one when the last stream has ended, and not before.
async fn is_known(i2p: &I2p, session: &InUse, was_called: &CancellationToken) -> bool {
    let looked = was_called.run_until_cancelled(async {
        while timeout(KNOWN_WITHIN, found(i2p, session)).await.is_err() {
            if !session.is_shared() {
                return false;
            }
        }
        true
    });
    looked.await.unwrap_or(true)
}

/// Waits until others find a destination.
async fn found(i2p: &I2p, session: &InUse) {
    loop {
        let name = I2pName::of_destination(session.destination());
        let request = SamRequest::Lookup { name };
        if let Ok(mut talk) = Talk::begin(i2p.router, request).await
            && let Ok(SamState::Found) = talk.answer().await
        {
            return;
        }
        sleep(LOOK).await;
    }
}

/// Serves who calls, until the router says that the session is gone. Nothing else that fails ends it: a
/// new one with its keys is refused as long as a stream goes on over this one.
async fn serve_callers(
    network: &Arc<Network>,
    i2p: &I2p,
    service: &Arc<Hidden>,
    (session, was_called): (&InUse, &CancellationToken),
) -> I2pError {
    let counters = &network.counters().service;
    let mut pauses = Pauses::default();
    loop {
        let begun = Instant::now();
        match next_call(i2p, session).await {
            Ok(stream) => {
                was_called.cancel();
                pauses = Pauses::default();
                let place = i2p.places.take(service.name(), counters).await;
                let Some(place) = place else { continue };
                let call = Call {
                    stream,
                    place,
                    session: session.clone(),
                };
                network.spawn(serve(Arc::clone(network), Arc::clone(service), call));
            }
            Err(error @ I2pError::Sam(SamError::Refused(SamRefusal::InvalidId))) => {
                session.end();
                return error;
            }
            Err(error) => {
                let pause = pauses.after(begun.elapsed());
                if pause == PAUSE {
                    tracing::warn!(service = %service.name(), %error, "no caller by I2P is taken");
                } else {
                    tracing::debug!(service = %service.name(), %error, "no caller by I2P is taken");
                }
                sleep(pause).await;
            }
        }
    }
}

/// Somebody who called.
struct Call {
    stream: Stream,
    place: OwnedSemaphorePermit,
    session: InUse,
}

/// Has the router wait for a caller.
async fn begin(i2p: &I2p, session: &InUse) -> Result<Talk, I2pError> {
    let request = || SamRequest::Accept {
        session: session.id().clone(),
    };
    let waiting = async {
        loop {
            let mut talk = Talk::begin(i2p.router, request()).await?;
            match talk.answer().await {
                Ok(SamState::Waiting) => return Ok(talk),
                // The one before is not quite gone.
                Err(I2pError::Sam(SamError::Refused(SamRefusal::AlreadyAccepting))) => {
                    sleep(SERVICE_SILENCE).await;
                }
                Ok(_) => return Err(SamError::Malformed("no word of callers").into()),
                Err(error) => return Err(error),
            }
        }
    };
    let waiting = timeout(ACCEPT_TIME, waiting).await;
    waiting.unwrap_or(Err(I2pError::Silent(ACCEPT_TIME)))
}

/// The next caller's stream.
async fn next_call(i2p: &I2p, session: &InUse) -> Result<Stream, I2pError> {
    let mut talk = begin(i2p, session).await?;
    match talk.later().await? {
        SamState::Called(_) => Ok(talk.into_stream()),
        SamState::NeedMore
        | SamState::Waiting
        | SamState::Greeted
        | SamState::Found
        | SamState::Session(_)
        | SamState::Connected
        | SamState::Failed(_) => Err(SamError::Malformed("no caller").into()),
    }
}

/// Joins a caller with the service.
async fn serve(network: Arc<Network>, service: Arc<Hidden>, call: Call) {
    let _serving = network.serving();
    let Call {
        stream,
        place,
        session,
    } = call;
    let Some(far) = service.reach(&network).await else {
        return;
    };
    let Stream { connection, ahead } = stream;
    let near = Pipe::tcp_held(connection, ahead, SERVICE_SILENCE, Box::new(session));
    service.join(&network, near, far).await;
    drop(place);
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        net::{Ipv4Addr, SocketAddr},
        path::Path,
    };

    use tempfile::TempDir;
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::{TcpListener, TcpStream},
    };
    use wormholes_proto::Transport;

    use super::*;
    use crate::{
        config::{Config, I2pConfig},
        gatekeeper::OpenGate,
        i2p::session::tests::session,
        log::kept::Kept,
        network::NetworkOptions,
    };

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn pauses_grow_until_something_stood_for_long() {
        let mut pauses = Pauses::default();
        let failed = [(); 7].map(|()| pauses.after(Duration::ZERO).as_secs());
        assert_eq!(failed, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(pauses.after(STEADY * 2), PAUSE);
        assert_eq!(pauses.after(STEADY), PAUSE * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_without_a_place_is_kept_waiting_for_a_while_and_counted() {
        let (log, _logging) = Kept::begin();
        let (places, counters) = (Places::new(1), RoleCounters::default());
        let blog = ServiceName::parse("blog").unwrap();
        for (outages, refusals) in [(1, 3), (2, 6)] {
            let first = places.take(&blog, &counters).await;
            assert!(first.is_some());
            for _ in 0..3 {
                let begun = Instant::now();
                assert!(places.take(&blog, &counters).await.is_none());
                assert!(begun.elapsed() >= PLACE_TIME);
            }
            assert_eq!(counters.refused(), [(Reason::Busy, refusals)]);
            assert_eq!(log.times("no place for a caller"), outages);
            // Whoever leaves makes room for the one who waits.
            let (second, ()) = tokio::join!(places.take(&blog, &counters), async { drop(first) });
            assert!(second.is_some());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_destination_that_nobody_finds_is_kept_while_somebody_uses_it() {
        let nobody = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let config = I2pConfig {
            sam: nobody.local_addr().ok(),
            ..I2pConfig::default()
        };
        drop(nobody);
        let i2p = I2p::new(&config, Path::new("unused")).unwrap();
        let session = InUse::new(session(config.tunnels));
        let was_called = CancellationToken::new();
        assert!(!is_known(&i2p, &session, &was_called).await);
        let _call = session.clone();
        let looked = timeout(KNOWN_WITHIN * 3, is_known(&i2p, &session, &was_called));
        assert!(looked.await.is_err(), "it is given up");
        was_called.cancel();
        assert!(is_known(&i2p, &session, &was_called).await);
    }

    /// A node that publishes services by the router at this address, with room for one caller.
    fn publisher(router: SocketAddr, services: &[&str]) -> (TempDir, Arc<Network>) {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.node.data_dir = dir.path().join("data");
        config.i2p = I2pConfig {
            sam: Some(router),
            spares: 0,
            max_streams: 1,
            ..I2pConfig::default()
        };
        let services = services.iter().map(|name| ServiceConfig {
            name: ServiceName::parse(name).unwrap(),
            target: router,
            transport: Transport::Tcp,
            min_trust: 0,
            onion: None,
            i2p: true,
        });
        config.services = services.collect();
        let (options, gate) = (NetworkOptions::default(), Arc::new(OpenGate));
        let network = Network::start(config, options, gate, Arc::default());
        (dir, network.unwrap())
    }

    /// The next request to a router, and its connection; none when it is gone before it asks.
    async fn next_request(router: &TcpListener) -> Option<(String, BufReader<TcpStream>)> {
        let mut stream = BufReader::new(router.accept().await.unwrap().0);
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let hello = b"HELLO REPLY RESULT=OK VERSION=3.1\n";
        stream.write_all(hello).await.ok()?;
        line.clear();
        stream.read_line(&mut line).await.ok()?;
        (!line.is_empty()).then_some((line, stream))
    }

    /// What a router is asked for by who publishes services, when it answers each ACCEPT like this, until
    /// it is asked for the second time what begins with `last`.
    async fn asked(services: &[&str], result: &str, last: &str) -> Vec<String> {
        let router = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (_dir, network) = publisher(router.local_addr().unwrap(), services);
        let (public, secret) = ("A".repeat(512), "A".repeat(384));
        let answers = [
            (
                "SESSION CREATE",
                format!("SESSION STATUS RESULT=OK DESTINATION={public}BQAEAAcAAA{secret}==\n"),
            ),
            ("NAMING LOOKUP", "NAMING REPLY RESULT=OK\n".to_owned()),
            ("STREAM ACCEPT", format!("STREAM STATUS RESULT={result}\n")),
        ];
        let (mut requests, mut streams): (Vec<String>, Vec<_>) = (Vec::new(), Vec::new());
        let all = async {
            while count(&requests, last) < 2 {
                let Some((request, mut stream)) = next_request(&router).await else {
                    continue;
                };
                let answer = answers.iter().find(|(begin, _)| request.starts_with(begin));
                let (_, answer) = answer.unwrap_or_else(|| panic!("{request}"));
                // Who has gone meanwhile has asked all the same.
                let _gone = stream.write_all(answer.as_bytes()).await;
                requests.push(request);
                // A session ends with its connection.
                streams.push(stream);
            }
        };
        timeout(PATIENCE, all).await.expect(last);
        network.shutdown().await;
        requests
    }

    fn count(requests: &[String], begin: &str) -> usize {
        let begin_so = requests.iter().filter(|request| request.starts_with(begin));
        begin_so.count()
    }

    #[tokio::test]
    async fn a_session_is_made_anew_when_it_is_gone_and_not_when_an_accept_fails() {
        let requests = asked(&["blog"], "I2P_ERROR", "STREAM ACCEPT").await;
        assert_eq!(count(&requests, "SESSION CREATE"), 1, "{requests:?}");
        let requests = asked(&["blog"], "INVALID_ID", "SESSION CREATE").await;
        assert_eq!(count(&requests, "STREAM ACCEPT"), 1, "{requests:?}");
    }

    #[tokio::test]
    async fn services_that_nobody_calls_leave_the_places_to_others() {
        let requests = asked(&["blog", "wiki"], "OK", "STREAM ACCEPT").await;
        let accepts = requests.iter().filter(|it| it.starts_with("STREAM ACCEPT"));
        let sessions: BTreeSet<_> = accepts.collect();
        assert_eq!(sessions.len(), 2, "{requests:?}");
    }
}
