//! Two ends behind a relay that keeps all that it sees, and that lies when a test tells it to.
//!
//! ```text
//! 0 caller  --  1 relay (records, tampers)  --  2 called
//! ```

use std::time::{Duration, UNIX_EPOCH};

use bytes::BytesMut;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wormholes_proto::{
    Answer, Open, RecordBook, SignedRecord, Suite, Transport, decode_answer, decode_open,
    encode_answer, encode_open,
    sealed::{
        ANSWER_BYTES, Frame, HELLO_BYTES, Initiator, Opener, OwnEnd, SealedError, Sealer,
        handle_hello,
    },
};
use wormholes_tests::{
    TestNode,
    sim::{Conditions, Machine, Outbox, SimNet, for_seeds},
};

const SECOND: Duration = Duration::from_secs(1);
const CALLER: usize = 0;
const RELAY: usize = 1;
const CALLED: usize = 2;
const TARGET: &str = "secret-target.example:443";
const QUESTION: &[u8] = b"what the caller asks, in plain words";
const REPLY: &[u8] = b"what the called replies, in plain words";

#[derive(Debug, Clone)]
enum Message {
    Bytes(Vec<u8>),
    /// The stream ended.
    Fin,
}

/// What the relay does to the messages of one direction after the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tamper {
    Nothing,
    /// Sends the message of this number again after the last.
    Replay(usize),
    /// Sends the message of this number back to where it came from.
    Reflect(usize),
    /// Leaves the message of this number out.
    LeaveOut(usize),
    /// Exchanges the message of this number with the next.
    Swap(usize),
    /// Ends the stream after so many messages.
    CutAfter(usize),
    /// Flips a bit in the message of this number.
    Flip(usize),
}

#[expect(clippy::large_enum_variant, reason = "three of them")]
enum Place {
    End(End),
    Relay(Relay),
}

/// Passes on what comes, in pieces of random size.
struct Relay {
    tamper: Tamper,
    /// Messages from the caller, then from the called.
    seen: [Vec<Vec<u8>>; 2],
    /// Held back by [`Tamper::Swap`].
    held: Option<Vec<u8>>,
    rng: ChaCha20Rng,
}

struct End {
    keys: TestNode,
    record: SignedRecord,
    book: RecordBook,
    buffer: BytesMut,
    state: State,
    /// The OPEN or the answer, then the data.
    received: Vec<Vec<u8>>,
    outcome: Option<Result<(), SealedError>>,
    rng: ChaCha20Rng,
}

enum State {
    /// The called before HELLO.
    Waiting,
    /// The caller before ANSWER.
    Calling(Initiator),
    Talking {
        sealer: Box<Sealer>,
        opener: Box<Opener>,
    },
}

impl End {
    fn new(number: u8, sequence: u64, seed: u64) -> Self {
        let keys = TestNode::new(number).unwrap();
        Self {
            record: keys.signed(sequence).unwrap(),
            keys,
            book: RecordBook::new(),
            buffer: BytesMut::new(),
            state: State::Waiting,
            received: Vec::new(),
            outcome: None,
            rng: ChaCha20Rng::seed_from_u64(seed ^ u64::from(number) << 32),
        }
    }

    fn call(&mut self, peer: &SignedRecord, out: &mut Outbox<Message>) {
        let own = OwnEnd {
            noise: self.keys.noise(),
            record: &self.record,
        };
        let suite = Suite::ChaChaPoly;
        let (initiator, hello) = Initiator::new(own, peer, suite, &mut self.rng).unwrap();
        self.state = State::Calling(initiator);
        out.send(RELAY, Message::Bytes(hello));
    }

    fn handle(&mut self, message: Message, out: &mut Outbox<Message>) {
        if self.outcome.is_some() {
            return;
        }
        match message {
            Message::Bytes(bytes) => {
                self.buffer.extend_from_slice(&bytes);
                self.outcome = self.handle_buffer(out).err().map(Err);
            }
            Message::Fin => self.outcome = Some(self.handle_fin()),
        }
    }

