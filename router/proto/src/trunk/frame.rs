//! The frames of a trunk, written and read; `trunk` has their diagram.

use bytes::{Bytes, BytesMut};

use super::{
    blob::BlobFrame,
    chain::{Halt, History, Position},
    decoder::FrameError,
    hello::{self, Hello, TRUNK_VERSION},
    name::{Envelope, ErrorCode, Failure, MAX_FAILURE_BYTES},
};
use crate::wire::{Reader, WireError, Writer};

/// Bytes of a message, a question or an answer.
pub const MAX_BODY_BYTES: usize = 1 << 20;
/// Bytes of a frame behind its length: the largest body, and room for all that is before it.
pub const MAX_FRAME_BYTES: usize = MAX_BODY_BYTES + 1024;
/// Refusals in one ACK: as many as messages can be on the way.
pub const MAX_REFUSALS: usize = 256;

/// A slice keeps the whole buffer that it is of: what may be kept for long, and is smaller than
/// this, is copied.
const COPIED_BODY_BYTES: usize = 4096;

/// What one end of a trunk says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The opener's first.
    Hello(Box<Hello>),
    /// The acceptor's first.
    Welcome {
        /// What is spoken from here on: 1 to [`TRUNK_VERSION`], and no newer than the HELLO's.
        version: u8,
    },
    /// The acceptor's first and last.
    Refused(TrunkRefusal),
    /// A sender opens a channel.
    Channel(Box<Channel>),
    /// A receiver tells where it is.
    State(State),
    /// A receiver does not take the channel now.
    ChannelRefused {
        /// The channel.
        number: u32,
        /// Why.
        reason: ChannelRefusal,
    },
    /// A durable message.
    Data {
        /// The channel.
        number: u32,
        /// The message's number.
        seq: u64,
        /// At most [`MAX_BODY_BYTES`].
        body: Bytes,
    },
    /// The next messages are not to come: they expired.
    Gap {
        /// The channel.
        number: u32,
        /// How many, at least one.
        messages: u16,
    },
    /// A receiver has handled messages.
    Ack(Ack),
    /// Nothing more moves on a channel.
    Halt {
        /// The channel.
        number: u32,
        /// Which end of the channel says it, and so whose number it is.
        by: End,
        /// Why.
        reason: Halt,
    },
    /// A message that may be lost.
    Post {
        /// From whom to whom.
        envelope: Envelope,
        /// At most [`MAX_BODY_BYTES`].
        body: Bytes,
    },
    /// A question.
    Ask {
        /// The asker's number for it.
        ask: u64,
        /// From whom to whom.
        envelope: Envelope,
        /// The asker waits so many milliseconds.
        left_ms: u64,
        /// At most [`MAX_BODY_BYTES`].
        body: Bytes,
    },
    /// What became of a question.
    Answer {
        /// The asker's number.
        ask: u64,
        /// At most [`MAX_BODY_BYTES`]; or what went wrong.
        answer: Result<Bytes, Failure>,
    },
    /// The asker waits no longer.
    Cancel {
        /// Its number.
        ask: u64,
    },
    /// About a blob.
    Blob(BlobFrame),
}

numbered! {
    /// Why a trunk is refused.
    TrunkRefusal, "refusal" {
        /// No instance is known by that name.
        #[error("no such plugin")]
        NoPlugin = 1,
        /// A rule or the config forbids it, or the identity is not the opener's.
        #[error("denied")]
        Denied = 2,
        /// A limit is reached; it may pass later.
        #[error("busy")]
        Busy = 3,
        /// The HELLO broke its format.
        #[error("malformed")]
        Malformed = 4,
        /// Another build's format.
        #[error("unsupported version")]
        UnsupportedVersion = 5,
        /// The clocks of the two nodes are too far from each other.
        #[error("wrong time: set the clocks of both nodes")]
        WrongTime = 6,
    } or Unknown
}

