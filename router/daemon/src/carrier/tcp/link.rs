//! A link over TCP: a connection for orders, and one for each flow that is open.
//!
//! Only one end begins flows on a connection, so that the two never begin at once. The called
//! asks the caller for connections on which it may begin; nobody has to reach the caller.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore, mpsc},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use wormholes_proto::tcp::{LinkToken, ORDER_BYTES, Order, Preface, Purpose};

use super::{
    Call, STRANGER_STREAMS,
    socket::{Look, TlsSocket},
};
use crate::carrier::{CloseCode, IDLE_TIMEOUT, KEEP_ALIVE, LinkError, OpenStream};

/// Connections that wait for their next flow, for each end that begins. Overflow rule: the one
/// that waits longest is closed.
const MAX_IDLE: usize = 256;
/// A connection without a flow is closed after so long, before a NAT on the way forgets it.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Connections that the called may have asked for at once. Overflow rule: it asks again.
const MAX_WANTED: usize = 64;
/// Flows that began and wait to be served. Overflow rule: the next one waits where it came.
const MAX_BEGUN: usize = 256;
/// Connections that a caller makes for one link at most, whatever the called says.
const MAX_PLACES: usize = 65_536;
/// Orders that wait to be sent. Overflow rule: whoever gives one waits.
const MAX_ORDERS: usize = 64;
/// Who does not take leave by then is left alone.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// A link; dropping it closes it.
#[derive(Debug)]
pub(crate) struct TcpLink {
    shared: Arc<Shared>,
    begun: tokio::sync::Mutex<mpsc::Receiver<Begun>>,
}

/// What the connections of a link share.
#[derive(Debug)]
pub(super) struct Shared {
    remote: SocketAddr,
    token: LinkToken,
    /// How to make connections; at the called, none.
    call: Option<Call>,
    /// Connections on which this end may begin a flow, the last used last.
    idle: Mutex<Vec<(Instant, Arc<Connection>)>>,
    /// A connection came to `idle`, or a place got free.
    freed: Notify,
    connections: Mutex<HashMap<u64, Weak<Connection>>>,
    next_id: AtomicU64,
    /// Overflow rule: the caller waits, the called refuses.
    max_connections: AtomicUsize,
    begun: mpsc::Sender<Begun>,
    orders: mpsc::Sender<Order>,
    /// For connections that are being made for the called.
    wanted: Semaphore,
    made: Instant,
    rtt_us: AtomicU64,
    /// As which this end wants it closed.
    leave: OnceLock<CloseCode>,
    leaving: CancellationToken,
    why: OnceLock<LinkError>,
    closed: CancellationToken,
    runtime: Handle,
}

/// A connection of a link for flows.
#[derive(Debug)]
pub(super) struct Connection {
    socket: TlsSocket,
    begins_here: bool,
    id: u64,
    link: Weak<Shared>,
}

/// A flow that the other end began.
type Begun = Arc<Connection>;

/// A connection while a flow is on it: after a good end it takes another one.
#[derive(Debug)]
pub(crate) struct Lease {
    connection: Arc<Connection>,
    link: Arc<TcpLink>,
    /// Directions that ended well: bits of [`IN`] and [`OUT`].
    ended: AtomicU8,
    _open: OpenStream,
}

/// The direction that comes in.
const IN: u8 = 1;
/// The direction that goes out.
const OUT: u8 = 2;

