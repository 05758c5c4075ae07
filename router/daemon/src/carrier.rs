//! Authenticated connections between nodes, and the streams on them.
//!
//! A [`Link`] is a connection whose other end proved a node id. What runs below it, QUIC or TLS
//! over TCP, is known in this room only: callers see links and pipes.

mod crossings;
mod datagrams;
mod grant;
mod link;
mod pulse;
mod quic;
mod streams;
mod tcp;
mod tls;

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    net::{TcpListener, UnixStream},
    sync::mpsc,
};
use wormholes_proto::{CarrierKind, NodeId, Reason, is_placeholder};

use crate::{ban::Transport, counters::Counters, identity::Identity, tor::Tor};

use link::Connection;
use quic::QuicCarrier;
use tcp::{TcpCarrier, Wire};

pub(crate) use crossings::CrossingPlace;
pub(crate) use datagrams::Lane;
pub(crate) use link::Link;
pub(crate) use quic::{LetIn, granted_buffers};
pub(crate) use streams::OpenStream;
pub(crate) use tcp::{Lease, descriptor_share};
pub use tls::TlsError;

/// Streams that a peer may have open at once beside the circuits of roles; more wait at its side.
/// Over QUIC it has so many when it uses them (`grant`).
const KNOWN_STREAMS: u32 = 4096;
/// The same for a stranger.
const STRANGER_STREAMS: u32 = 256;
/// A connection on which nothing arrives for so long is lost.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Three chances before the other end gives up.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Slow handshakes make room.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Ports that the system chooses for one transport and that are taken in the other: rare.
const MAX_PORT_TRIES: usize = 64;

/// As whom a call is made.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    quic: quinn::ClientConfig,
    tcp: Arc<rustls::ClientConfig>,
    throw_away: bool,
}

/// All listeners of this node, and all that it calls from.
#[derive(Debug)]
pub(crate) struct Carrier {
    kinds: Vec<CarrierKind>,
    /// Where it listens.
    sources: Vec<IpAddr>,
    quic: QuicCarrier,
    tcp: TcpCarrier,
    myself: Caller,
    counters: Arc<Counters>,
}

/// A call whose handshake is still to be done.
#[derive(Debug)]
pub(crate) enum Incoming {
    Quic(Box<quic::Call>),
    Tcp(Wire, SocketAddr),
}

/// Which addresses a socket reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Families {
    V4,
    V6,
    Both,
}

