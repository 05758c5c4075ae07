//! What a principal has going with others than plugins: connections, and HTTP requests that it made.
//!
//! ```text
//! an event is durable -> what it asked for -> a task for each connection, and for each request
//!                     -> a flow that the rules chose -> what comes -> the principal's post
//! ```
//! A connection lives as long as its principal has its [`Line`]: nothing of it outlives what the
//! principal remembers. What waits for the principal is bounded by the credit that it gave, what waits
//! for the other end by the room that it was told of.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::timeout,
};

use crate::{
    HttpResponse,
    clock::now_ms,
    event::{ErrorCode, Refusal},
    network::{Datagram, FetchCall, Network, Pipe, SocketCall, SocketKind},
    principal::{Reports, Task},
};

/// What one event brings of a connection.
const MAX_READ_BYTES: usize = 16 << 10;
/// Pieces of a connection that wait for the plugin, whatever credit it gave: each has a price beside its
/// bytes. Overflow: nothing more is read.
const MAX_PIECES: usize = 64;
/// What a write takes of the room at least, for the same reason.
const MIN_WRITE_BYTES: u32 = 64;
/// How long a connection that is closed, here or there, may take to send what was written.
const LINGER: Duration = Duration::from_secs(10);
/// The longest that a request may take.
const MAX_PATIENCE: Duration = Duration::from_secs(600);
/// Requests of one instance that are on their way at once, or whose answers wait, each with up to 2 MiB of
/// bodies. The others wait for their turn, as long as their deadlines let them.
pub(crate) const MAX_FETCHES: usize = 32;

/// What an event asked for.
#[derive(Debug)]
pub(crate) enum WireOrder {
    /// A connection.
    Connect { id: u64, call: SocketCall },
    /// So many more bytes may come.
    Credit { id: u64, bytes: u32 },
    /// Something is to be sent.
    Write { id: u64, data: Bytes },
    /// It is closed when all that was written is sent.
    Close { id: u64 },
    /// A request.
    Fetch {
        id: u64,
        call: Box<FetchCall>,
        deadline_ms: u64,
    },
    /// A datagram.
    Datagram(Datagram),
}

/// What becomes of a connection.
#[derive(Debug, Clone)]
pub(crate) enum SocketNews {
    /// It stands.
    Connected,
    /// Somebody connected to a port of the plugin.
    Opened { port: u16, remote: IpAddr },
    /// What came.
    Data(Bytes),
    /// So many bytes were sent: there is room for them again. No event by itself.
    Sent(u32),
    /// There is so much room.
    Writable(u32),
    /// There is none any more.
    Closed(Closing),
}

/// Why a connection is none any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Closing {
    /// The other end is done.
    Ended,
    /// It did not open.
    Failed(Refusal),
    /// It broke.
    Broken,
    /// The node started anew, or forgot what was not durable; or the plugin was stopped.
    Restarted,
    /// A handler failed on a part of what came.
    Lost,
    /// Another version of the plugin may not connect there.
    Revoked,
}

/// Somebody who connected to a port of a plugin. Dropping it closes the connection.
pub(crate) struct Visitor {
    pub(crate) kind: SocketKind,
    pub(crate) port: u16,
    pub(crate) remote: IpAddr,
    pub(crate) pipe: Box<dyn Pipe>,
}

/// What came of a request, and its turn, which the next one has when that is handled.
pub(crate) type Fetched = (
    Result<Arc<HttpResponse>, Refusal>,
    Option<OwnedSemaphorePermit>,
);

/// The connections and the requests of one principal. Dropping it cuts them.
#[derive(Default)]
pub(crate) struct Wires {
    lines: BTreeMap<u64, Line>,
    /// The credit of those to others that the principal closed, as long as something is sent on them.
    /// Overflow: no other is opened.
    closing: Vec<Weak<Semaphore>>,
    fetches: BTreeMap<u64, oneshot::Receiver<Fetched>>,
}

/// The principal's end of a connection; dropping it cuts the connection.
struct Line {
    is_visitor: bool,
    /// Bounded by the room that the principal is told of.
    writes: mpsc::UnboundedSender<Write>,
    credit: Arc<Semaphore>,
    closing: watch::Sender<bool>,
    alive: oneshot::Sender<()>,
}

/// Something for the other end.
enum Write {
    Data(Bytes),
    /// Nothing more comes; the connection is whole until then.
    Close {
        _alive: oneshot::Sender<()>,
    },
}

