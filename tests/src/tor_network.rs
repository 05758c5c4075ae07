//! A private Tor network of Debian's `tor`, on a host with nothing but loopback: three authorities and
//! two exits, with a site behind them and a name server that exits alone ask.
//!
//! ```text
//! 9.70.0.1  9.71.0.1  9.72.0.1   authorities: the guards, and where onion services are looked up
//! 9.73.0.1  9.74.0.1             exits: no guards, since they keep no directory
//! 9.75.0.1                       a bridge, when one is asked for
//! 9.90.0.1                       web.example and echo.example, and the name server
//! 9.40.N.2                       where a neighbour's wire ends
//! ```
//! Authorities have the keys of `tests/tor-keys`. A network is there when all five know that the three
//! agree on them, some eight seconds after its start; what they agree on then lasts for three hours.

mod authority;
mod client;
mod exit_cells;
mod onion_key;
mod process;
mod published;
mod torrc;

pub use client::{TorBridge, TorClient, TorOnion};
pub use exit_cells::{CircuitAtExit, ExitCells};
pub use onion_key::OnionKey;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{
    Setup,
    name_server::{Answers, NameServer},
    namespace::{Link, Namespace},
    site::{EchoServer, Site},
    wait::until_within,
};

use authority::Authority;
use process::TorProcess;

/// A name that the exits alone can resolve, of [`TorNetwork::web`].
pub const TOR_WEB: &str = "web.example";
/// The same of [`TorNetwork::echo`], at port 7.
pub const TOR_ECHO: &str = "echo.example";

/// Of the site, the echo and the name server.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(9, 90, 0, 1);
/// Of the bridge.
const BRIDGE: Ipv4Addr = relay_ip(5);
const N_EXITS: usize = 2;

/// A relay has said who it is some seconds after its start; a vote and what follows it take ten.
const AGREED_WITHIN: Duration = Duration::from_secs(90);

/// As of other nodes, and why an onion service is not to be found.
pub const TOR_LOG: &str = "[log]\nmask = false\nlevel = \"info,wormholed=debug,wormholes=debug,arti=warn,\
    tor_=warn,tor_netdir=error,tor_hsservice=debug\"\n";

/// Where relay `number` is.
const fn relay_ip(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(9, 70 + number, 0, 1)
}

/// The running network; all of it ends with this.
#[derive(Debug)]
pub struct TorNetwork {
    relays: Vec<TorProcess>,
    authorities: Vec<Authority>,
    /// At [`TOR_WEB`], port 80.
    pub web: Site,
    /// At [`TOR_ECHO`], port 7.
    pub echo: EchoServer,
    /// Whom the exits ask for names.
    pub names: NameServer,
    /// What exits ask for names.
    resolver: TempDir,
    next_port: AtomicU16,
    host: Arc<Namespace>,
}

impl TorNetwork {
    /// Starts it; it can be used.
    ///
    /// # Errors
    /// When this is not root, `tor` is missing, or the authorities do not agree.
    pub async fn start() -> Result<Self> {
        let mut network = Self::prepare()?;
        let n_authorities = network.authorities.len();
        network.launch(n_authorities)?;
        network.known_to_authorities().await?;
        for authority in network.relays.iter().take(n_authorities) {
            authority.control().await?.ask(torrc::VOTE).await?;
        }
        network.agreed().await?;
        Ok(network)
    }

    /// The same with one authority, which alone agrees with nobody: everything runs, and clients find
    /// no consensus.
    ///
    /// # Errors
    /// As of [`Self::start`].
    pub fn without_consensus() -> Result<Self> {
        let mut network = Self::prepare()?;
        network.launch(1)?;
        Ok(network)
    }

    /// The host that all of it is on.
    pub fn host(&self) -> &Arc<Namespace> {
        &self.host
    }

    /// Sections of config.toml for a node that uses this network; `more` are keys of `[tor]`.
    pub fn config(&self, more: &str) -> String {
        let [authorities, fallbacks] = self.contacts();
        format!(
            "[tor]\nenabled = true\n{more}\n\
             [tor.network]\nauthorities = {authorities:?}\nfallbacks = {fallbacks:?}\n"
        )
    }

