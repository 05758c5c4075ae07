//! Nodes in one process, each on its own loopback address.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, ready},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use wormholed::{
    Config, Counters, ExitRule, Gatekeeper, Network, NetworkOptions, OpenGate, Opened, PeerConfig,
    Pipe, PipeError, RoleConfig, ServiceConfig, Side, StartError, TunnelRequest, Witness,
};
use wormholes_proto::{NodeId, ServiceName, Target, Transport};
use wormholes_rules::Verdict;

/// Generous: a machine under load is slow, a hang is for ever.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Node {
    pub(crate) network: Arc<Network>,
    pub(crate) name: String,
    _dir: TempDir,
}

/// Starts a node at 127.`number`.0.1 with `edit` applied to its config.
pub(crate) fn node(number: u8, edit: impl FnOnce(&mut Config)) -> Node {
    guarded_node(number, edit, Arc::new(OpenGate), NetworkOptions::default())
}

pub(crate) fn guarded_node(
    number: u8,
    edit: impl FnOnce(&mut Config),
    gatekeeper: Arc<dyn Gatekeeper>,
    options: NetworkOptions,
) -> Node {
    start(number, edit, gatekeeper, options).unwrap()
}

/// For ports that may not be free.
pub(crate) fn try_node(number: u8, edit: impl FnOnce(&mut Config)) -> Result<Node, StartError> {
    start(number, edit, Arc::new(OpenGate), NetworkOptions::default())
}

fn start(
    number: u8,
    edit: impl FnOnce(&mut Config),
    gatekeeper: Arc<dyn Gatekeeper>,
    options: NetworkOptions,
) -> Result<Node, StartError> {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.node.name = format!("node{number}");
    config.node.data_dir = dir.path().join("data");
    config.node.listen = vec![SocketAddr::from((Ipv4Addr::new(127, number, 0, 1), 0))];
    edit(&mut config);
    let name = config.node.name.clone();
    let counters = Arc::new(Counters::default());
    Ok(Node {
        network: Network::start(config, options, gatekeeper, counters)?,
        name,
        _dir: dir,
    })
}

/// A role that is on.
pub(crate) fn enabled() -> RoleConfig {
    RoleConfig {
        enabled: true,
        ..RoleConfig::default()
    }
}

/// Turns the exit role on, for every address of a test network.
pub(crate) fn exits(config: &mut Config) {
    config.exit.role = enabled();
    config.exit.allow_private = true;
    config.exit.allow = vec![ExitRule {
        net: "0.0.0.0/0".parse().unwrap(),
        ports: Vec::new(),
    }];
}

pub(crate) fn service(name: &str, target: SocketAddr) -> ServiceConfig {
    ServiceConfig {
        name: ServiceName::parse(name).unwrap(),
        target,
        transport: Transport::Tcp,
        min_trust: 2,
        onion: None,
        i2p: false,
    }
}

/// `node` as others know it.
pub(crate) fn peer(node: &Node) -> PeerConfig {
    PeerConfig {
        name: node.name.clone(),
        id: node.network.id(),
        addresses: node.network.listen_addresses(),
        onions: Vec::new(),
        trust: 2,
        via: Vec::new(),
        register: false,
    }
}

/// Makes each node know all the others.
pub(crate) fn befriend(nodes: &[&Node]) {
    for node in nodes {
        let others = nodes
            .iter()
            .filter(|other| other.network.id() != node.network.id());
        node.network
            .set_peers(&others.map(|other| peer(other)).collect::<Vec<_>>());
    }
}

pub(crate) fn request(target: impl Into<Target>) -> TunnelRequest {
    TunnelRequest {
        carrier: None,
        transport: Transport::Tcp,
        target: target.into(),
        service: None,
        isolation: String::new(),
        timeout: Duration::from_secs(30),
        patience: None,
    }
}

pub(crate) fn service_request(name: &str) -> TunnelRequest {
    TunnelRequest {
        carrier: None,
        service: ServiceName::parse(name).ok(),
        ..request(SocketAddr::from(([127, 0, 0, 1], 1)))
    }
}

/// A server that sends back what it gets, and ends when its client does.
pub(crate) async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.shutdown().await;
            });
        }
    });
    address
}

/// A server that answers only after its client has ended: half-close must pass.
pub(crate) async fn late_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                if stream.read_to_end(&mut all).await.is_ok() {
                    let _ = stream
                        .write_all(format!("got {}", all.len()).as_bytes())
                        .await;
                }
            });
        }
    });
    address
}

/// A port that nobody listens on.
pub(crate) async fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// The target's side of a TCP flow.
pub(crate) fn pipe(opened: &mut Opened) -> &mut Pipe {
    match &mut opened.side {
        Side::Stream(pipe) => pipe,
        Side::Datagrams(_) => panic!("a UDP flow"),
    }
}

/// Sends `bytes`, ends, and reads everything that comes.
pub(crate) async fn exchange(opened: Opened, bytes: &[u8]) -> Result<Vec<u8>, PipeError> {
    let Pipe {
        mut reader,
        mut writer,
    } = opened.into_pipe().unwrap();
    let send = async {
        for chunk in bytes.chunks(50_000) {
            writer.write_chunk(chunk.to_vec().into()).await?;
        }
        writer.finish().await
    };
    let receive = async {
        let mut all = Vec::new();
        while let Some(chunk) = reader.read_chunk().await? {
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    };
    let both = async { tokio::try_join!(send, receive) };
    let (_, all) = within(both).await?;
    Ok(all)
}

/// Bytes that repeat nowhere, so that an exchange of blocks is seen.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

/// Fails instead of hanging.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("in time")
}

/// A gatekeeper's answer that takes no time.
pub(crate) fn said(verdict: Verdict) -> BoxFuture<'static, Verdict> {
    ready(verdict).boxed()
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let mut looks = tokio::time::interval(Duration::from_millis(5));
    let poll = async {
        while !condition() {
            looks.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, poll)
        .await
        .unwrap_or_else(|_| panic!("{what}"));
}

/// Keeps what a node in between sees.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<Vec<u8>>);

impl Witness for Seen {
    fn saw(&self, _role: &'static str, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

impl Seen {
    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub(crate) fn contains(&self, needle: &[u8]) -> bool {
        let seen = self.0.lock().unwrap();
        seen.windows(needle.len()).any(|window| window == needle)
    }
}

pub(crate) fn ids(nodes: &[&Node]) -> Vec<NodeId> {
    nodes.iter().map(|node| node.network.id()).collect()
}

/// Sends back what comes on trunks, and keeps who is at the other end of each.
pub(crate) fn answer_trunks(node: &Node) -> Arc<Mutex<Vec<Option<NodeId>>>> {
    let callers: Arc<Mutex<Vec<_>>> = Arc::default();
    let seen = Arc::clone(&callers);
    node.network.answer_trunks(move |trunk, peer| {
        seen.lock().unwrap().push(peer);
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(trunk);
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
            let _ = writer.shutdown().await;
        });
    });
    callers
}

pub(crate) fn trunk_request() -> TunnelRequest {
    service_request(ServiceName::trunk().as_str())
}
