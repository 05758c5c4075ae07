//! Runs plugins: WebAssembly components whose every event is one transaction.
//!
//! ```text
//! request, timer, message -> the principal's actor -> an instance runs the handler over a transaction
//!                                                  -> its writes join the open batch of the store
//!                                                  -> the batch is durable -> answers and messages leave
//! ```
//! Messages leave, and come, by the office (`mail`), over flows that the node opens.
//! Knows no tunnel and no socket.

mod blobs;
mod clock;
mod edition;
mod event;
mod figures;
mod guest;
mod health;
mod host;
mod http;
mod keys;
mod letters;
mod lines;
mod loaded;
mod mail;
mod memory;
mod message;
mod network;
mod news;
mod operations;
mod pace;
mod principal;
mod recording;
mod rows;
mod rules;
mod source;
mod store;
mod transaction;
// For the fuzz targets: no promise to anybody else.
#[doc(hidden)]
pub mod trial;
mod users;
mod versions;
mod wires;

pub use self::http::{
    HttpHeader, HttpHeaders, HttpRequest, HttpResponse, MAX_HTTP_BODY_BYTES, MAX_HTTP_HEADER_BYTES,
    MAX_HTTP_HEADERS, received_headers, sent_headers,
};
pub use clock::let_time_move;
pub use edition::Terms;
pub use event::{Caller, Command, ErrorCode, EventKind, Principal, Refusal};
pub use figures::{Counts, Ending, HANDLER_BOUNDS};
pub use guest::CodeError;
pub use health::Condition;
pub use host::{
    Begun, Host, HostError, HttpPage, HttpPlace, InstanceReport, LoadError, News, Pending, Upload,
};
pub use letters::DeadLetter;
pub use lines::{PluginLine, PluginLines};
pub use message::{Address, Identity, Place};
pub use network::{
    Call, CallError, Datagram, FetchCall, Network, Pipe, SocketCall, SocketKind, WireWay,
};
pub use operations::{Operation, Outcome};
pub use recording::{
    RecordAction, RecordingError, RecordingReport, RecordingSummary, Replay, ReplayError, Replayed,
    Verdict,
};
pub use rules::{Fact, RuleLimits, RuleQuestion, Ruling, Service, Usage};
pub use source::Source;
pub use store::{
    Backend, BatchId, Commit, Lost, Observer, Overlay, Row, Rows, Snapshot, Span, Store,
    StoreError, StoreOptions, View, Visit, Writer, Writes,
};
pub use transaction::{Limit, Progress};
pub use users::{Standing, User};
pub use wormholes_proto::manifest::{
    About, Capabilities, Instance, Limits, MAX_MANIFEST_BYTES, Manifest, ManifestError, Messages,
    Mode, Poison, State, is_name,
};
