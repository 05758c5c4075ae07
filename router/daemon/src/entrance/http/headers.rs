//! Headers that are the proxy's business (RFC 9110, sections 7.6.1 and 11.7).

use data_encoding::BASE64;
use hyper::{
    HeaderMap,
    header::{self, HeaderName, HeaderValue},
};

use crate::flow::Login;

/// Headers of one connection, which end here. `Via` is not added: the target has no need to know
/// that there is a proxy.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Removes what belongs to one connection, and what its `Connection` header names.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named = headers.get_all(header::CONNECTION).iter();
    // As bytes: one word that is no text hides no other.
    let named = named.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let named = named.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok());
    let named: Vec<HeaderName> = named.collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// User and password of `Proxy-Authorization: Basic` (RFC 7617).
pub(super) fn login(headers: &HeaderMap) -> Option<Login> {
    let value = headers.get(header::PROXY_AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(BASE64.decode(token.trim().as_bytes()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Login::new(user, password))
}

/// The authority as the one `Host` header, whatever the client said (RFC 9112, section 3.2.2).
pub(super) fn set_host(headers: &mut HeaderMap, authority: &str) {
    if let Ok(value) = HeaderValue::from_str(authority) {
        headers.insert(header::HOST, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_one_connection_end_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Private"),
            ("connection", "\u{e9}, X-Hidden"),
            ("x-private", "1"),
            ("x-hidden", "1"),
            ("proxy-connection", "keep-alive"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic YTpi"),
            ("te", "trailers"),
            ("accept", "*/*"),
        ] {
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["accept"]);
    }

    #[test]
    fn logins_are_read_or_absent() {
        let check = |value: &'static str, expected: Option<&str>| {
            let mut headers = HeaderMap::new();
            let value = HeaderValue::from_static(value);
            headers.insert(header::PROXY_AUTHORIZATION, value);
            let user = login(&headers).map(|login| login.user().to_owned());
            assert_eq!(user.as_deref(), expected);
        };
        check("Basic YWxpY2U6cHc=", Some("alice"));
        check("basic YWxpY2U6cHc=", Some("alice"));
        check("Basic YWxpY2U=", None);
        check("Basic ???", None);
        check("Bearer YWxpY2U6cHc=", None);
    }
}
