//! A running `tor`, in a folder of its own.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{UnixStream, unix::OwnedReadHalf, unix::OwnedWriteHalf},
};

use crate::{log::LogLines, namespace::Namespace, wait::until};

/// A tor; killed by its id when it is dropped.
#[derive(Debug)]
pub(super) struct TorProcess {
    name: String,
    ip: Option<IpAddr>,
    child: Child,
    log: LogLines,
    folder: TempDir,
}

/// A folder that only its owner enters, as tor wants it.
pub(super) fn folder() -> Result<TempDir> {
    // For a socket of control tor wants a folder that nobody else reads.
    let private = Permissions::from_mode(0o700);
    let mut folder = tempfile::Builder::new();
    let folder = folder.prefix("wormholes-tor-").permissions(private);
    folder.tempdir().context("cannot make a folder for a tor")
}

/// Where in it tor keeps what it knows.
pub(super) fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

/// Where it is asked and told things.
pub(super) fn control(folder: &Path) -> PathBuf {
    folder.join("control")
}

impl TorProcess {
    /// Starts one; it dies with the thread that started it, should that be killed.
    pub(super) fn start(
        host: &Namespace,
        name: &str,
        ip: Option<IpAddr>,
        folder: TempDir,
        torrc: &str,
    ) -> Result<Self> {
        let file = folder.path().join("torrc");
        fs::write(&file, format!("{torrc}Nickname {name}\n"))?;
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "ip", "netns", "exec", host.name()])
            .args(["tor", "--defaults-torrc", "/dev/null", "-f"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start tor")?;
        let said = child.stdout.take().context("no standard output")?;
        Ok(Self {
            name: name.to_owned(),
            ip,
            child,
            log: LogLines::collect(said),
            folder,
        })
    }

    /// Where it is a relay.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        self.ip
    }

    pub(super) fn is_exit(&self) -> bool {
        self.name.starts_with("exit")
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn log(&self) -> &LogLines {
        &self.log
    }

    /// Waits until it can build circuits.
    pub(super) async fn until_ready(&self, limit: Duration) -> Result<()> {
        let ready = self.log.wait_within(limit, "Bootstrapped 100%").await;
        ready.map(drop).with_context(|| self.last_words())
    }

    /// How many relays its consensus has, if it has one.
    pub(super) fn relays_known(&self) -> Option<usize> {
        let consensus = data(self.folder()).join("cached-microdesc-consensus");
        let text = fs::read_to_string(consensus).ok()?;
        Some(text.lines().filter(|line| line.starts_with("r ")).count())
    }

    /// How many relays have said who they are, as it keeps it on disk.
    pub(super) fn descriptors(&self) -> usize {
        let data = data(self.folder());
        let kept = ["cached-descriptors", "cached-descriptors.new"];
        let texts = kept.map(|file| fs::read_to_string(data.join(file)).unwrap_or_default());
        let lines = texts.iter().flat_map(|text| text.lines());
        let names = lines.filter_map(|line| line.strip_prefix("router ")?.split(' ').next());
        names.collect::<BTreeSet<_>>().len()
    }

    /// Who it is as a relay, once it runs.
    pub(super) async fn fingerprint(&self) -> Result<String> {
        let file = data(self.folder()).join("fingerprint");
        until("a relay to say who it is", async || {
            let text = fs::read_to_string(&file).ok()?;
            Some(text.split_whitespace().nth(1)?.to_owned())
        })
        .await
    }

    /// A connection to its control socket.
    pub(super) async fn control(&self) -> Result<Control> {
        let socket = control(self.folder());
        let stream = until("a tor's control socket", async || {
            UnixStream::connect(&socket).await.ok()
        });
        let (reader, writer) = stream.await?.into_split();
        let mut control = Control {
            lines: BufReader::new(reader).lines(),
            writer,
        };
        control.ask("AUTHENTICATE").await?;
        Ok(control)
    }

    /// Ends it as kill -9 does.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.child.kill().context("cannot kill a tor")?;
        self.child.wait().context("cannot await a tor")?;
        Ok(())
    }

    /// The end of its log, for who does not get what it waits for.
    pub(super) fn last_words(&self) -> String {
        format!("---- log of {} ----\n{}\n", self.name, self.log.last(30))
    }
}

impl Drop for TorProcess {
    fn drop(&mut self) {
        let _ended_before = self.kill();
    }
}

/// Asks a tor, and hears what it tells (control-spec).
#[derive(Debug)]
pub(super) struct Control {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Control {
    /// Says a line, and gives the last one of its answer; what is told meanwhile is gone.
    pub(super) async fn ask(&mut self, words: &str) -> Result<String> {
        self.writer
            .write_all(format!("{words}\r\n").as_bytes())
            .await?;
        loop {
            let line = self.next().await?;
            if line.starts_with("250 ") {
                return Ok(line);
            }
            anyhow::ensure!(!line.starts_with('5'), "{words}: {line}");
        }
    }

    /// The next line that it says.
    pub(super) async fn next(&mut self) -> Result<String> {
        let line = self.lines.next_line().await?;
        line.context("a tor closed its control socket")
    }
}
