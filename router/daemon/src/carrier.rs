//! Authenticated connections between nodes, and the streams on them.
//!
//! A [`Link`] is a connection whose other end proved a node id. What runs below it (QUIC) is known
//! to the two modules here only, so that another carrier adds a variant and changes no caller.

mod quic;
mod streams;
mod tls;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use thiserror::Error;
use tokio::time::Instant;
use wormholes_proto::{NodeId, Reason};

use crate::pipe::Pipe;

use streams::Streams;

pub use quic::CarrierError;
pub(crate) use quic::{Caller, Carrier, granted_buffers};
pub(crate) use streams::OpenStream;
pub use tls::TlsError;

/// A connection to a node. Clones share it; it lives until it is closed or falls silent.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    peer: NodeId,
    connection: quinn::Connection,
    /// What the other end last told of itself, 255 being full.
    load: Arc<AtomicU8>,
    streams: Arc<Streams>,
}

/// How much a node at the other end may have in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nobody that the config knows: enough for onion circuits.
    Stranger,
    /// A peer.
    Known,
}

/// What a closed connection says to the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum CloseCode {
    /// This node stops, or has no more use for the connection.
    Done = 0,
    /// The config or a rule keeps this node's doors shut.
    Denied = 1,
    /// All places are taken.
    Busy = 2,
}

/// A connection or stream that failed.
#[derive(Debug, Clone, Error)]
pub enum LinkError {
    /// Nobody answered at the address.
    #[error("no answer from {address}")]
    NoAnswer {
        /// Where.
        address: SocketAddr,
    },
    /// Somebody else answered, or the handshake broke.
    #[error("handshake with {address} failed: {why}")]
    Handshake {
        /// With whom.
        address: SocketAddr,
        /// In the carrier's words.
        why: String,
    },
    /// The address cannot be dialled from here.
    #[error("cannot dial {address}: {why}")]
    Address {
        /// Which one.
        address: SocketAddr,
        /// In the carrier's words.
        why: String,
    },
    /// The other node shut the door.
    #[error("closed by the node: {0}")]
    Closed(Reason),
    /// The connection broke.
    #[error("connection lost: {0}")]
    Lost(String),
}

impl CloseCode {
    /// The number that goes over the wire.
    const fn number(self) -> quinn::VarInt {
        quinn::VarInt::from_u32(self as u32)
    }
}

impl Link {
    fn new(peer: NodeId, connection: quinn::Connection) -> Self {
        Self {
            peer,
            connection,
            load: Arc::default(),
            streams: Streams::new(),
        }
    }

    /// Who is at the other end.
    pub(crate) fn peer(&self) -> NodeId {
        self.peer
    }

    /// Where the other end is.
    pub(crate) fn remote_address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Opens a stream. Waits while the other end allows no more.
    ///
    /// # Errors
    /// [`LinkError`] when the connection is gone.
    pub(crate) async fn open(&self) -> Result<Pipe, LinkError> {
        let (send, recv) = self.connection.open_bi().await.map_err(lost)?;
        Ok(Pipe::quic(send, recv, self.streams.open()))
    }

    /// Takes the next stream that the other end opened. Cancel-safe.
    ///
    /// # Errors
    /// [`LinkError`] when the connection is gone.
    pub(crate) async fn accept(&self) -> Result<Pipe, LinkError> {
        let (send, recv) = self.connection.accept_bi().await.map_err(lost)?;
        Ok(Pipe::quic(send, recv, self.streams.open()))
    }

    /// Since when no stream is open on it; `None` while one is.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        self.streams.idle_since()
    }

    /// Grants what `standing` allows, and a stream beside for each of the `circuits` that roles
    /// grant to one node: what is beyond shall be refused, and not wait.
    pub(crate) fn set_standing(&self, standing: Standing, circuits: usize) {
        quic::set_standing(&self.connection, standing, circuits);
    }

    /// Round trip over the path.
    pub(crate) fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    /// Share of sent packets that were lost, 0 to 1.
    pub(crate) fn loss(&self) -> f64 {
        let path = self.connection.stats().path;
        if path.sent_packets == 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "a share for people and scripts")]
        let share = path.lost_packets as f64 / path.sent_packets as f64;
        share.min(1.0)
    }

    /// How full the other end last said it is, 0 to 1.
    pub(crate) fn load(&self) -> f64 {
        f64::from(self.load.load(Relaxed)) / f64::from(u8::MAX)
    }

    /// Keeps what the other end said of its load, 255 being full.
    pub(crate) fn set_load(&self, load: u8) {
        self.load.store(load, Relaxed);
    }

    /// Whether it can carry no more streams.
    pub(crate) fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// Waits until it is closed, and says why.
    pub(crate) async fn closed(&self) -> LinkError {
        lost(self.connection.closed().await)
    }

    /// Ends it and all its streams.
    pub(crate) fn close(&self, code: CloseCode) {
        self.connection.close(code.number(), b"");
    }

    /// Whether both are the same connection.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.connection.stable_id() == other.connection.stable_id()
    }
}

fn lost(error: quinn::ConnectionError) -> LinkError {
    match &error {
        quinn::ConnectionError::ApplicationClosed(close) => {
            let code = close.error_code;
            if code == CloseCode::Denied.number() {
                LinkError::Closed(Reason::Denied)
            } else if code == CloseCode::Busy.number() {
                LinkError::Closed(Reason::Busy)
            } else {
                LinkError::Lost("closed by the node".to_owned())
            }
        }
        quinn::ConnectionError::VersionMismatch
        | quinn::ConnectionError::TransportError(_)
        | quinn::ConnectionError::ConnectionClosed(_)
        | quinn::ConnectionError::Reset
        | quinn::ConnectionError::TimedOut
        | quinn::ConnectionError::LocallyClosed
        | quinn::ConnectionError::CidsExhausted => LinkError::Lost(error.to_string()),
    }
}
