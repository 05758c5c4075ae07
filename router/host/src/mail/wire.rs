//! A trunk over a flow: its greeting, and what reads and writes its frames.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use rand::RngCore as _;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{Notify, Semaphore},
};
use wormholes_proto::{
    NodeId,
    trunk::{
        Decoder, Frame, Hello, IdentityKind, MAX_BODY_BYTES, MAX_FRAME_BYTES, MAX_HELLO_SKEW, Name,
        TRUNK_VERSION, TrunkRefusal,
    },
};

use super::{Input, Mail, trunk::TrunkId};
use crate::{
    clock::now_ms,
    network::{Call, CallError, Network, Pipe},
};

/// How long the other end may take to greet.
const GREETING: Duration = Duration::from_secs(20);
/// How long the rules and the tunnels may take to open a flow.
const CALL: Duration = Duration::from_secs(60);
/// How long the other end may take to read what is left when a trunk ends.
const LINGER: Duration = Duration::from_secs(5);
/// What waits to be written: with more, channels wait for room.
const MAX_UNWRITTEN: usize = 256 << 10;
/// What waits to be written to answer the other end. Overflow: the trunk ends, since its other end
/// asks and does not read.
const MAX_REPLY_BYTES: usize = 4 << 20;
/// HELLOs that are remembered. Overflow: the oldest is forgotten.
const MAX_HELLOS: usize = 1 << 16;
/// Frames that wait to go behind all others. Overflow: whoever writes waits.
const MAX_BEHIND: usize = 2;
const READ_BYTES: usize = 64 << 10;
/// What a frame takes beside its body.
const FRAME_BYTES: usize = 128;
/// What frames of one trunk may hold that are not handled yet: one of the longest, and some.
pub(super) const ROOM_BYTES: usize = MAX_FRAME_BYTES + (512 << 10);

/// A flow with its greeting behind it.
pub(crate) struct Opened {
    pub(crate) pipe: Box<dyn Pipe>,
    pub(crate) decoder: Decoder,
    /// What came behind the greeting.
    pub(crate) rest: Bytes,
}

/// Somebody who opened a trunk to us.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) hello: Hello,
    pub(crate) opened: Opened,
}

/// What is to be written on a trunk.
#[derive(Debug)]
pub(crate) struct Wire {
    unwritten: Mutex<Unwritten>,
    /// Places for frames that go behind the others; who waits for one has it in turn.
    behind: Semaphore,
    more: Notify,
    is_over: AtomicBool,
    over: Notify,
}

#[derive(Debug, Default)]
struct Unwritten {
    bytes: BytesMut,
    /// How many of them answer the other end, which alone decides how many those are.
    reply_bytes: usize,
    /// Frames that go behind the others, one at a time.
    behind: VecDeque<BytesMut>,
}

/// HELLOs that were accepted, as long as their minute is not too long ago: whoever saw one must not
/// be welcomed with it again.
#[derive(Debug, Default)]
pub(crate) struct Hellos(Mutex<BTreeSet<(u32, NodeId, [u8; 16])>>);

/// Signs as somebody.
pub(crate) type Sign = Box<dyn FnOnce(&[u8]) -> [u8; 64] + Send>;

/// Opens a trunk, as `identity`.
pub(super) async fn open(
    network: Arc<dyn Network>,
    call: Call,
    identity: (NodeId, IdentityKind),
    sign: Sign,
) -> Result<Opened, CallError> {
    let instance = Name::try_from(call.plugin.as_str()).map_err(|error| refused(&error, true))?;
    let acceptor = call.to;
    let called = tokio::time::timeout(CALL, network.call(call)).await;
    let mut pipe = called.map_err(|_| refused(&"no flow opened in time", false))??;
    let mut nonce = [0; 16];
    rand::rng().fill_bytes(&mut nonce);
    let hello = Hello {
        version: TRUNK_VERSION,
        instance,
        identity: identity.0,
        kind: identity.1,
        unix_minutes: u32::try_from(now_ms() / 60_000).unwrap_or(u32::MAX),
        nonce,
        signature: [0; 64],
    };
    let hello = Frame::Hello(Box::new(hello.sign(&acceptor, sign)));
    let greet = async {
        write(&mut pipe, &hello).await?;
        let mut decoder = Decoder::for_opener();
        let (frame, rest) = first(&mut pipe, &mut decoder).await?;
        Ok((frame, decoder, rest))
    };
    let greeted = tokio::time::timeout(GREETING, greet).await;
    let greeted = greeted.map_err(|_| refused(&"the other node did not answer", false))?;
    match greeted.map_err(|error: std::io::Error| refused(&error, false))? {
        (Frame::Refused(why), ..) => Err(refused(&why, false)),
        (_, decoder, rest) => Ok(Opened {
            pipe,
            decoder,
            rest,
        }),
    }
}

