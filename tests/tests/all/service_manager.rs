//! The daemon under a service manager: what it tells, and the unit that systemd starts it by.
//!
//! No systemd runs here: a socket of these tests takes its place, and `systemd-analyze` reads the
//! unit as systemd would.

use std::{
    fs,
    net::SocketAddr,
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Child,
};
use wormholes_tests::{
    EchoServer, LIMIT, Setup, binary, call, output, run, socks5_connect, until, workspace,
};

const DIRECT: &str = "fn route(c) { direct() }";
/// Of 10, where systemd calls up to 2 the best: 0 would be a service without a network.
const MAX_EXPOSURE: f64 = 1.5;

/// A daemon whose service manager is this test.
struct Managed {
    setup: Setup,
    child: Child,
    socket: UnixDatagram,
    _folder: TempDir,
}

impl Managed {
    fn start(setup: Setup) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let mut daemon = tokio::process::Command::new(binary("wormholed").unwrap());
        daemon.arg("--config").arg(setup.write_config().unwrap());
        daemon
            .env("NOTIFY_SOCKET", path)
            .env("WATCHDOG_USEC", "200000");
        daemon.stderr(Stdio::null());
        let child = daemon.kill_on_drop(true).spawn().unwrap();
        Self {
            setup,
            child,
            socket,
            _folder: folder,
        }
    }

    /// What is told next, signs of life left out.
    fn told(&self) -> String {
        loop {
            let told = self.next();
            if told != "WATCHDOG=1\n" {
                return told;
            }
        }
    }

    fn next(&self) -> String {
        let mut told = [0; 4096];
        let len = self.socket.recv(&mut told).unwrap();
        String::from_utf8(told[..len].to_vec()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    fn control(&self) -> PathBuf {
        self.setup.folder().join("data/control.sock")
    }

    async fn status(&self) -> serde_json::Value {
        call(&self.control(), "status", json!({})).await.unwrap()
    }

    /// Its entrance, and a flow from there.
    async fn flow(&self, echo: &EchoServer) -> (SocketAddr, TcpStream) {
        let status = self.status().await;
        let entrance = status["entrances"][0]["listen"].as_str().unwrap();
        let entrance = entrance.parse().unwrap();
        let port = echo.address().port();
        let flow = socks5_connect(entrance, "127.0.0.1", port).await.unwrap();
        (entrance, flow)
    }
}

fn managed(config: &str) -> Managed {
    let setup = Setup::new("managed").unwrap().entrances().config(config);
    Managed::start(setup.script("rules.rhai", DIRECT))
}

#[tokio::test]
async fn a_service_manager_hears_that_the_daemon_is_ready_reloads_and_stops() {
    let mut daemon = managed("[metrics]\nlisten = \"127.0.0.1:0\"\n[limits]\ndrain_seconds = 300");
    assert_eq!(daemon.told(), "READY=1\nSTATUS=ready\n");
    // All that it opens is open by then: nothing is tried twice here.
    let status = daemon.status().await;
    let entrance = status["entrances"][0]["listen"].as_str().unwrap();
    TcpStream::connect(status["metrics"].as_str().unwrap())
        .await
        .unwrap();
    let echo = EchoServer::start([127, 0, 0, 1].into()).await.unwrap();
    let port = echo.address().port();
    let mut flow = socks5_connect(entrance.parse().unwrap(), "127.0.0.1", port)
        .await
        .unwrap();
    let sign = (0..100).find(|_| daemon.next() == "WATCHDOG=1\n");
    assert!(sign.is_some(), "no sign of life");

    daemon.signal(Signal::HUP);
    reloads(&daemon, "ready");
    let script = daemon.setup.folder().join("rules.rhai");
    fs::write(&script, "fn route(c) { dircet() }").unwrap();
    daemon.signal(Signal::HUP);
    let failed = "the reload failed, and what was in force stays: the log says why";
    reloads(&daemon, failed);
    assert_eq!(daemon.status().await["scripts"]["generation"], 1);

    daemon.signal(Signal::TERM);
    let stopping =
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=310000000\nSTATUS=draining: 1 flows may finish\n";
    assert_eq!(daemon.told(), stopping);
    // Signs of life go on, or a long drain would end by the watchdog.
    assert_eq!(daemon.next(), "WATCHDOG=1\n");
    let mut back = [0; 5];
    flow.write_all(b"still").await.unwrap();
    flow.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"still");
    drop(flow);
    assert_eq!(daemon.child.wait().await.unwrap().code(), Some(0));
}

async fn until_closed(entrance: SocketAddr) {
    until("the entrance to close", async || {
        TcpStream::connect(entrance).await.is_err().then_some(())
    })
    .await
    .unwrap();
}

