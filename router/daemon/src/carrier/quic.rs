//! QUIC: the endpoints of this node, calls out and calls in.
//!
//! Every listen address is one UDP socket, used for calls in both directions, so that a NAT in
//! front of it keeps one mapping. Calls with throw-away keys leave from sockets of their own: the
//! port would name the node that listens on it.
//!
//! Flows survive a new address of the caller: its sockets are bound to none, unless config.toml
//! names one, so that the system sends from the new one, and the called follows (RFC 9000,
//! section 9). They do not survive a new address of the called, which the caller cannot know.

mod punch;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use quinn::{
    AckFrequencyConfig, ClientConfig, ConnectionError, Endpoint, EndpointConfig, Incoming,
    ServerConfig, TokioRuntime, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
    rustls::pki_types::CertificateDer,
};
use ring::hmac;
use socket2::{Domain, Protocol, Socket, Type};
use wormholes_proto::NodeId;

use super::{
    CarrierError, CloseCode, Families, HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, KEEP_ALIVE, LinkError,
    Standing,
    grant::FIRST_STREAMS,
    tls::{self, TlsError},
};
use crate::{counters::Counters, identity::Identity};

pub(crate) use punch::LetIn;

/// Loopback lost about 1 % of the packets with the kernel's default of 208 KiB; 7 MiB holds 20 ms
/// at 2.5 Gbit/s.
const SOCKET_BUFFER_BYTES: usize = 7 << 20;
/// One stream fills 500 Mbit/s at 100 ms.
pub(super) const STREAM_WINDOW_BYTES: u32 = 6 << 20;
/// What one peer can make this node hold.
pub(super) const KNOWN_WINDOW_BYTES: u32 = 24 << 20;
/// What a stranger can: onion circuits only, whose hops read at once.
const STRANGER_WINDOW_BYTES: u32 = 4 << 20;
/// What this node holds for one connection until it is acknowledged.
const SEND_WINDOW_BYTES: u64 = 24 << 20;
/// Datagrams that wait in one direction: 100 ms at 20 Mbit/s. Of those that came, more push the
/// oldest out; of those to be sent, the newest goes (`datagrams`).
const DATAGRAM_BUFFER_BYTES: usize = 256 << 10;
/// Handshakes at once; from a quarter on, callers prove their address first (RFC 9000,
/// section 8.1).
const MAX_HANDSHAKES: usize = 512;

/// All endpoints of this node.
#[derive(Debug)]
pub(super) struct QuicCarrier {
    /// Those that listen.
    listeners: Vec<Bound>,
    /// Dial only, for an address family that no listener serves; those of `expected` are let in.
    dialers: Vec<Bound>,
    /// Dial only, with throw-away keys.
    strangers: Vec<Bound>,
    /// From where `dialers` take calls, and whose, once for each [`LetIn`]: for each punch that runs a
    /// few.
    expected: Mutex<Vec<(IpAddr, NodeId)>>,
    server: ServerConfig,
    punching: Arc<TransportConfig>,
    handshakes: tokio::sync::Semaphore,
    counters: Arc<Counters>,
}

/// A call that has come.
#[derive(Debug)]
pub(crate) struct Call {
    incoming: Incoming,
    /// Who may have called, where it is not anybody.
    expected: Option<Vec<NodeId>>,
}

/// An endpoint on its socket.
#[derive(Debug)]
struct Bound {
    endpoint: Endpoint,
    families: Families,
    /// The endpoint's own once more.
    socket: UdpSocket,
}

