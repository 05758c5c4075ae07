//! A session that stands at the router, and who uses it.

use std::{
    ops::Deref,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use wormholes_proto::sam::{Destination, SessionId, TunnelSettings};

use super::{Owner, client::Talk};
use crate::{network::Network, pipe::Held};

/// Who was asked and says nothing for so long behind what was said last, until the asker gave up, may
/// have gone and come back: routers keep the way to a destination for ten minutes, whether or not it
/// still leads there. A new session asks for it anew. SAM does not tell what the other end took, so that
/// who meant to be heard alone, and was silent for so long before the end, is taken for such an asker.
const UNHEARD: Duration = Duration::from_secs(20);
/// So many streams one after the other without an answer tell it of a session that others use too, who
/// may be heard. Never of a kept destination's: its keys are free for another session when the last of
/// them has left, and a service that is published under it would be gone until then.
const UNHEARD_AMONG_OTHERS: usize = 2;

/// A session. It ends when it is dropped, or when the router ends it.
#[derive(Debug)]
pub(super) struct Session {
    id: SessionId,
    destination: Destination,
    tunnels: TunnelSettings,
    users: AtomicUsize,
    /// Streams that nobody answered, since one was.
    unheard: AtomicUsize,
    /// When somebody last began or ceased to use it.
    used: Mutex<Instant>,
    ended: CancellationToken,
    /// Ends the task that holds its connection.
    _end: DropGuard,
}

/// A session that somebody uses.
#[derive(Debug)]
pub(super) struct InUse(Arc<Session>);

impl Session {
    /// Takes over a connection on which a session was made.
    pub(super) fn hold(
        network: &Arc<Network>,
        mut talk: Talk,
        id: SessionId,
        (destination, tunnels): (Destination, TunnelSettings),
    ) -> Arc<Self> {
        let (ended, end) = (CancellationToken::new(), CancellationToken::new());
        let (tell, asked) = (ended.clone().drop_guard(), end.clone());
        let counters = Arc::clone(network.counters());
        network.spawn(async move {
            if let Some(over) = asked.run_until_cancelled(talk.later()).await {
                counters.i2p.sessions_lost.fetch_add(1, Relaxed);
                let error = over.err();
                tracing::debug!(
                    error = error.map(tracing::field::display),
                    "an I2P session ended"
                );
            }
            drop(tell);
        });
        Self::new(id, (destination, tunnels), (ended, end))
    }

    /// One that ends when the first token is cancelled; the second is, when it is dropped.
    fn new(
        id: SessionId,
        (destination, tunnels): (Destination, TunnelSettings),
        (ended, end): (CancellationToken, CancellationToken),
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            destination,
            tunnels,
            users: AtomicUsize::new(0),
            unheard: AtomicUsize::new(0),
            used: Mutex::new(Instant::now()),
            ended,
            _end: end.drop_guard(),
        })
    }

    pub(super) fn id(&self) -> &SessionId {
        &self.id
    }

    pub(super) fn destination(&self) -> &Destination {
        &self.destination
    }

    pub(super) fn tunnels(&self) -> TunnelSettings {
        self.tunnels
    }

    /// Whether more than one use it.
    pub(super) fn is_shared(&self) -> bool {
        self.users() > 1
    }

    /// Whether the router ended it.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// It counts as ended from now on: nobody is given it any more.
    pub(super) fn end(&self) {
        self.ended.cancel();
    }

    /// Waits until it has ended. Cancel-safe.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    pub(super) fn users(&self) -> usize {
        self.users.load(Relaxed)
    }

    /// How long nobody has used it; nothing while somebody does.
    pub(super) fn idle(&self) -> Duration {
        match self.users() {
            0 => self.used().elapsed(),
            _ => Duration::ZERO,
        }
    }

    fn used(&self) -> Instant {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

/// A session that somebody uses for a stream of this side's.
#[derive(Debug)]
pub(super) struct AskedStream {
    session: InUse,
    is_kept: bool,
}

impl AskedStream {
    pub(super) fn new(session: InUse, owner: &Owner) -> Self {
        Self {
            session,
            is_kept: matches!(owner, Owner::Kept(_)),
        }
    }
}

impl Held for AskedStream {
    fn over(&self, unanswered: Option<Duration>) {
        let Some(silence) = unanswered else {
            self.session.unheard.store(0, Relaxed);
            return;
        };
        if silence < UNHEARD {
            return;
        }
        let unheard = self.session.unheard.fetch_add(1, Relaxed) + 1;
        let is_stale = !self.is_kept && unheard >= UNHEARD_AMONG_OTHERS;
        if !self.session.is_shared() || is_stale {
            tracing::debug!("a session over which nobody answers is given up");
            self.session.end();
        }
    }
}

impl Held for InUse {
    fn over(&self, _: Option<Duration>) {}
}

impl InUse {
    pub(super) fn new(session: Arc<Session>) -> Self {
        session.users.fetch_add(1, Relaxed);
        session.touch();
        Self(session)
    }
}

impl Clone for InUse {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.0))
    }
}

impl Deref for InUse {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.0
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.touch();
        self.0.users.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use wormholes_proto::ServiceName;

    use super::*;
    use crate::config::I2pConfig;

    /// A session with such tunnels, at no router.
    pub(in crate::i2p) fn session(tunnels: TunnelSettings) -> Arc<Session> {
        let text = format!("{}BQAEAAcAAA==", "A".repeat(512));
        let destination = Destination::parse(&text).unwrap();
        let (id, tokens) = (SessionId::from_random([0; 16]), Default::default());
        Session::new(id, (destination, tunnels), tokens)
    }

    fn over(session: &Arc<Session>, owner: &Owner, unanswered: Option<Duration>) {
        AskedStream::new(InUse::new(Arc::clone(session)), owner).over(unanswered);
    }

    #[test]
    fn a_session_of_several_ends_when_two_in_turn_hear_nothing() {
        let session = session(I2pConfig::default().tunnels);
        let _other = InUse::new(Arc::clone(&session));
        let ann = Owner::Flows("ann".to_owned());
        for unanswered in [Some(UNHEARD), None, Some(UNHEARD), Some(UNHEARD / 2)] {
            over(&session, &ann, unanswered);
        }
        assert!(!session.has_ended(), "one was answered between");
        let kept = Owner::Kept(ServiceName::parse("blog").unwrap());
        for _ in 0..UNHEARD_AMONG_OTHERS {
            over(&session, &kept, Some(UNHEARD));
        }
        assert!(!session.has_ended(), "a service may be published there");
        over(&session, &ann, Some(UNHEARD));
        assert!(session.has_ended());
    }

    #[test]
    fn a_session_ends_with_the_only_stream_if_that_waited_long_for_an_answer() {
        let ann = Owner::Flows("ann".to_owned());
        let has_ended = |unanswered, others| {
            let session = session(I2pConfig::default().tunnels);
            let _others = vec![InUse::new(Arc::clone(&session)); others];
            over(&session, &ann, unanswered);
            session.has_ended()
        };
        assert!(has_ended(Some(UNHEARD), 0));
        assert!(!has_ended(Some(UNHEARD), 1), "others hear something");
        assert!(
            !has_ended(Some(UNHEARD / 2), 0),
            "it has just said something"
        );
        assert!(!has_ended(None, 0), "it was answered");
    }
}
