//! Lines and the JSON-RPC envelope around calls, answers and events.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::{call::Call, event::Event, plugin::PluginProgress};

/// The longest line that the daemon reads: an invite with all its addresses is under 2 KiB.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// The longest line that the daemon writes: a thousand flows or peers at 1 KiB each, with room.
pub const MAX_RESPONSE_BYTES: usize = 4 * 1024 * 1024;

/// An id in text is echoed, so it is bounded.
const MAX_ID_BYTES: usize = 64;

/// Cuts a stream of bytes into lines.
#[derive(Debug)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    /// How far the search for LF went.
    scanned: usize,
    max_line_bytes: usize,
    /// What comes up to the next LF belongs to a line that was refused.
    skips: bool,
}

/// A line passed its bound; it is skipped, and the next one is read as ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a line has at most {max_line_bytes} bytes; a longer one was skipped")]
pub struct LineTooLong {
    /// The bound.
    pub max_line_bytes: usize,
}

/// The caller's name for a request, echoed in its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RequestId {
    /// A number.
    Number(i64),
    /// A text of at most 64 bytes.
    Text(String),
}

/// A request that can be carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Echoed in the answer.
    pub id: RequestId,
    /// What to do.
    pub call: Call,
}

/// A line that is no request; the error is the answer to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Rejected {
    /// The id, when one could be read.
    pub id: Option<RequestId>,
    /// What to answer.
    pub error: RpcError,
}

/// The error of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Error)]
#[error("{message}")]
pub struct RpcError {
    /// One of [`ErrorCode`].
    pub code: i64,
    /// For people.
    pub message: String,
    /// For programs, by method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

/// Error codes; numbers never change meaning. The first five are JSON-RPC's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
pub enum ErrorCode {
    /// Not JSON.
    Parse = -32700,
    /// JSON, but no request.
    InvalidRequest = -32600,
    /// No such method.
    NoMethod = -32601,
    /// The method takes other params.
    InvalidParams = -32602,
    /// A bug of the daemon.
    Internal = -32603,
    /// It was tried and did not work; the message says why.
    Failed = -32000,
    /// The caller may not do that.
    Denied = -32001,
    /// No such flow, peer or generation.
    NotFound = -32002,
    /// A limit is reached; later it may work.
    Busy = -32003,
    /// There was no answer in time, the node stops, or the disk failed: what was asked may be done, or
    /// not.
    Unsettled = -32004,
}

/// What a client reads.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// The answer to a request; the id is none when the daemon could not read it.
    Response {
        /// Whose answer.
        id: Option<RequestId>,
        /// The answer.
        result: Result<Value, RpcError>,
    },
    /// An event of a subscription, as it came.
    Event(Value),
    /// How far the request is that is answered next.
    Progress(PluginProgress),
}

impl LineBuffer {
    /// An empty buffer for lines of at most `max_line_bytes` without their LF.
    pub fn new(max_line_bytes: usize) -> Self {
        Self {
            bytes: Vec::new(),
            scanned: 0,
            max_line_bytes,
            skips: false,
        }
    }

    /// Takes bytes. Call [`Self::poll_line`] until it is empty before taking more.
    pub fn handle_input(&mut self, bytes: &[u8]) {
        let bytes = if self.skips {
            let end = bytes.iter().position(|byte| *byte == b'\n');
            self.skips = end.is_none();
            let rest = end.and_then(|end| bytes.get(end + 1..));
            rest.unwrap_or_default()
        } else {
            bytes
        };
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line without its LF; none: more bytes are needed.
    ///
    /// # Errors
    /// [`LineTooLong`], once for each line.
    pub fn poll_line(&mut self) -> Result<Option<Vec<u8>>, LineTooLong> {
        let unseen = self.bytes.get(self.scanned..).unwrap_or_default();
        let end = match unseen.iter().position(|byte| *byte == b'\n') {
            Some(offset) => self.scanned + offset,
            None => self.bytes.len(),
        };
        if end > self.max_line_bytes {
            self.skips = end == self.bytes.len();
            let next = self.bytes.len().min(end + 1);
            self.bytes.drain(..next);
            self.scanned = 0;
            return Err(LineTooLong {
                max_line_bytes: self.max_line_bytes,
            });
        }
        if end == self.bytes.len() {
            self.scanned = end;
            return Ok(None);
        }
        let rest = self.bytes.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.bytes, rest);
        line.pop();
        self.scanned = 0;
        Ok(Some(line))
    }

