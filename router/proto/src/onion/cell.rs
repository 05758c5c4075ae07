//! Cells, and the messages of client and last hop inside them.
//!
//! ```text
//! on the wire  class u8 (0 small, 1 large) | cell 512 or 16384
//! cell         8 slots of 16 | payload
//! payload      type u8 | length u16 | data | zero padding          as the last hop sees it
//!   1 open     down, first and once    an OPEN of module `stream` with its length
//!   2 answer   up, first and once      an ANSWER with its length
//!   3 data     after those             bytes of the flow
//!   4 end      last                    this direction ends; length 0
//!
//! down  the client seals the payload for the last hop, then for the one before, and so on.
//!       A hop takes slot 0 as the tag, opens the payload in place, then
//!         slots <- (slots 1..7, 0) XOR stream
//!       and sends that on. Tag input: class | 0 | slots 1..7 as received.
//! up    the last hop begins with zero slots. A hop seals the payload in place, then
//!         slots <- (tag, slots 0..6 XOR stream)
//!       and sends that on. Tag input: class | slots 0..7 as received.
//!       The client opens the layers from the outside in, all or nothing. The slot that a hop
//!       dropped is never that of a tag, so the client works it out from the key streams.
//! ```
//! The stream of a hop and a cell is 128 bytes of ChaCha20, so the slot that a hop appends on the
//! way down is stream that only it and the client know.

use std::ops::Range;

use thiserror::Error;

use super::slots::SLOTS_BYTES;

/// Bytes of a small cell: a keystroke or an OPEN.
pub const SMALL_CELL: usize = 512;
/// Bytes of a large cell: bulk, with under 1 % of overhead.
pub const LARGE_CELL: usize = 16384;
/// Where a message's data begins in a cell: after the slots, the type and the length.
pub const DATA_OFFSET: usize = SLOTS_BYTES + HEADER_BYTES;

const HEADER_BYTES: usize = 3;

/// The circuit is broken: close it. One code for all causes, so that whoever broke it learns
/// nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("onion circuit broken")]
pub struct CellError;

/// The two sizes of cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CellSize {
    /// [`SMALL_CELL`] bytes.
    Small,
    /// [`LARGE_CELL`] bytes.
    Large,
}

/// What a message between client and last hop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MessageKind {
    /// An encoded OPEN, the client's first message.
    Open = 1,
    /// An encoded ANSWER, the last hop's first message.
    Answer = 2,
    /// Bytes of the flow.
    Data = 3,
    /// The sender has no more data.
    End = 4,
}

/// A message that came out of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// What it is.
    pub kind: MessageKind,
    /// Where its data lies in the cell that was opened.
    pub data: Range<usize>,
}

/// The order of messages in one direction: the greeting once, then data, then an end.
#[derive(Debug)]
pub(super) struct MessageOrder {
    greeting: MessageKind,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Greeting,
    Flow,
    Ended,
}

impl CellSize {
    /// Bytes of a cell of this size.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Small => SMALL_CELL,
            Self::Large => LARGE_CELL,
        }
    }

    /// The byte that precedes the cell on the wire.
    pub const fn class(self) -> u8 {
        match self {
            Self::Small => 0,
            Self::Large => 1,
        }
    }

    /// Reads the byte that precedes a cell.
    pub const fn from_class(class: u8) -> Option<Self> {
        match class {
            0 => Some(Self::Small),
            1 => Some(Self::Large),
            _ => None,
        }
    }

    /// How many bytes of data a message in such a cell carries at most.
    pub const fn max_data_bytes(self) -> usize {
        self.bytes() - DATA_OFFSET
    }

    /// The smallest cell for so much data; `None` when no cell holds it.
    pub const fn for_data(len: usize) -> Option<Self> {
        if len <= Self::Small.max_data_bytes() {
            Some(Self::Small)
        } else if len <= Self::Large.max_data_bytes() {
            Some(Self::Large)
        } else {
            None
        }
    }

    /// Takes a cell apart; its length says its size.
    pub(super) fn split(
        cell: &mut [u8],
    ) -> Result<(Self, &mut [u8; SLOTS_BYTES], &mut [u8]), CellError> {
        let size = match cell.len() {
            SMALL_CELL => Self::Small,
            LARGE_CELL => Self::Large,
            _ => return Err(CellError),
        };
        let (slots, payload) = cell.split_first_chunk_mut().ok_or(CellError)?;
        Ok((size, slots, payload))
    }
}

