//! The TCP carrier: TLS 1.3 over TCP, for networks that block UDP and for bulk, which the system's
//! TCP moves with less work than QUIC.
//!
//! A connection carries one flow at a time and then the next, so that a flow costs no handshake;
//! the formats are those of [`wormholes_proto::tcp`].

mod lease;
mod link;
mod orders;
mod socket;
mod wire;

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use rustix::process::{Resource, getrlimit};
use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpSocket, UnixStream},
    sync::{Notify, mpsc},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wormholes_proto::{
    NodeId, is_placeholder,
    tcp::{LinkToken, PREFACE_BYTES, Preface, Purpose},
};

use super::{Caller, Families, HANDSHAKE_TIMEOUT, LinkError};
use crate::{pipe::PipeError, sources::Sources, tor::Tor};

pub(crate) use lease::Lease;
use link::Shared;
pub(crate) use link::TcpLink;
pub(crate) use socket::TlsSocket;
pub(crate) use wire::{FROM_TOR, Wire};

/// Handshakes at once. Overflow rule: the newcomer is sent away.
const MAX_HANDSHAKES: usize = 512;
/// Connections of all strangers get a quarter of the descriptors that this process may have, and
/// handshakes no more than another: the rest is for flows and peers. One source gets a quarter of
/// either.
const SHARE: usize = 4;
/// Connections for flows that a caller may make before it is told how many.
pub(super) const FIRST_PLACES: usize = 64;
/// Connections that the system keeps for this node to accept.
const BACKLOG: i32 = 1024;
/// After the system refused a connection, which it does when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The same through Tor, where the way itself takes its time: finding an onion service and meeting
/// it takes several circuits.
const TOR_TIMEOUT: Duration = Duration::from_secs(60);
/// The handshake alone, for who is called through Tor: three round trips of six relays.
const TOR_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections that came through Tor and wait to be taken. Overflow rule: those behind them wait at
/// their callers.
const MAX_TOR_CALLS: usize = 64;
/// The first connection of a link is seen within it, or its link is none.
const LINK_TIMEOUT: Duration = Duration::from_secs(1);