    /// Whether no part of a line waits for its end.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

impl RpcError {
    /// An error without data.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code: code as i64,
            message: message.into(),
            data: None,
        }
    }

    /// Whether this is `code`.
    pub fn is(&self, code: ErrorCode) -> bool {
        self.code == code as i64
    }
}

/// Writes a request with its LF.
pub fn encode_request(id: i64, call: &Call) -> Vec<u8> {
    line(&json!({
        "jsonrpc": "2.0",
        "id": id,
        "method": call.name(),
        "params": call.params(),
    }))
}

/// Reads a line as a request.
///
/// # Errors
/// [`Rejected`] holds the answer.
pub fn decode_request(line: &[u8]) -> Result<Request, Rejected> {
    let value: Value = serde_json::from_slice(line).map_err(|error| Rejected {
        id: None,
        error: RpcError::new(ErrorCode::Parse, format!("not JSON: {error}")),
    })?;
    let Value::Object(mut envelope) = value else {
        return Err(invalid(None, "expected one object; batches are not taken"));
    };
    let id = match envelope.remove("id").map(read_id) {
        Some(Some(id)) => id,
        Some(None) => {
            return Err(invalid(
                None,
                "id must be an integer or up to 64 bytes of text",
            ));
        }
        None => return Err(invalid(None, "id is missing: every call is answered")),
    };
    read_call(envelope)
        .map_err(|error| Rejected {
            id: Some(id.clone()),
            error,
        })
        .map(|call| Request { id, call })
}

/// Writes an answer with its LF.
pub fn encode_response(id: Option<&RequestId>, result: &Result<Value, RpcError>) -> Vec<u8> {
    let id = json!(id);
    let bytes = match result {
        Ok(result) => line(&json!({ "jsonrpc": "2.0", "id": id, "result": result })),
        Err(error) => line(&json!({ "jsonrpc": "2.0", "id": id, "error": error })),
    };
    if bytes.len() <= MAX_RESPONSE_BYTES {
        return bytes;
    }
    let error = RpcError::new(ErrorCode::Failed, "the answer is too long; ask for less");
    line(&json!({ "jsonrpc": "2.0", "id": id, "error": error }))
}

/// Writes an event with its LF.
pub fn encode_event(event: &Event) -> Vec<u8> {
    line(&json!({ "jsonrpc": "2.0", "method": "event", "params": event }))
}

/// Writes how far a request is, with its LF.
pub fn encode_progress(id: &RequestId, progress: &PluginProgress) -> Vec<u8> {
    let PluginProgress { percent, text } = progress;
    let params = json!({ "id": id, "percent": percent, "text": text });
    line(&json!({ "jsonrpc": "2.0", "method": "progress", "params": params }))
}

/// Reads what the daemon wrote.
///
/// # Errors
/// [`RpcError`] with [`ErrorCode::Parse`]: the other side is no daemon of ours.
pub fn decode_incoming(line: &[u8]) -> Result<Incoming, RpcError> {
    let broken = || RpcError::new(ErrorCode::Parse, "the answer is not JSON-RPC 2.0");
    let mut value: Map<String, Value> = serde_json::from_slice(line).map_err(|_| broken())?;
    if value.get("method").and_then(Value::as_str) == Some("event") {
        return value
            .remove("params")
            .map(Incoming::Event)
            .ok_or_else(broken);
    }
    if value.get("method").and_then(Value::as_str) == Some("progress") {
        let progress = value.remove("params").ok_or_else(broken)?;
        let progress = serde_json::from_value(progress).map_err(|_| broken())?;
        return Ok(Incoming::Progress(progress));
    }
    let id = value.remove("id").and_then(read_id);
    let result = match (value.remove("result"), value.remove("error")) {
        (Some(result), None) => Ok(result),
        (None, Some(error)) => Err(serde_json::from_value(error).map_err(|_| broken())?),
        _ => return Err(broken()),
    };
    Ok(Incoming::Response { id, result })
}

