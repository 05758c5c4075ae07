//! HTTP proxy: CONNECT, and requests in absolute form (RFC 9110, section 9.3.6; RFC 9112,
//! section 3.2.2).
//!
//! CONNECT hands its connection to the flow and this server is out of the way. Other requests go
//! through a client over a flow of their own, which lives as long as both sides keep it alive.

mod error;
mod forward;
mod headers;
mod relayed;
mod request;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http_body_util::{Either, Empty, Full};
use hyper::{Method, Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::oneshot;
use wormholes_proto::Target;

use super::{Door, Place, Visitor};
use crate::{
    flow::{self, Ends, LocalEnd, Login, Refusal},
    node::NodeCore,
};
use forward::Upstream;
use relayed::Relayed;

pub use request::{origin_form, proxy_target};

/// A request's head; browsers' cookies reach some 16 KiB.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Bodies: streamed through, or one of our own.
pub(super) type Body = Either<Relayed, Either<Full<Bytes>, Empty<Bytes>>>;

/// One client's connection.
struct Session {
    door: Arc<Door>,
    core: Arc<NodeCore>,
    ends: Ends,
    /// Given back with the first request that names its user and its target.
    place: Mutex<Option<Place>>,
    /// The flow of the last absolute-form request; an HTTP/1 client asks one thing at a time.
    upstream: tokio::sync::Mutex<Option<Upstream>>,
}

/// Serves one connection.
pub(super) async fn serve(door: &Arc<Door>, visitor: Visitor, core: Arc<NodeCore>) {
    let handshake = core.config.limits.handshake;
    let evicted = visitor.place.evicted();
    let session = Arc::new(Session {
        door: Arc::clone(door),
        core,
        ends: visitor.ends,
        place: Mutex::new(Some(visitor.place)),
        upstream: tokio::sync::Mutex::default(),
    });
    let service = service_fn(|request| {
        let session = Arc::clone(&session);
        async move { Ok::<_, Infallible>(session.answer_unless_left(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(handshake)
        .max_buf_size(MAX_HEAD_BYTES)
        .preserve_header_case(true)
        // Who ends what it sends still waits for the answer; that it leaves is seen otherwise.
        .half_close(true)
        .serve_connection(TokioIo::new(visitor.stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = evicted.cancelled() => return session.door.refused(&session.core, "full"),
        () = session.core.stop.cancelled() => {
            // What was asked is still answered, until the drain is over.
            connection.as_mut().graceful_shutdown();
            let kill = &session.core.kill;
            kill.run_until_cancelled(connection).await.unwrap_or(Ok(()))
        }
    };
    let Err(error) = ended else {
        return;
    };
    tracing::debug!(%error, from = %session.ends.theirs, "HTTP connection failed");
    // Once a request was understood, a break is the client's right.
    if session.take_place().is_some() {
        let reason = if error.is_timeout() {
            "slow"
        } else {
            "malformed"
        };
        session.door.refused(&session.core, reason);
    }
}

impl Session {
    /// Answers; a program that leaves ends what is done for it.
    async fn answer_unless_left(&self, request: Request<Incoming>) -> Response<Body> {
        tokio::select! {
            response = self.answer(request) => response,
            () = flow::left(self.ends) => error::refused(&Refusal::Gone),
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let users = &self.door.config.users;
        let login = headers::login(request.headers());
        let known = login.as_ref().is_some_and(|login| login.is_one_of(users));
        if !users.is_empty() && !known {
            self.door.refused(&self.core, "login");
            return error::login_wanted();
        }
        let Some(target) = proxy_target(request.method(), request.uri()) else {
            self.door.refused(&self.core, "malformed");
            return error::bad_request();
        };
        // Until here a stranger holds one of the places that are bounded.
        drop(self.take_place());
        if request.method() == Method::CONNECT {
            self.connect(request, target, login).await
        } else {
            self.forward(request, target, login).await
        }
    }

    async fn connect(
        &self,
        request: Request<Incoming>,
        target: Target,
        login: Option<Login>,
    ) -> Response<Body> {
        let (answer, answered) = oneshot::channel();
        let local = LocalEnd::Connect {
            answer,
            upgrade: hyper::upgrade::on(request),
        };
        self.start(target, login, local);
        match answered.await {
            Ok(Ok(())) => Response::new(Either::Right(Either::Right(Empty::new()))),
            Ok(Err(refusal)) => error::refused(&refusal),
            Err(_) => error::refused(&Refusal::Stopping),
        }
    }

    /// Runs a flow in a task of its own, which the node owns.
    fn start(&self, target: Target, login: Option<Login>, local: LocalEnd) {
        let asked = self.door.asked(self.ends, target, login);
        let core = Arc::clone(&self.core);
        let tasks = core.tasks.clone();
        tasks.spawn(async move { flow::run(&core, asked, local).await });
    }

    fn take_place(&self) -> Option<Place> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        place.take()
    }
}