fn reloads(daemon: &Managed, status: &str) {
    let begins = daemon.told();
    let clock = begins.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
    let at = Duration::from_micros(clock.trim().parse().unwrap());
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = Duration::from_secs(u64::try_from(now.tv_sec).unwrap() + 1);
    assert!(at <= now && now - at < LIMIT, "{at:?} {now:?}");
    assert_eq!(daemon.told(), format!("READY=1\nSTATUS={status}\n"));
}

#[tokio::test]
async fn a_daemon_that_cannot_open_an_entrance_is_never_ready() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = taken.local_addr().unwrap();
    let config = format!("[[entrance]]\nkind = \"http\"\nlisten = \"{taken}\"");
    let mut daemon = managed(&config);
    let ended = tokio::time::timeout(LIMIT, daemon.child.wait()).await;
    // Nobody listens there any more: a daemon that still starts would hang this test.
    assert_eq!(ended.unwrap().unwrap().code(), Some(1));
    daemon.socket.set_nonblocking(true).unwrap();
    let told = daemon.socket.recv(&mut [0; 64]);
    assert_eq!(told.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_second_signal_stops_at_once_and_status_tells_of_the_first() {
    let mut daemon = managed("[limits]\ndrain_seconds = 300");
    assert_eq!(daemon.told(), "READY=1\nSTATUS=ready\n");
    let status = daemon.status().await;
    assert_eq!(status["draining"], false);
    let echo = EchoServer::start([127, 0, 0, 1].into()).await.unwrap();
    let (entrance, mut flow) = daemon.flow(&echo).await;
    daemon.signal(Signal::TERM);
    until_closed(entrance).await;
    assert_eq!(daemon.status().await["draining"], true);
    let mut cli = Command::new(binary("wormholes").unwrap());
    let said = run(cli.arg("status").arg("--socket").arg(daemon.control())).unwrap();
    assert!(said.contains(", draining"), "{said}");

    daemon.signal(Signal::TERM);
    let ended = tokio::time::timeout(LIMIT, daemon.child.wait()).await;
    assert_eq!(ended.unwrap().unwrap().code(), Some(0));
    assert!(
        flow.read(&mut [0]).await.is_err(),
        "the flow was not cut off"
    );
    assert!(!daemon.control().exists(), "it left its socket behind");
}

#[tokio::test]
async fn a_flow_that_outlives_the_drain_is_cut_when_it_is_over() {
    const DRAIN: Duration = Duration::from_secs(3);
    let config = format!("[limits]\ndrain_seconds = {}", DRAIN.as_secs());
    let mut daemon = managed(&config);
    assert_eq!(daemon.told(), "READY=1\nSTATUS=ready\n");
    let echo = EchoServer::start([127, 0, 0, 1].into()).await.unwrap();
    let (entrance, mut flow) = daemon.flow(&echo).await;
    let start = Instant::now();
    daemon.signal(Signal::TERM);
    until_closed(entrance).await;
    let mut back = [0; 5];
    flow.write_all(b"still").await.unwrap();
    flow.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"still");

    let cut = tokio::time::timeout(LIMIT, flow.read(&mut [0])).await;
    let lived = start.elapsed();
    assert!(cut.unwrap().is_err(), "the flow ended as if in order");
    // A busy machine is late, and never early.
    assert!(lived >= DRAIN && lived < 4 * DRAIN, "{lived:?}");
    let ended = tokio::time::timeout(LIMIT, daemon.child.wait()).await;
    assert_eq!(ended.unwrap().unwrap().code(), Some(0));
    assert!(!daemon.control().exists(), "it left its socket behind");
}

#[test]
fn systemd_takes_the_unit_and_finds_little_exposed() {
    let unit = workspace::root().join("packaging/debian/wormholed.service");
    let folder = TempDir::new().unwrap();
    let built = binary("wormholed").unwrap().display().to_string();
    let text = fs::read_to_string(unit)
        .unwrap()
        .replace("/usr/sbin/wormholed", &built);
    let unit = folder.path().join("wormholed.service");
    fs::write(&unit, text).unwrap();
    let analyze = |words: &[&str]| {
        let mut command = Command::new("systemd-analyze");
        output(command.args(words).arg(&unit).env("LC_ALL", "C")).unwrap()
    };
    let verified = analyze(&["verify", "--man=no"]);
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && said.is_empty(), "{said}");

    let found = analyze(&["security", "--offline=true", "--no-pager"]);
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    let (_, level) = found.split_once("Overall exposure level for").unwrap();
    let (_, level) = level.split_once(": ").unwrap();
    let level: f64 = level.split_whitespace().next().unwrap().parse().unwrap();
    eprintln!("exposure of the unit: {level} of 10, at most {MAX_EXPOSURE}");
    assert!(level <= MAX_EXPOSURE, "{found}");
}
