//! Relayed ends: both handshake messages, and frames.

use bytes::{Bytes, BytesMut};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wormholes_proto::{
    NodeId, SignedRecord, Suite,
    sealed::{ANSWER_BYTES, Frame, Initiator, Opener, OwnEnd, SealedError, Session, handle_hello},
};

use super::input::{Input, pieces};
use crate::{
    TestNode,
    liar::noise::{self, Frames, SEALED_PAYLOAD_BYTES},
};

/// What precedes the Noise message in a HELLO.
const HELLO_HEAD: [u8; 2] = [1, SUITE.number()];
const SUITE: Suite = Suite::AesGcm;
/// Kind and size.
const HEAD_BYTES: usize = 3;

/// A node and its record.
struct End {
    node: TestNode,
    record: SignedRecord,
}

/// A HELLO that is damaged on its way; or what a caller, or who is called, says of itself under the
/// right keys.
pub fn sealed_hello(input: &[u8]) {
    let mut input = Input::new(input);
    let (caller, called) = (End::new(1), End::new(2));
    match input.byte() % 3 {
        0 => {
            let (_, mut hello) = caller.call(&called);
            let is_damaged = input.damage(&mut hello);
            let session = called.take(&hello);
            assert_eq!(session.is_err(), is_damaged);
        }
        1 => {
            let payload = caller.payload(input);
            let (_, hello) = caller.say(&called, &payload);
            let session = called.take(&hello);
            let session = session.map(|(session, answer)| {
                assert_eq!(answer.len(), ANSWER_BYTES);
                session
            });
            caller.check(&payload, session);
        }
        _ => {
            let (call, hello) = caller.call(&called);
            let payload = called.payload(input);
            let own = called.node.noise().private();
            let answered = noise::answer_call(own, &called.node.id(), &hello, &payload);
            called.check(&payload, call.handle_answer(&answered.unwrap().0));
        }
    }
}

/// What came out of frames.
#[derive(Debug, Default, PartialEq)]
struct Opened {
    data: Vec<Bytes>,
    /// How often the rest came on another stream: the same buffer stands for all of them.
    moves: usize,
    ended: bool,
    error: Option<SealedError>,
}

/// Frames under the right key with whatever in them, and what damages them.
pub fn sealed_frames(input: &[u8]) {
    let mut input = Input::new(input);
    let (choice, piece_bytes) = (input.byte(), input.byte());
    let (mut frames, opener) = frames();
    let mut sent = Vec::new();
    let mut expected = Opened::default();
    for _ in 0..choice & 0x0f {
        let plain = input.piece();
        expected.take(plain);
        sent.extend(frames.seal(plain).unwrap());
    }
    let is_damaged = input.damage(&mut sent);
    let opened = Opened::of(opener, pieces(&sent, piece_bytes));
    if is_damaged {
        assert!(expected.data.starts_with(&opened.data), "it came through");
        assert!(opened.error.is_some(), "it is not seen");
    } else {
        expected.end();
        assert_eq!(opened, expected);
    }
}

/// A caller that seals what it likes, and who is called.
fn frames() -> (Frames, Opener) {
    let (caller, called) = (End::new(1), End::new(2));
    let payload = caller.payload(Input::new(&[]));
    let (call, hello) = caller.say(&called, &payload);
    let (session, answer) = called.take(&hello).unwrap();
    (call.answered(&answer).unwrap(), session.opener)
}

impl Opened {
    /// By the diagram in `sealed.rs`.
    fn take(&mut self, plain: &[u8]) {
        if self.error.is_some() {
            return;
        }
        let (head, data) = plain.split_at(HEAD_BYTES.min(plain.len()));
        match *head {
            _ if self.ended => self.error = Some(SealedError::AfterEnd),
            [1, high, low] => match data.get(..u16::from_be_bytes([high, low]).into()) {
                Some(data) => self.data.push(Bytes::copy_from_slice(data)),
                None => self.error = Some(SealedError::Frame),
            },
            [2, 0, 0] => self.ended = true,
            [3, 0, 0] => self.moves += 1,
            _ => self.error = Some(SealedError::Frame),
        }
    }

    /// The stream is over.
    fn end(&mut self) {
        if self.error.is_none() && !self.ended {
            self.error = Some(SealedError::Cut);
        }
    }

    fn of<'a>(mut opener: Opener, sent: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut opened = Self::default();
        let mut buffer = BytesMut::new();
        for piece in sent {
            buffer.extend_from_slice(piece);
            loop {
                match opener.open(&mut buffer) {
                    Ok(Some(Frame::Data(data))) => opened.data.push(data),
                    Ok(Some(Frame::End)) => opened.ended = true,
                    Ok(Some(Frame::Move)) => {
                        opened.moves += 1;
                        opener.handle_moved();
                    }
                    Ok(None) => break,
                    Err(error) => {
                        opened.error = Some(error);
                        return opened;
                    }
                }
            }
        }
        opened.error = opener.handle_stream_end(&buffer).err();
        opened
    }
}

impl End {
    fn new(number: u8) -> Self {
        let node = TestNode::new(number).unwrap();
        let record = node.signed(1).unwrap();
        Self { node, record }
    }

    fn own(&self) -> OwnEnd<'_> {
        OwnEnd {
            noise: self.node.noise(),
            record: &self.record,
        }
    }

    /// Calls as it should be done.
    fn call(&self, called: &Self) -> (Initiator, Vec<u8>) {
        Initiator::new(self.own(), &called.record, SUITE, &mut rng()).unwrap()
    }

    /// Calls with a payload of its own.
    fn say(&self, called: &Self, payload: &[u8]) -> (noise::Caller, Vec<u8>) {
        let own = self.node.noise().private();
        let key = called.node.noise().public();
        let (call, message) = noise::call(own, &called.node.id(), key, SUITE, payload).unwrap();
        (call, [&HELLO_HEAD[..], &message].concat())
    }

    /// Is called.
    fn take(&self, hello: &[u8]) -> Result<(Session, Vec<u8>), SealedError> {
        let known = |_: &NodeId| None;
        handle_hello(self.own(), hello, known, &mut rng())
    }

    /// The payload as it should be, damaged by `input`; or what `input` says.
    fn payload(&self, mut input: Input<'_>) -> Vec<u8> {
        let mut payload = self.record.bytes().to_vec();
        let len = u16::try_from(payload.len()).unwrap();
        payload.splice(..0, len.to_be_bytes());
        let is_other = input.byte() & 1 == 1;
        if is_other {
            payload = input.rest().to_vec();
        }
        payload.resize(SEALED_PAYLOAD_BYTES, 0);
        if !is_other {
            input.damage(&mut payload);
        }
        payload
    }

    /// A session stands with this end when the payload holds its record, and only then.
    fn check(&self, payload: &[u8], session: Result<Session, SealedError>) {
        let (length, record) = payload.split_first_chunk().unwrap();
        let said = record.get(..u16::from_be_bytes(*length).into());
        let is_own = said == Some(&self.record.bytes()[..]);
        match session {
            Ok(session) => assert!(is_own && session.peer == self.record),
            Err(error) => assert!(!is_own, "{error}"),
        }
    }
}

fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(0)
}