impl MessageKind {
    fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Open),
            2 => Some(Self::Answer),
            3 => Some(Self::Data),
            4 => Some(Self::End),
            _ => None,
        }
    }
}

impl MessageOrder {
    pub(super) const fn new(greeting: MessageKind) -> Self {
        Self {
            greeting,
            stage: Stage::Greeting,
        }
    }

    /// Takes note of the next message.
    pub(super) fn check(&mut self, kind: MessageKind) -> Result<(), CellError> {
        self.stage = match (self.stage, kind) {
            (Stage::Greeting, kind) if kind == self.greeting => Stage::Flow,
            (Stage::Flow, MessageKind::Data) => Stage::Flow,
            (Stage::Flow, MessageKind::End) => Stage::Ended,
            _ => return Err(CellError),
        };
        Ok(())
    }
}

/// Writes type, length and padding around `data_len` bytes that already lie in the payload.
pub(super) fn frame(
    kind: MessageKind,
    data_len: usize,
    payload: &mut [u8],
) -> Result<(), CellError> {
    let length = u16::try_from(data_len).map_err(|_| CellError)?;
    let (header, rest) = payload
        .split_first_chunk_mut::<HEADER_BYTES>()
        .ok_or(CellError)?;
    let [high, low] = length.to_be_bytes();
    *header = [kind as u8, high, low];
    rest.get_mut(data_len..).ok_or(CellError)?.fill(0);
    Ok(())
}

/// Reads type and length of an opened payload.
pub(super) fn unframe(payload: &[u8]) -> Result<Delivered, CellError> {
    let ([kind, high, low], rest) = payload
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or(CellError)?;
    let kind = MessageKind::from_number(*kind).ok_or(CellError)?;
    let len = usize::from(u16::from_be_bytes([*high, *low]));
    if len > rest.len() || (kind == MessageKind::End && len != 0) {
        return Err(CellError);
    }
    Ok(Delivered {
        kind,
        data: DATA_OFFSET..DATA_OFFSET + len,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_cell_that_holds_the_data_is_taken() {
        assert_eq!(CellSize::for_data(0), Some(CellSize::Small));
        assert_eq!(CellSize::for_data(381), Some(CellSize::Small));
        assert_eq!(CellSize::for_data(382), Some(CellSize::Large));
        assert_eq!(CellSize::for_data(16253), Some(CellSize::Large));
        assert_eq!(CellSize::for_data(16254), None);
        assert_eq!(CellSize::from_class(2), None);
    }

    #[test]
    fn what_is_framed_is_read_back_and_padded_with_zeros() {
        let mut payload = [7; 384];
        frame(MessageKind::Data, 380, &mut payload).unwrap();
        assert_eq!(payload[..4], [3, 1, 124, 7]);
        assert_eq!(payload[382..], [7, 0]);
        let delivered = unframe(&payload).unwrap();
        assert_eq!(delivered.kind, MessageKind::Data);
        assert_eq!(delivered.data, 131..511);
        assert_eq!(frame(MessageKind::Data, 382, &mut payload), Err(CellError));
    }

    #[test]
    fn broken_frames_are_refused() {
        for head in [[0, 0, 0], [5, 0, 0], [3, 1, 126], [4, 0, 1]] {
            let mut payload = [0; 384];
            payload[..3].copy_from_slice(&head);
            assert_eq!(unframe(&payload), Err(CellError), "{head:?}");
        }
    }

    #[test]
    fn messages_keep_their_order() {
        use MessageKind::{Answer, Data, End, Open};
        let check = |kinds: &[MessageKind]| {
            let mut order = MessageOrder::new(Open);
            kinds.iter().try_for_each(|kind| order.check(*kind))
        };
        assert_eq!(check(&[Open, Data, Data, End]), Ok(()));
        assert_eq!(check(&[Open, End]), Ok(()));
        for wrong in [
            &[Data][..],
            &[Answer],
            &[End],
            &[Open, Open],
            &[Open, Answer],
            &[Open, End, Data],
            &[Open, End, End],
        ] {
            assert_eq!(check(wrong), Err(CellError), "{wrong:?}");
        }
    }
}