    /// Whom its clients know: authorities, as torrc has them, and fallbacks, as config.toml has them.
    pub fn known(&self) -> Vec<String> {
        self.contacts().concat()
    }

    fn contacts(&self) -> [Vec<String>; 2] {
        [Authority::contact, Authority::fallback]
            .map(|contact| self.authorities.iter().map(contact).collect())
    }

    /// A node on this host that uses this network, with entrances; `more` are keys of `[tor]`.
    ///
    /// # Errors
    /// When its folder cannot be made.
    pub fn node(&self, name: &str, more: &str) -> Result<Setup> {
        let setup = Setup::new(name)?.in_namespace(&self.host);
        Ok(setup.entrances().config(TOR_LOG).config(&self.config(more)))
    }

    /// Another host, with a wire to the relays and a way to nothing else; the site is behind exits
    /// alone, and no other such host is within reach.
    ///
    /// # Errors
    /// When the number is taken.
    pub fn neighbour(&self, number: u8) -> Result<Namespace> {
        let neighbour = Namespace::new()?;
        let wire = Link {
            first: Ipv4Addr::new(9, 40, number, 1),
            second: Ipv4Addr::new(9, 40, number, 2),
        };
        // 9.64.0.0 to 9.79.255.255.
        neighbour.reach(&self.host, wire, "9.64.0.0/12")?;
        Ok(neighbour)
    }

