//! Requests in absolute form: an HTTP client over a flow.

use http_body_util::Either;
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use wormholes_proto::Target;

use super::{Body, Relayed, Session, error, headers, origin_form};
use crate::{
    flow::{LocalEnd, Login, Refusal},
    pipe::Pipe,
};

/// A client over a flow, kept for the next request to the same target.
pub(super) struct Upstream {
    target: Target,
    login: Option<Login>,
    sender: SendRequest<Incoming>,
}

impl Session {
    pub(super) async fn forward(
        &self,
        request: Request<Incoming>,
        target: Target,
        login: Option<Login>,
    ) -> Response<Body> {
        let Some(mut request) = origin_form(request) else {
            return error::bad_request();
        };
        let mut slot = self.upstream.lock().await;
        let kept = slot
            .take()
            .filter(|kept| kept.target == target && kept.login == login);
        if let Some(mut upstream) = kept
            && upstream.sender.ready().await.is_ok()
        {
            match upstream.sender.try_send_request(request).await {
                Ok(response) => {
                    *slot = Some(upstream);
                    return self.relayed(response);
                }
                // The target closed a connection that was idle: nothing was sent of the request.
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => return error::bad_answer(),
                },
            }
        }
        let mut upstream = match self.dial(target, login).await {
            Ok(upstream) => upstream,
            Err(refusal) => return error::refused(&refusal),
        };
        match upstream.sender.send_request(request).await {
            Ok(response) => {
                *slot = Some(upstream);
                self.relayed(response)
            }
            Err(_) => error::bad_answer(),
        }
    }

    fn relayed(&self, response: Response<Incoming>) -> Response<Body> {
        let (mut parts, body) = response.into_parts();
        headers::remove_hop_by_hop(&mut parts.headers);
        parts.version = hyper::Version::HTTP_11;
        Response::from_parts(parts, Either::Left(Relayed::new(body, self.ends)))
    }

    /// Opens a flow and speaks HTTP through it.
    async fn dial(&self, target: Target, login: Option<Login>) -> Result<Upstream, Refusal> {
        let (pipe, far) = Pipe::memory();
        let (answer, answered) = oneshot::channel();
        self.start(
            target.clone(),
            login.clone(),
            LocalEnd::Memory { answer, pipe },
        );
        answered.await.map_err(|_| Refusal::Stopping)??;
        let (sender, connection) = http1::Builder::new()
            .preserve_header_case(true)
            .handshake(TokioIo::new(far))
            .await
            .map_err(|error| Refusal::Failed(error.to_string()))?;
        // Ends when the sender is dropped or the target closes; both ends of the flow see it.
        self.core.tasks.spawn(async move {
            let _ = connection.await;
        });
        Ok(Upstream {
            target,
            login,
            sender,
        })
    }
}
