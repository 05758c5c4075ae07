//! What comes in on the connections of a link over TCP.

use bytes::Bytes;
use wormholes_proto::tcp::{
    END, FrameReader, MAX_FRAME_BYTES, Order, Part, Preface, TcpError, frame_head,
};

use super::input::{Input, pieces};

/// A preface or an order.
pub fn tcp_preface(input: &[u8]) {
    if let Ok(preface) = Preface::decode(input) {
        assert_eq!(preface.encode()[..], *input);
    }
    if let Ok(order) = Order::decode(input) {
        assert_eq!(order.encode()[..], *input);
    }
}

/// What was read: the flows' bytes, each direction's end after them.
#[derive(Debug, Default, PartialEq)]
struct Read {
    flows: Vec<Vec<u8>>,
    /// Of the last flow, which has not ended.
    open: Vec<u8>,
    is_between: bool,
    error: Option<TcpError>,
}

/// Frames of flows, one after the other.
pub fn tcp_frames(input: &[u8]) {
    let mut input = Input::new(input);
    let piece_bytes = input.byte();
    let sent = input.rest();
    let whole = read([sent].into_iter());
    assert_eq!(whole, read(pieces(sent, piece_bytes)));
    if let Some(TcpError::FrameLength(len)) = whole.error {
        assert!(len > MAX_FRAME_BYTES);
    }
    let written = write(&whole);
    let again = read([&written[..]].into_iter());
    assert_eq!((&again.flows, &again.open), (&whole.flows, &whole.open));
    assert!(written.len() <= sent.len(), "more came out than went in");
}

fn read<'a>(sent: impl Iterator<Item = &'a [u8]>) -> Read {
    let mut reader = FrameReader::default();
    let mut read = Read::default();
    'sent: for piece in sent {
        let mut bytes = Bytes::copy_from_slice(piece);
        loop {
            match reader.handle_bytes(&mut bytes) {
                Ok(Some(Part::Data(data))) => {
                    assert!(!data.is_empty());
                    read.open.extend_from_slice(&data);
                }
                Ok(Some(Part::End)) => read.flows.push(std::mem::take(&mut read.open)),
                Ok(None) => break,
                Err(error) => {
                    read.error = Some(error);
                    break 'sent;
                }
            }
        }
        assert!(bytes.is_empty(), "it leaves bytes");
    }
    read.is_between = reader.is_between();
    read
}

/// Each flow in one frame.
fn write(read: &Read) -> Vec<u8> {
    let frame = |data: &[u8]| match frame_head(data.len()) {
        Some(head) => [&head, data].concat(),
        None => Vec::new(),
    };
    let ended = read
        .flows
        .iter()
        .map(|flow| [&frame(flow)[..], &END].concat());
    let mut written = ended.collect::<Vec<_>>().concat();
    written.extend(frame(&read.open));
    written
}
