//! The methods: their names, who may call them, what they take and what they return.

use std::{fmt, path::PathBuf, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    blob::{
        BlobAppendParams, BlobBeginParams, BlobBytes, BlobInfo, BlobParams, BlobReadParams,
        BlobUpload,
    },
    event::EventKind,
    frame::{ErrorCode, RpcError},
    i2p::I2pReport,
    operation::{
        OperationInfo, OperationList, OperationListParams, OperationParams, OperationStarted,
        OperationWaitParams, UserInfo, UserList, UserParams, UserRemoveParams,
    },
    peer::{InviteReport, PeerInfo, PeerList},
    plugin::{
        PluginAskParams, PluginDead, PluginHealth, PluginInfo, PluginList, PluginLog,
        PluginLogParams, PluginParams, PluginRemoveParams, PluginRemoved,
    },
    reach::{NetReport, PingReport},
    recording::{
        PluginAdvanceParams, PluginAdvanced, PluginRecordParams, PluginRecording,
        PluginRecordingParams, PluginRecordingPiece,
    },
    report::{
        BugReport, ConfigReport, DecisionList, Explanation, FlowList, KeyInfo, RoleReport,
        ScriptReport, Status, Subscribed,
    },
    tor::{TorCircuits, TorReport, TorService, TorServiceParams},
};

/// Beyond most calls' own bounds: it frees the connection when one of them fails to hold.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
/// A plugin that changes has ten minutes for its rows, and is compiled before that.
const CHANGE_WITHIN: Duration = Duration::from_secs(15 * 60);

/// Who may call a method. An observer sees what the node does, never where flows go.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Whoever may open the socket.
    Observer,
    /// The daemon's own user, root, and the `operators` of config.toml.
    Operator,
}

/// What `rpc.discover` says about one method.
pub(super) struct MethodSchema {
    pub(super) name: &'static str,
    pub(super) summary: &'static str,
    pub(super) access: Access,
    pub(super) params: Schema,
    pub(super) result: Schema,
}

/// A method without params.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

/// A flow, by number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowParams {
    /// The number that `flows` and events show.
    pub flow: u64,
}

/// How many flows to list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowsParams {
    /// At most so many, newest first; default 100, at most 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PeerParams {
    /// Its petname, its node id, or as much of the id's beginning as names one peer only.
    pub peer: String,
}

/// A peer to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PeerAddParams {
    /// What `peer.invite` of the other node printed.
    pub invite: String,
    /// Petname; none takes the name in the invite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// 0 stranger, 1 friend of a friend, 2 friend (default), 3 own device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<u8>,
}

/// Scripts to load.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScriptLoadParams {
    /// In the order in which they are asked; empty: those that config.toml names.
    #[serde(default)]
    pub scripts: Vec<ScriptText>,
}

/// A script that its sender has read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScriptText {
    /// Where it was read; the end of it is the script's name.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
    /// Its cases, which must pass; none when it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cases: Option<String>,
}

/// Which kept decisions to send.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DecisionsParams {
    /// Those with lower numbers only; none begins with the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
    /// At most so many; none: as many as an answer holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Which events to send.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SubscribeParams {
    /// Empty: all kinds.
    #[serde(default)]
    pub kinds: Vec<EventKind>,
}

