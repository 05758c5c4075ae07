//! Services of this node, published as destinations: whoever learns of one may call.
//!
//! Callers are accepted one after the other (STREAM ACCEPT) rather than forwarded by the router: so
//! their number is bounded here, the router keeps those waiting for whom there is no place, and no
//! port of this machine takes their streams from whoever else connects to it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep, timeout},
};
use wormholes_proto::{
    ServiceName,
    sam::{Destination, I2pName, SamError, SamRefusal, SamRequest, SamState},
};

use super::{I2p, I2pError, Owner, Stream, WantedTunnels, client::Talk, session::InUse};
use crate::{config::ServiceConfig, network::Network, pipe::Pipe, serve::hidden::Hidden};

/// A service that ended its side is done, as far as its caller is silent: most close both.
const SERVICE_SILENCE: Duration = Duration::from_millis(250);
/// The router takes an ACCEPT at once.
const ACCEPT_TIME: Duration = Duration::from_secs(10);
/// After a session that could not be made, or ended; twice as long each time, up to
/// [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A session that stood for so long did not end for a reason that holds on.
const STEADY: Duration = Duration::from_secs(60);

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

/// How long a router may take to make a destination known to others. i2pd (2.45) tries when the first
/// tunnels stand; where those that lead out are missing then, it tries again in ten minutes.
const KNOWN_WITHIN: Duration = Duration::from_secs(60);
/// It is asked this often whether it is.
const LOOK: Duration = Duration::from_secs(2);

/// Keeps a service published, for as long as the node takes requests.
pub(super) async fn publish(network: Arc<Network>, service: ServiceConfig) {
    let Some(i2p) = network.i2p() else { return };
    let service = Arc::new(Hidden::new(service.name, service.target));
    let name = service.name();
    let mut pause = PAUSE;
    let mut is_doubted = true;
    loop {
        let begun = Instant::now();
        let over = network
            .until_drain(published(&network, i2p, &service, is_doubted))
            .await;
        let Some(error) = over else { return };
        // A router that looks destinations up for sessions alone never finds it: it is asked once.
        is_doubted = !matches!(error, I2pError::NotKnown);
        if begun.elapsed() > STEADY {
            pause = PAUSE;
        }
        if pause == PAUSE {
            tracing::warn!(service = %name, %error, "the service is not published over I2P");
        } else {
            tracing::debug!(service = %name, %error, "the service is not published over I2P");
        }
        i2p.published.set(name, Err(error.to_string()));
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
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
    let known = async {
        if is_doubted && !is_known(i2p, &session).await {
            return;
        }
        let destination = session.destination().clone();
        i2p.published.set(service.name(), Ok(destination));
        tracing::info!(service = %service.name(), "the service is published over I2P");
        std::future::pending().await
    };
    tokio::select! {
        error = serve_callers(network, i2p, service, &session) => error,
        () = known => {
            session.end();
            I2pError::NotKnown
        }
    }
}

/// Whether others find a destination, as soon as they do.
async fn is_known(i2p: &I2p, session: &InUse) -> bool {
    let found = async {
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
    };
    timeout(KNOWN_WITHIN, found).await.is_ok()
}

/// Serves who calls, until that fails.
async fn serve_callers(
    network: &Arc<Network>,
    i2p: &I2p,
    service: &Arc<Hidden>,
    session: &InUse,
) -> I2pError {
    loop {
        // Closed never: the room lives as long as the node.
        let place = Arc::clone(&i2p.places).acquire_owned().await;
        let Ok(place) = place else {
            return I2pError::Stopping;
        };
        let called = tokio::select! {
            called = next_call(i2p, session) => called,
            () = session.ended() => Err(I2pError::HungUp),
        };
        match called {
            Ok(stream) => {
                let call = Call {
                    stream,
                    place,
                    session: session.clone(),
                };
                network.spawn(serve(Arc::clone(network), Arc::clone(service), call));
            }
            Err(error) => {
                session.end();
                return error;
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
