//! A connection whose other end must take what it is sent: who takes less than 16 KiB in 30 s while
//! more waits for him is cut.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// How long the other end may take for [`LEAST_BYTES`].
const STALL: Duration = Duration::from_secs(30);
/// The slowest modem took more.
const LEAST_BYTES: usize = 16 << 10;

/// The stream, and since when something waits for its other end.
pub(super) struct Patient<S> {
    stream: S,
    /// When it is cut; only while it waits.
    cut: Pin<Box<Sleep>>,
    waits: bool,
    /// Since it was last decided that it lives.
    taken_bytes: usize,
}

impl<S> Patient<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            cut: Box::pin(sleep(STALL)),
            waits: false,
            taken_bytes: 0,
        }
    }

    fn live(&mut self) {
        self.taken_bytes = 0;
        self.cut.as_mut().reset(Instant::now() + STALL);
    }

    fn taken(&mut self, bytes: usize) {
        self.taken_bytes = self.taken_bytes.saturating_add(bytes);
        if self.waits && self.taken_bytes >= LEAST_BYTES {
            self.live();
        }
    }

    /// Nothing more is taken for now; an error when that has been so for too long.
    fn poll_stall<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if !self.waits {
            self.waits = true;
            self.live();
        }
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(cx, bytes) {
            Poll::Ready(written) => {
                self.taken(written.as_ref().copied().unwrap_or_default());
                Poll::Ready(written)
            }
            Poll::Pending => self.poll_stall(cx),
        }
    }

    /// Whoever flushes has written all that it had.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Ready(flushed) => {
                self.waits = false;
                Poll::Ready(flushed)
            }
            Poll::Pending => self.poll_stall(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What becomes of a writer whose reader takes `bytes` each 20 s, eight times.
    async fn written(bytes: usize) -> io::Result<()> {
        let (near, mut far) = tokio::io::duplex(4096);
        let reader = async {
            let mut buffer = vec![0; bytes];
            for _ in 0..8 {
                tokio::time::advance(Duration::from_secs(20)).await;
                far.read_exact(&mut buffer).await?;
            }
            Ok(())
        };
        let mut patient = Patient::new(near);
        let all = vec![0; 8 * bytes];
        let writer = async {
            patient.write_all(&all).await?;
            patient.flush().await
        };
        tokio::try_join!(writer, reader).map(drop)
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_too_little_is_cut_and_who_is_slow_is_not() {
        assert!(written(LEAST_BYTES).await.is_ok());
        let cut = written(LEAST_BYTES / 4).await.unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::TimedOut);
    }
}
