//! The head of each datagram between a program and a UDP association (RFC 1928, section 7).
//!
//! ```text
//! reserved u16 | fragment u8 | host | port u16 | data         host as in a request
//! ```
//! Fragments are not put together: the RFC lets a server drop them, and nobody sends them.

use thiserror::Error;

use super::{WireHost, decode_host, encode_host, server::target};
use crate::{
    target::Target,
    wire::{Reader, WireError, Writer},
};

/// A datagram that is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SocksDatagramError {
    /// It is a piece of a longer one.
    #[error("it is a fragment")]
    Fragment,
    /// An address type other than 1, 3 and 4.
    #[error("unknown address type")]
    AddressType,
    /// The name or the port cannot be a target.
    #[error("it names no target")]
    Target,
    /// It ends inside its head.
    #[error("malformed: {0}")]
    Wire(#[from] WireError),
}

/// What stands before the data of a datagram from, or to, `target`.
pub fn encode_socks_datagram_head(target: &Target) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.u16(0).u8(0);
    encode_host(&target.host, &mut writer);
    writer.u16(target.port);
    writer.into_vec()
}

/// Where a datagram is to go, and its data. A name is not resolved.
///
/// # Errors
/// [`SocksDatagramError`].
pub fn decode_socks_datagram(datagram: &[u8]) -> Result<(Target, &[u8]), SocksDatagramError> {
    let mut reader = Reader::new(datagram);
    // What a client puts into reserved bytes does not matter, as in a request.
    reader.u16("reserved")?;
    if reader.u8("fragment")? != 0 {
        return Err(SocksDatagramError::Fragment);
    }
    let host = decode_host(&mut reader)?;
    if matches!(host, WireHost::UnknownKind) {
        return Err(SocksDatagramError::AddressType);
    }
    let port = reader.u16("port")?;
    let target = target(&host, port).ok_or(SocksDatagramError::Target)?;
    Ok((target, reader.rest()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::for_mutations;

    /// Frozen: programs that nobody here wrote speak these bytes.
    #[test]
    fn datagrams_keep_their_bytes() {
        for (target, head) in [
            ("1.2.3.4:53", &b"\0\0\0\x01\x01\x02\x03\x04\0\x35"[..]),
            ("a.example:80", b"\0\0\0\x03\x09a.example\0\x50"),
            (
                "[::1]:443",
                b"\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x01\xbb",
            ),
        ] {
            let target: Target = target.parse().unwrap();
            assert_eq!(encode_socks_datagram_head(&target), head);
            let datagram = [head, b"data"].concat();
            let read = decode_socks_datagram(&datagram);
            assert_eq!(read, Ok((target, &b"data"[..])));
        }
    }

    #[test]
    fn each_bad_datagram_is_named() {
        use SocksDatagramError::{AddressType, Fragment, Target, Wire};
        let cut = |field| Wire(WireError::Truncated(field));
        for (datagram, error) in [
            (&b""[..], cut("reserved")),
            (b"\0\0", cut("fragment")),
            (b"\0\0\x01\x01\x01\x02\x03\x04\0\x35x", Fragment),
            (b"\0\0\x80\x01\x01\x02\x03\x04\0\x35x", Fragment),
            (b"\0\0\0\x02\x01\x02\x03\x04\0\x35x", AddressType),
            (b"\0\0\0\x01\x01\x02\x03", cut("address")),
            (b"\0\0\0\x01\x01\x02\x03\x04\0", cut("port")),
            (b"\0\0\0\x01\x01\x02\x03\x04\0\0x", Target),
            (b"\0\0\0\x03\0\0\x35x", Target),
            (b"\0\0\0\x03\x02\xff\xfe\0\x35x", Target),
            (b"\0\0\0\x03\x09a.exam", cut("name")),
        ] {
            assert_eq!(decode_socks_datagram(datagram), Err(error), "{datagram:?}");
        }
    }

    #[test]
    fn damaged_datagrams_yield_no_more_than_there_is() {
        for_mutations(b"\0\0\0\x03\x09a.example\0\x50data", |bytes| {
            if let Ok((_, data)) = decode_socks_datagram(bytes) {
                assert!(bytes.ends_with(data));
            }
        });
    }
}
