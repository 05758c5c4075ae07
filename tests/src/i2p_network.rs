//! A private I2P network: seven i2pd routers in a network namespace with loopback and nothing else.
//!
//! ```text
//! 45.10.7.1 … 45.14.7.1   floodfills
//! 45.15.7.1, 45.16.7.1    take clients, by SAM at port 7656
//! ```
//! They know each other from the start: each is started once to make its keys, and is given the
//! others' records. Addresses are public ones, since routers refuse all others. A session that stands
//! 20 s after it was asked for, or 40 s, is the earliest: i2pd looks no more often.
//!
//! An i2pd (2.45) whose address book is empty, or whose `subscriptions` or `defaulturl` are, ends by
//! `std::out_of_range` three minutes after its start.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use data_encoding::BASE64;
use ring::digest::{SHA256, digest};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    namespace::Namespace,
    sam_peer,
    wait::{LIMIT, until},
};

/// A name that all address books have; [`I2pNetwork::named_keys`] are its keys.
pub const I2P_NAME: &str = "kept.i2p";

const ROUTERS: u8 = 7;
const FLOODFILLS: u8 = 5;
const SAM_PORT: u16 = 7656;
const CONSOLE_PORT: u16 = 7070;
/// Of an identity: two keys, and the head of the certificate, which ends with its length.
const IDENTITY_BYTES: usize = 387;

/// The routers; they end with this.
#[derive(Debug)]
pub struct I2pNetwork {
    host: Arc<Namespace>,
    routers: Vec<Router>,
    named_keys: String,
    _folder: TempDir,
}

/// The tunnels of one destination, as its router shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct I2pTunnels {
    /// How many lead in.
    pub inbound: usize,
    /// How many lead out.
    pub outbound: usize,
    /// Hops of all of them together.
    pub hops: usize,
}

#[derive(Debug)]
struct Router {
    ip: String,
    folder: PathBuf,
    host: Arc<Namespace>,
    process: Option<Child>,
}

impl I2pNetwork {
    /// Starts it.
    ///
    /// # Errors
    /// When this is not root, or there is no i2pd.
    pub async fn start() -> Result<Self> {
        let host = Arc::new(Namespace::new()?);
        let folder = TempDir::with_prefix("wormholes-i2p-")?;
        let routers = (0..ROUTERS).map(|number| Router::new(&host, folder.path(), number));
        let mut routers = routers.collect::<Result<Vec<_>>>()?;
        for router in &mut routers {
            router.start()?;
        }
        for router in &routers {
            router.until_made().await?;
        }
        let clients = routers.last().context("no routers")?.sam()?;
        let generate = async || sam_peer::generate(&host, clients).await.ok();
        let generated = until("an I2P router to make a destination", generate);
        let (name, named_keys) = generated.await?;
        for router in &mut routers {
            router.stop().await?;
        }
        for router in &routers {
            for other in &routers {
                router.learn_of(other)?;
            }
            fs::write(
                router.folder.join("hosts.txt"),
                format!("{I2P_NAME}={name}\n"),
            )?;
        }
        for router in &mut routers {
            router.start()?;
        }
        let network = Self {
            host,
            routers,
            named_keys,
            _folder: folder,
        };
        for which in 0..2 {
            let sam = network.sam(which);
            until("an I2P router to take clients", async || {
                network.host.connect(sam).ok().map(drop)
            })
            .await?;
        }
        Ok(network)
    }

    /// The host that it is on.
    pub fn host(&self) -> &Arc<Namespace> {
        &self.host
    }

    /// Where one of the two routers takes clients.
    ///
    /// # Panics
    /// When there is no such router.
    #[allow(clippy::expect_used, reason = "a test names routers that there are")]
    pub fn sam(&self, which: usize) -> SocketAddr {
        let router = self.router(which).and_then(Router::sam);
        router.expect("one of two routers")
    }

    /// The keys of [`I2P_NAME`], as SAM writes them.
    pub fn named_keys(&self) -> &str {
        &self.named_keys
    }

    /// Ends one of the two routers as kill -9 does.
    ///
    /// # Errors
    /// When it cannot be awaited.
    pub fn kill(&mut self, which: usize) -> Result<()> {
        self.router_mut(which)?.kill()
    }

