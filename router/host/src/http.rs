//! HTTP as plugins see it: requests and answers as a whole, within bounds. What is on the connection is
//! the node's.

use std::net::IpAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::{
    event::{ErrorCode, Refusal},
    message,
};

/// The longest body of an answer, and of a request that a plugin makes: that of a message.
pub const MAX_HTTP_BODY_BYTES: usize = 1 << 20;
/// Headers of one request or answer.
pub const MAX_HTTP_HEADERS: usize = 64;
/// All of them: what other servers take at least.
pub const MAX_HTTP_HEADER_BYTES: usize = 16 << 10;

/// What belongs to one connection (RFC 9110, section 7.6.1), or is made of the body.
const OF_THE_CONNECTION: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
];

/// A header: its name, and its value.
pub type HttpHeader = (String, Vec<u8>);

/// Headers, in their order.
pub type HttpHeaders = Vec<HttpHeader>;

/// Somebody asks a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRequest {
    /// `GET`, as it came.
    pub method: String,
    /// Where, without the part that names a user.
    pub path: String,
    /// What stands behind `?`.
    pub query: Option<String>,
    /// Without those of the connection.
    pub headers: HttpHeaders,
    /// All of it.
    pub body: Bytes,
    /// Where it came from.
    pub remote: IpAddr,
}

/// What is answered, here or elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpResponse {
    /// 200 to 599.
    pub status: u16,
    /// Without those of the connection.
    pub headers: HttpHeaders,
    /// All of it.
    #[serde(skip)]
    pub body: Vec<u8>,
}

impl HttpResponse {
    /// What must hold of what a plugin answers.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        if !(200..=599).contains(&self.status) || StatusCode::from_u16(self.status).is_err() {
            return Err(invalid("an HTTP status is 200 to 599"));
        }
        check_headers(&self.headers)?;
        check_body(self.body.len())
    }

    /// As answers are kept in the host.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = message::encode(self);
        bytes.extend_from_slice(&self.body);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, body) = postcard::take_from_bytes::<Self>(bytes).ok()?;
        Some(Self {
            body: body.to_vec(),
            ..head
        })
    }
}

/// The headers of a message that came, for a plugin: those of the connection stay behind.
///
/// # Errors
/// There are too many.
pub fn received_headers(headers: &HeaderMap) -> Result<HttpHeaders, Refusal> {
    let own = headers.iter();
    let own = own.filter(|(name, _)| !OF_THE_CONNECTION.contains(name));
    let own = own.map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()));
    let own: HttpHeaders = own.collect();
    check_headers(&own)?;
    Ok(own)
}

/// What a plugin says, as headers.
///
/// # Errors
/// One is none.
pub fn sent_headers(headers: &[HttpHeader]) -> Result<HeaderMap, Refusal> {
    let mut sent = HeaderMap::new();
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes());
        let name = name.map_err(|_| invalid("a header's name is a token of RFC 9110"))?;
        let value = HeaderValue::from_bytes(value);
        let value = value.map_err(|_| invalid("a header's value is one line"))?;
        sent.append(name, value);
    }
    Ok(sent)
}

/// What must hold of headers, whoever says them.
pub(crate) fn check_headers(headers: &[HttpHeader]) -> Result<(), Refusal> {
    let bytes = headers.iter().map(|(name, value)| name.len() + value.len());
    if headers.len() > MAX_HTTP_HEADERS || bytes.sum::<usize>() > MAX_HTTP_HEADER_BYTES {
        return Err(invalid("HTTP headers are at most 64, of 16 KiB together"));
    }
    let sent = sent_headers(headers)?;
    if OF_THE_CONNECTION.iter().any(|name| sent.contains_key(name)) {
        return Err(invalid("headers of the connection are the node's"));
    }
    Ok(())
}

pub(crate) fn check_body(bytes: usize) -> Result<(), Refusal> {
    if bytes > MAX_HTTP_BODY_BYTES {
        return Err(invalid("a body of HTTP has at most 1 MiB"));
    }
    Ok(())
}

fn invalid(rule: &str) -> Refusal {
    Refusal::new(ErrorCode::Invalid, rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(headers: &[(&str, &str)]) -> HttpResponse {
        let headers = headers.iter();
        let headers = headers.map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()));
        HttpResponse {
            status: 200,
            headers: headers.collect(),
            body: b"hello".to_vec(),
        }
    }

    #[test]
    fn an_answer_is_what_it_was_when_it_is_read_again() {
        let response = response(&[("content-type", "text/plain"), ("x", "")]);
        response.check().unwrap();
        assert_eq!(HttpResponse::decode(&response.encode()), Some(response));
    }

    #[test]
    fn an_answer_that_would_break_the_connection_is_refused() {
        let refused = |headers| response(headers).check().unwrap_err().message;
        assert!(refused(&[("a b", "")]).contains("token"));
        assert!(refused(&[("a", "1\r\nb: 2")]).contains("one line"));
        assert!(refused(&[("Content-Length", "1")]).contains("the node's"));
        assert!(refused(&[("transfer-encoding", "chunked")]).contains("the node's"));
        assert!(refused(&[("a", ""); 65]).contains("at most 64"));
        let long = "x".repeat(MAX_HTTP_HEADER_BYTES);
        assert!(refused(&[("a", &long)]).contains("16 KiB"));
        for status in [0, 101, 199, 600] {
            let response = HttpResponse {
                status,
                ..response(&[])
            };
            assert!(response.check().is_err(), "{status}");
        }
    }
}
