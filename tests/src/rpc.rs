//! Calls of a daemon's control socket: JSON-RPC 2.0, one object a line.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

/// The daemon's own error.
#[derive(Debug, Clone)]
pub struct RpcError {
    /// Its number.
    pub code: i64,
    /// Its text.
    pub message: String,
}

impl std::fmt::Display for RpcError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for RpcError {}

/// Calls one method and returns its result.
///
/// # Errors
/// [`RpcError`] when the daemon refuses; others when it cannot be asked.
pub async fn call(socket: &Path, method: &str, params: Value) -> Result<Value> {
    let stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    let (reader, mut writer) = stream.into_split();
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let written = writer.write_all(format!("{request}\n").as_bytes()).await;
    let mut lines = BufReader::new(reader).lines();
    // A daemon that is full says so and closes before it reads: its words count, not the pipe.
    let line = match (written, lines.next_line().await) {
        (_, Ok(Some(line))) => line,
        (written, answer) => {
            written?;
            answer?.context("closed without answer")?
        }
    };
    let answer: Value = serde_json::from_str(&line)?;
    if let Some(error) = answer.get("error") {
        return Err(RpcError {
            code: error.get("code").and_then(Value::as_i64).unwrap_or(0),
            message: error
                .get("message")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
        }
        .into());
    }
    answer
        .get("result")
        .cloned()
        .context("neither result nor error")
}

/// A connection on which the daemon sends its events.
#[derive(Debug)]
pub struct Events {
    lines: tokio::io::Lines<BufReader<tokio::net::unix::OwnedReadHalf>>,
}

impl Events {
    /// Subscribes to all events from here on.
    ///
    /// # Errors
    /// When the daemon cannot be asked or refuses.
    pub async fn subscribe(socket: &Path) -> Result<Self> {
        let (reader, mut writer) = UnixStream::connect(socket).await?.into_split();
        let request = r#"{"jsonrpc":"2.0","id":1,"method":"events.subscribe","params":{}}"#;
        writer.write_all(format!("{request}\n").as_bytes()).await?;
        let mut lines = BufReader::new(reader).lines();
        let answer = lines.next_line().await?.context("closed without answer")?;
        let answer: Value = serde_json::from_str(&answer)?;
        answer.get("result").context("not subscribed")?;
        Ok(Self { lines })
    }

    /// The next event that `wanted` takes; those before it are gone.
    ///
    /// # Errors
    /// When none comes within the limit of waits.
    pub async fn next(&mut self, mut wanted: impl FnMut(&Value) -> bool) -> Result<Value> {
        let search = async {
            loop {
                let line = self.lines.next_line().await?.context("events ended")?;
                let mut message: Value = serde_json::from_str(&line)?;
                let event = message.get_mut("params").context("not an event")?.take();
                if wanted(&event) {
                    return Ok(event);
                }
            }
        };
        tokio::time::timeout(crate::wait::LIMIT, search)
            .await
            .context("the event did not come")?
    }
}
