//! SOCKS5 and SOCKS4: the handshake machine of `proto` on a connection.

use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use wormholes_proto::{
    Host, MAX_SOCKS_MESSAGE_BYTES, SocksAuth, SocksReply, SocksServer, SocksServerError,
    SocksServerState, SocksVersion, Target,
};

use super::{Door, Visitor, associate::Association};
use crate::{
    flow::{self, LocalEnd, Login},
    node::NodeCore,
};

/// What a client asked for.
struct Request {
    wanted: Wanted,
    login: Option<Login>,
    /// What it sent beyond its request.
    ahead: Bytes,
}

enum Wanted {
    /// A connection there.
    Connect(Target, SocksVersion),
    /// An address of that host.
    Resolve(Host),
    /// To send datagrams, from that port.
    Associate(Option<u16>),
}

/// A handshake that came to nothing.
#[derive(Debug, Error)]
enum HandshakeError {
    #[error("the client went away")]
    Gone,
    #[error(transparent)]
    Protocol(#[from] SocksServerError),
}

/// Serves one connection.
pub(super) async fn serve(door: &Arc<Door>, visitor: Visitor, core: Arc<NodeCore>) {
    let mut stream = visitor.stream;
    let evicted = visitor.place.evicted();
    let handshake =
        tokio::time::timeout(core.config.limits.handshake, handshake(door, &mut stream));
    let request = tokio::select! {
        handshake = handshake => match handshake {
            Ok(Ok(request)) => request,
            Ok(Err(error)) => {
                tracing::debug!(%error, from = %visitor.ends.theirs, "SOCKS handshake failed");
                return door.refused(&core, reason(&error));
            }
            Err(_) => return door.refused(&core, "slow"),
        },
        () = evicted.cancelled() => return door.refused(&core, "full"),
        () = core.stop.cancelled() => return,
    };
    drop(visitor.place);
    match request.wanted {
        Wanted::Connect(target, version) => {
            let local = LocalEnd::Socks {
                stream,
                ahead: request.ahead,
                version,
            };
            let asked = door.asked(visitor.ends, target, request.login);
            flow::run(&core, asked, local).await;
        }
        Wanted::Resolve(host) => {
            let asked = door.asked(visitor.ends, Target::new(host, 0), request.login);
            let found = flow::look_up(&core, asked).await;
            let reply = match found {
                Ok(ip) => SocksReply::Succeeded.encode(Some((ip, 0).into())),
                Err(refusal) => refusal.socks_reply().encode(None),
            };
            // Nobody else would want to know.
            if stream.write_all(&reply).await.is_ok() {
                let _ = stream.shutdown().await;
            }
        }
        Wanted::Associate(port) => {
            let association = Association {
                stream,
                ends: visitor.ends,
                login: request.login,
                port,
            };
            // Boxed: rare, and larger than the rest.
            Box::pin(association.serve(door, &core)).await;
        }
    }
}

async fn handshake(door: &Door, stream: &mut TcpStream) -> Result<Request, HandshakeError> {
    let users = &door.config.users;
    let auth = if users.is_empty() {
        SocksAuth::Label
    } else {
        SocksAuth::Required
    };
    let mut server = SocksServer::new(auth);
    let mut input = Vec::with_capacity(MAX_SOCKS_MESSAGE_BYTES);
    let mut login = None;
    loop {
        let step = server.handle_input(&input);
        input.drain(..step.consumed);
        send(stream, &step.reply).await?;
        match step.state {
            SocksServerState::NeedMore => receive(stream, &mut input).await?,
            SocksServerState::CheckPassword(given) => {
                let secret = users.get(given.user());
                let good = users.is_empty()
                    || secret.is_some_and(|secret| secret.matches(given.password().as_bytes()));
                send(stream, &server.handle_verdict(good)).await?;
                if !good {
                    return Err(SocksServerError::Password.into());
                }
                login = Some(Login::new(given.user(), given.password()));
            }
            SocksServerState::Request {
                target,
                version,
                user,
            } => {
                return Ok(Request {
                    wanted: Wanted::Connect(target, version),
                    login: login.or(user.map(|user| Login::new(&user, ""))),
                    ahead: input.into(),
                });
            }
            SocksServerState::Resolve(host) => {
                return Ok(Request {
                    wanted: Wanted::Resolve(host),
                    login,
                    ahead: Bytes::new(),
                });
            }
            SocksServerState::Associate(port) => {
                return Ok(Request {
                    wanted: Wanted::Associate(port),
                    login,
                    ahead: Bytes::new(),
                });
            }
            SocksServerState::Failed(error) => {
                // The reply arrives only when the connection ends in order.
                let _ = stream.shutdown().await;
                return Err(error.into());
            }
        }
    }
}

async fn send(stream: &mut TcpStream, bytes: &[u8]) -> Result<(), HandshakeError> {
    if bytes.is_empty() {
        return Ok(());
    }
    stream
        .write_all(bytes)
        .await
        .map_err(|_| HandshakeError::Gone)
}

/// Reads more. The machine needs at most one message at a time, so that the buffer stays bounded:
/// it asks for more only while it holds less than that.
async fn receive(stream: &mut TcpStream, input: &mut Vec<u8>) -> Result<(), HandshakeError> {
    let room = MAX_SOCKS_MESSAGE_BYTES.saturating_sub(input.len()).max(1);
    let mut limited = stream.take(room as u64);
    match limited.read_buf(input).await {
        Ok(read) if read > 0 => Ok(()),
        Ok(_) | Err(_) => Err(HandshakeError::Gone),
    }
}

fn reason(error: &HandshakeError) -> &'static str {
    match error {
        HandshakeError::Gone => "gone",
        HandshakeError::Protocol(SocksServerError::NoMethod | SocksServerError::Password) => {
            "login"
        }
        HandshakeError::Protocol(SocksServerError::Command(_) | SocksServerError::AddressType) => {
            "unsupported"
        }
        HandshakeError::Protocol(
            SocksServerError::NotSocks(_)
            | SocksServerError::Target
            | SocksServerError::Malformed(_)
            | SocksServerError::Unexpected,
        ) => "malformed",
    }
}
