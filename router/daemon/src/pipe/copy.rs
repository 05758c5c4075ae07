//! Copies between two pipes until both directions ended, or one broke.
//!
//! Both directions run in the caller's task: no channel, no other task, no lock per chunk.

use std::{
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::time::timeout;
use wormholes_rules::Jitter;

use super::{
    Pace, Pipe, PipeError, PipeReader, PipeWriter, Sink, Source,
    allowance::Allowance,
    broken,
    pace::{PACED_BYTES, first_piece},
};

/// Longer than a program that lives leaves its bytes lying; meanwhile they fill a window that other
/// streams share.
const UNREAD_LIMIT: Duration = Duration::from_secs(60);
/// Longer than a receiver that is only slow takes nothing.
const STALL: Duration = Duration::from_secs(5);
/// Looks at a flow's idle time this often within it.
const IDLE_CHECKS: u32 = 4;

/// Limits of a copy. `None` is: no limit.
#[derive(Debug, Clone)]
pub struct CopyLimits {
    /// How long one side may leave bytes of a stream between nodes untaken before the flow ends;
    /// 60 s by default. Only those streams share room with others.
    pub unread: Duration,
    /// How long a receiver may take nothing before its bytes leave the kernel pipe that they are
    /// in; 5 s by default.
    pub stall: Duration,
    /// Both directions together.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Limits shared with other flows.
    pub paces: Vec<Arc<Pace>>,
    /// Both directions together.
    pub max_bytes: Option<u64>,
    /// From the start of the copy.
    pub max_time: Option<Duration>,
    /// How long nothing may move; found up to a quarter later.
    pub idle: Option<Duration>,
    /// Waits before each piece that goes from the first pipe to the second.
    pub jitter: Option<Jitter>,
    /// Pads what goes into the second pipe, when that can pad.
    pub pad_bytes: Option<u32>,
    /// Sees every byte that is copied: for proofs of what a node in between can see.
    pub witness: Option<Arc<dyn Witness>>,
}

impl Default for CopyLimits {
    fn default() -> Self {
        Self {
            unread: UNREAD_LIMIT,
            stall: STALL,
            bandwidth_bytes_per_s: None,
            paces: Vec::new(),
            max_bytes: None,
            max_time: None,
            idle: None,
            jitter: None,
            pad_bytes: None,
            witness: None,
        }
    }
}

/// Sees what a node in between sees.
pub trait Witness: Send + Sync + fmt::Debug {
    /// Bytes that a `role` of this node (`relay`, `hop`) carried, in either direction.
    fn saw(&self, role: &'static str, bytes: &[u8]);
}

/// Bytes that moved, readable while they do.
#[derive(Debug, Default)]
pub struct FlowBytes {
    /// From the first pipe to the second.
    pub up: AtomicU64,
    /// From the second to the first.
    pub down: AtomicU64,
    /// Sums over many flows that these bytes are part of.
    sums: Vec<Arc<AtomicU64>>,
}

/// How a copy ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyEnd {
    /// Bytes from the first pipe to the second.
    pub up_bytes: u64,
    /// Bytes from the second to the first.
    pub down_bytes: u64,
    /// Why it ended; `None`: both directions ended well.
    pub stop: Option<CopyStop>,
}

/// Why a copy ended before both directions did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyStop {
    /// The first pipe (the asker's) broke.
    #[error("asker's side {0}")]
    Near(PipeError),
    /// The second pipe (the target's) broke.
    #[error("target's side {0}")]
    Far(PipeError),
    /// Nothing moved for too long.
    #[error("idle for too long")]
    Idle,
    /// One side read nothing for too long while bytes for it waited.
    #[error("nobody read for too long")]
    Unread,
    /// As many bytes as the limit allows have moved.
    #[error("byte limit reached")]
    MaxBytes,
    /// The time is over.
    #[error("time limit reached")]
    MaxTime,
    /// One side is a stream and the other is not: a bug.
    #[error("a stream and datagrams cannot be joined")]
    Unlike,
}

