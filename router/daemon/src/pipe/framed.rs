//! A connection of the TCP carrier as ends of a pipe, for the time of one flow.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use wormholes_proto::tcp::{END, FrameReader, Part, frame_head};

use super::{BATCH_CHUNKS, PipeError, quic::MAX_AHEAD_BYTES};
use crate::carrier::Lease;

pub(super) struct FramedReader {
    lease: Arc<Lease>,
    frames: FrameReader,
    /// Read, but not cut into frames yet.
    pending: Bytes,
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
            frames: FrameReader::default(),
            pending: Bytes::new(),
            ahead: BytesMut::new(),
        }
    }

    /// Takes what has come, at most [`BATCH_CHUNKS`]; none at the end. Cancel-safe.
    pub(super) async fn read_chunks(&mut self) -> Result<Vec<Bytes>, PipeError> {
        if !self.ahead.is_empty() {
            return Ok(vec![self.ahead.split().freeze()]);
        }
        self.read_parts(BATCH_CHUNKS).await
    }

    pub(super) async fn read_chunk(&mut self) -> Result<Option<Bytes>, PipeError> {
        if !self.ahead.is_empty() {
            return Ok(Some(self.ahead.split().freeze()));
        }
        Ok(self.read_parts(1).await?.pop())
    }

    async fn read_parts(&mut self, max: usize) -> Result<Vec<Bytes>, PipeError> {
        let mut chunks = Vec::new();
        while !self.lease.has_ended_in() && chunks.len() < max {
            let part = self.frames.handle_bytes(&mut self.pending);
            match part.map_err(|_| PipeError::Malformed("frame"))? {
                Some(Part::Data(data)) => chunks.push(data),
                Some(Part::End) => {
                    // Whatever is behind it belongs to the next flow.
                    self.lease.socket().unread(&self.pending);
                    self.pending = Bytes::new();
                    self.lease.ended_in();
                }
                None if !chunks.is_empty() => break,
                None => {
                    let read = self.lease.socket().read().await?;
                    self.pending = read.ok_or(PipeError::Reset)?;
                }
            }
        }
        Ok(chunks)
    }

    /// Ends when the other end broke this direction off, or the connection is lost. Cancel-safe.
    pub(super) async fn aborted(&mut self) {
        while self.ahead.len() < MAX_AHEAD_BYTES {
            match self.read_parts(BATCH_CHUNKS).await {
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

    /// Ends when the other end will read nothing more, which is heard once it has said all.
    pub(super) fn left(&self) -> impl Future<Output = ()> + Send + use<> {
        let lease = Arc::clone(&self.lease);
        async move {
            if lease.has_ended_in() {
                return lease.socket().stirred().await;
            }
            std::future::pending().await
        }
    }
}
