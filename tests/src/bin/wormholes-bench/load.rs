//! The load: one server that sinks, echoes or hangs up, and clients that measure against it.
//!
//! The client's first byte says what the connection is for. `B`: all bytes are counted up to the
//! first that is [`END`], and the count (u64, big-endian) is sent back; a half-close would not do,
//! which not every rival passes on. `E`: bytes are echoed. The same clients measure raw TCP, the
//! rivals and the router, so that rows differ only in what lies between.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use wormholes_proto::{SocksClient, SocksClientState, Target};
use wormholes_tests::Namespace;

/// What one write of the bulk clients carries.
const BULK_WRITE_BYTES: usize = 256 << 10;
/// The bytes of bulk, and the last one.
const BULK: u8 = 0x5a;
const END: u8 = 0xa5;
/// What one read of an echo takes; as small as its sender's writes, since many wait.
const ECHO_BYTES: usize = 64;
/// Connections that the rate clients keep going at once.
const RATE_CLIENTS: usize = 16;

/// How a client gets to the server.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    /// The client's host; none is this one.
    host: Option<Arc<Namespace>>,
    /// A TCP connection to this address ends at the server…
    entrance: SocketAddr,
    /// …or it is a SOCKS5 entrance, which is asked for this.
    target: Option<Target>,
}

/// Round-trip times of one byte.
#[derive(Debug)]
pub(crate) struct Echo {
    /// Half were faster.
    pub(crate) p50: Duration,
    /// One in a hundred was slower.
    pub(crate) p99: Duration,
}

/// Connections that were opened, echoed a byte and were closed.
#[derive(Debug)]
pub(crate) struct NewFlows {
    /// In all.
    pub(crate) count: u64,
    /// On average.
    pub(crate) a_second: f64,
}

/// Starts the server at `ip`; it runs until the runtime ends.
pub(crate) async fn start_server(ip: IpAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind((ip, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that goes away ends only its own connection.
            tokio::spawn(async move { serve(stream).await.ok() });
        }
    });
    Ok(address)
}

async fn serve(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    match stream.read_u8().await? {
        b'B' => {
            let mut buffer = vec![0; BULK_WRITE_BYTES];
            let (mut count, mut last) = (0u64, BULK);
            while last != END {
                let len = stream.read(&mut buffer).await?;
                let read = buffer.get(..len).unwrap_or_default();
                last = *read.last().context("bulk without its end")?;
                count += u64::try_from(len)?;
            }
            stream.write_u64(count).await?;
        }
        b'E' => {
            let mut buffer = [0; ECHO_BYTES];
            loop {
                let len = stream.read(&mut buffer).await?;
                if len == 0 {
                    break;
                }
                let read = buffer.get(..len).unwrap_or_default();
                stream.write_all(read).await?;
            }
        }
        other => bail!("unknown use {other}"),
    }
    stream.shutdown().await?;
    Ok(())
}

impl Way {
    /// By a TCP connection that ends at the server.
    pub(crate) fn tcp(entrance: SocketAddr) -> Self {
        Self {
            host: None,
            entrance,
            target: None,
        }
    }

    /// Through a SOCKS5 entrance.
    pub(crate) fn socks(entrance: SocketAddr, target: Target) -> Self {
        Self {
            target: Some(target),
            ..Self::tcp(entrance)
        }
    }

    /// The same from another host.
    pub(crate) fn on(self, host: &Arc<Namespace>) -> Self {
        Self {
            host: Some(Arc::clone(host)),
            ..self
        }
    }

    /// A connection to the server.
    pub(crate) async fn connect(&self) -> Result<TcpStream> {
        let stream = match &self.host {
            Some(host) => host.connect(self.entrance)?,
            None => TcpStream::connect(self.entrance).await?,
        };
        stream.set_nodelay(true)?;
        match &self.target {
            Some(target) => ask_socks(stream, target)
                .await
                .with_context(|| format!("by SOCKS5 to {target}")),
            None => Ok(stream),
        }
    }
}

