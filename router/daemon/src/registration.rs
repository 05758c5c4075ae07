//! Keeps this node registered with its relays: one task for each, as long as config.toml wants it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio_util::sync::{CancellationToken, DropGuard};
use wormholes_proto::{Answer, NodeId, Open};

use crate::{
    carrier::{Link, LinkError},
    network::Network,
};

/// Well within the half hour after which a relay forgets.
const RENEWAL: Duration = Duration::from_secs(600);
/// The pause after a failure doubles between these.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A relay answers within this.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The tasks, by relay.
#[derive(Debug, Default)]
pub(crate) struct Registrations(Mutex<HashMap<NodeId, Registration>>);

/// One relay's task; dropping the guard ends it.
#[derive(Debug)]
struct Registration {
    state: Arc<State>,
    _task: DropGuard,
}

/// Whether the relay serves this node's record, or why not.
#[derive(Debug)]
struct State(Mutex<Result<(), String>>);

impl State {
    /// Returns how it was before.
    fn set(&self, state: Result<(), String>) -> Result<(), String> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut held, state)
    }

    /// The relay serves it no more, or not yet; the log tells the former, once.
    fn fail(&self, network: &Network, relay: NodeId, why: String) {
        let relay = network.named(relay);
        if self.set(Err(why.clone())).is_ok() {
            tracing::info!(%relay, reason = %why, "relay lost");
        }
    }

    fn get(&self) -> Result<(), String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Registrations {
    /// Starts and ends tasks until there is one for each of `relays`.
    pub(crate) fn set(&self, network: &Arc<Network>, relays: &[NodeId]) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|relay, _| relays.contains(relay));
        for relay in relays {
            tasks.entry(*relay).or_insert_with(|| {
                let stop = CancellationToken::new();
                let state = Arc::new(State(Mutex::new(Err("not asked yet".to_owned()))));
                let task = keep_registered(Arc::clone(network), *relay, Arc::clone(&state));
                let stopped = stop.clone();
                network.spawn(async move {
                    stopped.run_until_cancelled(task).await;
                });
                Registration {
                    state,
                    _task: stop.drop_guard(),
                }
            });
        }
    }

    /// Each relay, and whether this node is registered with it or why not.
    pub(crate) fn states(&self) -> Vec<(NodeId, Result<(), String>)> {
        let tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let states = tasks.iter();
        states
            .map(|(relay, registration)| (*relay, registration.state.get()))
            .collect()
    }
}

async fn keep_registered(network: Arc<Network>, relay: NodeId, state: Arc<State>) {
    let mut pause = FIRST_PAUSE;
    let mut own_record = network.records().follow_own();
    let mut moves = network.moves();
    loop {
        own_record.mark_unchanged();
        moves.mark_unchanged();
        // Goes on through moves, which may come faster than the relay can answer.
        match register(&network, relay).await {
            Ok(link) => {
                pause = FIRST_PAUSE;
                let _ = state.set(Ok(()));
                let lost = tokio::select! {
                    lost = link.closed() => lost,
                    () = link.silenced() => LinkError::Silent,
                    _ = own_record.changed() => continue,
                    () = tokio::time::sleep(RENEWAL) => continue,
                };
                // Two may have stood, of which one was needed no more.
                if network.peers().link(&relay).is_some() {
                    continue;
                }
                state.fail(&network, relay, lost.to_string());
            }
            Err(why) => {
                tracing::debug!(relay = %network.named(relay), why, "not registered");
                state.fail(&network, relay, why);
                tokio::select! {
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                    // At once, too, when it came meanwhile.
                    _ = moves.changed() => pause = FIRST_PAUSE,
                }
            }
        }
    }
}

