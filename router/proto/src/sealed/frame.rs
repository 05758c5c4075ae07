//! The frames of a sealed session, sealed and opened in place.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ring::aead::{Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::SealedError;
use crate::{
    noise::TAG_BYTES,
    suite::{Suite, counter_nonce},
};

const LENGTH_BYTES: usize = 2;
/// Kind and size.
const HEAD_BYTES: usize = 3;
const OVERHEAD_BYTES: usize = LENGTH_BYTES + HEAD_BYTES + TAG_BYTES;
/// The largest frame with its length.
const MAX_FRAME_BYTES: usize = LENGTH_BYTES + u16::MAX as usize;

const DATA: u8 = 1;
const END: u8 = 2;
const MOVE: u8 = 3;

/// AES-GCM allows 2^24.5 records of 16 KiB under a key (RFC 8446, section 5.5); this many frames of
/// 64 KiB stay far below, and a new key costs one block.
const FRAMES_PER_KEY: u64 = 1 << 16;

/// Seals one direction.
pub struct Sealer {
    key: FrameKey,
    ended: bool,
}

/// Opens one direction.
pub struct Opener {
    key: FrameKey,
    state: OpenerState,
}

/// What came out of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes of the stream; empty ones are cover.
    Data(Bytes),
    /// The other end sends no more.
    End,
    /// The other end sends no more on this stream; the rest comes on the other one.
    Move,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OpenerState {
    Open,
    Moving,
    Ended,
    Broken,
}

impl Sealer {
    pub(super) fn new(suite: Suite, key: [u8; 32]) -> Result<Self, SealedError> {
        Ok(Self {
            key: FrameKey::new(suite, key)?,
            ended: false,
        })
    }

    /// Appends `data` to `out` in as many frames as it takes; empty data makes one frame, as
    /// cover. With `pad_bytes` each frame's size is a multiple of it (at most 65,537).
    ///
    /// # Errors
    /// [`SealedError::AfterEnd`] after [`Sealer::seal_end`].
    pub fn seal_data(
        &mut self,
        data: &[u8],
        pad_bytes: Option<u32>,
        out: &mut BytesMut,
    ) -> Result<(), SealedError> {
        let block = padding_block(pad_bytes);
        let chunk = MAX_FRAME_BYTES - MAX_FRAME_BYTES % block - OVERHEAD_BYTES;
        if data.is_empty() {
            return self.seal(DATA, data, block, out);
        }
        out.reserve(data.len() + data.len().div_ceil(chunk) * OVERHEAD_BYTES);
        data.chunks(chunk)
            .try_for_each(|data| self.seal(DATA, data, block, out))
    }

    /// Appends the end of this direction.
    ///
    /// # Errors
    /// [`SealedError::AfterEnd`] when it was sealed before.
    pub fn seal_end(
        &mut self,
        pad_bytes: Option<u32>,
        out: &mut BytesMut,
    ) -> Result<(), SealedError> {
        self.seal(END, &[], padding_block(pad_bytes), out)?;
        self.ended = true;
        Ok(())
    }

    /// Appends the last frame of this direction on the stream that it is on: what is sealed next
    /// goes on the other one.
    ///
    /// # Errors
    /// [`SealedError::AfterEnd`] after [`Sealer::seal_end`].
    pub fn seal_move(
        &mut self,
        pad_bytes: Option<u32>,
        out: &mut BytesMut,
    ) -> Result<(), SealedError> {
        self.seal(MOVE, &[], padding_block(pad_bytes), out)
    }

    /// Seals at most a frame's worth of data.
    fn seal(
        &mut self,
        kind: u8,
        data: &[u8],
        block: usize,
        out: &mut BytesMut,
    ) -> Result<(), SealedError> {
        if self.ended {
            return Err(SealedError::AfterEnd);
        }
        let frame_bytes = (OVERHEAD_BYTES + data.len()).next_multiple_of(block);
        let length = |len: usize| u16::try_from(len).map_err(|_| SealedError::Frame);
        let start = out.len() + LENGTH_BYTES;
        out.reserve(frame_bytes);
        out.put_u16(length(frame_bytes - LENGTH_BYTES)?);
        out.put_u8(kind);
        out.put_u16(length(data.len())?);
        out.put_slice(data);
        out.put_bytes(0, frame_bytes - OVERHEAD_BYTES - data.len());
        let nonce = self.key.next_nonce()?;
        let plaintext = out.get_mut(start..).ok_or(SealedError::Frame)?;
        let tag = self
            .key
            .aead
            .seal_in_place_separate_tag(nonce, Aad::empty(), plaintext)
            .map_err(|_| SealedError::Frame)?;
        out.put_slice(tag.as_ref());
        Ok(())
    }
}

impl Opener {
    pub(super) fn new(suite: Suite, key: [u8; 32]) -> Result<Self, SealedError> {
        Ok(Self {
            key: FrameKey::new(suite, key)?,
            state: OpenerState::Open,
        })
    }

