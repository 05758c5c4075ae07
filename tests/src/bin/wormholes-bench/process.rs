//! Processes that are measured: started here, ended by their ids with what holds them, and what
//! they have used, from /proc.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};
use wormholes_tests::{Namespace, until};

/// A program to be started, which ends with this one, however that ends.
pub(crate) fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL"])
        .arg(name)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Starts this program again, and reads the first line that it says.
///
/// # Errors
/// When it ends without a word.
pub(crate) async fn start_this(words: &[&str]) -> Result<(Child, String)> {
    started(program(env::current_exe()?), words).await
}

/// The same where freed memory goes back to the system at once, as it does in a node in the end.
///
/// # Errors
/// As of [`start_this`].
pub(crate) async fn start_this_giving_back(words: &[&str]) -> Result<(Child, String)> {
    let mut command = program(env::current_exe()?);
    let settings = "dirty_decay_ms:0,muzzy_decay_ms:0";
    command.env("_RJEM_MALLOC_CONF", settings);
    started(command, words).await
}

/// The same on another host.
///
/// # Errors
/// As of [`start_this`].
pub(crate) async fn start_this_on(host: &Namespace, words: &[&str]) -> Result<(Child, String)> {
    let mut command = program("ip");
    command.args(["netns", "exec", host.name()]);
    command.arg(env::current_exe()?);
    started(command, words).await
}

async fn started(mut command: Command, words: &[&str]) -> Result<(Child, String)> {
    let mut child = command.args(words).stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("no output")?;
    let said = BufReader::new(output).lines().next_line().await?;
    let said = said.with_context(|| format!("{words:?} ended"))?;
    Ok((child, said))
}

/// Starts a program and waits until it listens at `address`; what it says goes to a file in
/// `folder`.
///
/// # Errors
/// When it ends, with what it said; or when it does not listen in time.
pub(crate) async fn start_listener(
    mut command: Command,
    address: SocketAddr,
    folder: &Path,
) -> Result<Child> {
    let log = folder.join(format!("{}.log", address.port()));
    let said = File::create(&log)?;
    let shown = format!("{:?}", command.as_std());
    command.stdout(said.try_clone()?).stderr(said);
    let mut child = command.spawn().with_context(|| shown.clone())?;
    let what = format!("{shown} to listen");
    let listens = until(&what, async || {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(Err(status));
        }
        TcpStream::connect(address).await.ok().map(|_| Ok(()))
    });
    if let Err(status) = listens.await? {
        bail!("{shown} ended, {status}: {}", fs::read_to_string(log)?);
    }
    Ok(child)
}

/// Addresses on loopback where nobody listens, for programs that cannot say what port they got.
///
/// # Errors
/// When the system has no more ports.
pub(crate) fn free_addresses<const N: usize>() -> Result<[SocketAddr; N]> {
    let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); N];
    // Held until all are known: each is another one.
    let mut held = Vec::with_capacity(N);
    for address in &mut addresses {
        let listener = TcpListener::bind(*address)?;
        *address = listener.local_addr()?;
        held.push(listener);
    }
    Ok(addresses)
}

/// CPU seconds of the processes together, user and system (proc(5), `stat` fields 14 and 15).
///
/// # Errors
/// When one has ended.
pub(crate) fn cpu_seconds(pids: &[u32]) -> Result<f64> {
    let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
    let mut ticks = 0;
    for pid in pids {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
        // The name in parentheses may hold spaces: count from behind it.
        let (_, fields) = stat.rsplit_once(") ").context("no process name in stat")?;
        for field in fields.split(' ').skip(11).take(2) {
            ticks += field.parse::<u64>().with_context(|| path.clone())?;
        }
    }
    Ok(ticks as f64 / ticks_per_second)
}
