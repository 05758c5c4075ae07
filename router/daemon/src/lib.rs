//! The Wormholes router as a library: a node that opens flows by script.

mod ban;
mod carrier;
mod clock;
mod config;
mod control;
mod counters;
mod dial;
mod entrance;
mod events;
mod facts;
mod flow;
mod gatekeeper;
mod gateway;
mod i2p;
mod identity;
mod log;
mod metrics;
mod names;
mod network;
mod node;
mod peers;
mod pipe;
mod plugins;
mod policy;
mod private_file;
mod program;
mod records;
mod registration;
mod role;
mod serve;
mod sources;
mod tor;
mod tunnel;
mod usage;

pub use carrier::{CarrierError, LinkError, TlsError};
pub use config::{
    Config, ConfigError, ControlConfig, DefaultRule, EntranceConfig, EntranceKind, ExitConfig,
    ExitRule, HopConfig, HttpConfig, I2pConfig, LimitsConfig, LogConfig, MetricsConfig, NodeConfig,
    OnionServiceConfig, PeerConfig, PluginConfig, Problem, RoleConfig, RuleLines, RulesConfig,
    Secret, ServiceConfig, TorConfig,
};
pub use control::{BindControlError, ReadAddedError};
pub use counters::{Counters, DroppedDatagrams, I2pCounters, PunchCounters, RoleCounters};
pub use dial::DialError;
pub use entrance::{EntranceError, origin_form, proxy_target};
pub use flow::{Decided, Flow, FlowTable, Forbidden, Moved, Refusal, Story, Totals, Tried};
pub use gatekeeper::{Gatekeeper, OpenGate};
pub use gateway::GatewayError;
pub use i2p::I2pError;
pub use identity::IdentityError;
pub use log::{LogError, LogGuard, init as init_log};
pub use metrics::MetricsError;
pub use names::NodeName;
pub use network::{Network, NetworkOptions, PunchFailure, StartError};
pub use node::{EntranceInfo, Node, NodeCore, NodeError, NodeOptions, Reload, ReloadError};
pub use peers::ConnectError;
pub use pipe::{
    CopyEnd, CopyLimits, CopyStop, DatagramPipe, FlowBytes, MemoryEnd, Pace, Pipe, PipeError,
    PipeReader, PipeWriter, Side, Witness, copy,
};
pub use plugins::{DoorError, PluginError, check_plugins};
pub use policy::{Generation, LoadError, NothingBefore, PolicyHost, ScriptError, Scripts, check};
pub use role::{RoleAccount, RoleStatus};
pub use serve::Trunks;
pub use tor::TorFailure;
pub use tunnel::{ErrorKind, OpenError, Opened, Place, TunnelRequest, UpstreamError};
pub use wormholes_host::{Replay, ReplayError, Replayed, Verdict, let_time_move};