async fn ask_socks(mut stream: TcpStream, target: &Target) -> Result<TcpStream> {
    let (mut client, greeting) = SocksClient::new(target.clone(), None);
    stream.write_all(&greeting).await?;
    let mut input = Vec::new();
    loop {
        ensure!(
            stream.read_buf(&mut input).await? > 0,
            "the entrance closed the connection"
        );
        let step = client.handle_input(&input);
        input.drain(..step.consumed);
        stream.write_all(&step.send).await?;
        match step.state {
            SocksClientState::NeedMore => {}
            SocksClientState::Connected(_) => return Ok(stream),
            SocksClientState::Failed(error) => return Err(error.into()),
        }
    }
}

/// Bytes a second that arrive over `streams` connections at once.
pub(crate) async fn bulk(way: &Way, streams: usize, time: Duration) -> Result<f64> {
    let mut clients = JoinSet::new();
    let mut connections = Vec::new();
    for _ in 0..streams {
        connections.push(way.connect().await?);
    }
    let started = Instant::now();
    for connection in connections {
        clients.spawn(bulk_client(connection, started + time));
    }
    let mut bytes = 0;
    while let Some(count) = clients.join_next().await {
        bytes += count??;
    }
    Ok(bytes as f64 / started.elapsed().as_secs_f64())
}

async fn bulk_client(mut stream: TcpStream, until: Instant) -> Result<u64> {
    let buffer = vec![BULK; BULK_WRITE_BYTES];
    let mut sent = 1;
    stream.write_u8(b'B').await?;
    while Instant::now() < until {
        stream.write_all(&buffer).await?;
        sent += u64::try_from(buffer.len())?;
    }
    stream.write_u8(END).await?;
    let count = stream.read_u64().await.context("bulk was cut off")?;
    ensure!(count == sent, "{sent} bytes were sent and {count} arrived");
    Ok(count)
}

/// Sends one byte at a time and waits for its echo.
pub(crate) async fn echo(way: &Way, time: Duration) -> Result<Echo> {
    let mut stream = way.connect().await?;
    stream.write_u8(b'E').await?;
    echo_over(stream, time).await
}

/// The same over a stream whose far end sends back what it gets.
pub(crate) async fn echo_over(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    time: Duration,
) -> Result<Echo> {
    let mut times = Vec::new();
    let until = Instant::now() + time;
    while Instant::now() < until {
        let sent = Instant::now();
        stream.write_u8(1).await?;
        stream.read_u8().await?;
        times.push(sent.elapsed());
    }
    times.sort_unstable();
    let at = |share: usize| {
        times
            .get(times.len() * share / 100)
            .copied()
            .context("no echo came back")
    };
    Ok(Echo {
        p50: at(50)?,
        p99: at(99)?,
    })
}

/// How long it takes from asking for a connection to a byte that came back over it.
pub(crate) async fn first_byte(way: &Way) -> Result<Duration> {
    let started = Instant::now();
    let mut stream = way.connect().await?;
    stream.write_all(b"E1").await?;
    stream.read_u8().await?;
    Ok(started.elapsed())
}

/// Opens connections one after the other, [`RATE_CLIENTS`] at once; each echoes a byte.
pub(crate) async fn new_flows(way: &Way, time: Duration) -> Result<NewFlows> {
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..RATE_CLIENTS {
        let way = way.clone();
        clients.spawn(async move {
            let mut count = 0u64;
            while started.elapsed() < time {
                let mut stream = way.connect().await?;
                stream.write_all(b"E1").await?;
                stream.read_u8().await?;
                count += 1;
            }
            anyhow::Ok(count)
        });
    }
    let mut count = 0;
    while let Some(one) = clients.join_next().await {
        count += one??;
    }
    Ok(NewFlows {
        count,
        a_second: count as f64 / started.elapsed().as_secs_f64(),
    })
}

/// Opens `count` connections that say nothing more, and hands them out.
pub(crate) async fn idle(way: &Way, count: usize) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = way.connect().await?;
        stream.write_all(b"E1").await?;
        stream.read_u8().await?;
        streams.push(stream);
    }
    Ok(streams)
}