/// The connection's own end of it.
struct Far {
    id: u64,
    writes: mpsc::UnboundedReceiver<Write>,
    credit: Arc<Semaphore>,
    closing: watch::Receiver<bool>,
    alive: oneshot::Receiver<()>,
}

/// Orders of one event, to be carried out when it is durable.
pub(crate) struct Ready {
    steps: Vec<Step>,
    reports: Reports,
    around: Option<Arc<dyn Network>>,
    fetches: Arc<Semaphore>,
    /// The host's: the store has no runtime.
    threads: Handle,
}

enum Step {
    Connect(SocketCall, Far),
    Credit(Arc<Semaphore>, u32),
    Write(mpsc::UnboundedSender<Write>, Bytes),
    Close(Line),
    Fetch {
        id: u64,
        call: Box<FetchCall>,
        deadline_ms: u64,
        told: oneshot::Sender<Fetched>,
    },
    Datagram(Datagram),
}

impl WireOrder {
    /// What the body of a request has.
    pub(crate) fn body_bytes(&self) -> u64 {
        match self {
            Self::Fetch { call, .. } => call.body.len() as u64,
            Self::Connect { .. }
            | Self::Credit { .. }
            | Self::Write { .. }
            | Self::Close { .. }
            | Self::Datagram(_) => 0,
        }
    }

    /// What it has leave the node in one go; who takes what is written to a connection says how fast that
    /// goes.
    pub(crate) fn leaving_bytes(&self) -> Option<usize> {
        match self {
            Self::Connect { .. } => Some(0),
            Self::Fetch { call, .. } => Some(call.body.len()),
            Self::Datagram(datagram) => Some(datagram.data.len()),
            Self::Credit { .. } | Self::Write { .. } | Self::Close { .. } => None,
        }
    }
}

impl Wires {
    /// Takes what an event asked for; it happens when it is carried out.
    pub(crate) fn prepare(
        &mut self,
        orders: Vec<WireOrder>,
        reports: Reports,
        around: Option<Arc<dyn Network>>,
        fetches: Arc<Semaphore>,
    ) -> Ready {
        let steps = orders.into_iter().filter_map(|order| self.step(order));
        Ready {
            steps: steps.collect(),
            reports,
            around,
            fetches,
            threads: Handle::current(),
        }
    }

    fn step(&mut self, order: WireOrder) -> Option<Step> {
        Some(match order {
            WireOrder::Connect { id, call } => {
                let (line, far) = line(id, false);
                self.lines.insert(id, line);
                Step::Connect(call, far)
            }
            WireOrder::Credit { id, bytes } => {
                Step::Credit(Arc::clone(&self.lines.get(&id)?.credit), bytes)
            }
            WireOrder::Write { id, data } => Step::Write(self.lines.get(&id)?.writes.clone(), data),
            WireOrder::Close { id } => {
                let line = self.lines.remove(&id)?;
                // The places of visitors are the door's.
                if !line.is_visitor {
                    self.closing.push(Arc::downgrade(&line.credit));
                }
                Step::Close(line)
            }
            WireOrder::Datagram(datagram) => Step::Datagram(datagram),
            WireOrder::Fetch {
                id,
                call,
                deadline_ms,
            } => {
                let (told, answer) = oneshot::channel();
                self.fetches.insert(id, answer);
                Step::Fetch {
                    id,
                    call,
                    deadline_ms,
                    told,
                }
            }
        })
    }

    /// What came of a request, which ends by this.
    pub(crate) fn fetched(&mut self, id: u64) -> Option<Fetched> {
        self.fetches.remove(&id)?.try_recv().ok()
    }

    /// Takes the connection of a visitor.
    pub(crate) fn take(&mut self, id: u64, pipe: Box<dyn Pipe>, reports: Reports) {
        let (line, far) = line(id, true);
        self.lines.insert(id, line);
        Handle::current().spawn(async move { move_on(pipe, far, &reports).await });
    }

    /// Connections to others that the principal closed, and on which something is still sent.
    pub(crate) fn closing(&mut self) -> usize {
        self.closing.retain(|line| line.strong_count() > 0);
        self.closing.len()
    }

    /// Cuts all connections, and gives up all requests. What was closed before goes on to its end, and
    /// counts until then.
    pub(crate) fn cut_all(&mut self) {
        self.lines.clear();
        self.fetches.clear();
    }

    /// Cuts a connection.
    pub(crate) fn cut(&mut self, id: u64) {
        self.lines.remove(&id);
    }
}

