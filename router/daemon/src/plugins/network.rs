//! The node as the host of its plugins sees it: flows to where other nodes take trunks, signatures, and
//! the rules. What the rules say of a flow, `flow` sees to.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Weak, atomic::Ordering},
    time::SystemTime,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use wormholes_host::{
    Call, CallError, Datagram, Fact, FetchCall, HttpResponse, Pipe, Refusal as Failed, RuleLimits,
    RuleQuestion, Ruling, SocketCall,
};
use wormholes_proto::{Host, NodeId, ServiceName, Target, Transport};
use wormholes_rules::{Asked as AskedRules, Verdict};
use zeroize::Zeroizing;

use super::wires::Wires;
use crate::{
    flow::{self, Asked, Caller, Forbidden, Refusal},
    network::Network,
    node::NodeCore,
};

/// What a plugin's flow comes by.
pub(super) const ENTRANCE: &str = "plugin";
/// A service stands at no port of its name.
const NO_PORT: u16 = 0;

/// The parts of a node that its host needs.
struct HostNetwork {
    /// Weak: the node owns the host.
    core: Weak<NodeCore>,
    network: Arc<Network>,
    wires: Arc<Wires>,
    /// The node's: that of the host has no sockets.
    runtime: Handle,
}

impl NodeCore {
    /// This node, for the host of its plugins.
    pub fn host_network(self: &Arc<Self>) -> Arc<dyn wormholes_host::Network> {
        Arc::new(HostNetwork {
            core: Arc::downgrade(self),
            network: Arc::clone(&self.network),
            wires: Arc::new(Wires::new(self)),
            runtime: Handle::current(),
        })
    }
}

impl wormholes_host::Network for HostNetwork {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Box<dyn Pipe>, CallError>> {
        let core = self.core.upgrade();
        async move {
            let core = core.ok_or_else(|| call_error(&Refusal::Stopping))?;
            if call.to == core.network.id() {
                return Err(CallError {
                    why: "the node is this one".to_owned(),
                    is_final: true,
                });
            }
            let asked = asked(call).map_err(|refusal| call_error(&refusal))?;
            match flow::dial(core, asked).await {
                Ok(stream) => Ok(Box::new(stream) as Box<dyn Pipe>),
                Err(refusal) => Err(call_error(&refusal)),
            }
        }
        .boxed()
    }

    fn connect(&self, call: SocketCall) -> BoxFuture<'static, Result<Box<dyn Pipe>, Failed>> {
        let wires = Arc::clone(&self.wires);
        self.on_node(async move { wires.connect(call).await }, Wires::stopping)
    }

    fn fetch(&self, call: FetchCall) -> BoxFuture<'static, Result<HttpResponse, Failed>> {
        let wires = Arc::clone(&self.wires);
        self.on_node(async move { wires.fetch(call).await }, Wires::stopping)
    }

    fn send_datagram(&self, datagram: Datagram) {
        let Some(core) = self.core.upgrade() else {
            return;
        };
        let plugins = core.plugins();
        if !plugins.is_some_and(|plugins| plugins.send_datagram(datagram)) {
            let dropped = &core.network.counters().dropped;
            dropped.full.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.network.sign(message)
    }

    fn derive(&self, purpose: &[u8]) -> Zeroizing<[u8; 32]> {
        self.network.derive(purpose)
    }

    fn ask_rules(&self, question: RuleQuestion) -> Ruling {
        let Some(core) = self.core.upgrade() else {
            return Ruling::Deny(Refusal::Stopping.to_string());
        };
        let asked = AskedRules {
            plugin: question.plugin.to_string(),
            name: question.hook,
            record: question.record,
            now: SystemTime::now(),
        };
        match core.policy.asked(asked) {
            None => Ruling::None,
            Some(Verdict::Deny(why)) => Ruling::Deny(why),
            Some(Verdict::Allow(allowed)) => Ruling::Allow(RuleLimits {
                bytes_per_second: allowed.bandwidth_bytes_per_s,
                max_bytes: allowed.max_bytes,
                max_time: allowed.max_time,
                idle: allowed.idle,
            }),
        }
    }

    fn publish(&self, facts: Vec<Fact>) {
        self.network.facts().publish(facts);
    }

    fn forget_facts(&self, kinds: &BTreeSet<String>) {
        self.network.facts().forget(kinds);
    }
}

impl HostNetwork {
    /// Runs it on the node's threads, which have sockets, for as long as somebody waits for it.
    fn on_node<T: Send + 'static, E: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, E>> + Send + 'static,
        stopping: impl FnOnce() -> E + Send + 'static,
    ) -> BoxFuture<'static, Result<T, E>> {
        let runtime = self.runtime.clone();
        async move {
            let task = AbortOnDropHandle::new(runtime.spawn(task));
            task.await.unwrap_or_else(|_| Err(stopping()))
        }
        .boxed()
    }
}

fn asked(call: Call) -> Result<Asked, Refusal> {
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(Asked {
        entrance: ENTRANCE,
        transport: Transport::Tcp,
        label: given(call.label),
        login: None,
        plugin: Some(Caller {
            instance: call.plugin,
            role: given(call.role),
            isolation: call.isolation,
            hides_node: call.hides_node,
        }),
        ends: None,
        target: target(call.to)?,
    })
}

/// Where a node takes trunks.
fn target(node: NodeId) -> Result<Target, Refusal> {
    let service = ServiceName::trunk();
    let host = Host::parse(&format!("{}.{node}.wh", service.as_str()));
    let host = host.map_err(|error| Refusal::Name(error.to_string()))?;
    Ok(Target::new(host, NO_PORT))
}

/// A script that blocks may allow it the next time, by the hour or by what it counts; what the host
/// forbids stays so until another script says otherwise.
fn call_error(refusal: &Refusal) -> CallError {
    let is_final = match refusal {
        Refusal::Forbidden(forbidden) => match forbidden {
            Forbidden::SpecialUse(_)
            | Forbidden::NotOfI2p
            | Forbidden::Localhost
            | Forbidden::Lookup
            | Forbidden::OwnSocket
            | Forbidden::Loop
            | Forbidden::OtherNode => true,
            // By the hour, a script may choose another tunnel.
            Forbidden::ShowsNode(_) | Forbidden::KeptDestination => false,
            // Nodes become known, and move.
            Forbidden::UnknownNode | Forbidden::Told(..) => false,
        },
        Refusal::Busy
        | Refusal::Crowded(_)
        | Refusal::Stopping
        | Refusal::Gone
        | Refusal::Blocked(_)
        | Refusal::Name(_)
        | Refusal::ConnectionRefused
        | Refusal::NetworkUnreachable
        | Refusal::HostUnreachable(_)
        | Refusal::TimedOut
        | Refusal::Failed(_) => false,
    };
    CallError {
        why: refusal.to_string(),
        is_final,
    }
}

impl fmt::Debug for HostNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HostNetwork")
            .field(&self.network.id())
            .finish()
    }
}
