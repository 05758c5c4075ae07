//! The nodes that rows run over, all of them on one carrier: a client, a server that offers the
//! load's server as a service, a friend that offers it behind a relay, and two hops. And a node
//! that knows nobody.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use wormholes_proto::CarrierKind;
use wormholes_tests::{Daemon, Metrics, Setup, until};

use crate::{ground::Course, load::Way, route::Tunnel};

/// The entrance decides the tunnel.
const SCRIPT: &str = r#"
fn route(c) {
    switch c.label {
        "service" => c.node.direct().closed(),
        "relay" => c.node.relayed("relay").closed(),
        "onion1" => onion(1).to(c.node).closed(),
        "onion3" => onion(3).to(c.node).closed(),
        _ => block("not a row of the bench"),
    }
}
"#;

/// The service, asked for by the client of the entrance.
const SOCKS: &str = "[[entrance]]\nkind = \"socks5\"\nlisten = \"127.0.0.1:0\"\n\
     label = \"service\"";

/// A role with places for more flows than are measured at once.
const ROLE: &str = "enabled = true\nmax_circuits = 8192\nmax_circuits_per_peer = 8192";

/// A circuit is built in less time than that many looks take, some 60 ms.
const EQUAL_LOOKS: usize = 5;

/// The running nodes.
#[derive(Debug)]
pub(crate) struct Network {
    client: Daemon,
    server: Daemon,
    relay: Daemon,
    friend: Daemon,
    hops: [Daemon; 2],
}

impl Network {
    /// Starts the nodes; `load` is where the load's server listens.
    ///
    /// # Errors
    /// When one does not start.
    pub(crate) async fn start(load: SocketAddr, carrier: CarrierKind) -> Result<Self> {
        let setup = |name: &str| {
            let keys = format!("carriers = [\"{}\"]", carrier.as_str());
            anyhow::Ok(as_shipped(name)?.node(&keys))
        };
        let service = format!("[[service]]\nname = \"load\"\ntarget = \"{load}\"\nmin_trust = 0");
        let client = setup("client")?;
        let friend = setup("friend")?;
        let known = |setup: Setup| setup.peer_id("client", client.id(), 2, "");
        let hop = |name: &str, listen: &str| {
            let setup = setup(name)?
                .listen(listen)
                .config(&format!("[hop]\n{ROLE}"));
            anyhow::Ok(known(setup))
        };
        let relay = known(setup("relay")?.listen("127.61.0.1:0"))
            .peer_id("friend", friend.id(), 2, "")
            .config(&format!("[relay]\n{ROLE}"))
            .start()
            .await?;
        let hops = [
            hop("hop1", "127.62.0.1:0")?.start().await?,
            hop("hop2", "127.63.0.1:0")?.start().await?,
        ];
        let server = hop("server", "127.64.0.1:0")?
            .config(&service)
            .start()
            .await?;
        let friend = known(friend)
            .config(&service)
            .config(&format!("{}register = true", peer_section(&relay)))
            .start()
            .await?;
        let forwards = Tunnel::ALL.map(|tunnel| forward(tunnel.target(), tunnel.label()));
        let client = client
            .config(&forwards.concat())
            .config(SOCKS)
            .config("[metrics]\nlisten = \"127.0.0.1:0\"")
            .script("bench.rhai", SCRIPT)
            .peer(&relay, 2)
            .peer(&server, 2)
            .peer(&hops[0], 2)
            .peer(&hops[1], 2)
            .peer_id("friend", friend.id(), 2, "via = [\"relay\"]")
            .start()
            .await?;
        Ok(Self {
            client,
            server,
            relay,
            friend,
            hops,
        })
    }

    /// How the load gets to its server: over a TCP entrance, as over any forward.
    ///
    /// # Errors
    /// When the client has no entrance for that tunnel.
    pub(crate) fn course(&self, tunnel: Tunnel) -> Result<Course> {
        let others = match tunnel {
            Tunnel::Service | Tunnel::Onion1 => vec![&self.server],
            Tunnel::Relay => vec![&self.relay, &self.friend],
            Tunnel::Onion3 => vec![&self.hops[0], &self.hops[1], &self.server],
        };
        Course::over(&self.client, tunnel.label(), &others)
    }

    /// The course of [`Tunnel::Service`], over a SOCKS5 entrance.
    ///
    /// # Errors
    /// As [`Self::course`].
    pub(crate) fn socks_course(&self) -> Result<Course> {
        let mut course = Course::over(&self.client, "socks5", &[&self.server])?;
        let entrance = self.client.entrance("socks5")?;
        course.way = Way::socks(entrance, Tunnel::Service.target());
        Ok(course)
    }

    /// How many circuits of onions the client has built so far.
    ///
    /// # Errors
    /// When the client is gone.
    pub(crate) async fn circuits_built(&self) -> Result<f64> {
        let metrics = Metrics::read(&self.client).await;
        let metrics = metrics.context("the client's metrics")?;
        Ok(metrics.get("wormholes_onion_circuits_total{outcome=\"built\"}"))
    }

    /// Waits until the client builds no more of them.
    ///
    /// # Errors
    /// As of [`Self::circuits_built`].
    pub(crate) async fn until_built_ahead(&self) -> Result<()> {
        let (mut last, mut equal) = (f64::NAN, 0);
        until("circuits to be built ahead", async || {
            let now = self.circuits_built().await.ok()?;
            equal = if now == last { equal + 1 } else { 0 };
            last = now;
            (equal == EQUAL_LOOKS).then_some(())
        })
        .await
    }
}

/// A node that knows nobody, with one entrance whose flows are dialled from here.
///
/// # Errors
/// When it does not start.
pub(crate) async fn alone(load: SocketAddr) -> Result<Daemon> {
    direct_only(load)?.start().await
}

/// What [`alone`] starts.
///
/// # Errors
/// When its folder cannot be made.
pub(crate) fn direct_only(load: SocketAddr) -> Result<Setup> {
    let setup = as_shipped("alone")?.config(&forward(load, "direct"));
    Ok(setup.script("direct.rhai", "fn route(c) { direct() }"))
}

/// A node that logs as it does by default: lines for debugging would be measured too.
pub(crate) fn as_shipped(name: &str) -> Result<Setup> {
    Ok(Setup::new(name)?.config("[log]"))
}

/// A TCP entrance with that target.
pub(crate) fn forward(target: impl std::fmt::Display, label: &str) -> String {
    format!(
        "[[entrance]]\nkind = \"tcp\"\nlisten = \"127.0.0.1:0\"\n\
         target = \"{target}\"\nlabel = \"{label}\"\n"
    )
}

fn peer_section(peer: &Daemon) -> String {
    let address = peer
        .listen()
        .map(|address| format!("{address}"))
        .unwrap_or_default();
    format!(
        "[[peer]]\nname = {:?}\nid = \"{}\"\naddresses = [\"{address}\"]\n",
        peer.name(),
        peer.id()
    )
}
