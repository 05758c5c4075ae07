//! Tor: what the router's tunnel costs beside bare arti and C tor, and what the router's own onion of
//! three hops does beside three hops of Tor, on the same machine in the same run.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::process::Child;
use wormholes_proto::{CarrierKind, Host, Target};
use wormholes_tests::{Daemon, TorClient, TorNetwork};

use crate::{
    ground::Ground,
    load::{self, Way, first_byte},
    network::{as_shipped, forward},
    process::start_this_on,
    route::{Route, Tunnel},
    row::Row,
    table::Table,
    turns::{TIME, in_turns, median, versus},
};

pub(crate) const BULK: &str = "tor(), 1 stream";
pub(crate) const BULK_BESIDE_C: &str = "tor(), 1 stream, beside C tor";
pub(crate) const FIRST_BYTE: &str = "tor(), first byte of a new flow, p50";
pub(crate) const FIRST_BYTE_BESIDE_C: &str = "tor(), first byte of a new flow, p50, beside C tor";
pub(crate) const ONION_QUIC: &str = "onion(3) over QUIC, 1 stream, beside Tor";
pub(crate) const ONION_TCP: &str = "onion(3) over TCP, 1 stream, beside Tor";
pub(crate) const BUILD: &str = "onion(3) build";
pub(crate) const BARE_ARTI: &str = "bare arti";
pub(crate) const C_TOR: &str = "C tor's SOCKS port";
pub(crate) const C_TOR_HOPS: &str = "C tor, three hops";

/// All rows, in their order.
pub(crate) const ROWS: [&str; 7] = [
    BULK,
    BULK_BESIDE_C,
    FIRST_BYTE,
    FIRST_BYTE_BESIDE_C,
    ONION_QUIC,
    ONION_TCP,
    BUILD,
];

/// Tor's windows take a while to open.
const BULK_TIME: Duration = Duration::from_secs(10);
/// New flows of each subject in a turn, and circuits that are built.
const NEW_FLOWS: usize = 100;
const CIRCUITS: usize = 20;

/// Ways through the same network to the same server, and who is on them.
struct TorGround {
    client: TorClient,
    /// The router's tunnel, bare arti, and C tor.
    ways: [(&'static str, Way); 3],
    _node: Daemon,
    _children: [Child; 2],
    _network: TorNetwork,
}

/// Measures the rows whose names hold `only`.
pub(crate) async fn measure(only: &str, table: &mut Table<'_>) -> Result<()> {
    let is_wanted = |rows: &[&str]| rows.iter().any(|row| row.contains(only));
    if !is_wanted(&ROWS) {
        bail!("no row's name holds {only:?}");
    }
    let tor = TorGround::start().await?;
    if is_wanted(&[BULK, BULK_BESIDE_C]) {
        table.add(tor.bulk().await?);
    }
    if is_wanted(&[FIRST_BYTE, FIRST_BYTE_BESIDE_C]) {
        table.add(tor.first_bytes().await?);
    }
    let mut ground = Ground::new().await?;
    for (row, carrier) in [
        (ONION_QUIC, CarrierKind::Quic),
        (ONION_TCP, CarrierKind::Tcp),
    ] {
        if is_wanted(&[row]) {
            table.add([tor.onion_bulk(&mut ground, row, carrier).await?]);
        }
    }
    if is_wanted(&[BUILD]) {
        table.add([tor.onion_build(&mut ground).await?]);
    }
    Ok(())
}

impl TorGround {
    async fn start() -> Result<Self> {
        let network = TorNetwork::start().await?;
        let host = network.host();
        let ip = network.web.address().ip().to_string();
        let (server, load) = start_this_on(host, &["load", &ip]).await?;
        let known = network.known();
        let mut words = vec!["arti", &load];
        words.extend(known.iter().map(String::as_str));
        let (arti, bare) = start_this_on(host, &words).await?;
        let client = network.client("").await?;
        let node = as_shipped("client")?
            .in_namespace(host)
            .config(&network.config(""))
            .config(&forward(&load, "tor"))
            .script("tor.rhai", "fn route(c) { tor().closed() }")
            .start()
            .await?;
        let target: std::net::SocketAddr = load.parse()?;
        let target = Target::new(Host::Ip(target.ip()), target.port());
        let ways = [
            ("tor()", Way::tcp(node.entrance("tcp")?)),
            (BARE_ARTI, Way::tcp(bare.parse()?)),
            (C_TOR, Way::socks(client.socks(), target)),
        ];
        Ok(Self {
            client,
            ways: ways.map(|(name, way)| (name, way.on(host))),
            _node: node,
            _children: [server, arti],
            _network: network,
        })
    }

    async fn bulk(&self) -> Result<Vec<Row>> {
        let rates = in_turns(&self.ways, async |(_, way)| {
            load::bulk(way, 1, BULK_TIME).await
        });
        let rates = rates.await?;
        let rates: Vec<_> = rates.iter().map(|rates| median(rates) / 1e6).collect();
        beside([BULK, BULK_BESIDE_C], "MB/s", &rates)
    }

    async fn first_bytes(&self) -> Result<Vec<Row>> {
        let times = in_turns(&self.ways, async |(_, way)| {
            let mut times = Vec::new();
            for _ in 0..NEW_FLOWS {
                times.push(milliseconds(first_byte(way).await?));
            }
            Ok(median(&times))
        });
        let times = times.await?;
        let times: Vec<_> = times.iter().map(|times| median(times)).collect();
        beside([FIRST_BYTE, FIRST_BYTE_BESIDE_C], "ms", &times)
    }

    async fn onion_bulk(
        &self,
        ground: &mut Ground,
        row: &str,
        carrier: CarrierKind,
    ) -> Result<Row> {
        let course = ground.route(Route::Over(carrier, Tunnel::Onion3)).await?;
        let [_, _, (_, c_tor)] = &self.ways;
        let subjects = [(course.way, TIME), (c_tor.clone(), BULK_TIME)];
        let rates = in_turns(&subjects, async |(way, time)| {
            load::bulk(way, 1, *time).await
        });
        let rates = rates.await?;
        let rates: Vec<_> = rates.iter().map(|rates| median(rates) / 1e6).collect();
        versus(row.to_owned(), "MB/s", &rates, C_TOR_HOPS)
    }

    /// Of two flows that begin together one takes the circuit that was built ahead: what the other takes
    /// longer is the building of its own.
    async fn onion_build(&self, ground: &mut Ground) -> Result<Row> {
        let network = ground.network(CarrierKind::Quic).await?;
        let way = network.course(Tunnel::Onion3)?.way;
        // From the second flow on a path on, a circuit is built ahead.
        first_byte(&way).await?;
        first_byte(&way).await?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..CIRCUITS {
            network.until_built_ahead().await?;
            let (one, other) = tokio::try_join!(first_byte(&way), first_byte(&way))?;
            ours.push(milliseconds(one.max(other) - one.min(other)));
            theirs.push(milliseconds(self.client.build_circuit().await?));
        }
        Row::against(BUILD, median(&ours), "ms", C_TOR_HOPS, median(&theirs))
    }
}

/// The router's tunnel beside bare arti, and beside C tor.
fn beside(rows: [&str; 2], unit: &'static str, values: &[f64]) -> Result<Vec<Row>> {
    let [ours, arti, c_tor] = values else {
        bail!("{rows:?} were not measured");
    };
    let [against_arti, against_c] = rows;
    Ok(vec![
        Row::against(against_arti, *ours, unit, BARE_ARTI, *arti)?,
        Row::against(against_c, *ours, unit, C_TOR, *c_tor)?,
    ])
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
