//! What the proxy says itself: short pages that no browser mistakes for the target's.

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::{Response, StatusCode, header};

use super::Body;
use crate::flow::Refusal;

/// A flow that did not open.
pub(super) fn refused(refusal: &Refusal) -> Response<Body> {
    page(refusal.http_status(), &refusal.to_string())
}

/// A request that names no target.
pub(super) fn bad_request() -> Response<Body> {
    let text = "this is a proxy: send CONNECT host:port, or a request for http://host/";
    last(page(StatusCode::BAD_REQUEST, text))
}

/// The target broke off or does not speak HTTP.
pub(super) fn bad_answer() -> Response<Body> {
    page(StatusCode::BAD_GATEWAY, "the target gave no HTTP answer")
}

/// The entrance has users and the request names none of them.
pub(super) fn login_wanted() -> Response<Body> {
    let status = StatusCode::PROXY_AUTHENTICATION_REQUIRED;
    let mut response = page(status, "user name and password are needed");
    let challenge = header::HeaderValue::from_static("Basic realm=\"wormholes\"");
    response
        .headers_mut()
        .insert(header::PROXY_AUTHENTICATE, challenge);
    last(response)
}

/// Ends the connection after `response`: it holds a place that others wait for.
fn last(mut response: Response<Body>) -> Response<Body> {
    let close = header::HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

fn page(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(format!("wormholes: {text}\n")));
    let mut response = Response::new(Either::Right(Either::Left(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}
