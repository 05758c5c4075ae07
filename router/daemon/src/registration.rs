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
    fn set(&self, state: Result<(), String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
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
                state.set(Ok(()));
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
                state.set(Err(lost.to_string()));
                let relay = network.named(relay);
                tracing::info!(%relay, reason = %lost, "relay lost");
            }
            Err(why) => {
                tracing::debug!(relay = %network.named(relay), why, "not registered");
                state.set(Err(why));
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
