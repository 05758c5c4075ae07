//! What nodes speak over TCP, inside TLS: many connections make one link, and each carries one
//! flow at a time.
//!
//! ```text
//! PREFACE  by the caller, first: kind u8 | link 16                     17 bytes
//!          0 control   the first connection of a link
//!          1 forward   the caller begins its flows
//!          2 backward  the called begins its flows, one that it asked for
//! ORDER    on the control connection, both ways: kind u8 | value u64    9 bytes
//!          0 ping      any number, which comes back
//!          1 pong      the ping's
//!          2 want      so many backward connections more
//!          3 close     the link ends; the value says why
//!          4 places    the called takes so many connections at once, 64 before it says so
//! FRAME    on the others, both ways: length u32 (0 to 16,777,216) | data
//! ```
//! A frame without data ends its direction of the flow. When both have ended, whoever begins the
//! flows of the connection may begin the next. Who has sent its end reads to the other's before it lets
//! the connection go: what lies unread would take back what was sent. A flow that breaks takes its
//! connection with it.
//! The caller draws the 16 bytes of a link; they only hold together what the same key called for.

use bytes::{Buf, Bytes};
use thiserror::Error;

use crate::wire::{Reader, WireError};

/// Bytes of a preface.
pub const PREFACE_BYTES: usize = 17;
/// Bytes of an order.
pub const ORDER_BYTES: usize = 9;
/// Bytes before the data of a frame.
pub const FRAME_HEAD_BYTES: usize = 4;
/// Data in one frame: nobody has that much at hand.
pub const MAX_FRAME_BYTES: u32 = 1 << 24;
/// Ends a direction.
pub const END: [u8; FRAME_HEAD_BYTES] = [0; FRAME_HEAD_BYTES];

/// Holds the connections of a link together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinkToken(pub [u8; 16]);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Orders.
    Control,
    /// Flows that the caller begins.
    Forward,
    /// Flows that the called begins.
    Backward,
}

/// What a caller says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preface {
    /// What the connection is for.
    pub purpose: Purpose,
    /// Which link it belongs to.
    pub link: LinkToken,
}

/// What one end of a link has the other do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Answer with the same number.
    Ping(u64),
    /// The answer.
    Pong(u64),
    /// Make so many backward connections.
    Want(u64),
    /// Forget the link.
    Close(u64),
    /// Make no more than so many connections for flows.
    Places(u64),
}

/// A part of one direction of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Bytes of the flow; never none.
    Data(Bytes),
    /// The direction ended well.
    End,
}

/// Bytes that break the format.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TcpError {
    /// Another build's.
    #[error("unknown kind {0}")]
    Kind(u8),
    /// Nobody sends such a one.
    #[error("frame of {0} bytes")]
    FrameLength(u32),
    /// Too short or too long.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// Cuts what comes in on a connection into the parts of flows.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// Of the frame whose head was read.
    left: u32,
    /// Of a head, as far as it came.
    head: [u8; FRAME_HEAD_BYTES],
    head_len: usize,
}

impl Preface {
    /// Its bytes.
    pub fn encode(&self) -> [u8; PREFACE_BYTES] {
        let mut bytes = [0; PREFACE_BYTES];
        let (kind, link) = bytes.split_at_mut(1);
        kind.fill(match self.purpose {
            Purpose::Control => 0,
            Purpose::Forward => 1,
            Purpose::Backward => 2,
        });
        link.copy_from_slice(&self.link.0);
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`TcpError`] when it is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, TcpError> {
        let mut reader = Reader::new(bytes);
        let purpose = match reader.u8("purpose")? {
            0 => Purpose::Control,
            1 => Purpose::Forward,
            2 => Purpose::Backward,
            other => return Err(TcpError::Kind(other)),
        };
        let link = LinkToken(reader.array("link")?);
        reader.finish()?;
        Ok(Self { purpose, link })
    }
}

impl Order {
    /// Its bytes.
    pub fn encode(&self) -> [u8; ORDER_BYTES] {
        let (kind, value) = match self {
            Self::Ping(value) => (0, value),
            Self::Pong(value) => (1, value),
            Self::Want(value) => (2, value),
            Self::Close(value) => (3, value),
            Self::Places(value) => (4, value),
        };
        let mut bytes = [kind; ORDER_BYTES];
        let (_, rest) = bytes.split_at_mut(1);
        rest.copy_from_slice(&value.to_be_bytes());
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`TcpError`] when it is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, TcpError> {
        let mut reader = Reader::new(bytes);
        let kind = reader.u8("order")?;
        let value = reader.u64("value")?;
        reader.finish()?;
        match kind {
            0 => Ok(Self::Ping(value)),
            1 => Ok(Self::Pong(value)),
            2 => Ok(Self::Want(value)),
            3 => Ok(Self::Close(value)),
            4 => Ok(Self::Places(value)),
            other => Err(TcpError::Kind(other)),
        }
    }
}

/// The head of a frame of `len` bytes; `None` when it has none, or more than a frame holds.
pub fn frame_head(len: usize) -> Option<[u8; FRAME_HEAD_BYTES]> {
    let len = u32::try_from(len).ok()?;
    (1..=MAX_FRAME_BYTES)
        .contains(&len)
        .then(|| len.to_be_bytes())
}

