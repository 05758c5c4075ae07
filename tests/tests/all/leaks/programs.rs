//! Programs that nobody tells when a node starts, dies or changes its rules: at each client they go
//! on, turn after turn.

use std::{process::Stdio, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use tokio::{process::Command, time::timeout};
use wormholes_proto::{Host, Target};
use wormholes_tests::{Again, Association, Namespace, socks5_resolve};

use super::{scene::SIXTH, ways::Program};
use crate::watched::{FORWARD, HTTP, INTERNET, SOCKS};

/// How long a program waits for a page or an address, in seconds; longer than any plan takes.
const PATIENCE: &str = "10";
/// And for a datagram: nobody tells it that it was refused.
const DATAGRAM_PATIENCE: Duration = Duration::from_secs(3);
const PAGE_BYTES: usize = 50_000;
/// Where a target of datagrams has an IPv6 address that nothing answers from, that one is taken.
const ECHO: (&str, u16) = ("echo.example", 7);

/// The programs of one client.
pub(super) fn programs(host: &Arc<Namespace>) -> Again<Program> {
    let host = Arc::clone(host);
    Again::start(&Program::ALL, move |program| {
        let host = Arc::clone(&host);
        async move { program.run(&host).await }
    })
}

impl Program {
    const ALL: [Self; 7] = [
        Self::Socks,
        Self::Http,
        Self::Asked,
        Self::Sixth,
        Self::Dig,
        Self::Associate,
        Self::Resolve,
    ];

    /// One turn; an error when it was not served.
    async fn run(self, host: &Namespace) -> Result<()> {
        let socks = format!("socks5h://127.0.0.1:{SOCKS}");
        let http = format!("http://127.0.0.1:{HTTP}");
        match self {
            Self::Socks => fetch(host, &socks, "web.example").await,
            Self::Http => fetch(host, &http, "web.example").await,
            Self::Asked => fetch(host, &socks, "asked.example").await,
            Self::Sixth => fetch(host, &socks, &format!("[{SIXTH}]")).await,
            Self::Dig => dig(host).await,
            Self::Associate => timeout(DATAGRAM_PATIENCE, associate(host)).await?,
            Self::Resolve => {
                let patience = Duration::from_secs(PATIENCE.parse()?);
                timeout(patience, resolve(host)).await?
            }
        }
    }
}

/// A curl that runs, for `path` of a host.
pub(super) fn curl(host: &Namespace, proxy: &str, url: &str, more: &[&str]) -> Command {
    let mut command = host.command("curl");
    command
        .args(["--silent", "--fail", "--noproxy", "", "--proxy", proxy])
        .args(more)
        .arg(url);
    let mut command = Command::from(command);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command.kill_on_drop(true);
    command
}

async fn fetch(host: &Namespace, proxy: &str, from: &str) -> Result<()> {
    let url = format!("http://{from}/bytes/{PAGE_BYTES}");
    let fetched = curl(host, proxy, &url, &["--max-time", PATIENCE]).output();
    let fetched = fetched.await?;
    ensure!(fetched.status.success() && fetched.stdout.len() == PAGE_BYTES);
    Ok(())
}

async fn dig(host: &Namespace) -> Result<()> {
    let mut command = host.command("dig");
    command
        .args(["@127.0.0.1", "-p", &FORWARD.to_string()])
        .args(["+short", "+tries=1", "+time=3", "web.example", "A"]);
    let mut command = Command::from(command);
    let answer = command.kill_on_drop(true).output().await?;
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    ensure!(answer.trim() == INTERNET.to_string(), "{answer}");
    Ok(())
}

async fn associate(host: &Namespace) -> Result<()> {
    let control = host.connect(([127, 0, 0, 1], SOCKS).into())?;
    let socket = host.udp(([127, 0, 0, 1], 0).into())?;
    let association = Association::open(control, socket, None).await?;
    let echo = Target::new(Host::parse(ECHO.0)?, ECHO.1);
    ensure!(association.ask(&echo, b"to and fro").await? == b"to and fro");
    Ok(())
}

async fn resolve(host: &Namespace) -> Result<()> {
    let mut stream = host.connect(([127, 0, 0, 1], SOCKS).into())?;
    socks5_resolve(&mut stream, "web.example").await?;
    Ok(())
}
