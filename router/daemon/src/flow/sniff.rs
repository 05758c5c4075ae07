//! Reads which server a program's TLS asks for, and takes nothing away from what it sends.
//!
//! rustls reads the ClientHello; here is only how much of it is waited for. What begins like TLS and
//! cannot be read is no flow without TLS: a rule would send it where it sends those.

use bytes::BytesMut;
use rustls::server::Acceptor;
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::Refusal;

/// Room for the longest ClientHello of a browser, which has some 2 KiB, many times over.
const MAX_BYTES: usize = 16 << 10;
const READ_BYTES: usize = 4 << 10;
/// What TLS begins with: a record of the handshake (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;

/// What the bytes that a flow begins with say.
#[derive(Debug, PartialEq, Eq)]
enum Begin {
    /// They may be the beginning of a ClientHello.
    NeedMore,
    /// In lower case, without a final dot; none: there is no TLS, or it names no server.
    Name(Option<String>),
    /// TLS, but nobody can tell for which server.
    Unreadable,
}

/// Reads from `stream`, to what `begin` holds of it already, until the name is known or there is
/// none. None when the connection broke.
///
/// # Errors
/// [`Refusal::Blocked`] when nobody can tell.
pub(super) async fn server_name(
    stream: &mut TcpStream,
    begin: &mut BytesMut,
    deadline: Instant,
) -> Option<Result<Option<String>, Refusal>> {
    let unreadable = "the server that the program's TLS names cannot be read";
    let blocked = |why: &str| Some(Err(Refusal::Blocked(why.to_owned())));
    loop {
        match look(begin.get(..MAX_BYTES).unwrap_or(begin)) {
            Begin::Name(name) => return Some(Ok(name)),
            Begin::Unreadable => return blocked(unreadable),
            Begin::NeedMore if begin.len() >= MAX_BYTES => return blocked(unreadable),
            Begin::NeedMore => begin.reserve(READ_BYTES),
        }
        match timeout_at(deadline, stream.read_buf(begin)).await {
            Ok(Ok(0)) if begin.is_empty() => return Some(Ok(None)),
            Ok(Ok(0)) => return blocked(unreadable),
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return None,
            Err(_) if begin.is_empty() => {
                return blocked(
                    "the program says nothing, and a rule reads c.sni; where the server speaks \
                     first, ask c.port before",
                );
            }
            Err(_) => return blocked(unreadable),
        }
    }
}

fn look(mut begin: &[u8]) -> Begin {
    match begin.first() {
        None => return Begin::NeedMore,
        Some(&HANDSHAKE) => {}
        Some(_) => return Begin::Name(None),
    }
    let mut acceptor = Acceptor::default();
    while !begin.is_empty() {
        if acceptor.read_tls(&mut begin).is_err() {
            return Begin::Unreadable;
        }
    }
    match acceptor.accept() {
        Ok(None) => Begin::NeedMore,
        Ok(Some(accepted)) => {
            let hello = accepted.client_hello();
            let name = hello.server_name().map(|name| {
                let name = name.to_ascii_lowercase();
                name.strip_suffix('.').unwrap_or(&name).to_owned()
            });
            Begin::Name(name)
        }
        Err(_) => Begin::Unreadable,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};

    use super::*;

    fn hello(name: &'static str) -> Vec<u8> {
        let config = ClientConfig::builder()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_client_hello_names_its_server() {
        let hello = hello("Shop.Example.");
        let (last, rest) = hello.split_last().unwrap();
        assert_eq!(look(&hello), Begin::Name(Some("shop.example".to_owned())));
        for len in 0..rest.len() {
            assert_eq!(look(&rest[..len]), Begin::NeedMore, "{len} bytes");
        }
        assert_eq!(look(rest), Begin::NeedMore);
        let more = [rest, &[*last], b"and what follows"].concat();
        assert_eq!(look(&more), Begin::Name(Some("shop.example".to_owned())));
    }

    #[test]
    fn what_is_no_client_hello_has_no_name() {
        let none = Begin::Name(None);
        assert_eq!(look(&hello("192.0.2.1")), none, "an address is no name");
        assert_eq!(look(b"GET / HTTP/1.1\r\nHost: x.example\r\n\r\n"), none);
        assert_eq!(look(b"SSH-2.0-OpenSSH_9.2\r\n"), none);
    }

    #[test]
    fn tls_that_cannot_be_read_is_not_taken_for_none() {
        let too_long = [22, 3, 1, 0xff, 0xff, 1];
        assert_eq!(look(&too_long), Begin::Unreadable);
        let mut damaged = hello("shop.example");
        // The length of the session id, which reaches beyond the end.
        damaged[43] = 0xff;
        assert_eq!(look(&damaged), Begin::Unreadable);
    }
}