/// From one list: the calls, their names and who may call them, and what `rpc.discover` says.
macro_rules! methods {
    ($($name:literal $variant:ident($params:ty) $access:ident -> $result:ty, $summary:literal;)*) => {
        /// A call of a method with its params.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Call {
            $(#[doc = $summary] $variant($params),)*
        }

        impl Call {
            /// The method's name on the wire.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name,)* }
            }

            /// The least access that may call it.
            pub fn access(&self) -> Access {
                match self { $(Self::$variant(_) => Access::$access,)* }
            }

            /// When the daemon gives up and answers [`ErrorCode::Unsettled`].
            pub fn answered_within(&self) -> Duration {
                let changes_plugins = matches!(
                    self,
                    Self::PluginAdd(_)
                        | Self::PluginUpdate(_)
                        | Self::PluginRollback(_)
                        | Self::PluginRemove(_)
                );
                if changes_plugins { CHANGE_WITHIN } else { ANSWER_WITHIN }
            }

            /// The params as an object.
            pub fn params(&self) -> Value {
                match self { $(Self::$variant(params) => serde_json::json!(params),)* }
            }

            /// Reads a call.
            ///
            /// # Errors
            /// [`ErrorCode::NoMethod`] or [`ErrorCode::InvalidParams`].
            pub fn read(method: &str, params: Map<String, Value>) -> Result<Self, RpcError> {
                match method {
                    $($name => read_params(params).map(Self::$variant),)*
                    _ => Err(RpcError::new(
                        ErrorCode::NoMethod,
                        "no such method; rpc.discover lists them",
                    )),
                }
            }
        }

        /// All methods, in the order of their list.
        pub(super) fn schemas(generator: &mut SchemaGenerator) -> Vec<MethodSchema> {
            vec![$(MethodSchema {
                name: $name,
                summary: $summary,
                access: Access::$access,
                params: <$params>::json_schema(generator),
                result: generator.subschema_for::<$result>(),
            },)*]
        }
    };
}

