//! TCP ends of a pipe. An idle connection holds no buffer: one is taken when bytes wait.
//!
//! Between two of them bulk is spliced: see [`Piece`]. What comes in small amounts is copied, in
//! half as many system calls.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, ErrorKind, IoSlice},
    os::fd::AsFd,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{FutureExt, future::BoxFuture};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    time::Instant,
};

use super::{
    BATCH_CHUNKS, PipeError, READ_BYTES, broken,
    hold::{Ends, Held},
    splice::{self, Piece},
};

/// Below this, a new buffer costs less than the smaller reads.
const MIN_READ_BYTES: usize = 16 << 10;
/// A silent TCP connection is probed after this; programs keep theirs idle for hours.
const KEEPALIVE: Duration = Duration::from_secs(120);
/// Between probes, of which the system sends some nine.
const KEEPALIVE_RETRY: Duration = Duration::from_secs(15);

thread_local! {
    /// What says little is read here and copied: most flows never say enough for a buffer of their
    /// own, which would be the largest part of what they cost.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; MIN_READ_BYTES]);
}

pub(super) struct TcpReader {
    half: OwnedReadHalf,
    /// Of what says much.
    buffer: BytesMut,
    says_much: bool,
    /// So much came last that more is best taken as a piece.
    is_bulk: bool,
    can_splice: bool,
    /// Its ends are held back.
    shared: Option<Arc<Shared>>,
}

pub(super) struct TcpWriter {
    /// Taken when the direction ended well.
    half: Option<OwnedWriteHalf>,
    /// Its ends are held back.
    shared: Option<Arc<Shared>>,
}

/// What both directions look at, of a connection to something whose streams know no half-close.
struct Shared {
    ends: Ends,
    /// Something came.
    was_heard: AtomicBool,
    /// When the last was taken that this end said; before that, when the stream began.
    said: Mutex<Instant>,
    /// What lasts as long as the stream.
    held: Box<dyn Held>,
}

/// Both directions of a connection whose ends are held back; so much silence stands for an end.
pub(super) fn held(
    (reader, writer): (OwnedReadHalf, OwnedWriteHalf),
    silence: Duration,
    was_heard: bool,
    held: Box<dyn Held>,
) -> (TcpReader, TcpWriter) {
    let shared = Arc::new(Shared {
        ends: Ends::new(silence, silence),
        was_heard: was_heard.into(),
        said: Mutex::new(Instant::now()),
        held,
    });
    let reader = TcpReader {
        shared: Some(Arc::clone(&shared)),
        // A piece is waited for without an ear for silence.
        can_splice: false,
        ..TcpReader::new(reader)
    };
    let mut writer = TcpWriter::new(writer);
    writer.shared = Some(shared);
    (reader, writer)
}

impl Shared {
    fn says(&self) {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let said = *self.said.get_mut().unwrap_or_else(PoisonError::into_inner);
        let was_heard = self.was_heard.load(Relaxed);
        self.held.over((!was_heard).then(|| said.elapsed()));
    }
}

impl TcpReader {
    pub(super) fn new(half: OwnedReadHalf) -> Self {
        Self {
            half,
            buffer: BytesMut::new(),
            says_much: false,
            is_bulk: false,
            can_splice: true,
            shared: None,
        }
    }

    /// Takes what comes next as a piece; `None` when a read does better, or has to tell how it
    /// ended. Cancel-safe.
    pub(super) async fn read_piece(&mut self) -> Result<Option<Piece>, PipeError> {
        if !(self.is_bulk && self.can_splice) {
            return Ok(None);
        }
        let socket = self.half.as_ref();
        let filled = socket.async_io(Interest::READABLE, || Piece::fill(socket));
        match filled.await {
            Ok(piece) => {
                let bytes = piece.as_ref().map_or(0, Piece::bytes);
                self.is_bulk = bytes >= MIN_READ_BYTES;
                Ok(piece)
            }
            Err(error) if splice::is_unable(&error) => {
                self.can_splice = false;
                Ok(None)
            }
            Err(error) => Err(broken(&error)),
        }
    }

    pub(super) async fn read_chunk(&mut self) -> Result<Option<Bytes>, PipeError> {
        let chunk = match self.shared.clone() {
            // Boxed: other connections would hold room for it.
            Some(shared) => Box::pin(self.read_held(&shared)).await,
            None => self.read().await,
        };
        let chunk = chunk.map_err(|error| broken(&error))?;
        self.says_much |= chunk.len() >= MIN_READ_BYTES;
        self.is_bulk = chunk.len() >= READ_BYTES;
        Ok((!chunk.is_empty()).then_some(chunk))
    }

    async fn read(&mut self) -> io::Result<Bytes> {
        match self.says_much {
            true => self.read_much().await,
            false => poll_fn(|context| self.poll_scratch(context)).await,
        }
    }