impl CopyEnd {
    /// After `bytes`.
    pub(super) fn of(bytes: &FlowBytes, stop: Option<CopyStop>) -> Self {
        Self {
            up_bytes: bytes.up.load(Relaxed),
            down_bytes: bytes.down.load(Relaxed),
            stop,
        }
    }

    /// Of two sides that cannot be joined.
    pub(super) fn unlike() -> Self {
        Self {
            up_bytes: 0,
            down_bytes: 0,
            stop: Some(CopyStop::Unlike),
        }
    }
}

/// What both directions look at.
pub(super) struct Shared<'a> {
    pub(super) limits: &'a CopyLimits,
    own_pace: Option<Pace>,
    pub(super) allowance: Allowance,
    pub(super) bytes: &'a FlowBytes,
}

/// One of the two directions.
pub(super) struct Way<'a, R, W> {
    pub(super) from: &'a mut R,
    pub(super) into: &'a mut W,
    pub(super) moved: fn(&FlowBytes, u64),
    pub(super) jitter: Option<Jitter>,
    pub(super) read_failed: fn(PipeError) -> CopyStop,
    pub(super) write_failed: fn(PipeError) -> CopyStop,
}

/// The way up and the way down between two ends, each with its reader and its writer.
pub(super) fn ways<'a, R, W>(
    near: (&'a mut R, &'a mut W),
    far: (&'a mut R, &'a mut W),
    limits: &CopyLimits,
) -> [Way<'a, R, W>; 2] {
    let up = Way {
        from: near.0,
        into: far.1,
        moved: FlowBytes::moved_up,
        jitter: limits.jitter,
        read_failed: CopyStop::Near,
        write_failed: CopyStop::Far,
    };
    let down = Way {
        from: far.0,
        into: near.1,
        moved: FlowBytes::moved_down,
        jitter: None,
        read_failed: CopyStop::Far,
        write_failed: CopyStop::Near,
    };
    [up, down]
}

impl Way<'_, PipeReader, PipeWriter> {
    /// What comes next. Meanwhile what it goes into may be told to go on by another stream: also
    /// where nothing comes for long.
    async fn next_chunks(&mut self) -> Result<Vec<Bytes>, CopyStop> {
        while self.into.may_go_over() {
            tokio::select! {
                biased;
                () = self.into.called_over() => {}
                chunks = self.from.read_chunks() => return chunks.map_err(self.read_failed),
            }
            self.into.go_over().await.map_err(self.write_failed)?;
        }
        self.from.read_chunks().await.map_err(self.read_failed)
    }
}

impl FlowBytes {
    /// Nothing so far; what moves is added to `sums` too.
    pub(crate) fn part_of(sums: Vec<Arc<AtomicU64>>) -> Self {
        Self {
            sums,
            ..Self::default()
        }
    }

    pub(crate) fn moved_up(&self, bytes: u64) {
        self.moved(&self.up, bytes);
    }

    pub(crate) fn moved_down(&self, bytes: u64) {
        self.moved(&self.down, bytes);
    }

    fn moved(&self, direction: &AtomicU64, bytes: u64) {
        direction.fetch_add(bytes, Relaxed);
        for sum in &self.sums {
            sum.fetch_add(bytes, Relaxed);
        }
    }

    /// Both directions.
    pub fn total(&self) -> u64 {
        self.up
            .load(Relaxed)
            .saturating_add(self.down.load(Relaxed))
    }
}

