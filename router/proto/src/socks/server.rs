//! The side that a program connects to.

use thiserror::Error;

use super::{
    CONNECT, METHOD_NO_MATCH, METHOD_NONE, METHOD_PASSWORD, PASSWORD_VERSION, RESOLVE,
    SocksCredentials, SocksReply, SocksVersion, UDP_ASSOCIATE, VERSION, WireHost, decode_host,
    take, v4,
};
use crate::{
    target::{Host, Target},
    wire::{Reader, WireError},
};

/// Whether a client must say who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocksAuth {
    /// A client that offers a password is asked for it, any is good: an isolation label.
    Label,
    /// A client that offers no password is turned away.
    Required,
}

/// One client's handshake. Feed it input, send its replies, do what its state says.
#[derive(Debug)]
pub struct SocksServer {
    auth: SocksAuth,
    phase: Phase,
}

/// What one call took in and gives out.
#[derive(Debug)]
pub struct SocksServerStep {
    /// Bytes of the input that are done with; the caller keeps the rest for the next call.
    pub consumed: usize,
    /// To be sent to the client before anything else, also when the state is an error.
    pub reply: Vec<u8>,
    /// What comes next.
    pub state: SocksServerState,
}

/// What comes next.
#[derive(Debug)]
pub enum SocksServerState {
    /// More input is needed.
    NeedMore,
    /// The caller decides and calls [`SocksServer::handle_verdict`].
    CheckPassword(SocksCredentials),
    /// The client wants to go there; the unconsumed input belongs to the flow.
    Request {
        /// Where.
        target: Target,
        /// The caller answers with [`SocksVersion::encode`].
        version: SocksVersion,
        /// Whom a client of SOCKS4 says it is; nobody vouches for it.
        user: Option<String>,
    },
    /// The client wants an address of this host. The caller answers with [`SocksReply::encode`] and
    /// the address, and closes.
    Resolve(Host),
    /// The client wants to send datagrams, from this port of its address; none: it does not know yet
    /// from where. The caller answers with [`SocksReply::encode`] and where it takes them; the
    /// association lasts as long as the connection.
    Associate(Option<u16>),
    /// Close after the reply.
    Failed(SocksServerError),
}

/// Why a handshake came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SocksServerError {
    /// The first byte is neither 5 nor 4: HTTP, or noise.
    #[error("the client does not speak SOCKS: its first byte is {0}")]
    NotSocks(u8),
    /// The client offers no method that this side takes; SOCKS4 has none.
    #[error("the client offers no acceptable way to log in")]
    NoMethod,
    /// User name or password is wrong, or not UTF-8.
    #[error("user name or password was refused")]
    Password,
    /// A command other than CONNECT, UDP ASSOCIATE and RESOLVE; with SOCKS4, than CONNECT.
    #[error("command {0} is not supported")]
    Command(u8),
    /// An address type other than 1, 3 and 4.
    #[error("unknown address type")]
    AddressType,
    /// The name or the port cannot be a target.
    #[error("the request names no target")]
    Target,
    /// A message breaks the format.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// Input after the handshake ended, or before the caller's verdict.
    #[error("input where none is expected")]
    Unexpected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Greeting,
    Password,
    Verdict,
    Request,
    Done,
}

/// One message's effect: the reply, and what follows it.
type Effect = (Vec<u8>, Result<Option<SocksServerState>, SocksServerError>);

impl SocksServer {
    /// Waits for the greeting.
    pub fn new(auth: SocksAuth) -> Self {
        Self {
            auth,
            phase: Phase::Greeting,
        }
    }

    /// Takes what the client has sent and was not consumed before.
    pub fn handle_input(&mut self, input: &[u8]) -> SocksServerStep {
        let mut step = SocksServerStep {
            consumed: 0,
            reply: Vec::new(),
            state: SocksServerState::NeedMore,
        };
        while let Some((used, (reply, next))) =
            self.handle_message(input.get(step.consumed..).unwrap_or_default())
        {
            step.consumed += used;
            step.reply.extend_from_slice(&reply);
            match next {
                Ok(None) => {}
                Ok(Some(state)) => {
                    step.state = state;
                    break;
                }
                Err(error) => {
                    self.phase = Phase::Done;
                    step.state = SocksServerState::Failed(error);
                    break;
                }
            }
        }
        step
    }

