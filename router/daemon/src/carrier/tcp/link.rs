//! A link over TCP: a connection for orders, and one for each flow that is open.
//!
//! Only one end begins flows on a connection, so that the two never begin at once. The called
//! asks the caller for connections on which it may begin; nobody has to reach the caller.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, timeout},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use wormholes_proto::tcp::{LinkToken, Order, Preface, Purpose};

use super::{
    Call, FIRST_PLACES, Lease,
    orders::keep,
    socket::{Look, TlsSocket},
};
use crate::carrier::{CloseCode, KNOWN_STREAMS, LinkError, OpenStream};

/// Connections that wait for their next flow, for each end that begins. Overflow rule: where flows
/// begin, the one that waits longest is closed; at the other end, the newcomer.
const MAX_IDLE: usize = 256;
/// A connection without a flow is closed after so long, before a NAT on the way forgets it.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// The other end, which does not close first, gives up after so long.
const LONGEST_IDLE: Duration = Duration::from_secs(180);
/// Connections that are made at once, for each end that begins. Overflow rule: the next one waits;
/// the called asks again.
const MAX_DIALS: usize = 64;
/// The called asks again after so long.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The called counts some that the caller has closed already.
const SLACK: usize = MAX_DIALS;
/// Flows that began and wait to be served. Overflow rule: the next one waits where it came.
const MAX_BEGUN: usize = 256;
/// Orders that wait to be sent. Overflow rule: whoever gives one waits.
const MAX_ORDERS: usize = 64;

/// A link; dropping it closes it.
#[derive(Debug)]
pub(crate) struct TcpLink {
    shared: Arc<Shared>,
    begun: tokio::sync::Mutex<mpsc::Receiver<Arc<Connection>>>,
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
    connections: Mutex<Connections>,
    next_id: AtomicU64,
    /// Overflow rule: the caller waits, the called refuses.
    places: AtomicUsize,
    /// Connections that wait for the other end to begin a flow.
    resting: AtomicUsize,
    begun: mpsc::Sender<Arc<Connection>>,
    /// Whether somebody serves the flows that the other end begins.
    is_served: AtomicBool,
    orders: mpsc::Sender<Order>,
    /// For forward connections that are being made.
    dials: Semaphore,
    /// For backward ones.
    wanted: Arc<Semaphore>,
    pub(super) made: Instant,
    pub(super) rtt_us: AtomicU64,
    /// How often something came on the connection for orders.
    pub(super) arrived: AtomicU64,
    /// How many pings came back.
    pub(super) pongs: AtomicU64,
    /// As which this end wants it closed.
    pub(super) leave: OnceLock<CloseCode>,
    leaving: CancellationToken,
    why: OnceLock<LinkError>,
    closed: CancellationToken,
    runtime: Handle,
}

#[derive(Debug, Default)]
struct Connections {
    by_id: HashMap<u64, Weak<Connection>>,
    /// That are being made.
    promised: usize,
    /// On which the other end begins.
    begun_there: usize,
}

/// A connection of a link for flows.
#[derive(Debug)]
pub(super) struct Connection {
    socket: TlsSocket,
    begins_here: bool,
    id: u64,
    link: Weak<Shared>,
}

