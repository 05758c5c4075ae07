//! The program's end of a flow: told once that the flow opened or that it did not, then a pipe. Where
//! scripts want to see what it says first, it is told before.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::oneshot, time::Instant};
use wormholes_proto::{SocksReply, SocksVersion};

use super::{Ends, Refusal, sniff};
use crate::{
    node::NodeCore,
    pipe::{DatagramPipe, Pipe, ProgramEnd, Side},
    program,
};

/// How soon it is noticed that the program left. Most flows open sooner and cost no look.
const LOOK_PERIOD: Duration = Duration::from_millis(250);

/// Whom to tell whether the flow opened, when telling is not a message on the connection itself.
pub(crate) type Answer = oneshot::Sender<Result<(), Refusal>>;

/// The server that a program's TLS names; why nobody can tell.
pub(super) type Sniffed = Result<Option<String>, Refusal>;

/// Where a flow's bytes come from. A closed set: what each entrance hands over.
#[derive(Debug)]
pub(crate) enum LocalEnd {
    /// A SOCKS client that waits for its reply.
    Socks {
        /// The connection.
        stream: TcpStream,
        /// What it sent too early.
        ahead: Bytes,
        /// What it is answered in.
        version: SocksVersion,
    },
    /// An HTTP client that waits for the answer to its CONNECT.
    Connect {
        /// Makes the HTTP server answer.
        answer: Answer,
        /// The connection, once answered.
        upgrade: OnUpgrade,
    },
    /// A program that takes its connection for that to its target.
    Tcp {
        /// The connection.
        stream: TcpStream,
        /// What was read of it.
        ahead: Bytes,
    },
    /// A program that sends datagrams, and hears of no answer but theirs.
    Datagrams(ProgramEnd),
    /// This process.
    Memory {
        /// Tells the caller.
        answer: Answer,
        /// The near end of its stream.
        pipe: Pipe,
    },
}

impl LocalEnd {
    /// Tells the program that the flow is open, and takes its side; none when it went away.
    pub(super) async fn accept(self, core: &NodeCore) -> Option<Side> {
        let pipe = match self {
            Self::Socks {
                stream,
                ahead,
                version,
            } => Pipe::accepted(answer_socks(stream, version).await?, ahead),
            Self::Connect { answer, upgrade } => {
                let (stream, ahead) = answer_connect(answer, upgrade).await?;
                Pipe::accepted(stream, ahead)
            }
            Self::Tcp { stream, ahead } => Pipe::accepted(stream, ahead),
            Self::Datagrams(end) => {
                let datagrams = DatagramPipe::program(end, core.network.counters());
                return Some(Side::Datagrams(datagrams));
            }
            Self::Memory { answer, pipe } => {
                answer.send(Ok(())).ok()?;
                pipe
            }
        };
        Some(Side::Stream(pipe))
    }

    /// Tells the program that its flow is open, and reads until `deadline` which server its TLS
    /// names. None when it went away.
    pub(super) async fn answer_and_sniff(self, deadline: Instant) -> Option<(Self, Sniffed)> {
        let (mut stream, ahead) = match self {
            Self::Socks {
                stream,
                ahead,
                version,
            } => (answer_socks(stream, version).await?, ahead),
            Self::Connect { answer, upgrade } => answer_connect(answer, upgrade).await?,
            Self::Tcp { stream, ahead } => (stream, ahead),
            other @ (Self::Datagrams(_) | Self::Memory { .. }) => return Some((other, Ok(None))),
        };
        let mut ahead = BytesMut::from(ahead);
        let name = sniff::server_name(&mut stream, &mut ahead, deadline).await?;
        let ahead = ahead.freeze();
        Some((Self::Tcp { stream, ahead }, name))
    }

    /// Whether the program takes its flow for open from the beginning, or was told so ahead.
    pub(super) fn is_answered(&self) -> bool {
        matches!(self, Self::Tcp { .. })
    }

    /// Tells the program why there is no flow. It may be gone: nobody else would want to know.
    pub(super) async fn refuse(self, refusal: Refusal) {
        match self {
            Self::Socks {
                mut stream,
                version,
                ..
            } => {
                let reply = version.encode(refusal.socks_reply());
                if stream.write_all(&reply).await.is_ok() {
                    let _ = stream.shutdown().await;
                }
            }
            Self::Connect { answer, .. } | Self::Memory { answer, .. } => {
                let _ = answer.send(Err(refusal));
            }
            // Dropping a pipe resets the connection: what a program sees of a refused one.
            Self::Tcp { stream, ahead } => drop(Pipe::accepted(stream, ahead)),
            Self::Datagrams(end) => end.queue.refuse(),
        }
    }

    /// Ends when nobody waits for the flow any more; `ends` are those of the program's connection.
    pub(super) async fn gone(&mut self, ends: Option<Ends>) {
        match (self, ends) {
            (Self::Connect { answer, .. } | Self::Memory { answer, .. }, _) => {
                answer.closed().await;
            }
            (Self::Datagrams(end), _) => end.queue.ended().await,
            (Self::Socks { .. } | Self::Tcp { .. }, Some(ends)) => left(ends).await,
            (Self::Socks { .. } | Self::Tcp { .. }, None) => std::future::pending().await,
        }
    }
}

async fn answer_socks(mut stream: TcpStream, version: SocksVersion) -> Option<TcpStream> {
    let reply = version.encode(SocksReply::Succeeded);
    stream.write_all(&reply).await.ok()?;
    Some(stream)
}

/// The connection, and what the program sent too early.
async fn answer_connect(answer: Answer, upgrade: OnUpgrade) -> Option<(TcpStream, Bytes)> {
    answer.send(Ok(())).ok()?;
    let parts = upgrade.await.ok()?.downcast::<TokioIo<TcpStream>>().ok()?;
    Some((parts.io.into_inner(), parts.read_buf))
}

/// Ends when the program let go of its connection. Only the kernel knows: a program that closed
/// and one that ended what it sends, but waits for an answer, look alike on the connection.
pub(crate) async fn left(Ends { theirs, ours }: Ends) {
    loop {
        tokio::time::sleep(LOOK_PERIOD).await;
        if program::has_left(theirs, ours) {
            return;
        }
    }
}
