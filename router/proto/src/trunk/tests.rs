//! The bytes of frames.

mod ends;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use data_encoding::HEXLOWER;

use super::*;
use crate::{
    blob::BlobId,
    testing::{TestNode, for_mutations},
    wire::WireError,
};

const HISTORY: History = History {
    incarnation: [7; 16],
    epoch: 1,
};

const WELCOME: Frame = Frame::Welcome {
    version: TRUNK_VERSION,
};

fn name(text: &str) -> Name {
    Name::try_from(text).unwrap()
}

fn envelope() -> Envelope {
    Envelope {
        from: Principal::Node,
        to: Principal::User(name("ann")),
        protocol: name("pay"),
    }
}

fn key() -> ChannelKey {
    ChannelKey {
        sender: TestNode::new(1).id(),
        receiver: TestNode::new(2).id(),
        instance: name("ledger"),
        envelope: envelope(),
    }
}

fn hello() -> Hello {
    let node = TestNode::new(1);
    let hello = Hello {
        version: TRUNK_VERSION,
        instance: name("ledger"),
        identity: node.id(),
        kind: IdentityKind::Node,
        unix_minutes: 1_000,
        nonce: [3; 16],
        signature: [0; 64],
    };
    hello.sign(&TestNode::new(2).id(), |message| node.sign(message))
}

fn body(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn failure() -> Failure {
    Failure::new(ErrorCode::Denied, "no")
}

fn channel(history: History, acked: u64, next_seq: u64) -> Channel {
    Channel {
        number: 5,
        envelope: envelope(),
        history,
        next_seq,
        acked,
    }
}

#[test]
fn what_goes_out_of_an_incarnation_differs_for_each_channel() {
    let (one, mut other) = (key(), key());
    other.sender = TestNode::new(3).id();
    let of = |key: &ChannelKey, store: u8| History::new(key, &[store; 16], 1).incarnation;
    assert_eq!(
        HEXLOWER.encode(&of(&one, 7)),
        "7a0d98f76a8c8e7639bd5ee7b270d231"
    );
    assert_eq!(of(&one, 7), History::new(&one, &[7; 16], 2).incarnation);
    let told = [of(&one, 7), of(&one, 8), of(&other, 7)];
    assert!(told[0] != told[1] && told[0] != told[2] && told[1] != told[2]);
}

/// One of each kind, in order of the kinds.
fn frames() -> Vec<Frame> {
    let greetings = vec![
        Frame::Hello(Box::new(hello())),
        WELCOME,
        Frame::Refused(TrunkRefusal::WrongTime),
    ];
    [greetings, of_channels(), of_posts_and_asks(), of_blobs()].concat()
}

fn of_channels() -> Vec<Frame> {
    let (number, seq) = (5, 7);
    let position = Some(Position::first(&key(), &HISTORY).message(b"hi").gap());
    let window = Window::MAX;
    let state = |position| {
        Frame::State(State {
            number,
            window,
            position,
        })
    };
    let failure = failure();
    let refusals = vec![Refusal { seq, failure }];
    let (reason, by) = (ChannelRefusal::Halted, End::Receiver);
    let body = body("hi");
    vec![
        Frame::Channel(Box::new(channel(HISTORY, 8, 9))),
        state(None),
        state(position),
        Frame::ChannelRefused { number, reason },
        Frame::Data { number, seq, body },
        Frame::Gap {
            number,
            messages: 2,
        },
        Frame::Ack(Ack {
            number,
            seq,
            refusals,
        }),
        Frame::Halt {
            number,
            by,
            reason: Halt::Poison,
        },
    ]
}

fn of_posts_and_asks() -> Vec<Frame> {
    let (ask, left_ms, body) = (6, 1000, body("hi"));
    let answer = |answer| Frame::Answer { ask, answer };
    vec![
        Frame::Post {
            envelope: envelope(),
            body: body.clone(),
        },
        Frame::Ask {
            ask,
            envelope: envelope(),
            left_ms,
            body: body.clone(),
        },
        answer(Ok(body)),
        answer(Err(failure())),
        Frame::Cancel { ask },
    ]
}

fn of_blobs() -> Vec<Frame> {
    let want = 9;
    let wanted = Want {
        want,
        from: Principal::Node,
        to: Principal::User(name("ann")),
        blob: BlobId::from_bytes([4; 32]),
        first: 3,
        pieces: 8,
        with_values: true,
    };
    let frames = [
        BlobFrame::Want(Box::new(wanted)),
        BlobFrame::Given {
            want,
            length: 70_000,
            values: Bytes::from_static(&[5; 64]),
        },
        BlobFrame::More { want, pieces: 2 },
        BlobFrame::Piece {
            want,
            index: 3,
            bytes: body("hi"),
        },
        BlobFrame::NotGiven {
            want,
            failure: failure(),
        },
        BlobFrame::Unwant { want },
    ];
    frames.map(Frame::Blob).to_vec()
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut out = BytesMut::new();
    frame.encode(&mut out).unwrap();
    out.to_vec()
}

/// A decoder for which `frame` is due.
fn decoder(frame: &Frame) -> Decoder {
    match encoded(frame)[4] {
        1 => Decoder::for_acceptor(),
        2 | 3 => Decoder::for_opener(),
        _ => welcomed(),
    }
}

fn welcomed() -> Decoder {
    let mut decoder = Decoder::for_opener();
    let welcome = decoder.handle_bytes(&mut Bytes::from(encoded(&WELCOME)));
    assert_eq!(welcome, Ok(Some(WELCOME)));
    decoder
}

fn decode(mut decoder: Decoder, bytes: &[u8], piece: usize) -> Result<Vec<Frame>, FrameError> {
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece) {
        let mut piece = Bytes::copy_from_slice(piece);
        while let Some(frame) = decoder.handle_bytes(&mut piece)? {
            frames.push(frame);
        }
        assert!(piece.is_empty());
    }
    Ok(frames)
}