impl QuicCarrier {
    /// Endpoints on `sockets`, and what is needed to dial, as from where this node listens; no
    /// `calls_from`: it dials nobody over QUIC.
    ///
    /// # Errors
    /// [`CarrierError`] when a socket cannot be bound.
    pub(super) fn new(
        sockets: Vec<(UdpSocket, Families)>,
        calls_from: Option<&[SocketAddr]>,
        identity: &Identity,
        counters: Arc<Counters>,
    ) -> Result<Self, CarrierError> {
        let server = server_config(identity)?;
        let listeners = sockets
            .into_iter()
            .map(|(socket, families)| Bound::on(socket, families, Some(server.clone()), identity))
            .collect::<Result<Vec<_>, _>>()?;
        let mut dialers = Vec::new();
        let mut strangers = Vec::new();
        let any_address = [
            (IpAddr::from(Ipv4Addr::UNSPECIFIED), Families::V4),
            (IpAddr::from(Ipv6Addr::UNSPECIFIED), Families::V6),
        ];
        for (any, families) in calls_from.map(|_| any_address).into_iter().flatten() {
            // A machine without IPv6 only lacks what it could not reach anyway.
            let bind = |ip: IpAddr| match Bound::new((ip, 0).into(), families, identity) {
                Err(_) if families == Families::V6 => Ok(None),
                other => other.map(Some),
            };
            if !listeners.iter().any(|bound| bound.families.reach(any)) {
                dialers.extend(bind(any)?);
            }
            let mut listen = calls_from.into_iter().flatten();
            let listener = listen.find(|own| own.is_ipv4() == any.is_ipv4());
            strangers.extend(bind(listener.map_or(any, SocketAddr::ip))?);
        }
        Ok(Self {
            listeners,
            dialers,
            strangers,
            expected: Mutex::default(),
            server,
            punching: Arc::new(punch::patient_transport()),
            handshakes: tokio::sync::Semaphore::new(MAX_HANDSHAKES),
            counters,
        })
    }

    /// Where this node listens, with the ports that the system chose.
    pub(crate) fn listen_addresses(&self) -> Vec<SocketAddr> {
        addresses(&self.listeners)
    }

    /// Where this node calls from.
    #[cfg(test)]
    pub(crate) fn calling_addresses(&self) -> Vec<SocketAddr> {
        [addresses(&self.dialers), addresses(&self.strangers)].concat()
    }

