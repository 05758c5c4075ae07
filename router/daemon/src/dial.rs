//! Dialling targets from this node: resolve, check every address, dial exactly what was checked.

mod resolver;

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use thiserror::Error;
use tokio::net::{TcpStream, UdpSocket};
use wormholes_proto::{Reason, Transport};

use crate::{
    ban::Ban,
    counters::Counters,
    pipe::{DatagramPipe, Pipe, Side},
};

pub(crate) use resolver::Resolver;

/// Each further address gets its try after this (RFC 8305, section 5).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// A target that was not reached from here.
#[derive(Debug, Clone, Error)]
pub enum DialError {
    /// The name has no address.
    #[error("name not found")]
    NameNotFound,
    /// No name server answered, or none is configured.
    #[error("names cannot be looked up: {0}")]
    Resolver(String),
    /// A name that never leaves in clear.
    #[error("name is for special use and is not looked up")]
    SpecialUse,
    /// No address of the target may be dialled.
    #[error("forbidden: {0}")]
    Banned(String),
    /// The config or a rule forbids it.
    #[error("denied")]
    Denied,
    /// The target refused.
    #[error("connection refused")]
    Refused,
    /// No way leads to its network.
    #[error("network unreachable")]
    NetworkUnreachable,
    /// No way leads to its host.
    #[error("host unreachable")]
    Unreachable,
    /// The address is good on one link, and a target cannot say on which.
    #[error("a link-local address is nowhere without a zone, and no target has one")]
    NoZone,
    /// It did not answer in time.
    #[error("timed out")]
    TimedOut,
    /// The system refused for its own reasons.
    #[error("cannot dial: {0}")]
    System(ErrorKind),
}

impl DialError {
    /// The reason that goes over the wire, and that a reply at an entrance is chosen by.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NameNotFound => Reason::NameNotFound,
            Self::NetworkUnreachable => Reason::NetworkUnreachable,
            Self::Resolver(_) | Self::Unreachable | Self::NoZone => Reason::Unreachable,
            Self::SpecialUse | Self::Banned(_) => Reason::ForbiddenAddress,
            Self::Denied => Reason::Denied,
            Self::Refused => Reason::ConnectionRefused,
            Self::TimedOut => Reason::TimedOut,
            Self::System(_) => Reason::Busy,
        }
    }
}

impl From<Ban> for DialError {
    fn from(ban: Ban) -> Self {
        Self::Banned(ban.to_string())
    }
}

/// Keeps the addresses that `check` lets pass, in order.
///
/// # Errors
/// The last refusal, when none passes.
pub(crate) fn permitted(
    addresses: Vec<SocketAddr>,
    mut check: impl FnMut(SocketAddr) -> Result<(), DialError>,
) -> Result<Vec<SocketAddr>, DialError> {
    let mut refusal = DialError::NameNotFound;
    let mut passed = Vec::new();
    for address in addresses {
        match check(address) {
            Ok(()) => passed.push(address),
            Err(error) => refusal = error,
        }
    }
    if passed.is_empty() {
        Err(refusal)
    } else {
        Ok(passed)
    }
}

/// The target's side of a flow of `transport`, at the first of `addresses` that can be had.
///
/// # Errors
/// [`DialError`] of the last that failed.
pub(crate) async fn side(
    transport: Transport,
    addresses: &[SocketAddr],
    timeout: Duration,
    counters: &Arc<Counters>,
) -> Result<Side, DialError> {
    Ok(match transport {
        Transport::Tcp => Side::Stream(Pipe::tcp(connect(addresses, timeout).await?)),
        Transport::Udp => {
            let socket = connect_udp(addresses).await?;
            Side::Datagrams(DatagramPipe::socket(socket, counters))
        }
    })
}

/// A socket for datagrams to and from the first of `addresses` that the system knows a way to, and
/// nobody else: whether anybody is there, no answer tells before the first datagram.
async fn connect_udp(addresses: &[SocketAddr]) -> Result<UdpSocket, DialError> {
    let mut failed = DialError::NameNotFound;
    for address in addresses {
        if lacks_zone(*address) {
            failed = DialError::NoZone;
            continue;
        }
        match udp_to(*address).await {
            Ok(socket) => return Ok(socket),
            Err(error) => failed = dial_error(error.kind()),
        }
    }
    Err(failed)
}

