//! The side that asks a SOCKS5 proxy to connect. Names go out unresolved.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use thiserror::Error;

use super::{
    CONNECT, METHOD_NONE, METHOD_PASSWORD, PASSWORD_VERSION, SocksCredentials, SocksReply, VERSION,
    WireHost, decode_host, encode_host, take,
};
use crate::{
    target::Target,
    wire::{Reader, WireError, Writer},
};

/// One handshake with a proxy.
#[derive(Debug)]
pub struct SocksClient {
    target: Target,
    credentials: Option<SocksCredentials>,
    phase: Phase,
}

/// What one call took in and gives out.
#[derive(Debug)]
pub struct SocksClientStep {
    /// Bytes of the input that are done with; the caller keeps the rest for the next call.
    pub consumed: usize,
    /// To be sent to the proxy.
    pub send: Vec<u8>,
    /// What comes next.
    pub state: SocksClientState,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocksClientState {
    /// More input is needed.
    NeedMore,
    /// The connection stands, from this address of the proxy (zeros: it does not tell); the
    /// unconsumed input belongs to the flow.
    Connected(SocketAddr),
    /// Close.
    Failed(SocksClientError),
}

/// Why the proxy did not connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SocksClientError {
    /// The proxy takes none of the offered ways to log in.
    #[error("the SOCKS proxy takes none of the offered ways to log in")]
    NoMethod,
    /// The proxy refused user name or password.
    #[error("the SOCKS proxy refused user name or password")]
    Password,
    /// The proxy did not connect.
    #[error("the SOCKS proxy answered: {0}")]
    Refused(SocksReply),
    /// What came is not SOCKS5.
    #[error("malformed answer of the SOCKS proxy: {0}")]
    Malformed(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Method,
    Password,
    Reply,
    Done,
}

/// One message's effect: what to send, and what follows.
type Effect = (Vec<u8>, Result<Option<SocketAddr>, SocksClientError>);

impl SocksClient {
    /// Starts a handshake; the bytes are to be sent first. With credentials the proxy may still
    /// choose to ask for none.
    pub fn new(target: Target, credentials: Option<SocksCredentials>) -> (Self, Vec<u8>) {
        let greeting = match credentials {
            Some(_) => vec![VERSION, 2, METHOD_NONE, METHOD_PASSWORD],
            None => vec![VERSION, 1, METHOD_NONE],
        };
        let client = Self {
            target,
            credentials,
            phase: Phase::Method,
        };
        (client, greeting)
    }

    /// Takes what the proxy has sent and was not consumed before.
    pub fn handle_input(&mut self, input: &[u8]) -> SocksClientStep {
        let mut step = SocksClientStep {
            consumed: 0,
            send: Vec::new(),
            state: SocksClientState::NeedMore,
        };
        while let Some((used, (send, next))) =
            self.handle_message(input.get(step.consumed..).unwrap_or_default())
        {
            step.consumed += used;
            step.send.extend_from_slice(&send);
            step.state = match next {
                Ok(None) => continue,
                Ok(Some(bound)) => SocksClientState::Connected(bound),
                Err(error) => SocksClientState::Failed(error),
            };
            self.phase = Phase::Done;
            break;
        }
        step
    }

    /// One message; `None` when the input holds no whole one.
    fn handle_message(&mut self, input: &[u8]) -> Option<(usize, Effect)> {
        let result = match self.phase {
            Phase::Method => take(input, |reader| decode_pair(reader, VERSION)),
            Phase::Password => take(input, |reader| decode_pair(reader, PASSWORD_VERSION)),
            Phase::Reply => return Self::handle_reply(input),
            Phase::Done => None,
        };
        let (value, used) = match result? {
            Ok(read) => read,
            Err(_) => return Some(malformed(input, "version")),
        };
        let effect = match self.phase {
            Phase::Method => self.handle_method(value),
            Phase::Password if value == 0 => self.request(),
            Phase::Password | Phase::Reply | Phase::Done => {
                (Vec::new(), Err(SocksClientError::Password))
            }
        };
        Some((used, effect))
    }

    fn handle_method(&mut self, method: u8) -> Effect {
        match (method, &self.credentials) {
            (METHOD_NONE, _) => self.request(),
            (METHOD_PASSWORD, Some(credentials)) => {
                let mut writer = Writer::new();
                writer
                    .u8(PASSWORD_VERSION)
                    .short_bytes(credentials.user().as_bytes())
                    .short_bytes(credentials.password().as_bytes());
                self.phase = Phase::Password;
                (writer.into_vec(), Ok(None))
            }
            _ => (Vec::new(), Err(SocksClientError::NoMethod)),
        }
    }

    fn request(&mut self) -> Effect {
        self.phase = Phase::Reply;
        let mut writer = Writer::new();
        writer.u8(VERSION).u8(CONNECT).u8(0);
        encode_host(&self.target.host, &mut writer);
        writer.u16(self.target.port);
        (writer.into_vec(), Ok(None))
    }

