//! HTTP: the import that answers, and the handlers that are asked.

use std::sync::Arc;

use wasmtime::Store;

use super::{
    Answer, State, handlers, told, types,
    wormholes::plugin::{
        http::Host,
        http_types::{self, Response},
    },
};
use crate::{
    event::{ErrorCode, Refusal, Reply, Request, RequestKind},
    guest::{Instance, Outcome, exports::Handlers},
    http::{HttpRequest, HttpResponse},
};

impl http_types::Host for State {}

impl Host for State {
    fn finish(&mut self, id: u64, response: Response) -> Answer<()> {
        Ok(told(self.unrecorded_event()?.respond(id, &response.into())))
    }
}

impl Instance {
    /// Hands a request that came by HTTP to its handler.
    pub(in crate::guest) async fn handle_http(
        &mut self,
        request: &Request,
        http: &Arc<HttpRequest>,
        stamp: &types::Event,
    ) -> wasmtime::Result<Result<Outcome, Refusal>> {
        let Some(handler) = &self.handlers.http else {
            return Ok(Err(Refusal::no_handler("on-http")));
        };
        let deadline_ms = request.deadline_ms.unwrap_or(u64::MAX);
        let reply = handler
            .call_handle(
                &mut self.store,
                stamp,
                request.id,
                &(&**http).into(),
                deadline_ms,
            )
            .await?;
        Ok(match reply {
            Ok(handlers::on_http::Reply::Done(response)) => {
                encoded(response).map(|body| Outcome::Replied(Reply::Done(body)))
            }
            Ok(handlers::on_http::Reply::Later) => Ok(Outcome::Replied(Reply::Later)),
            Err(error) => Err(error.into()),
        })
    }
}

/// Asks a question by HTTP; the answer as it is kept.
pub(in crate::guest) async fn call_http_query(
    handler: &handlers::on_http_query::Guest,
    store: &mut Store<State>,
    request: &HttpRequest,
    stamp: &types::Event,
) -> wasmtime::Result<Result<Vec<u8>, Refusal>> {
    let answer = handler.call_query(store, stamp, &request.into()).await?;
    Ok(answer.map_err(Refusal::from).and_then(encoded))
}

/// Tells the handler of a request that nobody waits for it any more.
pub(in crate::guest) async fn call_canceled(
    handlers: &Handlers,
    store: &mut Store<State>,
    (request, kind): (u64, RequestKind),
    stamp: &types::Event,
) -> wasmtime::Result<Result<(), types::Error>> {
    match kind {
        RequestKind::Command => match &handlers.request {
            Some(handler) => handler.call_canceled(store, stamp, request).await,
            None => Ok(Ok(())),
        },
        RequestKind::Http => match &handlers.http {
            Some(handler) => handler.call_canceled(store, stamp, request).await,
            None => Ok(Ok(())),
        },
    }
}

/// What a handler answers, as it is kept.
pub(crate) fn encoded(response: Response) -> Result<Vec<u8>, Refusal> {
    let response = HttpResponse::from(response);
    // Whoever asked did nothing wrong.
    let wrong = |refusal: Refusal| Refusal::new(ErrorCode::Failed, refusal.message);
    response.check().map_err(wrong)?;
    Ok(response.encode())
}

impl From<Response> for HttpResponse {
    fn from(response: Response) -> Self {
        Self {
            status: response.status,
            headers: response.headers,
            body: response.body,
        }
    }
}

impl From<&HttpRequest> for handlers::on_http::Request {
    fn from(request: &HttpRequest) -> Self {
        Self {
            method: request.method.clone(),
            path: request.path.clone(),
            query: request.query.clone(),
            headers: request.headers.clone(),
            body: request.body.to_vec(),
            remote: request.remote.to_string(),
        }
    }
}