    /// Ends the relay at this address as kill -9 does.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill(&mut self, at: IpAddr) -> Result<()> {
        let relay = self.relays.iter_mut().find(|relay| relay.ip() == Some(at));
        relay.with_context(|| format!("no relay at {at}"))?.kill()
    }

    /// The same with all relays.
    ///
    /// # Errors
    /// When one cannot be awaited.
    pub fn kill_all(&mut self) -> Result<()> {
        self.relays.iter_mut().try_for_each(TorProcess::kill)
    }

    /// Counts what the exits bring back on each circuit that ends at them, from here on.
    ///
    /// # Errors
    /// When an exit cannot be asked.
    pub async fn exit_cells(&self) -> Result<ExitCells> {
        let exits = self.relays.iter().filter(|relay| relay.is_exit());
        ExitCells::watch(exits).await
    }

    /// Everything but the relays.
    fn prepare() -> Result<Self> {
        let host = Namespace::new()?;
        let n_relays = Authority::COUNT + N_EXITS;
        let addresses = (0..).take(n_relays).map(relay_ip);
        for ip in addresses.chain([BRIDGE, OUTSIDE]) {
            host.ip(&["address", "add", &format!("{ip}/32"), "dev", "lo"])?;
        }
        let names = host.enter(|| Ok(UdpSocket::bind((OUTSIDE, 53))?))?;
        let answers =
            [TOR_WEB, TOR_ECHO].map(|name| (name.to_owned(), vec![vec![IpAddr::V4(OUTSIDE)]]));
        let resolver = TempDir::with_prefix("wormholes-tor-")?;
        let said = format!("nameserver {OUTSIDE}\n");
        std::fs::write(resolver.path().join("resolv.conf"), said)?;
        Ok(Self {
            relays: Vec::new(),
            authorities: (0..)
                .take(Authority::COUNT)
                .map(Authority::read)
                .collect::<Result<_>>()?,
            web: Site::start_in(&host, "outside", (OUTSIDE, 80).into())?,
            echo: EchoServer::start_at(&host, (OUTSIDE, 7).into())?,
            names: NameServer::start(names, Answers::from(answers))?,
            resolver,
            next_port: AtomicU16::new(9150),
            host: Arc::new(host),
        })
    }

    /// Starts the relays, with so many of the authorities.
    fn launch(&mut self, n_authorities: usize) -> Result<()> {
        let directories = self.authorities.iter().map(Authority::as_relay);
        let directories = directories.collect::<Vec<_>>().join(",");
        for authority in self.authorities.iter().take(n_authorities) {
            let folder = process::folder()?;
            authority.write_keys(&folder)?;
            let more = torrc::authority(authority.ip, &directories);
            let more = [torrc::relay(authority.ip), more].concat();
            let started = self.start_tor(authority.name, Some(authority.ip), folder, &more);
            self.relays.push(started?);
        }
        for number in 0..N_EXITS {
            let ip = relay_ip(u8::try_from(Authority::COUNT + number)?);
            let resolver = self.resolver.path().join("resolv.conf");
            let more = [torrc::relay(ip), torrc::exit(ip, &resolver)].concat();
            let name = format!("exit{number}");
            let started = self.start_tor(&name, Some(ip), process::folder()?, &more);
            self.relays.push(started?);
        }
        Ok(())
    }

    /// Starts a tor that knows this network.
    fn start_tor(
        &self,
        name: &str,
        ip: Option<Ipv4Addr>,
        folder: TempDir,
        more: &str,
    ) -> Result<TorProcess> {
        let authorities = self.authorities.iter().map(Authority::contact);
        let authorities = authorities.map(|contact| format!("DirAuthority {contact}\n"));
        let torrc = [torrc::common(&folder, authorities), more.to_owned()].concat();
        TorProcess::start(&self.host, name, ip.map(IpAddr::V4), folder, &torrc)
    }

    /// Every relay has told every authority who it is.
    async fn known_to_authorities(&self) -> Result<()> {
        let known = until_within(AGREED_WITHIN, "all relays to be known", async || {
            let mut authorities = self.relays.iter().filter(|relay| !relay.is_exit());
            let knows_all = |tor: &TorProcess| tor.descriptors() == self.relays.len();
            authorities.all(knows_all).then_some(())
        });
        known.await.with_context(|| self.last_words())
    }

    /// Every relay knows that the authorities agree on all: an exit that does not refuses what comes
    /// to it by a relay that it does not know.
    async fn agreed(&self) -> Result<()> {
        let agreed = until_within(AGREED_WITHIN, "the authorities to agree", async || {
            let mut relays = self.relays.iter();
            let knows_all = |tor: &TorProcess| tor.relays_known() == Some(self.relays.len());
            relays.all(knows_all).then_some(())
        });
        agreed.await.with_context(|| self.last_words())
    }

    fn last_words(&self) -> String {
        self.relays.iter().map(TorProcess::last_words).collect()
    }

    /// Where the next client listens.
    fn socks(&self) -> SocketAddr {
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        (Ipv4Addr::LOCALHOST, port).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::curl_in;

    /// What tests of the router stand on, with nothing of the router in it.
    #[tokio::test]
    async fn c_tor_reaches_a_site_an_onion_service_and_both_over_a_bridge() {
        let network = TorNetwork::start().await.unwrap();
        let bridge = network.bridge().await.unwrap();
        let bridged = torrc::bridged(&bridge.obfs4);
        let (client, bridged, onion) = tokio::try_join!(
            // Over two circuits at once neither would bring all.
            network.client("ConfluxEnabled 0\n"),
            network.client(&bridged),
            network.onion_service(network.web.address(), &[]),
        )
        .unwrap();
        let mut exits = network.exit_cells().await.unwrap();
        let fetch = async |client: &TorClient, host: &str| {
            let url = format!("http://{host}/bytes/100000");
            let fetched = curl_in(network.host(), &client.proxy(), &url, &[]).await;
            let fetched = fetched.unwrap();
            assert_eq!(fetched.body.len(), 100_000, "{host}: {}", fetched.error);
        };
        fetch(&client, TOR_WEB).await;
        let first = exits.next_circuit(200).await.unwrap();
        fetch(&client, TOR_WEB).await;
        assert_eq!(exits.next_circuit(200).await.unwrap(), first);
        fetch(&client, &onion.address).await;
        fetch(&bridged, TOR_WEB).await;
        fetch(&bridged, &onion.address).await;
        assert!(client.build_circuit().await.unwrap() > Duration::ZERO);
    }
}
