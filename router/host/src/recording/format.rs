//! How a recording is written.
//!
//! ```text
//! file   "wormholes plugin recording" 0 | format u8 (1) | frames
//! frame  length u32, big-endian | what it is, as postcard has it
//! ```
//! The last frame of a file that was saved is `End`: a file without it was cut. A file that is being
//! written has none, and may end within a frame.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, Read, Write},
    marker::PhantomData,
};

use ring::digest::{Context, SHA256};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, SeqAccess, Visitor},
};
use thiserror::Error;
use wormholes_proto::{NodeId, manifest::MAX_MANIFEST_BYTES};

use super::{Effect, Ended, Found, Happened, Remembered, tape::Answers};
use crate::{
    event::Principal,
    message::{OutHead, OutKey},
};

const MAGIC: &[u8] = b"wormholes plugin recording\0";
const FORMAT: u8 = 1;
/// An event writes 16 MiB at most, and its own body has one.
pub(crate) const MAX_FRAME_BYTES: usize = 32 << 20;
/// All components: the largest has half of it.
pub(super) const MAX_COMPONENTS_BYTES: usize = 256 << 20;
/// Of one recording: an instance has few versions in the time of one.
const MAX_PLUGINS: usize = 64;
const MAX_TRACKS: usize = 1 << 20;
/// Of each kind of thing in one frame.
const MAX_THINGS: usize = 65_536;

/// Bytes that serde hands over in one piece.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Blob(pub(crate) Vec<u8>);

/// A part of a recording.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Frame {
    /// A version of the plugin, before the first track of it.
    Plugin(Box<PluginFrame>),
    /// A piece of the component with this SHA-256; in files that were saved, before the first track.
    Wasm([u8; 32], Blob),
    /// A principal begins.
    Track(Box<TrackFrame>),
    /// Its rows at the beginning; in as many frames as it takes.
    Rows(u64, #[serde(deserialize_with = "few")] Vec<(Blob, Blob)>),
    /// What happened to it.
    Event(Box<EventFrame>),
    /// Of all bytes before this frame.
    End([u8; 32]),
}

/// A version of a plugin, under what config.toml said of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PluginFrame {
    /// Of all the rest: the same files under another config are another one.
    pub(crate) digest: [u8; 32],
    /// Of its files.
    pub(crate) files: [u8; 32],
    pub(crate) sha256: [u8; 32],
    pub(crate) instance: String,
    pub(crate) node: NodeId,
    pub(crate) manifest: String,
    pub(crate) grants: Grants,
    pub(crate) config: BTreeMap<String, String>,
    pub(crate) strangers: bool,
}

/// What it was granted: capabilities by name, facts, hooks, paths, ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Grants {
    pub(crate) names: BTreeSet<String>,
    pub(crate) facts: BTreeSet<String>,
    pub(crate) rules: BTreeSet<String>,
    pub(crate) http: BTreeSet<String>,
    pub(crate) sockets: BTreeSet<String>,
}

/// A principal at the moment when its track begins.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TrackFrame {
    pub(crate) track: u64,
    pub(crate) principal: Principal,
    /// Of its version.
    pub(crate) digest: [u8; 32],
    pub(crate) remembered: Remembered,
}

/// An event.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EventFrame {
    pub(crate) track: u64,
    pub(crate) id: u64,
    pub(crate) attempt: u32,
    pub(crate) now_ms: u64,
    /// `None`: a secret may have been drawn from it.
    pub(crate) seed: Option<[u8; 32]>,
    pub(crate) happened: Happened,
    /// The instance had new memory.
    pub(crate) is_fresh: bool,
    pub(crate) found: Found,
    pub(crate) answers: Answers,
    pub(crate) ended: Ended,
    #[serde(deserialize_with = "few")]
    pub(crate) effects: Vec<Effect>,
    /// Channels to send on, as it left them.
    #[serde(deserialize_with = "few")]
    pub(crate) channels: Vec<(OutKey, OutHead)>,
    pub(crate) took_us: u64,
}

