//! A connection of the TCP carrier as ends of a pipe, for the time of one flow.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use wormholes_proto::tcp::{END, frame_head};

use super::{BATCH_CHUNKS, PipeError, quic::MAX_AHEAD_BYTES};
use crate::carrier::Lease;

pub(super) struct FramedReader {
    lease: Arc<Lease>,
    /// Read while nothing was wanted but to learn whether the flow breaks off.
    ahead: BytesMut,
}

pub(super) struct FramedWriter {
    lease: Arc<Lease>,
    /// Whether a frame is half written.
    is_torn: bool,
}

impl FramedReader {
    pub(super) fn new(lease: Arc<Lease>) -> Self {
        Self {
            lease,
            ahead: BytesMut::new(),
        }
    }

    /// Takes what has come, at most [`BATCH_CHUNKS`]; none at the end. Cancel-safe.
    pub(super) async fn read_chunks(&mut self) -> Result<Vec<Bytes>, PipeError> {
        if !self.ahead.is_empty() {
            return Ok(vec![self.ahead.split().freeze()]);
        }
        self.lease.read_parts(BATCH_CHUNKS).await
    }

    pub(super) async fn read_chunk(&mut self) -> Result<Option<Bytes>, PipeError> {
        if !self.ahead.is_empty() {
            return Ok(Some(self.ahead.split().freeze()));
        }
        Ok(self.lease.read_parts(1).await?.pop())
    }

    /// Ends when the other end broke this direction off, or the connection is lost. Cancel-safe.
    pub(super) async fn aborted(&mut self) {
        while self.ahead.len() < MAX_AHEAD_BYTES {
            match self.lease.read_parts(BATCH_CHUNKS).await {
                Ok(chunks) if chunks.is_empty() => {
                    // After its end the other end says nothing more on this flow.
                    return self.lease.socket().stirred().await;
                }
                Ok(chunks) => chunks.iter().for_each(|c| self.ahead.extend_from_slice(c)),
                Err(_) => return,
            }
        }
        std::future::pending().await
    }
}

impl FramedWriter {
    pub(super) fn new(lease: Arc<Lease>) -> Self {
        Self {
            lease,
            is_torn: false,
        }
    }

    pub(super) async fn write_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), PipeError> {
        let len: usize = chunks.iter().map(Bytes::len).sum();
        if len == 0 {
            return Ok(());
        }
        let head = frame_head(len).ok_or_else(|| PipeError::Broken("frame too long".to_owned()))?;
        self.write(&head, chunks).await
    }

    pub(super) async fn finish(&mut self) -> Result<(), PipeError> {
        self.write(&END, &mut []).await?;
        self.lease.ended_out();
        Ok(())
    }

    async fn write(&mut self, head: &[u8], chunks: &mut [Bytes]) -> Result<(), PipeError> {
        if std::mem::replace(&mut self.is_torn, true) {
            return Err(PipeError::Cut);
        }
        self.lease.socket().write(head, chunks).await?;
        self.is_torn = false;
        Ok(())
    }

    /// Ends when the other end will read nothing more, or is lost. Whoever waits for it wants
    /// nothing more of what comes in: relayed ends and onions leave the end of the stream unread.
    pub(super) fn left(&self) -> impl Future<Output = ()> + Send + use<> {
        let lease = Arc::clone(&self.lease);
        async move {
            while !lease.has_ended_in() {
                match lease.read_parts(1).await {
                    Ok(parts) if parts.is_empty() => {}
                    // Nothing is said behind an end.
                    Ok(_) | Err(_) => return,
                }
            }
            lease.socket().stirred().await;
        }
    }
}