numbered! {
    /// Why a channel is refused, until the next trunk or longer.
    ChannelRefusal, "channel refusal" {
        /// The receiver's end waits to be opened anew.
        #[error("halted at the receiver")]
        Halted = 1,
        /// There is no such principal.
        #[error("no such principal")]
        NoPrincipal = 2,
        /// The receiver's plugin does not speak the protocol.
        #[error("no such protocol")]
        NoProtocol = 3,
        /// A limit is reached; it may pass later.
        #[error("busy")]
        Busy = 4,
    } or Unknown
}

numbered! {
    /// An end of a channel.
    End, "end" {
        /// Whose messages they are.
        #[error("sender")]
        Sender = 1,
        /// Whom they are for.
        #[error("receiver")]
        Receiver = 2,
    }
}

/// A sender opens a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Names the channel on this trunk.
    pub number: u32,
    /// From whom to whom.
    pub envelope: Envelope,
    /// Which history.
    pub history: History,
    /// The number that the next new message gets.
    pub next_seq: u64,
    /// The last message whose acknowledgement the sender has durably; less than `next_seq`.
    pub acked: u64,
}

/// How much may be on the way on a channel: at least one message, whatever its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Messages and gaps, 1 to 256.
    pub messages: u16,
    /// Bytes of their bodies, at most 1 MiB; a single message may pass it.
    pub bytes: u32,
}

/// Where a receiver is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// The channel.
    pub number: u32,
    /// How much it takes before it acknowledges.
    pub window: Window,
    /// What it handled last; `None`: nothing yet.
    pub position: Option<Position>,
}

/// A receiver has handled messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// The channel.
    pub number: u32,
    /// All until here.
    pub seq: u64,
    /// Which of those since the last ACK were refused, in order; at most [`MAX_REFUSALS`].
    pub refusals: Vec<Refusal>,
}

/// A message that was handled, and refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The message.
    pub seq: u64,
    /// Why.
    pub failure: Failure,
}

impl Window {
    /// The widest.
    pub const MAX: Self = Self {
        messages: 256,
        bytes: 1 << 20,
    };

    /// Whether there is room for `bytes` more beside `messages` of `bytes_before`.
    pub(super) fn has_room(&self, messages: usize, bytes_before: usize, bytes: usize) -> bool {
        let fits = bytes_before.saturating_add(bytes) <= self.bytes as usize;
        messages < usize::from(self.messages) && (fits || messages == 0)
    }
}

