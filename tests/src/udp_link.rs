//! A UDP link with a one-way delay and loss, for what the kernel's own emulation would do where
//! it is missing: datagrams to the link's address come out at the far address later, and back.
//!
//! Each sender gets a socket of its own towards the far end, as a NAT would give it.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{net::UdpSocket, sync::mpsc, task::JoinSet, time::Instant};

/// Datagrams under way in one direction; more are lost, as in a router's queue.
const QUEUE: usize = 4096;
/// Senders that the link knows at once; those after are not forwarded.
const MAX_SENDERS: usize = 256;
/// No datagram of a test is larger.
const MAX_DATAGRAM_BYTES: usize = 65_535;

/// What the link does to each datagram, in both directions.
#[derive(Debug, Clone, Copy, Default)]
pub struct Conditions {
    /// From one end to the other.
    pub delay: Duration,
    /// Share of datagrams that are lost, 0 to 1.
    pub loss: f64,
}

/// A running link; dropped, it is down.
#[derive(Debug)]
pub struct UdpLink {
    address: SocketAddr,
    far: Arc<OnceLock<SocketAddr>>,
    conditions: Arc<Mutex<Conditions>>,
    _tasks: JoinSet<()>,
}

struct Shared {
    near: Arc<UdpSocket>,
    far: Arc<OnceLock<SocketAddr>>,
    conditions: Arc<Mutex<Conditions>>,
    seed: u64,
}

impl UdpLink {
    /// Listens on a free port of `ip` and forwards to where [`Self::connect`] says; until then all
    /// is lost. `seed` makes the losses repeatable.
    ///
    /// # Errors
    /// When no socket can be bound.
    pub async fn start(ip: IpAddr, conditions: Conditions, seed: u64) -> io::Result<Self> {
        let near = Arc::new(UdpSocket::bind((ip, 0)).await?);
        let address = near.local_addr()?;
        let conditions = Arc::new(Mutex::new(conditions));
        let far = Arc::new(OnceLock::new());
        let shared = Shared {
            near,
            far: Arc::clone(&far),
            conditions: Arc::clone(&conditions),
            seed,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // A socket that fails takes the link down; the test sees that.
            forward(shared).await.ok();
        });
        Ok(Self {
            address,
            far,
            conditions,
            _tasks: tasks,
        })
    }

    /// Where senders reach the far end through the link.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says where the far end is; only the first word counts.
    pub fn connect(&self, far: SocketAddr) {
        self.far.get_or_init(|| far);
    }

    /// Changes what the link does from the next datagram on.
    pub fn set(&self, conditions: Conditions) {
        *self
            .conditions
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = conditions;
    }
}

async fn forward(shared: Shared) -> io::Result<()> {
    let mut senders: HashMap<SocketAddr, Queue> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    loop {
        let (len, from) = shared.near.recv_from(&mut buffer).await?;
        let Some(far) = shared.far.get().copied() else {
            continue;
        };
        if !senders.contains_key(&from) {
            if senders.len() >= MAX_SENDERS {
                continue;
            }
            let socket = Arc::new(UdpSocket::bind((shared.near.local_addr()?.ip(), 0)).await?);
            let up = Queue::start(&shared, &mut tasks, Arc::clone(&socket), far);
            let down = Queue::start(&shared, &mut tasks, Arc::clone(&shared.near), from);
            tasks.spawn(receive(socket, down));
            senders.insert(from, up);
        }
        if let (Some(queue), Some(bytes)) = (senders.get_mut(&from), buffer.get(..len)) {
            queue.push(bytes);
        }
    }
}

async fn receive(socket: Arc<UdpSocket>, mut down: Queue) {
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    // An error here is an ICMP "port unreachable" of a far end that is down; it may come back.
    loop {
        if let Ok((len, _)) = socket.recv_from(&mut buffer).await {
            down.push(buffer.get(..len).unwrap_or_default());
        }
    }
}

/// One direction for one sender.
struct Queue {
    sender: mpsc::Sender<(Instant, Vec<u8>)>,
    conditions: Arc<Mutex<Conditions>>,
    rng: StdRng,
}

impl Queue {
    fn start(
        shared: &Shared,
        tasks: &mut JoinSet<()>,
        socket: Arc<UdpSocket>,
        to: SocketAddr,
    ) -> Self {
        let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(QUEUE);
        tasks.spawn(async move {
            while let Some((due, bytes)) = receiver.recv().await {
                tokio::time::sleep_until(due).await;
                // What cannot be sent is lost, as on a wire.
                socket.send_to(&bytes, to).await.ok();
            }
        });
        let conditions = Arc::clone(&shared.conditions);
        Self {
            sender,
            conditions,
            rng: StdRng::seed_from_u64(shared.seed),
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        let conditions = *self
            .conditions
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.rng.random::<f64>() >= conditions.loss {
            // A full queue loses the datagram too.
            self.sender
                .try_send((Instant::now() + conditions.delay, bytes.to_vec()))
                .ok();
        }
    }
}