    /// Ends a floodfill as kill -9 does: tunnels of others lead over it, and it knows where they are.
    ///
    /// # Errors
    /// When there is none of that number, or it cannot be awaited.
    pub fn kill_floodfill(&mut self, number: u8) -> Result<()> {
        let floodfills = self.routers.get_mut(..usize::from(FLOODFILLS));
        let router = floodfills.and_then(|all| all.get_mut(usize::from(number)));
        router
            .with_context(|| format!("no floodfill {number}"))?
            .kill()
    }

    /// Starts it again.
    ///
    /// # Errors
    /// When it does not take clients.
    pub async fn restart(&mut self, which: usize) -> Result<()> {
        self.router_mut(which)?.start()?;
        let sam = self.sam(which);
        let taken = async || self.host.connect(sam).ok().map(drop);
        until("an I2P router to take clients again", taken).await
    }

    /// The tunnels of the destination with this name (`….b32.i2p`) at one of the two routers; none
    /// when it has no such destination.
    ///
    /// # Errors
    /// When its console does not answer.
    pub async fn tunnels(&self, which: usize, destination: &str) -> Result<Option<I2pTunnels>> {
        let hash = destination.trim_end_matches(".b32.i2p");
        let console = format!("{}:{CONSOLE_PORT}", self.router(which)?.ip);
        let mut stream = self.host.connect(console.parse()?)?;
        let request = format!("GET /?page=local_destination&b32={hash} HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut page = Vec::new();
        // It resets what it has answered.
        let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut page)).await;
        let _reset = read.context("the console does not end its answer")?;
        Ok(tunnels_in(&String::from_utf8_lossy(&page)))
    }

    fn router(&self, which: usize) -> Result<&Router> {
        let router = self.routers.get(usize::from(FLOODFILLS) + which);
        router.with_context(|| format!("no router takes clients as number {which}"))
    }

    fn router_mut(&mut self, which: usize) -> Result<&mut Router> {
        let router = self.routers.get_mut(usize::from(FLOODFILLS) + which);
        router.with_context(|| format!("no router takes clients as number {which}"))
    }
}

impl Router {
    fn new(host: &Arc<Namespace>, folder: &Path, number: u8) -> Result<Self> {
        let ip = format!("45.{}.7.1", 10 + number);
        host.ip(&["address", "add", &format!("{ip}/32"), "dev", "lo"])?;
        let folder = folder.join(format!("r{number}"));
        fs::create_dir(&folder)?;
        let config = config(
            &ip,
            12_000 + u16::from(number),
            number < FLOODFILLS,
            &folder,
        );
        fs::write(folder.join("i2pd.conf"), config)?;
        fs::write(folder.join("tunnels.conf"), "")?;
        Ok(Self {
            ip,
            folder,
            host: Arc::clone(host),
            process: None,
        })
    }

    fn sam(&self) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.ip.parse()?, SAM_PORT))
    }

    /// It dies with the thread that started it, should that be killed.
    fn start(&mut self) -> Result<()> {
        let file = |name: &str| self.folder.join(name);
        let mut options = fs::OpenOptions::new();
        options.create(true).append(true);
        let output = options.open(file("output"))?;
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "ip", "netns", "exec"])
            .args([self.host.name(), "i2pd", "--datadir"])
            .arg(&self.folder)
            .arg("--conf")
            .arg(file("i2pd.conf"))
            .arg("--tunconf")
            .arg(file("tunnels.conf"))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn();
        self.process = Some(process.context("cannot start i2pd")?);
        Ok(())
    }

    /// Waits until it has made its keys and its record.
    async fn until_made(&self) -> Result<()> {
        let made = async || {
            let length = fs::metadata(self.folder.join("router.info")).ok()?.len();
            (length > IDENTITY_BYTES as u64).then_some(())
        };
        let waited = until("an I2P router to make its keys", made).await;
        let said = || fs::read_to_string(self.folder.join("output")).unwrap_or_default();
        waited.with_context(|| format!("i2pd says: {}", said()))
    }

    async fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        let pid = Pid::from_raw(i32::try_from(process.id())?).context("no process id")?;
        kill_process(pid, Signal::TERM)?;
        let ended = async || process.try_wait().ok().flatten();
        until("an I2P router to end", ended).await.map(drop)
    }

    fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    fn learn_of(&self, other: &Self) -> Result<()> {
        if self.ip == other.ip {
            return Ok(());
        }
        let record = fs::read(other.folder.join("router.info"))?;
        let hash = identity_hash(&record)?;
        let first = hash.chars().next().context("no hash")?;
        let folder = self.folder.join(format!("netDb/r{first}"));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("routerInfo-{hash}.dat")), record)?;
        Ok(())
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ended_before = self.kill();
    }
}

