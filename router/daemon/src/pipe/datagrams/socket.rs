//! UDP sockets as ends of a flow. An idle one holds no buffer.

use std::{
    cell::RefCell,
    io::{self, ErrorKind},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use tokio::net::UdpSocket;

use super::{super::broken, Batch, PipeError, ProgramEnd};
use crate::counters::Counters;

/// A burst of 500 datagrams of a QUIC sender, each of which the system counts with overhead.
const SOCKET_BUFFER_BYTES: usize = 1 << 20;
/// No datagram is longer.
const SCRATCH_BYTES: usize = 1 << 16;

thread_local! {
    /// What is read comes here first: how long it is, only the read tells.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH_BYTES]);
}

pub(crate) struct SocketReader {
    socket: Arc<UdpSocket>,
}

pub(crate) struct SocketWriter {
    socket: Arc<UdpSocket>,
    counters: Arc<Counters>,
}

/// Sends to a program on a socket that others share.
pub(crate) struct ProgramWriter {
    end: ProgramEnd,
    counters: Arc<Counters>,
}

impl SocketReader {
    pub(super) fn new(socket: Arc<UdpSocket>) -> Self {
        Self { socket }
    }

    pub(super) async fn read_datagrams(&mut self) -> Result<Vec<Bytes>, PipeError> {
        loop {
            let ready = self.socket.readable().await;
            ready.map_err(|error| broken(&error))?;
            let mut found = Batch::default();
            while !found.is_full() {
                match receive(&self.socket) {
                    Ok(datagram) => found.push(datagram),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if is_hearsay(&error) => {}
                    Err(error) => return Err(broken(&error)),
                }
            }
            let found = found.into_vec();
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }
}

impl SocketWriter {
    pub(super) fn new(socket: Arc<UdpSocket>, counters: Arc<Counters>) -> Self {
        Self { socket, counters }
    }

    pub(super) async fn write_datagrams(&mut self, datagrams: &[Bytes]) -> Result<(), PipeError> {
        for datagram in datagrams {
            let mut sent = self.socket.send(datagram).await;
            // What was heard of the datagram before kept this one from being sent.
            if sent.as_ref().is_err_and(is_hearsay) {
                sent = self.socket.send(datagram).await;
            }
            count_unsent(sent, &self.counters);
        }
        Ok(())
    }
}

impl ProgramWriter {
    pub(super) fn new(end: ProgramEnd, counters: Arc<Counters>) -> Self {
        Self { end, counters }
    }

    pub(super) async fn write_datagrams(&mut self, datagrams: &[Bytes]) -> Result<(), PipeError> {
        let ProgramEnd {
            socket,
            program,
            head,
            ..
        } = &self.end;
        for datagram in datagrams {
            let sent = if head.is_empty() {
                socket.send_to(datagram, program).await
            } else {
                let whole = [&head[..], datagram].concat();
                socket.send_to(&whole, program).await
            };
            count_unsent(sent, &self.counters);
        }
        Ok(())
    }
}

/// Who reads no more wants no more.
impl Drop for ProgramWriter {
    fn drop(&mut self) {
        self.end.queue.close();
    }
}

/// Lets a burst wait in the system: its default holds some 90 datagrams of a QUIC sender. As far as
/// the system lets: beyond net.core.rmem_max only root may go.
pub(crate) fn enlarge_buffer(socket: &UdpSocket) {
    use rustix::net::sockopt::set_socket_recv_buffer_size_force as force;
    if force(socket, SOCKET_BUFFER_BYTES).is_err() {
        let socket = socket2::SockRef::from(socket);
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    }
}

fn receive(socket: &UdpSocket) -> io::Result<Bytes> {
    SCRATCH.with_borrow_mut(|scratch| {
        let len = socket.try_recv(scratch)?;
        Ok(Bytes::copy_from_slice(
            scratch.get(..len).unwrap_or_default(),
        ))
    })
}

/// An ICMP message says so, which anybody on the way can send and which passes: it ends no flow
/// (RFC 4787, REQ-12).
fn is_hearsay(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
    )
}

/// Too long for the way, or no room in the system: like one that the network lost.
fn count_unsent(sent: io::Result<usize>, counters: &Counters) {
    if let Err(error) = sent {
        tracing::trace!(%error, "datagram not sent");
        counters.dropped.unsent.fetch_add(1, Relaxed);
    }
}