    /// Takes the caller's answer to [`SocksServerState::CheckPassword`] and returns what to send.
    /// After a no the connection is to be closed; after a yes [`SocksServer::handle_input`] goes on.
    pub fn handle_verdict(&mut self, good: bool) -> Vec<u8> {
        let good = good && self.phase == Phase::Verdict;
        self.phase = if good { Phase::Request } else { Phase::Done };
        vec![PASSWORD_VERSION, u8::from(!good)]
    }

    /// One message; `None` when the input holds no whole one.
    fn handle_message(&mut self, input: &[u8]) -> Option<(usize, Effect)> {
        if input.is_empty() {
            return None;
        }
        match self.phase {
            Phase::Greeting => self.handle_greeting(input),
            Phase::Password => self.handle_password(input),
            Phase::Request => self.handle_request(input),
            Phase::Verdict | Phase::Done => {
                Some((0, (Vec::new(), Err(SocksServerError::Unexpected))))
            }
        }
    }

    fn handle_greeting(&mut self, input: &[u8]) -> Option<(usize, Effect)> {
        if input.first() == Some(&v4::VERSION) {
            return self.handle_v4_request(input);
        }
        if let Some(&first) = input.first().filter(|first| **first != VERSION) {
            let effect = (Vec::new(), Err(SocksServerError::NotSocks(first)));
            return Some((input.len(), effect));
        }
        let read = |reader: &mut Reader<'_>| {
            reader.u8("version")?;
            Ok(reader.short_bytes("methods")?.to_vec())
        };
        let (methods, used) = take(input, read)?.ok()?;
        // Password first: it may carry an isolation label.
        let (method, next) = if methods.contains(&METHOD_PASSWORD) {
            self.phase = Phase::Password;
            (METHOD_PASSWORD, Ok(None))
        } else if methods.contains(&METHOD_NONE) && self.auth == SocksAuth::Label {
            self.phase = Phase::Request;
            (METHOD_NONE, Ok(None))
        } else {
            (METHOD_NO_MATCH, Err(SocksServerError::NoMethod))
        };
        Some((used, (vec![VERSION, method], next)))
    }

    /// SOCKS4 has no greeting: its request says all.
    fn handle_v4_request(&mut self, input: &[u8]) -> Option<(usize, Effect)> {
        let (request, used) = match take(input, v4::decode_request)? {
            Ok(_) if self.auth == SocksAuth::Required => {
                (Err(SocksServerError::NoMethod), input.len())
            }
            Ok(read) => read,
            Err(_) => (Err(SocksServerError::Malformed("request")), input.len()),
        };
        self.phase = Phase::Done;
        let effect = match request {
            Ok(state) => (Vec::new(), Ok(Some(state))),
            Err(error) => (v4::encode_reply(false), Err(error)),
        };
        Some((used, effect))
    }

    fn handle_password(&mut self, input: &[u8]) -> Option<(usize, Effect)> {
        let refused = |error| (vec![PASSWORD_VERSION, 1], Err(error));
        let (credentials, used) = match take(input, decode_credentials)? {
            Ok(read) => read,
            Err(_) => {
                let error = SocksServerError::Malformed("password version");
                return Some((input.len(), refused(error)));
            }
        };
        let Some(credentials) = credentials else {
            return Some((used, refused(SocksServerError::Password)));
        };
        self.phase = Phase::Verdict;
        let state = SocksServerState::CheckPassword(credentials);
        Some((used, (Vec::new(), Ok(Some(state)))))
    }

    fn handle_request(&mut self, input: &[u8]) -> Option<(usize, Effect)> {
        let (request, used) = match take(input, decode_request)? {
            Ok(read) => read,
            Err(_) => {
                let error = SocksServerError::Malformed("request");
                let reply = SocksReply::GeneralFailure.encode(None);
                return Some((input.len(), (reply, Err(error))));
            }
        };
        self.phase = Phase::Done;
        let effect = match request {
            Ok(state) => (Vec::new(), Ok(Some(state))),
            Err((reply, error)) => (reply.encode(None), Err(error)),
        };
        Some((used, effect))
    }
}

