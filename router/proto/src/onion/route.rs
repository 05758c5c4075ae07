//! What a hop is told in its slot of CREATE, and nobody else.
//!
//! ```text
//! ROUTE 112  flags u8 | next node id 32 | family u8 | address 16 | port u16 | next key id 8
//!            | k 32 | rest 20
//! flags      bit 0: this hop is the last, and everything up to k is zero
//! family     4: the address is the first 4 bytes, zeros follow; 6: all 16
//! k          random; keys the streams over CREATE and CREATED
//! rest       zero
//! ```
//! The whole is encrypted, so random bytes would hide nothing that zeros do not; zeros that are
//! checked leave no room for a mark and let a later version give them a meaning.

use std::net::{IpAddr, SocketAddr};

use zeroize::Zeroizing;

use crate::{
    address::is_dialable,
    id::NodeId,
    wire::{Reader, WireError, Writer},
};

pub(super) const ROUTE_BYTES: usize = 112;

const LAST: u8 = 1;
const NEXT_BYTES: usize = 32 + 1 + 16 + 2 + 8;
const REST_BYTES: usize = 20;

/// A route, read or to be written.
pub(super) struct Route {
    /// `None` for the last hop.
    pub(super) next: Option<NextHop>,
    /// `k`.
    pub(super) stream_key: Zeroizing<[u8; 32]>,
}

/// Where a CREATE goes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NextHop {
    pub(super) id: NodeId,
    pub(super) address: SocketAddr,
    pub(super) key_id: [u8; 8],
}

impl Route {
    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut writer = Writer::new();
        match &self.next {
            None => writer.u8(LAST).bytes(&[0; NEXT_BYTES]),
            Some(next) => {
                writer.u8(0).bytes(next.id.as_bytes());
                match next.address.ip() {
                    IpAddr::V4(ip) => writer.u8(4).bytes(&ip.octets()).bytes(&[0; 12]),
                    IpAddr::V6(ip) => writer.u8(6).bytes(&ip.octets()),
                };
                writer.u16(next.address.port()).bytes(&next.key_id)
            }
        };
        writer.bytes(&self.stream_key[..]).bytes(&[0; REST_BYTES]);
        Zeroizing::new(writer.into_vec())
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let next = match reader.u8("flags")? {
            0 => Some(NextHop::decode(&mut reader)?),
            LAST => {
                zeros(&mut reader, NEXT_BYTES, "next hop of the last")?;
                None
            }
            _ => return Err(WireError::Invalid("flags")),
        };
        let stream_key = Zeroizing::new(reader.array("stream key")?);
        zeros(&mut reader, REST_BYTES, "rest")?;
        reader.finish()?;
        Ok(Self { next, stream_key })
    }
}

impl NextHop {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let id = NodeId::from_bytes(reader.array("next node id")?);
        let ip = match reader.u8("address family")? {
            4 => {
                let ip = IpAddr::from(reader.array::<4>("address")?);
                zeros(reader, 12, "address padding")?;
                ip
            }
            6 => IpAddr::from(reader.array::<16>("address")?),
            _ => return Err(WireError::Invalid("address family")),
        };
        let address = SocketAddr::new(ip, reader.u16("port")?);
        if !is_dialable(&address) {
            return Err(WireError::Invalid("address"));
        }
        let key_id = reader.array("next key id")?;
        Ok(Self {
            id,
            address,
            key_id,
        })
    }
}

fn zeros(reader: &mut Reader<'_>, len: usize, field: &'static str) -> Result<(), WireError> {
    if reader.bytes(len, field)?.iter().all(|byte| *byte == 0) {
        Ok(())
    } else {
        Err(WireError::Invalid(field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(address: Option<&str>) -> Route {
        Route {
            next: address.map(|address| NextHop {
                id: NodeId::from_bytes([1; 32]),
                address: address.parse().unwrap(),
                key_id: [2; 8],
            }),
            stream_key: Zeroizing::new([3; 32]),
        }
    }

    #[test]
    fn routes_have_one_size_and_come_back() {
        for address in [None, Some("203.0.113.5:4433"), Some("[2001:db8::5]:1")] {
            let route = route(address);
            let bytes = route.encode();
            assert_eq!(bytes.len(), ROUTE_BYTES);
            let read = Route::decode(&bytes).unwrap();
            assert_eq!(read.next, route.next);
            assert_eq!(read.stream_key, route.stream_key);
        }
    }

    #[test]
    fn bytes_without_a_meaning_are_refused() {
        let last = route(None).encode();
        let next = route(Some("203.0.113.5:4433")).encode();
        for (bytes, at, value, field) in [
            (&last, 0, 2, "flags"),
            (&last, 40, 1, "next hop of the last"),
            (&last, 111, 1, "rest"),
            (&next, 33, 5, "address family"),
            (&next, 38, 1, "address padding"),
            (&next, 34, 224, "address"),
        ] {
            let mut bytes = bytes.to_vec();
            bytes[at] = value;
            let error = Route::decode(&bytes).err();
            assert_eq!(error, Some(WireError::Invalid(field)), "{field}");
        }
        assert!(Route::decode(&last[1..]).is_err());
    }
}