    fn handle_fin(&mut self) -> Result<(), SealedError> {
        match &self.state {
            State::Talking { opener, .. } => opener.handle_stream_end(&self.buffer),
            State::Waiting | State::Calling(_) => Err(SealedError::Cut),
        }
    }

    fn handle_buffer(&mut self, out: &mut Outbox<Message>) -> Result<(), SealedError> {
        match std::mem::replace(&mut self.state, State::Waiting) {
            State::Waiting if self.buffer.len() >= HELLO_BYTES => self.answer(out)?,
            State::Calling(initiator) if self.buffer.len() >= ANSWER_BYTES => {
                self.ask(initiator, out)?;
            }
            state @ (State::Waiting | State::Calling(_) | State::Talking { .. }) => {
                self.state = state;
            }
        }
        self.read_frames(out)
    }

    fn answer(&mut self, out: &mut Outbox<Message>) -> Result<(), SealedError> {
        let hello = self.buffer.split_to(HELLO_BYTES);
        let own = OwnEnd {
            noise: self.keys.noise(),
            record: &self.record,
        };
        let known = |id: &_| self.book.get(id).cloned();
        let (session, answer) = handle_hello(own, &hello, known, &mut self.rng)?;
        self.book
            .handle_record(UNIX_EPOCH, session.peer.id(), session.peer);
        self.state = State::Talking {
            sealer: Box::new(session.sealer),
            opener: Box::new(session.opener),
        };
        out.send(RELAY, Message::Bytes(answer));
        Ok(())
    }

    fn ask(&mut self, initiator: Initiator, out: &mut Outbox<Message>) -> Result<(), SealedError> {
        let answer = self.buffer.split_to(ANSWER_BYTES);
        let session = initiator.handle_answer(&answer)?;
        self.book
            .handle_record(UNIX_EPOCH, session.peer.id(), session.peer);
        let (mut sealer, opener) = (Box::new(session.sealer), Box::new(session.opener));
        let open = encode_open(&Open::Exit(Transport::Tcp, TARGET.parse().unwrap()));
        send_frames(&mut sealer, &open, QUESTION, out)?;
        self.state = State::Talking { sealer, opener };
        Ok(())
    }

