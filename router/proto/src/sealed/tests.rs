//! What honest ends do, and what dishonest relays and ends cannot.

use bytes::{Bytes, BytesMut};

use super::{
    handshake::{PAYLOAD_BYTES, VERSION, payload, prologue},
    *,
};
use crate::{
    noise::{Pattern, StaticKeypair, handshake_builder},
    record::{NodeRecord, SignedRecord},
    suite::Suite,
    testing::{TestNode, for_mutations, rng},
};

/// A node as an end.
struct End {
    node: TestNode,
    record: SignedRecord,
}

impl End {
    fn new(number: u8) -> Self {
        let node = TestNode::new(number);
        let record = node.signed(5);
        Self { node, record }
    }

    fn own(&self) -> OwnEnd<'_> {
        OwnEnd {
            noise: &self.node.noise,
            record: &self.record,
        }
    }

    fn call(&self, other: &Self, suite: Suite) -> (Initiator, Vec<u8>) {
        Initiator::new(self.own(), &other.record, suite, &mut rng(1)).unwrap()
    }

    fn answer(&self, hello: &[u8]) -> Result<(Session, Vec<u8>), SealedError> {
        handle_hello(self.own(), hello, |_| None, &mut rng(2))
    }
}

/// Caller and called after a good handshake.
pub(super) fn sessions(suite: Suite) -> (Session, Session) {
    let (alice, bob) = (End::new(1), End::new(2));
    let (initiator, hello) = alice.call(&bob, suite);
    let (called, answer) = bob.answer(&hello).unwrap();
    (initiator.handle_answer(&answer).unwrap(), called)
}

fn sealed(sealer: &mut Sealer, data: &[u8], pad_bytes: Option<u32>) -> BytesMut {
    let mut out = BytesMut::new();
    sealer.seal_data(data, pad_bytes, &mut out).unwrap();
    out
}

fn data(text: &'static [u8]) -> Result<Option<Frame>, SealedError> {
    Ok(Some(Frame::Data(Bytes::from_static(text))))
}

#[test]
fn two_ends_learn_who_is_there_and_talk() {
    for suite in Suite::ALL {
        let (mut caller, mut called) = sessions(suite);
        assert_eq!(caller.peer, TestNode::new(2).signed(5));
        assert_eq!(called.peer, TestNode::new(1).signed(5));
        let mut wire = sealed(&mut caller.sealer, b"there", None);
        assert_eq!(called.opener.open(&mut wire), data(b"there"));
        assert_eq!(called.opener.open(&mut wire), Ok(None));
        let mut wire = sealed(&mut called.sealer, b"back", Some(100));
        caller.sealer.seal_end(None, &mut BytesMut::new()).unwrap();
        called.sealer.seal_end(Some(64), &mut wire).unwrap();
        assert_eq!(caller.opener.open(&mut wire), data(b"back"));
        assert_eq!(caller.opener.open(&mut wire), Ok(Some(Frame::End)));
        assert_eq!(caller.opener.open(&mut wire), Ok(None));
        assert_eq!(caller.opener.handle_stream_end(&wire), Ok(()));
    }
}

/// Frozen: other builds speak these bytes.
#[test]
fn handshake_and_frames_keep_their_bytes() {
    let mut lines = Vec::new();
    for suite in Suite::ALL {
        let (alice, bob) = (End::new(1), End::new(2));
        let (initiator, hello) = alice.call(&bob, suite);
        let (_, answer) = bob.answer(&hello).unwrap();
        let mut session = initiator.handle_answer(&answer).unwrap();
        let mut frames = sealed(&mut session.sealer, b"data", Some(32));
        session.sealer.seal_end(None, &mut frames).unwrap();
        lines.extend([hello, answer, frames.to_vec()].map(|b| data_encoding::HEXLOWER.encode(&b)));
    }
    let expected: Vec<_> = include_str!("vectors.hex").lines().collect();
    assert_eq!(lines, expected);
}

#[test]
fn messages_have_one_size_whatever_the_record() {
    let (mut alice, bob) = (End::new(1), End::new(2));
    let mut small = alice.node.record(6);
    small.addresses.clear();
    alice.record = small.sign(|message| alice.node.sign(message)).unwrap();
    let (_, hello) = alice.call(&bob, Suite::AesGcm);
    let (_, answer) = bob.answer(&hello).unwrap();
    assert_eq!((hello.len(), answer.len()), (HELLO_BYTES, ANSWER_BYTES));
    assert_eq!((hello.len(), answer.len()), (1124, 1074));
}

#[test]
fn a_hello_for_another_node_or_key_is_refused() {
    let (alice, bob, carol) = (End::new(1), End::new(2), End::new(3));
    let (_, hello) = alice.call(&bob, Suite::AesGcm);
    assert_eq!(carol.answer(&hello).err(), Some(SealedError::Handshake));
    // Mallory's record carries Bob's key: the call must not end at Bob.
    let mallory = TestNode::new(4);
    let mut record = mallory.record(1);
    record.noise_key = *bob.node.noise.public();
    let record = record.sign(|message| mallory.sign(message)).unwrap();
    let own = alice.own();
    let (_, hello) = Initiator::new(own, &record, Suite::AesGcm, &mut rng(1)).unwrap();
    assert_eq!(bob.answer(&hello).err(), Some(SealedError::Handshake));
}