impl TcpLink {
    /// Makes a link of its first connection, to which `call` can add more. It ends with `stop`; its
    /// task, which comes with it, is for the caller to run.
    pub(super) fn new(
        control: TlsSocket,
        remote: SocketAddr,
        token: LinkToken,
        call: Option<Call>,
        stop: &CancellationToken,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send + use<>) {
        let (begun_sender, begun) = mpsc::channel(MAX_BEGUN);
        let (orders, given) = mpsc::channel(MAX_ORDERS);
        let shared = Arc::new(Shared {
            remote,
            token,
            rtt_us: AtomicU64::new(call.as_ref().map_or(0, |call| micros(call.rtt))),
            call,
            idle: Mutex::default(),
            freed: Notify::new(),
            connections: Mutex::default(),
            next_id: AtomicU64::new(0),
            max_connections: AtomicUsize::new(STRANGER_STREAMS as usize),
            begun: begun_sender,
            orders,
            wanted: Semaphore::new(MAX_WANTED),
            made: Instant::now(),
            leave: OnceLock::new(),
            leaving: stop.child_token(),
            why: OnceLock::new(),
            closed: CancellationToken::new(),
            runtime: Handle::current(),
        });
        let task = keep(Arc::clone(&shared), control, given);
        let begun = tokio::sync::Mutex::new(begun);
        (Arc::new(Self { shared, begun }), task)
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn remote_address(&self) -> SocketAddr {
        self.shared.remote
    }

    pub(crate) fn rtt(&self) -> Duration {
        Duration::from_micros(self.shared.rtt_us.load(Relaxed))
    }

    /// What the called takes is for the called to say.
    pub(crate) fn set_max_connections(&self, max: usize) {
        if self.shared.call.is_none() {
            self.shared.max_connections.store(max, Relaxed);
            // Nothing else was ordered yet; what is lost only makes the caller wait.
            let _ = self.shared.orders.try_send(Order::Places(max as u64));
        }
    }

    /// A connection for a flow that begins here: one that waits, else a new one.
    ///
    /// # Errors
    /// [`LinkError`] when the link is gone.
    pub(crate) async fn open(self: &Arc<Self>, open: OpenStream) -> Result<Lease, LinkError> {
        let connection = tokio::select! {
            biased;
            () = self.shared.leaving.cancelled() => return Err(self.shared.why()),
            connection = self.shared.free_connection() => connection?,
        };
        Ok(self.lease(connection, open))
    }

    /// The next flow that the other end began. Cancel-safe.
    ///
    /// # Errors
    /// [`LinkError`] when the link is gone.
    pub(crate) async fn accept(
        self: &Arc<Self>,
        open: impl FnOnce() -> OpenStream,
    ) -> Result<Lease, LinkError> {
        let next = async { self.begun.lock().await.recv().await };
        tokio::select! {
            biased;
            () = self.shared.leaving.cancelled() => Err(self.shared.why()),
            begun = next => match begun {
                Some(connection) => Ok(self.lease(connection, open())),
                None => Err(self.shared.why()),
            },
        }
    }

    fn lease(self: &Arc<Self>, connection: Arc<Connection>, open: OpenStream) -> Lease {
        Lease {
            connection,
            link: Arc::clone(self),
            ended: AtomicU8::new(0),
            _open: open,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.shared.leaving.is_cancelled()
    }

    /// Waits until it is closed, and says why.
    pub(crate) async fn closed(&self) -> LinkError {
        self.shared.leaving.cancelled().await;
        self.shared.why()
    }

    pub(crate) fn close(&self, code: CloseCode) {
        self.shared.leave(code);
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        self.close(CloseCode::Done);
    }
}

impl Shared {
    /// Takes in a connection that was made for flows.
    ///
    /// # Errors
    /// [`LinkError`] when there are too many, or the link is gone.
    pub(super) fn take_in(
        self: &Arc<Self>,
        socket: TlsSocket,
        begins_here: bool,
    ) -> Result<Arc<Connection>, LinkError> {
        let mut connections = lock(&self.connections);
        if connections.len() >= self.max_connections.load(Relaxed) {
            return Err(LinkError::Lost("too many connections".to_owned()));
        }
        let id = self.next_id.fetch_add(1, Relaxed);
        let connection = Arc::new(Connection {
            socket,
            begins_here,
            id,
            link: Arc::downgrade(self),
        });
        connections.insert(id, Arc::downgrade(&connection));
        drop(connections);
        // Else it could miss the end of all others.
        if self.closed.is_cancelled() {
            return Err(self.why());
        }
        Ok(connection)
    }

    /// Makes it wait for its next flow.
    pub(super) fn rest(self: &Arc<Self>, connection: Arc<Connection>) {
        if self.leaving.is_cancelled() {
            return;
        }
        if connection.begins_here {
            let mut idle = lock(&self.idle);
            if idle.len() >= MAX_IDLE {
                idle.remove(0);
            }
            idle.push((Instant::now(), connection));
            drop(idle);
            self.freed.notify_one();
        } else {
            self.runtime
                .spawn(wait_for_flow(Arc::clone(self), connection));
        }
    }

    async fn free_connection(self: &Arc<Self>) -> Result<Arc<Connection>, LinkError> {
        loop {
            let freed = self.freed.notified();
            if let Some(connection) = self.take_idle() {
                return Ok(connection);
            }
            match &self.call {
                Some(_) if self.has_place() => return self.add(Purpose::Forward).await,
                Some(_) => {}
                None => {
                    let _ = self.orders.send(Order::Want(1)).await;
                }
            }
            freed.await;
        }
    }

    /// The one that was used last and is still good.
    fn take_idle(&self) -> Option<Arc<Connection>> {
        loop {
            let (_, connection) = lock(&self.idle).pop()?;
            if matches!(connection.socket.look(), Ok(Look::Nothing)) {
                return Some(connection);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn connections(&self) -> usize {
        lock(&self.connections).len()
    }

    fn has_place(&self) -> bool {
        lock(&self.connections).len() < self.max_connections.load(Relaxed)
    }

    /// Makes one more connection.
    async fn add(self: &Arc<Self>, purpose: Purpose) -> Result<Arc<Connection>, LinkError> {
        let Some(call) = &self.call else {
            return Err(LinkError::Lost("nobody to call".to_owned()));
        };
        let preface = Preface {
            purpose,
            link: self.token,
        };
        let socket = call.connect(preface).await?;
        self.take_in(socket, purpose == Purpose::Forward)
    }

    fn leave(&self, code: CloseCode) {
        let _ = self.leave.set(code);
        self.leaving.cancel();
    }

    /// The end: nothing is sent or read on any connection any more.
    fn end(&self, why: LinkError) {
        let _ = self.why.set(why);
        self.closed.cancel();
        self.leaving.cancel();
        lock(&self.idle).clear();
        for connection in lock(&self.connections).values().filter_map(Weak::upgrade) {
            connection.socket.shut();
        }
    }

    fn why(&self) -> LinkError {
        let here = || LinkError::Lost("closed here".to_owned());
        self.why.get().cloned().unwrap_or_else(here)
    }

    fn forget_idle(&self) {
        let mut idle = lock(&self.idle);
        idle.retain(|(since, _)| since.elapsed() < IDLE_LIMIT);
    }

    fn measured(&self, rtt: Duration) {
        let (old, new) = (self.rtt_us.load(Relaxed), micros(rtt));
        // RFC 6298, section 2.
        let smooth = if old == 0 { new } else { (old * 7 + new) / 8 };
        self.rtt_us.store(smooth, Relaxed);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(link) = self.link.upgrade() {
            lock(&link.connections).remove(&self.id);
            link.freed.notify_one();
        }
    }
}

impl Lease {
    /// The connection.
    pub(crate) fn socket(&self) -> &TlsSocket {
        &self.connection.socket
    }

    /// The direction that comes in ended well.
    pub(crate) fn ended_in(&self) {
        self.ended.fetch_or(IN, Relaxed);
    }

    /// The direction that goes out ended well.
    pub(crate) fn ended_out(&self) {
        self.ended.fetch_or(OUT, Relaxed);
    }

    /// Whether the direction that comes in ended well.
    pub(crate) fn has_ended_in(&self) -> bool {
        self.ended.load(Relaxed) & IN != 0
    }
}

/// What did not end well shall not look as if it had: the connection goes with it.
impl Drop for Lease {
    fn drop(&mut self) {
        if *self.ended.get_mut() == IN | OUT {
            self.link.shared.rest(Arc::clone(&self.connection));
        } else {
            self.connection.socket.shut();
        }
    }
}

/// Waits for the first bytes of the next flow.
async fn wait_for_flow(shared: Arc<Shared>, connection: Arc<Connection>) {
    // Whoever begins closes what it does not need: a NAT's memory is none of this end's business.
    if let Ok(Some(first)) = connection.socket.read().await {
        connection.socket.unread(&first);
        let _ = shared.begun.send(connection).await;
    }
}

/// Gives and takes orders until the link ends.
async fn keep(shared: Arc<Shared>, control: TlsSocket, given: mpsc::Receiver<Order>) {
    let why = tokio::select! {
        why = converse(&shared, &control, given) => why,
        () = shared.leaving.cancelled() => {
            let code = shared.leave.get().copied().unwrap_or(CloseCode::Done);
            let leave = Order::Close(code as u64).encode();
            let _ = tokio::time::timeout(LEAVE_TIMEOUT, control.write(&leave, &mut [])).await;
            LinkError::Lost("closed here".to_owned())
        }
    };
    shared.end(why);
    control.shut();
}

async fn converse(
    shared: &Arc<Shared>,
    control: &TlsSocket,
    mut given: mpsc::Receiver<Order>,
) -> LinkError {
    let mut tick = tokio::time::interval(KEEP_ALIVE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut pending, mut heard) = (BytesMut::new(), Instant::now());
    loop {
        let said = tokio::select! {
            read = control.read() => match read {
                Ok(Some(bytes)) => {
                    heard = Instant::now();
                    pending.extend_from_slice(&bytes);
                    match obey(shared, &mut pending) {
                        Ok(said) => said,
                        Err(why) => return why,
                    }
                }
                Ok(None) => return LinkError::Lost("closed by the node".to_owned()),
                Err(error) => return LinkError::Lost(error.to_string()),
            },
            order = given.recv() => order.map(|order| order.encode().to_vec()).unwrap_or_default(),
            _ = tick.tick() => {
                if heard.elapsed() > IDLE_TIMEOUT {
                    return LinkError::Lost("timed out".to_owned());
                }
                shared.forget_idle();
                Order::Ping(micros(shared.made.elapsed())).encode().to_vec()
            }
        };
        match tokio::time::timeout(IDLE_TIMEOUT, control.write(&said, &mut [])).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return LinkError::Lost(error.to_string()),
            Err(_) => return LinkError::Lost("timed out".to_owned()),
        }
    }
}

/// Does what the whole orders in `pending` want; what is to be answered.
fn obey(shared: &Arc<Shared>, pending: &mut BytesMut) -> Result<Vec<u8>, LinkError> {
    let mut answer = Vec::new();
    while pending.len() >= ORDER_BYTES {
        let order = Order::decode(&pending.split_to(ORDER_BYTES));
        match order.map_err(|error| LinkError::Lost(error.to_string()))? {
            Order::Ping(number) => answer.extend_from_slice(&Order::Pong(number).encode()),
            Order::Pong(number) => {
                let now = micros(shared.made.elapsed());
                shared.measured(Duration::from_micros(now.saturating_sub(number)));
            }
            Order::Want(count) => {
                let free = shared.wanted.available_permits();
                for _ in 0..usize::try_from(count).unwrap_or(free).min(free) {
                    shared.runtime.spawn(add_for_the_called(Arc::clone(shared)));
                }
            }
            Order::Places(count) => {
                let max = usize::try_from(count).unwrap_or(usize::MAX).min(MAX_PLACES);
                shared.max_connections.store(max, Relaxed);
                shared.freed.notify_waiters();
            }
            Order::Close(code) => return Err(LinkError::closed_with(code)),
        }
    }
    Ok(answer)
}

async fn add_for_the_called(shared: Arc<Shared>) {
    let Ok(_place) = shared.wanted.try_acquire() else {
        return;
    };
    if !shared.has_place() {
        return;
    }
    let added = tokio::select! {
        added = shared.add(Purpose::Backward) => added,
        () = shared.leaving.cancelled() => return,
    };
    match added {
        Ok(connection) => shared.rest(connection),
        Err(error) => tracing::debug!(%error, "no connection for the called"),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
