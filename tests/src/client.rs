//! Clients: curl, and a SOCKS5 client small enough to break the rules with.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{binaries::output, namespace::Namespace};

/// RFC 1928, section 4.
const CONNECT: u8 = 1;
/// Tor's extension of SOCKS.
const RESOLVE: u8 = 0xf0;

/// A path is missed after 15 s without a word, on either side of a relay.
const MISSED: Duration = Duration::from_secs(60);

/// What curl fetched.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// curl's exit code; 0 is success.
    pub exit: i32,
    /// The HTTP status; 0 when there was none.
    pub status: u16,
    /// Until the first byte of the answer.
    pub first_byte: Duration,
    /// Average over the whole transfer.
    pub bytes_per_s: f64,
    /// The body.
    pub body: Vec<u8>,
    /// curl's complaint.
    pub error: String,
}

/// Fetches `url` with curl through `proxy` (`socks5h://…`, `http://…`).
///
/// # Errors
/// When curl cannot run; a failed fetch is no error here.
pub async fn curl(proxy: &str, url: &str, more: &[&str]) -> Result<Fetched> {
    fetch(Command::new("curl"), proxy, url, more).await
}

/// As [`curl`], on another host.
///
/// # Errors
/// As of [`curl`].
pub async fn curl_in(host: &Namespace, proxy: &str, url: &str, more: &[&str]) -> Result<Fetched> {
    fetch(host.command("curl"), proxy, url, more).await
}

async fn fetch(mut command: Command, proxy: &str, url: &str, more: &[&str]) -> Result<Fetched> {
    command
        .args(["--silent", "--show-error", "--max-time", "60"])
        // Names of the harness's own would bypass the proxy.
        .args(["--noproxy", "", "--proxy", proxy])
        .args([
            "--write-out",
            "%{stderr}\n%{http_code} %{time_starttransfer} %{speed_download}",
        ])
        .args(more)
        .arg(url);
    let output = tokio::task::spawn_blocking(move || output(&mut command)).await??;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let (error, figures) = said.trim_end().rsplit_once('\n').unwrap_or(("", &said));
    let mut figures = figures.split_whitespace();
    let mut number = || figures.next().and_then(|text| text.parse::<f64>().ok());
    let (status, first_byte, speed) = (number(), number(), number());
    Ok(Fetched {
        exit: output.status.code().unwrap_or(-1),
        status: status.map_or(0, |status| status as u16),
        first_byte: Duration::from_secs_f64(first_byte.unwrap_or(0.0)),
        bytes_per_s: speed.unwrap_or(0.0),
        body: output.stdout,
        error: error.trim().to_owned(),
    })
}

/// Fetches `url` with curl, directly; `--include` in `more` shows the headers.
///
/// # Errors
/// As of [`curl`].
pub async fn browse(url: &str, more: &[&str]) -> Result<Fetched> {
    curl("", url, more).await
}

/// Opens a connection through a SOCKS5 entrance without a password (RFC 1928).
///
/// # Errors
/// With the reply code in the text when the entrance refuses.
pub async fn socks5_connect(entrance: SocketAddr, host: &str, port: u16) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(entrance).await?;
    match socks5_ask(&mut stream, host, port).await? {
        0 => Ok(stream),
        code => bail!("refused with reply code {code}"),
    }
}

/// As [`socks5_connect`], with a user name (RFC 1929) that tells a script what is wanted.
///
/// # Errors
/// As [`socks5_connect`].
pub async fn socks5_connect_as(
    user: &str,
    entrance: SocketAddr,
    host: &str,
    port: u16,
) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(entrance).await?;
    greet(&mut stream, Some(user)).await?;
    match request(&mut stream, CONNECT, host, port).await?.code {
        0 => Ok(stream),
        code => bail!("refused with reply code {code}"),
    }
}