    /// Calls `id` at `address`. Cancel-safe: dropping it ends the attempt.
    ///
    /// # Errors
    /// [`LinkError`] when nobody answers in time or another node does.
    pub(super) async fn dial(
        &self,
        config: &ClientConfig,
        throw_away: bool,
        id: NodeId,
        address: SocketAddr,
    ) -> Result<quinn::Connection, LinkError> {
        let refused = |why: String| LinkError::Address { address, why };
        let endpoint = self
            .dialer(throw_away, address.ip())
            .ok_or_else(|| refused("no socket of that address family".to_owned()))?;
        let connecting = endpoint
            .connect_with(config.clone(), address, &id.to_string())
            .map_err(|error| refused(error.to_string()))?;
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(ConnectionError::TimedOut)) | Err(_) => Err(LinkError::NoAnswer { address }),
            Ok(Err(error)) => Err(LinkError::Handshake {
                address,
                // Raised on this side: the other end's own no is no fault of it.
                is_our_no: matches!(error, ConnectionError::TransportError(_)),
                why: error.to_string(),
            }),
        }
    }

    fn dialer(&self, throw_away: bool, ip: IpAddr) -> Option<&Endpoint> {
        let mut sockets = if throw_away {
            self.strangers.iter().chain(&[])
        } else {
            self.listeners.iter().chain(&self.dialers)
        };
        sockets
            .find(|bound| bound.families.reach(ip))
            .map(|bound| &bound.endpoint)
    }

    /// Takes the next call at any listener; `None` when the carrier is closed, if it listens. Its
    /// handshake is still to be done. Cancel-safe.
    pub(crate) async fn accept(&self) -> Option<Call> {
        loop {
            let (incoming, listens) = self.next_call().await?;
            let from = incoming.remote_address().ip();
            let expected = (!listens).then(|| self.expected_from(from));
            if expected.as_ref().is_some_and(Vec::is_empty) {
                incoming.ignore();
                continue;
            }
            let free = self.handshakes.available_permits();
            if free == 0 {
                self.counters.handshakes_failed.fetch_add(1, Relaxed);
                incoming.refuse();
            } else if free < MAX_HANDSHAKES * 3 / 4 && incoming.may_retry() {
                self.counters.calls_sent_back.fetch_add(1, Relaxed);
                // Cannot fail: may_retry was asked.
                let _ = incoming.retry();
            } else {
                return Some(Call { incoming, expected });
            }
        }
    }

    /// The next call, and whether it came to a listener.
    async fn next_call(&self) -> Option<(Incoming, bool)> {
        let listeners = self.listeners.iter().map(|bound| (bound, true));
        let dialers = self.dialers.iter().map(|bound| (bound, false));
        let both = listeners.chain(dialers);
        let mut calls: FuturesUnordered<_> = both
            .map(|(bound, listens)| bound.next_call(listens).boxed())
            .collect();
        if calls.is_empty() {
            return std::future::pending().await;
        }
        calls.next().await.flatten()
    }

    /// Does the handshake of a call.
    ///
    /// # Errors
    /// [`LinkError`] when it breaks, takes too long, there are too many, or another is expected.
    pub(super) async fn handshake(
        &self,
        call: Call,
    ) -> Result<(NodeId, quinn::Connection), LinkError> {
        let Call { incoming, expected } = call;
        let address = incoming.remote_address();
        let failed = |why: String| LinkError::Handshake {
            address,
            is_our_no: true,
            why,
        };
        let Ok(_place) = self.handshakes.try_acquire() else {
            incoming.refuse();
            return Err(failed("too many at once".to_owned()));
        };
        let connection = tokio::time::timeout(HANDSHAKE_TIMEOUT, incoming)
            .await
            .map_err(|_| failed("too slow".to_owned()))?
            .map_err(|error| failed(error.to_string()))?;
        let id = connection
            .peer_identity()
            .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
            .and_then(|keys| tls::peer_id(&keys))
            .ok_or_else(|| failed("no node id".to_owned()))?;
        // Others may be behind the same address.
        if expected.is_some_and(|expected| !expected.contains(&id)) {
            connection.close(CloseCode::Denied.number(), b"");
            return Err(failed("another node is expected from there".to_owned()));
        }
        Ok((id, connection))
    }

    /// Has every connection ask its other end for a sign of life.
    pub(super) fn probe(&self) {
        for bound in self.endpoints() {
            // quinn asks when the socket changes: it is the same one, which knows the new address.
            let rebound = bound.socket.try_clone();
            if let Err(error) = rebound.and_then(|socket| bound.endpoint.rebind(socket)) {
                tracing::warn!(%error, "connections over QUIC are not probed");
            }
        }
    }

    fn endpoints(&self) -> impl Iterator<Item = &Bound> {
        let all = [&self.listeners, &self.dialers, &self.strangers];
        all.into_iter().flatten()
    }

    /// Ends all connections and waits until their other ends were told.
    pub(crate) async fn close(&self) {
        for bound in self.endpoints() {
            bound.endpoint.close(CloseCode::Done.number(), b"");
        }
        for bound in self.endpoints() {
            bound.endpoint.wait_idle().await;
        }
    }
}

pub(super) fn set_standing(connection: &quinn::Connection, standing: Standing) {
    connection.set_receive_window(VarInt::from_u32(window_bytes(standing)));
}

/// Has the other end, whose standing that is, acknowledge something. quinn has no ping for it, but
/// tells of every window that grows, though it be by one byte which is taken back at once.
pub(super) fn ask(connection: &quinn::Connection, standing: Standing) {
    let window = window_bytes(standing);
    connection.set_receive_window(VarInt::from_u32(window + 1));
    connection.set_receive_window(VarInt::from_u32(window));
}

const fn window_bytes(standing: Standing) -> u32 {
    match standing {
        Standing::Stranger => STRANGER_WINDOW_BYTES,
        Standing::Known => KNOWN_WINDOW_BYTES,
    }
}

/// Lets the other end have so many streams open at once.
pub(super) fn grant_streams(connection: &quinn::Connection, streams: u32) {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(streams));
}

impl Bound {
    /// The next call that comes to it. Cancel-safe.
    async fn next_call(&self, listens: bool) -> Option<(Incoming, bool)> {
        match self.endpoint.accept().await {
            Some(incoming) => Some((incoming, listens)),
            None if listens => None,
            // The node was never said to listen there: it goes on without.
            None => std::future::pending().await,
        }
    }