/// Copies `near` (the asker's side) and `far` (the target's) into each other. Half-closes pass
/// through; when one direction breaks, both pipes are aborted. Dropping the future aborts too.
pub async fn copy(near: Pipe, far: Pipe, limits: &CopyLimits, bytes: &FlowBytes) -> CopyEnd {
    let mut near = near;
    let mut far = far;
    if let Some(pad_bytes) = limits.pad_bytes {
        far.writer.set_padding(pad_bytes);
    }
    let shared = Shared::new(limits, bytes);
    let (near_left, far_left) = (near.writer.left(), far.writer.left());
    let cut = cut(near.writer.cut(), far.writer.cut());
    let [up, down] = ways(
        (&mut near.reader, &mut near.writer),
        (&mut far.reader, &mut far.writer),
        limits,
    );
    let (mut up, mut down) = (pin!(shared.run(up)), pin!(shared.run(down)));
    // Who has sent everything and left is not seen by a direction in which nothing moves.
    let both = async {
        tokio::select! {
            biased;
            ended = up.as_mut() => {
                ended?;
                unless_left(down, near_left, CopyStop::Near).await
            }
            ended = down.as_mut() => {
                ended?;
                unless_left(up, far_left, CopyStop::Far).await
            }
        }
    };
    let stop = tokio::select! {
        biased;
        // A direction that waits for the other pipe would not see it.
        stop = cut => Some(stop),
        both = both => both.err(),
        stop = watch(limits, bytes) => Some(stop),
    };
    CopyEnd::of(bytes, stop)
}

/// Ends when what carries one of two pipes is stopped here.
async fn cut(near: impl Future<Output = ()>, far: impl Future<Output = ()>) -> CopyStop {
    tokio::select! {
        biased;
        () = near => CopyStop::Near(PipeError::Reset),
        () = far => CopyStop::Far(PipeError::Reset),
    }
}

/// The end of a direction, unless the one that it goes to leaves before.
async fn unless_left(
    direction: impl Future<Output = Result<(), CopyStop>>,
    left: impl Future<Output = ()>,
    stop: fn(PipeError) -> CopyStop,
) -> Result<(), CopyStop> {
    tokio::select! {
        biased;
        ended = direction => ended,
        () = left => Err(stop(PipeError::Reset)),
    }
}

impl<'a> Shared<'a> {
    pub(super) fn new(limits: &'a CopyLimits, bytes: &'a FlowBytes) -> Self {
        Self {
            limits,
            own_pace: limits.bandwidth_bytes_per_s.map(Pace::new),
            allowance: Allowance::new(limits, bytes),
            bytes,
        }
    }

    /// Waits before `bytes` go on, as ceilings and jitter want.
    pub(super) async fn hold_back(&self, bytes: u64, jitter: Option<Jitter>) {
        self.limits.pace(bytes).await;
        if let Some(pace) = &self.own_pace {
            pace.pass(bytes).await;
        }
        if let Some(jitter) = jitter {
            tokio::time::sleep(jitter.wait(rand::random())).await;
        }
    }

    async fn run(&self, mut way: Way<'_, PipeReader, PipeWriter>) -> Result<(), CopyStop> {
        loop {
            if self.splice_next(&mut way).await? {
                continue;
            }
            let mut chunks = way.next_chunks().await?;
            if chunks.is_empty() {
                break;
            }
            let whole = total_bytes(&chunks);
            self.cut_to_allowance(&mut chunks);
            let is_cut = total_bytes(&chunks) < whole;
            while !chunks.is_empty() {
                let piece = first_piece(&mut chunks, self.limits.piece_bytes());
                self.pass_on(&mut way, piece).await?;
            }
            if is_cut {
                return Err(CopyStop::MaxBytes);
            }
        }
        way.into.finish().await.map_err(way.write_failed)
    }

    async fn pass_on(
        &self,
        way: &mut Way<'_, PipeReader, PipeWriter>,
        mut piece: Vec<Bytes>,
    ) -> Result<(), CopyStop> {
        let bytes = total_bytes(&piece);
        let held = self.hold_back(bytes, way.jitter);
        let held = way.into.go_over_during(held).await;
        held.map_err(way.write_failed)?;
        if let Some(witness) = &self.limits.witness {
            piece.iter().for_each(|chunk| witness.saw("relay", chunk));
        }
        let written = if way.from.shares_room() {
            let unread = self.limits.unread;
            timeout(unread, way.into.write_chunks(&mut piece))
                .await
                .map_err(|_| CopyStop::Unread)?
        } else {
            way.into.write_chunks(&mut piece).await
        };
        written.map_err(way.write_failed)?;
        (way.moved)(self.bytes, bytes);
        Ok(())
    }

