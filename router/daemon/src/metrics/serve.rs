//! `/metrics` over HTTP, on loopback.

use std::{collections::VecDeque, convert::Infallible, io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::Error;
use tokio::{net::TcpListener, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Metrics;

/// A scraper or two and a person. Overflow: the oldest connection ends, so that silent ones,
/// however many, keep out nobody who asks; a scraper connects again.
const MAX_CONNECTIONS: usize = 16;
/// A scraper sends its headers at once.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// The metrics entrance cannot start.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The address is taken or not this machine's.
    #[error("cannot listen on {address} for metrics")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A bound socket that serves what `render` says.
#[derive(Debug)]
pub(crate) struct MetricsServer {
    listener: TcpListener,
    metrics: Arc<Metrics>,
}

impl MetricsServer {
    /// Binds.
    ///
    /// # Errors
    /// [`MetricsError::Listen`].
    pub(crate) async fn bind(
        address: SocketAddr,
        metrics: Arc<Metrics>,
    ) -> Result<Self, MetricsError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| MetricsError::Listen { address, source })?;
        Ok(Self { listener, metrics })
    }

    /// Where it listens.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`; `render` makes each answer.
    pub(crate) async fn run(
        self,
        stop: CancellationToken,
        render: impl Fn() -> Result<Vec<u8>, Error> + Clone + Send + Sync + 'static,
    ) {
        let tasks = TaskTracker::new();
        let mut open: VecDeque<CancellationToken> = VecDeque::new();
        while let Some(accepted) = stop.run_until_cancelled(self.listener.accept()).await {
            let Ok((stream, _)) = accepted else { continue };
            open.retain(|connection| !connection.is_cancelled());
            if open.len() >= MAX_CONNECTIONS
                && let Some(oldest) = open.pop_front()
            {
                oldest.cancel();
                let refused = &self.metrics.connections_refused;
                refused.with_label_values(&["metrics", "full"]).inc();
            }
            let end = stop.child_token();
            open.push_back(end.clone());
            let render = render.clone();
            tasks.spawn(async move {
                let service =
                    service_fn(move |request| std::future::ready(answer(&render, &request)));
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service);
                // A scraper that goes away is no event.
                let _ = end.run_until_cancelled(connection).await;
                end.cancel();
            });
        }
        tasks.close();
        tasks.wait().await;
    }
}

fn answer(
    render: impl Fn() -> Result<Vec<u8>, Error>,
    request: &Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match render() {
            Ok(text) => (StatusCode::OK, Bytes::from(text)),
            Err(error) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                Bytes::from(error.to_string()),
            ),
        },
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, Bytes::new()),
        _ => (StatusCode::NOT_FOUND, Bytes::new()),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(prometheus::TEXT_FORMAT),
    );
    Ok(response)
}
