//! SOCKS4 and its extension 4a, the server's side: CONNECT only.
//!
//! Nobody vouches for the user id: it is a label, and no way to log in.
//!
//! ```text
//! client                                                     server
//! 4 | command | port u16 | address 4 | user id, 0 [| name, 0]   ->   a name when the address is
//!                                                                     0.0.0.x, x not 0 (4a)
//!                                                               <-   0 | 90 granted, 91 not | 6 B
//! ```
//! Sources: "SOCKS: A protocol for TCP proxy across firewalls" and "SOCKS 4A: A Simple Extension to
//! SOCKS 4 Protocol", both by Ying-Da Lee.

use std::net::{IpAddr, Ipv4Addr};

use super::{
    CONNECT, MAX_CREDENTIAL_BYTES, SocksServerError, SocksServerState, SocksVersion, WireHost,
    server::target,
};
use crate::wire::{Reader, WireError};

pub(super) const VERSION: u8 = 4;
/// The longest request: user id and name at full length, each with its end.
pub(super) const MAX_REQUEST_BYTES: usize = 8 + 2 * (MAX_CREDENTIAL_BYTES + 1);

const GRANTED: u8 = 90;
const REFUSED: u8 = 91;

/// The whole reply message; where the far connection leaves from is not told.
pub(super) fn encode_reply(granted: bool) -> Vec<u8> {
    let code = if granted { GRANTED } else { REFUSED };
    vec![0, code, 0, 0, 0, 0, 0, 0]
}

/// Reads one request; what it asks for may be refused.
pub(super) fn decode_request(
    reader: &mut Reader<'_>,
) -> Result<Result<SocksServerState, SocksServerError>, WireError> {
    reader.u8("version")?;
    let command = reader.u8("command")?;
    let port = reader.u16("port")?;
    let address = reader.array::<4>("address")?;
    let user = text(reader, "user id")?;
    let host = match address {
        [0, 0, 0, last] if last != 0 => WireHost::Name(text(reader, "name")?),
        _ => WireHost::Ip(IpAddr::V4(Ipv4Addr::from(address))),
    };
    let Ok(user) = std::str::from_utf8(user) else {
        return Ok(Err(SocksServerError::Malformed("user id")));
    };
    if command != CONNECT {
        return Ok(Err(SocksServerError::Command(command)));
    }
    let request = target(&host, port).map(|target| SocksServerState::Request {
        target,
        version: SocksVersion::V4,
        user: Some(user.to_owned()).filter(|user| !user.is_empty()),
    });
    Ok(request.ok_or(SocksServerError::Target))
}

/// Bytes up to a 0, which goes too.
fn text<'a>(reader: &mut Reader<'a>, field: &'static str) -> Result<&'a [u8], WireError> {
    let rest = reader.clone().rest();
    let end = rest
        .iter()
        .take(MAX_CREDENTIAL_BYTES + 1)
        .position(|byte| *byte == 0);
    match end {
        Some(end) => {
            let text = reader.bytes(end, field)?;
            reader.u8(field)?;
            Ok(text)
        }
        None if rest.len() > MAX_CREDENTIAL_BYTES => Err(WireError::Invalid(field)),
        None => Err(WireError::Truncated(field)),
    }
}
