//! Flows of plugins to others than plugins: connections, and HTTP requests. Where they lead and how they
//! travel, the rules say, as of every flow; TLS is inside.

use std::{
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Request, Uri,
    client::conn::http1,
    header::{HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName};
use tokio::{sync::OnceCell, time::timeout};
use tokio_rustls::TlsConnector;
use wormholes_host::{
    ErrorCode, FetchCall, HttpResponse, MAX_HTTP_BODY_BYTES, Pipe, Refusal, SocketCall, SocketKind,
    WireWay, received_headers, sent_headers,
};
use wormholes_proto::{Host, Target, Transport};

use super::network::ENTRANCE;
use crate::{
    flow::{self, Asked, Caller},
    gateway,
    node::NodeCore,
};

/// An answer's head; ours are half of that at most.
const MAX_HEAD_BYTES: usize = 32 << 10;
/// For TLS.
const PATIENCE: Duration = Duration::from_secs(20);

/// What flows of plugins have in common.
pub(super) struct Wires {
    /// Weak: the node owns the host.
    core: Weak<NodeCore>,
    roots: Option<PathBuf>,
    /// Whom to believe: read when it is needed first. What failed is tried again.
    tls: OnceCell<Arc<ClientConfig>>,
}

/// What a URL says.
struct Place {
    kind: SocketKind,
    target: Target,
    /// As `Host` has it.
    authority: HeaderValue,
    /// The path, and what follows.
    path: Uri,
}

impl Wires {
    pub(super) fn new(core: &Arc<NodeCore>) -> Self {
        Self {
            core: Arc::downgrade(core),
            roots: core.config.http.roots.clone(),
            tls: OnceCell::new(),
        }
    }

    /// The node ends before it is done.
    pub(super) fn stopping() -> Refusal {
        refuse(&flow::Refusal::Stopping)
    }

    /// Opens a connection.
    pub(super) async fn connect(&self, call: SocketCall) -> Result<Box<dyn Pipe>, Refusal> {
        let core = self.core.upgrade();
        let core = core.ok_or_else(Self::stopping)?;
        // What TLS needs is there before anything leaves.
        let tls = match call.kind {
            SocketKind::Tcp => None,
            SocketKind::Tls => Some((self.tls().await?, server_name(&call.target.host)?)),
        };
        let flow = flow::dial(core, asked(call.way, call.target)).await;
        let flow = flow.map_err(|refusal| refuse(&refusal))?;
        let Some((tls, name)) = tls else {
            return Ok(Box::new(flow));
        };
        let secured = timeout(PATIENCE, TlsConnector::from(tls).connect(name, flow));
        let late = |_| unavailable("TLS with the server failed: it does not answer");
        let secured = secured.await.map_err(late)?;
        let failed = |error| unavailable(&format!("TLS with the server failed: {error}"));
        Ok(Box::new(secured.map_err(failed)?))
    }

    /// Makes a request, and takes all of its answer.
    pub(super) async fn fetch(&self, call: FetchCall) -> Result<HttpResponse, Refusal> {
        let place = place(&call.url)?;
        let request = request(&call, &place)?;
        let socket = SocketCall {
            way: call.way,
            kind: place.kind,
            target: place.target,
        };
        let pipe = self.connect(socket).await?;
        let handshake = http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .handshake(TokioIo::new(pipe))
            .await;
        let (mut sender, connection) = handshake.map_err(|error| broke(&error))?;
        let exchange = async {
            let answer = sender.send_request(request).await;
            let (head, body) = answer.map_err(|error| broke(&error))?.into_parts();
            let headers = received_headers(&head.headers).map_err(|_| long())?;
            let body = Limited::new(body, MAX_HTTP_BODY_BYTES).collect().await;
            let body = body.map_err(|error| match error.is::<LengthLimitError>() {
                true => long(),
                false => unavailable("the server's answer broke off"),
            })?;
            Ok::<_, Refusal>(HttpResponse {
                status: head.status.as_u16(),
                headers,
                body: body.to_bytes().into(),
            })
        };
        // The connection moves what the exchange says; it ends with it.
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => answer,
            _ = connection => exchange.await,
        }
    }

    /// Whom to believe.
    async fn tls(&self) -> Result<Arc<ClientConfig>, Refusal> {
        let read = || async {
            let roots = self.roots.clone();
            let read = tokio::task::spawn_blocking(move || client_config(roots.as_deref())).await;
            read.unwrap_or_else(|_| Err(unavailable("the node stops")))
        };
        self.tls.get_or_try_init(read).await.cloned()
    }
}

