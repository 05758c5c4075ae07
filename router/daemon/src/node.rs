//! One node, put together: rules, network, entrances, control and metrics. A program that embeds
//! a node uses [`Node`]; the daemon does no more.

mod core;
mod reload;

use std::{io, net::SocketAddr, path::Path, sync::Arc};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use wormholes_proto::{NodeId, Target, Transport};

use crate::{
    config::Config,
    control::{BindControlError, ControlServer, ReadAddedError},
    entrance::{Entrance, EntranceError},
    flow::{self, Asked, Refusal},
    gateway::{Gateway, GatewayError},
    metrics::{MetricsError, MetricsServer},
    network::{NetworkOptions, StartError},
    plugins::{PluginError, Plugins},
    policy::{self, LoadError, Scripts},
};

pub(crate) use self::core::assemble;
pub use self::core::{EntranceInfo, NodeCore};
pub use reload::{Reload, ReloadError};

/// A running node. Dropping it ends its flows at once; [`Node::shutdown`] lets them finish.
#[derive(Debug)]
pub struct Node {
    core: Arc<NodeCore>,
    control: Option<ControlServer>,
}

/// What a program that runs a node decides, rather than its config.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// For the network.
    pub network: NetworkOptions,
    /// All sockets of this process are the node's: a program that connects to an entrance and is
    /// this process makes a loop.
    pub owns_process: bool,
    /// Load the rules again when their files change.
    pub watch_rules: bool,
    /// Serve the control socket.
    pub control: bool,
}

