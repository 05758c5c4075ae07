//! Hosts of plugins without daemons: a network in memory joins them, whose flows can be cut, and each
//! can be closed and opened again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use data_encoding::HEXLOWER;
use futures_util::{FutureExt as _, future::BoxFuture};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream},
    sync::mpsc,
    task::AbortHandle,
};
use wormholes_host::{
    Call, CallError, Caller, Command, Datagram, ErrorCode, Fact, FetchCall, Host, HttpResponse,
    Manifest, Network, Observer, Pipe, Principal, Refusal, RuleQuestion, Ruling, SocketCall,
    Source, Terms,
};
use wormholes_proto::NodeId;
use zeroize::Zeroizing;

use crate::{
    FickleDisk,
    binaries::{self, component},
    until, workspace,
};

/// What a flow holds each way.
const PIPE_BYTES: usize = 64 << 10;
/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who can be reached, by id; and the flows between them.
#[derive(Debug, Default)]
pub struct HostNetwork {
    hosts: Mutex<BTreeMap<NodeId, Arc<Host>>>,
    /// Who takes flows, and is no host.
    pretenders: Mutex<BTreeMap<NodeId, mpsc::UnboundedSender<DuplexStream>>>,
    flows: Mutex<Vec<AbortHandle>>,
    /// All that went over them.
    recorded: Arc<Mutex<Vec<u8>>>,
}

/// The network as one host sees it.
#[derive(Debug)]
struct Port {
    id: NodeId,
    key: Ed25519KeyPair,
    network: Arc<HostNetwork>,
}

/// A host with one plugin.
#[derive(Debug)]
pub struct PluginHost {
    folder: TempDir,
    id: NodeId,
    seed: [u8; 32],
    network: Arc<HostNetwork>,
    plugin: String,
    /// Where its rows lie, if that is no file of its folder.
    disk: Option<FickleDisk>,
    host: Option<Arc<Host>>,
}

impl HostNetwork {
    /// Breaks all flows, wherever they are.
    pub fn cut(&self) {
        lock(&self.flows).drain(..).for_each(|flow| flow.abort());
    }

    /// Gives the flows to a node, which no host is, as they come.
    pub fn pretend(&self, id: NodeId) -> mpsc::UnboundedReceiver<DuplexStream> {
        let (flows, received) = mpsc::unbounded_channel();
        lock(&self.pretenders).insert(id, flows);
        received
    }

    /// All bytes that went over flows since the last look.
    pub fn take_recorded(&self) -> Vec<u8> {
        std::mem::take(&mut *lock(&self.recorded))
    }

    fn open(&self, from: Option<NodeId>, to: NodeId) -> Result<Box<dyn Pipe>, CallError> {
        if let Some(pretender) = lock(&self.pretenders).get(&to) {
            let (near, far) = tokio::io::duplex(PIPE_BYTES);
            // Its test may be over.
            let _ = pretender.send(far);
            return Ok(Box::new(near));
        }
        let Some(host) = lock(&self.hosts).get(&to).cloned() else {
            let why = "it is closed".to_owned();
            let is_final = false;
            return Err(CallError { why, is_final });
        };
        let (near, near_end) = tokio::io::duplex(PIPE_BYTES);
        let (far_end, far) = tokio::io::duplex(PIPE_BYTES);
        let (near_read, near_write) = tokio::io::split(near_end);
        let (far_read, far_write) = tokio::io::split(far_end);
        let (there, back) = (Arc::clone(&self.recorded), Arc::clone(&self.recorded));
        let copy = async move {
            let there = record(near_read, far_write, there);
            tokio::try_join!(there, record(far_read, near_write, back))
        };
        let mut flows = lock(&self.flows);
        flows.retain(|flow| !flow.is_finished());
        flows.push(tokio::spawn(copy).abort_handle());
        host.answer_call(Box::new(far), from);
        Ok(Box::new(near))
    }
}