#[test]
fn an_end_shows_only_its_own_record() {
    let (alice, bob) = (End::new(1), End::new(2));
    let own = OwnEnd {
        noise: &alice.node.noise,
        record: &bob.record,
    };
    let suite = Suite::AesGcm;
    let called = Initiator::new(own, &bob.record, suite, &mut rng(1));
    assert_eq!(called.err(), Some(SealedError::OwnRecord));
    let (_, hello) = alice.call(&bob, suite);
    let answered = handle_hello(own, &hello, |_| None, &mut rng(2));
    assert_eq!(answered.err(), Some(SealedError::OwnRecord));
}

#[test]
fn a_record_that_does_not_fit_the_handshake_is_refused() {
    let (alice, bob, carol) = (End::new(1), End::new(2), End::new(3));
    // Carol calls with her own key and Alice's record.
    let hello = forged_hello(&carol.node.noise, &alice.record, bob.record.record());
    let id = alice.node.id();
    assert_eq!(bob.answer(&hello).err(), Some(SealedError::WrongKey(id)));
    // Bob answers with Carol's record.
    let (initiator, hello) = alice.call(&bob, Suite::AesGcm);
    let answer = forged_answer(bob.own(), &hello, &carol.record);
    let refused = initiator.handle_answer(&answer).err();
    assert_eq!(refused, Some(SealedError::WrongNode(carol.node.id())));
    // Bob answers with a record of his that names another key.
    let mut other_key = bob.node.record(9);
    other_key.noise_key = *carol.node.noise.public();
    let other_key = other_key.sign(|message| bob.node.sign(message)).unwrap();
    let (initiator, hello) = alice.call(&bob, Suite::AesGcm);
    let answer = forged_answer(bob.own(), &hello, &other_key);
    let refused = initiator.handle_answer(&answer).err();
    assert_eq!(refused, Some(SealedError::WrongKey(bob.node.id())));
}

#[test]
fn an_older_record_than_the_known_one_is_refused() {
    let (alice, bob) = (End::new(1), End::new(2));
    let (_, hello) = alice.call(&bob, Suite::AesGcm);
    for (known, refused) in [(None, false), (Some(5), false), (Some(6), true)] {
        let record = |_: &NodeId| known.map(|sequence| alice.node.signed(sequence));
        let answered = handle_hello(bob.own(), &hello, record, &mut rng(2));
        let expected = refused.then(|| SealedError::OldRecord(alice.node.id()));
        assert_eq!(answered.err(), expected, "known {known:?}");
    }
    let newer = bob.node.signed(6);
    let (initiator, hello) =
        Initiator::new(alice.own(), &newer, Suite::AesGcm, &mut rng(1)).unwrap();
    let (_, answer) = bob.answer(&hello).unwrap();
    let refused = initiator.handle_answer(&answer).err();
    assert_eq!(refused, Some(SealedError::OldRecord(bob.node.id())));
}

#[test]
fn damaged_handshakes_are_refused() {
    let (alice, bob) = (End::new(1), End::new(2));
    let (_, hello) = alice.call(&bob, Suite::AesGcm);
    for_mutations(&hello, |bytes| assert!(bob.answer(bytes).is_err()));
    let (_, answer) = bob.answer(&hello).unwrap();
    for_mutations(&answer, |bytes| {
        let (initiator, _) = alice.call(&bob, Suite::AesGcm);
        assert!(initiator.handle_answer(bytes).is_err());
    });
    assert_eq!(bob.answer(&[]).err(), Some(SealedError::Length(0)));
    let mut other = hello.clone();
    other[0] = 2;
    assert_eq!(bob.answer(&other).err(), Some(SealedError::Version(2)));
    other[..2].copy_from_slice(&[1, 9]);
    assert_eq!(bob.answer(&other).err(), Some(SealedError::Suite(9)));
    // The other suite is part of the prologue: it cannot be chosen on the way.
    other[1] = Suite::ChaChaPoly.number();
    assert_eq!(bob.answer(&other).err(), Some(SealedError::Handshake));
}

