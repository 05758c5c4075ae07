//! Moves bulk between two TCP sockets inside the kernel, where its bytes stay:
//! socket -> kernel pipe -> socket, by splice(2).
//!
//! A piece is what one kernel pipe holds. The pipe is taken when bytes wait, and given back when
//! they have gone on: a flow in which nothing moves holds none. What its receiver does not take for
//! a while is parked in memory, and goes on from there.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::{Bytes, BytesMut};
use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};
use tokio::net::TcpStream;

/// What a piece holds at most; as much as anyone may ask for (`fs.pipe-max-size`). A quarter costs
/// a third more CPU for each byte, and 64 KiB as much as copies do.
const PIECE_BYTES: usize = 1 << 20;
/// Kernel pipes that exist at most; a direction that finds none copies. A user gets no more of that
/// size (`fs.pipe-user-pages-soft`), and smaller ones gain nothing.
const MAX_PIPES: usize = 64;
/// Empty ones that are kept; one that comes back beyond is closed.
const MAX_KEPT: usize = 16;

/// Bytes that are parked at once; what is beyond stays in its kernel pipe.
const MAX_PARKED_BYTES: usize = 64 << 20;

static PARKED_BYTES: AtomicUsize = AtomicUsize::new(0);
static POOL: Pool = Pool::new(MAX_PIPES, MAX_KEPT);

/// Bytes on their way between two sockets. Dropped, they are lost.
#[derive(Debug)]
pub(super) struct Piece {
    pool: &'static Pool,
    /// `None` only while it is dropped.
    pipe: Option<KernelPipe>,
    bytes: usize,
}

/// What was a piece.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) bytes: Bytes,
    _place: ParkingPlace,
}

/// Room for so many parked bytes, until dropped.
#[derive(Debug)]
struct ParkingPlace(usize);

#[derive(Debug)]
struct KernelPipe {
    out: OwnedFd,
    into: OwnedFd,
}

#[derive(Debug)]
struct Pool {
    pipes: Mutex<Pipes>,
    max_pipes: usize,
    max_kept: usize,
}

#[derive(Debug)]
struct Pipes {
    kept: Vec<KernelPipe>,
    /// Those in pieces too.
    existing: usize,
}

impl Piece {
    /// Takes what waits at `from`. `None`: a read has to tell, since it has ended or there is no
    /// kernel pipe.
    ///
    /// # Errors
    /// Those of the socket, `WouldBlock` among them; then nothing was taken.
    pub(super) fn fill(from: &TcpStream) -> io::Result<Option<Self>> {
        let Some(mut piece) = POOL.take() else {
            return Ok(None);
        };
        // The kernel pipe is empty: it is the socket that blocks.
        piece.bytes = splice(from, None, &piece.pipe()?.into, None, PIECE_BYTES, flags())?;
        Ok((piece.bytes > 0).then_some(piece))
    }

    /// Bytes that have yet to go on.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sends on what `into` has room for, and tells how much that was.
    ///
    /// # Errors
    /// Those of the socket, `WouldBlock` among them; then nothing went.
    pub(super) fn drain(&mut self, into: &TcpStream) -> io::Result<usize> {
        let sent = splice(&self.pipe()?.out, None, into, None, self.bytes, flags())?;
        if sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.bytes = self.bytes.saturating_sub(sent);
        Ok(sent)
    }

    /// Takes the bytes out of the kernel pipe, so that other flows may have it; `None` when too much
    /// is parked.
    ///
    /// # Errors
    /// Those of the kernel pipe.
    pub(super) fn park(&mut self) -> io::Result<Option<Parked>> {
        let Some(place) = ParkingPlace::take(self.bytes) else {
            return Ok(None);
        };
        let mut bytes = BytesMut::zeroed(self.bytes);
        let mut rest = &mut bytes[..];
        while !rest.is_empty() {
            let len = rustix::io::read(&self.pipe()?.out, &mut *rest)?;
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.bytes -= len;
            rest = rest.get_mut(len..).unwrap_or_default();
        }
        Ok(Some(Parked {
            bytes: bytes.freeze(),
            _place: place,
        }))
    }

    fn pipe(&self) -> io::Result<&KernelPipe> {
        let pipe = self.pipe.as_ref();
        pipe.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

/// A kernel pipe in which bytes were left must not bring them to another flow.
impl Drop for Piece {
    fn drop(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            self.pool.give_back(pipe, self.bytes == 0);
        }
    }
}

impl ParkingPlace {
    fn take(bytes: usize) -> Option<Self> {
        let fits = |parked: usize| {
            let parked = parked.checked_add(bytes)?;
            (parked <= MAX_PARKED_BYTES).then_some(parked)
        };
        let taken = PARKED_BYTES.fetch_update(Relaxed, Relaxed, fits);
        taken.ok().map(|_| Self(bytes))
    }
}

impl Drop for ParkingPlace {
    fn drop(&mut self) {
        PARKED_BYTES.fetch_sub(self.0, Relaxed);
    }
}

impl KernelPipe {
    fn open() -> io::Result<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A user with many pipes gets no larger ones: this one moves smaller pieces.
        let _ = fcntl_setpipe_size(&into, PIECE_BYTES);
        Ok(Self { out, into })
    }
}

impl Pool {
    const fn new(max_pipes: usize, max_kept: usize) -> Self {
        Self {
            pipes: Mutex::new(Pipes {
                kept: Vec::new(),
                existing: 0,
            }),
            max_pipes,
            max_kept,
        }
    }

    /// An empty kernel pipe; `None` when there are too many, or the system gives no more.
    fn take(&'static self) -> Option<Piece> {
        let mut pipes = self.lock();
        let pipe = match pipes.kept.pop() {
            Some(pipe) => pipe,
            None if pipes.existing < self.max_pipes => {
                let pipe = KernelPipe::open().ok()?;
                pipes.existing += 1;
                pipe
            }
            None => return None,
        };
        Some(Piece {
            pool: self,
            pipe: Some(pipe),
            bytes: 0,
        })
    }

    fn give_back(&self, pipe: KernelPipe, is_empty: bool) {
        let mut pipes = self.lock();
        if is_empty && pipes.kept.len() < self.max_kept {
            pipes.kept.push(pipe);
        } else {
            pipes.existing = pipes.existing.saturating_sub(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pipes> {
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether `error` says that a socket or a sandbox has no splice(2), rather than how the
/// connection fares.
pub(super) fn is_unable(error: &io::Error) -> bool {
    let unable = [Errno::INVAL, Errno::NOSYS, Errno::PERM];
    Errno::from_io_error(error).is_some_and(|errno| unable.contains(&errno))
}

fn flags() -> SpliceFlags {
    SpliceFlags::NONBLOCK | SpliceFlags::MOVE
}

#[cfg(test)]
mod tests;