impl Network for Port {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Box<dyn Pipe>, CallError>> {
        let network = Arc::clone(&self.network);
        let from = (!call.hides_node).then_some(self.id);
        async move { network.open(from, call.to) }.boxed()
    }

    /// There is no world beyond the nodes.
    fn connect(&self, _: SocketCall) -> BoxFuture<'static, Result<Box<dyn Pipe>, Refusal>> {
        async { Err(Refusal::new(ErrorCode::Unavailable, "nobody is there")) }.boxed()
    }

    fn fetch(&self, _: FetchCall) -> BoxFuture<'static, Result<HttpResponse, Refusal>> {
        async { Err(Refusal::new(ErrorCode::Unavailable, "nobody is there")) }.boxed()
    }

    fn send_datagram(&self, _: Datagram) {}

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.key.sign(message).as_ref());
        signature
    }

    fn derive(&self, purpose: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut secret = Zeroizing::new([0; 32]);
        let signature = self.sign(&[b"derived secrets", purpose].concat());
        let digest = ring::digest::digest(&ring::digest::SHA256, &signature);
        secret.copy_from_slice(digest.as_ref());
        secret
    }

    /// There are no scripts.
    fn ask_rules(&self, _: RuleQuestion) -> Ruling {
        Ruling::None
    }

    fn publish(&self, _: Vec<Fact>) {}

    fn forget_facts(&self, _: &BTreeSet<String>) {}
}

/// A node that reaches nobody: its id, and the network as its host sees it.
pub(crate) fn alone(seed: &[u8; 32]) -> Result<(NodeId, Arc<dyn Network>)> {
    let key = key(seed)?;
    let id = NodeId::from_bytes(key.public_key().as_ref().try_into()?);
    let network = Arc::default();
    Ok((id, Arc::new(Port { id, key, network })))
}

impl PluginHost {
    /// A host of a new identity with the plugin in `folder` of the workspace: `plugins/ledger`.
    ///
    /// # Errors
    /// When the plugin cannot be built or loaded.
    pub async fn new(network: &Arc<HostNetwork>, folder: &str) -> Result<Self> {
        Self::begin(network, folder, None).await
    }

    /// The same, with its rows on a disk that can fail.
    ///
    /// # Errors
    /// When the plugin cannot be built or loaded.
    pub async fn on_disk(
        network: &Arc<HostNetwork>,
        folder: &str,
        disk: &FickleDisk,
    ) -> Result<Self> {
        Self::begin(network, folder, Some(disk.clone())).await
    }

    async fn begin(
        network: &Arc<HostNetwork>,
        folder: &str,
        disk: Option<FickleDisk>,
    ) -> Result<Self> {
        let seed: [u8; 32] = rand::random();
        let mut host = Self {
            folder: TempDir::new()?,
            id: NodeId::from_bytes(key(&seed)?.public_key().as_ref().try_into()?),
            seed,
            network: Arc::clone(network),
            plugin: folder.to_owned(),
            disk,
            host: None,
        };
        binaries::share_compiled(host.folder.path())?;
        host.open(None).await?;
        Ok(host)
    }

    /// Opens it again.
    ///
    /// # Errors
    /// When its store or the plugin cannot be opened.
    pub async fn open(&mut self, observer: Option<Observer>) -> Result<()> {
        let port = Arc::new(Port {
            id: self.id,
            key: key(&self.seed)?,
            network: Arc::clone(&self.network),
        });
        let path = self.folder.path();
        let host = match self.disk.clone() {
            None => Host::open(path, self.id, port, observer),
            Some(disk) => Host::open_on(Box::new(disk), path, self.id, port, observer),
        }?;
        self.load_in(&host).await?;
        let host = Arc::new(host);
        lock(&self.network.hosts).insert(self.id, Arc::clone(&host));
        self.host = Some(host);
        Ok(())
    }

    /// Takes the plugin out and loads it again, while the host runs; how long the latter took.
    ///
    /// # Errors
    /// When it is closed, or either cannot be done.
    pub async fn reload(&self) -> Result<Duration> {
        let host = self.host.as_ref().context("it is open")?;
        host.remove(self.name(), false).await?;
        self.load_in(host).await
    }

