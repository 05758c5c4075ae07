//! Programs that nobody tells when a node starts, dies or changes its rules: at each client they go
//! on, turn after turn.

use std::{process::Stdio, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use tokio::{
    process::Command,
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use wormholes_proto::{Host, Target};
use wormholes_tests::{Association, Namespace, socks5_resolve};

use super::{
    scene::{FORWARD, HTTP, INTERNET, SIXTH, SOCKS},
    ways::Program,
};

/// How long a program waits for a page or an address, in seconds; longer than any plan takes.
const PATIENCE: &str = "10";
/// And for a datagram: nobody tells it that it was refused.
const DATAGRAM_PATIENCE: Duration = Duration::from_secs(3);
/// Programs begin again at this pace, and leave the machine to the others.
const PACE: Duration = Duration::from_millis(500);
const PAGE_BYTES: usize = 50_000;
/// Where a target of datagrams has an IPv6 address that nothing answers from, that one is taken.
const ECHO: (&str, u16) = ("echo.example", 7);

/// The programs of one client, each of which begins again when it has ended; dropped, they end.
pub(super) struct Programs {
    running: Vec<Running>,
}

struct Running {
    program: Program,
    turns: watch::Receiver<Turn>,
    task: JoinHandle<()>,
}

/// What came of the latest turn.
#[derive(Debug, Clone, Copy, Default)]
struct Turn {
    number: usize,
    served: bool,
}

impl Programs {
    /// Starts them, whether or not anybody listens.
    pub(super) fn start(host: &Arc<Namespace>) -> Self {
        let running = Program::ALL.map(|program| {
            let (sender, turns) = watch::channel(Turn::default());
            let host = Arc::clone(host);
            let task = tokio::spawn(async move {
                let mut pace = interval(PACE);
                pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
                for number in 1.. {
                    pace.tick().await;
                    let served = program.run(&host).await.is_ok();
                    sender.send_replace(Turn { number, served });
                }
            });
            Running {
                program,
                turns,
                task,
            }
        });
        Self {
            running: running.into(),
        }
    }

    /// Waits until each of `expected` was served, and each other was not, in a turn that began after
    /// this call; those for which that did not come within `limit`.
    pub(super) async fn settle(&mut self, expected: &[Program], limit: Duration) -> Vec<Program> {
        let settling = self.running.iter_mut().map(async |running| {
            let wanted = expected.contains(&running.program);
            // The one that is under way began before.
            let next = running.turns.borrow().number + 2;
            let settles = |turn: &Turn| turn.number >= next && turn.served == wanted;
            let settled = timeout(limit, running.turns.wait_for(settles)).await;
            settled.is_err().then_some(running.program)
        });
        join_all(settling).await.into_iter().flatten().collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
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