impl Frame {
    /// Appends its bytes to `out`.
    ///
    /// # Errors
    /// [`WireError::Invalid`], and nothing appended, when a body, the refusals or a window pass
    /// their bound.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), WireError> {
        self.check()?;
        let mut writer = Writer::new();
        self.encode_head(&mut writer);
        let (head, body) = (writer.into_vec(), self.body());
        let length = u32::try_from(head.len() + body.len());
        let length = length.map_err(|_| WireError::Invalid("frame length"))?;
        out.reserve(4 + head.len() + body.len());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&head);
        out.extend_from_slice(body);
        Ok(())
    }

    /// Refuses what the format cannot carry.
    fn check(&self) -> Result<(), WireError> {
        if self.body().len() > MAX_BODY_BYTES {
            return Err(WireError::Invalid("body"));
        }
        if let Self::Ack(ack) = self
            && ack.refusals.len() > MAX_REFUSALS
        {
            return Err(WireError::Invalid("refusal count"));
        }
        if let Self::State(state) = self
            && !state.window.is_valid()
        {
            return Err(WireError::Invalid("window"));
        }
        if let Self::Gap { messages: 0, .. } = self {
            return Err(WireError::Invalid("gap"));
        }
        if let Self::Channel(channel) = self
            && channel.acked >= channel.next_seq
        {
            return Err(WireError::Invalid("acked"));
        }
        if let Self::Blob(frame) = self {
            frame.check()?;
        }
        Ok(())
    }

    /// Kind and all fields but the last, which is [`Self::body`].
    fn encode_head(&self, writer: &mut Writer) {
        match self {
            Self::Hello(hello) => hello.encode(writer.u8(1)),
            Self::Welcome { version } => {
                writer.u8(2).u8(*version);
            }
            Self::Refused(reason) => {
                writer.u8(3).u8(reason.number());
            }
            Self::Channel(channel) => channel.encode(writer.u8(4)),
            Self::State(state) => state.encode(writer.u8(5)),
            Self::ChannelRefused { number, reason } => {
                writer.u8(6).u32(*number).u8(reason.number());
            }
            Self::Data { number, seq, .. } => {
                writer.u8(7).u32(*number).u64(*seq);
            }
            Self::Gap { number, messages } => {
                writer.u8(8).u32(*number).u16(*messages);
            }
            Self::Ack(ack) => ack.encode(writer.u8(9)),
            Self::Halt { number, by, reason } => {
                writer.u8(10).u32(*number);
                writer.u8(by.number()).u8(reason.number());
            }
            Self::Post { envelope, .. } => envelope.encode(writer.u8(11)),
            Self::Ask {
                ask,
                envelope,
                left_ms,
                ..
            } => {
                envelope.encode(writer.u8(12).u64(*ask));
                writer.u64(*left_ms);
            }
            Self::Answer { ask, answer } => {
                let code = answer.as_ref().err().map_or(0, |e| e.code().number());
                writer.u8(13).u64(*ask).u8(code);
            }
            Self::Cancel { ask } => {
                writer.u8(14).u64(*ask);
            }
            Self::Blob(frame) => frame.encode_head(writer),
        }
    }

    fn body(&self) -> &[u8] {
        match self {
            Self::Data { body, .. } | Self::Post { body, .. } | Self::Ask { body, .. } => body,
            Self::Answer { answer, .. } => match answer {
                Ok(body) => body,
                Err(failure) => failure.message().as_bytes(),
            },
            Self::Blob(frame) => frame.body(),
            Self::Hello(_)
            | Self::Welcome { .. }
            | Self::Refused(_)
            | Self::Channel(_)
            | Self::State(_)
            | Self::ChannelRefused { .. }
            | Self::Gap { .. }
            | Self::Ack(_)
            | Self::Halt { .. }
            | Self::Cancel { .. } => &[],
        }
    }

    /// Reads kind and body of a frame, without its length.
    pub(super) fn decode(frame: &Bytes) -> Result<Self, FrameError> {
        let mut reader = Reader::new(frame);
        let read = &mut reader;
        let decoded = match read.u8("kind")? {
            1 => Self::Hello(Box::new(Hello::decode(read)?)),
            2 => Self::Welcome {
                version: hello::decode_version(read, TRUNK_VERSION)?,
            },
            3 => Self::Refused(TrunkRefusal::decode(read)?),
            4 => Self::Channel(Box::new(Channel::decode(read)?)),
            5 => Self::State(State::decode(read)?),
            6 => Self::ChannelRefused {
                number: read.u32("channel")?,
                reason: ChannelRefusal::decode(read)?,
            },
            7 => Self::Data {
                number: read.u32("channel")?,
                seq: read.u64("sequence")?,
                body: take_body(frame, read)?,
            },
            8 => Self::Gap {
                number: read.u32("channel")?,
                messages: read.u16("gap")?,
            },
            9 => Self::Ack(Ack::decode(read)?),
            10 => Self::Halt {
                number: read.u32("channel")?,
                by: End::decode(read)?,
                reason: Halt::decode(read)?,
            },
            11 => Self::Post {
                envelope: Envelope::decode(read)?,
                body: take_body(frame, read)?,
            },
            12 => Self::Ask {
                ask: read.u64("ask")?,
                envelope: Envelope::decode(read)?,
                left_ms: read.u64("time left")?,
                body: take_body(frame, read)?,
            },
            13 => Self::Answer {
                ask: read.u64("ask")?,
                answer: decode_answer(frame, read)?,
            },
            14 => Self::Cancel {
                ask: read.u64("ask")?,
            },
            kind @ 15..=20 => Self::Blob(BlobFrame::decode(kind, frame, read)?),
            other => return Err(FrameError::Kind(other)),
        };
        reader.finish()?;
        decoded.check()?;
        Ok(decoded)
    }
}

