//! A stream between two nodes, whichever carrier it is on: what relayed ends and onion cells
//! travel in.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};

use super::{
    PipeError,
    framed::{FramedReader, FramedWriter},
    quic::{QuicReader, QuicWriter},
};
use crate::carrier::{Lane, Lease, OpenStream};

pub(super) enum StreamReader {
    Quic(QuicReader),
    Framed(FramedReader),
}

pub(super) enum StreamWriter {
    Quic(QuicWriter),
    Framed(FramedWriter),
}

pub(super) fn quic(
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    open: OpenStream,
) -> (StreamReader, StreamWriter) {
    let open = Arc::new(open);
    (
        StreamReader::Quic(QuicReader::new(recv, Arc::clone(&open))),
        StreamWriter::Quic(QuicWriter::new(send, open)),
    )
}

pub(super) fn framed(lease: Lease) -> (StreamReader, StreamWriter) {
    let lease = Arc::new(lease);
    (
        StreamReader::Framed(FramedReader::new(Arc::clone(&lease))),
        StreamWriter::Framed(FramedWriter::new(lease)),
    )
}

impl StreamReader {
    /// Takes what has come in pieces, at most [`super::BATCH_CHUNKS`]; none at the end. Cancel-safe.
    pub(super) async fn read_chunks(&mut self) -> Result<Vec<Bytes>, PipeError> {
        match self {
            Self::Quic(quic) => quic.read_chunks().await,
            Self::Framed(framed) => framed.read_chunks().await,
        }
    }

    pub(super) async fn read_chunk(&mut self) -> Result<Option<Bytes>, PipeError> {
        match self {
            Self::Quic(quic) => quic.read_chunk().await,
            Self::Framed(framed) => framed.read_chunk().await,
        }
    }

    /// Where datagrams may go beside the stream; `None`: they may not.
    pub(super) fn lane(&self) -> Option<Lane> {
        match self {
            Self::Quic(quic) => quic.lane(),
            Self::Framed(_) => None,
        }
    }

    /// Ends when the other end broke this direction off, or the connection is lost. Cancel-safe.
    pub(super) async fn aborted(&mut self) {
        match self {
            Self::Quic(quic) => quic.aborted().await,
            Self::Framed(framed) => framed.aborted().await,
        }
    }
}

impl StreamWriter {
    pub(super) async fn write_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), PipeError> {
        match self {
            Self::Quic(quic) => quic.write_chunks(chunks).await,
            Self::Framed(framed) => framed.write_chunks(chunks).await,
        }
    }

    pub(super) async fn finish(&mut self) -> Result<(), PipeError> {
        match self {
            Self::Quic(quic) => quic.finish(),
            Self::Framed(framed) => framed.finish().await,
        }
    }

    /// Ends when the other end will read nothing more, or is lost, before it has all.
    pub(super) fn left(&self) -> BoxFuture<'static, ()> {
        match self {
            Self::Quic(quic) => quic.left().boxed(),
            Self::Framed(framed) => framed.left().boxed(),
        }
    }
}
