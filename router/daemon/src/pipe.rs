//! The two directions of a flow, whatever carries them, and the copy between two of them.
//!
//! A pipe is a closed set of kinds behind four verbs: read chunks, write chunks, finish (this
//! direction ends well; the other goes on) and abort (both ends learn that it broke). Dropping a
//! writer that did not finish aborts it: an end that nobody meant never looks like a good one. A UDP
//! flow has a [`DatagramPipe`] in its place, with the same verbs.

mod allowance;
mod cells;
mod copy;
mod datagrams;
mod error;
mod framed;
mod handover;
mod hold;
mod memory;
mod pace;
mod quic;
mod sealed;
mod splice;
mod stream;
mod tcp;
mod toll;
mod tor;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use wormholes_proto::{
    Answer, MAX_ANSWER_BYTES, MAX_OPEN_BYTES, Open, Transport, decode_answer, decode_open,
    encode_answer, encode_open,
    onion::MessageKind,
    sealed::{Opener, Sealer, SessionId},
};

pub(crate) use cells::{CellOpener, CellSealer, CellTurner};
pub(crate) use copy::watch;
pub use copy::{CopyEnd, CopyLimits, CopyStop, FlowBytes, Witness, copy};
pub use datagrams::DatagramPipe;
pub(crate) use datagrams::{ProgramEnd, Queue, Room, enlarge_buffer};
pub use error::PipeError;
pub(crate) use error::broken;
pub(crate) use handover::Handover;
pub(crate) use hold::Held;
pub use memory::MemoryEnd;
pub use pace::Pace;
pub(crate) use tcp::{keep_alive, set_options};
pub(crate) use toll::Toll;

use cells::{HopReader, OnionReader, OnionWriter};
use memory::{MemoryReader, MemoryWriter};
use sealed::{SealedReader, SealedWriter};
use stream::{StreamReader, StreamWriter};
use tcp::{TcpReader, TcpWriter};
use tor::{TorReader, TorWriter};

use crate::{
    carrier::{Lease, OpenStream},
    counters::Counters,
    tor::Counted,
};

/// Chunks that one read may yield. QUIC gives a chunk per packet: 32 of them make 45 KiB for one
/// system call.
const BATCH_CHUNKS: usize = 32;
/// Read sizes of TCP and memory pipes: larger ones gained nothing on loopback.
const READ_BYTES: usize = 64 << 10;

/// Both directions.
#[derive(Debug)]
pub struct Pipe {
    /// What comes in.
    pub reader: PipeReader,
    /// What goes out.
    pub writer: PipeWriter,
}

/// One side of a flow, as its transport wants it.
#[derive(Debug)]
pub enum Side {
    /// Of a TCP flow.
    Stream(Pipe),
    /// Of a UDP flow.
    Datagrams(DatagramPipe),
}

/// The direction that comes in.
pub struct PipeReader {
    source: Source,
    /// Read, but not taken yet.
    ahead: Bytes,
}

/// The direction that goes out.
pub struct PipeWriter {
    sink: Sink,
}

enum Source {
    Tcp(TcpReader),
    Stream(StreamReader),
    Sealed(Box<SealedReader>),
    Onion(Box<OnionReader>),
    Hop(Box<HopReader>),
    Memory(MemoryReader),
    Tor(Box<TorReader>),
}

enum Sink {
    Tcp(TcpWriter),
    Stream(StreamWriter),
    Sealed(Box<SealedWriter>),
    Onion(Box<OnionWriter>),
    Memory(MemoryWriter),
    Tor(Box<TorWriter>),
}

impl Side {
    /// What comes and goes on `pipe`, a stream between nodes, for a flow of `transport`.
    pub(crate) fn between_nodes(
        pipe: Pipe,
        transport: Transport,
        counters: &Arc<Counters>,
    ) -> Self {
        match transport {
            Transport::Tcp => Self::Stream(pipe),
            Transport::Udp => Self::Datagrams(DatagramPipe::between_nodes(pipe, counters)),
        }
    }