/// `None`: the bytes are no text.
fn decode_credentials(reader: &mut Reader<'_>) -> Result<Option<SocksCredentials>, WireError> {
    if reader.u8("password version")? != PASSWORD_VERSION {
        return Err(WireError::Invalid("password version"));
    }
    let user = reader.short_bytes("user")?;
    let password = reader.short_bytes("password")?;
    let texts = (std::str::from_utf8(user), std::str::from_utf8(password));
    let (Ok(user), Ok(password)) = texts else {
        return Ok(None);
    };
    Ok(SocksCredentials::new(user, password).ok())
}

type Request = Result<SocksServerState, (SocksReply, SocksServerError)>;

fn decode_request(reader: &mut Reader<'_>) -> Result<Request, WireError> {
    if reader.u8("version")? != VERSION {
        return Err(WireError::Invalid("version"));
    }
    let command = reader.u8("command")?;
    // RFC 1928 reserves the next byte; what a client puts there does not matter.
    reader.u8("reserved")?;
    let host = decode_host(reader)?;
    if matches!(host, WireHost::UnknownKind) {
        let error = SocksServerError::AddressType;
        return Ok(Err((SocksReply::AddressTypeNotSupported, error)));
    }
    let port = reader.u16("port")?;
    Ok(match command {
        CONNECT => target(&host, port)
            .map(|target| SocksServerState::Request {
                target,
                version: SocksVersion::V5,
                user: None,
            })
            .ok_or((SocksReply::HostUnreachable, SocksServerError::Target)),
        RESOLVE => host_of(&host)
            .map(SocksServerState::Resolve)
            .ok_or((SocksReply::HostUnreachable, SocksServerError::Target)),
        // The address is not looked at: datagrams count from the connection's own only.
        UDP_ASSOCIATE => Ok(SocksServerState::Associate(
            Some(port).filter(|port| *port != 0),
        )),
        _ => {
            let error = SocksServerError::Command(command);
            Err((SocksReply::CommandNotSupported, error))
        }
    })
}

fn host_of(host: &WireHost<'_>) -> Option<Host> {
    match host {
        WireHost::Ip(ip) => Some(Host::Ip(*ip)),
        WireHost::Name(name) => Host::parse(std::str::from_utf8(name).ok()?).ok(),
        WireHost::UnknownKind => None,
    }
}

pub(super) fn target(host: &WireHost<'_>, port: u16) -> Option<Target> {
    let host = host_of(host)?;
    let port_is_implied = host.name().is_some_and(|name| name.ends_with(".wh"));
    (port != 0 || port_is_implied).then(|| Target::new(host, port))
}

#[cfg(test)]
mod tests {
    use super::{super::MAX_CREDENTIAL_BYTES, *};

