//! A connection to a node, whichever carrier it is on.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use wormholes_proto::{CarrierKind, NodeId, is_placeholder};

use super::{
    CloseCode, CrossingPlace, KNOWN_STREAMS, LinkError, Standing,
    crossings::Crossings,
    datagrams::{self, Lanes},
    pulse::Pulse,
    quic,
    streams::Streams,
    tcp::TcpLink,
};
use crate::{counters::Counters, pipe::Pipe, records::Fetches};

/// A NAT that forgot what it gave this node shows within this.
const MIRRORED_FOR: Duration = Duration::from_secs(30);

/// A connection to a node. Clones share it; it lives until it is closed or falls silent.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    peer: NodeId,
    made: Instant,
    connection: Connection,
    /// What the other end last told of itself, 255 being full.
    load: Arc<AtomicU8>,
    /// Whether the other end ever answered anything.
    has_answered: Arc<AtomicBool>,
    /// Its standing: a stranger's until it is set, where the other end called.
    is_known: Arc<AtomicBool>,
    fetches: Fetches,
    /// From where the other end sees this one, as it last said, and when.
    mirrored: Arc<Mutex<Option<(SocketAddr, Instant)>>>,
    streams: Arc<Streams>,
    crossings: Arc<Crossings>,
    pulse: Arc<Pulse>,
    /// TCP has none.
    lanes: Option<Arc<Lanes>>,
}

/// What runs below a link.
#[derive(Debug, Clone)]
pub(super) enum Connection {
    Quic(quinn::Connection),
    Tcp(Arc<TcpLink>),
}

impl Connection {
    fn remote_address(&self) -> SocketAddr {
        match self {
            Self::Quic(quic) => quic.remote_address(),
            Self::Tcp(tcp) => tcp.remote_address(),
        }
    }
}

impl Link {
    pub(super) fn new(peer: NodeId, connection: Connection, counters: &Arc<Counters>) -> Self {
        let lanes = match &connection {
            Connection::Quic(quic) => Some(Lanes::new(quic.clone(), Arc::clone(counters))),
            Connection::Tcp(_) => None,
        };
        let pulse = match is_placeholder(&connection.remote_address()) {
            true => Pulse::through_tor(),
            false => Pulse::new(),
        };
        let is_known = matches!(&connection, Connection::Quic(quic) if quic.side().is_client());
        Self {
            peer,
            made: Instant::now(),
            connection,
            load: Arc::default(),
            has_answered: Arc::default(),
            is_known: Arc::new(AtomicBool::new(is_known)),
            fetches: Fetches::default(),
            mirrored: Arc::default(),
            streams: Streams::new(KNOWN_STREAMS, lanes.clone()),
            crossings: Arc::new(Crossings::new()),
            pulse: Arc::new(pulse),
            lanes,
        }
    }

    /// Who is at the other end.
    pub(crate) fn peer(&self) -> NodeId {
        self.peer
    }

    /// When it was made.
    pub(crate) fn made(&self) -> Instant {
        self.made
    }

    /// What carries it.
    pub(crate) fn carrier(&self) -> CarrierKind {
        match self.connection {
            Connection::Quic(_) => CarrierKind::Quic,
            Connection::Tcp(_) => CarrierKind::Tcp,
        }
    }

    #[cfg(test)]
    pub(super) fn lanes(&self) -> &Lanes {
        self.lanes.as_deref().expect("a link over QUIC")
    }

    #[cfg(test)]
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Where the other end is.
    pub(crate) fn remote_address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Whether Tor carries it, whichever end called.
    pub(crate) fn goes_through_tor(&self) -> bool {
        is_placeholder(&self.remote_address())
    }

    /// From where the other end sees this one, if it said so a moment ago.
    pub(crate) fn mirrored(&self) -> Option<SocketAddr> {
        let mirrored = *self.mirrored.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = mirrored.filter(|(_, when)| when.elapsed() < MIRRORED_FOR);
        fresh.map(|(seen, _)| seen)
    }

    /// Keeps what it said of that.
    pub(crate) fn set_mirrored(&self, seen: SocketAddr) {
        let mut mirrored = self.mirrored.lock().unwrap_or_else(PoisonError::into_inner);
        *mirrored = Some((seen, Instant::now()));
    }

