//! A plain client of an I2P router, by lines of SAM: whom a node calls, and who calls a node.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use wormholes_proto::sam::Destination;

use crate::{i2p_network::I2pNetwork, namespace::Namespace};

/// A session takes a router 20 s or 40 s, and a name that nobody answers to 25 s.
const PATIENCE: Duration = Duration::from_secs(120);
const MAX_LINE_BYTES: usize = 8192;

/// A session at a router.
#[derive(Debug)]
pub struct SamPeer {
    host: Arc<Namespace>,
    sam: SocketAddr,
    id: String,
    address: String,
    _session: TcpStream,
}

impl SamPeer {
    /// Makes a session at one of the network's two routers; without keys, with new ones.
    ///
    /// # Errors
    /// When the router makes none.
    pub async fn start(network: &I2pNetwork, which: usize, keys: Option<&str>) -> Result<Self> {
        let (host, sam) = (Arc::clone(network.host()), network.sam(which));
        let id = format!("peer{:016x}", rand::random::<u64>());
        let mut session = hello(&host, sam).await?;
        let keys = keys.unwrap_or("TRANSIENT SIGNATURE_TYPE=7");
        let create = format!(
            "SESSION CREATE STYLE=STREAM ID={id} DESTINATION={keys} inbound.length=1 \
             outbound.length=1 i2cp.leaseSetEncType=4,0"
        );
        ask(&mut session, &create).await?;
        let me = ask(&mut session, "NAMING LOOKUP NAME=ME").await?;
        let address = short_name(value(&me, "VALUE")?)?;
        Ok(Self {
            host,
            sam,
            id,
            address,
            _session: session,
        })
    }

    /// Its destination: `….b32.i2p`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Calls a destination.
    ///
    /// # Errors
    /// When the router cannot.
    pub async fn connect(&self, to: &str) -> Result<TcpStream> {
        let mut stream = hello(&self.host, self.sam).await?;
        let connect = format!(
            "STREAM CONNECT ID={} DESTINATION={to} SILENT=false",
            self.id
        );
        ask(&mut stream, &connect).await?;
        Ok(stream)
    }

    /// Takes the next call: the caller's destination (`….b32.i2p`), and the stream.
    ///
    /// # Errors
    /// When nobody calls.
    pub async fn accept(&self) -> Result<(String, TcpStream)> {
        let mut stream = hello(&self.host, self.sam).await?;
        ask(
            &mut stream,
            &format!("STREAM ACCEPT ID={} SILENT=false", self.id),
        )
        .await?;
        let caller = line(&mut stream).await.context("nobody calls")?;
        let caller = caller.split(' ').next().unwrap_or_default();
        Ok((short_name(caller)?, stream))
    }
}

/// Has a router make a destination: its public part, and its keys.
pub(crate) async fn generate(host: &Namespace, sam: SocketAddr) -> Result<(String, String)> {
    let mut stream = hello(host, sam).await?;
    stream
        .write_all(b"DEST GENERATE SIGNATURE_TYPE=7\n")
        .await?;
    let answer = line(&mut stream).await?;
    Ok((
        value(&answer, "PUB")?.to_owned(),
        value(&answer, "PRIV")?.to_owned(),
    ))
}

async fn hello(host: &Namespace, sam: SocketAddr) -> Result<TcpStream> {
    let mut stream = host.connect(sam)?;
    ask(&mut stream, "HELLO VERSION MIN=3.1 MAX=3.3").await?;
    Ok(stream)
}

/// Sends a line, and reads an answer that says OK.
async fn ask(stream: &mut TcpStream, question: &str) -> Result<String> {
    stream.write_all(format!("{question}\n").as_bytes()).await?;
    let answer = line(stream).await?;
    if value(&answer, "RESULT")? != "OK" {
        bail!("the router answers {answer:?}");
    }
    Ok(answer)
}

/// A line, byte by byte: what follows it belongs to somebody else.
async fn line(stream: &mut TcpStream) -> Result<String> {
    let read = async {
        let mut line = Vec::new();
        loop {
            match stream.read_u8().await? {
                b'\n' => return Ok(String::from_utf8(line)?),
                byte if line.len() < MAX_LINE_BYTES => line.push(byte),
                _ => bail!("a long line"),
            }
        }
    };
    timeout(PATIENCE, read).await.context("no answer")?
}

fn value<'a>(line: &'a str, key: &str) -> Result<&'a str> {
    let mut pairs = line.split(' ').filter_map(|word| word.split_once('='));
    let found = pairs.find(|(found, _)| *found == key);
    found
        .map(|(_, value)| value)
        .with_context(|| format!("no {key} in {line:?}"))
}

fn short_name(destination: &str) -> Result<String> {
    Ok(Destination::parse(destination)?.short_name().to_owned())
}