/// A place for a connection that is being made.
#[derive(Debug)]
struct Promise<'a>(&'a Shared);

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
            places: AtomicUsize::new(FIRST_PLACES),
            resting: AtomicUsize::new(0),
            begun: begun_sender,
            is_served: AtomicBool::new(false),
            orders,
            dials: Semaphore::new(MAX_DIALS),
            wanted: Arc::new(Semaphore::new(MAX_DIALS)),
            made: Instant::now(),
            arrived: AtomicU64::new(0),
            pongs: AtomicU64::new(0),
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

    /// How often anything came.
    pub(crate) fn arrived(&self) -> u64 {
        self.shared.arrived.load(Relaxed)
    }

    /// How often the other end answered a ping.
    pub(crate) fn pongs(&self) -> u64 {
        self.shared.pongs.load(Relaxed)
    }

    /// Asks the other end for a sign of life.
    pub(crate) fn ping(&self) {
        // Where no order finds room none is sent, and none comes back.
        let _ = self.shared.orders.try_send(self.shared.ping());
    }

    /// How many connections the called takes; the caller has no say.
    pub(crate) fn set_places(&self, places: usize) {
        if !self.shared.can_call() {
            self.shared.set_places(places);
            // Nothing else was ordered yet; what is lost only makes the caller wait.
            let _ = self.shared.orders.try_send(Order::Places(places as u64));
        }
    }

    /// A connection for a flow that begins here: one that waits, else a new one.
    ///
    /// # Errors
    /// [`LinkError`] when the link is gone.
    pub(crate) async fn open(self: &Arc<Self>, open: OpenStream) -> Result<Lease, LinkError> {
        let connection = tokio::select! {
            biased;
            () = self.shared.left() => return Err(self.shared.why()),
            connection = self.shared.free_connection() => connection?,
        };
        Ok(Lease::new(connection, Arc::clone(self), open))
    }

    /// The next flow that the other end began. Cancel-safe.
    ///
    /// # Errors
    /// [`LinkError`] when the link is gone.
    pub(crate) async fn accept(
        self: &Arc<Self>,
        open: impl FnOnce() -> OpenStream,
    ) -> Result<Lease, LinkError> {
        self.shared.is_served.store(true, Relaxed);
        let next = async { self.begun.lock().await.recv().await };
        tokio::select! {
            biased;
            () = self.shared.left() => Err(self.shared.why()),
            begun = next => match begun {
                Some(connection) => Ok(Lease::new(connection, Arc::clone(self), open())),
                None => Err(self.shared.why()),
            },
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.shared.leaving.is_cancelled()
    }

    /// Waits until it is closed, and says why.
    pub(crate) async fn closed(&self) -> LinkError {
        self.shared.left().await;
        self.shared.why()
    }

    pub(crate) fn close(&self, code: CloseCode) {
        let _ = self.shared.leave.set(code);
        self.shared.leaving.cancel();
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        self.close(CloseCode::Done);
    }
}

impl Shared {
    /// Takes in a connection that the caller made for flows.
    ///
    /// # Errors
    /// [`LinkError`] when there are too many, or the link is gone.
    pub(super) fn take_in(
        self: &Arc<Self>,
        socket: TlsSocket,
        begins_here: bool,
    ) -> Result<Arc<Connection>, LinkError> {
        let mut connections = lock(&self.connections);
        let places = self.places.load(Relaxed).saturating_add(SLACK);
        if !self.can_call() && connections.by_id.len() >= places {
            return Err(LinkError::Lost("too many connections".to_owned()));
        }
        let id = self.next_id.fetch_add(1, Relaxed);
        let connection = Arc::new(Connection {
            socket,
            begins_here,
            id,
            link: Arc::downgrade(self),
        });
        connections.by_id.insert(id, Arc::downgrade(&connection));
        connections.begun_there += usize::from(!begins_here);
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
        if !connection.begins_here {
            return self.spawn(wait_for_flow(Arc::clone(self), connection));
        }
        let mut idle = lock(&self.idle);
        let oldest = (idle.len() >= MAX_IDLE).then(|| idle.remove(0));
        idle.push((Instant::now(), connection));
        drop(idle);
        drop(oldest);
        self.freed.notify_one();
    }

    async fn free_connection(self: &Arc<Self>) -> Result<Arc<Connection>, LinkError> {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            if let Some(connection) = self.take_idle() {
                return Ok(connection);
            }
            if self.can_call() {
                if let Some(_promise) = self.promise() {
                    // Boxed: whoever opens a stream needs no room for a handshake, which is rare.
                    return Box::pin(self.add(Purpose::Forward)).await;
                }
            } else {
                // Many may be waiting to be sent: then one of them does for this too.
                let _ = self.orders.try_send(Order::Want(1));
            }
            let _ = timeout(ASK_AGAIN, freed).await;
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
    pub(super) fn order(&self, order: Order) -> bool {
        self.orders.try_send(order).is_ok()
    }

    #[cfg(test)]
    pub(super) fn connections(&self) -> usize {
        lock(&self.connections).by_id.len()
    }

    /// Whether connections are made from here.
    pub(super) fn can_call(&self) -> bool {
        self.call.is_some()
    }

    fn promise(&self) -> Option<Promise<'_>> {
        let mut connections = lock(&self.connections);
        let taken = connections.by_id.len() + connections.promised;
        (taken < self.places.load(Relaxed)).then(|| {
            connections.promised += 1;
            Promise(self)
        })
    }