impl Ready {
    /// Carries them out, in their order.
    pub(crate) fn go(self) {
        let threads = self.threads;
        let Some(network) = self.around else {
            return;
        };
        for step in self.steps {
            let (network, reports) = (Arc::clone(&network), self.reports.clone());
            match step {
                Step::Connect(call, far) => {
                    threads.spawn(carry(network, call, far, reports));
                }
                Step::Credit(credit, bytes) => credit.add_permits(bytes as usize),
                // A connection that is gone has said so.
                Step::Write(writes, data) => drop(writes.send(Write::Data(data))),
                Step::Close(line) => line.close(),
                Step::Datagram(datagram) => network.send_datagram(datagram),
                Step::Fetch {
                    id,
                    call,
                    deadline_ms,
                    mut told,
                } => {
                    let fetches = Arc::clone(&self.fetches);
                    let fetch = fetch(network, call, fetches, deadline_ms);
                    threads.spawn(async move {
                        let fetched = tokio::select! {
                            fetched = fetch => fetched,
                            () = told.closed() => return,
                        };
                        if told.send(fetched).is_ok() {
                            reports.tell(Task::Fetched(id));
                        }
                    });
                }
            }
        }
    }
}

impl Line {
    fn close(self) {
        let close = Write::Close { _alive: self.alive };
        self.closing.send_replace(true);
        let _ = self.writes.send(close);
    }
}

/// The plugin closed it, and what was written could have been sent since.
async fn lingered(closing: &mut watch::Receiver<bool>) {
    let is_closing = closing.wait_for(|is| *is).await.is_ok();
    if !is_closing {
        // The plugin let go of it, and whoever carries it sees that.
        return std::future::pending().await;
    }
    tokio::time::sleep(LINGER).await;
}

fn line(id: u64, is_visitor: bool) -> (Line, Far) {
    let (writes, written) = mpsc::unbounded_channel();
    let (alive, lives) = oneshot::channel();
    let (credit, (closing, closes)) = (Arc::new(Semaphore::new(0)), watch::channel(false));
    let line = Line {
        is_visitor,
        writes,
        credit: Arc::clone(&credit),
        closing,
        alive,
    };
    let far = Far {
        id,
        writes: written,
        credit,
        closing: closes,
        alive: lives,
    };
    (line, far)
}

/// One connection to others, from its opening to its end.
async fn carry(network: Arc<dyn Network>, call: SocketCall, mut far: Far, reports: Reports) {
    let id = far.id;
    let opened = tokio::select! {
        opened = network.connect(call) => opened,
        _ = &mut far.alive => return,
        () = lingered(&mut far.closing) => return,
    };
    match opened {
        Ok(pipe) => {
            let news = SocketNews::Connected;
            reports.tell(Task::socket(id, news));
            move_on(pipe, far, &reports).await;
        }
        Err(refusal) => {
            let news = SocketNews::Closed(Closing::Failed(refusal));
            reports.tell(Task::socket(id, news));
        }
    }
}

/// One connection that stands, to its end.
async fn move_on(pipe: Box<dyn Pipe>, far: Far, reports: &Reports) {
    let Far {
        id,
        writes,
        credit,
        mut closing,
        mut alive,
    } = far;
    let tell = |news| reports.tell(Task::socket(id, news));
    let bring = |data, place| {
        let (news, place) = (SocketNews::Data(data), Some(place));
        reports.tell(Task::Socket { id, news, place });
    };
    let (reader, writer) = tokio::io::split(pipe);
    let mut writing = Box::pin(write(writer, writes, &tell));
    let end = tokio::select! {
        _ = &mut alive => return,
        () = lingered(&mut closing) => return,
        end = read(reader, &credit, bring) => end,
        end = &mut writing => end,
    };
    match end {
        // The plugin closed it.
        None => {}
        Some(closing) => {
            let has_ended = closing == Closing::Ended;
            tell(SocketNews::Closed(closing));
            if has_ended {
                // Until then the principal lets go of it.
                let _ = timeout(LINGER, writing).await;
            }
        }
    }
}

