//! What the rows are held against: raw loopback TCP, one bare quinn stream, and a plain forward
//! of TCP connections over quinn. Each runs as a process of its own, as the router's nodes do.
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

/// The windows of both references.
const STREAM_WINDOW_BYTES: u32 = 6 << 20;
const SOCKET_BUFFER_BYTES: usize = 7 << 20;
/// What one write of the bulk stream carries.
const WRITE_BYTES: usize = 64 << 10;

/// A quinn endpoint and the connection between two of them.
struct Pair {
    client: Connection,
    server: Connection,
    /// Dropped, they would close the connection.
    _endpoints: [Endpoint; 2],
}

async fn pair() -> Result<Pair> {
    let key = rcgen::generate_simple_self_signed(vec!["reference".to_owned()])?;
    let certificate = CertificateDer::from(key.cert);
    let private = PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let mut server_config =
        ServerConfig::with_single_cert(vec![certificate.clone()], private.into())?;
    server_config.transport_config(transport());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate)?;
    let mut client_config = ClientConfig::with_root_certificates(Arc::new(roots))?;
    client_config.transport_config(transport());
    let server = endpoint(Some(server_config))?;
    let client = endpoint(None)?;
    let connecting = client.connect_with(client_config, server.local_addr()?, "reference")?;
    let accepting = async {
        let incoming = server.accept().await.context("the endpoint is closed")?;
        anyhow::Ok(incoming.await?)
    };
    let (client_side, server_side) = tokio::try_join!(async { Ok(connecting.await?) }, accepting)?;
    Ok(Pair {
        client: client_side,
        server: server_side,
        _endpoints: [client, server],
    })
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
    let pair = pair().await?;
    let started = Instant::now();
    let mut writers = JoinSet::new();
    for _ in 0..streams {
        let mut stream = pair.client.open_uni().await?;
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
        let mut stream = pair.server.accept_uni().await?;
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

/// Forwards each connection to the returned address over quinn to `target`, until the runtime
/// ends.
pub(crate) async fn start_forward(target: SocketAddr) -> Result<SocketAddr> {
    let pair = Arc::new(pair().await?);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let far = Arc::clone(&pair);
    tokio::spawn(async move {
        while let Ok((send, receive)) = far.server.accept_bi().await {
            tokio::spawn(async move {
                let stream = TcpStream::connect(target).await?;
                join(stream, send, receive).await
            });
        }
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection = pair.client.clone();
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