    /// Feeds `input` whole and in single bytes: the replies and the end must not differ.
    fn check(auth: SocksAuth, input: &[u8], reply: &[u8], state: &str) {
        for chunk in [input.len().max(1), 1] {
            let mut server = SocksServer::new(auth);
            let (mut pending, mut sent, mut last) = (Vec::new(), Vec::new(), "NeedMore".to_owned());
            for bytes in input.chunks(chunk) {
                pending.extend_from_slice(bytes);
                loop {
                    let step = server.handle_input(&pending);
                    pending.drain(..step.consumed);
                    sent.extend_from_slice(&step.reply);
                    last = match step.state {
                        SocksServerState::NeedMore => break,
                        SocksServerState::CheckPassword(credentials) => {
                            sent.extend(server.handle_verdict(credentials.password() == "good"));
                            continue;
                        }
                        SocksServerState::Request { target, user, .. } => match user {
                            None => format!("to {target}"),
                            Some(user) => format!("{user} to {target}"),
                        },
                        SocksServerState::Resolve(host) => format!("of {host}"),
                        SocksServerState::Associate(from) => format!("from {from:?}"),
                        SocksServerState::Failed(error) => format!("{error:?}"),
                    };
                    break;
                }
                if last != "NeedMore" {
                    break;
                }
            }
            assert_eq!(
                (sent.as_slice(), last.as_str()),
                (reply, state),
                "{input:?} by {chunk}"
            );
        }
    }

    /// Frozen: programs that nobody here wrote speak these bytes.
    const HELLO: &[u8] = b"\x05\x01\x00";
    const LOGIN: &[u8] = b"\x05\x02\x00\x02\x01\x01u\x04good";

    fn request(command: u8, host: &[u8], port: u16) -> Vec<u8> {
        let port = port.to_be_bytes();
        [HELLO, &[5, command, 0], host, &port].concat()
    }

    fn answered(code: u8) -> Vec<u8> {
        [&[5, 0, 5, code, 0, 1], &[0; 6][..]].concat()
    }

    #[test]
    fn requests_are_read_however_they_are_cut() {
        use SocksAuth::Label;
        let v4 = request(1, b"\x01\x01\x02\x03\x04", 80);
        check(Label, &v4, b"\x05\x00", "to 1.2.3.4:80");
        let v6 = request(1, b"\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01", 443);
        check(Label, &v6, b"\x05\x00", "to [::1]:443");
        let name = request(1, b"\x03\x09A.example", 80);
        check(Label, &name, b"\x05\x00", "to a.example:80");
        let implied = request(1, b"\x03\x07home.wh", 0);
        check(Label, &implied, b"\x05\x00", "to home.wh:0");
        check(Label, &v4[..v4.len() - 1], b"\x05\x00", "NeedMore");
    }

    #[test]
    fn an_association_says_from_which_port_or_does_not_know() {
        use SocksAuth::Label;
        for host in [&b"\x01\0\0\0\0"[..], b"\x01\x01\x02\x03\x04", b"\x03\x01x"] {
            check(Label, &request(3, host, 0), b"\x05\x00", "from None");
            check(Label, &request(3, host, 99), b"\x05\x00", "from Some(99)");
        }
        check(Label, &request(3, b"\x02", 80), &answered(8), "AddressType");
    }

    #[test]
    fn each_refusal_has_its_reply_code() {
        use SocksAuth::Label;
        let v4 = b"\x01\x01\x02\x03\x04";
        check(Label, &request(2, v4, 80), &answered(7), "Command(2)");
        check(Label, &request(1, b"\x02", 80), &answered(8), "AddressType");
        check(Label, &request(1, v4, 0), &answered(4), "Target");
        check(Label, &request(1, b"\x03\x00", 80), &answered(4), "Target");
        check(
            Label,
            &request(1, b"\x03\x02\xff\xfe", 80),
            &answered(4),
            "Target",
        );
        check(
            Label,
            &request(1, b"\x03\x040x7f", 80),
            &answered(4),
            "Target",
        );
    }

    #[test]
    fn passwords_are_asked_for_when_they_are_offered() {
        let go = b"\x05\x01\x00\x01\x01\x02\x03\x04\x00\x50";
        for auth in [SocksAuth::Label, SocksAuth::Required] {
            let input = [LOGIN, go].concat();
            check(auth, &input, b"\x05\x02\x01\x00", "to 1.2.3.4:80");
        }
        let wrong = b"\x05\x01\x02\x01\x01u\x03bad\x05";
        let reply = b"\x05\x02\x01\x01";
        check(SocksAuth::Required, wrong, reply, "Unexpected");
        let no_text = b"\x05\x01\x02\x01\x01\xff\x00";
        check(SocksAuth::Required, no_text, reply, "Password");
        check(SocksAuth::Required, HELLO, b"\x05\xff", "NoMethod");
        check(SocksAuth::Label, b"\x05\x01\x01", b"\x05\xff", "NoMethod");
        check(SocksAuth::Label, b"\x05\x00", b"\x05\xff", "NoMethod");
        let version = b"\x05\x01\x02\x02\x01u\x00";
        check(
            SocksAuth::Label,
            version,
            reply,
            "Malformed(\"password version\")",
        );
    }

