//! The first frames of a stream.

use wormholes_proto::{
    Answer, MAX_ANSWER_BYTES, MAX_CANDIDATES, MAX_OPEN_BYTES, MAX_RESOLVED_ADDRESSES,
    decode_answer, decode_candidates, decode_mirrored, decode_open, decode_resolved, encode_answer,
    encode_candidates, encode_mirrored, encode_open, encode_resolved,
};

/// An OPEN without its length.
pub fn open(input: &[u8]) {
    if let Ok(open) = decode_open(input) {
        let encoded = encode_open(&open);
        assert!(encoded.len() <= MAX_OPEN_BYTES);
        assert_eq!(encoded, framed(input), "not the one way to write it");
    }
}

/// An answer without its length, and what an accepted one carries for a look-up or a punch.
pub fn answer(input: &[u8]) {
    let Ok(answer) = decode_answer(input) else {
        return;
    };
    let encoded = encode_answer(&answer);
    assert!(encoded.len() <= MAX_ANSWER_BYTES);
    assert_eq!(encoded, framed(input), "not the one way to write it");
    let Answer::Accepted(body) = answer else {
        return;
    };
    if let Ok(addresses) = decode_resolved(&body) {
        assert!((1..=MAX_RESOLVED_ADDRESSES).contains(&addresses.len()));
        assert_eq!(encode_resolved(addresses.into_iter()), body);
    }
    if let Ok(candidates) = decode_candidates(&body) {
        assert!((1..=MAX_CANDIDATES).contains(&candidates.len()));
        assert_eq!(encode_candidates(&candidates), body);
    }
    if let Ok(seen) = decode_mirrored(&body) {
        assert_eq!(encode_mirrored(seen), body);
    }
}

fn framed(frame: &[u8]) -> Vec<u8> {
    let len = u16::try_from(frame.len()).unwrap();
    [&len.to_be_bytes(), frame].concat()
}
