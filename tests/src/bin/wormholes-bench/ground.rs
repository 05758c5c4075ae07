//! What the rows are measured on: the load's server, nodes and rivals, each started when the first
//! row needs it.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::SocketAddr,
};

use anyhow::Result;
use tokio::{net::TcpStream, process::Child};
use wormholes_proto::CarrierKind;
use wormholes_tests::Daemon;

use crate::{
    load::Way,
    network::{self, Network},
    process::start_this,
    rival::{Rival, Running},
    route::Route,
};

/// A way to the load's server, and who is on it.
#[derive(Debug, Clone)]
pub(crate) struct Course {
    /// How the load is sent.
    pub(crate) way: Way,
    /// The processes that it passes, the load's own left out.
    pub(crate) pids: Vec<u32>,
}

impl Course {
    /// Through the entrance of that kind or label, and over `others`.
    ///
    /// # Errors
    /// When the client has no such entrance.
    pub(crate) fn over(client: &Daemon, entrance: &str, others: &[&Daemon]) -> Result<Self> {
        let nodes = std::iter::once(&client).chain(others);
        Ok(Self {
            way: Way::tcp(client.entrance(entrance)?),
            pids: nodes.map(|node| node.pid()).collect(),
        })
    }
}

/// All that runs.
#[derive(Debug)]
pub(crate) struct Ground {
    load: SocketAddr,
    _server: Child,
    /// A node that knows nobody, for flows that stay on this machine.
    alone: Option<Daemon>,
    networks: BTreeMap<CarrierKind, Network>,
    rivals: BTreeMap<Rival, Running>,
    /// Flows that stay open until the end.
    pub(crate) idle_flows: Vec<TcpStream>,
}

impl Ground {
    /// Starts the load's server, and nothing else so far.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) async fn new() -> Result<Self> {
        let (server, said) = start_this(&["load"]).await?;
        Ok(Self {
            load: said.parse()?,
            _server: server,
            alone: None,
            networks: BTreeMap::new(),
            rivals: BTreeMap::new(),
            idle_flows: Vec::new(),
        })
    }

    /// Where the load's server listens.
    pub(crate) fn load(&self) -> SocketAddr {
        self.load
    }

    /// The course of a route.
    ///
    /// # Errors
    /// When a node does not start.
    pub(crate) async fn route(&mut self, route: Route) -> Result<Course> {
        match route {
            Route::Direct => {
                let alone = match &self.alone {
                    Some(alone) => alone,
                    None => self.alone.insert(network::alone(self.load).await?),
                };
                Course::over(alone, "tcp", &[])
            }
            Route::Over(carrier, tunnel) => self.network(carrier).await?.course(tunnel),
        }
    }

    /// The nodes that speak over this carrier.
    ///
    /// # Errors
    /// When one does not start.
    pub(crate) async fn network(&mut self, carrier: CarrierKind) -> Result<&Network> {
        Ok(match self.networks.entry(carrier) {
            Entry::Occupied(running) => running.into_mut(),
            Entry::Vacant(place) => place.insert(Network::start(self.load, carrier).await?),
        })
    }

    /// The course through a rival.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) async fn rival(&mut self, rival: Rival) -> Result<Course> {
        let running = match self.rivals.entry(rival) {
            Entry::Occupied(running) => running.into_mut(),
            Entry::Vacant(place) => place.insert(rival.start(self.load).await?),
        };
        Ok(running.course.clone())
    }
}