methods! {
    "rpc.discover" Discover(NoParams) Observer -> Value, "Describes all methods (OpenRPC).";
    "status" Status(NoParams) Observer -> Status, "What the node is and does.";
    "peers" Peers(NoParams) Observer -> PeerList, "All nodes that this one knows.";
    "peer.add" PeerAdd(PeerAddParams) Operator -> PeerInfo, "Adds a peer by its invite.";
    "peer.remove" PeerRemove(PeerParams) Operator -> PeerInfo, "Removes a peer that was added.";
    "peer.invite" PeerInvite(NoParams) Operator -> InviteReport, "Makes an invite to this node.";
    "flows" Flows(FlowsParams) Observer -> FlowList, "Open flows, newest first.";
    "why" Why(FlowParams) Operator -> Explanation, "Why a flow went as it did.";
    "ping" Ping(PeerParams) Operator -> PingReport, "Measures a round trip to a peer.";
    "netcheck" Netcheck(NoParams) Operator -> NetReport, "What can be reached, and why not.";
    "script.list" ScriptList(NoParams) Observer -> ScriptReport, "The scripts in force.";
    "script.load" ScriptLoad(ScriptLoadParams) Operator -> ScriptReport, "Loads the config's scripts, or others, from their files.";
    "script.rollback" ScriptRollback(NoParams) Operator -> ScriptReport, "Returns to the scripts before.";
    "script.decisions" ScriptDecisions(DecisionsParams) Operator -> DecisionList, "Kept decisions with all that they read, newest first.";
    "relay" Relay(NoParams) Observer -> RoleReport, "The role of carrying others' ciphertext.";
    "hop" Hop(NoParams) Observer -> RoleReport, "The role of peeling onion layers.";
    "exit" Exit(NoParams) Observer -> RoleReport, "The role of dialling targets for others.";
    "tor.status" TorStatus(NoParams) Observer -> TorReport, "How the node stands with Tor, and its onion services.";
    "tor.start" TorStart(NoParams) Operator -> TorReport, "Starts Tor after it was stopped, or failed.";
    "tor.stop" TorStop(NoParams) Operator -> TorReport, "Stops Tor, and cuts what goes through it.";
    "tor.new_identity" TorNewIdentity(NoParams) Operator -> TorReport, "Has streams from now on share no circuit with those before.";
    "tor.new_onion" TorNewOnion(TorServiceParams) Operator -> TorService, "Gives an onion service another address, and forgets the one before.";
    "tor.circuits" TorCircuits(NoParams) Operator -> TorCircuits, "Circuits of Tor that carry streams of this node, and up to 64 that did.";
    "i2p.status" I2pStatus(NoParams) Observer -> I2pReport, "The I2P router, the sessions at it, and the services published there.";
    "plugin.list" PluginList(NoParams) Observer -> PluginList, "The plugins that run here.";
    "plugin.health" PluginHealth(PluginParams) Operator -> PluginHealth, "What a plugin says of itself.";
    "plugin.start" PluginStart(PluginParams) Operator -> PluginInfo, "Has a plugin that was parked or stopped go on.";
    "plugin.stop" PluginStop(PluginParams) Operator -> PluginInfo, "Has no event of a plugin begin until it is started again.";
    "plugin.log" PluginLog(PluginLogParams) Operator -> PluginLog, "What a plugin said last.";
    "plugin.dead" PluginDead(PluginParams) Operator -> PluginDead, "Events that a plugin broke over and that were given up.";
    "plugin.clear_dead" PluginClearDead(PluginParams) Operator -> PluginInfo, "Deletes these events.";
    "plugin.record" PluginRecord(PluginRecordParams) Operator -> PluginRecording, "Switches the recording of a plugin's events on or off, or says how it is.";
    "plugin.recording" PluginRecording(PluginRecordingParams) Operator -> PluginRecordingPiece, "Sends what was recorded, a piece at a time.";
    "plugin.advance" PluginAdvance(PluginAdvanceParams) Operator -> PluginAdvanced, "Moves the time of plugins forward, in a node that is thrown away alone.";
    "plugin.add" PluginAdd(PluginParams) Operator -> PluginInfo, "Loads a plugin that config.toml names since the start.";
    "plugin.update" PluginUpdate(PluginParams) Operator -> PluginInfo, "Has the version in the plugin's folder take over, under the grants of config.toml; on an error the one that runs goes on.";
    "plugin.rollback" PluginRollback(PluginParams) Operator -> PluginInfo, "Has the version before the last update take over again.";
    "plugin.remove" PluginRemove(PluginRemoveParams) Operator -> PluginRemoved, "Ends a plugin that config.toml names no more.";
    "plugin.ask" PluginAsk(PluginAskParams) Operator -> Value, "Gives a plugin a command, and returns its answer.";
    "blob.begin" BlobBegin(BlobBeginParams) Operator -> BlobUpload, "Begins a blob for a plugin's command, which is given on this connection.";
    "blob.append" BlobAppend(BlobAppendParams) Operator -> BlobUpload, "Brings its next bytes.";
    "blob.finish" BlobFinish(BlobParams) Operator -> BlobInfo, "Ends it: one command may name it.";
    "blob.read" BlobRead(BlobReadParams) Operator -> BlobBytes, "A part of a blob that a plugin holds.";
    "op.start" OpStart(PluginAskParams) Operator -> OperationStarted, "Gives a plugin a command that may outlive its asker and the node.";
    "op.list" OpList(OperationListParams) Operator -> OperationList, "Operations that go on, and those whose results are kept.";
    "op.wait" OpWait(OperationWaitParams) Operator -> OperationInfo, "How an operation is, and what it came to.";
    "op.cancel" OpCancel(OperationParams) Operator -> OperationInfo, "Has an operation end.";
    "op.collect" OpCollect(OperationParams) Operator -> OperationInfo, "Forgets an operation that ended, and its result.";
    "user.add" UserAdd(UserParams) Operator -> UserInfo, "Adds a user, or one who was removed.";
    "user.list" UserList(NoParams) Operator -> UserList, "The users of this node.";
    "user.remove" UserRemove(UserRemoveParams) Operator -> UserInfo, "Removes a user; his rows stay, or go too.";
    "key" Key(NoParams) Observer -> KeyInfo, "The node's public keys.";
    "config" Config(NoParams) Operator -> ConfigReport, "The config in force, without secrets.";
    "bugreport" BugReport(NoParams) Operator -> BugReport, "What a bug report needs, without names, targets and secrets.";
    "events.subscribe" Subscribe(SubscribeParams) Observer -> Subscribed, "Sends events on this connection.";
    "events.unsubscribe" Unsubscribe(NoParams) Observer -> Subscribed, "Sends no more events.";
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Observer => "observer",
            Self::Operator => "operator",
        })
    }
}

fn read_params<P: serde::de::DeserializeOwned>(params: Map<String, Value>) -> Result<P, RpcError> {
    serde_json::from_value(Value::Object(params))
        .map_err(|error| RpcError::new(ErrorCode::InvalidParams, error.to_string()))
}
