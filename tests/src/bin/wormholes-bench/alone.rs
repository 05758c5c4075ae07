//! One daemon by itself: what it needs while nothing happens, and how soon after its start the first
//! flow's first byte is back.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixDatagram},
    process::Child,
};
use wormholes_tests::{binary, call, resident_bytes, until};

use crate::{network, process::program, row::Row, turns::median};

pub(crate) const IDLE_DAEMON: &str = "idle daemon, default config";
pub(crate) const COLD_START: &str = "cold start to first flow";

const STARTS: usize = 5;
/// Memory that has been the same so often, up to a tenth of a second apart, stays so.
const EQUAL_LOOKS: usize = 10;
const CONFIG: &str = include_str!("../../../../config.toml");
const DEFAULT_SCRIPT: &str = include_str!("../../../../scripts/default.rhai");

/// Resident memory with the config and the script that are shipped.
pub(crate) async fn idle_daemon() -> Result<Vec<Row>> {
    let mut values = Vec::new();
    for _ in 0..STARTS {
        let folder = TempDir::with_prefix("wormholes-idle-")?;
        // Every key in it is a comment; the one that is given here keeps this machine clean.
        let config = format!("[node]\ndata_dir = \"data\"\n{CONFIG}");
        fs::write(folder.path().join("config.toml"), config)?;
        fs::create_dir(folder.path().join("scripts"))?;
        fs::write(folder.path().join("scripts/default.rhai"), DEFAULT_SCRIPT)?;
        let mut daemon = start(folder.path()).await?;
        values.push(settled_memory(daemon.id().context("it has ended")?).await? as f64);
        daemon.kill().await?;
    }
    let mebibytes = median(&values) / f64::from(1 << 20);
    Ok(vec![Row::alone(IDLE_DAEMON, mebibytes, "MiB")?])
}

/// Resident memory once it stays as it is.
async fn settled_memory(pid: u32) -> Result<u64> {
    let (mut last, mut equal) = (0, 0);
    until("memory to stay as it is", async || {
        let now = resident_bytes(pid);
        let Ok(bytes) = now else { return Some(now) };
        equal = if bytes == last { equal + 1 } else { 0 };
        last = bytes;
        (equal == EQUAL_LOOKS).then_some(now)
    })
    .await?
}

/// From the start of a process that has its keys to a byte that came back through it.
pub(crate) async fn cold_start(load: SocketAddr) -> Result<Vec<Row>> {
    let setup = network::direct_only(load)?;
    setup.write_config()?;
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let started = Instant::now();
        let mut daemon = start(setup.folder()).await?;
        first_flow(setup.folder()).await?;
        times.push(started.elapsed());
        daemon.kill().await?;
    }
    let millis = times.iter().map(Duration::as_secs_f64).map(|s| s * 1e3);
    let millis: Vec<_> = millis.collect();
    Ok(vec![Row::alone(COLD_START, median(&millis), "ms")?])
}

/// Starts a daemon and waits until it tells its service manager that it is ready.
async fn start(folder: &Path) -> Result<Child> {
    let told = folder.join("notify");
    // That of the start before.
    let _none_yet = fs::remove_file(&told);
    let manager = UnixDatagram::bind(&told)?;
    let mut daemon = program(binary("wormholed")?);
    daemon
        .arg("--config")
        .arg(folder.join("config.toml"))
        .env("NOTIFY_SOCKET", &told)
        .stderr(fs::File::create(folder.join("log"))?);
    let mut daemon = daemon.spawn()?;
    let mut word = [0; 64];
    let len = tokio::select! {
        len = manager.recv(&mut word) => len?,
        status = daemon.wait() => {
            anyhow::bail!("{}: {}", status?, fs::read_to_string(folder.join("log"))?)
        }
    };
    let word = word.get(..len).unwrap_or_default();
    ensure!(word.starts_with(b"READY=1"), "not ready, but {word:?}");
    Ok(daemon)
}

async fn first_flow(folder: &Path) -> Result<()> {
    let status = call(&folder.join("data/control.sock"), "status", json!({})).await?;
    let entrance = status.pointer("/entrances/0/listen");
    let entrance = entrance.and_then(|listen| listen.as_str());
    let mut flow = TcpStream::connect(entrance.context("no entrance")?).await?;
    flow.set_nodelay(true)?;
    flow.write_all(b"E1").await?;
    flow.read_u8().await?;
    Ok(())
}