    /// Where flows of the other end are served, for as many as a peer may have open.
    pub(super) fn place_for_the_called(&self) -> Option<OwnedSemaphorePermit> {
        let is_served = self.is_served.load(Relaxed);
        let begun_there = lock(&self.connections).begun_there;
        if !is_served || begun_there >= KNOWN_STREAMS as usize {
            return None;
        }
        Arc::clone(&self.wanted).try_acquire_owned().ok()
    }

    /// Makes one more connection.
    pub(super) async fn add(
        self: &Arc<Self>,
        purpose: Purpose,
    ) -> Result<Arc<Connection>, LinkError> {
        let gone = || LinkError::Lost("nobody to call".to_owned());
        let call = self.call.as_ref().ok_or_else(gone)?;
        let begins_here = purpose == Purpose::Forward;
        let _turn = match begins_here {
            true => Some(self.dials.acquire().await.map_err(|_| gone())?),
            false => None,
        };
        let preface = Preface {
            purpose,
            link: self.token,
        };
        self.take_in(call.connect(preface).await?, begins_here)
    }

    pub(super) fn set_places(&self, places: usize) {
        self.places.store(places, Relaxed);
        self.freed.notify_waiters();
    }

    /// Ends when this end wants the link closed, or it is.
    pub(super) fn left(&self) -> WaitForCancellationFuture<'_> {
        self.leaving.cancelled()
    }

    /// The end: nothing is sent or read on any connection any more.
    pub(super) fn end(&self, why: LinkError) {
        let _ = self.why.set(why);
        self.closed.cancel();
        self.leaving.cancel();
        let idle = std::mem::take(&mut *lock(&self.idle));
        drop(idle);
        // Whoever drops one needs the lock.
        let all: Vec<_> = {
            let connections = lock(&self.connections);
            let all = connections.by_id.values();
            all.filter_map(Weak::upgrade).collect()
        };
        for connection in all {
            connection.socket.shut();
        }
    }

    fn why(&self) -> LinkError {
        let here = || LinkError::Lost("closed here".to_owned());
        self.why.get().cloned().unwrap_or_else(here)
    }

    /// Tells the time, which comes back.
    pub(super) fn ping(&self) -> Order {
        Order::Ping(micros(self.made.elapsed()))
    }

    pub(super) fn forget_idle(&self) {
        let mut idle = lock(&self.idle);
        let old = idle.partition_point(|(since, _)| since.elapsed() >= IDLE_LIMIT);
        let old: Vec<_> = idle.drain(..old).collect();
        drop(idle);
        drop(old);
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }
}

impl Connection {
    pub(super) fn socket(&self) -> &TlsSocket {
        &self.socket
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(link) = self.link.upgrade() {
            let mut connections = lock(&link.connections);
            connections.by_id.remove(&self.id);
            connections.begun_there -= usize::from(!self.begins_here);
            drop(connections);
            link.freed.notify_one();
        }
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        lock(&self.0.connections).promised -= 1;
        self.0.freed.notify_one();
    }
}

/// Waits for the first bytes of the next flow. Whoever begins closes what it does not need.
async fn wait_for_flow(shared: Arc<Shared>, connection: Arc<Connection>) {
    if shared.resting.fetch_add(1, Relaxed) < MAX_IDLE {
        let first = timeout(LONGEST_IDLE, connection.socket.read()).await;
        shared.resting.fetch_sub(1, Relaxed);
        if let Ok(Ok(Some(first))) = first {
            connection.socket.unread(&first);
            let _ = shared.begun.send(connection).await;
        }
    } else {
        shared.resting.fetch_sub(1, Relaxed);
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