    async fn read_held(&mut self, shared: &Shared) -> io::Result<Bytes> {
        let ends = &shared.ends;
        if ends.is_over() {
            return Ok(Bytes::new());
        }
        let chunk = tokio::select! {
            biased;
            chunk = self.read() => chunk?,
            () = ends.fell_silent() => Bytes::new(),
        };
        match chunk.is_empty() {
            true => ends.end(),
            false => shared.was_heard.store(true, Relaxed),
        }
        Ok(chunk)
    }

    /// Unlike a try, it leaves out the look for more after a read that found all there was.
    fn poll_scratch(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut read = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.half).poll_read(context, &mut read))?;
            Poll::Ready(Ok(Bytes::copy_from_slice(read.filled())))
        })
    }

    async fn read_much(&mut self) -> io::Result<Bytes> {
        loop {
            if self.buffer.capacity() >= MIN_READ_BYTES {
                match self.half.try_read_buf(&mut self.buffer) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    read => {
                        read?;
                        let chunk = self.buffer.split().freeze();
                        // What is left of a buffer keeps all of it.
                        if self.buffer.capacity() < MIN_READ_BYTES {
                            self.buffer = BytesMut::new();
                        }
                        return Ok(chunk);
                    }
                }
            }
            self.buffer = BytesMut::new();
            self.half.readable().await?;
            self.buffer = BytesMut::with_capacity(READ_BYTES);
        }
    }
}

impl TcpWriter {
    pub(super) fn new(half: OwnedWriteHalf) -> Self {
        Self {
            half: Some(half),
            shared: None,
        }
    }

    pub(super) async fn write_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), PipeError> {
        let half = self.half.as_mut().ok_or(PipeError::Cut)?;
        let mut rest = chunks;
        while !rest.is_empty() {
            let written = poll_fn(|context| {
                let mut slices = [IoSlice::new(&[]); BATCH_CHUNKS];
                for (slice, chunk) in slices.iter_mut().zip(rest.iter()) {
                    *slice = IoSlice::new(chunk);
                }
                let used = slices
                    .get(..rest.len().min(BATCH_CHUNKS))
                    .unwrap_or_default();
                Pin::new(&mut *half).poll_write_vectored(context, used)
            });
            let written = written.await.map_err(|error| broken(&error))?;
            if let Some(shared) = &self.shared {
                shared.says();
            }
            rest = advance(rest, written);
        }
        Ok(())
    }

    /// Sends on a part of `piece`, as soon as there is room, and tells how large it was.
    pub(super) async fn write_piece(&mut self, piece: &mut Piece) -> Result<u64, PipeError> {
        let half = self.half.as_ref().ok_or(PipeError::Cut)?;
        let socket = half.as_ref();
        let sent = socket.async_io(Interest::WRITABLE, || piece.drain(socket));
        let sent = sent.await.map_err(|error| broken(&error))?;
        if let Some(shared) = &self.shared {
            shared.says();
        }
        Ok(sent as u64)
    }

    pub(super) async fn finish(&mut self) -> Result<(), PipeError> {
        let ends = self.shared.as_ref().map(|shared| &shared.ends);
        if let Some(ends) = ends.filter(|ends| !ends.is_over()) {
            ends.say_all();
            return Ok(());
        }
        match self.half.take() {
            Some(mut half) => half.shutdown().await.map_err(|error| broken(&error)),
            None => Ok(()),
        }
    }

    /// Ends when the stream behind the connection is gone; a TCP connection alone never tells.
    pub(super) fn left(&self) -> BoxFuture<'static, ()> {
        match &self.shared {
            Some(shared) => shared.ends.left().boxed(),
            None => std::future::pending().boxed(),
        }
    }
}

/// A direction that did not end well is reset: a FIN would pass for its end. One whose end was held back
/// has it now.
impl Drop for TcpWriter {
    fn drop(&mut self) {
        let shared = self.shared.as_ref();
        let has_said_all = shared.is_some_and(|shared| shared.ends.has_said_all());
        if let Some(half) = self.half.take().filter(|_| !has_said_all) {
            let _ = socket2::SockRef::from(half.as_ref()).set_linger(Some(Duration::ZERO));
            half.forget();
        }
    }
}

/// For a TCP connection, or for a listener, whose connections have its options (Linux; tcp(7)): one
/// call in the place of four for each of them.
pub(crate) fn set_options(socket: &impl AsFd) {
    // Small messages go at once; without it they only go later.
    let _ = socket2::SockRef::from(socket).set_tcp_nodelay(true);
    keep_alive(socket);
}

/// An end that vanished without a word gives its place back, if late.
pub(crate) fn keep_alive(socket: &impl AsFd) {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE_RETRY);
    let _ = socket2::SockRef::from(socket).set_tcp_keepalive(&keepalive);
}

/// Drops what was written from the front; empty chunks at the front go too.
fn advance(chunks: &mut [Bytes], mut written: usize) -> &mut [Bytes] {
    let mut whole = 0;
    for chunk in chunks.iter_mut() {
        if written < chunk.len() {
            chunk.advance(written);
            break;
        }
        written -= chunk.len();
        whole += 1;
    }
    chunks.get_mut(whole..).unwrap_or_default()
}
