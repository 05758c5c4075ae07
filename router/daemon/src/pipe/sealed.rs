//! Noise over a stream between nodes as ends of a pipe: what travels through a relay.

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use wormholes_proto::sealed::{Frame, Opener, SealedError, Sealer};

use super::{
    PipeError,
    stream::{StreamReader, StreamWriter},
};

pub(super) struct SealedReader {
    stream: StreamReader,
    opener: Opener,
    /// At most one frame and one read more.
    pending: BytesMut,
}

pub(super) struct SealedWriter {
    stream: StreamWriter,
    sealer: Sealer,
    pad_bytes: Option<u32>,
}

impl SealedReader {
    /// `ahead` is what was read from `stream` already.
    pub(super) fn new(stream: StreamReader, ahead: &[u8], opener: Opener) -> Self {
        Self {
            stream,
            opener,
            pending: BytesMut::from(ahead),
        }
    }

    pub(super) async fn aborted(&mut self) {
        self.stream.aborted().await;
    }

    pub(super) async fn read_chunk(&mut self) -> Result<Option<Bytes>, PipeError> {
        loop {
            match self.opener.open(&mut self.pending).map_err(sealed_error)? {
                Some(Frame::Data(data)) if data.is_empty() => {}
                Some(Frame::Data(data)) => return Ok(Some(data)),
                Some(Frame::End) => return Ok(None),
                None => {
                    if self.pending.is_empty() {
                        self.pending = BytesMut::new();
                    }
                    let chunks = self.stream.read_chunks().await?;
                    if chunks.is_empty() {
                        let end = self.opener.handle_stream_end(&self.pending);
                        return end.map(|()| None).map_err(sealed_error);
                    }
                    for chunk in &chunks {
                        self.pending.extend_from_slice(chunk);
                    }
                }
            }
        }
    }
}

impl SealedWriter {
    pub(super) fn new(stream: StreamWriter, sealer: Sealer) -> Self {
        Self {
            stream,
            sealer,
            pad_bytes: None,
        }
    }

    pub(super) fn set_padding(&mut self, pad_bytes: u32) {
        self.pad_bytes = Some(pad_bytes);
    }

    /// Many small chunks go into one frame.
    pub(super) async fn write_chunks(&mut self, chunks: &[Bytes]) -> Result<(), PipeError> {
        let mut sealed = BytesMut::new();
        let seal = |data: &[u8], sealed: &mut BytesMut, sealer: &mut Sealer| {
            sealer
                .seal_data(data, self.pad_bytes, sealed)
                .map_err(sealed_error)
        };
        match chunks {
            [] => return Ok(()),
            [chunk] => seal(chunk, &mut sealed, &mut self.sealer)?,
            chunks => seal(&chunks.concat(), &mut sealed, &mut self.sealer)?,
        }
        self.stream.write_chunks(&mut [sealed.freeze()]).await
    }

    /// See [`StreamWriter::left`].
    pub(super) fn left(&self) -> BoxFuture<'static, ()> {
        self.stream.left()
    }

    pub(super) async fn finish(&mut self) -> Result<(), PipeError> {
        let mut sealed = BytesMut::new();
        let end = self.sealer.seal_end(self.pad_bytes, &mut sealed);
        end.map_err(sealed_error)?;
        self.stream.write_chunks(&mut [sealed.freeze()]).await?;
        self.stream.finish().await
    }
}

fn sealed_error(error: SealedError) -> PipeError {
    if error == SealedError::Cut {
        return PipeError::Cut;
    }
    tracing::debug!(%error, "sealed stream broken");
    PipeError::Malformed("sealed frame")
}
