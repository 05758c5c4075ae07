//! What a session may rely on that goes on by another stream.

use bytes::BytesMut;

use super::{tests::sessions, *};
use crate::suite::Suite;

/// One end's view of a direction over two streams.
struct Reader {
    opener: Opener,
    /// The one before, and the one after.
    streams: [BytesMut; 2],
    at: usize,
    received: Vec<u8>,
    has_ended: bool,
}

impl Reader {
    fn new(opener: Opener) -> Self {
        Self {
            opener,
            streams: [BytesMut::new(), BytesMut::new()],
            at: 0,
            received: Vec::new(),
            has_ended: false,
        }
    }

    fn take(&mut self, stream: usize, bytes: &[u8]) -> Result<(), SealedError> {
        self.streams[stream].extend_from_slice(bytes);
        while let Some(frame) = self.opener.open(&mut self.streams[self.at])? {
            match frame {
                Frame::Data(data) => self.received.extend_from_slice(&data),
                Frame::End => self.has_ended = true,
                Frame::Move => {
                    let before = &self.streams[self.at];
                    self.opener.handle_stream_end(before)?;
                    self.opener.handle_moved();
                    self.at = 1;
                }
            }
        }
        Ok(())
    }
}

/// What is said, in pieces: the fourth is cover.
const SAID: [&[u8]; 5] = [b"one", b"number two", b"3", b"", b"the last of them"];

/// What goes on each stream when the direction moves before the piece `cut`.
fn moved(sealer: &mut Sealer, cut: usize, pad_bytes: Option<u32>) -> [BytesMut; 2] {
    let mut streams = [BytesMut::new(), BytesMut::new()];
    let mut at = 0;
    for (number, piece) in SAID.into_iter().enumerate() {
        if number == cut {
            sealer.seal_move(pad_bytes, &mut streams[at]).unwrap();
            at = 1;
        }
        sealer
            .seal_data(piece, pad_bytes, &mut streams[at])
            .unwrap();
    }
    if cut == SAID.len() {
        sealer.seal_move(pad_bytes, &mut streams[at]).unwrap();
        at = 1;
    }
    sealer.seal_end(pad_bytes, &mut streams[at]).unwrap();
    streams
}

/// The pieces of both streams in an order in which they may come.
fn arrivals(streams: &[BytesMut; 2], order: usize) -> Vec<(usize, Vec<u8>)> {
    match order {
        0 => vec![(0, streams[0].to_vec()), (1, streams[1].to_vec())],
        1 => vec![(1, streams[1].to_vec()), (0, streams[0].to_vec())],
        2 => bytes(streams, 0).chain(bytes(streams, 1)).collect(),
        3 => bytes(streams, 1).chain(bytes(streams, 0)).collect(),
        // In turns, byte by byte.
        _ => {
            let (mut first, mut other) = (bytes(streams, 0), bytes(streams, 1));
            let mut all = Vec::new();
            loop {
                let pair = [first.next(), other.next()];
                if pair.iter().all(Option::is_none) {
                    return all;
                }
                all.extend(pair.into_iter().flatten());
            }
        }
    }
}

fn bytes(
    streams: &[BytesMut; 2],
    stream: usize,
) -> impl Iterator<Item = (usize, Vec<u8>)> + use<'_> {
    let bytes = streams[stream].iter();
    bytes.map(move |byte| (stream, vec![*byte]))
}

#[test]
fn a_direction_moves_at_any_frame_whichever_stream_is_faster() {
    for (cut, order) in (0..=SAID.len()).flat_map(|cut| (0..5).map(move |order| (cut, order))) {
        for (upwards, pad_bytes) in [(true, None), (false, None), (true, Some(64))] {
            let (mut caller, mut called) = sessions(Suite::AesGcm);
            let (sealer, opener) = match upwards {
                true => (&mut caller.sealer, called.opener),
                false => (&mut called.sealer, caller.opener),
            };
            let streams = moved(sealer, cut, pad_bytes);
            let mut reader = Reader::new(opener);
            for (stream, bytes) in arrivals(&streams, order) {
                reader.take(stream, &bytes).unwrap();
            }
            let case = format!("before {cut}, order {order}, upwards {upwards}");
            assert_eq!(reader.received, SAID.concat(), "{case}");
            assert!(reader.has_ended, "{case}");
            let [before, after] = &reader.streams;
            assert!(before.is_empty() && after.is_empty(), "{case}");
        }
    }
}

#[test]
fn both_directions_move_by_themselves() {
    let (mut caller, mut called) = sessions(Suite::ChaChaPoly);
    let up = moved(&mut caller.sealer, 1, None);
    let down = moved(&mut called.sealer, 4, None);
    let (mut at_called, mut at_caller) = (Reader::new(called.opener), Reader::new(caller.opener));
    for stream in [1, 0] {
        at_called.take(stream, &up[stream]).unwrap();
        at_caller.take(stream, &down[stream]).unwrap();
    }
    assert_eq!(at_called.received, SAID.concat());
    assert_eq!(at_caller.received, SAID.concat());
}