/// The hash that a router is known by, as I2P writes it.
fn identity_hash(record: &[u8]) -> Result<String> {
    let head = record.get(..IDENTITY_BYTES).context("a short record")?;
    let &[.., high, low] = head else {
        bail!("a short record");
    };
    let length = IDENTITY_BYTES + usize::from(u16::from_be_bytes([high, low]));
    let identity = record.get(..length).context("a short identity")?;
    let hash = BASE64.encode(digest(&SHA256, identity).as_ref());
    Ok(hash.replace('+', "-").replace('/', "~"))
}

/// What a page of i2pd's console says of a destination's tunnels: `⇒ abcd ⇒ 7:me` leads in over one
/// hop, `7:me ⇒ abcd ⇒` leads out.
fn tunnels_in(page: &str) -> Option<I2pTunnels> {
    let (_, tunnels) = page.split_once("Inbound tunnels")?;
    let (inbound, rest) = tunnels.split_once("Outbound tunnels")?;
    let (outbound, _) = rest.split_once("Tags")?;
    let own = |text: &str| text.matches(":me").count();
    let arrows = |text: &str| text.matches("&#8658;").count();
    let count = own(inbound) + own(outbound);
    Some(I2pTunnels {
        inbound: own(inbound),
        outbound: own(outbound),
        hops: (arrows(inbound) + arrows(outbound)).saturating_sub(count),
    })
}

fn config(ip: &str, port: u16, is_floodfill: bool, folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "netid = 77\nhost = {ip}\naddress4 = {ip}\nport = {port}\nipv4 = true\nipv6 = false\n\
         nat = false\nreservedrange = false\nfloodfill = {is_floodfill}\nbandwidth = X\nshare = 100\n\
         notransit = false\ndaemon = false\nlog = file\nlogfile = {folder}/i2pd.log\n\
         loglevel = warn\ndatadir = {folder}\n\
         [ntcp2]\nenabled = true\npublished = true\nport = {port}\n\
         [ssu2]\nenabled = false\n\
         [reseed]\nurls =\nyggurls =\nthreshold = 0\nverify = false\n\
         [addressbook]\nsubscriptions = http://none.i2p/hosts.txt\n\
         defaulturl = http://none.i2p/hosts.txt\n\
         [http]\nenabled = true\naddress = {ip}\nport = {CONSOLE_PORT}\nstrictheaders = false\n\
         [httpproxy]\nenabled = false\n[socksproxy]\nenabled = false\n\
         [sam]\nenabled = true\naddress = {ip}\nport = {SAM_PORT}\n\
         [i2cp]\nenabled = false\n[bob]\nenabled = false\n[upnp]\nenabled = false\n\
         [nettime]\nenabled = false\n[limits]\ntransittunnels = 2500\n\
         [exploratory]\ninbound.length = 1\noutbound.length = 1\ninbound.quantity = 2\n\
         outbound.quantity = 2\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_are_counted_on_the_consoles_page() {
        let page = "<b>Inbound tunnels:</b> &#8658; aaaa &#8658; bbbb &#8658; 1:me \
                    &#8658; cccc &#8658; dddd &#8658; 2:me <b>Outbound tunnels:</b> \
                    3:me &#8658; aaaa &#8658; bbbb &#8658; <b>Tags</b> 9:me";
        let expected = I2pTunnels {
            inbound: 2,
            outbound: 1,
            hops: 6,
        };
        assert_eq!(tunnels_in(page), Some(expected));
        assert_eq!(tunnels_in("no such destination"), None);
    }
}
