//! An OpenSSH server for one test: its own keys, any port, one `sshd -i` a connection.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::binaries::run;

/// A running server; connections that stand when it is dropped end with their clients.
#[derive(Debug)]
pub struct SshServer {
    folder: TempDir,
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl SshServer {
    /// Makes keys and listens at `ip`, any port.
    ///
    /// # Errors
    /// When OpenSSH is missing.
    pub fn start(ip: Ipv4Addr) -> Result<Self> {
        let folder = TempDir::with_prefix("wormholes-sshd-")?;
        for name in ["host", "user"] {
            run(Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(folder.path().join(name)))?;
        }
        // Root's sshd wants the folder that its service would have made.
        if rustix::process::geteuid().is_root() {
            fs::create_dir_all("/run/sshd").context("cannot make /run/sshd")?;
        }
        let path = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n",
            path("host"),
            path("user.pub"),
        );
        fs::write(folder.path().join("sshd_config"), config)?;
        let listener = TcpListener::bind((ip, 0))?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (config, stopped) = (folder.path().join("sshd_config"), stop.clone());
        thread::spawn(move || serve(&listener, &config, &stopped));
        Ok(Self {
            folder,
            address,
            stop,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The private key that it lets in.
    pub fn user_key(&self) -> PathBuf {
        self.folder.path().join("user")
    }
}

impl Drop for SshServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // One more connection wakes the thread that accepts.
        let _gone_already = std::net::TcpStream::connect(self.address);
    }
}

fn serve(listener: &TcpListener, config: &PathBuf, stop: &AtomicBool) {
    let mut children = Vec::new();
    for stream in listener.incoming().map_while(Result::ok) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let socket = OwnedFd::from(stream);
        let Ok(other) = socket.try_clone() else { break };
        let child = Command::new("/usr/sbin/sshd")
            .args(["-i", "-e", "-f"])
            .arg(config)
            .stdin(Stdio::from(socket))
            .stdout(Stdio::from(other))
            .stderr(Stdio::null())
            .spawn();
        children.extend(child);
    }
    for mut child in children {
        let _ended_already = child.kill();
        let _status = child.wait();
    }
}
