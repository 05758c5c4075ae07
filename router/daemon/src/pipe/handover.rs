//! How a sealed session goes on by another stream: whoever has one hands it over, and each direction
//! goes there by itself, when it has said or read on the stream before what belongs there.

#[cfg(test)]
mod tests;

use std::{
    fmt,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use tokio::sync::oneshot;
use wormholes_proto::sealed::SessionId;

use super::{
    Pipe, PipeError, PipeWriter, Side, Sink, Source,
    stream::{StreamReader, StreamWriter},
};

/// What a direction goes on by.
pub(super) struct Offer<T> {
    pub(super) stream: T,
    /// Told when the direction is there; dropped when it ended before.
    pub(super) arrived: oneshot::Sender<()>,
}

/// Where the direction that comes in waits for it.
pub(super) struct ReaderBerth {
    /// What was read ahead comes along.
    pub(super) offer: oneshot::Receiver<Offer<(StreamReader, Bytes)>>,
    is_expected: Arc<AtomicBool>,
}

/// Where the direction that goes out waits for it.
pub(super) type WriterBerth = oneshot::Receiver<Offer<StreamWriter>>;

/// Has a session go on by another stream, once; dropped, the session stays where it is.
pub(crate) struct Handover {
    session: SessionId,
    is_expected: Arc<AtomicBool>,
    reader: oneshot::Sender<Offer<(StreamReader, Bytes)>>,
    writer: oneshot::Sender<Offer<StreamWriter>>,
}

/// Both directions on their way.
#[derive(Debug)]
pub(crate) struct Crossing([oneshot::Receiver<()>; 2]);

impl Handover {
    pub(super) fn new(session: SessionId) -> (Self, ReaderBerth, WriterBerth) {
        let (reader, offer) = oneshot::channel();
        let (writer, writer_berth) = oneshot::channel();
        let is_expected = Arc::<AtomicBool>::default();
        let reader_berth = ReaderBerth {
            offer,
            is_expected: Arc::clone(&is_expected),
        };
        let handover = Self {
            session,
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

    /// Has both directions go on by `pipe`, a stream between nodes to the same end.
    pub(crate) async fn give(self, pipe: Pipe) -> Crossing {
        let (reader_arrived, reader) = oneshot::channel();
        let (writer_arrived, writer) = oneshot::channel();
        let crossing = Crossing([reader, writer]);
        let (Source::Stream(recv), Sink::Stream(send)) = (pipe.reader.source, pipe.writer.sink)
        else {
            return crossing;
        };
        // A direction that has ended needs no stream.
        let _ = self.reader.send(Offer {
            stream: (recv, pipe.reader.ahead),
            arrived: reader_arrived,
        });
        let offered = self.writer.send(Offer {
            stream: send,
            arrived: writer_arrived,
        });
        if let Err(mut unwanted) = offered {
            // The other end shall not take it for a break.
            let _ = unwanted.stream.finish().await;
        }
        crossing
    }
}

impl ReaderBerth {
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