    /// Takes one frame off the front of `buffer`, which needs at most 65,537 bytes; `None` when
    /// more are needed.
    ///
    /// # Errors
    /// [`SealedError::Frame`], then and ever after, when a frame does not open;
    /// [`SealedError::AfterEnd`] when anything follows END, or MOVE before [`Opener::handle_moved`].
    pub fn open(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, SealedError> {
        match self.state {
            OpenerState::Open => {}
            OpenerState::Ended | OpenerState::Moving if buffer.is_empty() => return Ok(None),
            OpenerState::Ended | OpenerState::Moving => return Err(SealedError::AfterEnd),
            OpenerState::Broken => return Err(SealedError::Frame),
        }
        let opened = self.open_next(buffer);
        match opened {
            Ok(Some(Frame::End)) => self.state = OpenerState::Ended,
            Ok(Some(Frame::Move)) => self.state = OpenerState::Moving,
            Ok(_) => {}
            Err(_) => self.state = OpenerState::Broken,
        }
        opened
    }

    /// Whether the rest comes on the other stream: nothing more is to be read on this one.
    pub fn is_moving(&self) -> bool {
        self.state == OpenerState::Moving
    }

    /// To be called after MOVE, when the buffer holds what came on the other stream.
    pub fn handle_moved(&mut self) {
        if self.is_moving() {
            self.state = OpenerState::Open;
        }
    }

    /// To be called when the stream under it has ended and nothing more opens; `rest` is what was
    /// left in the buffer.
    ///
    /// # Errors
    /// [`SealedError::Cut`] when END did not come: what was read is not the whole.
    pub fn handle_stream_end(&self, rest: &[u8]) -> Result<(), SealedError> {
        match self.state {
            OpenerState::Ended | OpenerState::Moving if rest.is_empty() => Ok(()),
            OpenerState::Ended | OpenerState::Moving => Err(SealedError::AfterEnd),
            OpenerState::Open => Err(SealedError::Cut),
            OpenerState::Broken => Err(SealedError::Frame),
        }
    }

    fn open_next(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, SealedError> {
        let Some(length) = buffer.first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let len = usize::from(u16::from_be_bytes(*length));
        if len < HEAD_BYTES + TAG_BYTES {
            return Err(SealedError::Frame);
        }
        if buffer.len() < LENGTH_BYTES + len {
            return Ok(None);
        }
        buffer.advance(LENGTH_BYTES);
        let mut frame = buffer.split_to(len);
        let nonce = self.key.next_nonce()?;
        let opened_bytes = self
            .key
            .aead
            .open_in_place(nonce, Aad::empty(), &mut frame)
            .map_err(|_| SealedError::Frame)?
            .len();
        frame.truncate(opened_bytes);
        let kind = frame.try_get_u8().map_err(|_| SealedError::Frame)?;
        let size = usize::from(frame.try_get_u16().map_err(|_| SealedError::Frame)?);
        match kind {
            DATA if size <= frame.len() => {
                frame.truncate(size);
                Ok(Some(Frame::Data(frame.freeze())))
            }
            END if size == 0 => Ok(Some(Frame::End)),
            MOVE if size == 0 => Ok(Some(Frame::Move)),
            _ => Err(SealedError::Frame),
        }
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").finish_non_exhaustive()
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").finish_non_exhaustive()
    }
}

/// A direction's key and the number of the next frame under it.
struct FrameKey {
    suite: Suite,
    aead: LessSafeKey,
    next: u64,
}

impl FrameKey {
    fn new(suite: Suite, key: [u8; 32]) -> Result<Self, SealedError> {
        let key = Zeroizing::new(key);
        let unbound = UnboundKey::new(suite.aead(), &key[..]).map_err(|_| SealedError::Frame)?;
        Ok(Self {
            suite,
            aead: LessSafeKey::new(unbound),
            next: 0,
        })
    }

    fn next_nonce(&mut self) -> Result<Nonce, SealedError> {
        if self.next == FRAMES_PER_KEY {
            let mut next_key = Zeroizing::new([0; 32]);
            // Noise, section 4.2: the next key is what zeros encrypt to; their tag is not needed.
            let _tag = self
                .aead
                .seal_in_place_separate_tag(
                    counter_nonce(u64::MAX),
                    Aad::empty(),
                    &mut next_key[..],
                )
                .map_err(|_| SealedError::Frame)?;
            *self = Self::new(self.suite, *next_key)?;
        }
        self.next += 1;
        Ok(counter_nonce(self.next - 1))
    }
}

/// What a frame's size is a multiple of.
fn padding_block(pad_bytes: Option<u32>) -> usize {
    let wanted = usize::try_from(pad_bytes.unwrap_or(1)).unwrap_or(MAX_FRAME_BYTES);
    wanted.clamp(1, MAX_FRAME_BYTES)
}