    /// Answers the OPEN that the stream under it began with.
    ///
    /// # Errors
    /// [`PipeError`] when nobody listens, or there is no stream between nodes.
    pub(crate) async fn send_answer(&mut self, answer: &Answer) -> Result<(), PipeError> {
        let writer = match self {
            Self::Stream(pipe) => Some(&mut pipe.writer),
            Self::Datagrams(datagrams) => datagrams.writer.under(),
        };
        writer.ok_or(PipeError::Cut)?.send_answer(answer).await
    }
}

/// Copies `near` (the asker's side) and `far` (the target's) into each other until the flow ends.
/// Dropping the future aborts both.
pub(crate) async fn join(near: Side, far: Side, limits: &CopyLimits, bytes: &FlowBytes) -> CopyEnd {
    match (near, far) {
        (Side::Stream(near), Side::Stream(far)) => copy(near, far, limits, bytes).await,
        (Side::Datagrams(near), Side::Datagrams(far)) => {
            datagrams::copy(near, far, limits, bytes).await
        }
        (Side::Stream(_), Side::Datagrams(_)) | (Side::Datagrams(_), Side::Stream(_)) => {
            CopyEnd::unlike()
        }
    }
}

impl Pipe {
    /// A TCP connection.
    pub fn tcp(stream: TcpStream) -> Self {
        Self::tcp_ahead(stream, Bytes::new())
    }

    /// A TCP connection from which `ahead` was read already.
    pub fn tcp_ahead(stream: TcpStream, ahead: Bytes) -> Self {
        set_options(&stream);
        Self::accepted(stream, ahead)
    }

    /// The same of a connection that a listener took for which [`set_options`] was called.
    pub(crate) fn accepted(stream: TcpStream, ahead: Bytes) -> Self {
        let (reader, writer) = stream.into_split();
        Self::new(
            Source::Tcp(TcpReader::new(reader)),
            Sink::Tcp(TcpWriter::new(writer)),
            ahead,
        )
    }

    /// A TCP connection to something whose streams know no half-close, as I2P's; `ahead` was read from
    /// it already. Who has said all is held to have ended when the other end has, or was silent for so long.
    /// `held` lasts as long as the pipe.
    pub(crate) fn tcp_held(
        stream: TcpStream,
        ahead: Bytes,
        silence: Duration,
        held: Box<dyn Held>,
    ) -> Self {
        set_options(&stream);
        let was_heard = !ahead.is_empty();
        let (reader, writer) = tcp::held(stream.into_split(), silence, was_heard, held);
        Self::new(Source::Tcp(reader), Sink::Tcp(writer), ahead)
    }

    /// A stream in memory, and its other end.
    pub fn memory() -> (Self, MemoryEnd) {
        let (reader, writer, far) = memory::pair();
        let near = Self::new(Source::Memory(reader), Sink::Memory(writer), Bytes::new());
        (near, far)
    }

    /// A stream that this node opened through Tor, until `cut` is called.
    pub(crate) fn tor(
        stream: wormholes_tor::Stream,
        cut: CancellationToken,
        counted: Counted,
    ) -> Self {
        Self::through_tor(tor::opened(stream, cut, counted))
    }

    /// A stream that somebody opened to an onion service here.
    pub(crate) fn tor_hosted(
        stream: wormholes_tor::Stream,
        cut: CancellationToken,
        counted: Counted,
    ) -> Self {
        Self::through_tor(tor::hosted(stream, cut, counted))
    }

    fn through_tor((reader, writer): (TorReader, TorWriter)) -> Self {
        let (source, sink) = (Source::Tor(Box::new(reader)), Sink::Tor(Box::new(writer)));
        Self::new(source, sink, Bytes::new())
    }

    pub(crate) fn quic(send: quinn::SendStream, recv: quinn::RecvStream, open: OpenStream) -> Self {
        Self::between_nodes(stream::quic(send, recv, open))
    }

    /// A flow on a connection of the TCP carrier.
    pub(crate) fn framed(lease: Lease) -> Self {
        Self::between_nodes(stream::framed(lease))
    }

    fn between_nodes((reader, writer): (StreamReader, StreamWriter)) -> Self {
        Self::new(Source::Stream(reader), Sink::Stream(writer), Bytes::new())
    }

