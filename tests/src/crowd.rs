//! Connections that say nothing, as many at each door of a node: its entrances, its control
//! socket, and its QUIC port, where half a hello arrives and the rest never does.

use std::{
    collections::{BTreeSet, VecDeque},
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    net::{TcpStream, UdpSocket, UnixStream},
    time::timeout,
};

use crate::{Daemon, liar::Liar, until};

/// Kinds of entrances that a crowd comes to.
const ENTRANCES: [&str; 3] = ["socks5", "http", "tcp"];
/// Before a path is known to carry more, QUIC sends no longer datagrams on an Ethernet.
const MAX_HELLO_BYTES: usize = 1452;

/// Half a hello that is not answered by then comes again.
const ANSWER: Duration = Duration::from_millis(200);

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
            self.call().await?;
            self.came += 1;
        }
        Ok(())
    }

    /// Half a hello arrives: it is acknowledged or refused, or the system lost it.
    async fn call(&self) -> Result<()> {
        let hello = self.hellos.get(self.came % self.at_each_door);
        let hello = hello.context("no hello")?;
        let mut answer = [0; MAX_HELLO_BYTES];
        until("an answer to half a hello", async || {
            self.caller.send_to(hello, self.quic).await.ok()?;
            let answered = async {
                loop {
                    let len = self.caller.recv(&mut answer).await.ok()?;
                    let answer = answer.get(..len)?;
                    if connection_ids(answer).ok()?.to == connection_ids(hello).ok()?.from {
                        return Some(());
                    }
                }
            };
            timeout(ANSWER, answered).await.ok()?
        })
        .await
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
            if seen.insert(connection_ids(hello)?.to.to_vec()) {
                hellos.push(hello.to_vec());
                break;
            }
        }
    }
    Ok(hellos)
}

/// The connection ids of a datagram, as each end chose its own.
struct ConnectionIds<'a> {
    to: &'a [u8],
    from: &'a [u8],
}

/// Which connection a long header names (RFC 9000, section 17.2).
fn connection_ids(datagram: &[u8]) -> Result<ConnectionIds<'_>> {
    fn take(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
        let (length, rest) = bytes.split_first()?;
        rest.split_at_checked(usize::from(*length))
    }
    let ids = || {
        let (to, rest) = take(datagram.get(5..)?)?;
        Some(ConnectionIds {
            to,
            from: take(rest)?.0,
        })
    };
    ids().context("no long header")
}