/// Frozen: other builds speak these bytes.
#[test]
fn frames_keep_their_bytes() {
    let frames = frames();
    let lines: Vec<_> = frames
        .iter()
        .map(|f| HEXLOWER.encode(&encoded(f)))
        .collect();
    assert_eq!(lines.join("\n"), include_str!("vectors.hex").trim());
    for frame in frames {
        let bytes = encoded(&frame);
        for piece in [1, 3, bytes.len()] {
            assert_eq!(
                decode(decoder(&frame), &bytes, piece),
                Ok(vec![frame.clone()])
            );
        }
    }
}

#[test]
fn damaged_frames_break_nothing() {
    for frame in frames() {
        for_mutations(&encoded(&frame), |bytes| {
            let _ = decode(decoder(&frame), bytes, 7);
        });
    }
}

#[test]
fn bodies_have_a_bound_and_large_ones_are_not_copied() {
    let data = |len| Frame::Data {
        number: 1,
        seq: 1,
        body: vec![9; len].into(),
    };
    let bytes = Bytes::from(encoded(&data(MAX_BODY_BYTES)));
    let read = welcomed().handle_bytes(&mut bytes.clone()).unwrap();
    let Some(Frame::Data { body, .. }) = read else {
        panic!("{read:?}");
    };
    assert!(bytes.as_ptr_range().contains(&body.as_ptr()));
    let long = data(MAX_BODY_BYTES + 1).encode(&mut BytesMut::new());
    assert_eq!(long, Err(WireError::Invalid("body")));
    let mut longer = bytes.to_vec();
    longer.push(9);
    longer[3] += 1;
    let invalid = FrameError::Wire(WireError::Invalid("body"));
    assert_eq!(decode(welcomed(), &longer, 1000), Err(invalid));
    for len in [0, MAX_FRAME_BYTES + 1] {
        let head = [&u32::try_from(len).unwrap().to_be_bytes()[..], &[7]].concat();
        assert_eq!(decode(welcomed(), &head, 9), Err(FrameError::Length(len)));
    }
}

#[test]
fn unknown_kinds_are_skipped_or_end_the_trunk_as_they_say() {
    let cancel = Frame::Cancel { ask: 1 };
    let unknown = |kind| [&[0, 0, 0, 4, kind][..], b"abc", &encoded(&cancel)].concat();
    for piece in [1, 5, 100] {
        assert_eq!(
            decode(welcomed(), &unknown(0x80), piece),
            Ok(vec![cancel.clone()])
        );
        let end = Err(FrameError::Kind(21));
        assert_eq!(decode(welcomed(), &unknown(21), piece), end);
    }
    let first = decode(Decoder::for_acceptor(), &unknown(0x80), 100);
    assert_eq!(first, Err(FrameError::NotDue(0x80)));
}

#[test]
fn each_end_greets_once_and_first() {
    for frame in frames() {
        let bytes = encoded(&frame);
        let kind = bytes[4];
        for (is_due, decoder) in [
            (kind == 1, Decoder::for_acceptor()),
            (kind == 2 || kind == 3, Decoder::for_opener()),
            (kind > 3, welcomed()),
        ] {
            let expected = if is_due {
                Ok(vec![frame.clone()])
            } else {
                Err(FrameError::NotDue(kind))
            };
            assert_eq!(decode(decoder, &bytes, 100), expected);
        }
    }
    let endless = [0, 0, 4, 1, 1];
    assert_eq!(
        decode(Decoder::for_acceptor(), &endless, 9),
        Err(FrameError::Length(1025))
    );
}

