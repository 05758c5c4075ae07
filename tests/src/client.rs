//! Clients: curl, and a SOCKS5 client small enough to break the rules with.

use std::{net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::binaries::output;

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
    let mut command = Command::new("curl");
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
    let mut login = vec![5, 1, 2, 1, u8::try_from(user.len())?];
    login.extend(user.as_bytes());
    login.push(0);
    stream.write_all(&login).await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    if answer != [5, 2, 1, 0] {
        bail!("the entrance answered the login with {answer:?}");
    }
    match request(&mut stream, host, port).await? {
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
    stream.write_all(&[5, 1, 0]).await?;
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).await?;
    if chosen != [5, 0] {
        bail!("the entrance chose {chosen:?}");
    }
    request(stream, host, port).await
}

async fn request(stream: &mut TcpStream, host: &str, port: u16) -> Result<u8> {
    let mut request = vec![5, 1, 0, 3, u8::try_from(host.len())?];
    request.extend(host.as_bytes());
    request.extend(port.to_be_bytes());
    stream.write_all(&request).await?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await.context("no reply")?;
    let address_bytes = match head[3] {
        1 => 4,
        4 => 16,
        other => bail!("address type {other}"),
    };
    let mut rest = vec![0; address_bytes + 2];
    stream.read_exact(&mut rest).await?;
    Ok(head[1])
}
