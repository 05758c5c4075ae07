//! Lines of the control socket, both ways.

use serde_json::{Value, json};
use wormholes_proto::control::{
    ErrorCode, Incoming, LineBuffer, LineTooLong, decode_incoming, decode_request, encode_response,
};

use super::input::{Input, pieces};

/// Short, so that a fuzzer passes it.
const MAX_LINE_BYTES: usize = 200;

/// What programs send to the daemon.
pub fn control_request(input: &[u8]) {
    for line in lines(input) {
        match decode_request(&line) {
            Ok(request) => {
                let again = json!({
                    "jsonrpc": "2.0",
                    "id": request.id,
                    "method": request.call.name(),
                    "params": request.call.params(),
                });
                let again = decode_request(again.to_string().as_bytes());
                assert_eq!(again, Ok(request));
            }
            Err(rejected) => {
                let codes = [
                    ErrorCode::Parse,
                    ErrorCode::InvalidRequest,
                    ErrorCode::NoMethod,
                    ErrorCode::InvalidParams,
                ];
                assert!(codes.into_iter().any(|code| rejected.error.is(code)));
                check_answer(&Incoming::Response {
                    id: rejected.id,
                    result: Err(rejected.error),
                });
            }
        }
    }
}

/// What the daemon, or who has taken its place, sends to programs.
pub fn control_answer(input: &[u8]) {
    for line in lines(input) {
        match decode_incoming(&line) {
            Ok(incoming) => check_answer(&incoming),
            Err(error) => assert!(error.is(ErrorCode::Parse)),
        }
    }
}

/// What is read is written so that it is read again.
fn check_answer(incoming: &Incoming) {
    let Incoming::Response { id, result } = incoming else {
        return;
    };
    let data = match result {
        Ok(value) => Some(value),
        Err(error) => error.data.as_ref(),
    };
    // Numbers with a fraction are rounded when they are read; nothing of ours hangs on them.
    if data.is_none_or(is_exact) {
        let line = encode_response(id.as_ref(), result);
        let again = decode_incoming(line.trim_ascii_end());
        assert_eq!(again.as_ref(), Ok(incoming));
    }
}

fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(number) => !number.is_f64(),
        Value::Array(items) => items.iter().all(is_exact),
        Value::Object(entries) => entries.values().all(is_exact),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

/// The lines of the content, which are the same however it is cut.
fn lines(input: &[u8]) -> Vec<Vec<u8>> {
    let mut input = Input::new(input);
    let piece_bytes = input.byte();
    let whole = cut([input.rest()].into_iter());
    assert_eq!(whole, cut(pieces(input.rest(), piece_bytes)));
    let lines = whole.into_iter().flatten();
    let lines = lines.inspect(|line| assert!(line.len() <= MAX_LINE_BYTES));
    lines.collect()
}

fn cut<'a>(sent: impl Iterator<Item = &'a [u8]>) -> Vec<Result<Vec<u8>, LineTooLong>> {
    let mut buffer = LineBuffer::new(MAX_LINE_BYTES);
    let mut lines = Vec::new();
    for piece in sent {
        buffer.handle_input(piece);
        while let Some(line) = buffer.poll_line().transpose() {
            lines.push(line);
        }
    }
    lines
}
