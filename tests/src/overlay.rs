//! A network of real daemons with two of each role on 127.N.0.1, so that those of one half may die
//! and those of the other be compared with what they were.
//!
//! ```text
//! client --- relay-1 --- friend, who offers an echo and is reached over a relay
//!    |  \--- relay-2 ---/
//!    |---- hop-1 … hop-4
//!    \---- exit-1, exit-2 ---- an echo
//! ```
//! All are registered with the first relay, and learn the others' records from it.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use serde_json::json;
use tokio::net::TcpStream;

use crate::{Daemon, EchoServer, Identity, Setup, client::socks5_connect_as, wait::until};

/// Where the echo of the outside is: neither a node's nor the client's address.
const OUTSIDE_IP: Ipv4Addr = Ipv4Addr::new(127, 50, 0, 1);
/// Those that always live.
const SPARED: [&str; 3] = ["relay-1", "hop-1", "exit-1"];
/// Those that may be killed.
const MORTAL: [&str; 5] = ["relay-2", "hop-2", "hop-3", "hop-4", "exit-2"];

const SCRIPT: &str = r#"
fn tunnel(kind, half) {
    switch kind {
        "relay" => peer("friend").relayed(relay("relay-" + half)),
        "exit" => peer("exit-" + half).direct().exit(),
        "onion" => if half == "1" {
            onion(2).via(peer("hop-1")).to(peer("exit-1")).exit()
        } else {
            onion(3).to(peer("exit-2")).exit()
        },
    }
}
fn route(c) {
    let words = c.user.split("-");
    tunnel(words[0], words[1]).carrier(words[2]).timeout("10s").closed()
}
"#;
/// Few decisions are kept: those fill up once, and look like a leak meanwhile.
const ALL: &str = "[rules]\nscripts = []\nrecord_decisions = 100\n\
    [metrics]\nlisten = \"127.0.0.1:0\"\n[log]\nlevel = \"info\"\nmask = false\n";
/// A load that the machine holds up for a moment comes all at once then.
const LIMITS: &str = "max_circuits = 8192\nmax_circuits_per_peer = 4096";

/// The running network.
#[derive(Debug)]
pub struct Overlay {
    /// Whose SOCKS5 entrance is used.
    pub client: Daemon,
    /// Offers the service `echo`.
    pub friend: Daemon,
    /// A relay, a hop and an exit.
    pub spared: Vec<Daemon>,
    /// A relay, three hops and an exit.
    pub mortal: Vec<Daemon>,
    /// The target outside, and behind the service.
    pub echo: EchoServer,
}

/// A way to an echo: the user name of a flow tells the client's script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OverlayWay {
    /// `relay`, `exit` or `onion`.
    pub kind: &'static str,
    /// Over mortal nodes too, or over spared ones only.
    pub is_mortal: bool,
    /// `quic` or `tcp`.
    pub carrier: &'static str,
}

impl OverlayWay {
    /// Each kind over each carrier and each half.
    pub fn all() -> Vec<Self> {
        let ways = ["relay", "exit", "onion"].into_iter().flat_map(|kind| {
            let carriers = ["quic", "tcp"].into_iter();
            carriers.flat_map(move |carrier| {
                [false, true].map(|is_mortal| Self {
                    kind,
                    is_mortal,
                    carrier,
                })
            })
        });
        ways.collect()
    }

    /// What a flow that takes it calls itself.
    pub fn user(&self) -> String {
        let half = if self.is_mortal { 2 } else { 1 };
        format!("{}-{half}-{}", self.kind, self.carrier)
    }

    /// Whether the death of a node of this name may end its flows.
    pub fn may_pass(&self, node: &str) -> bool {
        let roles: &[&str] = match self.kind {
            "onion" => &["hop", "exit"],
            kind => &[kind],
        };
        self.is_mortal && roles.iter().any(|role| node.starts_with(role))
    }
}