    /// Moves what comes next without looking at it; `false` when it is better copied, or the end.
    async fn splice_next(
        &self,
        way: &mut Way<'_, PipeReader, PipeWriter>,
    ) -> Result<bool, CopyStop> {
        if !self.limits.lets_splice() || !way.from.ahead.is_empty() {
            return Ok(false);
        }
        let (Source::Tcp(from), Sink::Tcp(into)) = (&mut way.from.source, &mut way.into.sink)
        else {
            return Ok(false);
        };
        let Some(mut piece) = from.read_piece().await.map_err(way.read_failed)? else {
            return Ok(false);
        };
        while piece.bytes() > 0 {
            let writing = into.write_piece(&mut piece);
            let Ok(sent) = timeout(self.limits.stall, writing).await else {
                let parked = piece
                    .park()
                    .map_err(|error| (way.read_failed)(broken(&error)))?;
                let Some(parked) = parked else {
                    continue;
                };
                drop(piece);
                let mut chunks = [parked.bytes.clone()];
                let written = into.write_chunks(&mut chunks).await;
                written.map_err(way.write_failed)?;
                (way.moved)(self.bytes, parked.bytes.len() as u64);
                return Ok(true);
            };
            (way.moved)(self.bytes, sent.map_err(way.write_failed)?);
        }
        Ok(true)
    }

    /// Leaves in `chunks` what may still move.
    fn cut_to_allowance(&self, chunks: &mut Vec<Bytes>) {
        let mut left = self.allowance.take(total_bytes(chunks));
        chunks.retain_mut(|chunk| {
            chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left -= chunk.len() as u64;
            !chunk.is_empty()
        });
    }
}

fn total_bytes(chunks: &[Bytes]) -> u64 {
    chunks.iter().map(|chunk| chunk.len() as u64).sum()
}

impl CopyLimits {
    /// Whether nothing counts, looks at or times the bytes on their way: a paced flow would come in
    /// bursts of a whole piece, and hold its kernel pipe in between.
    fn lets_splice(&self) -> bool {
        self.max_bytes.is_none()
            && self.bandwidth_bytes_per_s.is_none()
            && self.paces.is_empty()
            && self.jitter.is_none()
            && self.witness.is_none()
    }

    /// How many bytes of what came at once wait their turn together.
    fn piece_bytes(&self) -> usize {
        match self.bandwidth_bytes_per_s.is_some() || !self.paces.is_empty() {
            true => PACED_BYTES,
            false => usize::MAX,
        }
    }

    /// How many bytes may move after those that did.
    pub(super) fn left_after(&self, moved: &FlowBytes) -> u64 {
        let max_bytes = self.max_bytes.unwrap_or(u64::MAX);
        max_bytes.saturating_sub(moved.total())
    }

    /// Holds `bytes` back as the limits over many flows want.
    pub(super) async fn pace(&self, bytes: u64) {
        for pace in &self.paces {
            pace.pass(bytes).await;
        }
    }
}