    fn handle_reply(input: &[u8]) -> Option<(usize, Effect)> {
        let (outcome, used) = match take(input, decode_reply)? {
            Ok(read) => read,
            Err(_) => return Some(malformed(input, "reply")),
        };
        let outcome = outcome.map(Some).map_err(SocksClientError::Refused);
        Some((used, (Vec::new(), outcome)))
    }
}

fn malformed(input: &[u8], what: &'static str) -> (usize, Effect) {
    let error = SocksClientError::Malformed(what);
    (input.len(), (Vec::new(), Err(error)))
}

fn decode_pair(reader: &mut Reader<'_>, version: u8) -> Result<u8, WireError> {
    if reader.u8("version")? != version {
        return Err(WireError::Invalid("version"));
    }
    reader.u8("value")
}

fn decode_reply(reader: &mut Reader<'_>) -> Result<Result<SocketAddr, SocksReply>, WireError> {
    let code = decode_pair(reader, VERSION)?;
    let reply = SocksReply::from_number(code).unwrap_or(SocksReply::GeneralFailure);
    if reply != SocksReply::Succeeded {
        // What follows says nothing, and some proxies leave it out.
        return Ok(Err(reply));
    }
    reader.u8("reserved")?;
    let ip = match decode_host(reader)? {
        WireHost::Ip(ip) => ip,
        WireHost::Name(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        WireHost::UnknownKind => return Err(WireError::Invalid("address type")),
    };
    Ok(Ok(SocketAddr::new(ip, reader.u16("port")?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socks::CredentialsError;

    /// Feeds `input` whole and in single bytes; `sent` includes the greeting.
    fn check(user: Option<&str>, input: &[u8], sent: &[u8], state: SocksClientState) {
        for chunk in [input.len().max(1), 1] {
            let credentials = user.map(|user| SocksCredentials::new(user, "pw").unwrap());
            let target = "a.example:80".parse().unwrap();
            let (mut client, mut out) = SocksClient::new(target, credentials);
            let (mut pending, mut last) = (Vec::new(), SocksClientState::NeedMore);
            for bytes in input.chunks(chunk) {
                pending.extend_from_slice(bytes);
                let step = client.handle_input(&pending);
                pending.drain(..step.consumed);
                out.extend(step.send);
                last = step.state;
                if last != SocksClientState::NeedMore {
                    break;
                }
            }
            assert_eq!(
                (out.as_slice(), last),
                (sent, state),
                "{input:?} by {chunk}"
            );
        }
    }

    const REQUEST: &[u8] = b"\x05\x01\x00\x03\x09a.example\x00\x50";

    /// Frozen: proxies that nobody here wrote read these bytes.
    #[test]
    fn the_name_goes_out_unresolved() {
        let bound = SocksClientState::Connected("1.2.3.4:80".parse().unwrap());
        let answer = b"\x05\x00\x05\x00\x00\x01\x01\x02\x03\x04\x00\x50";
        let sent = [b"\x05\x01\x00", REQUEST].concat();
        check(None, answer, &sent, bound);

        let answer = b"\x05\x02\x01\x00\x05\x00\x00\x01\x01\x02\x03\x04\x00\x50";
        let sent = [b"\x05\x02\x00\x02", &b"\x01\x01u\x02pw"[..], REQUEST].concat();
        check(Some("u"), answer, &sent, bound);
    }

    #[test]
    fn a_name_as_bound_address_is_passed_over() {
        let sent = [b"\x05\x01\x00", REQUEST].concat();
        let answer = b"\x05\x00\x05\x00\x00\x03\x01x\x00\x50";
        let bound = SocksClientState::Connected("0.0.0.0:80".parse().unwrap());
        check(None, answer, &sent, bound);
    }

    #[test]
    fn each_failure_is_told_apart() {
        use SocksClientError::{Malformed, NoMethod, Password, Refused};
        let failed = SocksClientState::Failed;
        let greeting = b"\x05\x01\x00";
        check(None, b"\x05\xff", greeting, failed(NoMethod));
        check(None, b"\x05\x02", greeting, failed(NoMethod));
        check(None, b"HTTP", greeting, failed(Malformed("version")));
        let login = [b"\x05\x02\x00\x02", &b"\x01\x01u\x02pw"[..]].concat();
        check(Some("u"), b"\x05\x02\x01\x01", &login, failed(Password));
        let sent = [greeting, REQUEST].concat();
        for (code, reply) in [
            (2, SocksReply::NotAllowed),
            (5, SocksReply::ConnectionRefused),
            (200, SocksReply::GeneralFailure),
        ] {
            check(None, &[5, 0, 5, code], &sent, failed(Refused(reply)));
        }
        check(
            None,
            b"\x05\x00\x05\x00\x00\x09",
            &sent,
            failed(Malformed("reply")),
        );
    }

    #[test]
    fn credentials_beyond_the_format_are_refused() {
        let long = "x".repeat(256);
        assert_eq!(
            SocksCredentials::new(&long, "").err(),
            Some(CredentialsError)
        );
    }
}