#[test]
fn what_is_left_out_added_or_on_the_wrong_stream_does_not_open() {
    let moved = |cut| {
        let (mut caller, called) = sessions(Suite::AesGcm);
        let streams = moved(&mut caller.sealer, cut, None);
        (Reader::new(called.opener), streams)
    };
    // The first stream is cut before MOVE: what came on the other one is not taken for the rest.
    let (mut reader, [before, after]) = moved(2);
    reader.take(0, &before[..before.len() - 1]).unwrap();
    reader.take(1, &after).unwrap();
    assert_eq!(reader.received, SAID[..2].concat());
    let rest = &reader.streams[0];
    assert_eq!(reader.opener.handle_stream_end(rest), Err(SealedError::Cut));
    // Something follows MOVE on the same stream.
    let (reader, [before, after]) = moved(2);
    let mut opener = reader.opener;
    let mut joined = BytesMut::from(&[&before[..], &after[..]].concat()[..]);
    let opened = loop {
        match opener.open(&mut joined) {
            Ok(Some(Frame::Data(_))) => {}
            opened => break opened,
        }
    };
    assert_eq!(opened, Ok(Some(Frame::Move)));
    assert_eq!(opener.open(&mut joined), Err(SealedError::AfterEnd));
    // The other stream's first frame is left out, or what was said before is said again on it.
    let (mut reader, [before, after]) = moved(2);
    let first = 2 + usize::from(u16::from_be_bytes([after[0], after[1]]));
    reader.take(0, &before).unwrap();
    assert_eq!(reader.take(1, &after[first..]), Err(SealedError::Frame));
    let (mut reader, [before, _]) = moved(2);
    reader.take(0, &before).unwrap();
    assert_eq!(reader.take(1, &before), Err(SealedError::Frame));
}

#[test]
fn nothing_moves_that_has_ended() {
    let (mut caller, mut called) = sessions(Suite::AesGcm);
    let mut wire = BytesMut::new();
    caller.sealer.seal_end(None, &mut wire).unwrap();
    let moved = caller.sealer.seal_move(None, &mut wire);
    assert_eq!(moved, Err(SealedError::AfterEnd));
    assert_eq!(called.opener.open(&mut wire), Ok(Some(Frame::End)));
    called.opener.handle_moved();
    let after = called.opener.open(&mut BytesMut::from(&b"x"[..]));
    assert_eq!(after, Err(SealedError::AfterEnd));
}

#[test]
fn a_session_has_a_name_that_both_ends_know_and_no_other_session_has() {
    let ids = Suite::ALL.map(|suite| {
        let (caller, called) = sessions(suite);
        assert_eq!(caller.id, called.id);
        assert_eq!(SessionId::from_bytes(*caller.id.as_bytes()), caller.id);
        caller.id
    });
    assert_ne!(ids[0], ids[1]);
    assert_ne!(
        SessionId::of_keys(&[1; 32], &[2; 32]),
        SessionId::of_keys(&[2; 32], &[1; 32])
    );
}

/// Frozen: other builds speak these bytes. They were made by another implementation.
#[test]
fn moves_and_names_of_sessions_keep_their_bytes() {
    let expected = [
        "001760d8a0d69ae66adaadd54a1d0d2cd0f65f741cb114742c00133348b94cb5da9d883171f081c088f6\
         f68dcb9b0017f06bb051842bc33cb0666c2842bb7d2b8c167c840d61ad00138af36a13c1c57194a84e8f\
         f78bb55b89bc6d44",
        "001736842d68011f65a4af06a045bfc145dae10cd6f470fb830013ea17531cefc25ca69b4f31b7d238c0\
         7668e30f001745ebc2cfa4589e93f3403b2214053a7e622882278896b90013b478d7ec819e00fd6547d7\
         0a7e9877398795be",
    ];
    for (suite, expected) in Suite::ALL.into_iter().zip(expected) {
        let mut sealer = Sealer::new(suite, [7; 32]).unwrap();
        let mut wire = BytesMut::new();
        sealer.seal_data(b"data", None, &mut wire).unwrap();
        sealer.seal_move(None, &mut wire).unwrap();
        sealer.seal_data(b"rest", None, &mut wire).unwrap();
        sealer.seal_end(None, &mut wire).unwrap();
        assert_eq!(data_encoding::HEXLOWER.encode(&wire), expected, "{suite}");
    }
    let id = SessionId::of_keys(&[1; 32], &[2; 32]);
    let id = data_encoding::HEXLOWER.encode(id.as_bytes());
    assert_eq!(id, "3a7d0cafb13d054e2f996cfb3ade9fbe");
}