#[test]
fn the_acceptor_tells_a_version_that_both_speak() {
    let read = |frame: &Frame, version| {
        let mut bytes = encoded(frame);
        bytes[5] = version;
        decode(decoder(frame), &bytes, 100)
    };
    let hello = Frame::Hello(Box::new(hello()));
    for (frame, version, is_spoken) in [
        (&hello, 0, false),
        (&hello, 1, true),
        (&hello, 255, true),
        (&WELCOME, 0, false),
        (&WELCOME, 1, true),
        (&WELCOME, 2, false),
    ] {
        let error = read(frame, version).err();
        let expected = (!is_spoken).then_some(FrameError::Version(version));
        assert_eq!(error, expected, "{frame:?} {version}");
    }
    let refusal = FrameError::Version(0).refusal();
    assert_eq!(refusal, TrunkRefusal::UnsupportedVersion);
}

/// Later builds may have more of them.
#[test]
fn unknown_reasons_and_codes_are_kept() {
    let with_code = |at: usize, frame: &Frame, number| {
        let mut bytes = encoded(frame);
        bytes[at] = number;
        decode(decoder(frame), &bytes, 100)
    };
    let (channels, others) = (of_channels(), of_posts_and_asks());
    for (at, frame) in [
        (5, &Frame::Refused(TrunkRefusal::Busy)),
        (9, &channels[3]),
        (27, &channels[6]),
        (10, &channels[7]),
        (13, &others[3]),
    ] {
        let read = with_code(at, frame, 200).unwrap();
        assert_eq!(encoded(&read[0])[at], 200, "{frame:?}");
        let text = format!("{read:?}");
        assert!(text.contains("UnknownNumber(200)"), "{text}");
        if at != 13 {
            let none = with_code(at, frame, 0).unwrap_err();
            assert!(matches!(none, FrameError::Wire(_)), "{none:?}");
        }
    }
    let unknown = Halt::from_number(200).unwrap();
    assert_eq!(unknown.number(), 200);
    assert_eq!(
        unknown.to_string(),
        "number 200, which only a newer version knows"
    );
}

#[test]
fn a_hello_holds_for_its_acceptor_its_time_and_its_fields() {
    let (own, skew) = (TestNode::new(2).id(), MAX_HELLO_SKEW);
    let check = |hello: &Hello, own, now_ms| hello.verify(own, now_ms, skew);
    let good = hello();
    for (now_ms, expected) in [
        (60_000_000, Ok(())),
        (60_659_999, Ok(())),
        (59_400_000, Ok(())),
        (60_660_000, Err(TrunkRefusal::WrongTime)),
        (59_399_999, Err(TrunkRefusal::WrongTime)),
        (u64::MAX, Err(TrunkRefusal::WrongTime)),
    ] {
        assert_eq!(check(&good, &own, now_ms), expected, "{now_ms}");
    }
    assert_eq!(
        good.verify(&own, 60_060_000, Duration::ZERO),
        Err(TrunkRefusal::WrongTime)
    );
    let another = TestNode::new(3).id();
    let mut others = vec![hello(), hello(), hello(), hello(), hello(), hello()];
    others[0].instance = name("other");
    others[1].identity = another;
    others[2].kind = IdentityKind::Alias;
    others[3].unix_minutes += 1;
    others[4].nonce[0] += 1;
    others[5].version += 1;
    for other in others {
        assert_eq!(
            check(&other, &own, 60_000_000),
            Err(TrunkRefusal::Denied),
            "{other:?}"
        );
    }
    assert_eq!(
        check(&good, &another, 60_000_000),
        Err(TrunkRefusal::Denied)
    );
}

#[test]
fn names_and_failures_have_bounds() {
    for text in ["", "a\nb", "\u{7f}", &"n".repeat(256)] {
        assert_eq!(Name::try_from(text), Err(NameError), "{text:?}");
    }
    assert_eq!(name(&"n".repeat(255)).as_str().len(), 255);
    let long = Failure::new(ErrorCode::Failed, &"ä".repeat(600));
    assert_eq!(long.message().len(), MAX_FAILURE_BYTES);
    let odd = Failure::new(ErrorCode::Failed, &format!("a{}", "ä".repeat(600)));
    assert_eq!(odd.message().len(), MAX_FAILURE_BYTES - 1);
}