    /// Seals a stream between nodes for a session, which may go on by another one; `None` for any
    /// other pipe.
    pub(crate) fn sealed(self, session: SessionId, sealer: Sealer, opener: Opener) -> Option<Self> {
        let (Source::Stream(recv), Sink::Stream(send)) = (self.reader.source, self.writer.sink)
        else {
            return None;
        };
        let (recv, send) = ((recv, &self.reader.ahead[..], opener), (send, sealer));
        let (reader, writer) = sealed::ends(session, recv, send);
        Some(Self::new(
            Source::Sealed(Box::new(reader)),
            Sink::Sealed(Box::new(writer)),
            Bytes::new(),
        ))
    }

    /// Makes a stream between nodes one end of an onion circuit, whose cells `toll` is due on; `None` for
    /// any other pipe.
    pub(crate) fn onion(
        self,
        sealer: CellSealer,
        opener: CellOpener,
        toll: Option<Toll>,
    ) -> Option<Self> {
        let (Source::Stream(recv), Sink::Stream(send)) = (self.reader.source, self.writer.sink)
        else {
            return None;
        };
        let reader = OnionReader::new(recv, &self.reader.ahead, opener, toll.clone());
        let writer = OnionWriter::new(send, sealer, toll);
        Some(Self::new(
            Source::Onion(Box::new(reader)),
            Sink::Onion(Box::new(writer)),
            Bytes::new(),
        ))
    }

    /// Changes every cell that comes out of a stream between nodes; `None` for any other pipe.
    pub(crate) fn turning(self, turner: CellTurner) -> Option<Self> {
        let Source::Stream(recv) = self.reader.source else {
            return None;
        };
        let reader = HopReader::new(recv, &self.reader.ahead, turner);
        Some(Self {
            reader: PipeReader {
                source: Source::Hop(Box::new(reader)),
                ahead: Bytes::new(),
            },
            writer: self.writer,
        })
    }

    fn new(source: Source, sink: Sink, ahead: Bytes) -> Self {
        Self {
            reader: PipeReader { source, ahead },
            writer: PipeWriter { sink },
        }
    }
}

impl PipeReader {
    /// Takes what has come; `None` when this direction ended well. Cancel-safe.
    ///
    /// # Errors
    /// [`PipeError`] when it broke.
    pub async fn read_chunk(&mut self) -> Result<Option<Bytes>, PipeError> {
        if !self.ahead.is_empty() {
            return Ok(Some(self.take_ahead()));
        }
        match &mut self.source {
            Source::Tcp(tcp) => tcp.read_chunk().await,
            Source::Stream(stream) => stream.read_chunk().await,
            Source::Sealed(sealed) => sealed.read_chunk().await,
            Source::Onion(onion) => onion.read_chunk().await,
            Source::Hop(hop) => hop.read_chunk().await,
            Source::Memory(memory) => memory.read_chunk().await,
            Source::Tor(tor) => tor.read_chunk().await,
        }
    }

    /// Takes what has come in pieces, at most [`BATCH_CHUNKS`]; none when this direction ended
    /// well. Cancel-safe.
    ///
    /// # Errors
    /// [`PipeError`] when it broke.
    pub(crate) async fn read_chunks(&mut self) -> Result<Vec<Bytes>, PipeError> {
        if let Source::Stream(stream) = &mut self.source
            && self.ahead.is_empty()
        {
            return stream.read_chunks().await;
        }
        Ok(self.read_chunk().await?.into_iter().collect())
    }

    /// Takes what came together with something that was read before; often nothing.
    pub(crate) fn take_ahead(&mut self) -> Bytes {
        std::mem::take(&mut self.ahead)
    }

