//! A small network of real daemons on 127.N.0.1, each N being a network of its own to the rule
//! that no two hops of a path are neighbours.
//!
//! ```text
//! client ---- relay ---- friend        the friend has no address: it is reached over the relay
//!    \          |
//!     \      hop-1  hop-2  hop-3  exit ---- outside.example
//! ```
//! All know the relay, and learn the others' records from it. They speak QUIC alone, if no more is asked.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{Daemon, Identity, Setup, Site, wait::until};

/// Names of the nodes.
pub const CLIENT: &str = "client";
/// See [`CLIENT`].
pub const RELAY: &str = "relay";
/// See [`CLIENT`].
pub const FRIEND: &str = "friend";
/// See [`CLIENT`].
pub const EXIT: &str = "exit";
/// See [`CLIENT`].
pub const HOPS: [&str; 3] = ["hop-1", "hop-2", "hop-3"];
/// A name that only the exit can resolve.
pub const OUTSIDE: &str = "outside.example";

/// What the client's script is called.
pub const SCRIPT_NAME: &str = "rules.rhai";

/// Where the outside is: neither a node's nor the client's address.
const OUTSIDE_IP: Ipv4Addr = Ipv4Addr::new(127, 50, 0, 1);

/// What a network may have beside its nodes.
#[derive(Debug, Clone, Copy, Default)]
pub struct More<'a> {
    /// Sections for the client's config.
    pub client: &'a str,
    /// A folder that the sites show below `/files/`.
    pub files: Option<&'a std::path::Path>,
    /// A plugin of the client, by its folder.
    pub plugin: Option<&'a str>,
    /// The same of the exit, where it takes messages of strangers.
    pub exits_plugin: Option<&'a str>,
    /// Whether the nodes speak TCP with each other, too: over which of the two a link comes about
    /// is then a matter of how busy the machine is.
    pub over_tcp: bool,
    /// An SSH server, offered as the service `ssh` of relay and friend.
    pub ssh: Option<SocketAddr>,
}

/// How a node that has no address, or tells it to few, is reached.
const VIA_RELAY: &str = "via = [\"relay\"]";

/// The running network; all of it ends with this.
#[derive(Debug)]
pub struct TestNetwork {
    /// Whose entrances are used.
    pub client: Daemon,
    /// Carries ciphertext, offers the service `wiki`, and tells everybody the records.
    pub relay: Daemon,
    /// Offers the service `web`.
    pub friend: Daemon,
    /// Peel layers.
    pub hops: Vec<Daemon>,
    /// Peels layers, and dials targets.
    pub exit: Daemon,
    /// Behind the service `wiki` of the relay.
    pub wiki: Site,
    /// Behind the service `web` of the friend.
    pub web: Site,
    /// At [`OUTSIDE`].
    pub outside: Site,
}

impl TestNetwork {
    /// Starts it; the client's one script is `script`.
    ///
    /// # Errors
    /// When a node does not start, or the client does not learn of all hops.
    pub async fn start(script: &str) -> Result<Self> {
        Self::start_with(script, More::default()).await
    }

    /// As [`Self::start`], with more in it.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(script: &str, more: More<'_>) -> Result<Self> {
        let local = Ipv4Addr::LOCALHOST;
        let files = more.files;
        let (wiki, web, outside) = tokio::try_join!(
            Site::start("the wiki", local, files),
            Site::start("the friend's site", local, files),
            Site::start("outside", OUTSIDE_IP, files),
        )?;
        let plan = Plan::new(script, more)?;
        let relay = plan.relay(&wiki)?.start().await?;
        let starting = plan.hops(&relay)?.into_iter().map(Setup::start);
        let (friend, hops, exit) = tokio::try_join!(
            plan.friend(&relay, &web)?.start(),
            futures_util::future::try_join_all(starting),
            plan.exit(&relay)?.start(),
        )?;
        // A client that came earlier would look again only after a while.
        for node in hops.iter().chain([&friend, &exit]) {
            node.until_registered().await?;
        }
        let network = Self {
            client: plan.client(&relay)?.start().await?,
            relay,
            friend,
            hops,
            exit,
            wiki,
            web,
            outside,
        };
        network.wait_until_known().await?;
        Ok(network)
    }

    /// All nodes with their names.
    pub fn nodes(&self) -> Vec<&Daemon> {
        let mut nodes = vec![&self.client, &self.relay, &self.friend];
        nodes.extend(&self.hops);
        nodes.push(&self.exit);
        nodes
    }

    /// `http://outside.example:PORT` and the path.
    pub fn outside_url(&self, path: &str) -> String {
        format!("http://{OUTSIDE}:{}{path}", self.outside.address().port())
    }

    /// Waits until the client knows all hops.
    async fn wait_until_known(&self) -> Result<()> {
        let known = async || {
            let peers = self.client.call("peers", json!({})).await.ok()?;
            let peers = peers.get("peers")?.as_array()?;
            let with_role = |role: &str| {
                let has = |peer: &&Value| peer.pointer(role) == Some(&json!(true));
                peers.iter().filter(has).count()
            };
            (with_role("/roles/hop") == HOPS.len() + 1 && with_role("/roles/exit") == 1)
                .then_some(())
        };
        until("the client to know four hops and an exit", known).await
    }
}

