//! Addresses as records, invites and answers carry them.
//!
//! ```text
//! ip         kind u8 (4, 6) | 4 B or 16 B
//! addresses  count u8 | count times: ip | port u16
//! ```

use std::net::{IpAddr, SocketAddr};

use crate::wire::{Reader, WireError, Writer};

/// Whether a node can be dialled at `address`: a port, one host, and only one spelling of it. Records
/// and invites carry no other.
pub fn is_dialable(address: &SocketAddr) -> bool {
    let ip = address.ip();
    let one_host = match ip {
        IpAddr::V4(v4) => !v4.is_broadcast(),
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_none(),
    };
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && one_host
}

/// Appends the count and the addresses; the caller has checked that there are at most 255.
pub(crate) fn encode_addresses(addresses: &[SocketAddr], writer: &mut Writer) {
    writer.u8(u8::try_from(addresses.len()).unwrap_or(u8::MAX));
    for address in addresses {
        encode_ip(address.ip(), writer);
        writer.u16(address.port());
    }
}

/// Reads what [`encode_addresses`] wrote: at most `max` addresses, each dialable.
pub(crate) fn decode_addresses(
    reader: &mut Reader<'_>,
    max: usize,
) -> Result<Vec<SocketAddr>, WireError> {
    decode_list(reader, max, "address count", |reader| {
        let ip = decode_ip(reader)?;
        let address = SocketAddr::new(ip, reader.u16("port")?);
        if is_dialable(&address) {
            Ok(address)
        } else {
            Err(WireError::Invalid("address"))
        }
    })
}

/// Appends one address without a port.
pub(crate) fn encode_ip(ip: IpAddr, writer: &mut Writer) {
    match ip {
        IpAddr::V4(ip) => writer.u8(4).bytes(&ip.octets()),
        IpAddr::V6(ip) => writer.u8(6).bytes(&ip.octets()),
    };
}

/// Reads what [`encode_ip`] wrote.
pub(crate) fn decode_ip(reader: &mut Reader<'_>) -> Result<IpAddr, WireError> {
    match reader.u8("address kind")? {
        4 => Ok(reader.array::<4>("address")?.into()),
        6 => Ok(reader.array::<16>("address")?.into()),
        _ => Err(WireError::Invalid("address kind")),
    }
}

/// Reads a count in one byte and so many items.
pub(crate) fn decode_list<T>(
    reader: &mut Reader<'_>,
    max: usize,
    field: &'static str,
    mut item: impl FnMut(&mut Reader<'_>) -> Result<T, WireError>,
) -> Result<Vec<T>, WireError> {
    let count = usize::from(reader.u8(field)?);
    if count > max {
        return Err(WireError::Invalid(field));
    }
    (0..count).map(|_| item(reader)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<&[u8]>) {
        let address: SocketAddr = text.parse().unwrap();
        let mut writer = Writer::new();
        encode_addresses(&[address], &mut writer);
        let bytes = writer.into_vec();
        let read = decode_addresses(&mut Reader::new(&bytes), 1);
        match expected {
            Some(expected) => {
                assert_eq!(bytes, expected, "{text}");
                assert_eq!(read, Ok(vec![address]));
            }
            None => assert_eq!(read, Err(WireError::Invalid("address")), "{text}"),
        }
    }

    #[test]
    fn only_addresses_that_can_be_dialled_are_read() {
        check(
            "203.0.113.5:4433",
            Some(b"\x01\x04\xcb\x00\x71\x05\x11\x51"),
        );
        check(
            "[::1]:1",
            Some(b"\x01\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\x01"),
        );
        for text in [
            "1.2.3.4:0",
            "0.0.0.0:1",
            "[::]:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "[::ffff:1.2.3.4]:1",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn a_count_above_the_bound_is_refused_before_anything_is_read() {
        let read = decode_addresses(&mut Reader::new(&[9]), 8);
        assert_eq!(read, Err(WireError::Invalid("address count")));
    }
}