    /// An endpoint that only dials.
    fn new(
        address: SocketAddr,
        families: Families,
        identity: &Identity,
    ) -> Result<Self, CarrierError> {
        let failed = |source| CarrierError::Bind {
            transport: "udp",
            address,
            source,
        };
        Self::on(
            socket(address, families).map_err(failed)?,
            families,
            None,
            identity,
        )
    }

    fn on(
        socket: UdpSocket,
        families: Families,
        server: Option<ServerConfig>,
        identity: &Identity,
    ) -> Result<Self, CarrierError> {
        let address = socket.local_addr();
        let config = EndpointConfig::new(Arc::new(ResetKey(identity.reset_key())));
        let endpoint = socket
            .try_clone()
            .and_then(|socket| Endpoint::new(config, server, socket, Arc::new(TokioRuntime)));
        let endpoint = endpoint.map_err(|source| CarrierError::Bind {
            transport: "udp",
            address: address.unwrap_or_else(|_| (Ipv4Addr::UNSPECIFIED, 0).into()),
            source,
        })?;
        Ok(Self {
            endpoint,
            families,
            socket,
        })
    }
}

fn addresses(sockets: &[Bound]) -> Vec<SocketAddr> {
    sockets
        .iter()
        .filter_map(|bound| bound.endpoint.local_addr().ok())
        .collect()
}

pub(super) fn socket(address: SocketAddr, families: Families) -> std::io::Result<UdpSocket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(families == Families::V6)?;
    }
    enlarge_buffers(&socket);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Bytes that the system grants a socket for receiving and sending, and what was asked for.
pub(crate) fn granted_buffers() -> std::io::Result<(usize, usize, usize)> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    enlarge_buffers(&socket);
    // Linux counts its own overhead and reports twice what it grants (socket(7)).
    let (receive, send) = (socket.recv_buffer_size()?, socket.send_buffer_size()?);
    Ok((receive / 2, send / 2, SOCKET_BUFFER_BYTES))
}

/// As far as the system lets: beyond net.core.rmem_max only root may go.
fn enlarge_buffers(socket: &Socket) {
    use rustix::net::sockopt;
    if sockopt::set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER_BYTES).is_err() {
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    }
    if sockopt::set_socket_send_buffer_size_force(socket, SOCKET_BUFFER_BYTES).is_err() {
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    }
}

pub(super) fn client_config(identity: &Identity) -> Result<ClientConfig, TlsError> {
    let crypto = QuicClientConfig::try_from(tls::client_config(identity)?)
        .map_err(|error| TlsError(error.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport(Standing::Known)));
    Ok(config)
}

fn server_config(identity: &Identity) -> Result<ServerConfig, TlsError> {
    let crypto = QuicServerConfig::try_from(tls::server_config(identity)?)
        .map_err(|error| TlsError(error.to_string()))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    // A caller is nobody until its key was seen.
    config.transport_config(Arc::new(transport(Standing::Stranger)));
    config.max_incoming(MAX_HANDSHAKES);
    // A million-connection flood may not fill memory with first packets: 16 KiB holds a client
    // hello with a post-quantum share.
    config.incoming_buffer_size(16 << 10);
    config.incoming_buffer_size_total(8 << 20);
    Ok(config)
}

fn transport(standing: Standing) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(FIRST_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(window_bytes(standing)))
        .send_window(SEND_WINDOW_BYTES)
        .max_idle_timeout(IDLE_TIMEOUT.try_into().ok())
        .keep_alive_interval(Some(KEEP_ALIVE))
        // Fewer acknowledgements to write and to read.
        .ack_frequency_config(Some(AckFrequencyConfig::default()))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES);
    config
}

/// Keys stateless resets (RFC 9000, section 10.3), the same after a restart.
struct ResetKey(hmac::Key);

impl quinn::crypto::HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(hmac::sign(&self.0, data).as_ref());
    }

    fn signature_len(&self) -> usize {
        hmac::HMAC_SHA256.digest_algorithm().output_len()
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), quinn::crypto::CryptoError> {
        hmac::verify(&self.0, data, signature).map_err(|_| quinn::crypto::CryptoError)
    }
}
