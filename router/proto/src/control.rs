//! The control protocol: JSON-RPC 2.0 over the daemon's Unix socket, one object a line.
//!
//! ```text
//! client  {"jsonrpc":"2.0","id":1,"method":"why","params":{"flow":7}}
//! daemon  {"jsonrpc":"2.0","id":1,"result":{…}}
//!         {"jsonrpc":"2.0","id":1,"error":{"code":-32001,"message":"…","data":…}}
//!         {"jsonrpc":"2.0","method":"event","params":{"seq":9,"at_unix_ms":…,"kind":"peer-up",…}}
//!         {"jsonrpc":"2.0","method":"progress","params":{"id":1,"percent":50,"text":"…"}}
//! ```
//! A line ends with LF and is at most [`MAX_REQUEST_BYTES`] long towards the daemon and
//! [`MAX_RESPONSE_BYTES`] from it. Params go by name. Requests of one connection are answered in
//! their order. Batches are refused; a request without an id is one too many to answer and is
//! refused as well. Events come only after `events.subscribe`, progress only before the answer to a
//! request that asked for it. `rpc.discover` returns an OpenRPC
//! document that is made from the types here.

mod blob;
mod call;
mod discover;
mod event;
mod frame;
mod i2p;
mod operation;
mod peer;
mod plugin;
mod reach;
mod recording;
mod report;
mod tor;

pub use blob::{
    BlobAppendParams, BlobBeginParams, BlobBytes, BlobInfo, BlobParams, BlobReadParams, BlobUpload,
};
pub use call::{
    Access, Call, DecisionsParams, FlowParams, FlowsParams, NoParams, PeerAddParams, PeerParams,
    ScriptLoadParams, ScriptText, SubscribeParams,
};
pub use discover::discover;
pub use event::{Event, EventBody, EventKind};
pub use frame::{
    ErrorCode, Incoming, LineBuffer, LineTooLong, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, Rejected,
    Request, RequestId, RpcError, decode_incoming, decode_request, encode_event, encode_progress,
    encode_request, encode_response,
};
pub use i2p::{I2pReport, I2pServiceInfo, I2pSessionInfo, I2pSummary};
pub use operation::{
    OperationInfo, OperationList, OperationListParams, OperationParams, OperationStarted,
    OperationWaitParams, UserInfo, UserList, UserParams, UserRemoveParams, UserStanding,
};
pub use peer::{FailedPunch, InviteReport, PeerInfo, PeerList, PeerPath, PeerSource};
pub use plugin::{
    PluginArgument, PluginArgumentKind, PluginAskParams, PluginCommand, PluginCondition,
    PluginDead, PluginDeadLetter, PluginHealth, PluginInfo, PluginLimitHits, PluginList, PluginLog,
    PluginLogLine, PluginLogParams, PluginParams, PluginProgress, PluginRemoveParams,
    PluginRemoved, RESERVED_INSTANCES, is_instance_name,
};
pub use reach::{Check, NetReport, PingReport};
pub use recording::{
    PluginAdvanceParams, PluginAdvanced, PluginRecordAction, PluginRecordParams, PluginRecording,
    PluginRecordingParams, PluginRecordingPiece, PluginReplay, PluginReplayLine, PluginReplayed,
    PluginVerdict,
};
pub use report::{
    Because, BugReport, ConfigReport, DecisionInfo, DecisionList, DecisionRecord, EntranceInfo,
    Explanation, FlowInfo, FlowList, FlowState, FlowTotals, KeyInfo, OnionKeyInfo,
    PROTOCOL_VERSION, PathNode, ProcessInfo, RelayRegistration, RoleLimits, RoleReport,
    RoleSummary, RolesSummary, RuleName, ScriptDiagnostic, ScriptErrorInfo, ScriptFile,
    ScriptReport, ServiceInfo, Status, StepTried, Subscribed,
};
pub use tor::{
    TorCircuit, TorCircuits, TorReport, TorService, TorServiceParams, TorServiceState, TorState,
    TorSummary,
};