/// Listeners, and the links that came in at them.
#[derive(Debug)]
pub(super) struct TcpCarrier {
    listeners: Vec<TcpListener>,
    tls: Arc<ServerConfig>,
    /// That are being done. Overflow rule: the newcomer is sent away.
    handshakes: Arc<Sources>,
    /// Connections that nodes made that are no peers, of all their links. Overflow rule: the
    /// newcomer is closed.
    of_strangers: Arc<Sources>,
    links: Arc<Links>,
    /// What comes through Tor, and where it is handed in.
    from_tor: (
        mpsc::Sender<UnixStream>,
        tokio::sync::Mutex<mpsc::Receiver<UnixStream>>,
    ),
    /// Who dials onion addresses.
    tor: OnceLock<Arc<Tor>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Links that others called for, as long as they live.
#[derive(Debug, Default)]
struct Links {
    by_token: Mutex<HashMap<(NodeId, LinkToken), Weak<Shared>>>,
    added: Notify,
}

/// How to reach a node over TCP, as whom.
#[derive(Debug, Clone)]
pub(super) struct Call {
    tls: Arc<ClientConfig>,
    id: NodeId,
    address: SocketAddr,
    source: Option<IpAddr>,
    /// Of the first connection's SYN.
    rtt: Duration,
    /// For an onion address.
    tor: Option<Arc<Tor>>,
    /// The link, where it is made under a throw-away key.
    throw_away: Option<LinkToken>,
}

impl TcpCarrier {
    /// Takes calls at `listeners`. The limit of open files is read here, once: whoever raises it
    /// does so before.
    pub(super) fn new(listeners: Vec<TcpListener>, tls: ServerConfig) -> Self {
        let share = descriptor_share();
        let places = |max: usize| Sources::new(max, max.div_ceil(SHARE));
        let (sender, receiver) = mpsc::channel(MAX_TOR_CALLS);
        Self {
            listeners,
            tls: Arc::new(tls),
            handshakes: places(share.min(MAX_HANDSHAKES)),
            of_strangers: places(share),
            links: Arc::default(),
            from_tor: (sender, tokio::sync::Mutex::new(receiver)),
            tor: OnceLock::new(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Dials onion addresses through `tor` from now on. Returns where that hands in the connections
    /// that come to this node's own.
    pub(super) fn use_tor(&self, tor: Arc<Tor>) -> mpsc::Sender<UnixStream> {
        // Set once: a node has one Tor.
        let _ = self.tor.set(tor);
        self.from_tor.0.clone()
    }

    /// Takes the next connection at any listener, or through Tor. Cancel-safe.
    pub(super) async fn accept(&self) -> (Wire, SocketAddr) {
        let through_tor = async { self.from_tor.1.lock().await.recv().await };
        tokio::select! {
            (stream, address) = self.accept_socket() => (Wire::Tcp(stream), address),
            // Its sender is here, so that there is always a next one.
            Some(stream) = through_tor => (Wire::Tor(stream), FROM_TOR),
        }
    }

    async fn accept_socket(&self) -> (tokio::net::TcpStream, SocketAddr) {
        loop {
            let mut calls: FuturesUnordered<_> = self
                .listeners
                .iter()
                .map(|listener| listener.accept().boxed())
                .collect();
            match calls.next().await {
                Some(Ok(taken)) => return taken,
                Some(Err(error)) => {
                    tracing::debug!(%error, "no connection accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                None => return std::future::pending().await,
            }
        }
    }

    /// Does the handshake of a connection: it makes a link, or is one more of a link that stands.
    /// One of a node that is no peer has a place for as long as it lives.
    ///
    /// # Errors
    /// [`LinkError`] when it breaks, takes too long, or there are too many.
    pub(super) async fn handshake(
        &self,
        stream: Wire,
        address: SocketAddr,
        is_peer: impl Fn(&NodeId) -> bool,
    ) -> Result<Option<(NodeId, Arc<TcpLink>)>, LinkError> {
        let failed = |why: &str| LinkError::Handshake {
            address,
            is_our_no: true,
            why: why.to_owned(),
        };
        let place = self.handshakes.enter(address.ip());
        let place = place.ok_or_else(|| failed("too many at once"))?;
        let shake = async {
            let socket = TlsSocket::answer(stream, Arc::clone(&self.tls)).await?;
            let preface = read_preface(&socket).await?;
            Ok::<_, PipeError>((socket, preface))
        };
        let in_time = match address == FROM_TOR {
            true => TOR_HANDSHAKE_TIMEOUT,
            false => HANDSHAKE_TIMEOUT,
        };
        let shaken = timeout(in_time, shake).await;
        drop(place);
        let shaken = shaken.map_err(|_| failed("too slow"))?;
        let (mut socket, preface) = shaken.map_err(|error| failed(&error.to_string()))?;
        let id = socket.peer_id().ok_or_else(|| failed("no node id"))?;
        if !is_peer(&id) {
            let place = self.of_strangers.enter(address.ip());
            socket.hold(place.ok_or_else(|| failed("too many of strangers"))?);
        }
        let begins_here = match preface.purpose {
            Purpose::Control => {
                let (link, keeping) = TcpLink::new(socket, address, preface.link, None, &self.stop);
                self.links.add(id, preface.link, link.shared());
                self.tasks.spawn(keeping);
                return Ok(Some((id, link)));
            }
            Purpose::Forward => false,
            Purpose::Backward => true,
        };
        let link = self.links.find(id, preface.link).await;
        let link = link.ok_or_else(|| failed("no such link"))?;
        let connection = link.take_in(socket, begins_here)?;
        link.rest(connection);
        Ok(None)
    }

    /// Calls a node and makes a link. Cancel-safe: dropping it ends the attempt.
    ///
    /// # Errors
    /// [`LinkError`] when nobody answers in time or another node does.
    pub(super) async fn dial(
        &self,
        caller: &Caller,
        id: NodeId,
        address: SocketAddr,
        source: Option<IpAddr>,
    ) -> Result<Arc<TcpLink>, LinkError> {
        let token = LinkToken(rand::random());
        let mut call = Call {
            tls: Arc::clone(&caller.tcp),
            id,
            address,
            source,
            rtt: Duration::ZERO,
            tor: self.tor.get().cloned(),
            throw_away: caller.throw_away.then_some(token),
        };
        let preface = Preface {
            purpose: Purpose::Control,
            link: token,
        };
        let (socket, rtt) = call.connect_timed(preface).await?;
        call.rtt = rtt;
        let (link, keeping) = TcpLink::new(socket, address, token, Some(call), &self.stop);
        self.tasks.spawn(keeping);
        Ok(link)
    }

    pub(super) fn listen_addresses(&self) -> Vec<SocketAddr> {
        let addresses = self.listeners.iter().map(TcpListener::local_addr);
        addresses.filter_map(Result::ok).collect()
    }

    /// Ends all links and waits until their other ends were told.
    pub(super) async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Links {
    fn add(&self, id: NodeId, token: LinkToken, link: &Arc<Shared>) {
        let mut links = self.lock();
        links.retain(|_, link| link.strong_count() > 0);
        links.insert((id, token), Arc::downgrade(link));
        drop(links);
        self.added.notify_waiters();
    }

    /// The link of a further connection, whose first may be a moment behind.
    async fn find(&self, id: NodeId, token: LinkToken) -> Option<Arc<Shared>> {
        let found = async {
            loop {
                let added = self.added.notified();
                tokio::pin!(added);
                added.as_mut().enable();
                let link = self.lock().get(&(id, token)).and_then(Weak::upgrade);
                match link {
                    Some(link) => return link,
                    None => added.await,
                }
            }
        };
        timeout(LINK_TIMEOUT, found).await.ok()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(NodeId, LinkToken), Weak<Shared>>> {
        self.by_token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call {
    /// Makes a connection and says what it is for.
    ///
    /// # Errors
    /// [`LinkError`] when nobody answers in time or another node does.
    async fn connect(&self, preface: Preface) -> Result<TlsSocket, LinkError> {
        let (socket, _) = self.connect_timed(preface).await?;
        Ok(socket)
    }

    async fn connect_timed(&self, preface: Preface) -> Result<(TlsSocket, Duration), LinkError> {
        let address = self.address;
        if is_placeholder(&address) {
            let connected = timeout(TOR_TIMEOUT, self.connect_within(preface)).await;
            return connected.unwrap_or_else(|_| Err(LinkError::Tor("timed out".to_owned())));
        }
        let connected = timeout(HANDSHAKE_TIMEOUT, self.connect_within(preface)).await;
        connected.unwrap_or(Err(LinkError::NoAnswer { address }))
    }

    async fn connect_within(&self, preface: Preface) -> Result<(TlsSocket, Duration), LinkError> {
        let address = self.address;
        let failed = |error: PipeError| LinkError::Handshake {
            address,
            is_our_no: matches!(error, PipeError::Malformed(_)),
            why: error.to_string(),
        };
        let name = ServerName::try_from(self.id.to_string());
        let name = name.map_err(|_| failed(PipeError::Malformed("node id")))?;
        let start = Instant::now();
        let wire = self.reach().await?;
        let connected = start.elapsed();
        let socket = TlsSocket::call(wire, Arc::clone(&self.tls), name).await;
        let socket = socket.map_err(failed)?;
        // A SYN that was lost is sent again after seconds: the handshake behind it took none of them.
        let rtt = connected.min(start.elapsed() - connected);
        socket
            .write(&preface.encode(), &mut [])
            .await
            .map_err(failed)?;
        Ok((socket, rtt))
    }

    /// A connection to where the node is, whoever answers there.
    async fn reach(&self) -> Result<Wire, LinkError> {
        let address = self.address;
        if is_placeholder(&address) {
            let none = || LinkError::Tor("it is off here".to_owned());
            let tor = self.tor.as_ref().ok_or_else(none)?;
            let called = tor.call(address, self.throw_away).await;
            return called
                .map(Wire::Tor)
                .map_err(|error| LinkError::Tor(error.to_string()));
        }
        let refused = |error: io::Error| LinkError::Address {
            address,
            why: error.kind().to_string(),
        };
        let socket = self.socket().map_err(refused)?;
        let connected = socket.connect(address).await;
        let stream = connected.map_err(|error| match is_silence(error.kind()) {
            true => LinkError::NoAnswer { address },
            false => refused(error),
        })?;
        Ok(Wire::Tcp(stream))
    }

    fn socket(&self) -> io::Result<TcpSocket> {
        let socket = match self.address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        if let Some(source) = self.source {
            socket.bind((source, 0).into())?;
        }
        Ok(socket)
    }
}

/// Whether nobody is there, as far as one can tell.
fn is_silence(error: ErrorKind) -> bool {
    use ErrorKind::{ConnectionRefused, ConnectionReset, TimedOut};
    [TimedOut, ConnectionRefused, ConnectionReset].contains(&error)
}

/// The descriptors that this process may have are shared out in parts of this size.
pub(crate) fn descriptor_share() -> usize {
    share_of(getrlimit(Resource::Nofile).current)
}

/// How much of a limit of open files, none being without end, is for one of those that share it.
fn share_of(limit: Option<u64>) -> usize {
    let limit = limit.and_then(|limit| usize::try_from(limit).ok());
    limit.unwrap_or(usize::MAX) / SHARE
}

/// Listens on `address`.
pub(super) fn listen(address: SocketAddr, families: Families) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(families == Families::V6)?;
    }
    // Connections of the process before this one may not have gone yet.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn read_preface(socket: &TlsSocket) -> Result<Preface, PipeError> {
    let mut preface = Vec::with_capacity(PREFACE_BYTES);
    while preface.len() < PREFACE_BYTES {
        let read = socket.read().await?.ok_or(PipeError::Cut)?;
        let (own, after) = read.split_at(read.len().min(PREFACE_BYTES - preface.len()));
        preface.extend_from_slice(own);
        socket.unread(after);
    }
    Preface::decode(&preface).map_err(|_| PipeError::Malformed("preface"))
}

#[cfg(test)]
mod tests;