    /// How long it took.
    async fn load_in(&self, host: &Host) -> Result<Duration> {
        let name = self.name();
        let path = workspace::root().join(&self.plugin).join("plugin.toml");
        let manifest = fs::read_to_string(&path)?;
        let grants = Manifest::parse(&manifest)?.capabilities;
        let wasm = fs::read(component(&format!("wormholes_{name}"))?)?;
        let source = Source::new(path, manifest, wasm);
        let terms = Terms {
            grants,
            strangers: true,
            ..Terms::default()
        };
        let start = Instant::now();
        host.load(name, source, terms).await?;
        Ok(start.elapsed())
    }

    /// Ends it; what it answered is durable.
    ///
    /// # Errors
    /// When somebody keeps asking it.
    pub async fn close(&mut self) -> Result<()> {
        lock(&self.network.hosts).remove(&self.id);
        let host = self.host.take().context("it is open")?;
        let alone = async || (Arc::strong_count(&host) == 1).then_some(());
        until("nobody asks the host", alone).await?;
        let host = Arc::into_inner(host).context("it is asked")?;
        host.close().await;
        Ok(())
    }

    /// The host.
    ///
    /// # Errors
    /// When it is closed.
    pub fn host(&self) -> Result<&Arc<Host>> {
        self.host.as_ref().context("the host is closed")
    }

    /// Gives a command to the plugin's node principal.
    ///
    /// # Errors
    /// What the plugin refused.
    pub async fn ask(&self, command: &str, arguments: Value) -> Result<Value> {
        self.ask_as(None, command, arguments).await
    }

    /// Gives a command to the principal of a user.
    ///
    /// # Errors
    /// What the plugin refused.
    pub async fn ask_as(
        &self,
        user: Option<&str>,
        command: &str,
        arguments: Value,
    ) -> Result<Value> {
        let body = arguments.to_string();
        let (principal, caller) = match user {
            None => (Principal::Node, Caller::Operator),
            Some(name) => (Principal::User(name.into()), Caller::User(name.into())),
        };
        let (name, body) = (self.name(), body.as_bytes());
        let pending = self.host()?.request(
            name,
            principal,
            Command::new(caller, command, body),
            PATIENCE,
        )?;
        Ok(serde_json::from_slice(&pending.answer().await?)?)
    }

    /// Asks the plugin's node principal a question.
    ///
    /// # Errors
    /// What the plugin refused.
    pub async fn query(&self, command: &str) -> Result<Value> {
        self.query_as(None, command).await
    }

    /// Asks the principal of a user a question.
    ///
    /// # Errors
    /// What the plugin refused.
    pub async fn query_as(&self, user: Option<&str>, command: &str) -> Result<Value> {
        let (principal, caller) = match user {
            None => (Principal::Node, Caller::Operator),
            Some(name) => (Principal::User(name.into()), Caller::User(name.into())),
        };
        let host = self.host()?;
        let answer = host
            .query(self.name(), principal, caller, command, b"{}")
            .await?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// The instance.
    pub fn name(&self) -> &str {
        self.plugin.rsplit('/').next().unwrap_or(&self.plugin)
    }

    /// Its node's id.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The same as commands take it.
    pub fn hex(&self) -> String {
        HEXLOWER.encode(self.id.as_bytes())
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Copies until the end, and remembers what it copied.
async fn record(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    recorded: Arc<Mutex<Vec<u8>>>,
) -> io::Result<()> {
    let mut bytes = vec![0; PIPE_BYTES];
    loop {
        let read = from.read(&mut bytes).await?;
        let bytes = bytes.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            return to.shutdown().await;
        }
        lock(&recorded).extend_from_slice(bytes);
        to.write_all(bytes).await?;
    }
}

fn key(seed: &[u8; 32]) -> Result<Ed25519KeyPair> {
    Ed25519KeyPair::from_seed_unchecked(seed).map_err(|error| anyhow!("no key: {error}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