/// Hears who opens a trunk, and welcomes those whom `judge` lets in. `peer` is who is known to be at
/// the other end.
pub(super) async fn accept(
    mut pipe: Box<dyn Pipe>,
    node: NodeId,
    peer: Option<NodeId>,
    hellos: &Hellos,
    judge: impl FnOnce(&Hello) -> Result<(), TrunkRefusal>,
) -> Option<Guest> {
    let greet = async {
        let mut decoder = Decoder::for_acceptor();
        let (frame, rest) = first(&mut pipe, &mut decoder)
            .await
            .map_err(|_| TrunkRefusal::Malformed)?;
        let Frame::Hello(hello) = frame else {
            return Err(TrunkRefusal::Malformed);
        };
        hello.verify(&node, now_ms(), MAX_HELLO_SKEW)?;
        let is_other = peer.is_some_and(|peer| peer != hello.identity);
        if hello.kind == IdentityKind::Node && is_other {
            return Err(TrunkRefusal::Denied);
        }
        judge(&hello)?;
        if !hellos.is_new(&hello, now_ms()) {
            return Err(TrunkRefusal::Denied);
        }
        Ok((*hello, decoder, rest))
    };
    let greeted = tokio::time::timeout(GREETING, greet).await.ok()?;
    let answer = match &greeted {
        // The only one there is; an opener speaks no older one.
        Ok(_) => Frame::Welcome {
            version: TRUNK_VERSION,
        },
        Err(why) => Frame::Refused(*why),
    };
    let written = tokio::time::timeout(GREETING, write(&mut pipe, &answer)).await;
    written.ok()?.ok()?;
    let (hello, decoder, rest) = greeted.ok()?;
    let opened = Opened {
        pipe,
        decoder,
        rest,
    };
    Some(Guest { hello, opened })
}

async fn write(pipe: &mut Box<dyn Pipe>, frame: &Frame) -> std::io::Result<()> {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes).map_err(std::io::Error::other)?;
    pipe.write_all(&bytes).await?;
    pipe.flush().await
}

/// The first frame, and what came with it.
async fn first(pipe: &mut Box<dyn Pipe>, decoder: &mut Decoder) -> std::io::Result<(Frame, Bytes)> {
    loop {
        let mut read = BytesMut::with_capacity(1024);
        if pipe.read_buf(&mut read).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = read.freeze();
        let frame = decoder.handle_bytes(&mut bytes);
        if let Some(frame) = frame.map_err(std::io::Error::other)? {
            return Ok((frame, bytes));
        }
    }
}

/// Moves frames between the flow and the office until either ends.
pub(super) async fn run(
    opened: Opened,
    wire: Arc<Wire>,
    trunk: TrunkId,
    room: Arc<Semaphore>,
    mail: Mail,
) {
    let (reader, writer) = tokio::io::split(opened.pipe);
    let end = || {
        wire.end();
        mail.tell(Input::Down(trunk));
    };
    let read = async {
        tokio::select! {
            () = read_all(reader, opened.decoder, opened.rest, trunk, room, &mail) => {}
            () = wire.over.notified() => {}
        }
        end();
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        () = read => {}
        () = write_all(writer, &wire, trunk, &mail) => {}
    }
    end();
}

