//! The control socket: who may connect, and the tasks that serve them.
//!
//! ```text
//! socket (lock, mode) -> seats (how many, by uid) -> connection (lines, events) -> answer (calls)
//! ```
//! A Unix socket only: the kernel says who calls, so there is no password and nothing that a web
//! page or another machine could reach.

mod added;
mod answer;
mod blobs;
mod bugreport;
mod config_text;
mod connection;
mod flows;
mod netcheck;
mod peers;
mod plugins;
mod reach;
mod recordings;
mod roles;
mod rules;
mod seats;
mod socket;
mod status;
mod tor;

use std::{path::Path, sync::Arc, time::Duration};

use tokio::net::{UnixListener, UnixStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};
use wormholes_proto::control::{Access, ErrorCode, RpcError, encode_response};

use self::{connection::Connection, seats::Seats, socket::ControlSocket};
use crate::node::NodeCore;

pub(crate) use added::AddedPeers;
pub use added::ReadAddedError;
pub(crate) use blobs::Uploads;
pub(crate) use config_text::config_text;
pub(crate) use plugins::refused as plugin_error;
pub use socket::BindControlError;

/// Between failures to accept: the process is out of file descriptors, and spinning frees none.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The running server.
#[derive(Debug)]
pub(crate) struct ControlServer {
    socket: ControlSocket,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl ControlServer {
    /// Binds the socket and serves it until [`Self::shutdown`].
    ///
    /// # Errors
    /// [`BindControlError`] names the path and what to do.
    pub(crate) fn start(core: Arc<NodeCore>) -> Result<Self, BindControlError> {
        let config = &core.config.control;
        let path = config
            .socket
            .clone()
            .unwrap_or_else(|| core.config.node.data_dir.join("control.sock"));
        let (socket, listener) = ControlSocket::bind(&path, config.mode)?;
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        tasks.spawn(accept(listener, core, tasks.clone(), stop.clone()));
        tasks.close();
        Ok(Self {
            socket,
            stop,
            tasks,
        })
    }

    /// Where it listens.
    pub(crate) fn path(&self) -> &Path {
        self.socket.path()
    }

    /// Ends all connections and removes the socket.
    pub(crate) async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

async fn accept(
    listener: UnixListener,
    core: Arc<NodeCore>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let seats = Seats::default();
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "cannot accept a control connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let Ok(credentials) = stream.peer_cred() else {
            continue;
        };
        let uid = credentials.uid();
        let access = access_of(uid, &core.config.control.operators);
        let Some(seat) = seats.take(uid, access) else {
            core.metrics.control_refused.inc();
            refuse(&stream);
            continue;
        };
        debug!(uid, %access, "control connection");
        let connection = Connection::new(Arc::clone(&core), stream, access);
        let stop = stop.clone();
        tasks.spawn(async move {
            let _seat = seat;
            tokio::select! {
                () = stop.cancelled() => {}
                ended = connection.serve() => {
                    if let Err(error) = ended {
                        debug!(uid, %error, "control connection ended");
                    }
                }
            }
        });
    }
}

fn access_of(uid: u32, operators: &[u32]) -> Access {
    let own = rustix::process::geteuid().as_raw();
    if uid == 0 || uid == own || operators.contains(&uid) {
        Access::Operator
    } else {
        Access::Observer
    }
}

/// One line of why, if it can be had without waiting.
fn refuse(stream: &UnixStream) {
    let error = RpcError::new(ErrorCode::Busy, "too many control connections");
    let _ = stream.try_write(&encode_response(None, &Err(error)));
}

#[cfg(test)]
mod tests;