/// Who there will be, before anybody is: configs name nodes by id.
struct Plan<'a> {
    script: &'a str,
    more: More<'a>,
    identities: BTreeMap<&'static str, Identity>,
}

impl<'a> Plan<'a> {
    fn new(script: &'a str, more: More<'a>) -> Result<Self> {
        let names = [CLIENT, RELAY, FRIEND, EXIT].into_iter().chain(HOPS);
        let identity = |name| Ok((name, Identity::generate()?));
        Ok(Self {
            script,
            more,
            identities: names.map(identity).collect::<Result<_>>()?,
        })
    }

    fn relay(&self, wiki: &Site) -> Result<Setup> {
        let mut relay = self
            .setup(RELAY)?
            .listen("127.20.0.1:0")
            .config("[relay]\nenabled = true")
            .service("wiki", wiki.address());
        if let Some(ssh) = self.more.ssh {
            relay = relay.service("ssh", ssh);
        }
        for name in [CLIENT, FRIEND, EXIT].into_iter().chain(HOPS) {
            relay = self.knows(relay, name, 2, "")?;
        }
        Ok(relay)
    }

    fn friend(&self, relay: &Daemon, web: &Site) -> Result<Setup> {
        let friend = registered_at(self.setup(FRIEND)?, relay).service("web", web.address());
        let friend = self.knows(friend, CLIENT, 2, VIA_RELAY)?;
        Ok(match self.more.ssh {
            Some(ssh) => friend.service("ssh", ssh),
            None => friend,
        })
    }

    fn hops(&self, relay: &Daemon) -> Result<Vec<Setup>> {
        let hop = |(number, name)| {
            Ok(registered_at(self.setup(name)?, relay)
                .listen(&format!("127.{number}.0.1:0"))
                .config("[hop]\nenabled = true"))
        };
        (1..).zip(HOPS).map(hop).collect()
    }

    fn exit(&self, relay: &Daemon) -> Result<Setup> {
        let exit = registered_at(self.setup(EXIT)?, relay)
            .listen("127.4.0.1:0")
            .name(OUTSIDE, OUTSIDE_IP.into())
            .config("[hop]\nenabled = true\n[exit]\nenabled = true")
            .config("allow = [\"0.0.0.0/0\"]\nallow_private = true");
        let exit = self.knows(exit, CLIENT, 2, "")?;
        match self.more.exits_plugin {
            Some(folder) => Ok(exit.plugin(folder)?.config("strangers = true")),
            None => Ok(exit),
        }
    }

    fn client(&self, relay: &Daemon) -> Result<Setup> {
        let mut client = registered_at(self.setup(CLIENT)?, relay)
            .entrances()
            .config(self.more.client)
            .script(SCRIPT_NAME, self.script);
        client = self.knows(client, FRIEND, 2, VIA_RELAY)?;
        client = self.knows(client, EXIT, 2, VIA_RELAY)?;
        for name in HOPS {
            client = self.knows(client, name, 1, "")?;
        }
        match self.more.plugin {
            Some(folder) => client.plugin(folder),
            None => Ok(client),
        }
    }

    fn setup(&self, name: &str) -> Result<Setup> {
        let setup = Setup::with_identity(name, self.identity(name)?)?;
        let setup = if self.more.over_tcp {
            setup
        } else {
            setup.node("carriers = [\"quic\"]")
        };
        Ok(setup.config("[metrics]\nlisten = \"127.0.0.1:0\""))
    }

    fn knows(&self, setup: Setup, name: &str, trust: u8, more: &str) -> Result<Setup> {
        Ok(setup.peer_id(name, self.identity(name)?.id(), trust, more))
    }

    fn identity(&self, name: &str) -> Result<&Identity> {
        let identity = self.identities.get(name);
        identity.with_context(|| format!("nobody is called {name}"))
    }
}

/// Makes the node reachable through the relay, which also tells it of the others.
fn registered_at(setup: Setup, relay: &Daemon) -> Setup {
    let address = relay.listen().map(|address| address.to_string());
    let more = format!("addresses = {:?}\nregister = true", address.as_slice());
    setup.peer_id(RELAY, relay.id(), 2, &more)
}
