//! Programs that ask for names at each client, whether or not anybody serves them, and a browser.

use std::{process::Stdio, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use tempfile::TempDir;
use tokio::{process::Command, time::timeout};
use wormholes_proto::Target;
use wormholes_tests::{Again, Association, Namespace, SITE_GREETING, TOR_WEB, socks5_resolve};

use crate::watched::{FORWARD, HTTP, SOCKS};

/// How long a program waits, in seconds; longer than any plan takes.
const PATIENCE: &str = "12";
/// Who asks by datagrams waits no longer: nothing tells him that he was refused.
const DATAGRAM_PATIENCE: Duration = Duration::from_secs(3);
/// To which [`Program::Associate`] sends, and nothing else for the hidden ones.
pub(super) const DATAGRAM_PORT: u16 = 53;
/// A browser waits for more than one thing.
const BROWSER_PATIENCE: Duration = Duration::from_secs(120);

/// What goes on at a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    /// curl at the SOCKS5 entrance, for a name that all name servers have.
    Web,
    /// The same for an onion service.
    Onion,
    /// The same by CONNECT at the HTTP entrance.
    Connect,
    /// curl at the SOCKS5 entrance, for a destination of I2P.
    I2p,
    /// dig at a UDP entrance, for addresses of the onion service and of the destination.
    Dig,
    /// Datagrams to both, by UDP ASSOCIATE at the SOCKS5 entrance.
    Associate,
    /// Tor's RESOLVE, for a name that all name servers have.
    Resolve,
    /// The same for the onion service and the destination, which have no address.
    ResolveHidden,
}

/// Where the hidden ones are.
#[derive(Debug)]
struct Hidden {
    onion: String,
    i2p: String,
}

/// Starts `programs` on a client's host.
pub(super) fn programs(
    host: &Arc<Namespace>,
    programs: &[Program],
    onion: &str,
    i2p: &str,
) -> Again<Program> {
    let host = Arc::clone(host);
    let hidden = Arc::new(Hidden {
        onion: onion.to_owned(),
        i2p: i2p.to_owned(),
    });
    Again::start(programs, move |program| {
        let (host, hidden) = (Arc::clone(&host), Arc::clone(&hidden));
        async move { program.run(&host, &hidden).await }
    })
}

impl Program {
    /// One turn; an error when it was not served.
    async fn run(self, host: &Namespace, hidden: &Hidden) -> Result<()> {
        let socks = format!("socks5h://127.0.0.1:{SOCKS}");
        let http = format!("http://127.0.0.1:{HTTP}");
        match self {
            Self::Web => fetch(host, &socks, TOR_WEB).await,
            Self::Onion => fetch(host, &socks, &hidden.onion).await,
            Self::Connect => fetch(host, &http, &hidden.onion).await,
            Self::I2p => fetch(host, &socks, &hidden.i2p).await,
            Self::Dig => either(dig(host, &hidden.onion), dig(host, &hidden.i2p)).await,
            Self::Associate => {
                let (onion, i2p) = (associate(host, &hidden.onion), associate(host, &hidden.i2p));
                either(onion, i2p).await
            }
            Self::Resolve => resolve(host, TOR_WEB).await,
            Self::ResolveHidden => {
                let (onion, i2p) = (resolve(host, &hidden.onion), resolve(host, &hidden.i2p));
                either(onion, i2p).await
            }
        }
    }
}

/// Both at once; served when one of them was.
async fn either(
    one: impl Future<Output = Result<()>>,
    other: impl Future<Output = Result<()>>,
) -> Result<()> {
    let (one, other) = tokio::join!(one, other);
    one.or(other)
}

async fn fetch(host: &Namespace, proxy: &str, from: &str) -> Result<()> {
    let mut command = host.command("curl");
    command
        .args([
            "--silent",
            "--fail",
            "--max-time",
            PATIENCE,
            "--proxytunnel",
        ])
        .args(["--noproxy", "", "--proxy", proxy])
        .arg(format!("http://{from}/"))
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let fetched = Command::from(command).kill_on_drop(true).output().await?;
    ensure!(String::from_utf8_lossy(&fetched.stdout).contains(SITE_GREETING));
    Ok(())
}

async fn dig(host: &Namespace, name: &str) -> Result<()> {
    let mut command = host.command("dig");
    command
        .args(["@127.0.0.1", "-p", &FORWARD.to_string()])
        .args(["+short", "+tries=1", "+time=3", name, "A"])
        .stdin(Stdio::null());
    let answer = Command::from(command).kill_on_drop(true).output().await?;
    let said = String::from_utf8_lossy(&answer.stdout).into_owned();
    // Where nobody answers it says so in a comment.
    ensure!(answer.status.success() && !said.starts_with(';'), "{said}");
    Ok(())
}

async fn associate(host: &Namespace, name: &str) -> Result<()> {
    let target: Target = format!("{name}:{DATAGRAM_PORT}").parse()?;
    let control = host.connect(([127, 0, 0, 1], SOCKS).into())?;
    let socket = host.udp(([127, 0, 0, 1], 0).into())?;
    let asking = async {
        let association = Association::open(control, socket, None).await?;
        association.ask(&target, b"question").await
    };
    timeout(DATAGRAM_PATIENCE, asking).await??;
    Ok(())
}

async fn resolve(host: &Namespace, name: &str) -> Result<()> {
    let mut stream = host.connect(([127, 0, 0, 1], SOCKS).into())?;
    let patience = Duration::from_secs(PATIENCE.parse()?);
    timeout(patience, socks5_resolve(&mut stream, name)).await??;
    Ok(())
}

/// Whether Chromium, whose proxy is the client's SOCKS5 entrance, shows a site's front page.
pub(super) async fn browser_shows(host: &Namespace, url: &str) -> bool {
    let profile = TempDir::new().unwrap();
    let mut command = host.command("chromium");
    command
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
        ])
        .args(["--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync"])
        // What it asks for itself goes to the proxy, too.
        .arg("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
        .arg("--disable-features=HttpsUpgrades,HttpsFirstBalancedModeAutoEnable")
        .arg(format!("--proxy-server=socks5://127.0.0.1:{SOCKS}"))
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(["--dump-dom", url])
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let browser = Command::from(command).kill_on_drop(true).output();
    let shown = timeout(BROWSER_PATIENCE, browser).await;
    let shown = shown.expect("the browser does not end").unwrap();
    String::from_utf8_lossy(&shown.stdout).contains(SITE_GREETING)
}
