//! Reads which server a program's TLS asks for, and takes nothing away from what it sends.
//!
//! rustls reads the ClientHello; here is only how long and how much of it is waited for.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustls::server::Acceptor;
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{Instant, timeout_at},
};

/// How long a program may take to send its ClientHello. One whose server speaks first waits so long.
const TIMEOUT: Duration = Duration::from_millis(500);
/// Room for the longest ClientHello of a browser, which has some 2 KiB, many times over. Beyond it, a
/// flow has no name.
const MAX_BYTES: usize = 16 << 10;
const READ_BYTES: usize = 4 << 10;

/// What the bytes that a flow begins with say.
#[derive(Debug, PartialEq, Eq)]
enum Begin {
    /// They may be the beginning of a ClientHello.
    NeedMore,
    /// In lower case, without a final dot; none: it is no ClientHello that names a server.
    Name(Option<String>),
}

/// Reads from `stream`, of which `ahead` was read before, until the name is known or there is none.
/// Gives all that was read. None when the connection broke.
pub(super) async fn server_name(
    stream: &mut TcpStream,
    ahead: Bytes,
) -> Option<(Bytes, Option<String>)> {
    let deadline = Instant::now() + TIMEOUT;
    let mut begin = BytesMut::from(ahead);
    let name = loop {
        if let Begin::Name(name) = look(&begin) {
            break name;
        }
        if begin.len() >= MAX_BYTES {
            break None;
        }
        begin.reserve(READ_BYTES);
        match timeout_at(deadline, stream.read_buf(&mut begin)).await {
            Ok(Ok(read)) if read > 0 => {}
            // It sends nothing more, or nothing yet.
            Ok(Ok(_)) | Err(_) => break None,
            Ok(Err(_)) => return None,
        }
    };
    Some((begin.freeze(), name))
}

fn look(mut begin: &[u8]) -> Begin {
    let mut acceptor = Acceptor::default();
    while !begin.is_empty() {
        if acceptor.read_tls(&mut begin).is_err() {
            return Begin::Name(None);
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
        Err(_) => Begin::Name(None),
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
        assert_eq!(
            look(&[0x16, 3, 1, 0xff, 0xff, 1]),
            none,
            "too long a record"
        );
    }
}
