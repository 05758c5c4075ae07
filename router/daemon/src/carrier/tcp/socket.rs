//! TLS on a TCP socket, for two directions that do not wait for each other.
//!
//! The records are rustls's; here they are read and written in as few system calls and copies as
//! its interface without buffers allows. What a thread works on lies in its own scratch room, so
//! that an idle connection holds no buffer.

use std::{
    cell::RefCell,
    fmt,
    io::ErrorKind,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{Buf, Bytes, BytesMut};
use rustls::{
    ClientConfig, ServerConfig,
    client::UnbufferedClientConnection,
    pki_types::ServerName,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, UnbufferedStatus},
};
use wormholes_proto::NodeId;

use super::wire::Wire;
use crate::{
    carrier::tls,
    pipe::{PipeError, broken},
    sources::SourcePlace,
};

/// Plaintext of one write, and ciphertext of one read.
const BATCH_BYTES: usize = 64 << 10;
/// What one record holds (RFC 8446, section 5.1).
const RECORD_BYTES: usize = 16 << 10;
/// Above this, a record of its own costs less than the copy.
const LARGE_BYTES: usize = 8 << 10;
/// Header, content type and tag of a record are 22 bytes; a batch has at most 21 of them.
const ROOM_BYTES: usize = BATCH_BYTES + RECORD_BYTES + 1024;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        records: vec![0; ROOM_BYTES],
        gathered: Vec::new(),
    });
}

/// A thread's own room.
struct Scratch {
    records: Vec<u8>,
    gathered: Vec<u8>,
}

/// A connection that speaks TLS. Both directions may be used at once.
pub(crate) struct TlsSocket {
    socket: Wire,
    state: Mutex<State>,
    /// A stranger's.
    place: Option<SourcePlace>,
}

struct State {
    session: Session,
    /// The beginning of a record: less than one.
    incoming: Vec<u8>,
    /// Opened, but not taken yet: what one read brought.
    opened: BytesMut,
    /// Sealed, but not sent yet: what one write made, and answers of TLS itself.
    outgoing: BytesMut,
    /// The other end says nothing more.
    ended: bool,
}

