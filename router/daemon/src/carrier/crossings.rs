//! Places for the relayed flows that go over to one connection at once, whichever end has them do so.
//! Until the relay has brought what belongs before it, what comes on the connection fills the window of
//! all its streams, with as much as a stream's own window holds.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::quic::{KNOWN_WINDOW_BYTES, STREAM_WINDOW_BYTES};

/// Three take three quarters of the window. Overflow rule: the other end's are refused as busy; own ones
/// wait, and stay with their relay meanwhile.
const MAX_CROSSINGS: usize = 3;
/// This node's own of them: the other end always finds a place. Overflow rule: they wait.
const MAX_OWN_CROSSINGS: usize = 2;

const _: () = assert!(MAX_OWN_CROSSINGS < MAX_CROSSINGS);
const _: () = assert!(MAX_CROSSINGS * (STREAM_WINDOW_BYTES as usize) < KNOWN_WINDOW_BYTES as usize);

/// The places of one connection.
#[derive(Debug)]
pub(super) struct Crossings {
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
}

/// A place; dropped, it is free again.
#[derive(Debug)]
pub(crate) struct CrossingPlace {
    _of_all: OwnedSemaphorePermit,
    _own: Option<OwnedSemaphorePermit>,
}

impl Crossings {
    pub(super) fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(MAX_CROSSINGS)),
            own: Arc::new(Semaphore::new(MAX_OWN_CROSSINGS)),
        }
    }

    /// One for a flow of this node, when it is free. Cancel-safe.
    pub(super) async fn own(&self) -> Option<CrossingPlace> {
        // Closed never. First its own: it shall not wait in the other end's way.
        let own = Arc::clone(&self.own).acquire_owned().await.ok()?;
        let of_all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(CrossingPlace {
            _of_all: of_all,
            _own: Some(own),
        })
    }

    /// One for a flow of the other end's; `None`: all are taken.
    pub(super) fn other(&self) -> Option<CrossingPlace> {
        CrossingPlace::one_of(&self.all)
    }
}

impl CrossingPlace {
    /// One of `places`; `None`: all are taken.
    pub(crate) fn one_of(places: &Arc<Semaphore>) -> Option<Self> {
        let of_all = Arc::clone(places).try_acquire_owned().ok()?;
        Some(Self {
            _of_all: of_all,
            _own: None,
        })
    }
}
