//! QUIC streams as ends of a pipe.

use std::{
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::{Poll, ready},
};

use bytes::{Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};

use super::{BATCH_CHUNKS, PipeError};
use crate::carrier::{Lane, OpenStream};

/// Asks for whatever has come: chunks are packets, never longer than a datagram.
const MAX_CHUNK_BYTES: usize = 64 << 10;
/// Says that a direction broke; what broke it is nobody's business.
const ABORTED: VarInt = VarInt::from_u32(1);

/// What is read while nothing is wanted but to learn whether the stream breaks off. Overflow: it is
/// read, and heard to break off, no further.
pub(super) const MAX_AHEAD_BYTES: usize = 16 << 10;

pub(super) struct QuicReader {
    stream: RecvStream,
    /// Copied: small pieces would keep the packets that they came in.
    ahead: BytesMut,
    open: Arc<OpenStream>,
}

pub(super) struct QuicWriter {
    stream: SendStream,
    finished: bool,
    _open: Arc<OpenStream>,
}

impl QuicReader {
    pub(super) fn new(stream: RecvStream, open: Arc<OpenStream>) -> Self {
        Self {
            stream,
            ahead: BytesMut::new(),
            open,
        }
    }

    /// Where datagrams may go beside the stream; `None`: they may not.
    pub(super) fn lane(&self) -> Option<Lane> {
        self.open.lane(self.stream.id().into())
    }

    pub(super) async fn read_chunk(&mut self) -> Result<Option<Bytes>, PipeError> {
        if let Some(chunk) = self.take_ahead() {
            return Ok(Some(chunk));
        }
        let chunk = self.stream.read_chunk(MAX_CHUNK_BYTES, true).await;
        Ok(chunk.map_err(read_error)?.map(|chunk| chunk.bytes))
    }

    /// Ends when the other end broke this direction off, or the connection is lost. Cancel-safe.
    ///
    /// It reads to learn that: quinn's own way keeps the task of who waits for a reset of a stream
    /// that has ended, for as long as the connection lives.
    pub(super) async fn aborted(&mut self) {
        while self.ahead.len() < MAX_AHEAD_BYTES {
            match self.stream.read_chunk(MAX_AHEAD_BYTES, true).await {
                Ok(Some(chunk)) => self.ahead.extend_from_slice(&chunk.bytes),
                // A direction that ended well is none that broke off.
                Ok(None) => break,
                Err(_) => return,
            }
        }
        std::future::pending().await
    }

    fn take_ahead(&mut self) -> Option<Bytes> {
        let ahead = std::mem::take(&mut self.ahead);
        (!ahead.is_empty()).then(|| ahead.freeze())
    }

    /// Takes what has come, at most [`BATCH_CHUNKS`]; none at the end. Cancel-safe. Room for them
    /// is there while they come, not while they are waited for.
    pub(super) async fn read_chunks(&mut self) -> Result<Vec<Bytes>, PipeError> {
        if let Some(chunk) = self.take_ahead() {
            return Ok(vec![chunk]);
        }
        poll_fn(|context| {
            let mut chunks = [const { Bytes::new() }; BATCH_CHUNKS];
            let filled = ready!(pin!(self.stream.read_chunks(&mut chunks)).poll(context));
            let filled = filled.map_err(read_error)?.unwrap_or(0);
            Poll::Ready(Ok(chunks.into_iter().take(filled).collect()))
        })
        .await
    }
}

impl QuicWriter {
    pub(super) fn new(stream: SendStream, open: Arc<OpenStream>) -> Self {
        Self {
            stream,
            finished: false,
            _open: open,
        }
    }

    pub(super) async fn write_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), PipeError> {
        self.stream
            .write_all_chunks(chunks)
            .await
            .map_err(write_error)
    }

    /// Ends when the other end will read nothing more, or is lost, before it has all.
    pub(super) fn left(&self) -> impl Future<Output = ()> + Send + use<> {
        let stopped = self.stream.stopped();
        async move {
            // It took all there was.
            if let Ok(None) = stopped.await {
                std::future::pending().await
            }
        }
    }

    pub(super) fn finish(&mut self) -> Result<(), PipeError> {
        self.finished = true;
        self.stream.finish().map_err(|_| PipeError::Reset)
    }
}

/// quinn finishes a dropped stream, which would pass for a good end.
impl Drop for QuicWriter {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.stream.reset(ABORTED);
        }
    }
}

fn read_error(error: ReadError) -> PipeError {
    match error {
        ReadError::Reset(_) => PipeError::Reset,
        ReadError::ConnectionLost(error) => PipeError::Broken(error.to_string()),
        ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
            PipeError::Cut
        }
    }
}

fn write_error(error: WriteError) -> PipeError {
    match error {
        WriteError::Stopped(_) => PipeError::Reset,
        WriteError::ConnectionLost(error) => PipeError::Broken(error.to_string()),
        WriteError::ClosedStream | WriteError::ZeroRttRejected => PipeError::Cut,
    }
}
