//! What programs send to the HTTP proxy.

use std::convert::Infallible;

use http_body_util::{BodyExt, Empty};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::{Bytes, Incoming},
    header::{self, HeaderName},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncReadExt, runtime, sync::mpsc};
use wormholed::{origin_form, proxy_target};
use wormholes_proto::Host;

use super::input::Input;

/// What the entrance gives hyper for a head.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Those that say something of the client's connection.
const OF_ONE_CONNECTION: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A request as it was understood.
#[derive(Debug, PartialEq)]
struct Asked {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    /// None: it broke off.
    body: Option<Bytes>,
}

/// Requests on one connection.
pub fn http_request(input: &[u8]) {
    let mut input = Input::new(input);
    let cut = usize::from(input.byte());
    let sent = input.rest();
    let whole = serve(sent, 0);
    assert_eq!(whole, serve(sent, cut.min(sent.len())));
    for asked in whole {
        check(asked);
    }
}

/// All requests on a connection whose bytes come in two pieces.
fn serve(sent: &[u8], cut: usize) -> Vec<Asked> {
    let (said, mut heard) = mpsc::unbounded_channel();
    let service = service_fn(|request| {
        let said = said.clone();
        async move { Ok::<_, Infallible>(answer(request, &said).await) }
    });
    let (first, second) = sent.split_at(cut);
    let stream = tokio::io::join(first.chain(second), tokio::io::sink());
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD_BYTES)
        .preserve_header_case(true)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let runtime = runtime::Builder::new_current_thread().build().unwrap();
    let _ended = runtime.block_on(connection);
    let mut all = Vec::new();
    while let Ok(asked) = heard.try_recv() {
        all.push(asked);
    }
    all
}

async fn answer(
    request: Request<Incoming>,
    said: &mpsc::UnboundedSender<Asked>,
) -> Response<Empty<Bytes>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.ok().map(|body| body.to_bytes());
    let asked = Asked {
        method: parts.method,
        uri: parts.uri,
        headers: parts.headers,
        body,
    };
    let mut response = Response::new(Empty::new());
    if asked.method == Method::CONNECT {
        *response.status_mut() = StatusCode::BAD_GATEWAY;
    }
    // The other end is dropped behind the connection only.
    let _ = said.send(asked);
    response
}

/// Nobody is sent elsewhere than where the request's own words lead.
fn check(asked: Asked) {
    let target = proxy_target(&asked.method, &asked.uri);
    let authority = asked.uri.authority().cloned();
    if let Some(target) = &target {
        let authority = authority.as_ref().unwrap();
        assert_eq!(Host::parse(authority.host()).as_ref(), Ok(&target.host));
        assert!(target.port != 0);
        assert_eq!(target.to_string().parse().as_ref(), Ok(target));
        assert!(!authority.as_str().contains('@'), "a password goes out");
    }
    let named = asked.headers.get_all(header::CONNECTION).iter();
    let named = named.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let named: Vec<_> = named
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    let mut request = Request::new(());
    *request.method_mut() = asked.method;
    *request.uri_mut() = asked.uri;
    *request.headers_mut() = asked.headers;
    let is_connect = *request.method() == Method::CONNECT;
    let Some(request) = origin_form(request) else {
        assert!(target.is_none() || is_connect, "it cannot be passed on");
        return;
    };
    let host: Vec<_> = request.headers().get_all(header::HOST).iter().collect();
    assert_eq!(
        host,
        [authority.unwrap().as_str()],
        "one host, the target's"
    );
    assert!(request.uri().authority().is_none() && request.uri().scheme().is_none());
    for name in named.iter().filter(|name| **name != header::HOST) {
        assert!(!request.headers().contains_key(name), "{name} goes out");
    }
    for name in OF_ONE_CONNECTION {
        assert!(!request.headers().contains_key(name), "{name} goes out");
    }
}