    /// Reads exactly `len` bytes.
    ///
    /// # Errors
    /// [`PipeError::Cut`] when it ends before.
    pub async fn read_exact(&mut self, len: usize) -> Result<Bytes, PipeError> {
        if self.ahead.len() >= len {
            return Ok(self.ahead.split_to(len));
        }
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let mut chunk = self.read_chunk().await?.ok_or(PipeError::Cut)?;
            let missing = len - bytes.len();
            if chunk.len() > missing {
                self.ahead = chunk.split_off(missing);
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }

    /// Reads a frame that its length (u16) precedes; a frame of more than `max_len` bytes is
    /// refused before it is read.
    ///
    /// # Errors
    /// [`PipeError`] when it is cut or too long.
    pub(crate) async fn read_frame(&mut self, max_len: usize) -> Result<Bytes, PipeError> {
        let head = self.read_exact(2).await?;
        let len = head
            .iter()
            .fold(0, |len, byte| len << 8 | usize::from(*byte));
        if len > max_len {
            return Err(PipeError::Malformed("frame too long"));
        }
        self.read_exact(len).await
    }

    /// Reads the OPEN that a stream begins with.
    ///
    /// # Errors
    /// [`PipeError`]; what was read is to be refused as malformed.
    pub(crate) async fn read_open(&mut self) -> Result<Open, PipeError> {
        let frame = match &mut self.source {
            Source::Onion(onion) => onion.read_greeting(MessageKind::Open).await?,
            Source::Tcp(_)
            | Source::Stream(_)
            | Source::Sealed(_)
            | Source::Hop(_)
            | Source::Memory(_)
            | Source::Tor(_) => self.read_frame(MAX_OPEN_BYTES - 2).await?,
        };
        decode_open(&frame).map_err(|_| PipeError::Malformed("request"))
    }

    /// Reads the answer to an OPEN.
    ///
    /// # Errors
    /// [`PipeError`] when there is none.
    pub(crate) async fn read_answer(&mut self) -> Result<Answer, PipeError> {
        let frame = match &mut self.source {
            Source::Onion(onion) => onion.read_greeting(MessageKind::Answer).await?,
            Source::Tcp(_)
            | Source::Stream(_)
            | Source::Sealed(_)
            | Source::Hop(_)
            | Source::Memory(_)
            | Source::Tor(_) => self.read_frame(MAX_ANSWER_BYTES - 2).await?,
        };
        decode_answer(&frame).map_err(|_| PipeError::Malformed("answer"))
    }

    /// Reads the answer to an OPEN that yields the stream and nothing else.
    ///
    /// # Errors
    /// [`PipeError`] when there is none, or when it says more than it may.
    pub(crate) async fn read_grant(&mut self) -> Result<Answer, PipeError> {
        match self.read_answer().await? {
            Answer::Accepted(body) if !body.is_empty() => Err(PipeError::Malformed("answer")),
            answer @ (Answer::Accepted(_) | Answer::Refused(_)) => Ok(answer),
        }
    }

    /// Ends when the other end broke the stream off: nobody waits for an answer on it. Only streams
    /// between nodes tell. Cancel-safe.
    pub(crate) async fn aborted(&mut self) {
        match &mut self.source {
            Source::Stream(stream) => stream.aborted().await,
            Source::Sealed(sealed) => sealed.aborted().await,
            Source::Onion(onion) => onion.aborted().await,
            Source::Hop(_) | Source::Tcp(_) | Source::Memory(_) | Source::Tor(_) => {
                std::future::pending().await
            }
        }
    }

    /// Whether what is not read here takes room that other streams share.
    pub(crate) fn shares_room(&self) -> bool {
        match self.source {
            Source::Stream(_) | Source::Sealed(_) | Source::Onion(_) | Source::Hop(_) => true,
            Source::Tcp(_) | Source::Memory(_) | Source::Tor(_) => false,
        }
    }
}

impl PipeWriter {
    /// Sends `chunk`, as soon as there is room.
    ///
    /// # Errors
    /// [`PipeError`] when the direction broke.
    pub async fn write_chunk(&mut self, chunk: Bytes) -> Result<(), PipeError> {
        self.write_chunks(&mut [chunk]).await
    }

    /// Sends all of `chunks`, and empties them.
    ///
    /// # Errors
    /// [`PipeError`] when the direction broke.
    pub(crate) async fn write_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), PipeError> {
        match &mut self.sink {
            Sink::Tcp(tcp) => tcp.write_chunks(chunks).await,
            Sink::Stream(stream) => stream.write_chunks(chunks).await,
            Sink::Sealed(sealed) => sealed.write_chunks(chunks).await,
            Sink::Onion(onion) => onion.write_chunks(chunks).await,
            Sink::Memory(memory) => memory.write_chunks(chunks).await,
            Sink::Tor(tor) => tor.write_chunks(chunks).await,
        }
    }

