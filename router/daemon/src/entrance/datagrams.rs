//! Datagrams of programs: each pair of a program's address and a target is a flow of its own, and
//! one socket hears and speaks for all of them.
//!
//! ```text
//! socket -> who sent it, where it goes -> the pair's queue (bounded) -> flow::run
//! ```
//! The scripts decide about each pair by itself. What a pair sends while its tunnel opens waits;
//! after a refusal it is dropped for a second without asking again.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use tokio::{net::UdpSocket, time::Instant};
use tokio_util::task::TaskTracker;
use wormholes_proto::{Target, Transport, decode_socks_datagram, encode_socks_datagram_head};

use super::{ACCEPT_PAUSE, Door};
use crate::{
    counters::DroppedDatagrams,
    flow::{self, Ends, LocalEnd, Login},
    node::NodeCore,
    pipe::{ProgramEnd, Queue, enlarge_buffer},
};

/// No datagram is longer.
const BUFFER_BYTES: usize = 1 << 16;
/// How long a refusal holds: a program that goes on sending costs one decision a second.
const REFUSAL_HOLDS: Duration = Duration::from_secs(1);
/// A node that stops takes a flow that was silent for so long for done: nothing else says so.
const QUIET_AT_STOP: Duration = Duration::from_secs(1);

/// What a datagram says beside its data.
#[derive(Debug)]
pub(super) enum Framing {
    /// Nothing: all go to one target.
    Forward(Target),
    /// A SOCKS5 head; of one client only.
    Socks(Client),
}

/// Who may use an association.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) ip: IpAddr,
    /// None: the first good datagram says.
    pub(super) port: Option<u16>,
}

/// A socket with its flows.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) door: Arc<Door>,
    pub(super) core: Arc<NodeCore>,
    pub(super) socket: Arc<UdpSocket>,
    /// Where the socket is.
    pub(super) address: SocketAddr,
    pub(super) login: Option<Login>,
    /// Flows at once. Overflow: the one whose program has been silent for longest ends.
    pub(super) max_flows: usize,
}

/// The flows of a desk.
#[derive(Debug, Default)]
struct Seats {
    by_pair: Mutex<HashMap<Pair, Seat>>,
    tasks: TaskTracker,
}

/// A program's address and where it sends to.
type Pair = (SocketAddr, Target);

#[derive(Debug)]
struct Seat {
    queue: Arc<Queue>,
    /// When the program last sent.
    heard: Instant,
}

impl Desk {
    /// Takes datagrams until `done`, or until the node stops and no flow is left.
    pub(super) async fn run(self, mut framing: Framing, done: impl Future<Output = ()>) {
        let seats = Arc::<Seats>::default();
        enlarge_buffer(&self.socket);
        tokio::select! {
            () = self.take(&mut framing, &seats) => {}
            () = seats.emptied(&self.core) => {}
            () = self.core.kill.cancelled() => {}
            () = done => {}
        }
        seats.end(Duration::ZERO);
        seats.tasks.close();
        seats.tasks.wait().await;
    }

