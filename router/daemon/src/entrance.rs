//! Where programs come in. An entrance learns where a connection wants to go and hands it to
//! `flow`; it decides nothing and resolves nothing.
//!
//! ```text
//! listener -> place among the pending (bounded) -> handshake (timed) -> flow::run
//! ```
//! Datagrams have no connection: those of each program are told apart in `datagrams`.

mod associate;
mod datagrams;
mod http;
mod pending;
mod socks5;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
};
use tokio_util::task::TaskTracker;
use wormholes_proto::{Target, Transport};

use crate::{
    config::{EntranceConfig, EntranceKind},
    flow::{self, Asked, Ends, LocalEnd},
    node::NodeCore,
    pipe,
};

pub use http::{origin_form, proxy_target};
pub(crate) use pending::Pending;

use datagrams::{Desk, Framing};
use pending::Place;

/// How long an entrance that ran out of file descriptors leaves the next connection waiting.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that wait for `accept`; beyond the pending ones this only smooths bursts.
const BACKLOG: i32 = 1024;

/// Associations of one SOCKS5 entrance at once; more are refused.
const MAX_ASSOCIATIONS: usize = 1024;
/// Flows of one UDP entrance at once; beyond, the one whose program was silent for longest ends.
const MAX_UDP_FLOWS: usize = 4096;

/// An entrance that cannot open.
#[derive(Debug, Error)]
pub enum EntranceError {
    /// The address is taken or not this machine's.
    #[error("cannot listen on {address} for {kind}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What it would speak.
        kind: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Strangers could use it.
    #[error("entrance {address}: {why}")]
    Exposed {
        /// Where.
        address: SocketAddr,
        /// What is missing.
        why: &'static str,
    },
}

/// A bound entrance. Its socket closes when the node stops; connections live on.
#[derive(Debug)]
pub(crate) struct Entrance {
    door: Arc<Door>,
    socket: Socket,
}

/// Where programs come in.
#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// What an entrance's connections share.
#[derive(Debug)]
struct Door {
    config: EntranceConfig,
    address: SocketAddr,
    associations: Semaphore,
}

/// A connection that has not yet said where it goes; the place is given back when it has.
#[derive(Debug)]
struct Visitor {
    stream: TcpStream,
    ends: Ends,
    place: Place,
}

impl Entrance {
    /// Binds.
    ///
    /// # Errors
    /// [`EntranceError`].
    pub(crate) fn bind(config: EntranceConfig) -> Result<Self, EntranceError> {
        let address = config.listen;
        config
            .check_exposure()
            .map_err(|why| EntranceError::Exposed { address, why })?;
        let bound = match config.kind.transport() {
            Transport::Tcp => listen(address),
            Transport::Udp => listen_udp(address),
        };
        let (socket, address) = bound.map_err(|source| EntranceError::Listen {
            address,
            kind: config.kind.as_str(),
            source,
        })?;
        let door = Arc::new(Door {
            config,
            address,
            associations: Semaphore::new(MAX_ASSOCIATIONS),
        });
        Ok(Self { door, socket })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.door.address
    }

    /// What it speaks.
    pub(crate) fn config(&self) -> &EntranceConfig {
        &self.door.config
    }

    /// Takes what comes until the node stops; its tasks belong to `core`.
    pub(crate) async fn run(self, core: Arc<NodeCore>) {
        match self.socket {
            Socket::Tcp(listener) => self.door.listen(listener, core).await,
            Socket::Udp(socket) => self.door.hear(socket, core).await,
        }
    }
}

impl Door {
    /// Takes connections.
    async fn listen(self: Arc<Self>, listener: TcpListener, core: Arc<NodeCore>) {
        let stop = core.stop.clone();
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, from)) => self.visit(stream, from, &core),
                Err(error) => {
                    // Out of descriptors: those that end make room.
                    tracing::warn!(%error, "an entrance cannot take a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Takes datagrams, which say nothing about where they go: the config does.
    async fn hear(self: Arc<Self>, socket: UdpSocket, core: Arc<NodeCore>) {
        // As with a tcp entrance: there is none without a target.
        let Some(target) = self.config.target.clone() else {
            return;
        };
        let desk = Desk {
            address: self.address,
            door: self,
            core,
            socket: Arc::new(socket),
            login: None,
            max_flows: MAX_UDP_FLOWS,
        };
        let framing = Framing::Forward(target);
        desk.run(framing, std::future::pending()).await;
    }

    fn visit(self: &Arc<Self>, stream: TcpStream, from: SocketAddr, core: &Arc<NodeCore>) {
        let ends = Ends {
            theirs: from,
            ours: self.end_of(&stream),
        };
        let visitor = Visitor {
            stream,
            ends,
            place: core.pending.enter(),
        };
        let (this, core) = (Arc::clone(self), Arc::clone(core));
        let tasks: &TaskTracker = &core.tasks.clone();
        tasks.spawn(async move { this.serve(visitor, core).await });
    }

    /// Where a connection came to.
    fn end_of(&self, stream: &TcpStream) -> SocketAddr {
        if self.address.ip().is_unspecified() {
            // One that is gone already has no address here; the next read says so.
            stream.local_addr().unwrap_or(self.address)
        } else {
            self.address
        }
    }

    async fn serve(self: Arc<Self>, visitor: Visitor, core: Arc<NodeCore>) {
        match self.config.kind {
            EntranceKind::Socks5 => socks5::serve(&self, visitor, core).await,
            EntranceKind::Http => http::serve(&self, visitor, core).await,
            // A udp entrance has no connections.
            EntranceKind::Tcp | EntranceKind::Udp => self.forward(visitor, &core).await,
        }
    }

    /// A connection that says nothing about where it goes: the config does.
    async fn forward(&self, visitor: Visitor, core: &NodeCore) {
        // `bind` took no tcp entrance without a target: the parser refuses it, and an embedding
        // program gets a closed connection.
        let Some(target) = self.config.target.clone() else {
            return;
        };
        let asked = self.asked(visitor.ends, target, None);
        drop(visitor.place);
        let local = LocalEnd::Tcp {
            stream: visitor.stream,
            ahead: Bytes::new(),
        };
        flow::run(core, asked, local).await;
    }

    fn asked(&self, ends: Ends, target: Target, login: Option<flow::Login>) -> Asked {
        Asked {
            entrance: self.config.kind.as_str(),
            transport: Transport::Tcp,
            label: self.config.label.clone(),
            login,
            plugin: None,
            ends: Some(ends),
            target,
        }
    }

    fn refused(&self, core: &NodeCore, reason: &'static str) {
        let labels = [self.config.kind.as_str(), reason];
        core.metrics
            .connections_refused
            .with_label_values(&labels)
            .inc();
    }
}

fn listen(address: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    pipe::set_options(&socket);
    let listener = TcpListener::from_std(socket.into())?;
    let address = listener.local_addr()?;
    Ok((Socket::Tcp(listener), address))
}

fn listen_udp(address: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    let address = socket.local_addr()?;
    Ok((Socket::Udp(socket), address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_do_not_guard_an_entrance_that_asks_nobody() {
        let config = |kind| EntranceConfig {
            kind,
            listen: SocketAddr::from(([0, 0, 0, 0], 0)),
            target: None,
            users: [("alice".to_owned(), crate::config::Secret::new("pw"))].into(),
            label: None,
        };
        assert!(config(EntranceKind::Tcp).check_exposure().is_err());
        assert!(config(EntranceKind::Udp).check_exposure().is_err());
        assert!(config(EntranceKind::Socks5).check_exposure().is_ok());
    }
}