enum Session {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What a look at the socket brought.
pub(super) enum Look {
    Data(Bytes),
    End,
    Nothing,
}

/// Where a session stands.
#[derive(PartialEq, Eq)]
enum Step {
    Again,
    Handshaking,
    Ready,
    Ended,
}

impl TlsSocket {
    /// Does the handshake as the caller of `name`.
    ///
    /// # Errors
    /// [`PipeError`] when it breaks.
    pub(super) async fn call(
        socket: impl Into<Wire>,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, PipeError> {
        let session = UnbufferedClientConnection::new(config, name).map_err(tls_error)?;
        Self::shake_hands(socket.into(), Session::Client(session)).await
    }

    /// Does the handshake as the called.
    ///
    /// # Errors
    /// [`PipeError`] when it breaks.
    pub(super) async fn answer(
        socket: impl Into<Wire>,
        config: Arc<ServerConfig>,
    ) -> Result<Self, PipeError> {
        let session = UnbufferedServerConnection::new(config).map_err(tls_error)?;
        Self::shake_hands(socket.into(), Session::Server(session)).await
    }

    async fn shake_hands(socket: Wire, session: Session) -> Result<Self, PipeError> {
        socket.tune();
        let state = Mutex::new(State {
            session,
            incoming: Vec::new(),
            opened: BytesMut::new(),
            outgoing: BytesMut::new(),
            ended: false,
        });
        let shaking = Self {
            socket,
            state,
            place: None,
        };
        loop {
            let is_done = shaking.lock().is_ready()?;
            shaking.flush().await?;
            if is_done {
                return Ok(shaking);
            }
            let came = SCRATCH.with_borrow_mut(|scratch| {
                shaking
                    .lock()
                    .receive(&shaking.socket, &mut scratch.records)
            })?;
            match came {
                Some(0) => return Err(PipeError::Cut),
                Some(_) => {}
                None => shaking.readable().await?,
            }
        }
    }

    /// Keeps a place as long as the socket lives.
    pub(super) fn hold(&mut self, place: SourcePlace) {
        self.place = Some(place);
    }

    /// Who is at the other end.
    pub(super) fn peer_id(&self) -> Option<NodeId> {
        let state = self.lock();
        let keys = match &state.session {
            Session::Client(client) => client.peer_certificates(),
            Session::Server(server) => server.peer_certificates(),
        };
        keys.and_then(tls::peer_id)
    }

    /// Takes what has come; `None` when the other end says nothing more. Cancel-safe.
    ///
    /// # Errors
    /// [`PipeError`] when the connection broke, or what came is no TLS.
    pub(crate) async fn read(&self) -> Result<Option<Bytes>, PipeError> {
        // Two sockets that are always ready would keep a thread to themselves.
        tokio::task::consume_budget().await;
        loop {
            match self.look()? {
                Look::Data(data) => return Ok(Some(data)),
                Look::End => return Ok(None),
                Look::Nothing => self.readable().await?,
            }
        }
    }

    /// Takes what is there, without waiting for it.
    pub(super) fn look(&self) -> Result<Look, PipeError> {
        let mut state = self.lock();
        loop {
            if !state.opened.is_empty() {
                return Ok(Look::Data(state.opened.split().freeze()));
            }
            if state.ended {
                return Ok(Look::End);
            }
            let came = SCRATCH
                .with_borrow_mut(|scratch| state.receive(&self.socket, &mut scratch.records))?;
            match came {
                None => return Ok(Look::Nothing),
                Some(0) => state.ended = true,
                // Answers of TLS itself; what does not fit goes with the next write.
                Some(_) => drop(state.send(&self.socket)?),
            }
        }
    }

    /// Gives back what was taken too much: it is read next.
    pub(crate) fn unread(&self, data: &[u8]) {
        let mut state = self.lock();
        let after = state.opened.split();
        state.opened.extend_from_slice(data);
        state.opened.unsplit(after);
    }

    /// Sends `head` and all of `chunks`, and empties them.
    ///
    /// # Errors
    /// [`PipeError`] when the connection broke.
    pub(crate) async fn write(&self, head: &[u8], chunks: &mut [Bytes]) -> Result<(), PipeError> {
        let mut head = head;
        loop {
            self.flush().await?;
            if head.is_empty() && chunks.iter().all(Bytes::is_empty) {
                return Ok(());
            }
            SCRATCH.with_borrow_mut(|scratch| {
                let mut state = self.lock();
                let len = state.seal_batch(&mut head, chunks, scratch)?;
                let records = scratch.records.get(..len).unwrap_or_default();
                let sent = if state.outgoing.is_empty() {
                    try_write(&self.socket, records)?
                } else {
                    0
                };
                let rest = records.get(sent..).unwrap_or_default();
                state.outgoing.extend_from_slice(rest);
                Ok::<_, PipeError>(())
            })?;
        }
    }

    async fn flush(&self) -> Result<(), PipeError> {
        while !self.lock().send(&self.socket)? {
            let writable = self.socket.writable().await;
            writable.map_err(|error| broken(&error))?;
        }
        Ok(())
    }

    pub(super) async fn readable(&self) -> Result<(), PipeError> {
        let readable = self.socket.readable().await;
        readable.map_err(|error| broken(&error))
    }

    /// Ends when the connection has broken, or something has come. Cancel-safe.
    pub(crate) async fn stirred(&self) {
        self.socket.stirred().await;
    }

    /// Breaks it off: whoever reads or writes at either end learns of it.
    pub(super) fn shut(&self) {
        self.socket.shut();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether the handshake is done; what it has to say is in `outgoing` then.
    fn is_ready(&mut self) -> Result<bool, PipeError> {
        let mut incoming = std::mem::take(&mut self.incoming);
        let (used, step) = self.open_records(&mut incoming)?;
        incoming.drain(..used);
        self.incoming = incoming;
        Ok(step == Step::Ready)
    }

    /// Reads once and opens the records that are whole; the number of bytes that came.
    fn receive(&mut self, socket: &Wire, scratch: &mut [u8]) -> Result<Option<usize>, PipeError> {
        let begun = self.incoming.len();
        let (begin, room) = scratch.split_at_mut(begun.min(scratch.len()));
        begin.copy_from_slice(&self.incoming);
        let came = match socket.try_read(room.get_mut(..BATCH_BYTES).unwrap_or_default()) {
            Ok(came) => came,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(broken(&error)),
        };
        let records = scratch.get_mut(..begun + came).unwrap_or_default();
        self.opened.reserve(came);
        let (used, _) = self.open_records(records)?;
        self.incoming.clear();
        let rest = records.get(used..).unwrap_or_default();
        if is_whole_record(rest) {
            return Err(PipeError::Malformed("TLS"));
        }
        self.incoming.extend_from_slice(rest);
        if self.incoming.is_empty() {
            self.incoming = Vec::new();
        }
        Ok(Some(came))
    }

    /// Opens the records at the front; the number of bytes that they took, and what is next.
    fn open_records(&mut self, records: &mut [u8]) -> Result<(usize, Step), PipeError> {
        let mut used = 0;
        loop {
            let rest = records.get_mut(used..).unwrap_or_default();
            let (discard, step) = self.step(rest)?;
            used += discard;
            self.ended |= step == Step::Ended;
            if step != Step::Again {
                return Ok((used, step));
            }
        }
    }

    fn step(&mut self, records: &mut [u8]) -> Result<(usize, Step), PipeError> {
        let (opened, outgoing) = (&mut self.opened, &mut self.outgoing);
        match &mut self.session {
            Session::Client(client) => step(client.process_tls_records(records), opened, outgoing),
            Session::Server(server) => step(server.process_tls_records(records), opened, outgoing),
        }
    }

    /// Seals `head` and what follows, a batch at most, into the scratch room; its length.
    fn seal_batch(
        &mut self,
        head: &mut &[u8],
        chunks: &mut [Bytes],
        scratch: &mut Scratch,
    ) -> Result<usize, PipeError> {
        let Scratch { records, gathered } = scratch;
        let (mut sealed, mut left) = (0, BATCH_BYTES);
        let mut chunks = chunks.iter_mut().peekable();
        while left > 0 {
            gathered.clear();
            gathered.extend_from_slice(std::mem::take(head));
            while let Some(chunk) =
                chunks.next_if(|chunk| chunk.len() < LARGE_BYTES && gathered.len() < LARGE_BYTES)
            {
                gathered.extend_from_slice(&std::mem::take(chunk));
            }
            let large;
            let data = if gathered.is_empty() {
                let Some(chunk) = chunks.peek_mut() else {
                    break;
                };
                large = chunk.split_to(chunk.len().min(left));
                if chunk.is_empty() {
                    chunks.next();
                }
                &large[..]
            } else {
                &gathered[..]
            };
            left = left.saturating_sub(data.len());
            let room = records.get_mut(sealed..).unwrap_or_default();
            sealed += self.seal(data, room)?;
        }
        Ok(sealed)
    }

    /// What TLS itself wants to say first goes in front.
    fn seal(&mut self, data: &[u8], records: &mut [u8]) -> Result<usize, PipeError> {
        let mut len = 0;
        loop {
            let room = records.get_mut(len..).unwrap_or_default();
            let written = match &mut self.session {
                Session::Client(client) => seal(client.process_tls_records(&mut []), data, room),
                Session::Server(server) => seal(server.process_tls_records(&mut []), data, room),
            };
            let (written, is_done) = written?;
            len += written;
            if is_done {
                return Ok(len);
            }
        }
    }

    /// Sends as much as the system takes; whether that was all.
    fn send(&mut self, socket: &Wire) -> Result<bool, PipeError> {
        while !self.outgoing.is_empty() {
            match try_write(socket, &self.outgoing)? {
                0 => return Ok(false),
                sent => self.outgoing.advance(sent),
            }
        }
        self.outgoing = BytesMut::new();
        Ok(true)
    }
}

/// Does what a session wants next: what it opens and what it says is appended.
fn step<D>(
    status: UnbufferedStatus<'_, '_, D>,
    opened: &mut BytesMut,
    outgoing: &mut BytesMut,
) -> Result<(usize, Step), PipeError> {
    let mut discard = status.discard;
    let step = match status.state.map_err(tls_error)? {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record.map_err(tls_error)?;
                discard += record.discard;
                opened.extend_from_slice(record.payload);
            }
            Step::Again
        }
        ConnectionState::EncodeTlsData(mut message) => {
            // A handshake message of this node's is never longer.
            let mut bytes = vec![0; BATCH_BYTES];
            let len = message.encode(&mut bytes);
            let len = len.map_err(|error| PipeError::Broken(error.to_string()))?;
            outgoing.extend_from_slice(bytes.get(..len).unwrap_or_default());
            Step::Again
        }
        ConnectionState::TransmitTlsData(sent) => {
            sent.done();
            Step::Again
        }
        ConnectionState::BlockedHandshake => Step::Handshaking,
        ConnectionState::WriteTraffic(_) => Step::Ready,
        ConnectionState::PeerClosed | ConnectionState::Closed => Step::Ended,
        // Never offered; the enumeration may grow.
        ConnectionState::ReadEarlyData(_) | _ => return Err(PipeError::Malformed("TLS")),
    };
    Ok((discard, step))
}

/// Writes what a session has to say, at last `data`; its length, and whether that was `data`.
fn seal<D>(
    status: UnbufferedStatus<'_, '_, D>,
    data: &[u8],
    records: &mut [u8],
) -> Result<(usize, bool), PipeError> {
    match status.state.map_err(tls_error)? {
        ConnectionState::WriteTraffic(mut traffic) => {
            let len = traffic.encrypt(data, records);
            let len = len.map_err(|error| PipeError::Broken(error.to_string()))?;
            Ok((len, true))
        }
        ConnectionState::EncodeTlsData(mut message) => {
            let len = message.encode(records);
            let len = len.map_err(|error| PipeError::Broken(error.to_string()))?;
            Ok((len, false))
        }
        ConnectionState::TransmitTlsData(sent) => {
            sent.done();
            Ok((0, false))
        }
        // All that came was taken when it came; the enumeration may grow.
        ConnectionState::ReadTraffic(_)
        | ConnectionState::ReadEarlyData(_)
        | ConnectionState::PeerClosed
        | ConnectionState::Closed
        | ConnectionState::BlockedHandshake
        | _ => Err(PipeError::Reset),
    }
}

/// Such a one is left only where a message of the handshake came in parts, which nobody sends here;
/// rustls would want the parts again with each look.
fn is_whole_record(bytes: &[u8]) -> bool {
    let Some([_, _, _, high, low]) = bytes.first_chunk::<5>() else {
        return false;
    };
    bytes.len() >= 5 + usize::from(u16::from_be_bytes([*high, *low]))
}

fn try_write(socket: &Wire, bytes: &[u8]) -> Result<usize, PipeError> {
    match socket.try_write(bytes) {
        Ok(sent) => Ok(sent),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(broken(&error)),
    }
}

fn tls_error(error: rustls::Error) -> PipeError {
    tracing::debug!(%error, "TLS broken");
    // An alert is the other end's no.
    if matches!(error, rustls::Error::AlertReceived(_)) {
        return PipeError::Reset;
    }
    PipeError::Malformed("TLS")
}

impl fmt::Debug for TlsSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsSocket").field(&self.socket).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_whole_when_all_of_it_is_there() {
        for (bytes, is_whole) in [
            (&[][..], false),
            (&[23, 3, 3, 0], false),
            (&[23, 3, 3, 0, 2, 1], false),
            (&[23, 3, 3, 0, 2, 1, 2], true),
            (&[23, 3, 3, 0, 2, 1, 2, 3], true),
            (&[23, 3, 3, 1, 0, 1, 2], false),
        ] {
            assert_eq!(is_whole_record(bytes), is_whole, "{bytes:?}");
        }
    }
}