async fn udp_to(address: SocketAddr) -> io::Result<UdpSocket> {
    let any = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    Ok(socket)
}

/// Connects to the first of `addresses` that answers; each next one starts when the one before
/// failed or was slow. Dials nothing else.
///
/// # Errors
/// [`DialError`] of the last that failed.
pub(crate) async fn connect(
    addresses: &[SocketAddr],
    timeout: Duration,
) -> Result<TcpStream, DialError> {
    let one = async |address| {
        if lacks_zone(address) {
            return Err(DialError::NoZone);
        }
        let connected = TcpStream::connect(address).await;
        connected.map_err(|error| dial_error(error.kind()))
    };
    let first = async {
        match addresses {
            [address] => Some(one(*address).await),
            addresses => first_to_open(addresses, one).await,
        }
    };
    match tokio::time::timeout(timeout, first).await {
        Ok(result) => result.unwrap_or(Err(DialError::NameNotFound)),
        Err(_) => Err(DialError::TimedOut),
    }
}

/// Runs `open` on each address in turn, the next one as soon as the one before failed or took too
/// long; the first success wins and the rest are dropped. `None` when there are no addresses.
pub(crate) async fn first_to_open<A: Copy, T, E, F: Future<Output = Result<T, E>>>(
    addresses: &[A],
    open: impl Fn(A) -> F,
) -> Option<Result<T, E>> {
    let mut waiting = addresses.iter();
    let mut running = FuturesUnordered::new();
    running.push(open(*waiting.next()?));
    loop {
        let slow = async {
            if waiting.len() == 0 {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(NEXT_ADDRESS).await;
        };
        let failed = tokio::select! {
            result = running.next() => match result? {
                Ok(opened) => return Some(Ok(opened)),
                Err(error) => Some(error),
            },
            () = slow => None,
        };
        match (waiting.next(), failed) {
            (Some(address), _) => running.push(open(*address)),
            (None, Some(error)) if running.is_empty() => return Some(Err(error)),
            (None, _) => {}
        }
    }
}

/// The kernel would call it an invalid argument.
fn lacks_zone(address: SocketAddr) -> bool {
    match address {
        SocketAddr::V6(v6) => v6.ip().is_unicast_link_local() && v6.scope_id() == 0,
        SocketAddr::V4(_) => false,
    }
}

fn dial_error(kind: ErrorKind) -> DialError {
    let is = |kinds: &[ErrorKind]| kinds.contains(&kind);
    if is(&[ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset]) {
        DialError::Refused
    } else if is(&[
        ErrorKind::NetworkUnreachable,
        ErrorKind::NetworkDown,
        // No address of the family here.
        ErrorKind::AddrNotAvailable,
    ]) {
        DialError::NetworkUnreachable
    } else if kind == ErrorKind::HostUnreachable {
        DialError::Unreachable
    } else if kind == ErrorKind::TimedOut {
        DialError::TimedOut
    } else {
        DialError::System(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_checked_addresses_remain() {
        let check = |address: SocketAddr| {
            crate::ban::banned(address.ip(), false).map_or(Ok(()), |ban| Err(ban.into()))
        };
        let mixed = vec![
            address("127.0.0.1:80"),
            address("1.1.1.1:80"),
            address("[::1]:80"),
        ];
        assert_eq!(permitted(mixed, check).unwrap(), [address("1.1.1.1:80")]);
        let bad = vec![address("127.0.0.1:80"), address("10.0.0.1:80")];
        assert_eq!(
            permitted(bad, check).unwrap_err().reason(),
            Reason::ForbiddenAddress
        );
    }

    #[tokio::test]
    async fn a_slow_address_does_not_hold_up_the_next() {
        let addresses = [
            address("1.1.1.1:1"),
            address("1.1.1.1:2"),
            address("1.1.1.1:3"),
        ];
        let open = |address: SocketAddr| async move {
            match address.port() {
                1 => std::future::pending().await,
                2 => Err("refused"),
                port => Ok(port),
            }
        };
        assert_eq!(first_to_open(&addresses, open).await, Some(Ok(3)));
        assert_eq!(
            first_to_open(&addresses[1..2], open).await,
            Some(Err("refused"))
        );
        assert_eq!(first_to_open(&[], open).await, None);
    }
}