impl FrameReader {
    /// Takes the next part off the front of `bytes`; `None` when more has to come.
    ///
    /// # Errors
    /// [`TcpError::FrameLength`].
    pub fn handle_bytes(&mut self, bytes: &mut Bytes) -> Result<Option<Part>, TcpError> {
        if self.left == 0 {
            let Some(head) = self.take_head(bytes) else {
                return Ok(None);
            };
            self.left = u32::from_be_bytes(head);
            if self.left == 0 {
                return Ok(Some(Part::End));
            }
            if self.left > MAX_FRAME_BYTES {
                return Err(TcpError::FrameLength(self.left));
            }
        }
        let len = bytes.len().min(self.left as usize);
        self.left -= u32::try_from(len).unwrap_or(self.left);
        Ok((len > 0).then(|| Part::Data(bytes.split_to(len))))
    }

    fn take_head(&mut self, bytes: &mut Bytes) -> Option<[u8; FRAME_HEAD_BYTES]> {
        while let Some(byte) = self.head.get_mut(self.head_len) {
            *byte = *bytes.first()?;
            bytes.advance(1);
            self.head_len += 1;
        }
        self.head_len = 0;
        Some(self.head)
    }

    /// Whether the last part was whole.
    pub fn is_between(&self) -> bool {
        self.left == 0 && self.head_len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(pieces: &[&[u8]]) -> Result<Vec<Part>, TcpError> {
        let mut reader = FrameReader::default();
        let mut parts = Vec::new();
        for piece in pieces {
            let mut bytes = Bytes::copy_from_slice(piece);
            while let Some(part) = reader.handle_bytes(&mut bytes)? {
                parts.push(part);
            }
            assert!(bytes.is_empty());
        }
        Ok(parts)
    }

    fn data(text: &'static str) -> Part {
        Part::Data(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn frames_come_whole_in_pieces_and_together() {
        let whole = b"\0\0\0\x05hello\0\0\0\0\0\0\0\x02hi";
        assert_eq!(
            parts(&[whole]).unwrap(),
            [data("hello"), Part::End, data("hi")]
        );
        let bytes: Vec<&[u8]> = whole.chunks(1).collect();
        let single: String = parts(&bytes)
            .unwrap()
            .into_iter()
            .map(|part| match part {
                Part::Data(data) => String::from_utf8(data.to_vec()).unwrap(),
                Part::End => "|".to_owned(),
            })
            .collect();
        assert_eq!(single, "hello|hi");
    }

    #[test]
    fn a_frame_has_a_longest_length() {
        let longest = MAX_FRAME_BYTES.to_be_bytes();
        assert_eq!(parts(&[&longest]), Ok(vec![]));
        let longer = (MAX_FRAME_BYTES + 1).to_be_bytes();
        assert_eq!(
            parts(&[&longer]),
            Err(TcpError::FrameLength(MAX_FRAME_BYTES + 1))
        );
        assert_eq!(frame_head(MAX_FRAME_BYTES as usize), Some(longest));
        assert_eq!(frame_head(MAX_FRAME_BYTES as usize + 1), None);
        assert_eq!(frame_head(0), None, "that is an end");
    }

    #[test]
    fn a_direction_is_cut_in_a_frame_only() {
        let mut reader = FrameReader::default();
        for (piece, is_between) in [
            (&b"\0\0"[..], false),
            (b"\0\x02a", false),
            (b"b", true),
            (b"\0\0\0\0", true),
        ] {
            let mut bytes = Bytes::from_static(piece);
            while reader.handle_bytes(&mut bytes).unwrap().is_some() {}
            assert_eq!(reader.is_between(), is_between, "{piece:?}");
        }
    }

    #[test]
    fn prefaces_and_orders_have_frozen_bytes() {
        let link = LinkToken([7; 16]);
        for (purpose, kind) in [
            (Purpose::Control, 0),
            (Purpose::Forward, 1),
            (Purpose::Backward, 2),
        ] {
            let preface = Preface { purpose, link };
            let bytes = preface.encode();
            assert_eq!(bytes.split_first().unwrap(), (&kind, &[7; 16][..]));
            assert_eq!(Preface::decode(&bytes), Ok(preface));
        }
        for (order, kind) in [
            (Order::Ping(0x0102_0304_0506_0708), 0),
            (Order::Pong(0x0102_0304_0506_0708), 1),
            (Order::Want(0x0102_0304_0506_0708), 2),
            (Order::Close(0x0102_0304_0506_0708), 3),
            (Order::Places(0x0102_0304_0506_0708), 4),
        ] {
            let bytes = order.encode();
            assert_eq!(bytes, [kind, 1, 2, 3, 4, 5, 6, 7, 8]);
            assert_eq!(Order::decode(&bytes), Ok(order));
        }
    }

    #[test]
    fn rubbish_is_refused() {
        assert_eq!(Preface::decode(&[3; 17]), Err(TcpError::Kind(3)));
        assert!(Preface::decode(&[0; 16]).is_err());
        assert!(Preface::decode(&[0; 18]).is_err());
        assert_eq!(Order::decode(&[5; 9]), Err(TcpError::Kind(5)));
        assert!(Order::decode(&[0; 8]).is_err());
        assert!(Order::decode(&[0; 10]).is_err());
    }
}