    /// Forgets it: it was said before this machine moved.
    pub(crate) fn forget_mirrored(&self) {
        *self.mirrored.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Opens a stream. Waits while the other end allows no more, and for what carries it; who
    /// wants to know soon that there is none does it [`while_alive`](Self::while_alive).
    ///
    /// # Errors
    /// [`LinkError`] when the connection is gone, or silent.
    pub(crate) async fn open(&self) -> Result<Pipe, LinkError> {
        let open = async {
            match &self.connection {
                Connection::Quic(quic) => {
                    let (send, recv) = quic.open_bi().await.map_err(lost)?;
                    Ok(Pipe::quic(send, recv, self.streams.open()))
                }
                Connection::Tcp(tcp) => Ok(Pipe::framed(tcp.open(self.streams.open()).await?)),
            }
        };
        tokio::select! {
            // Where no stream is left nothing is sent, so that nothing would fail.
            () = self.silenced() => Err(LinkError::Silent),
            opened = open => opened,
        }
    }

    /// Takes the next stream that the other end opened; meanwhile datagrams go to their flows.
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`LinkError`] when the connection is gone.
    pub(crate) async fn accept(&self) -> Result<Pipe, LinkError> {
        match &self.connection {
            Connection::Quic(quic) => {
                let taken = tokio::select! {
                    taken = quic.accept_bi() => taken,
                    error = datagrams::deliver(self.lanes.as_deref()) => Err(error),
                };
                let (send, recv) = taken.map_err(lost)?;
                let (stream, more) = self.streams.take(quic.rtt());
                if let Some(streams) = more {
                    quic::grant_streams(quic, streams);
                }
                Ok(Pipe::quic(send, recv, stream))
            }
            Connection::Tcp(tcp) => Ok(Pipe::framed(tcp.accept(|| self.streams.open()).await?)),
        }
    }

