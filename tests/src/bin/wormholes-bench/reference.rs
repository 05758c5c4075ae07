//! What the rows are held against: raw loopback TCP, one bare quinn stream, and a plain forward
//! of TCP connections over quinn. Each end of the forward runs as a process of its own, as the
//! router's nodes do.
//!
//! The forward is what a careful first version looks like: large windows, one stream a
//! connection, a copy loop in each direction.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TokioRuntime,
    TransportConfig, VarInt,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};

use crate::load::{self, Echo};

/// The windows of both references.
const STREAM_WINDOW_BYTES: u32 = 6 << 20;
const SOCKET_BUFFER_BYTES: usize = 7 << 20;
/// What one write of the bulk stream carries.
const WRITE_BYTES: usize = 64 << 10;

/// Where the far end of a forward is reached.
#[derive(Debug)]
pub(crate) struct FarEnd {
    /// Its UDP address.
    pub(crate) address: SocketAddr,
    /// The certificate that it shows.
    pub(crate) certificate: CertificateDer<'static>,
}

/// A server, and how it is reached.
fn server() -> Result<(Endpoint, FarEnd)> {
    let key = rcgen::generate_simple_self_signed(vec!["reference".to_owned()])?;
    let certificate = CertificateDer::from(key.cert);
    let private = PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let mut config = ServerConfig::with_single_cert(vec![certificate.clone()], private.into())?;
    config.transport_config(transport());
    let endpoint = endpoint(Some(config))?;
    let address = endpoint.local_addr()?;
    let far = FarEnd {
        address,
        certificate,
    };
    Ok((endpoint, far))
}

/// A connection to a server, and the endpoint that keeps it open.
async fn connect(far: &FarEnd) -> Result<(Endpoint, Connection)> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(far.certificate.clone())?;
    let mut config = ClientConfig::with_root_certificates(Arc::new(roots))?;
    config.transport_config(transport());
    let endpoint = endpoint(None)?;
    let connecting = endpoint.connect_with(config, far.address, "reference")?;
    let connection = connecting.await?;
    Ok((endpoint, connection))
}

/// The other end of the next connection.
async fn accept(server: &Endpoint) -> Result<Connection> {
    let incoming = server.accept().await.context("the endpoint is closed")?;
    Ok(incoming.await?)
}

fn endpoint(server: Option<ServerConfig>) -> Result<Endpoint> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    Ok(Endpoint::new(
        EndpointConfig::default(),
        server,
        socket.into(),
        Arc::new(TokioRuntime),
    )?)
}

fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(4 * STREAM_WINDOW_BYTES))
        .send_window(u64::from(4 * STREAM_WINDOW_BYTES))
        .max_concurrent_bidi_streams(VarInt::from_u32(16_384))
        // Other rows are measured for longer than the idle time-out between two uses.
        .keep_alive_interval(Some(Duration::from_secs(5)));
    Arc::new(config)
}

/// Bytes a second over `streams` bare quinn streams, with nothing at their ends.
pub(crate) async fn quinn_bulk(streams: usize, time: Duration) -> Result<f64> {
    let (server, far) = server()?;
    let ((_endpoint, near), far) = tokio::try_join!(connect(&far), accept(&server))?;
    let started = Instant::now();
    let mut writers = JoinSet::new();
    for _ in 0..streams {
        let mut stream = near.open_uni().await?;
        writers.spawn(async move {
            let buffer = vec![0x5a; WRITE_BYTES];
            while started.elapsed() < time {
                stream.write_all(&buffer).await?;
            }
            stream.finish()?;
            anyhow::Ok(())
        });
    }
    let mut readers = JoinSet::new();
    for _ in 0..streams {
        let mut stream = far.accept_uni().await?;
        readers.spawn(async move {
            let mut bytes = 0u64;
            while let Some(chunk) = stream.read_chunk(WRITE_BYTES, true).await? {
                bytes += u64::try_from(chunk.bytes.len())?;
            }
            anyhow::Ok(bytes)
        });
    }
    let mut bytes = 0;
    while let Some(count) = readers.join_next().await {
        bytes += count??;
    }
    let rate = bytes as f64 / started.elapsed().as_secs_f64();
    while let Some(written) = writers.join_next().await {
        written??;
    }
    Ok(rate)
}

/// A byte over one bare quinn stream, with nothing at its ends.
pub(crate) async fn quinn_echo(time: Duration) -> Result<Echo> {
    let (server, far) = server()?;
    let ((_endpoint, near), far) = tokio::try_join!(connect(&far), accept(&server))?;
    let echo = tokio::spawn(async move {
        let (mut send, mut receive) = far.accept_bi().await?;
        copy(&mut receive, &mut send).await?;
        send.finish()?;
        anyhow::Ok(())
    });
    let (send, receive) = near.open_bi().await?;
    let measured = load::echo_over(tokio::io::join(receive, send), time).await?;
    echo.await??;
    Ok(measured)
}

/// Forwards each stream that comes over quinn to `target`, until the runtime ends.
pub(crate) fn start_far_end(target: SocketAddr) -> Result<FarEnd> {
    let (endpoint, far) = server()?;
    tokio::spawn(async move {
        let connection = accept(&endpoint).await?;
        while let Ok((send, receive)) = connection.accept_bi().await {
            tokio::spawn(async move {
                let stream = TcpStream::connect(target).await?;
                join(stream, send, receive).await
            });
        }
        anyhow::Ok(())
    });
    Ok(far)
}

/// Forwards each connection to the returned address over quinn to `far`, until the runtime ends.
pub(crate) async fn start_near_end(far: &FarEnd) -> Result<SocketAddr> {
    let (endpoint, connection) = connect(far).await?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let _open = endpoint;
        while let Ok((stream, _)) = listener.accept().await {
            let connection = connection.clone();
            tokio::spawn(async move {
                let (send, receive) = connection.open_bi().await?;
                join(stream, send, receive).await
            });
        }
    });
    Ok(address)
}

async fn join(
    stream: TcpStream,
    mut send: quinn::SendStream,
    mut receive: quinn::RecvStream,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.into_split();
    let up = async {
        copy(&mut reader, &mut send).await?;
        send.finish()?;
        anyhow::Ok(())
    };
    let down = async {
        copy(&mut receive, &mut writer).await?;
        writer.shutdown().await?;
        anyhow::Ok(())
    };
    tokio::try_join!(up, down)?;
    Ok(())
}