    #[test]
    fn socks4_asks_for_an_address_and_4a_for_a_name() {
        use SocksAuth::{Label, Required};
        let refused = b"\0\x5b\0\0\0\0\0\0";
        let v4 = b"\x04\x01\x00\x50\x01\x02\x03\x04\x00";
        check(Label, v4, b"", "to 1.2.3.4:80");
        check(
            Label,
            b"\x04\x01\x00\x50\x01\x02\x03\x04me\x00",
            b"",
            "me to 1.2.3.4:80",
        );
        let v4a = b"\x04\x01\x01\xbb\x00\x00\x00\x07me\x00A.example\x00";
        check(Label, v4a, b"", "me to a.example:443");
        check(Label, &v4a[..v4a.len() - 1], b"", "NeedMore");
        check(Label, &v4a[..8], b"", "NeedMore");
        check(Required, v4, refused, "NoMethod");
        check(
            Label,
            b"\x04\x02\x00\x50\x01\x02\x03\x04\x00",
            refused,
            "Command(2)",
        );
        check(
            Label,
            b"\x04\x01\x00\x00\x01\x02\x03\x04\x00",
            refused,
            "Target",
        );
        check(
            Label,
            b"\x04\x01\x00\x50\x00\x00\x00\x01\x00\x00",
            refused,
            "Target",
        );
        let user = b"\x04\x01\x00\x50\x01\x02\x03\x04\xff\x00";
        check(Label, user, refused, "Malformed(\"user id\")");
        for head in [&v4[..8], b"\x04\x01\x00\x50\x00\x00\x00\x01\x00"] {
            let longest = [head, &[b'a'; MAX_CREDENTIAL_BYTES]].concat();
            check(Label, &longest, b"", "NeedMore");
            let endless = [head, &[b'a'; MAX_CREDENTIAL_BYTES + 1]].concat();
            check(Label, &endless, refused, "Malformed(\"request\")");
        }
        let replies = [SocksReply::Succeeded, SocksReply::NotAllowed];
        let replies = replies.map(|reply| SocksVersion::V4.encode(reply));
        assert_eq!(replies, [b"\0\x5a\0\0\0\0\0\0", refused]);
    }

    #[test]
    fn names_are_resolved_and_addresses_are_not_turned_into_names() {
        use SocksAuth::Label;
        let name = request(0xf0, b"\x03\x09A.example", 0);
        check(Label, &name, b"\x05\x00", "of a.example");
        let v4 = b"\x01\x01\x02\x03\x04";
        check(Label, &request(0xf0, v4, 0), b"\x05\x00", "of 1.2.3.4");
        check(
            Label,
            &request(0xf0, b"\x03\x00", 0),
            &answered(4),
            "Target",
        );
        check(Label, &request(0xf1, v4, 0), &answered(7), "Command(241)");
    }

    #[test]
    fn other_protocols_are_named_and_get_no_answer() {
        check(SocksAuth::Label, b"GET / HTTP/1.1", b"", "NotSocks(71)");
    }

    #[test]
    fn debug_shows_no_credentials() {
        let mut server = SocksServer::new(SocksAuth::Label);
        let shown = format!(
            "{:?}",
            server.handle_input(b"\x05\x01\x02\x01\x04alex\x06secret")
        );
        assert!(
            !shown.contains("alex") && !shown.contains("secret"),
            "{shown}"
        );
    }
}