async fn register(network: &Arc<Network>, relay: NodeId) -> Result<Link, String> {
    let link = network
        .connect(relay, None)
        .await
        .map_err(|error| error.to_string())?;
    let ask = async {
        let mut pipe = link.open().await.map_err(|error| error.to_string())?;
        let record = network.own_record().bytes().to_vec();
        let sent = pipe.writer.send_open(&Open::Register(record)).await;
        sent.map_err(|error| error.to_string())?;
        match network.counters().answered(pipe.reader.read_grant().await) {
            Ok(Answer::Accepted(_)) => Ok(()),
            Ok(Answer::Refused(reason)) => Err(reason.to_string()),
            Err(error) => Err(error.to_string()),
        }
    };
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, link.while_alive(ask)).await;
    let answered = answered.map_err(|_| "no answer".to_owned())?;
    answered.map_err(|silent| silent.to_string())??;
    tracing::debug!(relay = %network.named(relay), "registered with the relay");
    Ok(link)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use tokio::time::{Instant, timeout};
    use wormholes_proto::{CarrierKind, Reason};

    use super::*;
    use crate::{
        carrier::{Carrier, CloseCode},
        config::{Config, PeerConfig},
        gatekeeper::OpenGate,
        identity::Identity,
        log::kept::Kept,
        network::{NetworkOptions, Wanted},
    };

    const LIMIT: Duration = Duration::from_secs(60);

    fn network() -> (TempDir, Arc<Network>) {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.node.data_dir = dir.path().join("data");
        config.node.carriers = vec![CarrierKind::Quic];
        let (options, gate) = (NetworkOptions::default(), Arc::new(OpenGate));
        let network = Network::start(config, options, gate, Arc::default());
        (dir, network.unwrap())
    }

    /// Answers the registration that comes over `link`.
    async fn registers(link: &Link, answer: Answer) {
        let registered = async {
            loop {
                let mut pipe = link.accept().await.unwrap();
                if let Ok(Open::Register(_)) = pipe.reader.read_open().await {
                    pipe.writer.send_answer(&answer).await.unwrap();
                    return pipe.writer.finish().await.unwrap();
                }
            }
        };
        timeout(LIMIT, registered).await.expect("a registration");
    }

    async fn until(what: &str, condition: impl Fn() -> bool) {
        let mut looks = tokio::time::interval(Duration::from_millis(5));
        let holds = async {
            while !condition() {
                looks.tick().await;
            }
        };
        timeout(LIMIT, holds).await.expect(what);
    }

    #[tokio::test]
    async fn a_relay_that_serves_no_more_is_told_once_and_a_needless_connection_not() {
        let (log, _logging) = Kept::begin();
        let ((_dir, network), identity) = (network(), Identity::throw_away().unwrap());
        let listen = [([127, 0, 0, 1], 0).into()];
        let relay = Carrier::bind(&listen, &[CarrierKind::Quic], &identity, Arc::default());
        let relay = relay.unwrap();
        let address = relay.listen_addresses()[0];
        let peers = [PeerConfig {
            name: "relay".to_owned(),
            id: identity.id(),
            addresses: vec![address],
            onions: Vec::new(),
            trust: 2,
            via: Vec::new(),
            register: true,
        }];
        network.set_peers(&peers);
        let take = async || {
            let call = relay.accept().await.unwrap();
            relay.handshake(call, |_| true).await.unwrap().unwrap()
        };
        let accepted = || Answer::Accepted(Vec::new());
        let is_registered = || {
            network
                .registrations()
                .iter()
                .all(|(_, state)| state.is_ok())
        };

        let first = take().await;
        registers(&first, accepted()).await;
        until("it is registered", is_registered).await;
        let wanted = Wanted {
            made_after: Some(Instant::now()),
            ..Wanted::default()
        };
        let again = network.connect_over(identity.id(), Some(address), wanted);
        let (again, second) = tokio::join!(again, take());
        again.unwrap();
        first.close(CloseCode::Done);
        registers(&second, accepted()).await;
        assert_eq!(log.times("relay lost"), 0, "another connection stands");

        // Its record is new.
        network.set_peers(&peers);
        registers(&second, Answer::Refused(Reason::Busy)).await;
        until("that is told", || log.times("relay lost") == 1).await;
        registers(&second, accepted()).await;
        until("it is registered again", is_registered).await;
        relay.close().await;
        until("that is told too", || log.times("relay lost") == 2).await;
        network.shutdown().await;
        assert_eq!(log.times("relay lost"), 2, "each once");
    }
}
