//! Errors that it is told to return, here and by way of another node.

use std::time::Duration;

use wormholes_plugin::{Address, Context, Error, ErrorCode, Letter, Map, Reply, Request, Result};

/// What it speaks.
pub(crate) const PROTOCOL: &str = "noise";

/// All codes that there are.
const CODES: [ErrorCode; 7] = [
    ErrorCode::Denied,
    ErrorCode::Quota,
    ErrorCode::Invalid,
    ErrorCode::NotFound,
    ErrorCode::Unavailable,
    ErrorCode::Expired,
    ErrorCode::Failed,
];
/// Questions to another node, and the requests that wait for their answers.
const ASKED: Map<u64, u64> = Map::new("asked");
/// How long another node may take.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn command(cx: &mut Context, request: &Request) -> Result<Reply> {
    match request.name.as_str() {
        "fail" => Err(error(&request.argument::<String>("code")?)),
        "fail-there" => {
            let node: Vec<u8> = request.argument("node")?;
            let node = node.try_into();
            let node = node.map_err(|_| Error::invalid("a node's id has 32 bytes"))?;
            let code: String = request.argument("code")?;
            let question = Letter::new(Address::node(cx, node), PROTOCOL, code);
            ASKED.set(&question.ask(cx, PATIENCE)?, &request.id)?;
            Ok(Reply::Later)
        }
        // From another node, or from a flood of its own.
        _ => Err(error(&String::from_utf8_lossy(&request.body))),
    }
}

/// Hands an answer on as it came.
pub(crate) fn answered(cx: &mut Context, question: u64, answer: Result<Vec<u8>>) -> Result<()> {
    let Some(request) = ASKED.get(&question)? else {
        return Ok(());
    };
    ASKED.remove(&question)?;
    // Who asked may have left.
    let _ = cx.finish(request, answer);
    Ok(())
}

fn error(name: &str) -> Error {
    let named = CODES.into_iter().find(|code| format!("{code:?}") == name);
    named.map_or_else(
        || Error::not_found("not wicked enough"),
        |code| Error::new(code, format!("{name}, as asked")),
    )
}