/// A carrier that could not be set up.
#[derive(Debug, Error)]
pub enum CarrierError {
    /// The socket could not be bound.
    #[error("cannot listen on {transport} {address}")]
    Bind {
        /// Of which kind it is.
        transport: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// TLS refused its configuration.
    #[error(transparent)]
    Tls(#[from] TlsError),
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
    #[error("handshake {} failed: {why}", with_whom(.address))]
    Handshake {
        /// With whom.
        address: SocketAddr,
        /// Whether it was this end that found fault.
        is_our_no: bool,
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
    /// Nobody was reached at an onion address.
    #[error("not reached through Tor: {0}")]
    Tor(String),
    /// The other node shut the door.
    #[error("closed by the node: {0}")]
    Closed(Reason),
    /// The connection broke.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The other node shows no sign of life on a connection that stands.
    #[error("the node has fallen silent")]
    Silent,
}

impl CloseCode {
    /// The number that goes over the wire.
    const fn number(self) -> quinn::VarInt {
        quinn::VarInt::from_u32(self as u32)
    }
}

impl LinkError {
    /// What the code means with which the other end closed.
    fn closed_with(code: u64) -> Self {
        if code == CloseCode::Denied as u64 {
            Self::Closed(Reason::Denied)
        } else if code == CloseCode::Busy as u64 {
            Self::Closed(Reason::Busy)
        } else {
            Self::Lost("closed by the node".to_owned())
        }
    }
}

impl Standing {
    /// Streams that the other end may have open at once, of which `circuits` are what roles grant;
    /// more wait at its side.
    pub(crate) fn streams(self, circuits: usize) -> u32 {
        let streams = match self {
            Self::Stranger => STRANGER_STREAMS,
            Self::Known => KNOWN_STREAMS,
        };
        streams.saturating_add(u32::try_from(circuits).unwrap_or(u32::MAX))
    }

    /// The same over TCP. A stranger has fewer: a stream of QUIC costs some hundred bytes, a
    /// connection a descriptor; and of these all strangers together have a quarter.
    fn connections(self, circuits: usize) -> usize {
        let connections = match self {
            Self::Stranger => tcp::FIRST_PLACES,
            Self::Known => KNOWN_STREAMS as usize,
        };
        connections.saturating_add(circuits)
    }
}

impl Caller {
    /// Calls as `identity`, which the callee learns.
    ///
    /// # Errors
    /// [`TlsError`] when TLS refuses the key.
    fn named(identity: &Identity) -> Result<Self, TlsError> {
        Ok(Self {
            quic: quic::client_config(identity)?,
            tcp: Arc::new(tls::client_config(identity)?),
            throw_away: false,
        })
    }

    /// Calls with a key that is used for one connection and never again.
    ///
    /// # Errors
    /// [`TlsError`] when no key could be made.
    pub(crate) fn throw_away() -> Result<Self, TlsError> {
        let identity = Identity::throw_away().map_err(|error| TlsError(error.to_string()))?;
        Ok(Self {
            throw_away: true,
            ..Self::named(&identity)?
        })
    }
}

impl Carrier {
    /// Listens at each of `listen` with each of `kinds`, and binds what is needed to dial.
    ///
    /// # Errors
    /// [`CarrierError`] when a socket cannot be bound.
    pub(crate) fn bind(
        listen: &[SocketAddr],
        kinds: &[CarrierKind],
        identity: &Identity,
        counters: Arc<Counters>,
    ) -> Result<Self, CarrierError> {
        let [quic, tcp] = [CarrierKind::Quic, CarrierKind::Tcp].map(|kind| kinds.contains(&kind));
        let (mut udp_sockets, mut tcp_listeners) = (Vec::new(), Vec::new());
        for address in listen {
            let families = Families::of_listener(*address, listen);
            let (udp, listener) = bind_both(*address, families, [quic, tcp])?;
            udp_sockets.extend(udp.map(|socket| (socket, families)));
            tcp_listeners.extend(listener);
        }
        let calls_from = quic.then_some(listen);
        Ok(Self {
            kinds: kinds.to_vec(),
            sources: listen.iter().map(SocketAddr::ip).collect(),
            quic: QuicCarrier::new(udp_sockets, calls_from, identity, Arc::clone(&counters))?,
            tcp: TcpCarrier::new(tcp_listeners, tls::server_config(identity)?),
            myself: Caller::named(identity)?,
            counters,
        })
    }

    /// Dials onion addresses through `tor` from now on. Returns where that hands in the connections
    /// that come to this node's own.
    pub(crate) fn use_tor(&self, tor: Arc<Tor>) -> mpsc::Sender<UnixStream> {
        self.tcp.use_tor(tor)
    }

    /// Where this node listens, with the ports that the system chose.
    pub(crate) fn listen_addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = self.quic.listen_addresses();
        for address in self.tcp.listen_addresses() {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    /// All sockets at which this node listens.
    pub(crate) fn listening(&self) -> Vec<(Transport, SocketAddr)> {
        let udp = self.quic.listen_addresses().into_iter();
        let tcp = self.tcp.listen_addresses().into_iter();
        udp.map(|socket| (Transport::Udp, socket))
            .chain(tcp.map(|socket| (Transport::Tcp, socket)))
            .collect()
    }

    /// Where this node calls from.
    #[cfg(test)]
    pub(crate) fn calling_addresses(&self) -> Vec<SocketAddr> {
        self.quic.calling_addresses()
    }

    /// What this node speaks, the preferred first.
    pub(crate) fn kinds(&self) -> &[CarrierKind] {
        &self.kinds
    }

    /// As this node itself.
    pub(crate) fn myself(&self) -> &Caller {
        &self.myself
    }

    /// Calls `id` at `address`. Cancel-safe: dropping it ends the attempt.
    ///
    /// # Errors
    /// [`LinkError`] when nobody answers in time or another node does.
    pub(crate) async fn dial(
        &self,
        caller: &Caller,
        id: NodeId,
        (kind, address): (CarrierKind, SocketAddr),
    ) -> Result<Link, LinkError> {
        let dialled = match kind {
            CarrierKind::Quic => {
                let dialled = self.quic.dial(&caller.quic, caller.throw_away, id, address);
                dialled.await.map(Connection::Quic)
            }
            CarrierKind::Tcp => {
                let source = self.source_for(address.ip());
                let dialled = self.tcp.dial(caller, id, address, source).await;
                dialled.map(Connection::Tcp)
            }
        };
        if let Err(LinkError::Handshake {
            is_our_no: true, ..
        }) = &dialled
        {
            self.counters.handshakes_failed.fetch_add(1, Relaxed);
        }
        dialled.map(|connection| Link::new(id, connection, &self.counters))
    }

    /// Calls `id` at `address` over QUIC, from where relays are called too, while it calls this node:
    /// what each sends opens its own NAT. Cancel-safe: dropping it ends the attempt.
    ///
    /// # Errors
    /// [`LinkError`] when nobody answers in time or another node does, which is no fault of anybody.
    pub(crate) async fn punch(&self, id: NodeId, address: SocketAddr) -> Result<Link, LinkError> {
        let dialled = self.quic.punch(&self.myself.quic, id, address).await?;
        Ok(Link::new(id, Connection::Quic(dialled), &self.counters))
    }

    /// Has sockets that only call take calls of `id` from these addresses while the value lives.
    pub(crate) fn let_in(&self, id: NodeId, from: &[IpAddr]) -> LetIn<'_> {
        self.quic.let_in(id, from)
    }

    /// From where a node at `ip` is called over QUIC, as far as the socket knows: it may be bound to no
    /// address in particular.
    pub(crate) fn calling_address(&self, ip: IpAddr) -> Option<SocketAddr> {
        self.quic.calling_address(ip)
    }

    /// The address that others know this node by, if it listens at a particular one.
    fn source_for(&self, ip: IpAddr) -> Option<IpAddr> {
        let same_family = |source: &&IpAddr| source.is_ipv4() == ip.is_ipv4();
        let source = self.sources.iter().find(same_family).copied();
        source.filter(|source| !source.is_unspecified())
    }

    /// Takes the next call at any listener; `None` when the carrier is closed. Its handshake is
    /// still to be done. Cancel-safe.
    pub(crate) async fn accept(&self) -> Option<Incoming> {
        tokio::select! {
            call = self.quic.accept() => call.map(|call| Incoming::Quic(Box::new(call))),
            (wire, address) = self.tcp.accept() => Some(Incoming::Tcp(wire, address)),
        }
    }

    /// Does the handshake of a call; `None` when it is one more connection of a link that stands.
    /// Over TCP, nodes that are no peers have few places.
    ///
    /// # Errors
    /// [`LinkError`] when it breaks, takes too long, or there are too many.
    pub(crate) async fn handshake(
        &self,
        incoming: Incoming,
        is_peer: impl Fn(&NodeId) -> bool,
    ) -> Result<Option<Link>, LinkError> {
        let taken = match incoming {
            Incoming::Quic(call) => {
                let taken = self.quic.handshake(*call).await;
                taken.map(|(id, quic)| Some(Link::new(id, Connection::Quic(quic), &self.counters)))
            }
            Incoming::Tcp(wire, address) => {
                let taken = self.tcp.handshake(wire, address, is_peer).await;
                taken.map(|new| {
                    new.map(|(id, tcp)| Link::new(id, Connection::Tcp(tcp), &self.counters))
                })
            }
        };
        taken.inspect_err(|_| {
            self.counters.handshakes_failed.fetch_add(1, Relaxed);
        })
    }

    /// Has every connection over QUIC ask its other end for a sign of life, from whatever address
    /// this machine has by now: flows move there with it.
    pub(crate) fn probe(&self) {
        self.quic.probe();
    }

    /// Ends all connections and waits until their other ends were told.
    pub(crate) async fn close(&self) {
        tokio::join!(self.quic.close(), self.tcp.close());
    }
}

impl Families {
    /// `[::]` takes IPv4 too, unless another listener has that port there.
    fn of_listener(address: SocketAddr, listen: &[SocketAddr]) -> Self {
        let taken = |port| listen.iter().any(|own| own.is_ipv4() && own.port() == port);
        if address.is_ipv4() {
            Self::V4
        } else if address.ip().is_unspecified() && !taken(address.port()) {
            Self::Both
        } else {
            Self::V6
        }
    }

    fn reach(self, ip: IpAddr) -> bool {
        match self {
            Self::V4 => ip.is_ipv4(),
            Self::V6 => ip.is_ipv6(),
            Self::Both => true,
        }
    }
}

/// What stands for an onion address tells nobody anything.
fn with_whom(address: &SocketAddr) -> String {
    match is_placeholder(address) {
        true => "through Tor".to_owned(),
        false => format!("with {address}"),
    }
}

/// Binds a UDP and a TCP socket with one port number, as far as they are wanted.
fn bind_both(
    address: SocketAddr,
    families: Families,
    [udp_wanted, tcp_wanted]: [bool; 2],
) -> Result<(Option<UdpSocket>, Option<TcpListener>), CarrierError> {
    let mut tries = MAX_PORT_TRIES;
    loop {
        let mut at = address;
        let mut udp = None;
        if udp_wanted {
            let socket = quic::socket(address, families);
            let socket = socket.map_err(|source| CarrierError::Bind {
                transport: "udp",
                address,
                source,
            })?;
            if let Ok(bound) = socket.local_addr() {
                at.set_port(bound.port());
            }
            udp = Some(socket);
        }
        if !tcp_wanted {
            return Ok((udp, None));
        }
        match tcp::listen(at, families) {
            Ok(listener) => return Ok((udp, Some(listener))),
            // The system chose a port of UDP that somebody else has in TCP.
            Err(error)
                if error.kind() == ErrorKind::AddrInUse && address.port() == 0 && tries > 0 =>
            {
                tries -= 1;
            }
            Err(source) => {
                return Err(CarrierError::Bind {
                    transport: "tcp",
                    address: at,
                    source,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const ALL: [CarrierKind; 2] = CarrierKind::ALL;
    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn a_handshake_through_tor_is_told_without_what_stands_for_the_address() {
        let failed = |address: &str| LinkError::Handshake {
            address: address.parse().unwrap(),
            is_our_no: true,
            why: "too slow".to_owned(),
        };
        let told = failed("[100::707:707:707:707]:4433").to_string();
        assert_eq!(told, "handshake through Tor failed: too slow");
        let told = failed("192.0.2.1:4433").to_string();
        assert_eq!(told, "handshake with 192.0.2.1:4433 failed: too slow");
    }

    /// Its port, as its NAT knows it, is the one that its relays know.
    #[tokio::test]
    async fn who_listens_nowhere_is_called_where_it_calls_from_while_that_is_expected() {
        let bind = |listen: &[SocketAddr]| {
            let identity = Identity::throw_away().unwrap();
            let kinds = [CarrierKind::Quic];
            let carrier = Carrier::bind(listen, &kinds, &identity, Arc::default()).unwrap();
            (identity.id(), carrier)
        };
        let ((callers_id, caller), (id, called)) =
            (bind(&[([127, 66, 0, 3], 0).into()]), bind(&[]));
        let port = called.calling_address(LOCAL).unwrap().port();
        let address = (LOCAL, port).into();
        let called = Arc::new(called);
        let taker = Arc::clone(&called);
        let takes = tokio::spawn(async move {
            let mut taken = Vec::new();
            while let Some(incoming) = taker.accept().await {
                taken.push(taker.handshake(incoming, |_| true).await);
            }
        });
        // It says what it has to say several times in so long.
        let soon = Duration::from_millis(700);
        let unheard = async || timeout(soon, caller.punch(id, address)).await.is_err();
        let from: [IpAddr; 1] = [[127, 66, 0, 3].into()];
        let elsewhere = called.let_in(callers_id, &[[127, 66, 0, 4].into()]);
        assert!(unheard().await, "a call from there is not expected");
        let another = called.let_in(id, &from);
        if let Ok(link) = caller.punch(id, address).await {
            let closed = timeout(HANDSHAKE_TIMEOUT, link.closed());
            let closed = closed.await.expect("another node is expected");
            assert!(
                matches!(closed, LinkError::Closed(Reason::Denied)),
                "{closed}"
            );
        }
        let (first, second) = (
            called.let_in(callers_id, &from),
            called.let_in(callers_id, &from),
        );
        drop(first);
        let link = caller.punch(id, address).await.unwrap();
        assert!(timeout(soon, link.closed()).await.is_err(), "it is taken");
        drop((another, second, elsewhere));
        assert!(unheard().await, "nobody is expected any more");
        takes.abort();
    }

    /// The port of a listener names its node to whoever ever met it.
    #[tokio::test]
    async fn throw_away_calls_leave_from_a_port_that_names_nobody() {
        let bind = |ip: [u8; 4]| {
            let identity = Identity::throw_away().unwrap();
            let carrier =
                Carrier::bind(&[(ip, 0).into()], &ALL, &identity, Arc::default()).unwrap();
            (identity.id(), carrier)
        };
        let ((_, caller), (id, called)) = (bind([127, 66, 0, 1]), bind([127, 66, 0, 2]));
        let address = called.listen_addresses()[0];
        let source_of = async |who: &Caller| {
            let taken = async {
                let incoming = called.accept().await.unwrap();
                called.handshake(incoming, |_| true).await
            };
            let (dialled, taken) =
                tokio::join!(caller.dial(who, id, (CarrierKind::Quic, address)), taken);
            dialled.unwrap();
            taken.unwrap().unwrap().remote_address()
        };
        let own = caller.listen_addresses()[0];
        assert_eq!(source_of(caller.myself()).await, own);
        let nobody = Caller::throw_away().unwrap();
        assert_ne!(source_of(&nobody).await.port(), own.port());
    }
}