/// Asks for a target on a new connection to a SOCKS5 entrance; returns the reply code, 0 for a flow
/// that stands. `host` goes as it is, as the text of a name.
///
/// # Errors
/// When the entrance does not speak SOCKS5.
pub async fn socks5_ask(stream: &mut TcpStream, host: &str, port: u16) -> Result<u8> {
    greet(stream, None).await?;
    Ok(request(stream, CONNECT, host, port).await?.code)
}

/// Opens a flow from `host` to an echo through a SOCKS5 entrance there; it has answered, or how it failed.
///
/// # Errors
/// When the entrance does not speak SOCKS5.
pub async fn socks5_echo(
    host: &Namespace,
    entrance: SocketAddr,
    echo: &str,
    port: u16,
) -> Result<Result<TcpStream, String>> {
    let mut stream = host.connect(entrance)?;
    match socks5_ask(&mut stream, echo, port).await? {
        0 => Ok(echoes(&mut stream).await.map(|()| stream)),
        code => Ok(Err(format!("refused with {code}"))),
    }
}

/// Sends a byte to an echo, and takes it back.
///
/// # Errors
/// With how the flow broke, or that it is silent for too long.
pub async fn echoes(stream: &mut TcpStream) -> Result<(), String> {
    let echoed = async {
        stream.write_all(b"?").await?;
        stream.read_u8().await
    };
    let echoed = timeout(MISSED, echoed).await;
    let echoed = echoed.map_err(|_| "silent".to_owned())?;
    echoed.map(drop).map_err(|error| error.to_string())
}

/// As [`socks5_ask`], with a user name (RFC 1929) that tells a script what is wanted.
///
/// # Errors
/// As [`socks5_ask`].
pub async fn socks5_ask_as(
    user: &str,
    stream: &mut TcpStream,
    host: &str,
    port: u16,
) -> Result<u8> {
    greet(stream, Some(user)).await?;
    Ok(request(stream, CONNECT, host, port).await?.code)
}

/// Asks for an address of `host` on a new connection to a SOCKS5 entrance.
///
/// # Errors
/// With the reply code in the text when the entrance finds none.
pub async fn socks5_resolve(stream: &mut TcpStream, host: &str) -> Result<IpAddr> {
    greet(stream, None).await?;
    match request(stream, RESOLVE, host, 0).await? {
        Reply { code: 0, bound } => Ok(bound.ip()),
        Reply { code, .. } => bail!("refused with reply code {code}"),
    }
}

/// Says hello, with a user name if there is one.
pub(crate) async fn greet(stream: &mut TcpStream, user: Option<&str>) -> Result<()> {
    let (hello, expected) = match user {
        None => (vec![5, 1, 0], vec![5, 0]),
        Some(user) => {
            let mut login = vec![5, 1, 2, 1, u8::try_from(user.len())?];
            login.extend(user.as_bytes());
            login.push(0);
            (login, vec![5, 2, 1, 0])
        }
    };
    stream.write_all(&hello).await?;
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer).await?;
    if answer != expected {
        bail!("the entrance answered the hello with {answer:?}");
    }
    Ok(())
}

/// What an entrance answers.
pub(crate) struct Reply {
    pub(crate) code: u8,
    pub(crate) bound: SocketAddr,
}

pub(crate) async fn request(
    stream: &mut TcpStream,
    command: u8,
    host: &str,
    port: u16,
) -> Result<Reply> {
    let mut request = vec![5, command, 0, 3, u8::try_from(host.len())?];
    request.extend(host.as_bytes());
    request.extend(port.to_be_bytes());
    stream.write_all(&request).await?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await.context("no reply")?;
    let ip: IpAddr = match head[3] {
        1 => {
            let mut octets = [0; 4];
            stream.read_exact(&mut octets).await?;
            octets.into()
        }
        4 => {
            let mut octets = [0; 16];
            stream.read_exact(&mut octets).await?;
            octets.into()
        }
        other => bail!("address type {other}"),
    };
    Ok(Reply {
        code: head[1],
        bound: SocketAddr::new(ip, stream.read_u16().await?),
    })
}
