//! Datagrams of a flow between nodes: as frames of its stream, and beside it.

use bytes::{Bytes, BytesMut};
use wormholes_proto::{FrameReader, MAX_DATAGRAM_BYTES, decode_lane, encode_frame, encode_lane};

use super::input::{Input, pieces};

/// A QUIC datagram; and the frames of a stream.
pub fn datagram(input: &[u8]) {
    let mut input = Input::new(input);
    let piece_bytes = input.byte();
    let sent = input.rest();
    if let Ok((stream, datagram)) = decode_lane(Bytes::copy_from_slice(sent)) {
        assert_eq!(encode_lane(stream, &datagram), sent);
    }
    let whole = read([sent].into_iter());
    assert_eq!(whole, read(pieces(sent, piece_bytes)));
    let mut written = BytesMut::new();
    for datagram in &whole.datagrams {
        assert!(datagram.len() <= MAX_DATAGRAM_BYTES);
        assert!(encode_frame(datagram, &mut written));
    }
    assert!(sent.starts_with(&written), "they say something else");
    assert_eq!(whole.is_whole, written.len() == sent.len());
}

#[derive(Debug, Default, PartialEq)]
struct Read {
    datagrams: Vec<Bytes>,
    is_whole: bool,
}

fn read<'a>(sent: impl Iterator<Item = &'a [u8]>) -> Read {
    let mut reader = FrameReader::default();
    let mut read = Read::default();
    for piece in sent {
        reader.handle_input(piece);
        loop {
            match reader.poll_datagram() {
                Ok(Some(datagram)) => read.datagrams.push(datagram),
                Ok(None) => break,
                Err(_) => return read,
            }
        }
    }
    read.is_whole = reader.is_whole();
    read
}