/// Reads what there is credit for.
async fn read(
    mut reader: ReadHalf<Box<dyn Pipe>>,
    credit: &Semaphore,
    bring: impl Fn(Bytes, OwnedSemaphorePermit),
) -> Option<Closing> {
    let pieces = Arc::new(Semaphore::new(MAX_PIECES));
    let mut buffer = vec![0; MAX_READ_BYTES];
    loop {
        // Nobody closes them.
        let place = Arc::clone(&pieces).acquire_owned().await.ok()?;
        let mut permits = credit.acquire().await.ok()?;
        let more = credit.available_permits().min(MAX_READ_BYTES - 1);
        let more = u32::try_from(more).unwrap_or_default();
        if let Ok(more) = credit.try_acquire_many(more) {
            permits.merge(more);
        }
        let part = buffer.get_mut(..permits.num_permits())?;
        let read = match reader.read(part).await {
            Ok(0) => return Some(Closing::Ended),
            Ok(read) => read,
            Err(_) => return Some(Closing::Broken),
        };
        if let Some(used) = permits.split(read) {
            used.forget();
        }
        // Of its own size: what waits has no more than what came.
        bring(Bytes::copy_from_slice(part.get(..read)?), place);
    }
}

/// Writes what it is handed; `None`: the plugin closed the connection, or let go of it.
async fn write(
    mut writer: WriteHalf<Box<dyn Pipe>>,
    mut writes: mpsc::UnboundedReceiver<Write>,
    tell: &impl Fn(SocketNews),
) -> Option<Closing> {
    while let Some(write) = writes.recv().await {
        match write {
            Write::Data(data) => {
                let written = async {
                    writer.write_all(&data).await?;
                    writer.flush().await
                };
                if written.await.is_err() {
                    return Some(Closing::Broken);
                }
                tell(SocketNews::Sent(taken_room(&data)));
            }
            Write::Close { .. } => {
                // Who left already needs no word.
                let _ = writer.shutdown().await;
                return None;
            }
        }
    }
    None
}

/// What a write takes of the room, until it is sent.
pub(crate) fn taken_room(data: &[u8]) -> u32 {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    length.max(MIN_WRITE_BYTES)
}

/// One request: at most once, and its answer in time.
async fn fetch(
    network: Arc<dyn Network>,
    call: Box<FetchCall>,
    turns: Arc<Semaphore>,
    deadline_ms: u64,
) -> Fetched {
    let left = Duration::from_millis(deadline_ms.saturating_sub(now_ms())).min(MAX_PATIENCE);
    let begun = Instant::now();
    let late = || Refusal::new(ErrorCode::Expired, "no answer came in time");
    // Nobody closes it.
    let turn = timeout(left, turns.acquire_owned()).await;
    let Some(turn) = turn.ok().and_then(Result::ok) else {
        return (Err(late()), None);
    };
    let left = left.saturating_sub(begun.elapsed());
    let answer = timeout(left, network.fetch(*call)).await;
    let answer = answer.unwrap_or_else(|_| Err(late()));
    (answer.map(Arc::new), Some(turn))
}

impl fmt::Debug for Visitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Visitor").field(&self.port).finish()
    }
}

impl fmt::Debug for Wires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.lines.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn pieces_of_a_connection_that_wait_are_bounded_whatever_their_size() {
        let (near, mut far) = tokio::io::duplex(1);
        let (reader, _writer) = tokio::io::split(Box::new(near) as Box<dyn Pipe>);
        let credit = Semaphore::new(1 << 20);
        let (bring, mut brought) = mpsc::unbounded_channel();
        let bring = |data: Bytes, place| drop(bring.send((data, place)));
        let mut reading = Box::pin(read(reader, &credit, bring));
        let sent = [b'x'; 2 * MAX_PIECES];
        let mut sending = Box::pin(far.write_all(&sent));
        let mut moved = async |all: usize| {
            for _ in 0..all {
                assert!((&mut reading).now_or_never().is_none());
                assert!((&mut sending).now_or_never().is_none());
                tokio::task::yield_now().await;
            }
        };
        moved(2 * MAX_PIECES).await;
        assert_eq!(brought.len(), MAX_PIECES);
        let (first, _) = brought.recv().await.unwrap();
        assert_eq!(first, "x");
        moved(2).await;
        assert_eq!(brought.len(), MAX_PIECES, "one more came");
    }

    #[test]
    fn a_connection_that_is_closed_is_counted_until_all_is_sent() {
        let mut wires = Wires::default();
        let (near, far) = line(7, false);
        wires.lines.insert(7, near);
        let step = wires.step(WireOrder::Close { id: 7 });
        assert_eq!(wires.closing(), 1);
        drop(step);
        assert_eq!(wires.closing(), 1, "its far end still sends");
        drop(far);
        assert_eq!(wires.closing(), 0);
    }

    #[test]
    fn the_smallest_write_takes_room_for_what_it_costs() {
        assert_eq!(taken_room(b"x"), MIN_WRITE_BYTES);
        assert_eq!(taken_room(&[0; 1000]), 1000);
    }
}
