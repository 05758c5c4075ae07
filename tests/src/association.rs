//! A program's UDP association at a SOCKS5 entrance (RFC 1928, section 7), as far as one that asks
//! and waits for the answer needs it.

use anyhow::{Context, Result, bail};
use tokio::net::{TcpStream, UdpSocket};
use wormholes_proto::{Target, decode_socks_datagram, encode_socks_datagram_head};

use crate::client::{Reply, greet, request};

/// RFC 1928, section 4.
const ASSOCIATE: u8 = 3;
/// No answer of a test is longer.
const MAX_DATAGRAM_BYTES: usize = 2048;

/// An association; dropped, it ends, and its flows with it.
#[derive(Debug)]
pub struct Association {
    _control: TcpStream,
    socket: UdpSocket,
}

impl Association {
    /// Asks for one on a new connection to an entrance; `socket` is what the datagrams will come
    /// from, `user` a name that tells a script what is wanted.
    ///
    /// # Errors
    /// With the reply code in the text when the entrance refuses.
    pub async fn open(
        mut control: TcpStream,
        socket: UdpSocket,
        user: Option<&str>,
    ) -> Result<Self> {
        greet(&mut control, user).await?;
        let Reply { code, bound } = request(&mut control, ASSOCIATE, "0.0.0.0", 0).await?;
        if code != 0 {
            bail!("refused with reply code {code}");
        }
        socket.connect(bound).await?;
        Ok(Self {
            _control: control,
            socket,
        })
    }

    /// Sends a datagram to `target`, and waits for one from there. Cancel-safe.
    ///
    /// # Errors
    /// When the association ended, or what comes is no datagram of SOCKS5's.
    pub async fn ask(&self, target: &Target, data: &[u8]) -> Result<Vec<u8>> {
        let head = encode_socks_datagram_head(target);
        self.socket.send(&[&head, data].concat()).await?;
        let mut datagram = [0; MAX_DATAGRAM_BYTES];
        let len = self.socket.recv(&mut datagram).await?;
        let datagram = datagram.get(..len).context("no datagram")?;
        let (_from, data) = decode_socks_datagram(datagram)?;
        Ok(data.to_vec())
    }
}
