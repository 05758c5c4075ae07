//! A TCP link between two nodes that keeps the sizes of the TLS records on it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    task::JoinSet,
};

/// Type, version, and length (RFC 8446, section 5.1).
const HEADER_BYTES: usize = 5;
const APPLICATION_DATA: u8 = 23;
/// The inner type and the tag (RFC 8446, section 5.2).
const SEAL_BYTES: usize = 17;

/// A running link; dropped, it is down.
#[derive(Debug)]
pub struct TcpTap {
    address: SocketAddr,
    far: Arc<OnceLock<SocketAddr>>,
    seen: Arc<Mutex<Vec<Vec<usize>>>>,
    _tasks: JoinSet<()>,
}

impl TcpTap {
    /// Listens on a free port of `ip` and forwards to where [`Self::connect`] says; until then
    /// connections are closed.
    ///
    /// # Errors
    /// When no socket can be bound.
    pub async fn start(ip: IpAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((ip, 0)).await?;
        let address = listener.local_addr()?;
        let far = Arc::new(OnceLock::new());
        let seen = Arc::<Mutex<Vec<Vec<usize>>>>::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::clone(&far), Arc::clone(&seen)));
        Ok(Self {
            address,
            far,
            seen,
            _tasks: tasks,
        })
    }

    /// Where callers reach the far end through the link.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says where the far end is; only the first word counts.
    pub fn connect(&self, far: SocketAddr) {
        self.far.get_or_init(|| far);
    }

    /// How many bytes each record held that callers sent once their handshake was over, by
    /// connection in the order in which they came.
    pub fn records(&self) -> Vec<Vec<usize>> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

async fn serve(
    listener: TcpListener,
    far: Arc<OnceLock<SocketAddr>>,
    seen: Arc<Mutex<Vec<Vec<usize>>>>,
) {
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        let Some(far) = far.get().copied() else {
            continue;
        };
        let index = {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.push(Vec::new());
            seen.len() - 1
        };
        let seen = Arc::clone(&seen);
        let note = move |bytes| {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(records) = seen.get_mut(index) {
                records.push(bytes);
            }
        };
        connections.spawn(async move {
            // Either end may break off; the other then learns it.
            forward(near, far, note).await.ok();
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn forward(near: TcpStream, far: SocketAddr, note: impl Fn(usize)) -> io::Result<()> {
    let far = TcpStream::connect(far).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ((near_reader, mut near_writer), (mut far_reader, far_writer)) =
        (near.into_split(), far.into_split());
    let back = async {
        tokio::io::copy(&mut far_reader, &mut near_writer).await?;
        near_writer.shutdown().await
    };
    tokio::try_join!(watch(near_reader, far_writer, note), back).map(drop)
}

async fn watch(
    mut from: tcp::OwnedReadHalf,
    mut into: tcp::OwnedWriteHalf,
    note: impl Fn(usize),
) -> io::Result<()> {
    let mut unread = Vec::new();
    while from.read_buf(&mut unread).await? > 0 {
        // What is passed on has been noted.
        let mut whole = 0;
        while let Some(record) = first_record(unread.get(whole..).unwrap_or_default()) {
            if record.first() == Some(&APPLICATION_DATA) {
                note(record.len().saturating_sub(HEADER_BYTES + SEAL_BYTES));
            }
            whole += record.len();
        }
        into.write_all(unread.get(..whole).unwrap_or_default())
            .await?;
        unread.drain(..whole);
    }
    into.shutdown().await
}

fn first_record(bytes: &[u8]) -> Option<&[u8]> {
    let header = bytes.first_chunk::<HEADER_BYTES>()?;
    let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
    bytes.get(..HEADER_BYTES + len)
}
