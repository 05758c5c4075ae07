//! A stream in memory, one end of which is a pipe. A drop of the other end is told from a shutdown,
//! as a close is from a half-close.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{PipeError, READ_BYTES, broken};

/// The end that is no pipe. Shutting it down ends what it sends; dropping it ends the stream, when
/// what it sent is through.
#[derive(Debug)]
pub struct MemoryEnd {
    stream: DuplexStream,
    _left: DropGuard,
}

pub(super) struct MemoryReader {
    half: ReadHalf<DuplexStream>,
}

pub(super) struct MemoryWriter {
    half: WriteHalf<DuplexStream>,
    left: CancellationToken,
}

/// Both halves of the pipe, and the other end.
pub(super) fn pair() -> (MemoryReader, MemoryWriter, MemoryEnd) {
    let (near, far) = tokio::io::duplex(READ_BYTES);
    let (reader, writer) = tokio::io::split(near);
    let left = CancellationToken::new();
    let reader = MemoryReader { half: reader };
    let writer = MemoryWriter {
        half: writer,
        left: left.clone(),
    };
    let far = MemoryEnd {
        stream: far,
        _left: left.drop_guard(),
    };
    (reader, writer, far)
}

impl MemoryReader {
    pub(super) async fn read_chunk(&mut self) -> Result<Option<Bytes>, PipeError> {
        // Whoever waits holds no buffer.
        let read = poll_fn(|context| {
            let mut bytes = Vec::with_capacity(READ_BYTES);
            let read = pin!(self.half.read_buf(&mut bytes)).poll(context);
            read.map_ok(|_| bytes)
        });
        let bytes = read.await.map_err(|error| broken(&error))?;
        Ok((!bytes.is_empty()).then(|| bytes.into()))
    }
}

impl MemoryWriter {
    pub(super) async fn write_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), PipeError> {
        for chunk in chunks {
            let written = self.half.write_all(chunk).await;
            written.map_err(|error| broken(&error))?;
        }
        Ok(())
    }

    pub(super) async fn finish(&mut self) -> Result<(), PipeError> {
        self.half.shutdown().await.map_err(|error| broken(&error))
    }

    /// Ends when the other end was dropped.
    pub(super) fn left(&self) -> impl Future<Output = ()> + Send + use<> {
        self.left.clone().cancelled_owned()
    }
}

impl AsyncRead for MemoryEnd {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for MemoryEnd {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
