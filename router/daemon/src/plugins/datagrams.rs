//! UDP ports of plugins: what comes is told, what goes is asked of the rules, once a minute for each
//! receiver.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    net::SocketAddr,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    net::UdpSocket,
    sync::mpsc,
    time::{Instant, sleep},
};
use wormholes_host::{Datagram, Host};
use wormholes_proto::{Target, Transport};

use super::network::ENTRANCE;
use crate::{
    flow::{self, Asked, Caller},
    node::NodeCore,
    pipe::enlarge_buffer,
};

/// No datagram is longer.
const BUFFER_BYTES: usize = 1 << 16;
/// Datagrams that wait to be sent, of one port. Overflow: the newcomer is dropped.
const MAX_WAITING: usize = 256;
/// How long what the rules said of a receiver holds.
const RULING_HOLDS: Duration = Duration::from_secs(60);
/// Receivers of whom it is known. Overflow: the one that was asked of first is asked of again.
const MAX_RULINGS: usize = 4096;
/// How long the system that is out of memory leaves the next datagram waiting.
const PAUSE: Duration = Duration::from_millis(100);

/// Where datagrams of one port are put.
pub(super) type Outlet = mpsc::Sender<Datagram>;

/// A bound port.
pub(super) struct Port {
    socket: UdpSocket,
    plugin: Arc<str>,
    number: u16,
    host: Weak<Host>,
    waiting: mpsc::Receiver<Datagram>,
    rulings: Rulings,
}

/// What the rules said of receivers, and until when that holds.
#[derive(Default)]
struct Rulings {
    known: HashMap<SocketAddr, (bool, Instant)>,
    /// In the order in which they were asked.
    order: VecDeque<SocketAddr>,
    /// Of the rules that said so.
    generation: u64,
}

impl Port {
    /// Binds.
    pub(super) async fn bind(
        address: SocketAddr,
        plugin: &str,
        host: Weak<Host>,
    ) -> std::io::Result<(Self, Outlet)> {
        let socket = UdpSocket::bind(address).await?;
        enlarge_buffer(&socket);
        let (outlet, waiting) = mpsc::channel(MAX_WAITING);
        let port = Self {
            socket,
            plugin: plugin.into(),
            number: address.port(),
            host,
            waiting,
            rulings: Rulings::default(),
        };
        Ok((port, outlet))
    }

    /// Hears and speaks, for ever.
    pub(super) async fn run(mut self, core: Arc<NodeCore>) {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            tokio::select! {
                received = self.socket.recv_from(&mut buffer) => match received {
                    Ok((length, from)) => {
                        let data = buffer.get(..length).unwrap_or_default();
                        self.tell(from, data);
                    }
                    Err(error) => {
                        // What an earlier receiver answered by ICMP is among these.
                        tracing::debug!(%error, "a plugin's port cannot take a datagram");
                        sleep(PAUSE).await;
                    }
                },
                Some(datagram) = self.waiting.recv() => self.send(&core, datagram).await,
            }
        }
    }

    fn tell(&self, from: SocketAddr, data: &[u8]) {
        if let Some(host) = self.host.upgrade() {
            host.datagram(Datagram {
                plugin: Arc::clone(&self.plugin),
                port: self.number,
                peer: SocketAddr::new(from.ip().to_canonical(), from.port()),
                data: Bytes::copy_from_slice(data),
            });
        }
    }

    /// Sends it, if the rules let it go. The next one waits for what they say.
    async fn send(&mut self, core: &NodeCore, datagram: Datagram) {
        let peer = datagram.peer;
        self.rulings.follow(core.policy.current().number);
        let may_go = match self.rulings.of(peer) {
            Some(may_go) => may_go,
            None => {
                let permitted = flow::permit(core, asked(&datagram)).await;
                if permitted
                    .as_ref()
                    .err()
                    .is_none_or(flow::Refusal::is_ruling)
                {
                    self.rulings.keep(peer, permitted.is_ok());
                }
                permitted.is_ok()
            }
        };
        let dropped = &core.network.counters().dropped;
        if !may_go {
            dropped.closed.fetch_add(1, Ordering::Relaxed);
        } else if let Err(error) = self.socket.send_to(&datagram.data, peer).await {
            dropped.unsent.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%error, "a plugin's datagram does not leave");
        }
    }
}

impl Rulings {
    /// Other rules say something of their own.
    fn follow(&mut self, generation: u64) {
        if self.generation != generation {
            *self = Self {
                generation,
                ..Self::default()
            };
        }
    }

    fn of(&self, peer: SocketAddr) -> Option<bool> {
        let (may_go, until) = self.known.get(&peer)?;
        (*until > Instant::now()).then_some(*may_go)
    }

    fn keep(&mut self, peer: SocketAddr, may_go: bool) {
        let until = Instant::now() + RULING_HOLDS;
        if self.known.insert(peer, (may_go, until)).is_none() {
            self.order.push_back(peer);
        }
        if self.order.len() > MAX_RULINGS
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

fn asked(datagram: &Datagram) -> Asked {
    Asked {
        entrance: ENTRANCE,
        transport: Transport::Udp,
        label: None,
        login: None,
        plugin: Some(Caller {
            instance: datagram.plugin.to_string(),
            role: None,
            isolation: String::new(),
            hides_node: false,
        }),
        ends: None,
        target: Target::new(
            wormholes_proto::Host::Ip(datagram.peer.ip()),
            datagram.peer.port(),
        ),
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Port").field(&self.number).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_the_rules_said_holds_for_a_minute_and_for_so_many() {
        let mut rulings = Rulings::default();
        let peer = |port: u16| SocketAddr::from(([192, 0, 2, 1], port));
        assert_eq!(rulings.of(peer(1)), None);
        rulings.keep(peer(1), true);
        rulings.keep(peer(2), false);
        assert_eq!(
            (rulings.of(peer(1)), rulings.of(peer(2))),
            (Some(true), Some(false))
        );
        tokio::time::advance(RULING_HOLDS).await;
        assert_eq!(rulings.of(peer(1)), None);
        rulings.keep(peer(1), false);
        assert_eq!(rulings.of(peer(1)), Some(false));
        for port in 0..4096 {
            rulings.keep(peer(1000 + port), true);
        }
        assert_eq!(rulings.known.len(), MAX_RULINGS);
        assert_eq!(rulings.of(peer(1)), None, "the oldest went");
        rulings.follow(0);
        assert_eq!(rulings.of(peer(1001)), Some(true));
        rulings.follow(1);
        assert_eq!(rulings.of(peer(1001)), None, "other rules hold");
    }
}