/// Ends when nothing has moved for too long, or it has taken too long in all.
pub(crate) async fn watch(limits: &CopyLimits, moved: &FlowBytes) -> CopyStop {
    let idle = async {
        let Some(idle) = limits.idle else {
            return std::future::pending().await;
        };
        let mut quiet_checks = 0;
        while quiet_checks <= IDLE_CHECKS {
            let before = moved.total();
            tokio::time::sleep(idle / IDLE_CHECKS).await;
            let is_quiet = moved.total() == before;
            quiet_checks = if is_quiet { quiet_checks + 1 } else { 0 };
        }
    };
    let time = async {
        match limits.max_time {
            Some(max_time) => tokio::time::sleep(max_time).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = idle => CopyStop::Idle,
        () = time => CopyStop::MaxTime,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::{super::MemoryEnd, *};

    /// A copy between two memory pipes, and their outer ends.
    fn pair(limits: CopyLimits) -> (MemoryEnd, MemoryEnd, tokio::task::JoinHandle<CopyEnd>) {
        let (near, near_end) = Pipe::memory();
        let (far, far_end) = Pipe::memory();
        let task = tokio::spawn(async move {
            let bytes = FlowBytes::default();
            copy(near, far, &limits, &bytes).await
        });
        (near_end, far_end, task)
    }

    #[tokio::test]
    async fn half_close_passes_and_the_other_direction_goes_on() {
        let (mut near, mut far, task) = pair(CopyLimits::default());
        near.write_all(b"question").await.unwrap();
        near.shutdown().await.unwrap();
        let mut question = String::new();
        far.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        far.write_all(b"answer").await.unwrap();
        far.shutdown().await.unwrap();
        let mut answer = String::new();
        near.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
        let end = task.await.unwrap();
        assert_eq!((end.up_bytes, end.down_bytes, end.stop), (8, 6, None));
    }

    #[tokio::test]
    async fn limits_end_the_flow() {
        let idle = CopyLimits {
            idle: Some(Duration::from_millis(40)),
            ..CopyLimits::default()
        };
        let (_near, _far, task) = pair(idle);
        assert_eq!(task.await.unwrap().stop, Some(CopyStop::Idle));

        let max_time = CopyLimits {
            max_time: Some(Duration::from_millis(40)),
            ..CopyLimits::default()
        };
        let (_near, _far, task) = pair(max_time);
        assert_eq!(task.await.unwrap().stop, Some(CopyStop::MaxTime));

        let max_bytes = CopyLimits {
            max_bytes: Some(10),
            ..CopyLimits::default()
        };
        let (mut near, _far, task) = pair(max_bytes);
        near.write_all(&[0; 11]).await.unwrap();
        assert_eq!(task.await.unwrap().stop, Some(CopyStop::MaxBytes));
    }

    #[tokio::test]
    async fn as_many_bytes_move_as_the_limit_allows_both_directions_together() {
        let max_bytes = CopyLimits {
            max_bytes: Some(10),
            ..CopyLimits::default()
        };
        let (mut near, mut far, task) = pair(max_bytes.clone());
        let mut read = [0; 6];
        near.write_all(b"abcdef").await.unwrap();
        far.read_exact(&mut read).await.unwrap();
        far.write_all(b"ABCDEF").await.unwrap();
        near.read_exact(&mut read[..4]).await.unwrap();
        assert_eq!(&read, b"ABCDef");
        let end = task.await.unwrap();
        let stop = Some(CopyStop::MaxBytes);
        assert_eq!((end.up_bytes, end.down_bytes, end.stop), (6, 4, stop));

        let (mut near, mut far, task) = pair(max_bytes);
        near.write_all(&[0; 10]).await.unwrap();
        near.shutdown().await.unwrap();
        far.shutdown().await.unwrap();
        far.read_to_end(&mut Vec::new()).await.unwrap();
        assert_eq!(task.await.unwrap().stop, None, "not one too many");
    }

    #[tokio::test]
    async fn bandwidth_is_kept_over_both_directions() {
        let limits = CopyLimits {
            bandwidth_bytes_per_s: Some(400_000),
            ..CopyLimits::default()
        };
        let (near, far, task) = pair(limits);
        let start = tokio::time::Instant::now();
        let send = |mut end: MemoryEnd| async move {
            let (mut reader, mut writer) = tokio::io::split(&mut end);
            let write = async {
                writer.write_all(&[0; 50_000]).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            let mut all = Vec::new();
            let (_, read) = tokio::join!(write, reader.read_to_end(&mut all));
            read.unwrap()
        };
        let (near_read, far_read) = tokio::join!(send(near), send(far));
        assert_eq!((near_read, far_read), (50_000, 50_000));
        assert!(
            start.elapsed() >= Duration::from_millis(195),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(task.await.unwrap().stop, None);
    }
}