#[test]
fn frames_replayed_reflected_left_out_or_damaged_do_not_open() {
    let (mut caller, mut called) = sessions(Suite::AesGcm);
    let first = sealed(&mut caller.sealer, b"first", None);
    let second = sealed(&mut caller.sealer, b"second", None);
    let opener_of = |wire: &[u8]| {
        let (_, mut called) = sessions(Suite::AesGcm);
        let mut wire = BytesMut::from(wire);
        let first = called.opener.open(&mut wire);
        (first, called.opener.open(&mut wire))
    };
    let broken = Err(SealedError::Frame);
    assert_eq!(
        opener_of(&[&first[..], &first].concat()),
        (data(b"first"), broken.clone())
    );
    assert_eq!(opener_of(&second), (broken.clone(), broken.clone()));
    let back = sealed(&mut called.sealer, b"back", None);
    assert_eq!(opener_of(&back), (broken.clone(), broken.clone()));
    for_mutations(&first, |bytes| {
        let (opened, _) = opener_of(bytes);
        assert!(
            matches!(opened, Ok(None) | Err(SealedError::Frame)),
            "{opened:?}"
        );
    });
    let mut reflected = first.clone();
    assert_eq!(caller.opener.open(&mut reflected), broken);
}

#[test]
fn a_cut_is_told_from_an_end() {
    let (mut caller, mut called) = sessions(Suite::AesGcm);
    let mut wire = sealed(&mut caller.sealer, b"all", None);
    assert_eq!(called.opener.open(&mut wire), data(b"all"));
    assert_eq!(
        called.opener.handle_stream_end(&wire),
        Err(SealedError::Cut)
    );
    caller.sealer.seal_end(None, &mut wire).unwrap();
    let mut half = wire.split_to(5);
    assert_eq!(called.opener.open(&mut half), Ok(None));
    assert_eq!(
        called.opener.handle_stream_end(&half),
        Err(SealedError::Cut)
    );
    half.unsplit(wire);
    assert_eq!(called.opener.open(&mut half), Ok(Some(Frame::End)));
    half.extend_from_slice(b"x");
    assert_eq!(called.opener.open(&mut half), Err(SealedError::AfterEnd));
    assert_eq!(
        called.opener.handle_stream_end(&half),
        Err(SealedError::AfterEnd)
    );
    let after = caller.sealer.seal_data(b"x", None, &mut half);
    assert_eq!(after, Err(SealedError::AfterEnd));
}

#[test]
fn long_data_is_split_and_sizes_are_padded() {
    for pad_bytes in [
        None,
        Some(0),
        Some(1),
        Some(100),
        Some(512),
        Some(65_537),
        Some(u32::MAX),
    ] {
        let (mut caller, mut called) = sessions(Suite::ChaChaPoly);
        for len in [0, 1, 79, 80, 65_516, 65_517, 200_000] {
            let plain: Vec<u8> = (0_u8..=255).cycle().take(len).collect();
            let mut wire = sealed(&mut caller.sealer, &plain, pad_bytes);
            let mut read = Vec::new();
            loop {
                let before = wire.len();
                match called.opener.open(&mut wire).unwrap() {
                    Some(Frame::Data(bytes)) => read.extend_from_slice(&bytes),
                    Some(Frame::End | Frame::Move) => panic!("nobody ended or moved"),
                    None => break,
                }
                let block = pad_bytes.unwrap_or(1).clamp(1, 65_537) as usize;
                assert_eq!((before - wire.len()) % block, 0, "{pad_bytes:?} {len}");
            }
            assert!(wire.is_empty() && read == plain, "{pad_bytes:?} {len}");
        }
    }
}

#[test]
fn both_ends_change_keys_together() {
    let (mut caller, mut called) = sessions(Suite::AesGcm);
    let mut wire = BytesMut::new();
    for _ in 0..(1 << 17) + 2 {
        caller.sealer.seal_data(b"x", None, &mut wire).unwrap();
        assert_eq!(called.opener.open(&mut wire), data(b"x"));
    }
}

/// A HELLO by who holds `noise` and shows a record that is not its own.
fn forged_hello(noise: &StaticKeypair, shown: &SignedRecord, called: &NodeRecord) -> Vec<u8> {
    let suite = Suite::AesGcm;
    let mut state = handshake_builder(Pattern::Ik, suite, &mut rng(3))
        .unwrap()
        .local_private_key(noise.private())
        .unwrap()
        .remote_public_key(&called.noise_key)
        .unwrap()
        .prologue(&prologue(suite, &called.id))
        .unwrap()
        .build_initiator()
        .unwrap();
    let mut hello = vec![0; HELLO_BYTES];
    hello[..2].copy_from_slice(&[VERSION, suite.number()]);
    state
        .write_message(&payload(shown), &mut hello[2..])
        .unwrap();
    hello
}

/// The answer of an honest key with a record that is not its own.
fn forged_answer(own: OwnEnd<'_>, hello: &[u8], shown: &SignedRecord) -> Vec<u8> {
    let suite = Suite::AesGcm;
    let mut state = handshake_builder(Pattern::Ik, suite, &mut rng(4))
        .unwrap()
        .local_private_key(own.noise.private())
        .unwrap()
        .prologue(&prologue(suite, &own.record.id()))
        .unwrap()
        .build_responder()
        .unwrap();
    state
        .read_message(&hello[2..], &mut [0; PAYLOAD_BYTES])
        .unwrap();
    let mut answer = vec![0; ANSWER_BYTES];
    state.write_message(&payload(shown), &mut answer).unwrap();
    answer
}
