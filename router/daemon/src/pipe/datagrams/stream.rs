//! A UDP flow between nodes: frames in its stream, and QUIC datagrams beside it where there is a
//! lane.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use bytes::{Bytes, BytesMut};
use wormholes_proto::{FrameReader, encode_frame};

use super::{Batch, PipeError, PipeReader, PipeWriter};
use crate::{carrier::Lane, counters::Counters};

pub(crate) struct StreamReader {
    stream: PipeReader,
    frames: FrameReader,
    lane: Option<Arc<Lane>>,
}

pub(crate) struct StreamWriter {
    stream: PipeWriter,
    lane: Option<Arc<Lane>>,
    counters: Arc<Counters>,
}

impl StreamReader {
    pub(super) fn new(stream: PipeReader, lane: Option<Arc<Lane>>) -> Self {
        Self {
            stream,
            frames: FrameReader::default(),
            lane,
        }
    }

    pub(super) async fn read_datagrams(&mut self) -> Result<Vec<Bytes>, PipeError> {
        loop {
            let framed = self.take_frames()?;
            if !framed.is_empty() {
                return Ok(framed);
            }
            let chunks = tokio::select! {
                chunks = self.stream.read_chunks() => chunks?,
                beside = arrived(self.lane.as_deref()) => return Ok(beside),
            };
            if chunks.is_empty() {
                let whole = self.frames.is_whole();
                return if whole {
                    Ok(chunks)
                } else {
                    Err(PipeError::Cut)
                };
            }
            for chunk in &chunks {
                self.frames.handle_input(chunk);
            }
        }
    }

    fn take_frames(&mut self) -> Result<Vec<Bytes>, PipeError> {
        let mut found = Batch::default();
        while !found.is_full() {
            let polled = self.frames.poll_datagram();
            match polled.map_err(|_| PipeError::Malformed("datagram"))? {
                Some(datagram) => found.push(datagram),
                None => break,
            }
        }
        Ok(found.into_vec())
    }
}

impl StreamWriter {
    pub(super) fn new(
        stream: PipeWriter,
        lane: Option<Arc<Lane>>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            stream,
            lane,
            counters,
        }
    }

    pub(super) async fn write_datagrams(&mut self, datagrams: &[Bytes]) -> Result<(), PipeError> {
        let mut frames = BytesMut::new();
        for datagram in datagrams {
            if let Some(lane) = self.lane.as_ref().filter(|lane| lane.fits(datagram)) {
                lane.send(datagram)?;
            } else if !encode_frame(datagram, &mut frames) {
                self.counters.dropped.unsent.fetch_add(1, Relaxed);
            }
        }
        if frames.is_empty() {
            return Ok(());
        }
        self.stream.write_chunk(frames.freeze()).await
    }

    pub(super) fn set_padding(&mut self, pad_bytes: u32) {
        self.stream.set_padding(pad_bytes);
    }

    /// The stream.
    pub(super) fn under(&mut self) -> &mut PipeWriter {
        &mut self.stream
    }

    pub(super) async fn finish(&mut self) -> Result<(), PipeError> {
        self.stream.finish().await
    }
}

/// What comes beside the stream; never, where there is no lane.
async fn arrived(lane: Option<&Lane>) -> Vec<Bytes> {
    match lane {
        Some(lane) => lane.arrived().await,
        None => std::future::pending().await,
    }
}