/// A node that did not start.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The rules are wrong.
    #[error(transparent)]
    Rules(#[from] LoadError),
    /// The peers that were added.
    #[error(transparent)]
    Added(#[from] ReadAddedError),
    /// Keys or sockets between nodes.
    #[error(transparent)]
    Network(#[from] StartError),
    /// A socket for programs.
    #[error(transparent)]
    Entrance(#[from] EntranceError),
    /// A plugin.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The socket for HTTP.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// The socket for metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] BindControlError),
    /// The system has no threads for decisions.
    #[error("cannot decide beside the flows: {0}")]
    Deciders(#[source] io::Error),
    /// A metric is declared twice: a bug.
    #[error("metrics")]
    Declaration(#[from] prometheus::Error),
    /// A bound socket has no address: a bug of the system.
    #[error("socket")]
    Socket(#[from] io::Error),
}

impl Node {
    /// Starts a node inside this process: without a control socket, and without watching files.
    ///
    /// # Errors
    /// [`NodeError`] names what stands in the way.
    pub async fn start(config: Config) -> Result<Self, NodeError> {
        Self::start_with(config, NodeOptions::default()).await
    }

    /// Starts a node.
    ///
    /// # Errors
    /// [`NodeError`] names what stands in the way.
    pub async fn start_with(config: Config, options: NodeOptions) -> Result<Self, NodeError> {
        let (core, rule_events) = assemble(config, &options)?;
        // Whatever fails below, this ends what already runs.
        let mut node = Self {
            core,
            control: None,
        };
        let core = &node.core;
        let entrances = core.config.entrances.iter().cloned();
        let entrances = entrances
            .map(Entrance::bind)
            .collect::<Result<Vec<_>, _>>()?;
        let plugins = Plugins::start(core).await?;
        core.use_plugins(plugins);
        start_metrics(core).await?;
        start_gateway(core).await?;
        core.open_entrances(entrances);
        let tell = Arc::clone(&core.policy).tell_events(rule_events);
        core.spawn_until_stop(tell);
        if options.watch_rules {
            core.tasks.spawn(policy::watch(Arc::clone(core)));
        }
        // The last to open: who gets an answer may use all the rest.
        if options.control {
            node.control = Some(ControlServer::start(Arc::clone(core))?);
        }
        Ok(node)
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.core.network.id()
    }

    /// Where its entrances listen, in the order of the config.
    pub fn entrance_addresses(&self) -> Vec<SocketAddr> {
        let entrances = self.core.entrances().iter();
        entrances.map(|entrance| entrance.listen).collect()
    }

    /// Where peers reach it, with the ports that the system chose.
    pub fn listen_addresses(&self) -> Vec<SocketAddr> {
        self.core.network.listen_addresses()
    }

    /// Where `/metrics` is served.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.core.metrics_address()
    }

    /// Where plugins answer HTTP requests.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.core.http_address()
    }

    /// Where the control socket is.
    pub fn control_path(&self) -> Option<&Path> {
        self.control.as_ref().map(ControlServer::path)
    }

    /// The node's parts.
    pub fn core(&self) -> &Arc<NodeCore> {
        &self.core
    }

    /// Opens a flow as an entrance would: the scripts decide how it travels. Half-closes pass
    /// through; a flow that breaks ends the stream. Dropping the future gives the flow up.
    ///
    /// # Errors
    /// [`Refusal`] says why the flow did not open.
    pub async fn dial(
        &self,
        target: Target,
    ) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static, Refusal> {
        let asked = Asked {
            entrance: "embed",
            transport: Transport::Tcp,
            label: None,
            login: None,
            plugin: None,
            ends: None,
            target,
        };
        flow::dial(Arc::clone(&self.core), asked).await
    }

    /// Reads the config's file again, when it came from one, and puts what is reloadable in force.
    ///
    /// # Errors
    /// [`ReloadError`]; all stays as it was.
    pub async fn reload(&self) -> Result<Reload, ReloadError> {
        self.core.reload(Scripts::OfConfig).await
    }

    /// [`Node::drain`], then [`Node::close`].
    pub async fn shutdown(self) {
        self.drain().await;
        self.close().await;
    }

    /// Takes no more flows, of programs or of other nodes, and waits until those that live have
    /// ended, or the config's drain time is over. Entrances close at once; other nodes are told
    /// that this one is busy. Cancel-safe: [`Node::close`] ends the rest.
    pub async fn drain(&self) {
        self.core.stop.cancel();
        self.core.tasks.close();
        let ended = async { tokio::join!(self.core.tasks.wait(), self.core.network.drain()) };
        let drain = self.core.config.limits.drain;
        if tokio::time::timeout(drain, ended).await.is_err() {
            let (flows, circuits) = (self.core.flows.open(), self.core.network.circuits());
            tracing::warn!(flows, circuits, "flows are cut off: the drain time is over");
        }
    }

    /// Ends all flows and connections; the nodes at their other ends are told.
    pub async fn close(mut self) {
        self.core.stop.cancel();
        self.core.tasks.close();
        self.core.kill.cancel();
        self.core.tasks.wait().await;
        if let Some(control) = self.control.take() {
            control.shutdown().await;
        }
        if let Some(plugins) = self.core.plugins() {
            plugins.close().await;
        }
        self.core.network.shutdown().await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.core.kill.is_cancelled() {
            return;
        }
        self.core.stop.cancel();
        self.core.tasks.close();
        self.core.kill.cancel();
        // Peers are told in the background, where there is a runtime to do it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let network = Arc::clone(&self.core.network);
            runtime.spawn(async move { network.shutdown().await });
        }
    }
}

async fn start_gateway(core: &Arc<NodeCore>) -> Result<(), NodeError> {
    let Some(address) = core.config.http.listen else {
        return Ok(());
    };
    let gateway = Gateway::bind(address, &core.config.http).await?;
    core.answers_http_at(gateway.address());
    core.tasks.spawn(gateway.run(Arc::clone(core)));
    Ok(())
}

async fn start_metrics(core: &Arc<NodeCore>) -> Result<(), NodeError> {
    let Some(address) = core.config.metrics.listen else {
        return Ok(());
    };
    let server = MetricsServer::bind(address, Arc::clone(&core.metrics)).await?;
    core.serves_metrics_at(server.local_addr()?);
    let watched = Arc::clone(core);
    let serve = server.run(core.stop.clone(), move || watched.render_metrics());
    core.tasks.spawn(serve);
    Ok(())
}
