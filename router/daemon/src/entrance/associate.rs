//! UDP ASSOCIATE (RFC 1928, section 7): a socket of its own for each association, which lasts as
//! long as the connection that asked for it.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};
use wormholes_proto::{SocksReply, Transport};

use super::{
    Door,
    datagrams::{Client, Desk, Framing},
};
use crate::{
    flow::{Ends, Login},
    network::Network,
    node::NodeCore,
};

/// Flows of one association at once: pairs of it and a target. A program that asks many, like a
/// name server's, keeps the latest.
const MAX_FLOWS: usize = 256;

/// What a client asked for.
pub(super) struct Association {
    pub(super) stream: TcpStream,
    pub(super) ends: Ends,
    pub(super) login: Option<Login>,
    /// The port that its datagrams come from; none: it did not say.
    pub(super) port: Option<u16>,
}

/// The association's socket among the node's own, which no flow reaches.
struct Own<'a> {
    network: &'a Network,
    address: SocketAddr,
}

impl Association {
    /// Serves it until its connection ends.
    pub(super) async fn serve(self, door: &Arc<Door>, core: &Arc<NodeCore>) {
        let Self {
            mut stream,
            ends,
            login,
            port,
        } = self;
        let Ok(_place) = door.associations.try_acquire() else {
            door.refused(core, "full");
            return answer(&mut stream, SocksReply::GeneralFailure, None).await;
        };
        let (socket, address) = match bind(ends).await {
            Ok(bound) => bound,
            Err(error) => {
                tracing::warn!(%error, "no socket for a UDP association");
                return answer(&mut stream, SocksReply::GeneralFailure, None).await;
            }
        };
        let _own = Own::new(&core.network, address);
        answer(&mut stream, SocksReply::Succeeded, Some(address)).await;
        let desk = Desk {
            door: Arc::clone(door),
            core: Arc::clone(core),
            socket: Arc::new(socket),
            address,
            login,
            max_flows: MAX_FLOWS,
        };
        let client = Client {
            ip: ends.theirs.ip(),
            port,
        };
        desk.run(Framing::Socks(client), left(stream)).await;
    }
}

/// Beside the connection, at the address where the client reached this node.
async fn bind(ends: Ends) -> io::Result<(UdpSocket, SocketAddr)> {
    let socket = UdpSocket::bind((ends.ours.ip().to_canonical(), 0)).await?;
    let address = socket.local_addr()?;
    Ok((socket, address))
}

/// Who is gone by now is noticed by what comes next.
async fn answer(stream: &mut TcpStream, reply: SocksReply, bound: Option<SocketAddr>) {
    let sent = stream.write_all(&reply.encode(bound)).await;
    if reply != SocksReply::Succeeded && sent.is_ok() {
        let _ = stream.shutdown().await;
    }
}

/// Ends with the connection. What comes on it means nothing.
async fn left(mut stream: TcpStream) {
    let mut nothing = [0; 64];
    while matches!(stream.read(&mut nothing).await, Ok(1..)) {}
}

impl<'a> Own<'a> {
    fn new(network: &'a Network, address: SocketAddr) -> Self {
        network.protect_socket(Transport::Udp, address);
        Self { network, address }
    }
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        let own_sockets = self.network.own_sockets();
        own_sockets.remove(Transport::Udp, self.address);
    }
}
