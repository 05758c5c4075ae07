//! HTTP as the node bounds it: what may be answered and asked for, and where a path leads.

use std::collections::BTreeSet;

use wormholes_plugin::{Error, Fetch, HttpResponse, Result};

pub(crate) const MAX_BODY_BYTES: usize = 1 << 20;
const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 16 << 10;
const MAX_METHOD_BYTES: usize = 32;
const MAX_URL_BYTES: usize = 4 << 10;
const OF_THE_CONNECTION: [&str; 8] = [
    "connection",
    "content-length",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "proxy-authenticate",
    "proxy-authorization",
];

/// What must hold of an answer.
pub(crate) fn check_response(response: &HttpResponse) -> Result<()> {
    if !(200..=599).contains(&response.status) {
        return Err(Error::invalid("an HTTP status is 200 to 599"));
    }
    check_headers(&response.headers)?;
    check_body(&response.body)
}

/// What must hold of a request that a plugin makes.
pub(crate) fn check_fetch(wanted: &Fetch) -> Result<()> {
    let is_method = (1..=MAX_METHOD_BYTES).contains(&wanted.method.len())
        && wanted.method.bytes().all(is_token);
    if !is_method || wanted.method == "CONNECT" {
        let rule = "the method is none of HTTP, or has more than 32 bytes";
        return Err(Error::invalid(rule));
    }
    let is_known = wanted.url.starts_with("http://") || wanted.url.starts_with("https://");
    if !is_known || wanted.url.len() > MAX_URL_BYTES {
        let rule = "a URL begins with http:// or https://, and has at most 4 KiB";
        return Err(Error::invalid(rule));
    }
    check_headers(&wanted.headers)?;
    check_body(&wanted.body)
}

fn check_headers(headers: &[(String, Vec<u8>)]) -> Result<()> {
    let bytes = headers.iter().map(|(name, value)| name.len() + value.len());
    if headers.len() > MAX_HEADERS || bytes.sum::<usize>() > MAX_HEADER_BYTES {
        return Err(Error::invalid(
            "HTTP headers are at most 64, of 16 KiB together",
        ));
    }
    for (name, value) in headers {
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(Error::invalid("a header's name is a token of RFC 9110"));
        }
        let is_value = |byte: &u8| *byte == b'\t' || (*byte >= 32 && *byte != 127);
        if !value.iter().all(is_value) {
            return Err(Error::invalid("a header's value is one line"));
        }
        if OF_THE_CONNECTION.contains(&name.to_ascii_lowercase().as_str()) {
            return Err(Error::invalid("headers of the connection are the node's"));
        }
    }
    Ok(())
}

fn check_body(body: &[u8]) -> Result<()> {
    if body.len() > MAX_BODY_BYTES {
        return Err(Error::invalid("a body of HTTP has at most 1 MiB"));
    }
    Ok(())
}

/// RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// As the kit keeps an answer.
pub(crate) fn encode(response: &HttpResponse) -> Result<Vec<u8>> {
    check_response(response)?;
    let parts = (response.status, &response.headers, &response.body);
    serde_json::to_vec(&parts).map_err(|error| Error::failed(error.to_string()))
}

pub(crate) fn decode(bytes: &[u8]) -> Result<HttpResponse> {
    let parts = serde_json::from_slice(bytes);
    let (status, headers, body) = parts.map_err(|error| Error::failed(error.to_string()))?;
    Ok(HttpResponse {
        status,
        headers,
        body,
    })
}

/// Whether one of these paths covers one.
pub(crate) fn covers(paths: &BTreeSet<String>, instance: &str, path: &str) -> bool {
    paths.iter().any(|served| {
        let below = served.strip_prefix("/INSTANCE");
        let below = below.filter(|below| below.is_empty() || below.starts_with('/'));
        let own = below.map(|below| format!("/{instance}{below}"));
        let served = own.as_ref().unwrap_or(served);
        let rest = match served.as_str() {
            "/" => return path.starts_with('/'),
            _ => path.strip_prefix(served.as_str()),
        };
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}