    /// Since when no stream is open on it; `None` while one is.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        self.streams.idle_since()
    }

    /// Grants what `standing` allows, and a stream beside for each of the `circuits` that roles
    /// grant to one node: what is beyond shall be refused, and not wait.
    pub(crate) fn set_standing(&self, standing: Standing, circuits: usize) {
        self.is_known.store(standing == Standing::Known, Relaxed);
        match &self.connection {
            Connection::Quic(quic) => {
                quic::set_standing(quic, standing);
                self.streams.set_most(standing.streams(circuits));
            }
            Connection::Tcp(tcp) => {
                tcp.set_places(standing.connections(circuits));
            }
        }
    }

    /// Round trip over the path.
    pub(crate) fn rtt(&self) -> Duration {
        match &self.connection {
            Connection::Quic(quic) => quic.rtt(),
            Connection::Tcp(tcp) => tcp.rtt(),
        }
    }

    /// Share of sent packets that were lost, 0 to 1; TCP hides it, and shows none.
    pub(crate) fn loss(&self) -> f64 {
        let Connection::Quic(quic) = &self.connection else {
            return 0.0;
        };
        let path = quic.stats().path;
        if path.sent_packets == 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "a share for people and scripts")]
        let share = path.lost_packets as f64 / path.sent_packets as f64;
        share.min(1.0)
    }

    /// How full the other end last said it is, 0 to 1.
    pub(crate) fn load(&self) -> f64 {
        f64::from(self.load.load(Relaxed)) / f64::from(u8::MAX)
    }

    /// The other end answered: it did not only take the call.
    pub(crate) fn note_answer(&self) {
        self.has_answered.store(true, Relaxed);
    }

    /// Whether it ever did.
    pub(crate) fn has_answered(&self) -> bool {
        self.has_answered.load(Relaxed)
    }

    /// Keeps what the other end said of its load, 255 being full.
    pub(crate) fn set_load(&self, load: u8) {
        self.load.store(load, Relaxed);
    }

    /// Fetches of the other end's records.
    pub(crate) fn fetches(&self) -> &Fetches {
        &self.fetches
    }

    /// Does `work`, which asks the other end for something, as long as that shows signs of life.
    ///
    /// # Errors
    /// [`LinkError::Silent`] when it shows none.
    pub(crate) async fn while_alive<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<T, LinkError> {
        let silenced = async {
            if self.shows_life(self.acknowledged()).await {
                self.silenced().await;
            }
        };
        // What was acknowledged is counted before more is sent.
        tokio::select! {
            biased;
            () = silenced => Err(LinkError::Silent),
            done = work => Ok(done),
        }
    }

    /// Whether the other end acknowledges something of what was sent, so that it is more than
    /// `acknowledged`; else the link is silent.
    pub(crate) async fn shows_life(&self, acknowledged: u64) -> bool {
        let ask = || {
            if self.acknowledged() == acknowledged {
                self.ask();
            }
        };
        self.pulse.wait(self.rtt(), ask).await;
        let shown = self.acknowledged() != acknowledged;
        if !shown {
            self.pulse.fall_silent(self.arrived());
        }
        shown
    }

    /// Asks for a sign of life: what was to be sent may still wait, as while the other end grants
    /// no stream.
    fn ask(&self) {
        match &self.connection {
            Connection::Quic(quic) => quic::ask(quic, self.standing()),
            Connection::Tcp(tcp) => tcp.ping(),
        }
    }

    fn standing(&self) -> Standing {
        match self.is_known.load(Relaxed) {
            true => Standing::Known,
            false => Standing::Stranger,
        }
    }

    /// How often the other end acknowledged what was sent.
    pub(crate) fn acknowledged(&self) -> u64 {
        match &self.connection {
            Connection::Quic(quic) => quic.stats().frame_rx.acks,
            Connection::Tcp(tcp) => tcp.pongs(),
        }
    }

    /// How often anything came from it.
    fn arrived(&self) -> u64 {
        match &self.connection {
            Connection::Quic(quic) => quic.stats().udp_rx.datagrams,
            Connection::Tcp(tcp) => tcp.arrived(),
        }
    }

    /// Whether nothing is to be expected of the other end: it showed no sign of life when it had
    /// to, nor since. Its streams live on: it may come back.
    pub(crate) fn is_silent(&self) -> bool {
        self.pulse.is_silent(|| self.arrived())
    }

    /// Ends when the other end has fallen silent.
    pub(crate) async fn silenced(&self) {
        self.pulse.silenced(|| self.arrived()).await;
    }

    /// Takes it for silent if even what keeps it alive has not come for too long; to be asked
    /// every second or so.
    pub(crate) fn look_for_life(&self) {
        let arrived = self.arrived();
        let is_quiet = self.pulse.is_quiet(Instant::now(), arrived, self.rtt());
        if is_quiet && !self.is_silent() {
            self.pulse.fall_silent(arrived);
        }
    }

    /// Whether it can carry no more streams.
    pub(crate) fn is_closed(&self) -> bool {
        match &self.connection {
            Connection::Quic(quic) => quic.close_reason().is_some(),
            Connection::Tcp(tcp) => tcp.is_closed(),
        }
    }

    /// Waits until it is closed, and says why.
    pub(crate) async fn closed(&self) -> LinkError {
        match &self.connection {
            Connection::Quic(quic) => lost(quic.closed().await),
            Connection::Tcp(tcp) => tcp.closed().await,
        }
    }

    /// A place for a relayed flow of this node that goes over to it, when one is free. Cancel-safe.
    pub(crate) async fn own_crossing(&self) -> Option<CrossingPlace> {
        self.crossings.own().await
    }

    /// A place for a flow of the other end's; `None`: all are taken.
    pub(crate) fn other_crossing(&self) -> Option<CrossingPlace> {
        self.crossings.other()
    }

    /// Ends it and all its streams.
    pub(crate) fn close(&self, code: CloseCode) {
        match &self.connection {
            Connection::Quic(quic) => quic.close(code.number(), b""),
            Connection::Tcp(tcp) => tcp.close(code),
        }
    }

    /// Whether both are the same connection.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (&self.connection, &other.connection) {
            (Connection::Quic(quic), Connection::Quic(other)) => {
                quic.stable_id() == other.stable_id()
            }
            (Connection::Tcp(tcp), Connection::Tcp(other)) => Arc::ptr_eq(tcp, other),
            (Connection::Quic(_), Connection::Tcp(_))
            | (Connection::Tcp(_), Connection::Quic(_)) => false,
        }
    }
}

fn lost(error: quinn::ConnectionError) -> LinkError {
    match &error {
        quinn::ConnectionError::ApplicationClosed(close) => {
            LinkError::closed_with(close.error_code.into_inner())
        }
        quinn::ConnectionError::VersionMismatch
        | quinn::ConnectionError::TransportError(_)
        | quinn::ConnectionError::ConnectionClosed(_)
        | quinn::ConnectionError::Reset
        | quinn::ConnectionError::TimedOut
        | quinn::ConnectionError::LocallyClosed
        | quinn::ConnectionError::CidsExhausted => LinkError::Lost(error.to_string()),
    }
}