    fn read_frames(&mut self, out: &mut Outbox<Message>) -> Result<(), SealedError> {
        let State::Talking { sealer, opener } = &mut self.state else {
            return Ok(());
        };
        while let Some(frame) = opener.open(&mut self.buffer)? {
            match frame {
                Frame::Data(data) => self.received.push(data.to_vec()),
                Frame::Move => panic!("nobody moves here"),
                Frame::End => {
                    // The called replies when it has heard all.
                    let open = self.received.first().map(|frame| decode_open(&frame[2..]));
                    if let Some(Ok(Open::Exit(..))) = open {
                        let accepted = encode_answer(&Answer::Accepted(Vec::new()));
                        send_frames(sealer, &accepted, REPLY, out)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Each frame in a message of its own, so that the relay can tell them apart.
fn send_frames(
    sealer: &mut Sealer,
    head: &[u8],
    data: &[u8],
    out: &mut Outbox<Message>,
) -> Result<(), SealedError> {
    for data in [head, data] {
        let mut frame = BytesMut::new();
        sealer.seal_data(data, Some(256), &mut frame)?;
        out.send(RELAY, Message::Bytes(frame.to_vec()));
    }
    let mut frame = BytesMut::new();
    sealer.seal_end(Some(256), &mut frame)?;
    out.send(RELAY, Message::Bytes(frame.to_vec()));
    out.send(RELAY, Message::Fin);
    Ok(())
}

impl Relay {
    fn handle(&mut self, from: usize, message: Message, out: &mut Outbox<Message>) {
        let to = if from == CALLER { CALLED } else { CALLER };
        let side = usize::from(from == CALLED);
        let Message::Bytes(mut bytes) = message else {
            if let (Tamper::Replay(number), CALLER) = (self.tamper, from) {
                let again = self.seen[0][number].clone();
                self.pass(to, &again, out);
            }
            out.send(to, Message::Fin);
            return;
        };
        let number = self.seen[side].len();
        self.seen[side].push(bytes.clone());
        // The first message of each side is the handshake's; the caller's others are tampered with.
        let tamper = if from == CALLER {
            self.tamper
        } else {
            Tamper::Nothing
        };
        match tamper {
            Tamper::LeaveOut(n) if n == number => return,
            Tamper::CutAfter(n) if n <= number => {
                out.send(to, Message::Fin);
                return;
            }
            Tamper::Reflect(n) if n == number => {
                self.pass(from, &bytes, out);
            }
            Tamper::Flip(n) if n == number => {
                let at = self.rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << self.rng.random_range(0..8);
            }
            Tamper::Swap(n) if n == number => {
                self.held = Some(bytes);
                return;
            }
            Tamper::Nothing
            | Tamper::Replay(_)
            | Tamper::Reflect(_)
            | Tamper::LeaveOut(_)
            | Tamper::Swap(_)
            | Tamper::CutAfter(_)
            | Tamper::Flip(_) => {}
        }
        self.pass(to, &bytes, out);
        if let Some(held) = self.held.take_if(|_| from == CALLER) {
            self.pass(to, &held, out);
        }
    }

    fn pass(&mut self, to: usize, bytes: &[u8], out: &mut Outbox<Message>) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(self.rng.random_range(1..=rest.len()));
            out.send(to, Message::Bytes(piece.to_vec()));
            rest = tail;
        }
    }
}

impl Machine for Place {
    type Message = Message;

    fn handle_message(
        &mut self,
        _: Duration,
        from: usize,
        message: Message,
        out: &mut Outbox<Message>,
    ) {
        match self {
            Self::End(end) => end.handle(message, out),
            Self::Relay(relay) => relay.handle(from, message, out),
        }
    }

    fn handle_timeout(&mut self, _: Duration, _: &mut Outbox<Message>) {}

    fn poll_timeout(&self) -> Option<Duration> {
        None
    }
}

fn network(seed: u64, tamper: Tamper) -> SimNet<Place> {
    let relay = Relay {
        tamper,
        seen: [Vec::new(), Vec::new()],
        held: None,
        rng: ChaCha20Rng::seed_from_u64(seed),
    };
    let places = vec![
        Place::End(End::new(1, 5, seed)),
        Place::Relay(relay),
        Place::End(End::new(2, 5, seed)),
    ];
    SimNet::new(seed, places, Conditions::stream(SECOND / 50))
}

fn end(net: &SimNet<Place>, place: usize) -> &End {
    match &net.machines()[place] {
        Place::End(end) => end,
        Place::Relay(_) => panic!("no end there"),
    }
}

fn relay(net: &SimNet<Place>) -> &Relay {
    match &net.machines()[RELAY] {
        Place::Relay(relay) => relay,
        Place::End(_) => panic!("no relay there"),
    }
}

fn change(net: &mut SimNet<Place>, place: usize, change: impl FnOnce(&mut End)) {
    net.command(place, |place, _, _| match place {
        Place::End(end) => change(end),
        Place::Relay(_) => panic!("no end there"),
    });
}

/// The caller calls whom `peer` describes, and all that follows happens.
fn run(net: &mut SimNet<Place>, peer: &SignedRecord) {
    net.command(CALLER, |place, _, out| match place {
        Place::End(end) => end.call(peer, out),
        Place::Relay(_) => panic!("no end there"),
    });
    net.run_for(60 * SECOND, |_| {});
}

/// A call on the called's true record; what came of it at the caller and at the called.
fn outcomes(net: &mut SimNet<Place>) -> [Option<Result<(), SealedError>>; 2] {
    let peer = end(net, CALLED).record.clone();
    run(net, &peer);
    [CALLER, CALLED].map(|place| end(net, place).outcome.clone())
}

#[test]
fn two_ends_talk_through_a_relay() {
    for_seeds(20, |seed| {
        let mut net = network(seed, Tamper::Nothing);
        assert_eq!(outcomes(&mut net), [Some(Ok(())), Some(Ok(()))]);
        let [open, question] = &end(&net, CALLED).received[..] else {
            panic!("not what was asked")
        };
        let target = TARGET.parse().unwrap();
        assert_eq!(
            decode_open(&open[2..]),
            Ok(Open::Exit(Transport::Tcp, target))
        );
        assert_eq!(question, QUESTION);
        let [answer, reply] = &end(&net, CALLER).received[..] else {
            panic!("not what was replied")
        };
        let accepted = Answer::Accepted(Vec::new());
        assert_eq!(decode_answer(&answer[2..]), Ok(accepted));
        assert_eq!(reply, REPLY);
        // Each has the other's record, though nobody gave it to the called before.
        let (caller, called) = (end(&net, CALLER), end(&net, CALLED));
        assert_eq!(called.book.get(&caller.record.id()), Some(&caller.record));
        assert_eq!(caller.book.get(&called.record.id()), Some(&called.record));
    })
    .unwrap();
}

#[test]
fn the_relay_sees_no_target_no_plaintext_and_no_record() {
    for_seeds(5, |seed| {
        let mut net = network(seed, Tamper::Nothing);
        assert_eq!(outcomes(&mut net), [Some(Ok(())), Some(Ok(()))]);
        let seen = relay(&net).seen.concat().concat();
        assert_eq!(seen.len(), HELLO_BYTES + ANSWER_BYTES + 6 * 256);
        let mut secrets = vec![
            TARGET.as_bytes().to_vec(),
            b"secret-target".to_vec(),
            QUESTION.to_vec(),
            REPLY.to_vec(),
        ];
        for place in [CALLER, CALLED] {
            let end = end(&net, place);
            let id = end.record.id();
            secrets.extend([id.as_bytes().to_vec(), id.to_string().into_bytes()]);
            secrets.push(end.record.record().noise_key.to_vec());
            secrets.push(end.record.bytes().to_vec());
        }
        // Any eight bytes of a secret would be a leak, and come by chance once in 2^50 runs.
        for secret in secrets {
            for part in secret.windows(8) {
                let leak = seen.windows(8).any(|window| window == part);
                // Runs of zeros in a record are no secret.
                assert!(!leak || part.iter().all(|b| *b == 0), "{part:?} leaked");
            }
        }
        // Nothing in the sizes tells the lengths of what is inside.
        for message in relay(&net).seen.iter().flat_map(|side| &side[1..]) {
            assert_eq!(message.len(), 256);
        }
    })
    .unwrap();
}

#[test]
fn a_relay_that_tampers_is_found_out() {
    use Tamper::{CutAfter, Flip, LeaveOut, Reflect, Replay, Swap};
    // Messages of the caller: 0 HELLO, 1 OPEN, 2 the question, 3 END.
    let cases = [
        (Replay(1), 2, SealedError::AfterEnd),
        (Replay(3), 2, SealedError::AfterEnd),
        (LeaveOut(1), 0, SealedError::Frame),
        (LeaveOut(2), 1, SealedError::Frame),
        (LeaveOut(3), 2, SealedError::Cut),
        (Swap(1), 0, SealedError::Frame),
        (Swap(2), 1, SealedError::Frame),
        (CutAfter(1), 0, SealedError::Cut),
        (CutAfter(2), 1, SealedError::Cut),
        (CutAfter(3), 2, SealedError::Cut),
    ];
    for_seeds(5, |seed| {
        for (tamper, n_received, error) in &cases {
            let mut net = network(seed, *tamper);
            let [_, called] = outcomes(&mut net);
            assert_eq!(called, Some(Err(error.clone())), "{tamper:?}");
            assert_eq!(end(&net, CALLED).received.len(), *n_received, "{tamper:?}");
        }
        for number in 0..4 {
            let mut net = network(seed, Flip(number));
            let [caller, called] = outcomes(&mut net);
            assert_ne!((&caller, &called), (&Some(Ok(())), &Some(Ok(()))));
            assert!(end(&net, CALLED).received.len() < number.max(1));
        }
        for number in 1..4 {
            let mut net = network(seed, Reflect(number));
            let [caller, _] = outcomes(&mut net);
            assert_eq!(caller, Some(Err(SealedError::Frame)));
            assert!(end(&net, CALLER).received.is_empty());
        }
    })
    .unwrap();
}

#[test]
fn a_replayed_call_opens_nothing() {
    let mut net = network(1, Tamper::Nothing);
    assert_eq!(outcomes(&mut net), [Some(Ok(())), Some(Ok(()))]);
    let recorded = relay(&net).seen[0].clone();
    // The same node again, with other randomness, as after a while.
    let mut net = network(2, Tamper::Nothing);
    for bytes in recorded {
        net.command(RELAY, |_, _, out| out.send(CALLED, Message::Bytes(bytes)));
    }
    net.run_for(SECOND, |_| {});
    let called = end(&net, CALLED);
    assert_eq!(called.outcome, Some(Err(SealedError::Frame)));
    assert!(called.received.is_empty());
}

#[test]
fn a_call_that_reaches_another_node_or_key_fails() {
    // The relay leads the call to a node with other keys.
    let mut net = network(1, Tamper::Nothing);
    let wanted = TestNode::new(9).unwrap().signed(5).unwrap();
    run(&mut net, &wanted);
    assert_eq!(end(&net, CALLED).outcome, Some(Err(SealedError::Handshake)));
    assert_eq!(end(&net, CALLER).outcome, None);
    // The called has another key than its known record says.
    let mut net = network(1, Tamper::Nothing);
    let mut stale = end(&net, CALLED).record.record().clone();
    stale.noise_key = *TestNode::new(9).unwrap().noise().public();
    let stale = end(&net, CALLED).keys.sign(&stale).unwrap();
    run(&mut net, &stale);
    assert_eq!(end(&net, CALLED).outcome, Some(Err(SealedError::Handshake)));
}

#[test]
fn a_record_that_carries_anothers_key_misleads_nobody() {
    // Mallory's record, well signed, names the key of the called: the caller must not take the
    // called for Mallory.
    let mut net = network(1, Tamper::Nothing);
    let mallory = TestNode::new(9).unwrap();
    let mut record = mallory.record(5);
    record.noise_key = end(&net, CALLED).record.record().noise_key;
    let record = mallory.sign(&record).unwrap();
    run(&mut net, &record);
    assert_eq!(end(&net, CALLED).outcome, Some(Err(SealedError::Handshake)));
    assert_eq!(end(&net, CALLER).outcome, None);
    // Nor does an end speak with a record that is not of its own key.
    let caller = end(&net, CALLER);
    let own = OwnEnd {
        noise: caller.keys.noise(),
        record: &end(&net, CALLED).record,
    };
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let called = Initiator::new(own, &record, Suite::AesGcm, &mut rng);
    assert_eq!(called.err(), Some(SealedError::OwnRecord));
}

#[test]
fn an_end_with_an_older_record_than_the_known_one_is_refused() {
    let mut net = network(1, Tamper::Nothing);
    let (caller, called) = (end(&net, CALLER), end(&net, CALLED));
    let newer = called.keys.signed(6).unwrap();
    let id = called.record.id();
    let callers_newer = caller.keys.signed(6).unwrap();
    let callers_id = caller.record.id();
    run(&mut net, &newer);
    let refused = Some(Err(SealedError::OldRecord(id)));
    assert_eq!(end(&net, CALLER).outcome, refused);

    let mut net = network(1, Tamper::Nothing);
    change(&mut net, CALLED, |end| {
        let teller = callers_newer.id();
        end.book.handle_record(UNIX_EPOCH, teller, callers_newer);
    });
    let [_, called] = outcomes(&mut net);
    assert_eq!(called, Some(Err(SealedError::OldRecord(callers_id))));
}

#[test]
fn a_newer_record_of_the_called_reaches_the_caller() {
    let mut net = network(1, Tamper::Nothing);
    let older = end(&net, CALLED).keys.signed(4).unwrap();
    let id = older.id();
    change(&mut net, CALLER, |end| {
        end.book
            .handle_record(UNIX_EPOCH, older.id(), older.clone());
    });
    run(&mut net, &older);
    assert_eq!(end(&net, CALLER).outcome, Some(Ok(())));
    let known = end(&net, CALLER).book.record(&id);
    assert_eq!(known.map(|record| record.sequence), Some(5));
}