impl Channel {
    fn encode(&self, writer: &mut Writer) {
        self.envelope.encode(writer.u32(self.number));
        writer
            .bytes(&self.history.incarnation)
            .u64(self.history.epoch)
            .u64(self.next_seq)
            .u64(self.acked);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            number: reader.u32("channel")?,
            envelope: Envelope::decode(reader)?,
            history: History {
                incarnation: reader.array("incarnation")?,
                epoch: reader.u64("epoch")?,
            },
            next_seq: reader.u64("next sequence")?,
            acked: reader.u64("acked")?,
        })
    }
}

impl Window {
    fn is_valid(&self) -> bool {
        (1..=Self::MAX.messages).contains(&self.messages) && self.bytes <= Self::MAX.bytes
    }
}

impl State {
    fn encode(&self, writer: &mut Writer) {
        writer
            .u32(self.number)
            .u16(self.window.messages)
            .u32(self.window.bytes)
            .u64(self.position.map_or(0, |position| position.seq));
        if let Some(position) = self.position {
            writer.bytes(&position.chain);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let number = reader.u32("channel")?;
        let window = Window {
            messages: reader.u16("window")?,
            bytes: reader.u32("window")?,
        };
        let position = match reader.u64("cursor")? {
            0 => None,
            seq => Some(Position {
                seq,
                chain: reader.array("chain")?,
            }),
        };
        Ok(Self {
            number,
            window,
            position,
        })
    }
}

impl Ack {
    fn encode(&self, writer: &mut Writer) {
        let count = u16::try_from(self.refusals.len()).unwrap_or(u16::MAX);
        writer.u32(self.number).u64(self.seq).u16(count);
        for Refusal { seq, failure } in &self.refusals {
            let message = failure.message().as_bytes();
            let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
            writer.u64(*seq).u8(failure.code().number());
            writer.u16(length).bytes(message);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let (number, seq) = (reader.u32("channel")?, reader.u64("sequence")?);
        let count = usize::from(reader.u16("refusal count")?);
        if count > MAX_REFUSALS {
            return Err(WireError::Invalid("refusal count"));
        }
        let refusals = (0..count).map(|_| Refusal::decode(reader));
        Ok(Self {
            number,
            seq,
            refusals: refusals.collect::<Result<_, _>>()?,
        })
    }
}

impl Refusal {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let seq = reader.u64("refused sequence")?;
        let code = ErrorCode::decode(reader)?;
        let length = usize::from(reader.u16("error message")?);
        let failure = Failure::decode(code, reader.bytes(length, "error message")?)?;
        Ok(Self { seq, failure })
    }
}

fn decode_answer(
    frame: &Bytes,
    reader: &mut Reader<'_>,
) -> Result<Result<Bytes, Failure>, WireError> {
    let number = reader.u8("error code")?;
    let body = take_body(frame, reader)?;
    if number == 0 {
        return Ok(Ok(body));
    }
    let code = ErrorCode::from_number(number).ok_or(WireError::Invalid("error code"))?;
    Failure::decode(code, &body).map(Err)
}

/// All that is left of the frame.
pub(super) fn take_body(frame: &Bytes, reader: &mut Reader<'_>) -> Result<Bytes, WireError> {
    let rest = std::mem::replace(reader, Reader::new(&[])).rest();
    match rest.len() {
        len if len > MAX_BODY_BYTES => Err(WireError::Invalid("body")),
        len if len < COPIED_BODY_BYTES => Ok(Bytes::copy_from_slice(rest)),
        _ => Ok(frame.slice_ref(rest)),
    }
}

const _: () = assert!(MAX_REFUSALS * (MAX_FAILURE_BYTES + 11) + 15 <= MAX_FRAME_BYTES);
