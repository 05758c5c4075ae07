//! Cuts what comes in on a trunk into frames, and sees to it that the first one is the one that is
//! due.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

use super::frame::{Frame, MAX_FRAME_BYTES, TrunkRefusal};
use crate::wire::WireError;

/// Length and kind.
const HEAD_BYTES: usize = LENGTH_BYTES + 1;
const LENGTH_BYTES: usize = 4;
/// Bytes of the first frame behind its length: a HELLO has 375 at most, and nobody is known yet.
const MAX_GREETING_BYTES: usize = 1024;
/// Kinds from here on may be skipped by those who do not know them.
const FIRST_SKIPPED_KIND: u8 = 0x80;

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const REFUSED: u8 = 3;

/// Bytes that no build sends that speaks this version. The trunk ends.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Nobody sends such a one.
    #[error("frame of {0} bytes")]
    Length(usize),
    /// Another build's, which may not be skipped.
    #[error("unknown kind {0}")]
    Kind(u8),
    /// Another frame than HELLO, or than its answer, is due; or they came again.
    #[error("a frame of kind {0} is not due")]
    NotDue(u8),
    /// A HELLO or WELCOME of a version that nobody speaks here.
    #[error("trunk of version {0}")]
    Version(u8),
    /// Its content breaks the format.
    #[error("malformed frame: {0}")]
    Wire(#[from] WireError),
}

impl FrameError {
    /// What an acceptor refuses the trunk with, if it is the first frame that is wrong.
    pub fn refusal(&self) -> TrunkRefusal {
        match self {
            Self::Version(_) => TrunkRefusal::UnsupportedVersion,
            Self::Length(_) | Self::Kind(_) | Self::NotDue(_) | Self::Wire(_) => {
                TrunkRefusal::Malformed
            }
        }
    }
}

/// Takes frames out of a trunk, however it was cut. Holds less than one frame, and no more than
/// twice what of it came; what is skipped is not held at all.
#[derive(Debug)]
pub struct Decoder {
    due: Due,
    /// A frame's front, with its length.
    pending: BytesMut,
    /// Bytes left of a frame of unknown kind.
    skipped: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Hello,
    Answer,
    Other,
}

impl Decoder {
    /// For who accepts the trunk: HELLO is due.
    pub fn for_acceptor() -> Self {
        Self::new(Due::Hello)
    }

    /// For who opened it: WELCOME or REFUSED is due.
    pub fn for_opener() -> Self {
        Self::new(Due::Answer)
    }

    fn new(due: Due) -> Self {
        Self {
            due,
            pending: BytesMut::new(),
            skipped: 0,
        }
    }

    /// Takes the next frame off the front of `bytes`; `None` when more has to come, and all of
    /// `bytes` is taken then. Bodies of 4 KiB and more share the buffer of `bytes`.
    ///
    /// # Errors
    /// [`FrameError`]. The trunk is of no more use.
    pub fn handle_bytes(&mut self, bytes: &mut Bytes) -> Result<Option<Frame>, FrameError> {
        let Some(mut frame) = self.take_frame(bytes)? else {
            return Ok(None);
        };
        frame.advance(LENGTH_BYTES);
        let frame = Frame::decode(&frame)?;
        self.due = Due::Other;
        Ok(Some(frame))
    }

    /// Whether the trunk may end here: no frame was cut.
    pub fn is_between(&self) -> bool {
        self.pending.is_empty() && self.skipped == 0
    }

    fn take_frame(&mut self, bytes: &mut Bytes) -> Result<Option<Bytes>, FrameError> {
        loop {
            self.skip(bytes);
            let Some(head) = self.head(bytes) else {
                return Ok(None);
            };
            let (frame_bytes, is_skipped) = self.check(head)?;
            if is_skipped {
                self.skipped = frame_bytes - self.pending.len();
                self.pending = BytesMut::new();
            } else if self.pending.is_empty() && bytes.len() >= frame_bytes {
                return Ok(Some(bytes.split_to(frame_bytes)));
            } else {
                self.fill(bytes, frame_bytes);
                let is_whole = self.pending.len() == frame_bytes;
                return Ok(is_whole.then(|| std::mem::take(&mut self.pending).freeze()));
            }
        }
    }

    fn skip(&mut self, bytes: &mut Bytes) {
        let len = self.skipped.min(bytes.len());
        bytes.advance(len);
        self.skipped -= len;
    }

    fn head(&mut self, bytes: &mut Bytes) -> Option<[u8; HEAD_BYTES]> {
        if self.pending.is_empty()
            && let Some(head) = bytes.first_chunk()
        {
            return Some(*head);
        }
        if self.pending.len() < HEAD_BYTES {
            self.fill(bytes, HEAD_BYTES);
        }
        self.pending.first_chunk().copied()
    }

    /// Takes bytes until `len` are pending.
    fn fill(&mut self, bytes: &mut Bytes, len: usize) {
        let len = bytes.len().min(len.saturating_sub(self.pending.len()));
        self.pending.extend_from_slice(&bytes.split_to(len));
    }

    /// The frame's bytes with its length, and whether it is skipped.
    fn check(&self, head: [u8; HEAD_BYTES]) -> Result<(usize, bool), FrameError> {
        let [length @ .., kind] = head;
        let len = u32::from_be_bytes(length) as usize;
        let (is_due, max) = match self.due {
            Due::Hello => (kind == HELLO, MAX_GREETING_BYTES),
            Due::Answer => (matches!(kind, WELCOME | REFUSED), MAX_GREETING_BYTES),
            Due::Other => (!(HELLO..=REFUSED).contains(&kind), MAX_FRAME_BYTES),
        };
        if !(1..=max).contains(&len) {
            return Err(FrameError::Length(len));
        }
        if !is_due {
            return Err(FrameError::NotDue(kind));
        }
        Ok((LENGTH_BYTES + len, kind >= FIRST_SKIPPED_KIND))
    }
}