    async fn take(&self, framing: &mut Framing, seats: &Arc<Seats>) {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match self.socket.recv_from(&mut buffer).await {
                Ok((len, from)) => {
                    let datagram = buffer.get(..len).unwrap_or_default();
                    self.handle(framing, seats, from, datagram);
                }
                Err(error) => {
                    // Out of memory: what is sent makes room.
                    tracing::warn!(%error, "an entrance cannot take a datagram");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn handle(&self, framing: &mut Framing, seats: &Arc<Seats>, from: SocketAddr, bytes: &[u8]) {
        let dropped = &self.core.network.counters().dropped;
        let Some((target, data)) = framing.read(from, bytes, dropped) else {
            return;
        };
        let data = Bytes::copy_from_slice(data);
        let pair = (from, target);
        if let Some(queue) = seats.heard(&pair) {
            return queue.push(data);
        }
        if self.core.stop.is_cancelled() {
            dropped.closed.fetch_add(1, Relaxed);
            return;
        }
        let queue = Queue::new(&self.core.datagram_room, self.core.network.counters());
        queue.push(data);
        seats.seat(pair.clone(), Arc::clone(&queue), self.max_flows);
        let end = ProgramEnd {
            queue,
            socket: Arc::clone(&self.socket),
            program: from,
            head: framing.head(&pair.1),
        };
        self.begin(seats, pair, end);
    }

    /// Runs the flow of `pair`.
    fn begin(&self, seats: &Arc<Seats>, pair: Pair, end: ProgramEnd) {
        let ends = Ends {
            theirs: pair.0,
            ours: self.address,
        };
        let asked = flow::Asked {
            transport: Transport::Udp,
            ..self.door.asked(ends, pair.1.clone(), self.login.clone())
        };
        let (core, seats_of_task) = (Arc::clone(&self.core), Arc::clone(seats));
        let queue = Arc::clone(&end.queue);
        seats.tasks.spawn(async move {
            flow::run(&core, asked, LocalEnd::Datagrams(end)).await;
            if queue.is_refused() {
                tokio::select! {
                    () = tokio::time::sleep(REFUSAL_HOLDS) => {}
                    () = queue.ended() => {}
                    () = core.stop.cancelled() => {}
                }
            }
            seats_of_task.leave(&pair, &queue);
        });
    }
}

impl Framing {
    /// Where a datagram goes, and its data; `None`, counted, when it may not or cannot go.
    fn read<'a>(
        &mut self,
        from: SocketAddr,
        bytes: &'a [u8],
        dropped: &DroppedDatagrams,
    ) -> Option<(Target, &'a [u8])> {
        match self {
            Self::Forward(target) => Some((target.clone(), bytes)),
            Self::Socks(client) => {
                if !client.is_at(from) {
                    dropped.foreign.fetch_add(1, Relaxed);
                    return None;
                }
                match decode_socks_datagram(bytes) {
                    Ok(read) => {
                        client.port = Some(from.port());
                        Some(read)
                    }
                    Err(error) => {
                        tracing::debug!(%error, "datagram of an association dropped");
                        dropped.malformed.fetch_add(1, Relaxed);
                        None
                    }
                }
            }
        }
    }

    /// What stands before each datagram that comes back from `target`: it is named as the program
    /// named it, since who found the address of a name is somebody else.
    fn head(&self, target: &Target) -> Bytes {
        match self {
            Self::Forward(_) => Bytes::new(),
            Self::Socks(_) => encode_socks_datagram_head(target).into(),
        }
    }
}

impl Client {
    fn is_at(&self, from: SocketAddr) -> bool {
        let same_port = self.port.is_none_or(|port| port == from.port());
        from.ip().to_canonical() == self.ip.to_canonical() && same_port
    }
}

impl Seats {
    /// The queue of a flow that lives; its program was heard just now.
    fn heard(&self, pair: &Pair) -> Option<Arc<Queue>> {
        let mut by_pair = self.lock();
        let seat = by_pair.get_mut(pair)?;
        seat.heard = Instant::now();
        Some(Arc::clone(&seat.queue))
    }

    fn seat(&self, pair: Pair, queue: Arc<Queue>, max_flows: usize) {
        let mut by_pair = self.lock();
        if by_pair.len() >= max_flows {
            let quietest = by_pair.iter().min_by_key(|(_, seat)| seat.heard);
            if let Some(pair) = quietest.map(|(pair, _)| pair.clone())
                && let Some(seat) = by_pair.remove(&pair)
            {
                seat.queue.end();
            }
        }
        let heard = Instant::now();
        by_pair.insert(pair, Seat { queue, heard });
    }

    /// The flow of `queue` is over. Its pair may have begun another.
    fn leave(&self, pair: &Pair, queue: &Arc<Queue>) {
        let mut by_pair = self.lock();
        if by_pair
            .get(pair)
            .is_some_and(|seat| Arc::ptr_eq(&seat.queue, queue))
        {
            by_pair.remove(pair);
        }
    }

    /// Ends the flows whose program has been silent for `quiet`.
    fn end(&self, quiet: Duration) {
        for seat in self.lock().values() {
            if seat.heard.elapsed() >= quiet {
                seat.queue.end();
            }
        }
    }

    /// Waits until the node stops, and the flows are over.
    async fn emptied(&self, core: &NodeCore) {
        core.stop.cancelled().await;
        self.tasks.close();
        loop {
            self.end(QUIET_AT_STOP);
            tokio::select! {
                () = self.tasks.wait() => return,
                () = tokio::time::sleep(QUIET_AT_STOP) => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Pair, Seat>> {
        self.by_pair.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
