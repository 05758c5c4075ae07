//! A stream through Tor, as a pipe.
//!
//! Tor has no half-close: an END ends both directions. So the end of who asked is held back ([`Ends`]):
//! else the answer would be lost. Who was asked sends it as soon as he has answered, as every onion
//! service does.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio_util::sync::CancellationToken;
use wormholes_tor::{Stream, StreamReader, StreamWriter};

use super::{PipeError, READ_BYTES, broken, hold::Ends};
use crate::tor::Counted;

/// Nothing more is to be expected of who was silent for so long after all was said to him.
const SILENCE: Duration = Duration::from_secs(10);
/// How long a program may keep its end open after the other end closed the whole stream.
const LINGER: Duration = Duration::from_secs(60);

thread_local! {
    /// A cell brings half a kilobyte; what came together is read together.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

pub(super) struct TorReader {
    stream: StreamReader,
    shared: Arc<Shared>,
    /// It broke behind what was read last.
    failed: Option<io::Error>,
    has_ended: bool,
}

pub(super) struct TorWriter {
    /// None when nobody hears it any more.
    stream: Option<StreamWriter>,
    shared: Arc<Shared>,
    at_end: AtEnd,
}

/// What this end does that has said all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtEnd {
    /// Waits for the other end.
    Wait,
    /// Ends the stream.
    Close,
}

/// What both directions look at.
struct Shared {
    ends: Ends,
    /// Tor is stopped.
    cut: CancellationToken,
    _counted: Counted,
}

/// A stream that this node opened.
pub(super) fn opened(
    stream: Stream,
    cut: CancellationToken,
    counted: Counted,
) -> (TorReader, TorWriter) {
    pair(stream, AtEnd::Wait, cut, counted)
}

/// A stream that somebody opened to an onion service here.
pub(super) fn hosted(
    stream: Stream,
    cut: CancellationToken,
    counted: Counted,
) -> (TorReader, TorWriter) {
    pair(stream, AtEnd::Close, cut, counted)
}

fn pair(
    stream: Stream,
    at_end: AtEnd,
    cut: CancellationToken,
    counted: Counted,
) -> (TorReader, TorWriter) {
    let shared = Arc::new(Shared {
        ends: Ends::new(SILENCE, LINGER),
        cut,
        _counted: counted,
    });
    let reader = TorReader {
        stream: stream.reader,
        shared: Arc::clone(&shared),
        failed: None,
        has_ended: false,
    };
    let writer = TorWriter {
        stream: Some(stream.writer),
        shared,
        at_end,
    };
    (reader, writer)
}

impl TorReader {
    pub(super) async fn read_chunk(&mut self) -> Result<Option<Bytes>, PipeError> {
        if self.has_ended {
            return Ok(None);
        }
        let Self {
            stream,
            shared,
            failed,
            ..
        } = self;
        let read = tokio::select! {
            biased;
            () = shared.cut.cancelled() => return Err(PipeError::Reset),
            read = poll_fn(|context| poll_chunk(stream, failed, context)) => read,
            () = shared.ends.over() => Ok(Bytes::new()),
            () = shared.ends.fell_silent() => Ok(Bytes::new()),
        };
        let chunk = read.map_err(|error| broken(&error))?;
        if !chunk.is_empty() {
            return Ok(Some(chunk));
        }
        self.has_ended = true;
        self.shared.ends.end();
        Ok(None)
    }
}

/// Takes all that has come; nothing at the end. What breaks behind it is told the next time.
fn poll_chunk(
    stream: &mut StreamReader,
    failed: &mut Option<io::Error>,
    context: &mut Context<'_>,
) -> Poll<io::Result<Bytes>> {
    if let Some(error) = failed.take() {
        return Poll::Ready(Err(error));
    }
    SCRATCH.with_borrow_mut(|scratch| {
        let mut read = ReadBuf::new(scratch);
        ready!(Pin::new(&mut *stream).poll_read(context, &mut read))?;
        let mut before = 0;
        while read.filled().len() > before && read.remaining() > 0 {
            before = read.filled().len();
            match Pin::new(&mut *stream).poll_read(context, &mut read) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => *failed = Some(error),
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(Bytes::copy_from_slice(read.filled())))
    })
}

impl TorWriter {
    pub(super) async fn write_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), PipeError> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        let write = async {
            for chunk in chunks.iter() {
                stream.write_all(chunk).await?;
            }
            // Half a cell would wait for the other half.
            stream.flush().await
        };
        let written = tokio::select! {
            biased;
            () = self.shared.cut.cancelled() => return Err(PipeError::Reset),
            () = self.shared.ends.over() => return Ok(()),
            written = write => written,
        };
        if written.is_err() {
            // The other end has closed the stream. How, the reader tells, behind what is still to be
            // read; what this end says meanwhile nobody hears.
            self.stream = None;
        }
        Ok(())
    }

    pub(super) async fn finish(&mut self) -> Result<(), PipeError> {
        if self.at_end == AtEnd::Wait && !self.shared.ends.is_over() {
            self.shared.ends.say_all();
            return Ok(());
        }
        if let Some(stream) = &mut self.stream {
            // Whoever has closed it already needs no END.
            let closing = stream.shutdown();
            drop(self.shared.cut.run_until_cancelled(closing).await);
        }
        self.stream = None;
        self.shared.ends.end();
        Ok(())
    }

    /// Ends when Tor is stopped.
    pub(super) fn cut(&self) -> impl Future<Output = ()> + Send + use<> {
        self.shared.cut.clone().cancelled_owned()
    }

    /// Ends some time after the other end closed the stream, or when Tor is stopped.
    pub(super) fn left(&self) -> impl Future<Output = ()> + Send + use<> {
        let (left, cut) = (self.shared.ends.left(), self.shared.cut.clone());
        async move {
            tokio::select! {
                () = left => {}
                () = cut.cancelled() => {}
            }
        }
    }
}
