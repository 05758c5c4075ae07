//! A real `wormholed` process in a throw-away folder, killed by its id when it is dropped.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use wormholes_proto::NodeId;

use crate::{
    binaries, hosts,
    log::LogLines,
    rpc,
    setup::Setup,
    size,
    wait::{until, until_within},
};

/// It compiles its plugins first: one in JavaScript takes two slow cores most of a minute.
const READY_LIMIT: Duration = Duration::from_secs(300);

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    setup: Setup,
    child: Child,
    log: LogLines,
    ports: Ports,
}

/// What the daemon listens on.
#[derive(Debug, Default, serde::Deserialize)]
struct Ports {
    #[serde(default)]
    listen: Vec<SocketAddr>,
    #[serde(default)]
    entrances: Vec<Entrance>,
    #[serde(default)]
    metrics: Option<SocketAddr>,
    #[serde(default)]
    http: Option<SocketAddr>,
}

#[derive(Debug, serde::Deserialize)]
struct Entrance {
    kind: String,
    label: Option<String>,
    listen: SocketAddr,
}

impl Daemon {
    pub(crate) async fn start(setup: Setup) -> Result<Self> {
        let (child, log) = spawn(&setup)?;
        let mut daemon = Self {
            setup,
            child,
            log,
            ports: Ports::default(),
        };
        daemon.wait_ready().await?;
        Ok(daemon)
    }

    /// Its name in the config.
    pub fn name(&self) -> &str {
        &self.setup.name
    }

    /// Its node id.
    pub fn id(&self) -> NodeId {
        self.setup.id
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its folder: config.toml, scripts, and `data`.
    pub fn folder(&self) -> &Path {
        self.setup.folder()
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.folder().join("data/control.sock")
    }

    /// Where peers reach it.
    pub fn listen(&self) -> Option<SocketAddr> {
        self.ports.listen.first().copied()
    }

    /// Where its metrics are.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.ports.metrics
    }

    /// Where its plugins answer by HTTP.
    pub fn http(&self) -> Option<SocketAddr> {
        self.ports.http
    }

    /// The first entrance of this kind or label.
    ///
    /// # Errors
    /// When the config has none.
    pub fn entrance(&self, kind_or_label: &str) -> Result<SocketAddr> {
        let named = |entrance: &&Entrance| {
            entrance.kind == kind_or_label || entrance.label.as_deref() == Some(kind_or_label)
        };
        let found = self.ports.entrances.iter().find(named);
        Ok(found
            .with_context(|| format!("{} has no entrance {kind_or_label}", self.name()))?
            .listen)
    }

    /// What it said.
    pub fn log(&self) -> &LogLines {
        &self.log
    }

