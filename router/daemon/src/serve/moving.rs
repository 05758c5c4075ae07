//! Sessions that came through a relay and may go on by a direct connection: the caller opens a stream
//! on one and names the session, and both ends go over to it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use wormholes_proto::{
    NodeId, Reason,
    sealed::{GO, SessionId},
};

use super::{Asker, accept, refuse};
use crate::{
    carrier::Link,
    network::Network,
    pipe::{Handover, Pipe},
};

/// Sessions that may move at once: more than relays carry for one node by far. Overflow rule: who
/// finds no place stays with its relay.
const MAX_SESSIONS: usize = 16 << 10;
/// The caller says so within this, when both ends shall go over; else nothing has changed. Longer
/// than the caller waits for all of it: what it says at the last moment is heard.
const GO_TIMEOUT: Duration = Duration::from_secs(20);

/// Where sessions are found that may move, and where flows hear of a connection to move to.
#[derive(Debug)]
pub(crate) struct MovingDesk {
    sessions: Mutex<HashMap<SessionId, Movable>>,
    links: watch::Sender<()>,
}

/// A session that may move, and whose it is.
#[derive(Debug)]
struct Movable {
    caller: NodeId,
    handover: Handover,
}

/// A session's place at the desk; dropping it says that the session is over.
pub(super) struct Place<'a> {
    desk: &'a MovingDesk,
    session: SessionId,
}

impl MovingDesk {
    pub(crate) fn new() -> Self {
        Self {
            sessions: Mutex::default(),
            links: watch::Sender::default(),
        }
    }

    /// Told whenever a peer can be reached by one more connection.
    pub(crate) fn links(&self) -> watch::Receiver<()> {
        self.links.subscribe()
    }

    /// A peer can be reached by one more connection.
    pub(super) fn link_is_up(&self) {
        self.links.send_replace(());
    }

    /// Lets the session of `caller` move, as long as the place is held; `None`: it cannot.
    pub(super) fn enter(&self, caller: NodeId, handover: Handover) -> Option<Place<'_>> {
        let session = handover.session();
        let mut sessions = self.sessions();
        if sessions.len() >= MAX_SESSIONS {
            return None;
        }
        sessions.insert(session, Movable { caller, handover });
        drop(sessions);
        Some(Place {
            desk: self,
            session,
        })
    }

    /// Whether `caller` has such a session here, which may move then.
    fn expect(&self, session: &SessionId, caller: NodeId) -> bool {
        let sessions = self.sessions();
        let found = sessions.get(session);
        let own = found.filter(|movable| movable.caller == caller);
        if let Some(movable) = own {
            movable.handover.expect_stream();
        }
        own.is_some()
    }

    fn take(&self, session: &SessionId) -> Option<Handover> {
        let movable = self.sessions().remove(session);
        movable.map(|movable| movable.handover)
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<SessionId, Movable>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // It may have moved.
        drop(self.desk.take(&self.session));
    }
}

/// Has a session of `asker` go on by `pipe`, a stream of `link`, when the asker says that it does so
/// too.
pub(super) async fn serve(
    network: &Network,
    asker: &Asker,
    link: &Link,
    session: &SessionId,
    mut pipe: Pipe,
) {
    let desk = network.moving_desk();
    let Some(place) = link.other_crossing() else {
        network.counters().streams_refused.fetch_add(1, Relaxed);
        return refuse(pipe, Reason::Busy).await;
    };
    // Nobody but its caller learns whether there is such a session.
    if !desk.expect(session, asker.id) {
        network.counters().streams_refused.fetch_add(1, Relaxed);
        return refuse(pipe, Reason::Denied).await;
    }
    if !accept(&mut pipe, Vec::new()).await {
        return;
    }
    match timeout(GO_TIMEOUT, pipe.reader.read_exact(1)).await {
        Ok(Ok(word)) if word.first() == Some(&GO) => {}
        Ok(Ok(_)) => {
            network.counters().streams_refused.fetch_add(1, Relaxed);
            return;
        }
        // It thought better of it, or cannot be heard here.
        Ok(Err(_)) | Err(_) => return,
    }
    // None: it has ended, or moved on another stream.
    if let Some(handover) = desk.take(session) {
        handover.give(pipe, place).await;
        let from = network.named(asker.id);
        tracing::debug!(%from, "a relayed session goes on by a direct connection");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;
    use crate::carrier::CrossingPlace;

    /// A session of which there is nothing but its end that moves it.
    fn handover(number: usize) -> Handover {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_be_bytes());
        Handover::of_nothing(SessionId::from_bytes(id))
    }

    #[tokio::test]
    async fn a_session_moves_once_for_its_own_caller_and_while_it_lasts() {
        let desk = MovingDesk::new();
        let [caller, other] = [1, 2].map(|byte| NodeId::from_bytes([byte; 32]));
        let session = handover(7).session();
        let place = desk.enter(caller, handover(7)).unwrap();
        assert!(desk.expect(&session, caller));
        assert!(!desk.expect(&session, other), "it is another's");
        let taken = desk.take(&session).unwrap();
        assert!(!desk.expect(&session, caller), "it has moved");
        let (pipe, _end) = Pipe::memory();
        let places = Arc::new(Semaphore::new(1));
        let crossing_place = CrossingPlace::one_of(&places).unwrap();
        let crossing = taken.give(pipe, crossing_place).await;
        assert!(!crossing.done().await, "there was nothing");
        assert_eq!(places.available_permits(), 1);
        drop(place);
        drop(desk.enter(caller, handover(7)));
        assert!(!desk.expect(&session, caller), "it is over");
    }

    #[test]
    fn who_finds_no_place_stays() {
        let desk = MovingDesk::new();
        let caller = NodeId::from_bytes([1; 32]);
        let enter = |number| desk.enter(caller, handover(number));
        let mut places: Vec<_> = (0..MAX_SESSIONS).map(enter).collect();
        assert!(places.iter().all(Option::is_some));
        assert!(enter(MAX_SESSIONS).is_none());
        places.pop();
        assert!(enter(MAX_SESSIONS).is_some());
    }
}
