//! A path to a node over QUIC that can die in silence.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::{net::UdpSocket, task::JoinSet};

const MAX_DATAGRAM_BYTES: usize = 65_535;

/// Carries datagrams of one caller to where it leads, and back; dropped, it is dead.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    far: Arc<OnceLock<SocketAddr>>,
    is_dead: Arc<AtomicBool>,
    called: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Wire {
    /// Calls come in at 127.`number`.0.1, and are lost until it leads anywhere.
    pub(crate) async fn new(number: u8) -> Self {
        let near = UdpSocket::bind((format!("127.{number}.0.1"), 0)).await;
        let near = near.unwrap();
        let far_side = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (far, is_dead) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let called = Arc::new(AtomicUsize::new(0));
        let address = near.local_addr().unwrap();
        let mut task = JoinSet::new();
        task.spawn(carry(
            near,
            far_side,
            Arc::clone(&far),
            Arc::clone(&is_dead),
            Arc::clone(&called),
        ));
        Self {
            address,
            far,
            is_dead,
            called,
            _task: task,
        }
    }

    pub(crate) fn lead_to(&self, far: SocketAddr) {
        self.far.set(far).unwrap();
    }

    /// Datagrams that came from the caller, lost or not.
    pub(crate) fn called(&self) -> usize {
        self.called.load(Relaxed)
    }

    /// From now on all is lost, and nobody is told.
    pub(crate) fn cut(&self) {
        self.is_dead.store(true, Relaxed);
    }

    pub(crate) fn mend(&self) {
        self.is_dead.store(false, Relaxed);
    }
}

async fn carry(
    near: UdpSocket,
    far_side: UdpSocket,
    far: Arc<OnceLock<SocketAddr>>,
    is_dead: Arc<AtomicBool>,
    called: Arc<AtomicUsize>,
) {
    let (mut up, mut down) = (vec![0; MAX_DATAGRAM_BYTES], vec![0; MAX_DATAGRAM_BYTES]);
    let mut caller = None;
    loop {
        tokio::select! {
            Ok((len, from)) = near.recv_from(&mut up) => {
                caller = Some(from);
                called.fetch_add(1, Relaxed);
                if let (Some(far), false) = (far.get(), is_dead.load(Relaxed)) {
                    let _lost = far_side.send_to(&up[..len], far).await;
                }
            }
            Ok((len, _)) = far_side.recv_from(&mut down) => {
                if let (Some(caller), false) = (caller, is_dead.load(Relaxed)) {
                    let _lost = near.send_to(&down[..len], caller).await;
                }
            }
            else => {}
        }
    }
}
