//! A stream through Tor, in two halves for tokio. Tor has no half-close: an END ends both directions,
//! and arti sends it when the writer is shut down or both halves are dropped.

use std::{
    fmt,
    io::{self, ErrorKind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use arti_client::{DataReader, DataStream, DataWriter};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};
use tor_cell::relaycell::msg::EndReason;

use crate::circuits::Circuits;

/// What lasts as long as either half of a stream.
type Held = Arc<dyn fmt::Debug + Send + Sync>;

/// A stream through Tor.
#[derive(Debug)]
pub struct Stream {
    /// What comes in.
    pub reader: StreamReader,
    /// What goes out.
    pub writer: StreamWriter,
}

/// What comes in. Its end is seen once the other end closed the stream, for whatever reason but a
/// reset: arti says no other one than "misc", even where all is well.
#[derive(Debug)]
pub struct StreamReader {
    reader: DataReader,
    has_ended: bool,
    _held: Held,
}

/// What goes out. Cells are filled before they go: flush when nothing follows soon.
#[derive(Debug)]
pub struct StreamWriter {
    writer: DataWriter,
    _held: Held,
}

impl Stream {
    /// A stream that this client opened.
    pub(crate) fn opened(stream: DataStream, circuits: &Arc<Circuits>) -> Self {
        let place = Arc::new(circuits.enter(&stream));
        Self::new(stream, place)
    }

    /// A stream that somebody opened to an onion service here; `open` says as long as it lasts that it
    /// is open.
    pub(crate) fn taken(stream: DataStream, open: watch::Receiver<()>) -> Self {
        Self::new(stream, Arc::new(open))
    }

    fn new(stream: DataStream, held: Held) -> Self {
        let (reader, writer) = stream.split();
        Self {
            reader: StreamReader {
                reader,
                has_ended: false,
                _held: Arc::clone(&held),
            },
            writer: StreamWriter {
                writer,
                _held: held,
            },
        }
    }
}

impl AsyncRead for StreamReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.has_ended {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.reader).poll_read(cx, buffer));
        match read {
            Err(error) if !is_end(&error) => return Poll::Ready(Err(error)),
            Ok(()) if buffer.filled().len() > before || buffer.remaining() == 0 => {}
            Ok(()) | Err(_) => self.has_ended = true,
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

/// Whether the other end closed the stream, rather than something broke.
fn is_end(error: &io::Error) -> bool {
    let inner = error.get_ref();
    match inner.and_then(|inner| inner.downcast_ref::<tor_proto::Error>()) {
        Some(tor_proto::Error::EndReceived(reason)) => {
            [EndReason::DONE, EndReason::MISC].contains(reason)
        }
        // What a stream says that this end closed.
        _ => error.kind() == ErrorKind::NotConnected,
    }
}
