//! Datagrams of a UDP flow between nodes: as frames in its stream, or as QUIC datagrams beside it.
//!
//! ```text
//! frame          length u16 | datagram             length 0 to 65507; one after the other in the
//!                                                  stream, from ACCEPTED to FIN
//! QUIC datagram  stream id u64 | datagram          RFC 9000's number of the flow's stream
//! ```
//! Both may be used in one flow, in both directions at any time: a datagram that the path is too
//! narrow for goes as a frame, as all do on TCP, through relays and in onions. Frames keep their
//! order; QUIC datagrams keep none, and may be lost.

use bytes::{Bytes, BytesMut};

use crate::wire::{Reader, WireError};

/// The largest payload that UDP carries over IPv4.
pub const MAX_DATAGRAM_BYTES: usize = 65_507;
/// What a frame adds to a datagram.
pub const FRAME_HEAD_BYTES: usize = 2;
/// What a QUIC datagram adds to a datagram.
pub const LANE_HEAD_BYTES: usize = 8;

/// Appends `datagram` as a frame to `out`. False, and nothing appended, when no UDP datagram is so
/// long.
#[must_use]
pub fn encode_frame(datagram: &[u8], out: &mut BytesMut) -> bool {
    let Some(len) = u16::try_from(datagram.len())
        .ok()
        .filter(|_| datagram.len() <= MAX_DATAGRAM_BYTES)
    else {
        return false;
    };
    out.reserve(FRAME_HEAD_BYTES + datagram.len());
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(datagram);
    true
}

/// Takes frames out of a stream, however it was cut.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// Less than one frame between calls of [`Self::poll_datagram`] that yield none, and what came
    /// last.
    pending: BytesMut,
}

impl FrameReader {
    /// Takes what the stream brought.
    pub fn handle_input(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next datagram; `None` when more input is needed.
    ///
    /// # Errors
    /// [`WireError`]: no UDP datagram is so long. The stream is of no more use.
    pub fn poll_datagram(&mut self) -> Result<Option<Bytes>, WireError> {
        let Some(head) = self.pending.first_chunk::<FRAME_HEAD_BYTES>() else {
            self.release();
            return Ok(None);
        };
        let len = usize::from(u16::from_be_bytes(*head));
        if len > MAX_DATAGRAM_BYTES {
            return Err(WireError::Invalid("datagram length"));
        }
        if self.pending.len() < FRAME_HEAD_BYTES + len {
            return Ok(None);
        }
        let frame = self.pending.split_to(FRAME_HEAD_BYTES + len);
        Ok(Some(frame.freeze().split_off(FRAME_HEAD_BYTES)))
    }

    /// Whether the stream may end here: no datagram was cut.
    pub fn is_whole(&self) -> bool {
        self.pending.is_empty()
    }

    /// An idle flow holds no buffer.
    fn release(&mut self) {
        if self.pending.is_empty() {
            self.pending = BytesMut::new();
        }
    }
}

/// A datagram of the flow on stream `stream`, as a QUIC datagram.
pub fn encode_lane(stream: u64, datagram: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(LANE_HEAD_BYTES + datagram.len());
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(datagram);
    bytes.freeze()
}

/// The stream whose flow a QUIC datagram belongs to, and the datagram.
///
/// # Errors
/// [`WireError`]: the other node broke the protocol.
pub fn decode_lane(mut bytes: Bytes) -> Result<(u64, Bytes), WireError> {
    let stream = Reader::new(&bytes).u64("stream id")?;
    let datagram = bytes.split_off(LANE_HEAD_BYTES);
    Ok((stream, datagram))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::for_mutations;

    fn frames(datagrams: &[&[u8]]) -> BytesMut {
        let mut out = BytesMut::new();
        for datagram in datagrams {
            assert!(encode_frame(datagram, &mut out));
        }
        out
    }

    /// What comes out of `bytes` in pieces of `chunk`.
    fn read(bytes: &[u8], chunk: usize) -> Result<Vec<Bytes>, WireError> {
        let (mut reader, mut found) = (FrameReader::default(), Vec::new());
        for piece in bytes.chunks(chunk) {
            reader.handle_input(piece);
            while let Some(datagram) = reader.poll_datagram()? {
                found.push(datagram);
            }
        }
        Ok(found)
    }

    /// Frozen: other builds speak these bytes.
    #[test]
    fn frames_and_lanes_keep_their_bytes() {
        assert_eq!(frames(&[b"ab", b"", b"c"])[..], *b"\0\x02ab\0\0\0\x01c");
        let lane = encode_lane(0x0102, b"ab");
        assert_eq!(lane[..], *b"\0\0\0\0\0\0\x01\x02ab");
        assert_eq!(decode_lane(lane), Ok((0x0102, Bytes::from("ab"))));
        let short = decode_lane(Bytes::from("1234567"));
        assert_eq!(short, Err(WireError::Truncated("stream id")));
    }

    #[test]
    fn datagrams_keep_their_bounds_however_the_stream_is_cut() {
        let long = vec![7; MAX_DATAGRAM_BYTES];
        let sent: [&[u8]; 4] = [b"", b"one", &long, b"two"];
        let bytes = frames(&sent);
        for chunk in [1, 2, 3, 1000, bytes.len()] {
            let found = read(&bytes, chunk).unwrap();
            assert_eq!(found, sent, "in pieces of {chunk}");
        }
    }

    #[test]
    fn no_frame_is_longer_than_a_datagram_can_be() {
        let mut out = BytesMut::new();
        assert!(!encode_frame(&vec![0; MAX_DATAGRAM_BYTES + 1], &mut out));
        assert!(out.is_empty());
        let invalid = Err(WireError::Invalid("datagram length"));
        assert_eq!(read(&65_508_u16.to_be_bytes(), 2), invalid);
    }

    #[test]
    fn a_stream_ends_well_between_frames_only() {
        let mut reader = FrameReader::default();
        for (byte, whole) in [(0, false), (1, false), (9, true)] {
            reader.handle_input(&[byte]);
            while reader.poll_datagram().unwrap().is_some() {}
            assert_eq!(reader.is_whole(), whole, "{byte}");
        }
    }

    #[test]
    fn damaged_frames_yield_no_more_than_there_is() {
        for_mutations(&frames(&[b"first", b"second"]), |bytes| {
            let found = read(bytes, 7).unwrap_or_default();
            let yielded: usize = found.iter().map(|datagram| datagram.len() + 2).sum();
            assert!(yielded <= bytes.len());
            let _ = decode_lane(Bytes::copy_from_slice(bytes));
        });
    }
}
