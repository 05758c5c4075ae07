//! C tor beside the relays: a client with a SOCKS port, an onion service, a bridge.

use std::{
    fs::{self, DirBuilder},
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    BRIDGE, TorNetwork,
    authority::Authority,
    onion_key::OnionKey,
    process::{self, TorProcess},
    torrc,
};
use crate::wait::until_within;

/// A client is ready two seconds after it starts; a busy machine takes longer.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// As C tor says that a directory took an onion service's descriptor; three directories take it.
const UPLOADED: &str = "finished with status 200";
const N_DIRECTORIES: usize = 3;

/// A tor that is a client.
#[derive(Debug)]
pub struct TorClient {
    process: TorProcess,
    socks: SocketAddr,
    /// Relays by which a path can be asked for.
    path: String,
}

/// A tor that hosts an onion service; the service ends with it.
#[derive(Debug)]
pub struct TorOnion {
    process: TorProcess,
    /// `<56 characters>.onion`; it listens at port 80.
    pub address: String,
}

/// A tor that is a bridge.
#[derive(Debug)]
pub struct TorBridge {
    process: TorProcess,
    /// Its bridge line for who hides in obfs4, without the word `Bridge`.
    pub obfs4: String,
    /// The same for who does not hide.
    pub plain: String,
}

impl TorNetwork {
    /// Starts a client; `more` are lines of its torrc.
    ///
    /// # Errors
    /// When it finds no consensus.
    pub async fn client(&self, more: &str) -> Result<TorClient> {
        let socks = self.socks();
        let more = format!("SocksPort {socks}\n{more}");
        let process = self.start_tor("client", None, process::folder()?, &more)?;
        process.until_ready(READY_WITHIN).await?;
        let relays = [0, 1, Authority::COUNT].into_iter();
        let relays = relays.filter_map(|number| self.relays.get(number));
        let mut path = Vec::new();
        for relay in relays {
            path.push(format!("${}", relay.fingerprint().await?));
        }
        Ok(TorClient {
            process,
            socks,
            path: path.join(","),
        })
    }

    /// Starts an onion service in front of `target`; with keys, nobody else finds it.
    ///
    /// # Errors
    /// When it does not get to where clients look for it.
    pub async fn onion_service(
        &self,
        target: SocketAddr,
        clients: &[OnionKey],
    ) -> Result<TorOnion> {
        let folder = process::folder()?;
        let keys = folder.path().join("onion");
        let authorized = keys.join("authorized_clients");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&authorized)?;
        for (number, key) in clients.iter().enumerate() {
            let file = authorized.join(format!("{number}.auth"));
            fs::write(file, format!("{}\n", key.public()))?;
        }
        let more = format!("SocksPort 0\n{}", torrc::onion_service(&keys, target));
        let process = self.start_tor("onion", None, folder, &more)?;
        let uploaded = until_within(
            READY_WITHIN,
            "an onion service to be published",
            async || (process.log().matching(UPLOADED).len() >= N_DIRECTORIES).then_some(()),
        );
        uploaded.await.with_context(|| process.last_words())?;
        let address = fs::read_to_string(keys.join("hostname"))?;
        Ok(TorOnion {
            process,
            address: address.trim().to_owned(),
        })
    }

    /// Starts the bridge.
    ///
    /// # Errors
    /// When obfs4proxy is missing.
    pub async fn bridge(&self) -> Result<TorBridge> {
        let more = [torrc::relay(BRIDGE), torrc::bridge(BRIDGE)].concat();
        let process = self.start_tor("bridge", Some(BRIDGE), process::folder()?, &more)?;
        let fingerprint = process.fingerprint().await?;
        let file = process::data(process.folder()).join("pt_state/obfs4_bridgeline.txt");
        let certificate = until_within(READY_WITHIN, "a bridge to hide itself", async || {
            let text = fs::read_to_string(&file).ok()?;
            let (_, certificate) = text.split_once(" cert=")?;
            certificate
                .split_once('\n')
                .map(|(line, _)| line.to_owned())
        });
        let certificate = certificate.await.with_context(|| process.last_words())?;
        let knows = until_within(READY_WITHIN, "a bridge to know the network", async || {
            process.relays_known()
        });
        knows.await.with_context(|| process.last_words())?;
        let (obfs4_port, or_port) = (torrc::OBFS4_PORT, torrc::OR_PORT);
        Ok(TorBridge {
            process,
            obfs4: format!("obfs4 {BRIDGE}:{obfs4_port} {fingerprint} cert={certificate}"),
            plain: format!("{BRIDGE}:{or_port} {fingerprint}"),
        })
    }
}

impl TorClient {
    /// As curl is told of it.
    pub fn proxy(&self) -> String {
        format!("socks5h://{}", self.socks)
    }

    /// Its SOCKS port, on the network's host.
    pub fn socks(&self) -> SocketAddr {
        self.socks
    }

    /// Builds a circuit of three hops, the last of them an exit; how long that took.
    ///
    /// # Errors
    /// When it cannot be built.
    pub async fn build_circuit(&self) -> Result<Duration> {
        let mut control = self.process.control().await?;
        control.ask("SETEVENTS CIRC").await?;
        let started = Instant::now();
        let said = control
            .ask(&format!("EXTENDCIRCUIT 0 {}", self.path))
            .await?;
        // 250 EXTENDED NUMBER
        let number = said.split_whitespace().nth(2).context("no circuit")?;
        let built = format!("650 CIRC {number} BUILT ");
        let ended = ["FAILED", "CLOSED"].map(|how| format!("650 CIRC {number} {how} "));
        loop {
            let line = control.next().await?;
            if line.starts_with(&built) {
                return Ok(started.elapsed());
            }
            let has_ended = ended.iter().any(|how| line.starts_with(how));
            anyhow::ensure!(!has_ended, "{line}");
        }
    }
}

impl TorOnion {
    /// Ends it as kill -9 does.
    ///
    /// # Errors
    /// When it cannot be awaited.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }
}

impl TorBridge {
    /// Ends it as kill -9 does.
    ///
    /// # Errors
    /// When it cannot be awaited.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }
}
