//! Hole punching: where a node says that it may be dialled, and where another one sees it. Two nodes
//! tell each other their candidates on a sealed stream through a relay, and dial each other at once:
//! what each sends opens its own NAT for the other. The asking is an OPEN's (module `stream`).
//!
//! ```text
//! candidates  addresses, 1 to 8 of them     in OPEN punch, and in the ACCEPTED that answers it
//! mirrored    addresses, exactly one        in the ACCEPTED that answers OPEN mirror
//! ```
//! Each is one that can be dialled ([`crate::is_dialable`]); which of them are dialled is for whoever
//! is told to judge.

use std::net::SocketAddr;

use crate::{
    address::{decode_addresses, encode_addresses},
    is_dialable,
    wire::{Reader, WireError, Writer},
};

/// Candidates of one node: one for each relay and address family, and those of its own machine. Each
/// costs whoever is told some packets.
pub const MAX_CANDIDATES: usize = 8;

/// Writes candidates; those beyond [`MAX_CANDIDATES`], and those that nobody can dial, are left out.
pub fn encode_candidates(candidates: &[SocketAddr]) -> Vec<u8> {
    let mut body = Writer::new();
    write_candidates(candidates, &mut body);
    body.into_vec()
}

/// Reads what [`encode_candidates`] wrote: never none.
///
/// # Errors
/// [`WireError`]: the other node broke the protocol.
pub fn decode_candidates(body: &[u8]) -> Result<Vec<SocketAddr>, WireError> {
    let mut reader = Reader::new(body);
    let candidates = read_candidates(&mut reader)?;
    reader.finish()?;
    Ok(candidates)
}

/// Writes the address from which a node is seen.
pub fn encode_mirrored(seen: SocketAddr) -> Vec<u8> {
    let mut body = Writer::new();
    encode_addresses(&[seen], &mut body);
    body.into_vec()
}

/// Reads what [`encode_mirrored`] wrote.
///
/// # Errors
/// [`WireError`]: the other node broke the protocol.
pub fn decode_mirrored(body: &[u8]) -> Result<SocketAddr, WireError> {
    let mut reader = Reader::new(body);
    let seen = decode_addresses(&mut reader, 1)?;
    reader.finish()?;
    let seen = seen.first().copied();
    seen.ok_or(WireError::Invalid("address count"))
}

pub(crate) fn write_candidates(candidates: &[SocketAddr], writer: &mut Writer) {
    let dialable = candidates.iter().filter(|address| is_dialable(address));
    let candidates: Vec<SocketAddr> = dialable.take(MAX_CANDIDATES).copied().collect();
    encode_addresses(&candidates, writer);
}

pub(crate) fn read_candidates(reader: &mut Reader<'_>) -> Result<Vec<SocketAddr>, WireError> {
    let candidates = decode_addresses(reader, MAX_CANDIDATES)?;
    match candidates.is_empty() {
        true => Err(WireError::Invalid("address count")),
        false => Ok(candidates),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// Frozen: other builds speak these bytes.
    #[test]
    fn candidates_and_mirrored_addresses_keep_their_bytes() {
        let candidates = [address("203.0.113.5:4433"), address("[2001:db8::1]:1")];
        let bytes = encode_candidates(&candidates);
        let expected = b"\x02\x04\xcb\x00\x71\x05\x11\x51\
            \x06\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\0\x01";
        assert_eq!(bytes, expected);
        assert_eq!(decode_candidates(&bytes), Ok(candidates.to_vec()));
        let bytes = encode_mirrored(candidates[0]);
        assert_eq!(bytes, b"\x01\x04\xcb\x00\x71\x05\x11\x51");
        assert_eq!(decode_mirrored(&bytes), Ok(candidates[0]));
    }

    #[test]
    fn candidates_are_one_to_eight_that_can_be_dialled() {
        let mut many: Vec<SocketAddr> = (1..=12).map(|port| ([10, 0, 0, 1], port).into()).collect();
        many.insert(0, address("224.0.0.1:1"));
        many.insert(0, address("10.0.0.1:0"));
        let read = decode_candidates(&encode_candidates(&many)).unwrap();
        assert_eq!(read, many[2..2 + MAX_CANDIDATES]);
        assert!(decode_candidates(&encode_candidates(&[])).is_err());
        assert!(decode_candidates(b"\x09").is_err(), "nine");
        assert!(
            decode_candidates(b"\x01\x04\x0a\0\0\x01\0\0").is_err(),
            "port 0"
        );
        assert!(decode_candidates(b"\x01\x04\x0a\0\0\x01\0\x01\0").is_err());
    }

    #[test]
    fn a_mirror_shows_one_address() {
        assert!(decode_mirrored(b"\0").is_err());
        let two = encode_candidates(&[address("10.0.0.1:1"), address("10.0.0.1:2")]);
        assert!(decode_mirrored(&two).is_err());
    }
}
