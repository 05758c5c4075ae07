//! The frames about blobs; `trunk` has their diagram.

use bytes::Bytes;

use super::{
    decoder::FrameError,
    frame::take_body,
    name::{ErrorCode, Failure, Principal},
};
use crate::{
    blob::{BLOB_ID_BYTES, BlobId, MAX_BLOB_BYTES, PIECE_BYTES},
    trunk::MAX_BODY_BYTES,
    wire::{Reader, WireError, Writer},
};

/// Pieces of a blob that may be on the way: 1 MiB.
pub const MAX_PIECES_AHEAD: u16 = 16;

/// What the ends of a trunk say about a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobFrame {
    /// Somebody wants it.
    Want(Box<Want>),
    /// It is given.
    Given {
        /// The number of who wants it.
        want: u64,
        /// How many bytes it has.
        length: u64,
        /// The values of its pieces, one behind the other, or nothing.
        values: Bytes,
    },
    /// More pieces may be on the way.
    More {
        /// The number of who wants them.
        want: u64,
        /// How many, 1 to [`MAX_PIECES_AHEAD`].
        pieces: u16,
    },
    /// The next piece.
    Piece {
        /// The number of who wants it.
        want: u64,
        /// Which piece.
        index: u32,
        /// At most [`PIECE_BYTES`].
        bytes: Bytes,
    },
    /// It is not given, or no longer.
    NotGiven {
        /// The number of who wanted it.
        want: u64,
        /// Why.
        failure: Failure,
    },
    /// Nobody wants it any more.
    Unwant {
        /// The number of who did.
        want: u64,
    },
}

/// Somebody wants a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Names it on this trunk.
    pub want: u64,
    /// Who wants it.
    pub from: Principal,
    /// Who has it.
    pub to: Principal,
    /// Which blob.
    pub blob: BlobId,
    /// From which piece on.
    pub first: u32,
    /// How many pieces may be on the way until MORE, 1 to [`MAX_PIECES_AHEAD`].
    pub pieces: u16,
    /// Whether the values of its pieces are wanted.
    pub with_values: bool,
}

impl BlobFrame {
    /// What no build sends.
    pub(super) fn check(&self) -> Result<(), WireError> {
        let is_right = match self {
            Self::Want(want) => is_ahead(want.pieces),
            Self::More { pieces, .. } => is_ahead(*pieces),
            Self::Given { length, values, .. } => {
                *length <= MAX_BLOB_BYTES && values.len() % BLOB_ID_BYTES == 0
            }
            Self::Piece { bytes, .. } => bytes.len() <= PIECE_BYTES,
            Self::NotGiven { .. } | Self::Unwant { .. } => true,
        };
        is_right.then_some(()).ok_or(WireError::Invalid("blob"))
    }

    /// Kind and all fields but the last, which is [`Self::body`].
    pub(super) fn encode_head(&self, writer: &mut Writer) {
        match self {
            Self::Want(want) => want.encode(writer.u8(15)),
            Self::Given { want, length, .. } => {
                writer.u8(16).u64(*want).u64(*length);
            }
            Self::More { want, pieces } => {
                writer.u8(17).u64(*want).u16(*pieces);
            }
            Self::Piece { want, index, .. } => {
                writer.u8(18).u64(*want).u32(*index);
            }
            Self::NotGiven { want, failure } => {
                writer.u8(19).u64(*want).u8(failure.code().number());
            }
            Self::Unwant { want } => {
                writer.u8(20).u64(*want);
            }
        }
    }

    /// What is behind the head.
    pub fn body(&self) -> &[u8] {
        match self {
            Self::Given { values, .. } => values,
            Self::Piece { bytes, .. } => bytes,
            Self::NotGiven { failure, .. } => failure.message().as_bytes(),
            Self::Want(_) | Self::More { .. } | Self::Unwant { .. } => &[],
        }
    }

    /// Reads what is behind the kind.
    pub(super) fn decode(
        kind: u8,
        frame: &Bytes,
        read: &mut Reader<'_>,
    ) -> Result<Self, FrameError> {
        if kind == 15 {
            return Ok(Self::Want(Box::new(Want::decode(read)?)));
        }
        let want = read.u64("want")?;
        Ok(match kind {
            16 => Self::Given {
                want,
                length: read.u64("length")?,
                values: take_body(frame, read)?,
            },
            17 => Self::More {
                want,
                pieces: read.u16("pieces")?,
            },
            18 => Self::Piece {
                want,
                index: read.u32("piece")?,
                bytes: take_body(frame, read)?,
            },
            19 => {
                let code = ErrorCode::decode(read)?;
                let failure = Failure::decode(code, &take_body(frame, read)?)?;
                Self::NotGiven { want, failure }
            }
            20 => Self::Unwant { want },
            other => return Err(FrameError::Kind(other)),
        })
    }
}

impl Want {
    fn encode(&self, writer: &mut Writer) {
        writer.u64(self.want);
        self.from.encode(writer);
        self.to.encode(writer);
        writer.bytes(self.blob.as_bytes());
        writer.u32(self.first).u16(self.pieces);
        writer.u8(self.with_values.into());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            want: reader.u64("want")?,
            from: Principal::decode(reader, "sender")?,
            to: Principal::decode(reader, "receiver")?,
            blob: BlobId::from_bytes(reader.array("blob")?),
            first: reader.u32("first piece")?,
            pieces: reader.u16("pieces")?,
            with_values: match reader.u8("values")? {
                0 => false,
                1 => true,
                _ => return Err(WireError::Invalid("values")),
            },
        })
    }
}

fn is_ahead(pieces: u16) -> bool {
    (1..=MAX_PIECES_AHEAD).contains(&pieces)
}

const _: () = assert!(MAX_BLOB_BYTES as usize / PIECE_BYTES * BLOB_ID_BYTES <= MAX_BODY_BYTES);
