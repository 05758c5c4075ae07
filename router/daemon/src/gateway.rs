//! Where plugins answer HTTP requests: one door for all of them.
//!
//! ```text
//! connection -> place (bounded) -> TLS (timed) -> head (timed) -> body (bounded, timed)
//!            -> the plugin's place (bounded) -> the plugin answers, durably -> answer (who does not take it is cut)
//! ```
//! Who answers below which path, and as which user, the host of plugins knows.

mod answer;
mod certificates;
mod patient;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

pub(crate) use self::certificates::{Certificates, certificates};
use self::{answer::Desk, patient::Patient};
use crate::{
    config::HttpConfig,
    node::NodeCore,
    sources::{SourcePlace, Sources},
};

/// Connections at once. Overflow: the newcomer is closed, and counted.
const MAX_CONNECTIONS: usize = 1024;
/// From one place of the network: browsers open six, and families share an address. From loopback
/// comes a proxy, for everybody.
const MAX_OF_ONE: usize = 64;
/// Pieces of bodies that come at once, all together: 64 MiB. Overflow: the newcomer is answered 503.
const MAX_BODIES: usize = 1024;
/// From one place of the network. The same.
const MAX_BODIES_OF_ONE: usize = MAX_BODIES / 4;
/// A request's head; browsers' cookies reach some 16 KiB.
const MAX_HEAD_BYTES: usize = 32 << 10;
/// For TLS, for a head, and between two requests.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a node that stops waits for answers.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// And how long for who takes them.
const CUT_PATIENCE: Duration = Duration::from_secs(1);
/// How long the system that is out of descriptors leaves the next connection waiting.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A gateway that cannot open.
#[derive(Debug, Error)]
pub enum GatewayError {
    /// The address is taken or not this machine's.
    #[error("cannot listen on {address} for [http]")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A file of the certificate cannot be used.
    #[error("[http]: {}: {why}", path.display())]
    Certificate {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// A bound gateway.
pub(crate) struct Gateway {
    listener: TcpListener,
    address: SocketAddr,
    domain: Option<String>,
    certificates: Option<Arc<Certificates>>,
}

/// What its connections share.
struct Door {
    core: Arc<NodeCore>,
    tls: Option<TlsAcceptor>,
    sources: Arc<Sources>,
    connections: Arc<Semaphore>,
    desk: Desk,
}

impl Gateway {
    /// Binds.
    ///
    /// # Errors
    /// [`GatewayError`].
    pub(crate) async fn bind(
        address: SocketAddr,
        config: &HttpConfig,
    ) -> Result<Self, GatewayError> {
        let certificates = Certificates::load(config)?;
        let listen = |source| GatewayError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        Ok(Self {
            address: listener.local_addr().map_err(listen)?,
            listener,
            domain: config.domain.clone(),
            certificates,
        })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes connections until the node stops; they belong to `core`.
    pub(crate) async fn run(self, core: Arc<NodeCore>) {
        let tls = self.certificates.as_ref();
        let door = Arc::new(Door {
            tls: tls.map(|certificates| certificates.acceptor()),
            sources: Sources::new(MAX_CONNECTIONS, MAX_OF_ONE),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            desk: Desk::new(self.domain),
            core: Arc::clone(&core),
        });
        if let Some(certificates) = self.certificates {
            core.spawn_until_stop(certificates.renew());
        }
        let accept = async || self.listener.accept().await;
        while let Some(accepted) = core.stop.run_until_cancelled(accept()).await {
            match accepted {
                Ok((stream, from)) => door.visit(stream, from.ip()),
                Err(error) => {
                    tracing::warn!(%error, "the gateway cannot take a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Door {
    fn visit(self: &Arc<Self>, stream: TcpStream, from: IpAddr) {
        let from = from.to_canonical();
        let place = Arc::clone(&self.connections).try_acquire_owned();
        let (Ok(place), Ok(source)) = (place, self.source(from)) else {
            return self.refused("full");
        };
        let this = Arc::clone(self);
        self.core.tasks.spawn(async move {
            let open = &this.core.metrics.http_connections;
            open.inc();
            this.serve(stream, from).await;
            this.core.metrics.http_connections.dec();
            drop((place, source));
        });
    }

    /// A place among those from there; none is needed on loopback.
    fn source(&self, from: IpAddr) -> Result<Option<SourcePlace>, ()> {
        if from.is_loopback() {
            return Ok(None);
        }
        self.sources.enter(from).map(Some).ok_or(())
    }

    async fn serve(&self, stream: TcpStream, from: IpAddr) {
        // Small answers go at once; without it they only go later.
        let _ = stream.set_nodelay(true);
        let stream = Patient::new(stream);
        let Some(tls) = &self.tls else {
            return self.speak(stream, from).await;
        };
        let secured = timeout(PATIENCE, tls.accept(stream));
        let Some(secured) = self.core.stop.run_until_cancelled(secured).await else {
            return;
        };
        match secured {
            Ok(Ok(stream)) => self.speak(stream, from).await,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake at the gateway failed");
                self.refused("tls");
            }
            Err(_) => self.refused("slow"),
        }
    }

    async fn speak(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send, from: IpAddr) {
        let (core, desk) = (&self.core, &self.desk);
        let service = service_fn(|request| async move {
            let ended = async {
                core.stop.cancelled().await;
                tokio::select! {
                    () = sleep(STOP_PATIENCE) => {}
                    () = core.kill.cancelled() => {}
                }
            };
            Ok::<_, std::convert::Infallible>(desk.answer(core, request, from, ended).await)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = core.stop.cancelled() => {
                // What was asked is still answered, and nothing more.
                connection.as_mut().graceful_shutdown();
                let cut = STOP_PATIENCE + CUT_PATIENCE;
                timeout(cut, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an HTTP connection failed");
            if error.is_timeout() {
                self.refused("slow");
            } else if error.is_parse() || error.is_parse_too_large() {
                self.refused("malformed");
            }
        }
    }

    fn refused(&self, reason: &str) {
        let refusals = &self.core.metrics.http_refusals;
        refusals.with_label_values(&[reason]).inc();
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Gateway").field(&self.address).finish()
    }
}
