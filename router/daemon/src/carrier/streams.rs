//! The streams that are open on a link, whoever opened them: a link that nobody uses can be told
//! from one that is only quiet. A stream knows the way to the datagrams beside it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    datagrams::{Lane, Lanes},
    grant::Grant,
};

/// Counts the streams of one link.
#[derive(Debug)]
pub(super) struct Streams {
    used: Mutex<Use>,
    lanes: Option<Arc<Lanes>>,
}

#[derive(Debug)]
struct Use {
    open: usize,
    /// Those of them that the other end opened.
    taken: usize,
    grant: Grant,
    /// When the last stream ended; at first, when the link was made.
    ended: Instant,
}

/// A stream while it is open; dropping it says that it ended.
#[derive(Debug)]
pub(crate) struct OpenStream {
    streams: Arc<Streams>,
    is_taken: bool,
}

impl Streams {
    /// The other end may have `most` open at once.
    pub(super) fn new(most: u32, lanes: Option<Arc<Lanes>>) -> Arc<Self> {
        let now = Instant::now();
        let used = Mutex::new(Use {
            open: 0,
            taken: 0,
            grant: Grant::new(most, now),
            ended: now,
        });
        Arc::new(Self { used, lanes })
    }

    /// Sets how many the other end may have open at once.
    pub(super) fn set_most(&self, most: u32) {
        self.lock().grant.set_most(most);
    }

    /// Counts one that this end opened.
    pub(super) fn open(self: &Arc<Self>) -> OpenStream {
        self.lock().open += 1;
        OpenStream {
            streams: Arc::clone(self),
            is_taken: false,
        }
    }

    /// Counts one that the other end, `rtt` away, opened, and says how many it is granted from here
    /// on, if that is more than before.
    pub(super) fn take(self: &Arc<Self>, rtt: Duration) -> (OpenStream, Option<u32>) {
        let mut used = self.lock();
        used.open += 1;
        used.taken += 1;
        let taken = used.taken;
        let more = used.grant.handle_opened(Instant::now(), rtt, taken);
        drop(used);
        let stream = OpenStream {
            streams: Arc::clone(self),
            is_taken: true,
        };
        (stream, more)
    }

    /// Since when there is none; `None` while there is one.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let used = self.lock();
        (used.open == 0).then_some(used.ended)
    }

    fn lock(&self) -> MutexGuard<'_, Use> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenStream {
    /// Where datagrams may go beside the stream of number `stream`, which this is; `None`: nowhere.
    pub(crate) fn lane(&self, stream: u64) -> Option<Lane> {
        self.streams.lanes.as_ref()?.enter(stream)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut used = self.streams.lock();
        used.open = used.open.saturating_sub(1);
        used.taken = used.taken.saturating_sub(self.is_taken.into());
        used.ended = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::time::timeout;
    use wormholes_proto::CarrierKind;

    use super::*;
    use crate::{
        carrier::{Carrier, Link, Standing, grant::FIRST_STREAMS},
        identity::Identity,
        pipe::Pipe,
    };

    /// Two nodes with a connection over QUIC, on 127.68.0.1 and 127.68.0.2.
    async fn pair() -> [(Carrier, Link); 2] {
        let bind = |last: u8| {
            let identity = Identity::throw_away().unwrap();
            let listen = [([127, 68, 0, last], 0).into()];
            let kinds = [CarrierKind::Quic];
            let carrier = Carrier::bind(&listen, &kinds, &identity, Arc::default());
            (identity.id(), carrier.unwrap())
        };
        let ((_, caller), (id, called)) = (bind(1), bind(2));
        let address = (CarrierKind::Quic, called.listen_addresses()[0]);
        let taken = async {
            let incoming = called.accept().await.unwrap();
            called.handshake(incoming, |_| true).await
        };
        let (near, far) = tokio::join!(caller.dial(caller.myself(), id, address), taken);
        [(caller, near.unwrap()), (called, far.unwrap().unwrap())]
    }

    /// All that open without a word of the other end.
    fn open_at_once(link: &Link) -> Vec<Pipe> {
        let open = std::iter::from_fn(|| link.open().now_or_never());
        open.map(Result::unwrap).collect()
    }

    #[tokio::test]
    async fn few_streams_are_granted_until_more_are_used() {
        let [(_caller, near), (_called, far)] = pair().await;
        far.set_standing(Standing::Known, 100);
        let mut opened = open_at_once(&near);
        assert_eq!(opened.len(), FIRST_STREAMS as usize);
        let mut taken = Vec::new();
        while taken.len() < Standing::Known.streams(100) as usize {
            if taken.len() == opened.len() {
                let more = timeout(Duration::from_secs(20), near.open()).await;
                opened.push(more.unwrap().unwrap());
            }
            // A stream is seen with its first bytes.
            let writer = &mut opened[taken.len()].writer;
            writer.write_chunk("x".into()).await.unwrap();
            taken.push(far.accept().await.unwrap());
        }
        assert!(open_at_once(&near).is_empty());
    }

    #[tokio::test]
    async fn whose_streams_are_all_in_use_is_not_silent() {
        let [(_caller, near), (_called, far)] = pair().await;
        let mut opened = open_at_once(&near);
        for pipe in &mut opened {
            pipe.writer.write_chunk("x".into()).await.unwrap();
        }
        // What was sent before is still acknowledged while the first waits.
        for _ in 0..2 {
            let longer_than_patience = Duration::from_millis(1800);
            let another = timeout(longer_than_patience, near.while_alive(near.open())).await;
            assert!(another.is_err(), "none is granted: {another:?}");
            assert!(!near.is_silent(), "it has nothing to acknowledge");
        }
        let take = async { while far.accept().await.is_ok() {} };
        tokio::select! {
            () = take => panic!("the link is lost"),
            another = timeout(Duration::from_secs(20), near.while_alive(near.open())) => {
                another.unwrap().unwrap().unwrap();
            }
        }
    }
}
