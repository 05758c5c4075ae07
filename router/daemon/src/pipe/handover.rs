//! How a sealed session goes on by another stream: whoever has one hands it over, and each direction
//! goes there by itself, when it has said or read on the stream before what belongs there.

use std::{
    fmt,
    future::pending,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};
use wormholes_proto::sealed::SessionId;

use super::{
    Pipe, PipeError, PipeWriter, Side, Sink, Source,
    stream::{StreamReader, StreamWriter},
};
use crate::carrier::CrossingPlace;

/// A relay that has a direction's tail brings something of it within `quiet`, however slow it is. In all
/// that fills a window of 6 MiB at each of two hops, at 1 Mbit/s.
const PATIENCE: Patience = Patience {
    quiet: Duration::from_secs(10),
    in_all: Duration::from_secs(120),
};

/// How long the stream before is waited for, until it says that the rest comes on the other one:
/// meanwhile what comes there fills the window that others need.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// While nothing at all comes.
    pub(super) quiet: Duration,
    /// Whatever comes.
    pub(super) in_all: Duration,
}

/// What a direction goes on by.
pub(super) struct Offer<T> {
    pub(super) stream: T,
    /// Dropped when the direction ended before.
    pub(super) arrival: Arrival,
    given: Instant,
    pub(super) patience: Patience,
}

/// Told when a direction is there.
pub(super) struct Arrival {
    /// Among those that go over to one connection at once; both directions share it. Given up before
    /// anybody is told.
    place: Arc<CrossingPlace>,
    told: oneshot::Sender<()>,
}

/// What the direction that comes in goes on by: what was read ahead comes along.
type ReaderOffer = Offer<(StreamReader, Bytes)>;

/// Where the direction that comes in waits for it.
pub(super) struct ReaderBerth {
    /// None: it came, or nobody is there any more who would bring it.
    coming: Option<oneshot::Receiver<ReaderOffer>>,
    offer: Option<ReaderOffer>,
    /// How long the stream before was waited for since.
    waited: Duration,
    is_expected: Arc<AtomicBool>,
}

/// Where the direction that goes out waits for it.
pub(super) type WriterBerth = oneshot::Receiver<Offer<StreamWriter>>;

/// Has a session go on by another stream, once; dropped, the session stays where it is.
pub(crate) struct Handover {
    session: SessionId,
    patience: Patience,
    is_expected: Arc<AtomicBool>,
    reader: oneshot::Sender<ReaderOffer>,
    writer: oneshot::Sender<Offer<StreamWriter>>,
}

/// Both directions on their way.
#[derive(Debug)]
pub(crate) struct Crossing([oneshot::Receiver<()>; 2]);

impl Handover {
    pub(super) fn new(session: SessionId) -> (Self, ReaderBerth, WriterBerth) {
        let (reader, coming) = oneshot::channel();
        let (writer, writer_berth) = oneshot::channel();
        let is_expected = Arc::<AtomicBool>::default();
        let reader_berth = ReaderBerth {
            coming: Some(coming),
            offer: None,
            waited: Duration::ZERO,
            is_expected: Arc::clone(&is_expected),
        };
        let handover = Self {
            session,
            patience: PATIENCE,
            is_expected,
            reader,
            writer,
        };
        (handover, reader_berth, writer_berth)
    }

    /// Of a session that is over.
    #[cfg(test)]
    pub(crate) fn of_nothing(session: SessionId) -> Self {
        Self::new(session).0
    }

    /// What both ends call the session.
    pub(crate) fn session(&self) -> SessionId {
        self.session
    }

    /// Lets the other end say that the rest comes on another stream: before, nobody could have agreed
    /// on one.
    pub(crate) fn expect_stream(&self) {
        self.is_expected.store(true, Relaxed);
    }

    /// Has both directions go on by `pipe`, a stream between nodes to the same end. `place` is free
    /// again when both have gone over, or ended.
    pub(crate) async fn give(self, pipe: Pipe, place: CrossingPlace) -> Crossing {
        let (reader_told, reader) = oneshot::channel();
        let (writer_told, writer) = oneshot::channel();
        let (given, patience, place) = (Instant::now(), self.patience, Arc::new(place));
        let reader_arrival = Arrival {
            told: reader_told,
            place: Arc::clone(&place),
        };
        let writer_arrival = Arrival {
            told: writer_told,
            place,
        };
        let crossing = Crossing([reader, writer]);
        let (Source::Stream(recv), Sink::Stream(send)) = (pipe.reader.source, pipe.writer.sink)
        else {
            return crossing;
        };
        // A direction that has ended needs no stream.
        let _ = self.reader.send(Offer {
            stream: (recv, pipe.reader.ahead),
            arrival: reader_arrival,
            given,
            patience,
        });
        let offered = self.writer.send(Offer {
            stream: send,
            arrival: writer_arrival,
            given,
            patience,
        });
        if let Err(mut unwanted) = offered {
            // The other end shall not take it for a break.
            let _ = unwanted.stream.finish().await;
        }
        crossing
    }
}