async fn read_all(
    mut reader: ReadHalf<Box<dyn Pipe>>,
    mut decoder: Decoder,
    mut bytes: Bytes,
    trunk: TrunkId,
    room: Arc<Semaphore>,
    mail: &Mail,
) {
    let mut ahead = BytesMut::new();
    loop {
        let frame = match decoder.handle_bytes(&mut bytes) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::debug!(%error, "a trunk of a plugin ends");
                return;
            }
        };
        if let Some(frame) = frame {
            let taken = u32::try_from(frame_bytes(&frame)).unwrap_or(u32::MAX);
            let room = Arc::clone(&room).acquire_many_owned(taken);
            let Some(room) = while_open(room, &mut reader, &mut ahead).await else {
                return;
            };
            let room = room.ok();
            mail.tell(Input::Frame { trunk, frame, room });
            continue;
        }
        if ahead.is_empty() && !read_more(&mut reader, &mut ahead).await {
            return;
        }
        bytes = ahead.split().freeze();
    }
}

/// What `wanted` comes to; `None`: the flow ended before. That is only seen by reading, so some is
/// read ahead.
async fn while_open<T>(
    wanted: impl Future<Output = T>,
    reader: &mut ReadHalf<Box<dyn Pipe>>,
    ahead: &mut BytesMut,
) -> Option<T> {
    let mut wanted = std::pin::pin!(wanted);
    loop {
        let is_room = ahead.len() < READ_BYTES;
        tokio::select! {
            biased;
            got = &mut wanted => return Some(got),
            is_open = read_more(reader, ahead), if is_room => {
                if !is_open {
                    return None;
                }
            }
        }
    }
}

/// False: there is no more. Cancel-safe.
async fn read_more(reader: &mut ReadHalf<Box<dyn Pipe>>, read: &mut BytesMut) -> bool {
    read.reserve(READ_BYTES);
    matches!(reader.read_buf(read).await, Ok(1..))
}

/// Whether the office sends it only when the trunk takes more.
fn waits_for_room(frame: &Frame) -> bool {
    matches!(
        frame,
        Frame::Channel(_)
            | Frame::Data { .. }
            | Frame::Gap { .. }
            | Frame::Post { .. }
            | Frame::Ask { .. }
    )
}

fn frame_bytes(frame: &Frame) -> usize {
    let body = match frame {
        Frame::Data { body, .. } | Frame::Post { body, .. } | Frame::Ask { body, .. } => body.len(),
        Frame::Answer { answer, .. } => answer.as_ref().map_or(0, Bytes::len),
        Frame::Blob(frame) => frame.body().len(),
        Frame::Hello(_)
        | Frame::Welcome { .. }
        | Frame::Refused(_)
        | Frame::Channel(_)
        | Frame::State(_)
        | Frame::ChannelRefused { .. }
        | Frame::Gap { .. }
        | Frame::Ack(_)
        | Frame::Halt { .. }
        | Frame::Cancel { .. } => 0,
    };
    FRAME_BYTES + body.min(MAX_BODY_BYTES)
}

async fn write_all(mut writer: WriteHalf<Box<dyn Pipe>>, wire: &Wire, trunk: TrunkId, mail: &Mail) {
    loop {
        let more = wire.more.notified();
        let bytes = wire.take();
        if bytes.is_empty() {
            if wire.is_over.load(Ordering::Acquire) {
                let _ = writer.shutdown().await;
                return;
            }
            more.await;
            continue;
        }
        if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
            return;
        }
        mail.tell(Input::Room(trunk));
    }
}

impl Hellos {
    /// Remembers it; false: it came before.
    fn is_new(&self, hello: &Hello, now_ms: u64) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = (now_ms / 60_000).saturating_sub(MAX_HELLO_SKEW.as_secs() / 60);
        while known
            .first()
            .is_some_and(|first| u64::from(first.0) < oldest)
        {
            known.pop_first();
        }
        let is_new = known.insert((hello.unix_minutes, hello.identity, hello.nonce));
        if known.len() > MAX_HELLOS {
            known.pop_first();
        }
        is_new
    }
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            unwritten: Mutex::default(),
            behind: Semaphore::new(MAX_BEHIND),
            more: Notify::new(),
            is_over: AtomicBool::new(false),
            over: Notify::new(),
        }
    }
}

impl Wire {
    /// Whether more may be written now.
    pub(super) fn takes_more(&self) -> bool {
        self.lock().bytes.len() < MAX_UNWRITTEN && !self.is_over.load(Ordering::Acquire)
    }

