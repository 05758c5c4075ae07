//! The client's side of one connection to the router.

use super::{
    destination::{Destination, DestinationKeys},
    line::{self, Reply, SamError},
    request::SamRequest,
};

/// Sent first. The later versions that are offered are taken where the router has them.
const HELLO: &[u8] = b"HELLO VERSION MIN=3.1 MAX=3.3\n";
/// From this version on, streams have ports.
const PORTS: (u32, u32) = (3, 2);

/// One connection to a router.
#[derive(Debug)]
pub struct SamClient {
    request: SamRequest,
    phase: Phase,
}

/// What one call took in and gives out.
#[derive(Debug)]
pub struct SamStep {
    /// Bytes of the input that are done with; the caller keeps the rest for the next call.
    pub consumed: usize,
    /// To be sent to the router.
    pub send: Vec<u8>,
    /// What comes next.
    pub state: SamState,
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SamState {
    /// The router is due to answer.
    NeedMore,
    /// It did what it was asked, and nothing is due: somebody may call, or the session goes on.
    Waiting,
    /// It is there, which is all that was asked.
    Greeted,
    /// The session stands; these are its keys. It ends with the connection.
    Session(DestinationKeys),
    /// The destination that was looked for is found.
    Found,
    /// The stream stands; the unconsumed input belongs to it.
    Connected,
    /// Somebody called; the unconsumed input belongs to the stream.
    Called(Destination),
    /// Close.
    Failed(SamError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Hello,
    Answer,
    /// Of a session, and of one who waits for a caller.
    Waiting,
    Done,
}

impl SamClient {
    /// Begins; the bytes are to be sent first.
    pub fn new(request: SamRequest) -> (Self, &'static [u8]) {
        let client = Self {
            request,
            phase: Phase::Hello,
        };
        (client, HELLO)
    }

    /// Whether the router answered the greeting: it is there, and speaks SAM.
    pub fn is_greeted(&self) -> bool {
        self.phase != Phase::Hello
    }

    /// Takes what the router has sent and was not consumed before.
    pub fn handle_input(&mut self, input: &[u8]) -> SamStep {
        let mut step = SamStep {
            consumed: 0,
            send: Vec::new(),
            state: self.pause(),
        };
        while self.phase != Phase::Done {
            let rest = input.get(step.consumed..).unwrap_or_default();
            let handled = match line::first(rest) {
                Ok(None) => break,
                Ok(Some((line, used))) => {
                    step.consumed += used;
                    self.handle_line(line, &mut step.send)
                }
                Err(error) => Err(error),
            };
            step.state = handled.unwrap_or_else(|error| {
                step.consumed = input.len();
                self.phase = Phase::Done;
                SamState::Failed(error)
            });
            if let SamState::Session(_) = step.state {
                break;
            }
        }
        step
    }

    /// What holds between two lines.
    fn pause(&self) -> SamState {
        match self.phase {
            Phase::Hello | Phase::Answer | Phase::Done => SamState::NeedMore,
            Phase::Waiting => SamState::Waiting,
        }
    }

    fn handle_line(&mut self, line: &str, send: &mut Vec<u8>) -> Result<SamState, SamError> {
        if let Some(text) = line.strip_prefix("PING")
            && (text.is_empty() || text.starts_with(' '))
        {
            send.extend_from_slice(format!("PONG{text}\n").as_bytes());
            return Ok(self.pause());
        }
        match self.phase {
            Phase::Hello => {
                let reply = Reply::read(line, "HELLO REPLY")?;
                reply.check()?;
                let version = reply.value("VERSION").and_then(version);
                let version = version.ok_or(SamError::Malformed("version"))?;
                if let SamRequest::Greeting = self.request {
                    self.phase = Phase::Done;
                    return Ok(SamState::Greeted);
                }
                let request = self.request.line(version >= PORTS);
                send.extend_from_slice(request.as_bytes());
                self.phase = Phase::Answer;
            }
            Phase::Answer => return self.handle_answer(line),
            Phase::Waiting => return self.handle_late(line),
            Phase::Done => {}
        }
        Ok(self.pause())
    }

    fn handle_answer(&mut self, line: &str) -> Result<SamState, SamError> {
        let reply = Reply::read(line, self.request.answer())?;
        reply.check()?;
        match &self.request {
            SamRequest::Greeting => Ok(SamState::Greeted),
            SamRequest::Session { keys, .. } => {
                let told = reply.value("DESTINATION").map(DestinationKeys::parse);
                let told = told.and_then(Result::ok);
                let told = told.ok_or(SamError::Malformed("keys"))?;
                // The destination that was asked for, and no other one.
                let wanted = keys.as_ref().map(DestinationKeys::destination);
                if wanted.is_some_and(|wanted| wanted != told.destination()) {
                    return Err(SamError::Malformed("another destination"));
                }
                self.phase = Phase::Waiting;
                Ok(SamState::Session(told))
            }
            SamRequest::Lookup { .. } => {
                self.phase = Phase::Done;
                Ok(SamState::Found)
            }
            SamRequest::Connect { .. } => {
                self.phase = Phase::Done;
                Ok(SamState::Connected)
            }
            SamRequest::Accept { .. } => {
                self.phase = Phase::Waiting;
                Ok(SamState::Waiting)
            }
        }
    }

    /// A caller, or something about a session that concerns nobody here.
    fn handle_late(&mut self, line: &str) -> Result<SamState, SamError> {
        match self.request {
            SamRequest::Accept { .. } => {
                // Ports may follow.
                let caller = line.split(' ').next().unwrap_or_default();
                let caller = Destination::parse(caller);
                let caller = caller.map_err(|_| SamError::Malformed("caller"))?;
                self.phase = Phase::Done;
                Ok(SamState::Called(caller))
            }
            SamRequest::Greeting
            | SamRequest::Session { .. }
            | SamRequest::Lookup { .. }
            | SamRequest::Connect { .. } => Ok(SamState::Waiting),
        }
    }
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        sam::{I2pName, SamRefusal, SessionId, TunnelSettings},
        target::Host,
    };

    /// Of 391 bytes, all zero but for an EdDSA certificate's head.
    fn destination() -> String {
        let keys = "A".repeat(512);
        format!("{keys}BQAEAAcAAA==")
    }

    /// The same with 288 secret bytes behind it.
    fn keys() -> String {
        let public = "A".repeat(512);
        format!("{public}BQAEAAcAAA{}==", "A".repeat(384))
    }

    fn session_id() -> SessionId {
        SessionId::from_random([0; 16])
    }

    fn connect() -> SamRequest {
        SamRequest::Connect {
            session: session_id(),
            to: I2pName::of(&Host::parse("a.i2p").unwrap()).unwrap(),
            port: 80,
        }
    }

    fn accept() -> SamRequest {
        SamRequest::Accept {
            session: session_id(),
        }
    }

    fn session(keys: Option<&str>) -> SamRequest {
        SamRequest::Session {
            id: session_id(),
            keys: keys.map(|keys| DestinationKeys::parse(keys).unwrap()),
            tunnels: TunnelSettings {
                length: 1,
                quantity: 1,
            },
        }
    }

    /// Feeds `input` whole and byte by byte; gives what was sent, the last state and what is left.
    fn feed(request: &SamRequest, input: &[u8]) -> (String, SamState, Vec<u8>) {
        let fed = [input.len().max(1), 1].map(|chunk| {
            let (mut client, hello) = SamClient::new(request.clone());
            let (mut pending, mut sent) = (Vec::new(), hello.to_vec());
            let mut state = SamState::NeedMore;
            for bytes in input.chunks(chunk) {
                pending.extend_from_slice(bytes);
                loop {
                    let step = client.handle_input(&pending);
                    pending.drain(..step.consumed);
                    sent.extend(step.send);
                    if client.phase != Phase::Done || step.state != SamState::NeedMore {
                        state = step.state;
                    }
                    if !matches!(state, SamState::Session(_)) {
                        break;
                    }
                }
            }
            (String::from_utf8(sent).unwrap(), state, pending)
        });
        let [whole, pieces] = fed;
        assert_eq!(whole, pieces, "{request:?}");
        whole
    }

    const HELLO_REPLY: &str = "HELLO REPLY RESULT=OK VERSION=3.1\n";

    #[test]
    fn a_stream_begins_behind_the_answer() {
        let input = format!("{HELLO_REPLY}STREAM STATUS RESULT=OK\nbytes\nof it");
        let (sent, state, rest) = feed(&connect(), input.as_bytes());
        assert_eq!(state, SamState::Connected);
        assert_eq!(rest, b"bytes\nof it");
        assert!(sent.ends_with("DESTINATION=a.i2p SILENT=false\n"), "{sent}");
        let newer = "HELLO REPLY RESULT=OK VERSION=3.3\r\n";
        let (sent, state, _) = feed(&connect(), newer.as_bytes());
        assert_eq!(state, SamState::NeedMore);
        assert!(sent.ends_with(" TO_PORT=80\n"), "{sent}");
    }

    #[test]
    fn a_router_that_is_only_greeted_is_asked_for_nothing() {
        let (sent, state, _) = feed(&SamRequest::Greeting, HELLO_REPLY.as_bytes());
        assert_eq!(state, SamState::Greeted);
        assert_eq!(sent.as_bytes(), HELLO);
    }

    #[test]
    fn a_destination_is_found_or_not() {
        let lookup = SamRequest::Lookup {
            name: I2pName::of(&Host::parse("a.i2p").unwrap()).unwrap(),
        };
        let found = destination();
        let input = format!("{HELLO_REPLY}NAMING REPLY RESULT=OK NAME=a.i2p VALUE={found}\n");
        assert_eq!(feed(&lookup, input.as_bytes()).1, SamState::Found);
        let input = format!("{HELLO_REPLY}NAMING REPLY RESULT=INVALID_KEY NAME=a.i2p\n");
        let refused = SamError::Refused(SamRefusal::InvalidKey);
        assert_eq!(feed(&lookup, input.as_bytes()).1, SamState::Failed(refused));
    }

    #[test]
    fn a_caller_is_told_and_its_stream_follows() {
        let begun = format!("{HELLO_REPLY}STREAM STATUS RESULT=OK\n");
        assert_eq!(feed(&accept(), begun.as_bytes()).1, SamState::Waiting);
        let caller = destination();
        for ports in ["", " FROM_PORT=0 TO_PORT=80"] {
            let input = format!("{begun}{caller}{ports}\nstream");
            let (_, state, rest) = feed(&accept(), input.as_bytes());
            let expected = Destination::parse(&caller).unwrap();
            assert_eq!(state, SamState::Called(expected));
            assert_eq!(rest, b"stream");
        }
        let input = format!("{begun}nobody\n");
        let (_, state, _) = feed(&accept(), input.as_bytes());
        assert_eq!(state, SamState::Failed(SamError::Malformed("caller")));
    }

    #[test]
    fn a_session_has_its_keys_and_answers_pings() {
        let keys = keys();
        let input = format!(
            "{HELLO_REPLY}SESSION STATUS RESULT=OK DESTINATION={keys}\nPING 7\nPING\nelse\n"
        );
        for asked in [None, Some(keys.as_str())] {
            let (mut client, _) = SamClient::new(session(asked));
            let step = client.handle_input(input.as_bytes());
            let SamState::Session(told) = step.state else {
                panic!("{:?}", step.state);
            };
            assert_eq!(told.secret_text(), keys);
            let step = client.handle_input(&input.as_bytes()[step.consumed..]);
            assert_eq!(step.send, b"PONG 7\nPONG\n");
            assert_eq!(step.state, SamState::Waiting);
        }
    }

    #[test]
    fn a_session_for_another_destination_is_refused() {
        let other = keys().replacen("AAAA", "BBBB", 1);
        let input = format!("{HELLO_REPLY}SESSION STATUS RESULT=OK DESTINATION={other}\n");
        let (_, state, _) = feed(&session(Some(&keys())), input.as_bytes());
        let expected = SamError::Malformed("another destination");
        assert_eq!(state, SamState::Failed(expected));
    }

    #[test]
    fn what_is_no_sam_ends_it() {
        let failed = SamState::Failed;
        let malformed = |what| SamState::Failed(SamError::Malformed(what));
        let long = "x".repeat(super::line::MAX_SAM_LINE_BYTES);
        for (input, expected) in [
            ("HTTP/1.1 400 Bad Request\r\n", malformed("another answer")),
            ("HELLO REPLY RESULT=OK\n", malformed("version")),
            ("HELLO REPLY RESULT=OK VERSION=new\n", malformed("version")),
            (
                "HELLO REPLY RESULT=NOVERSION\n",
                failed(SamError::NoVersion),
            ),
            (long.as_str(), failed(SamError::TooLong)),
        ] {
            assert_eq!(feed(&connect(), input.as_bytes()).1, expected, "{input}");
        }
        let input = format!("{HELLO_REPLY}STREAM STATUS RESULT=CANT_REACH_PEER\n");
        let refused = SamError::Refused(SamRefusal::CannotReachPeer);
        assert_eq!(feed(&connect(), input.as_bytes()).1, failed(refused));
        let input = format!("{HELLO_REPLY}SESSION STATUS RESULT=OK DESTINATION=AAAA\n");
        assert_eq!(feed(&session(None), input.as_bytes()).1, malformed("keys"));
    }
}