fn client_config(roots: Option<&std::path::Path>) -> Result<Arc<ClientConfig>, Refusal> {
    let certificates = match roots {
        Some(file) => {
            gateway::certificates(file).map_err(|error| unavailable(&error.to_string()))?
        }
        // A certificate that cannot be read is one less.
        None => rustls_native_certs::load_native_certs().certs,
    };
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(certificates);
    if store.is_empty() {
        return Err(unavailable(
            "nobody is believed in TLS: install the system's root certificates (ca-certificates), \
             or name a file as `roots` in [http] of config.toml",
        ));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unavailable(&error.to_string()))?;
    let mut config = builder.with_root_certificates(store).with_no_client_auth();
    // A ticket would tie two flows together that the rules keep apart.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// What a URL says; no more than a user's browser makes of it.
fn place(url: &str) -> Result<Place, Refusal> {
    let invalid = |why: &str| Refusal::new(ErrorCode::Invalid, why);
    let uri: Uri = url.parse().map_err(|_| invalid("the URL is none"))?;
    let (kind, default_port) = match uri.scheme_str() {
        Some("http") => (SocketKind::Tcp, 80),
        Some("https") => (SocketKind::Tls, 443),
        _ => return Err(invalid("a URL begins with http:// or https://")),
    };
    let authority = uri
        .authority()
        .ok_or_else(|| invalid("the URL names no host"))?;
    if authority.as_str().contains('@') {
        return Err(invalid(
            "a URL with a user's name: say it in `authorization`",
        ));
    }
    let rest = authority.as_str().strip_prefix(authority.host());
    let port = match rest.unwrap_or_default().strip_prefix(':') {
        Some(port) => port.parse().unwrap_or_default(),
        None => default_port,
    };
    if port == 0 {
        return Err(invalid("the URL's port is none"));
    }
    let host = authority.host().trim_matches(['[', ']']);
    let host = Host::parse(host).map_err(|error| invalid(&error.to_string()))?;
    let path = uri.path_and_query().cloned();
    Ok(Place {
        kind,
        target: Target::new(host, port),
        authority: HeaderValue::from_str(authority.as_str())
            .map_err(|_| invalid("the URL's host is none"))?,
        path: path.map_or_else(|| Uri::from_static("/"), Uri::from),
    })
}

fn request(call: &FetchCall, place: &Place) -> Result<Request<Full<Bytes>>, Refusal> {
    let mut request = Request::new(Full::new(call.body.clone()));
    *request.method_mut() = hyper::Method::from_bytes(call.method.as_bytes())
        .map_err(|_| Refusal::new(ErrorCode::Invalid, "the method is none of HTTP"))?;
    *request.uri_mut() = place.path.clone();
    *request.headers_mut() = sent_headers(&call.headers)?;
    request.headers_mut().insert(HOST, place.authority.clone());
    Ok(request)
}

fn server_name(host: &Host) -> Result<ServerName<'static>, Refusal> {
    match host {
        Host::Ip(ip) => Ok(ServerName::from(*ip)),
        Host::Name(name) => ServerName::try_from(name.to_string())
            .map_err(|_| Refusal::new(ErrorCode::Invalid, "TLS knows no such host name")),
    }
}

fn asked(way: WireWay, target: Target) -> Asked {
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    Asked {
        entrance: ENTRANCE,
        transport: Transport::Tcp,
        label: given(way.label),
        login: None,
        plugin: Some(Caller {
            instance: way.plugin,
            role: given(way.role),
            isolation: way.isolation,
            hides_node: false,
        }),
        ends: None,
        target,
    }
}

/// Why a flow did not open, for the plugin.
fn refuse(refusal: &flow::Refusal) -> Refusal {
    let code = match refusal {
        flow::Refusal::Blocked(_) | flow::Refusal::Forbidden(_) => ErrorCode::Denied,
        flow::Refusal::Name(_) => ErrorCode::NotFound,
        flow::Refusal::Busy
        | flow::Refusal::Crowded(_)
        | flow::Refusal::Stopping
        | flow::Refusal::Gone
        | flow::Refusal::ConnectionRefused
        | flow::Refusal::NetworkUnreachable
        | flow::Refusal::HostUnreachable(_)
        | flow::Refusal::TimedOut
        | flow::Refusal::Failed(_) => ErrorCode::Unavailable,
    };
    Refusal::new(code, refusal.to_string())
}

fn long() -> Refusal {
    let rule = "the server's answer is longer than 64 headers of 16 KiB, or than 1 MiB";
    Refusal::new(ErrorCode::Quota, rule)
}

fn broke(error: &hyper::Error) -> Refusal {
    unavailable(&format!(
        "the server does not speak HTTP to its end: {error}"
    ))
}

fn unavailable(why: &str) -> Refusal {
    Refusal::new(ErrorCode::Unavailable, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, expected: Option<(SocketKind, &str, &str, &str)>) {
        let found = place(url).ok();
        let found = found.map(|it| {
            let authority = it.authority.to_str().unwrap().to_owned();
            (
                it.kind,
                it.target.to_string(),
                authority,
                it.path.to_string(),
            )
        });
        let expected = expected.map(|(kind, target, authority, path)| {
            (
                kind,
                target.to_owned(),
                authority.to_owned(),
                path.to_owned(),
            )
        });
        assert_eq!(found, expected, "{url}");
    }

    #[test]
    fn a_url_leads_to_one_place() {
        let (tcp, tls) = (SocketKind::Tcp, SocketKind::Tls);
        let plain = Some((tcp, "a.example:80", "A.example", "/x?y"));
        check("http://A.example/x?y", plain);
        check(
            "https://a.example",
            Some((tls, "a.example:443", "a.example", "/")),
        );
        let port = Some((tls, "[::1]:8443", "[::1]:8443", "/"));
        check("https://[::1]:8443/", port);
        check(
            "http://web.bob.wh/",
            Some((tcp, "web.bob.wh:80", "web.bob.wh", "/")),
        );
        for url in [
            "ftp://a.example/",
            "https:///x",
            "/x",
            "https://user@a.example/",
            "http://0x7f.1/",
            "http://a.example:99999/",
            "http://a.example:0/",
        ] {
            check(url, None);
        }
    }
}