    /// Writes a frame behind the others. False: the other end does not read its answers, and the
    /// trunk must end.
    #[must_use]
    pub(super) fn write(&self, frame: &Frame) -> bool {
        let mut unwritten = self.lock();
        let before = unwritten.bytes.len();
        // What the host sends keeps within the format.
        if let Err(error) = frame.encode(&mut unwritten.bytes) {
            tracing::error!(%error, "a frame of a plugin cannot be written");
        }
        if !waits_for_room(frame) {
            unwritten.reply_bytes += unwritten.bytes.len().saturating_sub(before);
        }
        let is_within = unwritten.reply_bytes <= MAX_REPLY_BYTES;
        drop(unwritten);
        self.more.notify_one();
        is_within
    }

    /// Writes a frame behind all others that wait, when there is a place for it: messages wait for one
    /// such frame at most, and these for as many messages as the trunk takes at once.
    pub(super) async fn write_behind(&self, frame: &Frame) {
        // Closed: the trunk is over.
        let Ok(place) = self.behind.acquire().await else {
            return;
        };
        place.forget();
        let mut bytes = BytesMut::new();
        // What the host sends keeps within the format.
        if let Err(error) = frame.encode(&mut bytes) {
            tracing::error!(%error, "a frame of a plugin cannot be written");
        }
        self.lock().behind.push_back(bytes);
        self.more.notify_one();
    }

    /// Nothing is written behind what is there.
    pub(super) fn end(&self) {
        self.behind.close();
        self.is_over.store(true, Ordering::Release);
        self.more.notify_one();
        self.over.notify_one();
    }

    fn take(&self) -> BytesMut {
        let mut unwritten = self.lock();
        let mut bytes = std::mem::take(&mut unwritten.bytes);
        unwritten.reply_bytes = 0;
        let behind = unwritten.behind.pop_front();
        drop(unwritten);
        if let Some(frame) = behind {
            self.behind.add_permits(1);
            bytes.unsplit(frame);
        }
        bytes
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Unwritten> {
        self.unwritten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(why: &dyn fmt::Display, is_final: bool) -> CallError {
    CallError {
        why: why.to_string(),
        is_final,
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(unix_minutes: u32, nonce: u8) -> Hello {
        Hello {
            version: TRUNK_VERSION,
            instance: Name::try_from("ledger").unwrap(),
            identity: NodeId::from_bytes([1; 32]),
            kind: IdentityKind::Node,
            unix_minutes,
            nonce: [nonce; 16],
            signature: [0; 64],
        }
    }

    #[test]
    fn hellos_are_known_until_their_minute_is_too_long_ago() {
        let hellos = Hellos::default();
        let at = |minute: u64| minute * 60_000;
        assert!(hellos.is_new(&hello(100, 1), at(100)));
        assert!(hellos.is_new(&hello(100, 2), at(105)), "another nonce");
        assert!(!hellos.is_new(&hello(100, 1), at(110)));
        assert!(hellos.is_new(&hello(111, 1), at(111)));
        assert_eq!(
            hellos.0.lock().unwrap().len(),
            1,
            "no other is taken any more"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_trunk_that_ended_leaves_an_end_that_does_not_read() {
        let (near, far) = tokio::io::duplex(16);
        let opened = Opened {
            pipe: Box::new(near),
            decoder: Decoder::for_opener(),
            rest: Bytes::new(),
        };
        let (wire, (mail, mut inputs)) = (Arc::new(Wire::default()), Mail::new());
        assert!(wire.write(&Frame::Post {
            envelope: wormholes_proto::trunk::Envelope {
                from: wormholes_proto::trunk::Principal::Node,
                to: wormholes_proto::trunk::Principal::Node,
                protocol: Name::try_from("transfer").unwrap(),
            },
            body: Bytes::from_static(&[0; 1024]),
        }));
        wire.end();
        let begun = tokio::time::Instant::now();
        run(opened, wire, 1, Arc::new(Semaphore::new(0)), mail).await;
        assert!(begun.elapsed() < LINGER * 2, "time is virtual");
        assert!(matches!(inputs.recv().await, Some(Input::Down(1))));
        drop(far);
    }
}