/// Why a recording cannot be read.
#[derive(Debug, Error)]
pub enum RecordingError {
    /// The file.
    #[error("the recording cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is something else.
    #[error("this is no recording of a plugin")]
    NotOne,
    /// Another build wrote it.
    #[error("the recording has format {found}, and this version reads {FORMAT}")]
    Format {
        /// Which.
        found: u8,
    },
    /// It ends too soon.
    #[error("the recording was cut: it ends before its end")]
    Cut,
    /// It is not as it was written.
    #[error("the recording is damaged: {0}")]
    Damaged(&'static str),
}

/// What a recording has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordingSummary {
    /// Versions of the plugin.
    pub plugins: u64,
    /// Times that a principal begins.
    pub tracks: u64,
    /// Events.
    pub events: u64,
    /// Bytes, all of it.
    pub bytes: u64,
}

/// Reads a recording a frame at a time.
pub(super) struct Reader<R> {
    from: R,
    /// Of what was read; `None` where there may be no end.
    digest: Option<Context>,
    summary: RecordingSummary,
    plugins: BTreeSet<[u8; 32]>,
    tracks: BTreeSet<u64>,
    wasm_bytes: usize,
    is_over: bool,
}

impl<R: Read> Reader<R> {
    /// Of a file that was saved.
    pub(super) fn new(from: R) -> Result<Self, RecordingError> {
        Self::open(from, Some(Context::new(&SHA256)))
    }

    /// Of a file that is being written, or was when the node ended.
    pub(super) fn of_part(from: R) -> Result<Self, RecordingError> {
        Self::open(from, None)
    }

    fn open(from: R, digest: Option<Context>) -> Result<Self, RecordingError> {
        let mut reader = Self {
            from,
            digest,
            summary: RecordingSummary::default(),
            plugins: BTreeSet::new(),
            tracks: BTreeSet::new(),
            wasm_bytes: 0,
            is_over: false,
        };
        let mut head = [0; MAGIC.len() + 1];
        let read = read_whole(&mut reader.from, &mut head)?;
        match head.split_last() {
            Some((format, magic)) if read == head.len() && magic == MAGIC => {
                if *format != FORMAT {
                    return Err(RecordingError::Format { found: *format });
                }
            }
            _ => return Err(RecordingError::NotOne),
        }
        reader.count(&head);
        Ok(reader)
    }

    /// The next frame, and how it lies in the file; `None`: all was read.
    pub(super) fn next(&mut self) -> Result<Option<(Frame, Vec<u8>)>, RecordingError> {
        if self.is_over {
            return Ok(None);
        }
        let is_part = self.digest.is_none();
        let Some(bytes) = self.read_frame()? else {
            return if is_part {
                Ok(None)
            } else {
                Err(RecordingError::Cut)
            };
        };
        let body = bytes.get(4..).unwrap_or_default();
        let frame = match postcard::take_from_bytes::<Frame>(body) {
            Ok((frame, [])) => frame,
            Ok(_) | Err(_) => return Err(RecordingError::Damaged("a part of it says nothing")),
        };
        if let Frame::End(meant) = &frame {
            return self.end(meant).map(|()| None);
        }
        self.count(&bytes);
        self.check(&frame)?;
        Ok(Some((frame, bytes)))
    }

    /// `None`: there is no whole one.
    fn read_frame(&mut self) -> Result<Option<Vec<u8>>, RecordingError> {
        let mut length = [0; 4];
        if read_whole(&mut self.from, &mut length)? < length.len() {
            return Ok(None);
        }
        let length_bytes = u32::from_be_bytes(length) as usize;
        if length_bytes > MAX_FRAME_BYTES {
            return Err(RecordingError::Damaged("a part of it is too long"));
        }
        // What the file does not have is not taken from memory.
        let mut bytes = length.to_vec();
        let read = (&mut self.from)
            .take(length_bytes as u64)
            .read_to_end(&mut bytes)?;
        Ok((read == length_bytes).then_some(bytes))
    }

    fn end(&mut self, meant: &[u8; 32]) -> Result<(), RecordingError> {
        let Some(digest) = self.digest.take() else {
            return Err(RecordingError::Damaged("it ends where it cannot"));
        };
        if digest.finish().as_ref() != meant {
            return Err(RecordingError::Damaged("it is not as it was written"));
        }
        let mut more = [0];
        if read_whole(&mut self.from, &mut more)? > 0 {
            return Err(RecordingError::Damaged("it goes on behind its end"));
        }
        self.is_over = true;
        Ok(())
    }

    fn count(&mut self, bytes: &[u8]) {
        self.summary.bytes += bytes.len() as u64;
        if let Some(digest) = &mut self.digest {
            digest.update(bytes);
        }
    }

