//! One HTTP request: whether it is for here, its body, the plugin that answers, and the answer.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Body, Incoming},
    header::{self, HeaderName, HeaderValue},
    http::request::Parts,
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};
use wormholes_host::{
    ErrorCode, HttpRequest, HttpResponse, Refusal, received_headers, sent_headers,
};
use wormholes_proto::Host;

use super::{MAX_BODIES, MAX_BODIES_OF_ONE};
use crate::{
    node::NodeCore,
    sources::{SourcePlace, Sources},
};

/// How long a whole body may take: a megabyte over a slow line.
const BODY_PATIENCE: Duration = Duration::from_secs(60);
/// What is still taken, and thrown away, of a body that is too long, and for how long.
const MAX_DISCARDED_BYTES: usize = 1 << 20;
const DISCARD_PATIENCE: Duration = Duration::from_secs(2);
/// What a body takes at once of the room for all, when it has come so far.
const PIECE_BYTES: usize = 64 << 10;

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
    /// Pieces of bodies that may come at once.
    bodies: Semaphore,
    sources: Arc<Sources>,
}

/// The room of a piece of a body.
struct Piece<'a> {
    _room: SemaphorePermit<'a>,
    _source: Option<SourcePlace>,
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
    pub(super) fn new(domain: Option<String>) -> Self {
        Self {
            domain,
            bodies: Semaphore::new(MAX_BODIES),
            sources: Sources::new(MAX_BODIES, MAX_BODIES_OF_ONE),
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
        check_site(&head, self.check_host(&head)?)?;
        let method = head.method.as_str();
        let plugins = core.plugins().ok_or_else(Refused::nothing)?;
        let page = plugins
            .http(method, head.uri.path())
            .map_err(|_| Refused::nothing())?;
        let headers = received_headers(&head.headers).map_err(|refusal| {
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            Refused::new(status, &refusal.message, "headers")
        })?;
        let body = self.body(body, page.max_body_bytes(), from).await?;
        // Who is slow takes no place of the plugin's.
        let place = page.enter().map_err(Refused::full)?;
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
    fn check_host<'a>(&self, head: &'a Parts) -> Result<&'a str, Refused> {
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
        is_ours.then_some(named).ok_or_else(other)
    }

    /// All of a body, within what the plugin takes.
    async fn body(&self, body: Incoming, most: usize, from: IpAddr) -> Result<Bytes, Refused> {
        let announced = body.size_hint().lower();
        if announced > most as u64 {
            // Of much more nothing is asked for: it may wait for a sign to begin.
            if announced <= MAX_DISCARDED_BYTES as u64 {
                discard(body).await;
            }
            return Err(Refused::long(most));
        }
        let slow = || Refused::new(StatusCode::REQUEST_TIMEOUT, "the body is slow", "slow");
        let whole = timeout(BODY_PATIENCE, self.whole(body, most, from)).await;
        whole.map_err(|_| slow())?
    }

    /// Takes room for what came, and for no more.
    async fn whole(&self, mut body: Incoming, most: usize, from: IpAddr) -> Result<Bytes, Refused> {
        let (mut whole, mut room) = (BytesMut::new(), Vec::new());
        while let Some(frame) = body.frame().await {
            let broken = |_| {
                let text = "the body broke off";
                Refused::new(StatusCode::BAD_REQUEST, text, "malformed")
            };
            let Ok(data) = frame.map_err(broken)?.into_data() else {
                continue;
            };
            let length = whole.len() + data.len();
            if length > most {
                discard(body).await;
                return Err(Refused::long(most));
            }
            while room.len() * PIECE_BYTES < length {
                room.push(self.piece(from)?);
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole.freeze())
    }

    /// From loopback comes a proxy, for everybody.
    fn piece(&self, from: IpAddr) -> Result<Piece<'_>, Refused> {
        let full = || {
            let text = "too much comes at once; try again later";
            Refused::new(StatusCode::SERVICE_UNAVAILABLE, text, "full")
        };
        let _source = match from.is_loopback() {
            true => None,
            false => Some(self.sources.enter(from).ok_or_else(full)?),
        };
        let _room = self.bodies.try_acquire().map_err(|_| full())?;
        Ok(Piece { _room, _source })
    }
}

/// Whether no page of another site has a browser ask: it may show what is here, and change nothing.
fn check_site(head: &Parts, host: &str) -> Result<(), Refused> {
    if matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    let header = |name: &str| head.headers.get(name).map(HeaderValue::as_bytes);
    let is_own = match (header("sec-fetch-site"), header("origin")) {
        (Some(site), _) => matches!(site, b"same-origin" | b"none"),
        (None, Some(origin)) => std::str::from_utf8(origin)
            .ok()
            .and_then(|origin| origin.split_once("://"))
            .is_some_and(|(_, there)| there.eq_ignore_ascii_case(host)),
        (None, None) => true,
    };
    let foreign = || {
        let text = "a page of another site may not ask for this";
        Refused::new(StatusCode::FORBIDDEN, text, "site")
    };
    is_own.then_some(()).ok_or_else(foreign)
}

/// Takes what is still sent of a body that is too long: whoever is cut off while sending does not read
/// why.
async fn discard(mut body: Incoming) {
    let rest = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > MAX_DISCARDED_BYTES {
                return;
            }
        }
    };
    let _in_time = timeout(DISCARD_PATIENCE, rest).await;
}

impl Refused {
    fn new(status: StatusCode, text: &str, reason: &'static str) -> Self {
        Self {
            status,
            text: text.to_owned(),
            reason: Some(reason),
        }
    }

    /// The plugin has no place.
    fn full(refusal: Refusal) -> Self {
        Self {
            reason: Some("full"),
            ..refusal.into()
        }
    }

    fn long(most: usize) -> Self {
        let text = format!("a body has at most {most} bytes here");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, &text, "body")
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
        let mut text = refusal.message;
        if refusal.code == ErrorCode::Unavailable {
            // Why is the operator's.
            tracing::debug!(why = text, "a plugin answers no request");
            text = "this is not to be had now; try again later".to_owned();
        }
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
            text,
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
