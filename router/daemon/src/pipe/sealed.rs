//! Noise over a stream between nodes as ends of a pipe: what travels through a relay, and goes on by a
//! direct stream when there is one.

mod leaving;

use std::{future::pending, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout, timeout_at};
use wormholes_proto::sealed::{Frame, Opener, SealedError, Sealer, SessionId};

use super::{
    PipeError,
    handover::{Handover, Offer, ReaderBerth, WriterBerth},
    stream::{StreamReader, StreamWriter},
};

use leaving::Leaving;

/// Who says that the rest comes on another stream has agreed on one before: it is here, or all but.
const OTHER_STREAM: Duration = Duration::from_secs(10);

pub(super) struct SealedReader {
    stream: StreamReader,
    opener: Opener,
    /// At most one frame and one read more.
    pending: BytesMut,
    /// None: this direction has gone over, or ended.
    berth: Option<ReaderBerth>,
    /// When the other stream has to be here.
    due: Option<Instant>,
}

pub(super) struct SealedWriter {
    stream: StreamWriter,
    sealer: Sealer,
    pad_bytes: Option<u32>,
    /// None: somebody has it.
    handover: Option<Handover>,
    /// None: this direction has gone over, or ended, or nobody can tell it to any more.
    berth: Option<WriterBerth>,
    /// What it was told to go on by.
    offer: Option<Offer<StreamWriter>>,
    leaving: Arc<Leaving>,
}

/// Both ends of a session on one stream; `ahead` is what was read from it already.
pub(super) fn ends(
    session: SessionId,
    (reader, ahead, opener): (StreamReader, &[u8], Opener),
    (writer, sealer): (StreamWriter, Sealer),
) -> (SealedReader, SealedWriter) {
    let (handover, reader_berth, writer_berth) = Handover::new(session);
    let reader = SealedReader {
        stream: reader,
        opener,
        pending: BytesMut::from(ahead),
        berth: Some(reader_berth),
        due: None,
    };
    let writer = SealedWriter {
        stream: writer,
        sealer,
        pad_bytes: None,
        handover: Some(handover),
        berth: Some(writer_berth),
        offer: None,
        leaving: Arc::default(),
    };
    (reader, writer)
}

impl SealedReader {
    pub(super) async fn aborted(&mut self) {
        self.stream.aborted().await;
    }

    pub(super) async fn read_chunk(&mut self) -> Result<Option<Bytes>, PipeError> {
        loop {
            if self.opener.is_moving() {
                self.go_over().await?;
            }
            match self.opener.open(&mut self.pending).map_err(sealed_error)? {
                Some(Frame::Data(data)) if data.is_empty() => {}
                Some(Frame::Data(data)) => return Ok(Some(data)),
                Some(Frame::Move) => {}
                Some(Frame::End) => {
                    self.berth = None;
                    return Ok(None);
                }
                None => {
                    if self.pending.is_empty() {
                        self.pending = BytesMut::new();
                    }
                    let read = self.stream.read_chunks();
                    let chunks = match &mut self.berth {
                        Some(berth) => berth.in_time(read).await?,
                        None => read.await?,
                    };
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

    /// Goes on by the other stream, when it is here. Cancel-safe.
    async fn go_over(&mut self) -> Result<(), PipeError> {
        let end = self.opener.handle_stream_end(&self.pending);
        end.map_err(sealed_error)?;
        let berth = self.berth.as_mut().filter(|berth| berth.is_expected());
        let Some(berth) = berth else {
            return Err(PipeError::Malformed("sealed frame"));
        };
        let due = *self
            .due
            .get_or_insert_with(|| Instant::now() + OTHER_STREAM);
        let offered = timeout_at(due, berth.offered()).await;
        let Some(offer) = offered.ok().flatten() else {
            let late = "the stream that the rest comes on is not here";
            return Err(PipeError::Broken(late.to_owned()));
        };
        let (stream, ahead) = offer.stream;
        self.berth = None;
        self.stream = stream;
        self.pending = BytesMut::from(&ahead[..]);
        self.opener.handle_moved();
        offer.arrival.tell();
        Ok(())
    }
}

impl SealedWriter {
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

    /// See [`StreamWriter::left`]; of the stream that it is on by then.
    pub(super) fn left(&self) -> BoxFuture<'static, ()> {
        self.leaving.follow(self.stream.left());
        Arc::clone(&self.leaving).left()
    }

    pub(super) async fn finish(&mut self) -> Result<(), PipeError> {
        let offer = self.take_offer();
        let mut sealed = BytesMut::new();
        let end = self.sealer.seal_end(self.pad_bytes, &mut sealed);
        end.map_err(sealed_error)?;
        self.stream.write_chunks(&mut [sealed.freeze()]).await?;
        self.stream.finish().await?;
        if let Some(mut unwanted) = offer {
            // All is said: the other end shall not take it for a break.
            let _ = unwanted.stream.finish().await;
        }
        Ok(())
    }

    pub(super) fn take_handover(&mut self) -> Option<Handover> {
        self.handover.take()
    }

    pub(super) fn may_go_over(&self) -> bool {
        self.berth.is_some() || self.offer.is_some()
    }

    /// Ends when it is told to go on by another stream. Cancel-safe.
    pub(super) async fn called_over(&mut self) {
        if self.offer.is_some() {
            return;
        }
        let Some(berth) = &mut self.berth else {
            return pending().await;
        };
        let offered = berth.await;
        self.berth = None;
        match offered {
            Ok(offer) => self.offer = Some(offer),
            Err(_) => pending().await,
        }
    }

    /// Says on this stream that the rest comes on the other one, and goes there.
    pub(super) async fn go_over(&mut self) -> Result<(), PipeError> {
        let Some(offer) = self.offer.take() else {
            return Ok(());
        };
        let mut sealed = BytesMut::new();
        let moved = self.sealer.seal_move(self.pad_bytes, &mut sealed);
        moved.map_err(sealed_error)?;
        let mut last = [sealed.freeze()];
        let said = async {
            self.stream.write_chunks(&mut last).await?;
            self.stream.finish().await
        };
        // It comes behind all that was written before. The other end waits for it no longer.
        timeout(offer.patience.in_all, said).await.map_err(|_| {
            let late = "the stream before takes no word that the rest comes on another";
            PipeError::Broken(late.to_owned())
        })??;
        self.stream = offer.stream;
        self.leaving.follow(self.stream.left());
        offer.arrival.tell();
        Ok(())
    }

    /// What it was told to go on by, and nothing any more.
    fn take_offer(&mut self) -> Option<Offer<StreamWriter>> {
        let berth = self.berth.take();
        let unseen = berth.and_then(|mut berth| {
            berth.close();
            berth.try_recv().ok()
        });
        self.offer.take().or(unseen)
    }
}

fn sealed_error(error: SealedError) -> PipeError {
    if error == SealedError::Cut {
        return PipeError::Cut;
    }
    tracing::debug!(%error, "sealed stream broken");
    PipeError::Malformed("sealed frame")
}
