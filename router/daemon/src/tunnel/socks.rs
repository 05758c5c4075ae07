//! Tunnels through an upstream SOCKS5 server, which gets names unresolved.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wormholes_proto::{
    Reason, SocksClient, SocksClientError, SocksClientState, SocksReply, Target,
};
use wormholes_rules::TunnelKind;

use super::{OpenError, Opened};
use crate::{
    ban::{Ban, Transport},
    dial::{self, DialError},
    network::Network,
    pipe::{Pipe, Side},
};

/// The flow's own limit ends it earlier.
const DIAL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// What an upstream SOCKS server said or did.
#[derive(Debug, Clone, Error)]
pub enum UpstreamError {
    /// It could not be connected to.
    #[error("not reached: {0}")]
    NotReached(DialError),
    /// It hung up before it answered.
    #[error("it hung up")]
    HungUp,
    /// It answered, but did not connect.
    #[error(transparent)]
    Answer(SocksClientError),
}

impl UpstreamError {
    /// What the server says of the target; none when it was not asked, or speaks of itself.
    pub fn word(&self) -> Option<Reason> {
        let Self::Answer(SocksClientError::Refused(reply)) = self else {
            return None;
        };
        match reply {
            SocksReply::NotAllowed => Some(Reason::Denied),
            SocksReply::NetworkUnreachable => Some(Reason::NetworkUnreachable),
            SocksReply::HostUnreachable => Some(Reason::Unreachable),
            SocksReply::ConnectionRefused => Some(Reason::ConnectionRefused),
            SocksReply::TtlExpired => Some(Reason::TimedOut),
            SocksReply::Succeeded
            | SocksReply::GeneralFailure
            | SocksReply::CommandNotSupported
            | SocksReply::AddressTypeNotSupported => None,
        }
    }
}

/// Has `server` connect to `target`.
pub(super) async fn open(
    network: &Network,
    server: SocketAddr,
    target: &Target,
) -> Result<Opened, OpenError> {
    if network.own_sockets().contains(Transport::Tcp, server) {
        return Err(DialError::from(Ban::Own).into());
    }
    let opened = ask(server, target).await;
    opened.map_err(|source| OpenError::Upstream { server, source })
}

async fn ask(server: SocketAddr, target: &Target) -> Result<Opened, UpstreamError> {
    let stream = dial::connect(&[server], DIAL_TIMEOUT).await;
    let mut stream = stream.map_err(UpstreamError::NotReached)?;
    let hung_up = |_| UpstreamError::HungUp;
    let (mut client, greeting) = SocksClient::new(target.clone(), None);
    stream.write_all(&greeting).await.map_err(hung_up)?;
    let mut input = BytesMut::new();
    loop {
        if stream.read_buf(&mut input).await.map_err(hung_up)? == 0 {
            return Err(UpstreamError::HungUp);
        }
        let step = client.handle_input(&input);
        let _ = input.split_to(step.consumed);
        stream.write_all(&step.send).await.map_err(hung_up)?;
        match step.state {
            SocksClientState::NeedMore => {}
            SocksClientState::Connected(_) => return Ok(opened(stream, input.freeze())),
            SocksClientState::Failed(error) => return Err(UpstreamError::Answer(error)),
        }
    }
}

fn opened(stream: tokio::net::TcpStream, ahead: Bytes) -> Opened {
    Opened {
        side: Side::Stream(Pipe::tcp_ahead(stream, ahead)),
        path: Vec::new(),
        kind: TunnelKind::Socks,
    }
}