    /// Sends what a stream begins with.
    ///
    /// # Errors
    /// [`PipeError`] when the direction broke.
    pub(crate) async fn send_open(&mut self, open: &Open) -> Result<(), PipeError> {
        self.greet(MessageKind::Open, encode_open(open)).await
    }

    /// Answers an OPEN.
    ///
    /// # Errors
    /// [`PipeError`] when the direction broke.
    pub(crate) async fn send_answer(&mut self, answer: &Answer) -> Result<(), PipeError> {
        self.greet(MessageKind::Answer, encode_answer(answer)).await
    }

    async fn greet(&mut self, kind: MessageKind, message: Vec<u8>) -> Result<(), PipeError> {
        match &mut self.sink {
            Sink::Onion(onion) => onion.send_greeting(kind, &message).await,
            Sink::Tcp(_) | Sink::Stream(_) | Sink::Sealed(_) | Sink::Memory(_) | Sink::Tor(_) => {
                self.write_chunk(message.into()).await
            }
        }
    }

    /// Pads what is sent from here on to multiples of `pad_bytes`, when this kind can.
    fn set_padding(&mut self, pad_bytes: u32) {
        match &mut self.sink {
            Sink::Sealed(sealed) => sealed.set_padding(pad_bytes),
            Sink::Onion(onion) => onion.set_padding(pad_bytes),
            Sink::Tcp(_) | Sink::Stream(_) | Sink::Memory(_) | Sink::Tor(_) => {}
        }
    }

    /// Ends this direction well.
    ///
    /// # Errors
    /// [`PipeError`] when it broke before.
    pub async fn finish(&mut self) -> Result<(), PipeError> {
        match &mut self.sink {
            Sink::Tcp(tcp) => tcp.finish().await,
            Sink::Stream(stream) => stream.finish().await,
            Sink::Sealed(sealed) => sealed.finish().await,
            Sink::Onion(onion) => onion.finish().await,
            Sink::Memory(memory) => memory.finish().await,
            Sink::Tor(tor) => tor.finish().await,
        }
    }

    /// Ends when the other end wants nothing more of what is due. A TCP connection alone never tells.
    pub(crate) fn left(&self) -> BoxFuture<'static, ()> {
        match &self.sink {
            Sink::Tcp(tcp) => tcp.left(),
            Sink::Stream(stream) => stream.left(),
            Sink::Sealed(sealed) => sealed.left(),
            Sink::Onion(onion) => onion.left(),
            Sink::Memory(memory) => memory.left().boxed(),
            Sink::Tor(tor) => tor.left().boxed(),
        }
    }

    /// Ends when what carries the stream is stopped here, as only Tor is, whatever anybody waits for.
    pub(crate) fn cut(&self) -> BoxFuture<'static, ()> {
        match &self.sink {
            Sink::Tor(tor) => tor.cut().boxed(),
            Sink::Tcp(_) | Sink::Stream(_) | Sink::Sealed(_) | Sink::Onion(_) | Sink::Memory(_) => {
                std::future::pending().boxed()
            }
        }
    }

    /// Breaks this direction off, so that the other end learns that something is missing. An end
    /// in memory only sees its stream end.
    pub fn abort(self) {
        // Writers that did not finish abort when dropped.
        drop(self);
    }
}

impl fmt::Debug for PipeReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.source {
            Source::Tcp(_) => "tcp",
            Source::Stream(_) => "stream",
            Source::Sealed(_) => "sealed",
            Source::Onion(_) => "onion",
            Source::Hop(_) => "hop",
            Source::Memory(_) => "memory",
            Source::Tor(_) => "tor",
        };
        f.debug_tuple("PipeReader").field(&kind).finish()
    }
}

impl fmt::Debug for PipeWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.sink {
            Sink::Tcp(_) => "tcp",
            Sink::Stream(_) => "stream",
            Sink::Sealed(_) => "sealed",
            Sink::Onion(_) => "onion",
            Sink::Memory(_) => "memory",
            Sink::Tor(_) => "tor",
        };
        f.debug_tuple("PipeWriter").field(&kind).finish()
    }
}
