//! Connections that say nothing, as many at each door of a node: its entrances, its control
//! socket, and its QUIC port, where half a hello arrives and the rest never does.

use std::{
    collections::{BTreeSet, VecDeque},
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context, Result};
use tokio::net::{TcpStream, UdpSocket, UnixStream};

use crate::{Daemon, liar::Liar};

/// Kinds of entrances that a crowd comes to.
const ENTRANCES: [&str; 3] = ["socks5", "http", "tcp"];
/// Before a path is known to carry more, QUIC sends no longer datagrams on an Ethernet.
const MAX_HELLO_BYTES: usize = 1452;

/// A crowd before a node; dropped, it leaves.
#[derive(Debug)]
pub struct Crowd {
    entrances: Vec<SocketAddr>,
    control: PathBuf,
    quic: SocketAddr,
    /// At most `at_each_door`: for who comes then, who came first leaves.
    members: VecDeque<Member>,
    at_each_door: usize,
    /// Of callers that all differ. Who called is forgotten before its turn comes again.
    hellos: Vec<Vec<u8>>,
    caller: UdpSocket,
    came: usize,
}

/// One at each door. Nothing stays open at the QUIC port.
#[derive(Debug)]
struct Member {
    _entrances: Vec<TcpStream>,
    _control: UnixStream,
}

impl Crowd {
    /// Doors that there are.
    pub const DOORS: usize = ENTRANCES.len() + 2;

    /// Nobody so far; there will be `at_each_door`.
    ///
    /// # Errors
    /// When the node lacks a door.
    pub async fn before(node: &Daemon, at_each_door: usize) -> Result<Self> {
        let entrances = ENTRANCES.map(|kind| node.entrance(kind));
        Ok(Self {
            entrances: entrances.into_iter().collect::<Result<_>>()?,
            control: node.socket(),
            quic: node.listen().context("no QUIC port")?,
            members: VecDeque::with_capacity(at_each_door),
            at_each_door,
            hellos: half_hellos(at_each_door).await?,
            caller: UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?,
            came: 0,
        })
    }

    /// So many come to each door.
    ///
    /// # Errors
    /// When a door is shut: a node lets everybody in, and sends away who is too many.
    pub async fn come(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            if self.members.len() == self.at_each_door {
                self.members.pop_front();
            }
            let mut entrances = Vec::with_capacity(self.entrances.len());
            for entrance in &self.entrances {
                match TcpStream::connect(entrance).await {
                    Ok(stream) => entrances.push(stream),
                    // Sent away before it was seen that it is in.
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                    Err(error) => return Err(error.into()),
                }
            }
            self.members.push_back(Member {
                _entrances: entrances,
                _control: UnixStream::connect(&self.control).await?,
            });
            let hello = self.hellos.get(self.came % self.at_each_door);
            self.caller
                .send_to(hello.context("no hello")?, self.quic)
                .await?;
            self.came += 1;
        }
        Ok(())
    }

    /// How many came to each door so far.
    pub fn came(&self) -> usize {
        self.came
    }
}

/// First datagrams of calls, each of which holds the first half of a hello: a post-quantum share
/// does not fit into one.
async fn half_hellos(count: usize) -> Result<Vec<Vec<u8>>> {
    let liar = Liar::new(Ipv4Addr::LOCALHOST)?;
    let nobody = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let mut seen = BTreeSet::new();
    let mut hellos = Vec::with_capacity(count);
    let mut datagram = [0; MAX_HELLO_BYTES];
    while hellos.len() < count {
        let _calling = liar.begin_call(nobody.local_addr()?)?;
        loop {
            let len = nobody.recv(&mut datagram).await?;
            let hello = datagram.get(..len).unwrap_or_default();
            // Later datagrams of the same call have its connection id as well.
            if seen.insert(connection_id(hello)?.to_vec()) {
                hellos.push(hello.to_vec());
                break;
            }
        }
    }
    Ok(hellos)
}

/// Which connection a long header names (RFC 9000, section 17.2).
fn connection_id(datagram: &[u8]) -> Result<&[u8]> {
    let id = || {
        let (length, rest) = datagram.get(5..)?.split_first()?;
        rest.get(..usize::from(*length))
    };
    id().context("no long header")
}
