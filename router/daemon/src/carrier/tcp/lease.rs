//! A connection of a link while a flow is on it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use wormholes_proto::tcp::{FrameReader, Part};

use super::{
    link::{Connection, Shared, TcpLink},
    socket::{Look, TlsSocket},
};
use crate::{carrier::OpenStream, pipe::PipeError};

/// Bytes of a flow that nobody wants any more, which are read to reach its end: less work than a
/// new connection.
const MAX_DRAINED_BYTES: usize = 256 << 10;
/// How long the end may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The direction that comes in.
const IN: u8 = 1;
/// The direction that goes out.
const OUT: u8 = 2;

/// A connection for one flow: after a good end it takes another one.
#[derive(Debug)]
pub(crate) struct Lease {
    connection: Arc<Connection>,
    link: Arc<TcpLink>,
    incoming: Mutex<Incoming>,
    /// Directions that ended well: bits of [`IN`] and [`OUT`].
    ended: AtomicU8,
    _open: OpenStream,
}

/// How far the direction that comes in was read.
#[derive(Debug, Default)]
struct Incoming {
    frames: FrameReader,
    /// Read, but not cut into frames yet.
    pending: Bytes,
}

impl Lease {
    pub(super) fn new(connection: Arc<Connection>, link: Arc<TcpLink>, open: OpenStream) -> Self {
        Self {
            connection,
            link,
            incoming: Mutex::default(),
            ended: AtomicU8::new(0),
            _open: open,
        }
    }

    pub(crate) fn socket(&self) -> &TlsSocket {
        self.connection.socket()
    }

    /// Takes what has come, at most `max` pieces; none at the end. Cancel-safe.
    ///
    /// # Errors
    /// [`PipeError`] when the connection broke, or what came are no frames.
    pub(crate) async fn read_parts(&self, max: usize) -> Result<Vec<Bytes>, PipeError> {
        let mut chunks = Vec::new();
        while !self.has_ended_in() && chunks.len() < max {
            let part = self.incoming().next()?;
            match part {
                Some(Part::Data(data)) => chunks.push(data),
                Some(Part::End) => {
                    self.incoming().give_back(self.socket());
                    self.ended.fetch_or(IN, Relaxed);
                }
                None if !chunks.is_empty() => break,
                None => {
                    let read = self.socket().read().await?;
                    self.incoming().pending = read.ok_or(PipeError::Reset)?;
                }
            }
        }
        Ok(chunks)
    }

    /// The direction that goes out ended well.
    pub(crate) fn ended_out(&self) {
        self.ended.fetch_or(OUT, Relaxed);
    }

    /// Whether the direction that comes in ended well.
    pub(crate) fn has_ended_in(&self) -> bool {
        self.ended.load(Relaxed) & IN != 0
    }

    fn incoming(&self) -> MutexGuard<'_, Incoming> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was sent to a good end has to arrive, and closing a socket on which something lies unread
/// takes it back: so the other end's end is read, though nobody wants what is before it. What did
/// not end well shall not look as if it had: its connection goes with it.
impl Drop for Lease {
    fn drop(&mut self) {
        let connection = Arc::clone(&self.connection);
        let shared = self.link.shared();
        if *self.ended.get_mut() & OUT == 0 {
            return connection.socket().shut();
        }
        let mut incoming = std::mem::take(&mut *self.incoming());
        let mut left = MAX_DRAINED_BYTES;
        let is_at_end = self.has_ended_in();
        match is_at_end || incoming.drain(connection.socket(), &mut left) == Ok(true) {
            true => shared.rest(connection),
            false => shared.spawn(drain(Arc::clone(shared), connection, incoming, left)),
        }
    }
}

impl Incoming {
    fn next(&mut self) -> Result<Option<Part>, PipeError> {
        let part = self.frames.handle_bytes(&mut self.pending);
        part.map_err(|_| PipeError::Malformed("frame"))
    }

    /// Whatever is behind an end belongs to the next flow.
    fn give_back(&mut self, socket: &TlsSocket) {
        socket.unread(&self.pending);
        self.pending = Bytes::new();
    }

    /// Reads what is there, and says whether that was the end; `left` bytes before it at most.
    fn drain(&mut self, socket: &TlsSocket, left: &mut usize) -> Result<bool, PipeError> {
        loop {
            match self.next()? {
                Some(Part::Data(data)) => {
                    *left = left.checked_sub(data.len()).ok_or(PipeError::Limit)?;
                }
                Some(Part::End) => {
                    self.give_back(socket);
                    return Ok(true);
                }
                None => match socket.look()? {
                    Look::Data(data) => self.pending = data,
                    Look::End => return Err(PipeError::Reset),
                    Look::Nothing => return Ok(false),
                },
            }
        }
    }
}

/// Waits for the end of a direction that nobody wants any more.
async fn drain(
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    mut incoming: Incoming,
    mut left: usize,
) {
    let socket = connection.socket();
    let end = async {
        while !incoming.drain(socket, &mut left)? {
            socket.readable().await?;
        }
        Ok::<_, PipeError>(())
    };
    match tokio::time::timeout(DRAIN_TIMEOUT, end).await {
        Ok(Ok(())) => shared.rest(connection),
        Ok(Err(_)) | Err(_) => connection.socket().shut(),
    }
}
