//! SOCKS5 (RFC 1928) with user name and password (RFC 1929): CONNECT on both sides; UDP ASSOCIATE
//! and its datagrams, Tor's RESOLVE, and SOCKS4 with 4a on the side of the server.
//!
//! Not here: sockets, users, time-outs, BIND and RESOLVE_PTR (answered 7), GSSAPI (not offered).
//!
//! ```text
//! client                                server
//! 5 | n | n methods                ->
//!                                  <-   5 | method (0 none, 2 password, 255 no match)
//! 1 | n | user | n | password      ->                            method 2 only
//!                                  <-   1 | status (0 good)
//! 5 | command | 0 | host | port    ->   host: 1 + 4 B, 3 + length u8 + name, 4 + 16 B
//!                                  <-   5 | reply | 0 | host | port
//! ```
//! RESOLVE (Tor's socks-extensions) is a command like the others: its port means nothing, and the
//! reply's host is the answer.

mod client;
mod datagram;
mod server;
mod v4;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use thiserror::Error;
use zeroize::ZeroizeOnDrop;

use crate::{
    target::Host,
    wire::{Reader, WireError, Writer},
};

pub use client::{SocksClient, SocksClientError, SocksClientState, SocksClientStep};
pub use datagram::{SocksDatagramError, decode_socks_datagram, encode_socks_datagram_head};
pub use server::{SocksAuth, SocksServer, SocksServerError, SocksServerState, SocksServerStep};

/// The longest message either side sends: a request of SOCKS4a, a little more than user name and
/// password at full length. A caller that keeps this much unread input never stalls a handshake.
pub const MAX_SOCKS_MESSAGE_BYTES: usize = v4::MAX_REQUEST_BYTES;
/// Bytes of a user name, and of a password: their lengths are one byte (RFC 1929, section 2).
pub const MAX_CREDENTIAL_BYTES: usize = 255;

const VERSION: u8 = 5;
const PASSWORD_VERSION: u8 = 1;
const METHOD_NONE: u8 = 0;
const METHOD_PASSWORD: u8 = 2;
const METHOD_NO_MATCH: u8 = 255;
const CONNECT: u8 = 1;
const UDP_ASSOCIATE: u8 = 3;
const RESOLVE: u8 = 0xf0;

/// What a client speaks, and is answered in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocksVersion {
    /// SOCKS4 or 4a.
    V4,
    /// SOCKS5.
    V5,
}

/// How a request ended (RFC 1928, section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[repr(u8)]
pub enum SocksReply {
    /// The connection stands.
    #[error("succeeded")]
    Succeeded = 0,
    /// None of the others.
    #[error("general failure")]
    GeneralFailure = 1,
    /// A rule forbids it.
    #[error("not allowed by the rules")]
    NotAllowed = 2,
    /// No route.
    #[error("network unreachable")]
    NetworkUnreachable = 3,
    /// No such host, or it does not answer.
    #[error("host unreachable")]
    HostUnreachable = 4,
    /// The target refused.
    #[error("connection refused")]
    ConnectionRefused = 5,
    /// Timed out.
    #[error("timed out")]
    TtlExpired = 6,
    /// BIND or an unknown command.
    #[error("command not supported")]
    CommandNotSupported = 7,
    /// An unknown kind of address.
    #[error("address type not supported")]
    AddressTypeNotSupported = 8,
}

/// User name and password: what an entrance checks, or an isolation label. Debug shows neither.
#[derive(Clone, PartialEq, Eq, ZeroizeOnDrop)]
pub struct SocksCredentials {
    user: String,
    password: String,
}

/// A user name or a password that RFC 1929 cannot carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a SOCKS user name or password has at most {MAX_CREDENTIAL_BYTES} bytes")]
pub struct CredentialsError;

impl SocksCredentials {
    /// Checks the lengths.
    ///
    /// # Errors
    /// [`CredentialsError`] when one is longer than [`MAX_CREDENTIAL_BYTES`].
    pub fn new(user: &str, password: &str) -> Result<Self, CredentialsError> {
        if user.len().max(password.len()) > MAX_CREDENTIAL_BYTES {
            return Err(CredentialsError);
        }
        Ok(Self {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }

    /// The user name.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The password.
    pub fn password(&self) -> &str {
        &self.password
    }
}

impl SocksVersion {
    /// The whole reply message to a CONNECT; SOCKS4 knows yes and no only.
    pub fn encode(self, reply: SocksReply) -> Vec<u8> {
        match self {
            Self::V4 => v4::encode_reply(reply == SocksReply::Succeeded),
            Self::V5 => reply.encode(None),
        }
    }
}

impl fmt::Debug for SocksCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SocksCredentials(…)")
    }
}

