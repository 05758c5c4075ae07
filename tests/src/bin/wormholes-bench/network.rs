//! The nodes that the router's rows run over: a client, a server that offers the load's server as
//! a service, a friend that offers it behind a relay, and two hops.

use std::net::SocketAddr;

use anyhow::Result;
use wormholes_proto::{Host, Target};
use wormholes_tests::{Daemon, Setup};

use crate::load::Way;

/// The entrance decides the tunnel.
const SCRIPT: &str = r#"
fn route(c) {
    switch c.label {
        "direct" => direct(),
        "service" => c.node.direct().carrier("quic").closed(),
        "service-tcp" => c.node.direct().carrier("tcp").closed(),
        "relay" => c.node.relayed("relay").closed(),
        "onion1" => onion(1).to(c.node).closed(),
        "onion3" => onion(3).to(c.node).closed(),
        _ => block("not a row of the bench"),
    }
}
"#;

/// The same service, asked for by the client.
const SOCKS: &str = "[[entrance]]\nkind = \"socks5\"\nlisten = \"127.0.0.1:0\"\n\
     label = \"service\"";

/// A role with places for more flows than are measured at once.
const ROLE: &str = "enabled = true\nmax_circuits = 8192\nmax_circuits_per_peer = 8192";

/// A kind of tunnel that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// A local dial.
    Direct,
    /// A service of a peer over QUIC.
    Service,
    /// The same over TCP.
    ServiceTcp,
    /// The same through a relay.
    Relay,
    /// The same over one hop, the peer itself.
    Onion1,
    /// The same over three hops.
    Onion3,
}

/// The running nodes.
#[derive(Debug)]
pub(crate) struct Network {
    load: SocketAddr,
    client: Daemon,
    server: Daemon,
    relay: Daemon,
    friend: Daemon,
    hops: [Daemon; 2],
}

impl Route {
    /// In the order of the table.
    pub(crate) const ALL: [Self; 6] = [
        Self::Direct,
        Self::Service,
        Self::ServiceTcp,
        Self::Relay,
        Self::Onion1,
        Self::Onion3,
    ];

    /// As rows call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "local direct",
            Self::Service => "service over QUIC",
            Self::ServiceTcp => "service over TCP carrier",
            Self::Relay => "relay",
            Self::Onion1 => "onion(1)",
            Self::Onion3 => "onion(3)",
        }
    }

    /// The label of its entrance.
    fn label(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Service => "service",
            Self::ServiceTcp => "service-tcp",
            Self::Relay => "relay",
            Self::Onion1 => "onion1",
            Self::Onion3 => "onion3",
        }
    }

    /// What is asked for.
    fn target(self, load: SocketAddr) -> Target {
        let service_of = |node: &str| Target::new(Host::Name(format!("load.{node}.wh")), 80);
        match self {
            Self::Direct => load.into(),
            Self::Service | Self::ServiceTcp | Self::Onion1 | Self::Onion3 => service_of("server"),
            Self::Relay => service_of("friend"),
        }
    }
}

impl Network {
    /// Starts the nodes; `load` is where the load's server listens.
    pub(crate) async fn start(load: SocketAddr) -> Result<Self> {
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
        let forwards = Route::ALL.map(|route| {
            format!(
                "[[entrance]]\nkind = \"tcp\"\nlisten = \"127.0.0.1:0\"\n\
                 target = \"{}\"\nlabel = \"{}\"\n",
                route.target(load),
                route.label()
            )
        });
        let client = client
            .config(&forwards.concat())
            .config(SOCKS)
            .script("bench.rhai", SCRIPT)
            .peer(&relay, 2)
            .peer(&server, 2)
            .peer(&hops[0], 2)
            .peer(&hops[1], 2)
            .peer_id("friend", friend.id(), 2, "via = [\"relay\"]")
            .start()
            .await?;
        Ok(Self {
            load,
            client,
            server,
            relay,
            friend,
            hops,
        })
    }

    /// How the load gets to its server by this route: over a TCP entrance, as over any forward.
    pub(crate) fn way(&self, route: Route) -> Result<Way> {
        Ok(Way::Tcp(self.client.entrance(route.label())?))
    }

    /// The way of [`Route::Service`], over a SOCKS5 entrance.
    pub(crate) fn socks_way(&self) -> Result<Way> {
        Ok(Way::Socks {
            entrance: self.client.entrance("socks5")?,
            target: Route::Service.target(self.load),
        })
    }

    /// The processes on the way.
    pub(crate) fn pids(&self, route: Route) -> Vec<u32> {
        let client = &self.client;
        let on_the_way = match route {
            Route::Direct => vec![client],
            Route::Service | Route::ServiceTcp | Route::Onion1 => vec![client, &self.server],
            Route::Relay => vec![client, &self.relay, &self.friend],
            Route::Onion3 => vec![client, &self.hops[0], &self.hops[1], &self.server],
        };
        on_the_way.into_iter().map(Daemon::pid).collect()
    }

    /// The client's process.
    pub(crate) fn client_pid(&self) -> u32 {
        self.client.pid()
    }
}

/// A node that logs as it does by default: lines for debugging would be measured too.
fn setup(name: &str) -> Result<Setup> {
    Ok(Setup::new(name)?.config("[log]"))
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
