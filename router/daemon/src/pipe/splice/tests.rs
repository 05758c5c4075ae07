//! Flows between real sockets. They share the process' kernel pipes, which are counted here: one
//! test at a time.

use std::{fs, sync::Arc, time::Duration};

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::{Mutex, MutexGuard},
    task::JoinHandle,
    time::{Instant, interval, timeout},
};

use super::{
    super::{CopyEnd, CopyLimits, CopyStop, FlowBytes, Pipe, PipeError, copy, tcp::TcpReader},
    *,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// More than all socket buffers on the way hold.
const BULK_BYTES: usize = 64 << 20;

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A flow between two connections, whose outer ends are here.
struct Flow {
    near: TcpStream,
    far: TcpStream,
    bytes: Arc<FlowBytes>,
    copy: JoinHandle<CopyEnd>,
}

/// A flow that brings bulk, of which no more is read; a piece waits.
struct Stalled {
    near_reader: OwnedReadHalf,
    up: JoinHandle<io::Result<()>>,
    far: [Receiver; 1],
    far_writer: OwnedWriteHalf,
    copy: JoinHandle<CopyEnd>,
}

/// Reads what [`send`] sends.
struct Receiver {
    reader: OwnedReadHalf,
    noise: Vec<u8>,
    received: usize,
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_arrives_whole_and_no_faster_than_it_is_read() {
    let _alone = alone().await;
    let flow = Flow::start(CopyLimits::default()).await;
    let (near_reader, near_writer) = flow.near.into_split();
    let (far_reader, far_writer) = flow.far.into_split();
    let up = tokio::spawn(send(near_writer));
    let down = tokio::spawn(send(far_writer));
    let mut ends = [Receiver::new(near_reader), Receiver::new(far_reader)];
    until_stalled(&mut ends, &flow.bytes).await;
    assert!(flow.bytes.total() < BULK_BYTES as u64, "{:?}", flow.bytes);
    // One end reads late, and little at a time.
    let [near, far] = ends;
    far.rest(64 << 10).await;
    near.rest(3000).await;
    up.await.unwrap().unwrap();
    down.await.unwrap().unwrap();
    let end = within(flow.copy).await.unwrap();
    let all = BULK_BYTES as u64;
    assert_eq!((end.up_bytes, end.down_bytes, end.stop), (all, all, None));
    assert_eq!(in_use(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_close_after_bulk_leaves_the_other_direction_open() {
    let _alone = alone().await;
    let mut stalled = Stalled::start(CopyLimits::default()).await;
    let [far] = stalled.far;
    far.rest(64 << 10).await;
    within(stalled.up).await.unwrap().unwrap();
    stalled.far_writer.write_all(b"answer").await.unwrap();
    stalled.far_writer.shutdown().await.unwrap();
    let mut answer = String::new();
    let read = stalled.near_reader.read_to_string(&mut answer);
    within(read).await.unwrap();
    assert_eq!(answer, "answer");
    assert_eq!(within(stalled.copy).await.unwrap().stop, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_resets_in_the_middle_of_bulk_resets_the_other_end() {
    let _alone = alone().await;
    let stalled = Stalled::start(CopyLimits::default()).await;
    let existing = POOL.lock().existing;
    // What was not read makes it a reset; dropped, the writer would end well before.
    stalled.far_writer.forget();
    drop(stalled.far);
    let end = within(stalled.copy).await.unwrap();
    assert_eq!(end.stop, Some(CopyStop::Far(PipeError::Reset)));
    let sent = within(stalled.up).await.unwrap();
    assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    // Its kernel pipe held bytes.
    assert_eq!((in_use(), POOL.lock().existing), (0, existing - 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_resets_after_bulk_resets_the_other_end() {
    let _alone = alone().await;
    let mut flow = Flow::start(CopyLimits::default()).await;
    let sent = noise().repeat(8);
    let mut read = vec![0; sent.len()];
    let both =
        async { tokio::try_join!(flow.near.write_all(&sent), flow.far.read_exact(&mut read)) };
    within(both).await.unwrap();
    reset(flow.near);
    let end = within(flow.copy).await.unwrap();
    assert_eq!(end.stop, Some(CopyStop::Near(PipeError::Reset)));
    let ended = within(flow.far.read(&mut read)).await;
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cancels_bulk_resets_both_ends() {
    let _alone = alone().await;
    let stalled = Stalled::start(CopyLimits::default()).await;
    stalled.copy.abort();
    let sent = within(stalled.up).await.unwrap();
    assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let [far] = stalled.far;
    assert_eq!(within(far.error()).await, io::ErrorKind::ConnectionReset);
    assert_eq!(in_use(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_for_bulk() {
    let _alone = alone().await;
    let idle = CopyLimits {
        idle: Some(Duration::from_millis(400)),
        ..CopyLimits::default()
    };
    let stalled = Stalled::start(idle).await;
    let end = within(stalled.copy).await.unwrap();
    assert_eq!(end.stop, Some(CopyStop::Idle));

    let max_time = CopyLimits {
        max_time: Some(Duration::from_secs(2)),
        ..CopyLimits::default()
    };
    let stalled = Stalled::start(max_time).await;
    let end = within(stalled.copy).await.unwrap();
    assert_eq!(end.stop, Some(CopyStop::MaxTime));
    assert_eq!(in_use(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bandwidth_holds_for_bulk() {
    let _alone = alone().await;
    let bandwidth = 200 << 20;
    let limits = CopyLimits {
        bandwidth_bytes_per_s: Some(bandwidth),
        ..CopyLimits::default()
    };
    let flow = Flow::start(limits).await;
    let start = Instant::now();
    let (_near_reader, near_writer) = flow.near.into_split();
    let (far_reader, _far_writer) = flow.far.into_split();
    let up = tokio::spawn(send(near_writer));
    Receiver::new(far_reader).rest(64 << 10).await;
    up.await.unwrap().unwrap();
    let took = start.elapsed();
    let due = Duration::from_secs_f64(BULK_BYTES as f64 / bandwidth as f64);
    // What passes at once before the limit is felt.
    assert!(took + Duration::from_millis(51) >= due, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_idle_flows_hold_no_kernel_pipe() {
    const FLOWS: usize = 2000;
    let _alone = alone().await;
    raise_file_limit();
    let others = kernel_pipe_ends();
    let noise = noise();
    let mut read = vec![0; noise.len()];
    let mut flows = Vec::new();
    for _ in 0..FLOWS {
        let mut flow = Flow::start(CopyLimits::default()).await;
        let both =
            async { tokio::try_join!(flow.near.write_all(&noise), flow.far.read_exact(&mut read)) };
        within(both).await.unwrap();
        flows.push(flow);
    }
    until("all kernel pipes are empty", || in_use() == 0).await;
    let idle = kernel_pipe_ends();
    assert!(idle <= others + 2 * MAX_KEPT, "{idle}, {others} before");
    for flow in flows {
        drop((flow.near, flow.far));
        within(flow.copy).await.unwrap();
    }
}

#[test]
fn the_pool_makes_and_keeps_no_more_than_it_may() {
    static SMALL: Pool = Pool::new(3, 1);
    let counts = || {
        let pipes = SMALL.lock();
        (pipes.existing, pipes.kept.len())
    };
    let (first, second) = (SMALL.take().unwrap(), SMALL.take().unwrap());
    let mut third = SMALL.take().unwrap();
    assert!(SMALL.take().is_none());
    third.bytes = 1;
    drop(third);
    assert_eq!(counts(), (2, 0), "one with bytes in it is closed");
    drop(first);
    drop(second);
    assert_eq!(counts(), (1, 1));
    let _kept = SMALL.take().unwrap();
    assert_eq!(counts(), (1, 0));
}

#[tokio::test]
async fn a_receiver_that_takes_nothing_keeps_no_kernel_pipe() {
    let _alone = alone().await;
    let limits = CopyLimits {
        stall: Duration::from_millis(300),
        ..CopyLimits::default()
    };
    let Stalled {
        near_reader: _near_reader,
        up,
        far: [far],
        far_writer,
        copy,
    } = Stalled::start(limits).await;
    until("the kernel pipe to be free", || in_use() == 0).await;
    assert!(PARKED_BYTES.load(Relaxed) > 0);
    // What was parked comes before the rest.
    far.rest(64 << 10).await;
    drop(far_writer);
    within(up).await.unwrap().unwrap();
    assert_eq!(within(copy).await.unwrap().stop, None);
    assert_eq!(PARKED_BYTES.load(Relaxed), 0);
}

#[tokio::test]
async fn little_at_once_is_no_piece() {
    let (mut near, inner) = connection().await;
    let (inner, _writer) = inner.into_split();
    let mut reader = TcpReader::new(inner);
    near.write_all(b"hello").await.unwrap();
    assert_eq!(reader.read_chunk().await.unwrap().unwrap(), "hello");
    near.write_all(b"again").await.unwrap();
    assert!(within(reader.read_piece()).await.unwrap().is_none());
    assert_eq!(reader.read_chunk().await.unwrap().unwrap(), "again");
}

/// A timer is no socket, and splice(2) refuses it as it would a socket that cannot.
#[tokio::test]
async fn what_cannot_be_spliced_is_told_from_what_broke() {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK).unwrap();
    let soon = Itimerspec {
        it_interval: Timespec::default(),
        it_value: Timespec {
            tv_sec: 0,
            tv_nsec: 1,
        },
    };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &soon).unwrap();
    let (_near, inner) = connection().await;
    assert!(!is_unable(&Piece::fill(&inner).unwrap_err()), "it is empty");
    let timer = TcpStream::from_std(std::net::TcpStream::from(timer)).unwrap();
    assert!(is_unable(&Piece::fill(&timer).unwrap_err()));
}

impl Flow {
    async fn start(limits: CopyLimits) -> Self {
        let (near, near_inner) = connection().await;
        let (far, far_inner) = connection().await;
        let bytes = Arc::new(FlowBytes::default());
        let copied = Arc::clone(&bytes);
        let copy = tokio::spawn(async move {
            let (near, far) = (Pipe::tcp(near_inner), Pipe::tcp(far_inner));
            copy(near, far, &limits, &copied).await
        });
        Self {
            near,
            far,
            bytes,
            copy,
        }
    }
}

impl Stalled {
    async fn start(limits: CopyLimits) -> Self {
        let flow = Flow::start(limits).await;
        let (near_reader, near_writer) = flow.near.into_split();
        let (far_reader, far_writer) = flow.far.into_split();
        let up = tokio::spawn(send(near_writer));
        let mut far = [Receiver::new(far_reader)];
        until_stalled(&mut far, &flow.bytes).await;
        Self {
            near_reader,
            up,
            far,
            far_writer,
            copy: flow.copy,
        }
    }
}

impl Receiver {
    fn new(reader: OwnedReadHalf) -> Self {
        Self {
            reader,
            noise: noise(),
            received: 0,
        }
    }

    /// Reads all that comes, up to `at_once` bytes at a time, and the end.
    async fn rest(mut self, at_once: usize) {
        let mut buffer = vec![0; at_once];
        loop {
            let len = within(self.reader.read(&mut buffer)).await.unwrap();
            if len == 0 {
                break;
            }
            self.check(&buffer[..len]);
        }
        assert_eq!(self.received, BULK_BYTES);
    }

    /// Reads all that comes before it breaks.
    async fn error(mut self) -> io::ErrorKind {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.reader.read(&mut buffer).await {
                Ok(0) => panic!("it ended as if all had come"),
                Ok(len) => self.check(&buffer[..len]),
                Err(error) => return error.kind(),
            }
        }
    }

    /// Reads a little of what has come.
    fn some(&mut self) {
        let mut buffer = vec![0; 256 << 10];
        if let Ok(len) = self.reader.try_read(&mut buffer) {
            self.check(&buffer[..len]);
        }
    }

    fn check(&mut self, bytes: &[u8]) {
        let at = self.received % self.noise.len();
        let (before_wrap, wrapped) = bytes.split_at(bytes.len().min(self.noise.len() - at));
        let is_same = before_wrap == &self.noise[at..at + before_wrap.len()]
            && wrapped == &self.noise[..wrapped.len()];
        assert!(is_same, "others than were sent, after {}", self.received);
        self.received += bytes.len();
    }
}

async fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().await
}

/// Kernel pipes in pieces.
fn in_use() -> usize {
    let pipes = POOL.lock();
    pipes.existing - pipes.kept.len()
}

/// Reads a little, until a piece for each end waits for more to be read and nothing moves.
async fn until_stalled(ends: &mut [Receiver], moved: &FlowBytes) {
    let (mut before, mut quiet_looks) = (0, 0);
    until("a piece waits for each reader", || {
        let is_quiet = moved.total() == before;
        before = moved.total();
        quiet_looks = if is_quiet { quiet_looks + 1 } else { 0 };
        let is_stalled = quiet_looks >= 10 && in_use() == ends.len();
        if quiet_looks >= 10 && !is_stalled {
            ends.iter_mut().for_each(Receiver::some);
        }
        is_stalled
    })
    .await;
}

fn reset(stream: TcpStream) {
    let linger = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    linger.unwrap();
    drop(stream);
}

/// Two ends of a connection; the second for the flow.
async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (outer, inner) = tokio::join!(TcpStream::connect(address), listener.accept());
    (outer.unwrap(), inner.unwrap().0)
}

/// Sends [`BULK_BYTES`] of noise, and the end.
async fn send(mut writer: OwnedWriteHalf) -> io::Result<()> {
    let noise = noise();
    let mut left = BULK_BYTES;
    while left > 0 {
        let part = &noise[..left.min(noise.len())];
        writer.write_all(part).await?;
        left -= part.len();
    }
    writer.shutdown().await
}

/// Bytes that a lost or moved page does not leave as they were: they repeat after a length that is
/// no multiple of any page's.
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    };
    (0..(512 << 10) + 13).map(|_| next()).collect()
}

/// Open ends of kernel pipes in this process, whoever opened them.
fn kernel_pipe_ends() -> usize {
    let files = fs::read_dir("/proc/self/fd").unwrap();
    let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    targets
        .filter(|target| target.to_string_lossy().starts_with("pipe:"))
        .count()
}

fn raise_file_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let mut looks = interval(Duration::from_millis(2));
    let poll = async {
        while !condition() {
            looks.tick().await;
        }
    };
    assert!(timeout(PATIENCE, poll).await.is_ok(), "in vain: {what}");
}

/// Fails instead of hanging.
async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("in time")
}