    /// Whether it may stand there.
    fn check(&mut self, frame: &Frame) -> Result<(), RecordingError> {
        let is_known = |track: &u64| {
            let unknown = RecordingError::Damaged("it speaks of a principal that never began");
            self.tracks.contains(track).then_some(()).ok_or(unknown)
        };
        match frame {
            Frame::Plugin(plugin) => {
                self.plugins.insert(plugin.digest);
                self.summary.plugins = self.plugins.len() as u64;
                if self.plugins.len() > MAX_PLUGINS || plugin.manifest.len() > MAX_MANIFEST_BYTES {
                    return Err(RecordingError::Damaged(
                        "its plugins are too many, or too large",
                    ));
                }
            }
            Frame::Wasm(_, piece) => {
                self.wasm_bytes += piece.0.len();
                if self.wasm_bytes > MAX_COMPONENTS_BYTES {
                    return Err(RecordingError::Damaged("its components are too large"));
                }
            }
            Frame::Track(track) => {
                if !self.plugins.contains(&track.digest) || !self.tracks.insert(track.track) {
                    return Err(RecordingError::Damaged(
                        "a principal begins twice, or as nothing",
                    ));
                }
                self.summary.tracks += 1;
                if self.tracks.len() > MAX_TRACKS {
                    return Err(RecordingError::Damaged("too many principals begin"));
                }
            }
            Frame::Rows(track, _) => is_known(track)?,
            Frame::Event(event) => {
                is_known(&event.track)?;
                self.summary.events += 1;
            }
            Frame::End(_) => {}
        }
        Ok(())
    }
}

impl PluginFrame {
    /// Gives it the digest of all else that it says.
    pub(crate) fn name(&mut self) {
        self.digest = [0; 32];
        // Nothing in it fails to be written.
        let all = postcard::to_allocvec(self).unwrap_or_default();
        self.digest
            .copy_from_slice(ring::digest::digest(&SHA256, &all).as_ref());
    }
}

/// A list that is no longer than what is recorded: small things of a file would become large ones in
/// memory.
pub(super) fn few<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Few<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Few<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX_THINGS} things")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut things: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(thing) = things.next_element()? {
                if all.len() == MAX_THINGS {
                    return Err(A::Error::custom("too many things"));
                }
                all.push(thing);
            }
            Ok(all)
        }
    }

    from.deserialize_seq(Few(PhantomData))
}

impl RecordingSummary {
    /// Reads a recording that was saved from its beginning to its end.
    ///
    /// # Errors
    /// It is none, was cut, or is damaged.
    pub fn read(from: impl Read) -> Result<Self, RecordingError> {
        let mut reader = Reader::new(from)?;
        while reader.next()?.is_some() {}
        Ok(reader.summary)
    }
}

/// What a file begins with.
pub(super) fn head() -> Vec<u8> {
    [MAGIC, &[FORMAT]].concat()
}

/// A frame as it lies in a file; `None`: it is too large for one.
pub(super) fn encode(frame: &Frame) -> Option<Vec<u8>> {
    let body = postcard::to_allocvec(frame).ok()?;
    let length = u32::try_from(body.len()).ok()?;
    (body.len() <= MAX_FRAME_BYTES).then(|| [&length.to_be_bytes()[..], &body].concat())
}

/// Writes a file that was saved.
pub(super) struct Writer<W> {
    to: W,
    digest: Context,
    pub(super) bytes: u64,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(to: W) -> io::Result<Self> {
        let mut writer = Self {
            to,
            digest: Context::new(&SHA256),
            bytes: 0,
        };
        writer.write(&head())?;
        Ok(writer)
    }

    /// A frame as it lies in a file.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        self.to.write_all(bytes)
    }

    pub(super) fn end(mut self) -> io::Result<(W, u64)> {
        let mut digest = [0; 32];
        digest.copy_from_slice(self.digest.clone().finish().as_ref());
        let end = encode(&Frame::End(digest)).unwrap_or_default();
        self.write(&end)?;
        Ok((self.to, self.bytes))
    }
}

/// As much as there is.
fn read_whole(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while let Some(rest) = into.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Blob;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.to_vec()))
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

/// Without the bytes: they are somebody's.
impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Blob").field(&self.0.len()).finish()
    }
}

impl From<&[u8]> for Blob {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}