    /// Its resident memory.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident_bytes(&self) -> Result<u64> {
        size::resident_bytes(self.pid())
    }

    /// Calls its control socket.
    ///
    /// # Errors
    /// [`crate::RpcError`] when it refuses.
    pub async fn call(&self, method: &str, params: Value) -> Result<Value> {
        rpc::call(&self.socket(), method, params).await
    }

    /// Waits until it is registered with all its relays.
    ///
    /// # Errors
    /// When it has none, or one does not take it; the error says what the node said last.
    pub async fn until_registered(&self) -> Result<()> {
        let registered = async || {
            let status = self.call("status", json!({})).await.ok()?;
            let relays = status.get("relays")?.as_array()?;
            let is_registered = |relay: &Value| relay.get("registered") == Some(&json!(true));
            (!relays.is_empty() && relays.iter().all(is_registered)).then_some(())
        };
        let waited = until("a node to be registered with its relays", registered).await;
        waited.with_context(|| format!("{} says:\n{}", self.name(), self.log().last(60)))
    }

    /// Its events from here on.
    ///
    /// # Errors
    /// When it does not take the subscription.
    pub async fn events(&self) -> Result<rpc::Events> {
        rpc::Events::subscribe(&self.socket()).await
    }

    /// Runs the command line client against it and returns its standard output.
    ///
    /// # Errors
    /// When the client ends with another status than 0.
    pub fn cli(&self, words: &[&str]) -> Result<String> {
        binaries::run(&mut self.cli_command(words)?)
    }

    /// The command line client, ready to run against it.
    ///
    /// # Errors
    /// When it is not built.
    pub fn cli_command(&self, words: &[&str]) -> Result<Command> {
        let mut command = Command::new(binaries::binary("wormholes")?);
        command
            .args(words)
            .current_dir(self.folder())
            .env("WORMHOLES_SOCKET", self.socket())
            .env("NO_COLOR", "1");
        Ok(command)
    }

    /// Ends it as kill -9 does.
    ///
    /// # Errors
    /// When it cannot be awaited.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("cannot kill a daemon")?;
        self.child.wait().context("cannot await a daemon")?;
        Ok(())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = i32::try_from(self.pid())?;
        let pid = rustix::process::Pid::from_raw(pid).context("no process id")?;
        rustix::process::kill_process(pid, signal).context("cannot signal a daemon")
    }

    /// Asks it to stop and waits until it has.
    ///
    /// # Errors
    /// When it does not within the limit of waits.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(rustix::process::Signal::TERM)?;
        let child = &mut self.child;
        until("a daemon to stop", async || child.try_wait().ok().flatten()).await
    }

    /// Starts it again after [`Self::kill`] or [`Self::stop`], on the same peer address.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn restart(&mut self) -> Result<()> {
        if let Some(address) = self.listen() {
            self.setup.relisten(address);
            self.setup.write_config()?;
        }
        (self.child, self.log) = spawn(&self.setup)?;
        self.wait_ready().await
    }

    /// Its control socket opens last: who gets an answer may use all the rest.
    async fn wait_ready(&mut self) -> Result<()> {
        let socket = self.socket();
        let (n_entrances, has_metrics) = self.setup.listeners();
        let child = &mut self.child;
        let ready = until_within(READY_LIMIT, "a daemon to be ready", async || {
            match child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => return Some(Err(status.to_string())),
                Err(error) => return Some(Err(error.to_string())),
            }
            match rpc::call(&socket, "status", json!({})).await {
                Ok(status) => {
                    let ports: Ports = match serde_json::from_value(status) {
                        Ok(ports) => ports,
                        Err(error) => return Some(Err(error.to_string())),
                    };
                    let all_open = ports.entrances.len() == n_entrances
                        && ports.metrics.is_some() == has_metrics;
                    let too_early = || format!("it answers before all is open: {ports:?}");
                    Some(if all_open {
                        Ok(ports)
                    } else {
                        Err(too_early())
                    })
                }
                Err(error) if error.is::<rpc::RpcError>() => Some(Err(error.to_string())),
                // It does not listen so far.
                Err(_) => None,
            }
        })
        .await;
        match ready.map_err(|error| error.to_string()).flatten() {
            Ok(ports) => self.ports = ports,
            Err(why) => {
                let log = self.log.last(40);
                bail!("{} did not start: {why}\n{log}", self.name());
            }
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ended_before = self.kill();
        if std::thread::panicking() {
            let tail = self.log.last(60);
            #[allow(clippy::print_stderr, reason = "the log of a failed test")]
            {
                eprintln!("---- log of {} ----\n{tail}", self.setup.name);
            }
        }
    }
}

/// The words that run a program which tells another time, where one is wanted. Not Debian's `faketime`,
/// which would stand between: the process that is started is the one that is killed.
fn clock(setup: &Setup) -> Result<Vec<OsString>> {
    let Some(offset) = &setup.clock else {
        return Ok(Vec::new());
    };
    let library = |folder: std::io::Result<std::fs::DirEntry>| {
        let library = folder.ok()?.path().join("faketime/libfaketimeMT.so.1");
        library.exists().then_some(library)
    };
    let library = std::fs::read_dir("/usr/lib")?.find_map(library);
    let library = library.context("this machine has no libfaketime")?;
    Ok(vec![
        "env".into(),
        format!("LD_PRELOAD={}", library.display()).into(),
        format!("FAKETIME={offset}").into(),
        // How long something takes is not what is told differently.
        "FAKETIME_DONT_FAKE_MONOTONIC=1".into(),
    ])
}

/// Starts the process; it dies with the thread that started it, should that be killed.
fn spawn(setup: &Setup) -> Result<(Child, LogLines)> {
    let mut words: Vec<OsString> = ["setpriv", "--pdeathsig", "KILL"].map(Into::into).to_vec();
    if let Some(namespace) = &setup.namespace {
        words.extend(["ip", "netns", "exec", namespace].map(Into::into));
    }
    words.extend(hosts::with_names(
        setup.folder(),
        &setup.names,
        setup.name_server,
    )?);
    words.extend(clock(setup)?);
    words.push(binaries::binary("wormholed")?.into());
    let (program, arguments) = words.split_first().context("no program")?;
    let mut child = Command::new(program)
        .args(arguments)
        .arg("--config")
        .arg(setup.folder().join("config.toml"))
        .current_dir(setup.folder())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start wormholed")?;
    let stderr = child.stderr.take().context("no standard error")?;
    Ok((child, LogLines::collect(stderr)))
}
