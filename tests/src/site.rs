//! A small HTTP site and a TCP echo server: targets that know who asked them.
//!
//! ```text
//! /            SITE_GREETING and the site's name
//! /bytes/N     N bytes
//! /page        a page whose script fetches /bytes/100000, opens a WebSocket to /ws, and fetches
//!              /report/… with what came of both
//! /ws          a WebSocket that echoes (RFC 6455, short text frames)
//! /files/…     files of the folder that the site was given
//! ```

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use data_encoding::BASE64;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Incoming, header, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

use crate::namespace::Namespace;

/// The first words of a site's front page: a marker that must not be readable between nodes.
pub const SITE_GREETING: &str = "Greetings, traveller: the kettle is on, the door is open";
/// Bigger bodies are a mistake of the test.
const MAX_BODY_BYTES: usize = 1 << 30;
/// RFC 6455, section 1.3.
const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const PAGE: &str = r#"<!doctype html><meta charset="utf-8"><title>A page</title>
<script>
async function main() {
  const bytes = (await (await fetch("/bytes/100000")).arrayBuffer()).byteLength;
  const echo = await new Promise((done, fail) => {
    const socket = new WebSocket(`ws://${location.host}/ws`);
    socket.onopen = () => socket.send("to-and-fro");
    socket.onmessage = event => done(event.data);
    socket.onerror = () => fail("the socket failed");
  });
  return `${bytes}-bytes-${echo}`;
}
main().catch(error => `failed-${error}`).then(text => fetch(`/report/${encodeURIComponent(text)}`));
</script>"#;

/// A running site.
#[derive(Debug)]
pub struct Site {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    files: Option<PathBuf>,
    requests: Mutex<Vec<SiteRequest>>,
}

/// What the site learned of a request.
#[derive(Debug, Clone)]
pub struct SiteRequest {
    /// Who connected.
    pub from: SocketAddr,
    /// The `Host` header.
    pub host: String,
    /// The path.
    pub path: String,
}

impl Site {
    /// Starts a site at `ip`, any port.
    ///
    /// # Errors
    /// When the address cannot be taken.
    pub async fn start(name: &str, ip: Ipv4Addr, files: Option<&Path>) -> Result<Self> {
        let listener = TcpListener::bind((ip, 0))
            .await
            .with_context(|| format!("cannot listen at {ip}"))?;
        Self::serve(name, listener, files)
    }

    /// Starts a site without files at an address of another host.
    ///
    /// # Errors
    /// When the host cannot be entered, or the address not be taken.
    pub fn start_in(host: &Namespace, name: &str, address: SocketAddr) -> Result<Self> {
        let listener = host.enter(|| Ok(std::net::TcpListener::bind(address)?))?;
        listener.set_nonblocking(true)?;
        Self::serve(name, TcpListener::from_std(listener)?, None)
    }

