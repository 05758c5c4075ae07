//! One HTTP request: whether it is for here, its body, the plugin that answers, and the answer.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Body, Incoming},
    header::{self, HeaderName, HeaderValue},
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};
use wormholes_host::{
    ErrorCode, HttpPlace, HttpRequest, HttpResponse, Refusal, received_headers, sent_headers,
};
use wormholes_proto::Host;

use crate::node::NodeCore;

/// How long a whole body may take: a megabyte over a slow line.
const BODY_PATIENCE: Duration = Duration::from_secs(60);

/// What every answer says, unless the plugin says otherwise. Pages of all plugins are of one origin.
const DEFAULTS: [(HeaderName, HeaderValue); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'self'; script-src 'none'; object-src 'none'; frame-ancestors 'none'",
        ),
    ),
    (
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    ),
    (
        header::REFERRER_POLICY,
        HeaderValue::from_static("same-origin"),
    ),
    (
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    ),
];

/// What is the same for all requests.
pub(super) struct Desk {
    domain: Option<String>,
    /// KiB of bodies that may come at once.
    bodies: Semaphore,
}

/// A request that no plugin gets, or that none answered.
struct Refused {
    status: StatusCode,
    /// For people.
    text: String,
    /// As metrics name it; `None`: the plugin's own answer.
    reason: Option<&'static str>,
}

impl Desk {
    pub(super) fn new(domain: Option<String>, max_bodies_kib: usize) -> Self {
        Self {
            domain,
            bodies: Semaphore::new(max_bodies_kib),
        }
    }

