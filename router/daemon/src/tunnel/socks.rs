//! Tunnels through an upstream SOCKS5 server, which gets names unresolved.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wormholes_proto::{
    Reason, SocksClient, SocksClientError, SocksClientState, SocksReply, Target,
};
use wormholes_rules::TunnelKind;

use super::{OpenError, Opened};
use crate::{
    ban::Ban,
    dial::{self, DialError},
    network::Network,
    pipe::Pipe,
};

/// The flow's own limit ends it earlier.
const DIAL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// Has `server` connect to `target`.
pub(super) async fn open(
    network: &Network,
    server: SocketAddr,
    target: &Target,
) -> Result<Opened, OpenError> {
    if network.own_sockets().contains(server) {
        return Err(DialError::from(Ban::Own).into());
    }
    let mut stream = dial::connect(&[server], DIAL_TIMEOUT).await?;
    let lost = |_| OpenError::Upstream(Reason::Unreachable);
    let (mut client, greeting) = SocksClient::new(target.clone(), None);
    stream.write_all(&greeting).await.map_err(lost)?;
    let mut input = BytesMut::new();
    loop {
        if stream.read_buf(&mut input).await.map_err(lost)? == 0 {
            return Err(OpenError::Upstream(Reason::Unreachable));
        }
        let step = client.handle_input(&input);
        let _ = input.split_to(step.consumed);
        stream.write_all(&step.send).await.map_err(lost)?;
        match step.state {
            SocksClientState::NeedMore => {}
            SocksClientState::Connected(_) => return Ok(opened(stream, input.freeze())),
            SocksClientState::Failed(error) => return Err(OpenError::Upstream(reason(error))),
        }
    }
}

fn opened(stream: tokio::net::TcpStream, ahead: Bytes) -> Opened {
    Opened {
        pipe: Pipe::tcp_ahead(stream, ahead),
        path: Vec::new(),
        kind: TunnelKind::Socks,
    }
}

fn reason(error: SocksClientError) -> Reason {
    match error {
        SocksClientError::NoMethod | SocksClientError::Password => Reason::Denied,
        SocksClientError::Malformed(_) => Reason::Malformed,
        SocksClientError::Refused(reply) => reply_reason(reply),
    }
}

fn reply_reason(reply: SocksReply) -> Reason {
    match reply {
        SocksReply::NotAllowed => Reason::Denied,
        SocksReply::NetworkUnreachable => Reason::NetworkUnreachable,
        SocksReply::HostUnreachable => Reason::Unreachable,
        SocksReply::ConnectionRefused => Reason::ConnectionRefused,
        SocksReply::TtlExpired => Reason::TimedOut,
        SocksReply::Succeeded
        | SocksReply::GeneralFailure
        | SocksReply::CommandNotSupported
        | SocksReply::AddressTypeNotSupported => Reason::Unsupported,
    }
}
