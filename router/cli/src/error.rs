//! What can go wrong, and the exit status that says so.

use std::{io, path::PathBuf, process::ExitCode};

use serde_json::{Value, json};
use thiserror::Error;
use wormholes_proto::control::{ErrorCode, RpcError};

#[derive(Debug, Error)]
pub(crate) enum CliError {
    #[error("{message}\n{mend}")]
    Usage { message: String, mend: String },
    #[error(
        "wormholed is not running: nothing answers at {}\n\
         start it with `wormholed --config FILE`, or name its socket with --socket PATH or \
         $WORMHOLES_SOCKET",
        list(paths)
    )]
    NotRunning { paths: Vec<PathBuf> },
    #[error(
        "permission denied: {}\n\
         run this as the daemon's user, or widen `mode` under [control] in its config",
        path.display()
    )]
    SocketDenied { path: PathBuf },
    #[error("cannot talk with the daemon at {}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("the daemon closed the connection")]
    Closed,
    #[error(
        "the daemon closed the connection; operation {operation} goes on when it runs again: \
         `wormholes op attach {operation}`"
    )]
    Left { operation: u64 },
    #[error(
        "{why}\n\
         the daemon may go on with it, and config.toml stays as it is: `wormholes plugin list` shows \
         what runs"
    )]
    Unsettled { why: Box<CliError> },
    #[error("{0}")]
    Rpc(RpcError),
    #[error("cannot read the daemon's answer ({0}); is it of another version?")]
    Answer(serde_json::Error),
    #[error("cannot read {}: {source}", path.display())]
    ReadFile { path: PathBuf, source: io::Error },
    #[error("{}: {message}", path.display())]
    File { path: PathBuf, message: String },
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
    #[error("{0}")]
    Failed(String),
    /// All that matters is printed already.
    #[error("failed")]
    Told,
    /// The same: scripts would decide otherwise than those before.
    #[error("decisions would change")]
    Changes,
    /// The same: nobody can tell whether they would.
    #[error("some decisions cannot be told")]
    Unknown,
}

impl CliError {
    /// What clap found wrong with the words that were typed.
    pub(crate) fn usage(error: &clap::Error) -> Self {
        let text = error.render().to_string();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let mut parts = lines.split(|line| line.is_empty());
        let first = parts.next().unwrap_or_default().join(" ");
        match first.strip_prefix("error: ") {
            Some(message) => Self::Usage {
                message: message.to_owned(),
                mend: parts
                    .map(|lines| lines.join(" "))
                    .collect::<Vec<_>>()
                    .join("; "),
            },
            // Clap answers with the help then.
            None => Self::Usage {
                message: "no command".to_owned(),
                mend: "try '--help'".to_owned(),
            },
        }
    }

    /// Whether all that matters is printed already.
    pub(crate) fn is_told(&self) -> bool {
        matches!(self, Self::Told | Self::Changes | Self::Unknown)
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage { .. } => 2,
            Self::NotRunning { .. } => 3,
            Self::SocketDenied { .. } => 4,
            Self::Changes => 5,
            Self::Unknown => 6,
            Self::Rpc(error) if error.is(ErrorCode::Denied) => 4,
            // Whoever reads has seen enough (`wormholes flows | head`).
            Self::Print(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Rpc(_)
            | Self::Socket { .. }
            | Self::Closed
            | Self::Left { .. }
            | Self::Unsettled { .. }
            | Self::Answer(_)
            | Self::ReadFile { .. }
            | Self::File { .. }
            | Self::Print(_)
            | Self::Told
            | Self::Failed(_) => 1,
        })
    }

    /// For `--json`.
    pub(crate) fn to_json(&self) -> Value {
        let text = self.to_string();
        match self {
            Self::Rpc(error) => json!({ "error": error }),
            Self::Usage { .. }
            | Self::NotRunning { .. }
            | Self::SocketDenied { .. }
            | Self::Unsettled { .. } => {
                let (message, mend) = text.split_once('\n').unwrap_or((&text, ""));
                json!({ "error": { "message": message, "mend": mend } })
            }
            Self::Socket { .. }
            | Self::Closed
            | Self::Left { .. }
            | Self::Answer(_)
            | Self::ReadFile { .. }
            | Self::File { .. }
            | Self::Print(_)
            | Self::Failed(_)
            | Self::Told
            | Self::Changes
            | Self::Unknown => json!({ "error": { "message": text } }),
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    let paths = paths.iter().map(|path| path.display().to_string());
    paths.collect::<Vec<_>>().join(" nor at ")
}