    /// Answers; when the node ends before the plugin answers, with 503.
    pub(super) async fn answer(
        &self,
        core: &Arc<NodeCore>,
        request: Request<Incoming>,
        from: IpAddr,
        ended: impl Future<Output = ()>,
    ) -> Response<Full<Bytes>> {
        let answered = tokio::select! {
            answered = self.ask(core, request, from) => answered,
            () = ended => Err(Refused::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the node stops",
                "stopping",
            )),
        };
        let response = match answered {
            Ok(response) => response,
            Err(refused) => {
                if let Some(reason) = refused.reason {
                    let refusals = &core.metrics.http_refusals;
                    refusals.with_label_values(&[reason]).inc();
                }
                refused.response()
            }
        };
        let class = format!("{}xx", response.status().as_u16() / 100);
        core.metrics
            .http_requests
            .with_label_values(&[&class])
            .inc();
        response
    }

    async fn ask(
        &self,
        core: &Arc<NodeCore>,
        request: Request<Incoming>,
        from: IpAddr,
    ) -> Result<Response<Full<Bytes>>, Refused> {
        let (head, body) = request.into_parts();
        if head.method == Method::CONNECT || !head.uri.path().starts_with('/') {
            let text = "this is no proxy";
            return Err(Refused::new(StatusCode::BAD_REQUEST, text, "malformed"));
        }
        self.check_host(&head)?;
        let method = head.method.as_str();
        let plugins = core.plugins().ok_or_else(Refused::nothing)?;
        let place = plugins
            .http(method, head.uri.path())
            .map_err(Refused::place)?;
        let headers = received_headers(&head.headers).map_err(|refusal| {
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            Refused::new(status, &refusal.message, "headers")
        })?;
        let body = self.body(body, &place).await?;
        let request = HttpRequest {
            method: method.to_owned(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().map(str::to_owned),
            headers,
            body,
            remote: from,
        };
        let patience = place.patience();
        let late = || Refused::new(StatusCode::GATEWAY_TIMEOUT, "no answer in time", "late");
        let answer = timeout(patience, place.ask(request)).await;
        respond(answer.map_err(|_| late())??)
    }

    /// Whether the request is for this host: with no name to be known by, a page of another name that
    /// leads here is kept out. A name of `.wh` leads nowhere else.
    fn check_host(&self, head: &hyper::http::request::Parts) -> Result<(), Refused> {
        let malformed = || {
            let text = "say one Host";
            Refused::new(StatusCode::BAD_REQUEST, text, "malformed")
        };
        let mut hosts = head.headers.get_all(header::HOST).iter();
        let named = match (head.uri.authority(), hosts.next(), hosts.next()) {
            (_, _, Some(_)) => return Err(malformed()),
            // It goes first (RFC 9112, section 3.2.2).
            (Some(authority), ..) => authority.as_str(),
            (None, Some(host), None) => host.to_str().map_err(|_| malformed())?,
            (None, None, None) => return Err(malformed()),
        };
        let authority: hyper::http::uri::Authority = named.parse().map_err(|_| malformed())?;
        let host = Host::parse(authority.host().trim_matches(['[', ']']));
        let host = host.map_err(|_| malformed())?;
        let is_wh = host.name().is_some_and(|name| name.ends_with(".wh"));
        let is_ours = match (&self.domain, &host) {
            _ if is_wh => true,
            (Some(domain), Host::Name(_)) => host.name() == Some(domain.as_str()),
            (Some(_), Host::Ip(_)) => false,
            (None, Host::Ip(_)) => true,
            (None, Host::Name(_)) => host.name() == Some("localhost"),
        };
        let other = || {
            let text = "this is another host";
            Refused::new(StatusCode::MISDIRECTED_REQUEST, text, "host")
        };
        is_ours.then_some(()).ok_or_else(other)
    }

    /// All of a body, within what the plugin takes.
    async fn body(&self, body: Incoming, place: &HttpPlace) -> Result<Bytes, Refused> {
        let most = place.max_body_bytes();
        let long = || {
            let text = format!("a body has at most {most} bytes here");
            Refused::new(StatusCode::PAYLOAD_TOO_LARGE, &text, "body")
        };
        let hint = body.size_hint();
        if hint.lower() > most as u64 {
            return Err(long());
        }
        let expected = hint.upper().unwrap_or(u64::MAX).min(most as u64);
        let _room = self.room(expected)?;
        let whole = timeout(BODY_PATIENCE, Limited::new(body, most).collect()).await;
        let slow = || Refused::new(StatusCode::REQUEST_TIMEOUT, "the body is slow", "slow");
        match whole.map_err(|_| slow())? {
            Ok(whole) => Ok(whole.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(long()),
            Err(_) => {
                let text = "the body broke off";
                Err(Refused::new(StatusCode::BAD_REQUEST, text, "malformed"))
            }
        }
    }

    fn room(&self, bytes: u64) -> Result<SemaphorePermit<'_>, Refused> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let full = |_| {
            let text = "too much comes at once; try again later";
            Refused::new(StatusCode::SERVICE_UNAVAILABLE, text, "full")
        };
        self.bodies.try_acquire_many(kib).map_err(full)
    }
}

impl Refused {
    fn new(status: StatusCode, text: &str, reason: &'static str) -> Self {
        Self {
            status,
            text: text.to_owned(),
            reason: Some(reason),
        }
    }

    /// The plugin's place is not to be had.
    fn place(refusal: Refusal) -> Self {
        if refusal.code == ErrorCode::NotFound {
            return Self::nothing();
        }
        Self {
            reason: Some("full"),
            ..refusal.into()
        }
    }

    fn nothing() -> Self {
        Self::new(StatusCode::NOT_FOUND, "nothing is here", "path")
    }

    fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(format!("{}\n", self.text))));
        *response.status_mut() = self.status;
        add_defaults(response.headers_mut());
        response
    }
}

/// What a plugin refuses, in HTTP's words.
impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal.code {
            ErrorCode::Denied => StatusCode::FORBIDDEN,
            ErrorCode::Quota => StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::Invalid => StatusCode::BAD_REQUEST,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Expired => StatusCode::GATEWAY_TIMEOUT,
            ErrorCode::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self {
            status,
            text: refusal.message,
            reason: None,
        }
    }
}

fn respond(answer: HttpResponse) -> Result<Response<Full<Bytes>>, Refused> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() =
        StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = sent_headers(&answer.headers)?;
    add_defaults(response.headers_mut());
    Ok(response)
}

fn add_defaults(headers: &mut HeaderMap) {
    for (name, value) in DEFAULTS {
        headers.entry(name).or_insert(value);
    }
}