fn read_call(mut envelope: Map<String, Value>) -> Result<Call, RpcError> {
    if envelope.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        let message = "jsonrpc must be \"2.0\"";
        return Err(RpcError::new(ErrorCode::InvalidRequest, message));
    }
    let Some(Value::String(method)) = envelope.remove("method") else {
        let message = "method must be a text";
        return Err(RpcError::new(ErrorCode::InvalidRequest, message));
    };
    match envelope.remove("params") {
        None => Call::read(&method, Map::new()),
        Some(Value::Object(params)) => Call::read(&method, params),
        Some(_) => {
            let message = "params go by name, in an object";
            Err(RpcError::new(ErrorCode::InvalidParams, message))
        }
    }
}

fn read_id(value: Value) -> Option<RequestId> {
    serde_json::from_value(value)
        .ok()
        .filter(|id| !matches!(id, RequestId::Text(text) if text.len() > MAX_ID_BYTES))
}

fn invalid(id: Option<RequestId>, message: &str) -> Rejected {
    Rejected {
        id,
        error: RpcError::new(ErrorCode::InvalidRequest, message),
    }
}

fn line(value: &Value) -> Vec<u8> {
    let mut bytes = value.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{FlowParams, NoParams, PeerAddParams};

    fn check_request(line: &str, expected: Result<Call, ErrorCode>) {
        let read = decode_request(line.as_bytes());
        match (read, expected) {
            (Ok(request), Ok(call)) => assert_eq!(request.call, call, "{line}"),
            (Err(rejected), Err(code)) => assert!(rejected.error.is(code), "{line}: {rejected:?}"),
            (read, _) => panic!("{line}: {read:?}"),
        }
    }

    /// Frozen: other builds and people's programs speak these lines.
    #[test]
    fn requests_keep_their_bytes() {
        let line = encode_request(7, &Call::Why(FlowParams { flow: 9 }));
        let text = r#"{"id":7,"jsonrpc":"2.0","method":"why","params":{"flow":9}}"#;
        assert_eq!(String::from_utf8(line).unwrap(), format!("{text}\n"));
        let call = Call::PeerAdd(PeerAddParams {
            invite: "x".to_owned(),
            name: None,
            trust: Some(3),
        });
        let text =
            r#"{"id":1,"jsonrpc":"2.0","method":"peer.add","params":{"invite":"x","trust":3}}"#;
        assert_eq!(encode_request(1, &call), format!("{text}\n").into_bytes());
        check_request(text, Ok(call));
    }

    #[test]
    fn requests_may_leave_out_params_and_name_themselves_in_text() {
        let status = Ok(Call::Status(NoParams {}));
        check_request(
            r#"{"jsonrpc":"2.0","id":1,"method":"status"}"#,
            status.clone(),
        );
        check_request(
            r#"{"jsonrpc":"2.0","id":"a","method":"status","params":{}}"#,
            status,
        );
    }

    #[test]
    fn what_is_no_request_is_named() {
        use ErrorCode::{InvalidParams, InvalidRequest, NoMethod, Parse};
        for (line, code) in [
            ("", Parse),
            ("{", Parse),
            ("\u{0}\u{1}", Parse),
            ("[]", InvalidRequest),
            ("7", InvalidRequest),
            (
                r#"[{"jsonrpc":"2.0","id":1,"method":"status"}]"#,
                InvalidRequest,
            ),
            (r#"{"jsonrpc":"2.0","method":"status"}"#, InvalidRequest),
            (
                r#"{"jsonrpc":"1.0","id":1,"method":"status"}"#,
                InvalidRequest,
            ),
            (
                r#"{"jsonrpc":"2.0","id":null,"method":"status"}"#,
                InvalidRequest,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1.5,"method":"status"}"#,
                InvalidRequest,
            ),
            (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, InvalidRequest),
            (r#"{"jsonrpc":"2.0","id":1,"method":"statu"}"#, NoMethod),
            (r#"{"jsonrpc":"2.0","id":1,"method":"why"}"#, InvalidParams),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"why","params":[1]}"#,
                InvalidParams,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"why","params":{"flow":-1}}"#,
                InvalidParams,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"status","params":{"x":1}}"#,
                InvalidParams,
            ),
        ] {
            check_request(line, Err(code));
        }
        let deep = "[".repeat(60_000);
        check_request(&deep, Err(Parse));
        let long_id = format!(
            r#"{{"jsonrpc":"2.0","id":"{}","method":"status"}}"#,
            "a".repeat(65)
        );
        check_request(&long_id, Err(InvalidRequest));
    }

    #[test]
    fn the_answer_to_broken_params_bears_the_id() {
        let line = br#"{"jsonrpc":"2.0","id":4,"method":"why"}"#;
        let rejected = decode_request(line).unwrap_err();
        assert_eq!(rejected.id, Some(RequestId::Number(4)));
    }

    #[test]
    fn answers_and_events_come_back() {
        let error = RpcError::new(ErrorCode::Denied, "no");
        for result in [Ok(json!({"a": 1})), Ok(Value::Null), Err(error)] {
            let line = encode_response(Some(&RequestId::Number(3)), &result);
            let read = decode_incoming(line.trim_ascii_end());
            let id = Some(RequestId::Number(3));
            assert_eq!(read, Ok(Incoming::Response { id, result }));
        }
        let line = br#"{"jsonrpc":"2.0","method":"event","params":{"seq":1}}"#;
        let read = decode_incoming(line);
        assert_eq!(read, Ok(Incoming::Event(json!({"seq": 1}))));
        let progress = PluginProgress {
            percent: Some(50),
            text: "half".to_owned(),
        };
        let line = encode_progress(&RequestId::Number(3), &progress);
        let read = decode_incoming(line.trim_ascii_end());
        assert_eq!(read, Ok(Incoming::Progress(progress)));
        for line in ["", "[]", "{}", r#"{"id":1}"#, r#"{"result":1,"error":{}}"#] {
            assert!(decode_incoming(line.as_bytes()).is_err(), "{line}");
        }
    }

    #[test]
    fn an_answer_beyond_the_bound_becomes_an_error() {
        let result = Ok(json!("a".repeat(MAX_RESPONSE_BYTES)));
        let line = encode_response(None, &result);
        let Ok(Incoming::Response { result, .. }) = decode_incoming(line.trim_ascii_end()) else {
            panic!("not an answer");
        };
        assert!(result.unwrap_err().is(ErrorCode::Failed));
    }

    #[test]
    fn lines_are_the_same_however_they_are_cut() {
        let input = b"one\n\ntwo\nhalf";
        for chunk_bytes in 1..=input.len() {
            let mut buffer = LineBuffer::new(4);
            let mut lines = Vec::new();
            for chunk in input.chunks(chunk_bytes) {
                buffer.handle_input(chunk);
                while let Some(line) = buffer.poll_line().unwrap() {
                    lines.push(line);
                }
            }
            assert_eq!(lines, [&b"one"[..], b"", b"two"], "{chunk_bytes}");
            assert!(!buffer.is_empty());
        }
    }

    #[test]
    fn a_long_line_is_refused_once_and_the_next_one_read() {
        let input = b"one\n12345\n123456789\ntwo\n12345";
        for chunk_bytes in 1..=input.len() {
            let mut buffer = LineBuffer::new(4);
            let mut lines = Vec::new();
            for chunk in input.chunks(chunk_bytes) {
                buffer.handle_input(chunk);
                while let Some(line) = buffer.poll_line().transpose() {
                    lines.push(line);
                }
            }
            let error = LineTooLong { max_line_bytes: 4 };
            let expected = [
                Ok(b"one".to_vec()),
                Err(error),
                Err(error),
                Ok(b"two".to_vec()),
                Err(error),
            ];
            assert_eq!(lines, expected, "{chunk_bytes}");
            assert!(buffer.is_empty(), "what is skipped takes no memory");
        }
    }
}
