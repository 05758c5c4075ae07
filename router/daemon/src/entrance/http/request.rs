//! What a request to a proxy means, and what becomes of it: no I/O.

use hyper::{Method, Request, Uri};
use wormholes_proto::{Host, Target};

use super::headers;

/// Where absolute-form requests go that name no port.
const HTTP_PORT: u16 = 80;

/// Where a request to a proxy wants to go; none when it does not say so in a proxy's terms.
pub fn proxy_target(method: &Method, uri: &Uri) -> Option<Target> {
    let authority = uri.authority()?;
    let is_connect = *method == Method::CONNECT;
    let plain_http = uri.scheme_str() == Some("http");
    // A password in a URL is for the target, and the proxy must not see it (RFC 9110, 4.2.4).
    if (!is_connect && !plain_http) || authority.as_str().contains('@') {
        return None;
    }
    let default_port = (!is_connect).then_some(HTTP_PORT);
    let port = match authority.port() {
        Some(port) => port.as_str().parse().ok()?,
        None => default_port?,
    };
    let host = Host::parse(authority.host()).ok()?;
    (port != 0).then(|| Target::new(host, port))
}

/// A request in absolute form as its target gets it: in origin form, with that target's `Host`, and
/// without the headers of the client's connection. None when it names no target.
pub fn origin_form<B>(request: Request<B>) -> Option<Request<B>> {
    let (mut parts, body) = request.into_parts();
    let authority = parts.uri.authority()?.clone();
    let path = parts.uri.path_and_query()?.clone();
    headers::remove_hop_by_hop(&mut parts.headers);
    headers::set_host(&mut parts.headers, authority.as_str());
    parts.uri = Uri::from(path);
    parts.version = hyper::Version::HTTP_11;
    Some(Request::from_parts(parts, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, uri: &str, expected: Option<&str>) {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let found = proxy_target(&method, &uri.parse().unwrap()).map(|target| target.to_string());
        assert_eq!(found.as_deref(), expected, "{method} {uri}");
    }

    #[test]
    fn only_proxy_requests_have_a_target() {
        check("CONNECT", "a.example:443", Some("a.example:443"));
        check("CONNECT", "[::1]:443", Some("[::1]:443"));
        check("CONNECT", "a.example", None);
        check("CONNECT", "a.example:0", None);
        check("CONNECT", "0x7f.1:80", None);
        check("GET", "http://A.example/x?y", Some("a.example:80"));
        check("GET", "http://a.example:8080/", Some("a.example:8080"));
        check("GET", "http://user:pw@a.example/", None);
        check("GET", "https://a.example/", None);
        check("GET", "/local", None);
        check("OPTIONS", "*", None);
    }
}