impl Arrival {
    pub(super) fn tell(self) {
        drop(self.place);
        // Whoever wanted to know may be gone.
        let _ = self.told.send(());
    }
}

impl ReaderBerth {
    /// What `read` gives, which reads the stream before. Once there is another one, that is waited for
    /// with [`Patience`]; a program here that is slow to take what came costs nothing of it.
    /// Cancel-safe, as `read` is.
    ///
    /// # Errors
    /// [`PipeError`] when the time is over.
    pub(super) async fn in_time<T>(
        &mut self,
        read: impl Future<Output = Result<T, PipeError>>,
    ) -> Result<T, PipeError> {
        let since = Instant::now();
        let read = tokio::select! {
            biased;
            read = read => read,
            () = self.worn_out() => {
                let late = "the stream before does not end, though the rest comes on another";
                Err(PipeError::Broken(late.to_owned()))
            }
        };
        if let Some(offer) = &self.offer {
            let since = since.max(offer.given);
            self.waited = self.waited.saturating_add(since.elapsed());
        }
        read
    }

    /// Ends when the stream before was waited for long enough. Cancel-safe.
    async fn worn_out(&mut self) {
        self.look().await;
        let patience = self.offer.as_ref().map(|offer| offer.patience);
        match patience {
            Some(Patience { quiet, in_all }) => {
                sleep(quiet.min(in_all.saturating_sub(self.waited))).await;
            }
            None => pending().await,
        }
    }

    /// What this direction goes on by, as soon as it is here; `None`: nobody is there any more who
    /// would bring it. Cancel-safe.
    pub(super) async fn offered(&mut self) -> Option<ReaderOffer> {
        self.look().await;
        self.offer.take()
    }

    /// Waits until what this direction goes on by is here, or never will be.
    async fn look(&mut self) {
        if let Some(coming) = &mut self.coming {
            let came = coming.await;
            self.coming = None;
            self.offer = came.ok();
        }
    }

    /// Whether the other end may say that the rest comes on another stream.
    pub(super) fn is_expected(&self) -> bool {
        self.is_expected.load(Relaxed)
    }
}

impl Crossing {
    /// Waits until no direction is left on the stream before; whether any has gone over.
    pub(crate) async fn done(self) -> bool {
        let [reader, writer] = self.0;
        let (reader, writer) = tokio::join!(reader, writer);
        reader.is_ok() || writer.is_ok()
    }
}

impl Side {
    /// What has the session under it go on by another stream; `None` where there is none.
    pub(crate) fn take_handover(&mut self) -> Option<Handover> {
        match self {
            Self::Stream(pipe) => pipe.take_handover(),
            Self::Datagrams(datagrams) => datagrams.writer.under()?.take_handover(),
        }
    }
}

impl Pipe {
    /// As that of a [`Side`].
    pub(crate) fn take_handover(&mut self) -> Option<Handover> {
        self.writer.take_handover()
    }
}

impl PipeWriter {
    fn take_handover(&mut self) -> Option<Handover> {
        match &mut self.sink {
            Sink::Sealed(sealed) => sealed.take_handover(),
            Sink::Tcp(_) | Sink::Stream(_) | Sink::Onion(_) | Sink::Memory(_) | Sink::Tor(_) => {
                None
            }
        }
    }

    /// Whether it may be told to go on by another stream.
    pub(super) fn may_go_over(&self) -> bool {
        match &self.sink {
            Sink::Sealed(sealed) => sealed.may_go_over(),
            Sink::Tcp(_) | Sink::Stream(_) | Sink::Onion(_) | Sink::Memory(_) | Sink::Tor(_) => {
                false
            }
        }
    }

    /// Ends when it is told to go on by another stream. Cancel-safe.
    pub(super) async fn called_over(&mut self) {
        match &mut self.sink {
            Sink::Sealed(sealed) => sealed.called_over().await,
            Sink::Tcp(_) | Sink::Stream(_) | Sink::Onion(_) | Sink::Memory(_) | Sink::Tor(_) => {
                pending().await
            }
        }
    }

    /// Waits for `held`, and goes on by another stream meanwhile when it is told to: what is held back
    /// comes behind, and the other end does not wait for it.
    ///
    /// # Errors
    /// [`PipeError`] when the stream before broke.
    pub(super) async fn go_over_during(
        &mut self,
        held: impl Future<Output = ()>,
    ) -> Result<(), PipeError> {
        let mut held = pin!(held);
        while self.may_go_over() {
            tokio::select! {
                biased;
                () = &mut held => return Ok(()),
                () = self.called_over() => {}
            }
            self.go_over().await?;
        }
        held.await;
        Ok(())
    }

    /// Goes on by the stream that it was told of.
    ///
    /// # Errors
    /// [`PipeError`] when the one before broke.
    pub(super) async fn go_over(&mut self) -> Result<(), PipeError> {
        match &mut self.sink {
            Sink::Sealed(sealed) => sealed.go_over().await,
            Sink::Tcp(_) | Sink::Stream(_) | Sink::Onion(_) | Sink::Memory(_) | Sink::Tor(_) => {
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handover").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