impl SocksReply {
    const ALL: [Self; 9] = [
        Self::Succeeded,
        Self::GeneralFailure,
        Self::NotAllowed,
        Self::NetworkUnreachable,
        Self::HostUnreachable,
        Self::ConnectionRefused,
        Self::TtlExpired,
        Self::CommandNotSupported,
        Self::AddressTypeNotSupported,
    ];

    /// The wire number.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Reads a wire number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reply| reply.number() == number)
    }

    /// The whole reply message. `bound` is where an association takes datagrams, or where the far
    /// connection leaves from; the latter a node does not tell, and sends zeros.
    pub fn encode(self, bound: Option<SocketAddr>) -> Vec<u8> {
        let bound = bound.unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into());
        let mut writer = Writer::new();
        writer.u8(VERSION).u8(self.number()).u8(0);
        encode_host(&Host::Ip(bound.ip()), &mut writer);
        writer.u16(bound.port());
        writer.into_vec()
    }
}

/// Appends kind and host; the port follows.
fn encode_host(host: &Host, writer: &mut Writer) {
    match host {
        Host::Ip(IpAddr::V4(ip)) => writer.u8(1).bytes(&ip.octets()),
        Host::Name(name) => writer.u8(3).short_bytes(name.as_bytes()),
        Host::Ip(IpAddr::V6(ip)) => writer.u8(4).bytes(&ip.octets()),
    };
}

/// A host as it stands on the wire: a name is not looked at.
enum WireHost<'a> {
    Ip(IpAddr),
    Name(&'a [u8]),
    /// Its length is unknown, so that nothing behind it can be read.
    UnknownKind,
}

fn decode_host<'a>(reader: &mut Reader<'a>) -> Result<WireHost<'a>, WireError> {
    Ok(match reader.u8("address type")? {
        1 => WireHost::Ip(reader.array::<4>("address")?.into()),
        3 => WireHost::Name(reader.short_bytes("name")?),
        4 => WireHost::Ip(reader.array::<16>("address")?.into()),
        _ => WireHost::UnknownKind,
    })
}

/// One message from the front of `input`: its value and length, or `None` when more is needed.
fn take<T>(
    input: &[u8],
    read: impl FnOnce(&mut Reader<'_>) -> Result<T, WireError>,
) -> Option<Result<(T, usize), WireError>> {
    let mut reader = Reader::new(input);
    match read(&mut reader) {
        Ok(value) => Some(Ok((value, input.len() - reader.rest().len()))),
        Err(WireError::Truncated(_)) => None,
        Err(error) => Some(Err(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::for_mutations;

    /// Runs a whole handshake over input that is all there: it must end, and take no more than
    /// there is.
    fn serve(input: &[u8]) {
        let mut server = SocksServer::new(SocksAuth::Label);
        let mut rest = input;
        for _ in 0..4 {
            let step = server.handle_input(rest);
            rest = &rest[step.consumed..];
            match step.state {
                SocksServerState::CheckPassword(_) => server.handle_verdict(true),
                SocksServerState::NeedMore => {
                    assert!(rest.len() < MAX_SOCKS_MESSAGE_BYTES);
                    return;
                }
                SocksServerState::Request { .. }
                | SocksServerState::Resolve(_)
                | SocksServerState::Associate(_)
                | SocksServerState::Failed(_) => return,
            };
        }
        panic!("the handshake does not end");
    }

    #[test]
    fn damaged_input_ends_a_servers_handshake() {
        let login = b"\x05\x02\x00\x02\x01\x01u\x02pw";
        let request = b"\x05\x01\x00\x03\x09a.example\x00\x50";
        for_mutations(&[&login[..], request].concat(), serve);
        for_mutations(
            b"\x04\x01\x00\x50\x00\x00\x00\x01me\x00a.example\x00",
            serve,
        );
    }

    #[test]
    fn damaged_input_ends_a_clients_handshake() {
        let answers = b"\x05\x02\x01\x00\x05\x00\x00\x03\x01x\x00\x50";
        for_mutations(answers, |bytes| {
            let credentials = SocksCredentials::new("u", "pw").unwrap();
            let target = "a.example:80".parse().unwrap();
            let (mut client, _) = SocksClient::new(target, Some(credentials));
            let step = client.handle_input(bytes);
            assert!(step.consumed <= bytes.len());
            let ended = step.state != SocksClientState::NeedMore;
            assert!(ended || bytes.len() - step.consumed < MAX_SOCKS_MESSAGE_BYTES);
        });
    }

    #[test]
    fn replies_keep_their_numbers() {
        for (number, reply) in (0..).zip(SocksReply::ALL) {
            assert_eq!(SocksReply::from_number(number), Some(reply));
            assert_eq!(reply.encode(None), [5, number, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
        assert_eq!(SocksReply::from_number(9), None);
        let bound = "[::1]:80".parse().ok();
        let expected = b"\x05\x00\x00\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x00\x50";
        assert_eq!(SocksReply::Succeeded.encode(bound), expected);
    }
}