impl Overlay {
    /// Starts it.
    ///
    /// # Errors
    /// When a node does not start, or the client does not learn of all hops.
    pub async fn start() -> Result<Self> {
        let echo = EchoServer::start(OUTSIDE_IP).await?;
        let names = ["client", "friend"].into_iter().chain(SPARED).chain(MORTAL);
        let named = names.map(|name| Ok((name, Identity::generate()?)));
        let plan = Plan(named.collect::<Result<_>>()?);
        let relay = plan.setup("relay-1", &[])?.start().await?;
        let second = plan.setup("relay-2", &[&relay])?.start().await?;
        let hops = SPARED.iter().chain(&MORTAL);
        let hops = hops.filter(|name| !name.starts_with("relay"));
        let hops = hops.map(|name| Ok(plan.setup(name, &[&relay])?.start()));
        let hops = try_join_all(hops.collect::<Result<Vec<_>>>()?).await?;
        let friend = plan.setup("friend", &[&relay, &second])?;
        let friend = friend.service("echo", echo.address()).start().await?;
        for node in hops.iter().chain([&second, &friend]) {
            node.until_registered().await?;
        }
        let client = plan.setup("client", &[&relay])?.peer(&second, 2);
        let client = client.entrances().start().await?;
        wait_until_known(&client, hops.len()).await?;
        let (spared, mortal) = [relay, second]
            .into_iter()
            .chain(hops)
            .partition(|node| SPARED.contains(&node.name()));
        Ok(Self {
            client,
            friend,
            spared,
            mortal,
            echo,
        })
    }

    /// Those that always live, with their names.
    pub fn living(&self) -> Vec<&Daemon> {
        let mut living = vec![&self.client, &self.friend];
        living.extend(&self.spared);
        living
    }

    /// All nodes.
    pub fn nodes(&self) -> Vec<&Daemon> {
        let mut nodes = self.living();
        nodes.extend(&self.mortal);
        nodes
    }

    /// The client's entrance.
    ///
    /// # Errors
    /// Never, while the client lives.
    pub fn entrance(&self) -> Result<SocketAddr> {
        self.client.entrance("socks5")
    }

    /// Opens a flow to an echo.
    ///
    /// # Errors
    /// When the entrance refuses.
    pub async fn open(
        entrance: SocketAddr,
        way: OverlayWay,
        echo: SocketAddr,
    ) -> Result<TcpStream> {
        let outside = echo.ip().to_string();
        let (host, port) = match way.kind {
            "relay" => ("echo.friend.wh", 80),
            _ => (outside.as_str(), echo.port()),
        };
        socks5_connect_as(&way.user(), entrance, host, port).await
    }
}

/// Who there will be: configs name nodes by id.
struct Plan(Vec<(&'static str, Identity)>);

impl Plan {
    /// A node that is registered with `relays`.
    fn setup(&self, name: &str, relays: &[&Daemon]) -> Result<Setup> {
        let number = self.0.iter().position(|(known, _)| *known == name);
        let (number, (_, identity)) = number
            .and_then(|number| Some((number, self.0.get(number)?)))
            .with_context(|| format!("nobody is called {name}"))?;
        let mut setup = Setup::with_identity(name, identity)?;
        let role = name.split('-').next().unwrap_or(name);
        setup = match role {
            "client" => setup
                .script("rules.rhai", SCRIPT)
                .config(&ALL.replace("[]", "[\"rules.rhai\"]"))
                .config("[limits]\nopening_per_target = 4096"),
            _ => setup.config(ALL),
        };
        if !["client", "friend"].contains(&role) {
            setup = setup.listen(&format!("127.{}.0.1:0", 20 + number));
        }
        if role == "relay" {
            setup = setup.config(&format!("[relay]\nenabled = true\n{LIMITS}"));
        }
        if ["hop", "exit"].contains(&role) {
            setup = setup.config(&format!("[hop]\nenabled = true\n{LIMITS}"));
        }
        if role == "exit" {
            setup = setup.config(&format!("[exit]\nenabled = true\n{LIMITS}"));
            setup = setup.config("allow = [\"127.50.0.1/32\"]\nallow_private = true");
        }
        for relay in relays {
            let more = relay.listen().map(|address| address.to_string());
            let more = format!("addresses = {:?}\nregister = true", more.as_slice());
            setup = setup.peer_id(relay.name(), relay.id(), 2, &more);
        }
        let given: Vec<_> = relays.iter().map(|relay| relay.name()).collect();
        for (other, identity) in &self.0 {
            // The client is told the second relay's address.
            let is_given = given.contains(other) || (name, *other) == ("client", "relay-2");
            if *other != name && !is_given {
                let via = match (name, *other) {
                    ("client", "friend") => "via = [\"relay-1\", \"relay-2\"]",
                    _ => "",
                };
                setup = setup.peer_id(other, identity.id(), 2, via);
            }
        }
        Ok(setup)
    }
}

async fn wait_until_known(client: &Daemon, n_hops: usize) -> Result<()> {
    until("the client to know all hops", async || {
        let peers = client.call("peers", json!({})).await.ok()?;
        let hops = peers.get("peers")?.as_array()?.iter();
        let hops = hops.filter(|peer| peer.pointer("/roles/hop") == Some(&json!(true)));
        (hops.count() == n_hops).then_some(())
    })
    .await
}