    fn serve(name: &str, listener: TcpListener, files: Option<&Path>) -> Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            files: files.map(Path::to_owned),
            requests: Mutex::default(),
        });
        let server = tokio::spawn(serve(listener, shared.clone()));
        Ok(Self {
            address,
            shared,
            server,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<SiteRequest> {
        let requests = &self.shared.requests;
        requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with the server, and all connections with it.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, from)) = listener.accept().await {
        let shared = shared.clone();
        connections.spawn(async move {
            let service = hyper::service::service_fn(|request| {
                let response = answer(&shared, from, request);
                std::future::ready(Ok::<_, Infallible>(response))
            });
            let _client_left = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}

fn answer(shared: &Shared, from: SocketAddr, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let host = request.headers().get(header::HOST);
    let seen = SiteRequest {
        from,
        host: host
            .and_then(|host| host.to_str().ok())
            .unwrap_or_default()
            .to_owned(),
        path: path.clone(),
    };
    let mut requests = shared
        .requests
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    requests.push(seen);
    drop(requests);
    let n_bytes = path.strip_prefix("/bytes/").map(str::parse::<usize>);
    match (path.as_str(), n_bytes) {
        ("/", _) => page("text/plain", format!("{SITE_GREETING}. {}\n", shared.name)),
        ("/page", _) => page("text/html", PAGE.to_owned()),
        ("/ws", _) => websocket(request),
        (_, Some(Ok(n_bytes))) if n_bytes <= MAX_BODY_BYTES => {
            page("application/octet-stream", vec![b'w'; n_bytes])
        }
        _ => file(shared, &path).unwrap_or_else(not_found),
    }
}

fn page(kind: &str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    if let Ok(kind) = kind.parse() {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}

fn not_found() -> Response<Full<Bytes>> {
    let mut response = page("text/plain", "nothing here\n");
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

fn file(shared: &Shared, path: &str) -> Option<Response<Full<Bytes>>> {
    let relative = Path::new(path.strip_prefix("/files/")?);
    let is_below = relative
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    let folder = shared.files.as_ref().filter(|_| is_below)?;
    let content = std::fs::read(folder.join(relative)).ok()?;
    Some(page("application/octet-stream", content))
}

/// Accepts the upgrade and echoes frames until the client closes.
fn websocket(mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY).cloned() else {
        return not_found();
    };
    let text = [key.as_bytes(), WEBSOCKET_GUID.as_bytes()].concat();
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &text);
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(&mut request).await {
            let _client_left = echo_frames(TokioIo::new(upgraded)).await;
        }
    });
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, BASE64.encode(digest.as_ref()));
    response
        .body(Full::default())
        .unwrap_or_else(|_| not_found())
}

/// Frames of less than 126 bytes, masked as clients must (RFC 6455, section 5.2).
async fn echo_frames(mut stream: TokioIo<Upgraded>) -> Result<()> {
    loop {
        let [first, second] = [stream.read_u8().await?, stream.read_u8().await?];
        let length = usize::from(second & 0x7f);
        anyhow::ensure!(
            length < 126 && second & 0x80 != 0,
            "not a short masked frame"
        );
        let mut mask = [0; 4];
        stream.read_exact(&mut mask).await?;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await?;
        for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        stream.write_all(&[first, second & 0x7f]).await?;
        stream.write_all(&payload).await?;
        stream.flush().await?;
        if first & 0x0f == 8 {
            return Ok(());
        }
    }
}

/// A TCP server that sends back what it gets, and half-closes when its client does.
#[derive(Debug)]
pub struct EchoServer {
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl EchoServer {
    /// Starts one at `ip`, any port.
    ///
    /// # Errors
    /// When the address cannot be taken.
    pub async fn start(ip: Ipv4Addr) -> Result<Self> {
        Self::serve(TcpListener::bind((ip, 0)).await?)
    }

    /// Starts one on the loopback of another host.
    ///
    /// # Errors
    /// When the host cannot be entered.
    pub fn start_in(host: &Namespace) -> Result<Self> {
        Self::start_at(host, (Ipv4Addr::LOCALHOST, 0).into())
    }

    /// Starts one at an address of another host.
    ///
    /// # Errors
    /// When the host cannot be entered, or the address cannot be taken.
    pub fn start_at(host: &Namespace, address: SocketAddr) -> Result<Self> {
        let listener = host.enter(|| Ok(std::net::TcpListener::bind(address)?))?;
        listener.set_nonblocking(true)?;
        Self::serve(TcpListener::from_std(listener)?)
    }

    fn serve(listener: TcpListener) -> Result<Self> {
        let address = listener.local_addr()?;
        let server = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    // What it sends back waits for nothing.
                    let _late = stream.set_nodelay(true);
                    let (mut reader, mut writer) = stream.split();
                    let _client_left = tokio::io::copy(&mut reader, &mut writer).await;
                    let _client_left = writer.shutdown().await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.server.abort();
    }
}
