//! How long a circuit of eight hops takes to build where every link takes time.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::net::UdpSocket;
use wormholes_tests::{Conditions, EchoServer, LongPath, Metrics, UdpLink, socks5_connect, until};

use crate::{row::Row, turns::median};

/// The row, and the one of a path whose links do not stand so far.
pub(crate) const ROWS: [&str; 2] = [
    "onion(8) build, 20 ms on each link",
    "onion(8) build, 20 ms on each link, links cold",
];

/// To the other end of a link and back.
const LINK_ROUND_TRIP: Duration = Duration::from_millis(20);
const SCRIPT: &str = "fn route(c) { onion(8).closed() }";
const ROUNDS: usize = 5;

/// A flow is there when its last hop has answered, one round trip after its circuit. Of two flows
/// that begin together one takes the circuit that was built ahead, and so has that round trip
/// alone: what the other takes longer is the building of its own.
pub(crate) async fn measure() -> Result<Vec<Row>> {
    let path = LongPath::start(LINK_ROUND_TRIP, SCRIPT).await?;
    let echo = EchoServer::start(Ipv4Addr::LOCALHOST).await?;
    let target = echo.address();
    let first = time_of_flow(&path, target).await?;
    // From the second flow on a path on, a circuit is built ahead.
    time_of_flow(&path, target).await?;
    let links = BareLinks::start().await?;
    let (mut asking, mut building, mut round_trips) = (Vec::new(), Vec::new(), Vec::new());
    // One for each of these two, and one ahead.
    let mut built = 3.0;
    for _ in 0..ROUNDS {
        wait_until_built(&path, built).await?;
        let (one, other) =
            tokio::try_join!(time_of_flow(&path, target), time_of_flow(&path, target))?;
        asking.push(one.min(other));
        building.push(one.max(other) - one.min(other));
        round_trips.push(links.round_trip().await?);
        built += 2.0;
    }
    let (asking, building) = (median(&asking), median(&building));
    let round_trip = median(&round_trips);
    let [warm, cold] = ROWS;
    let of = "one round trip over the path";
    Ok(vec![
        Row::against(warm, building, "ms", of, round_trip)?,
        Row::against(cold, first - asking, "ms", of, round_trip)?,
    ])
}

/// As many links as the path has, one behind the other, with nobody between them.
struct BareLinks {
    links: Vec<UdpLink>,
    near: UdpSocket,
    far: UdpSocket,
}

impl BareLinks {
    async fn start() -> Result<Self> {
        let conditions = Conditions {
            delay: LINK_ROUND_TRIP / 2,
            loss: 0.0,
        };
        let socket = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
        let (near, far) = tokio::try_join!(socket(), socket())?;
        let (mut links, mut behind) = (Vec::new(), far.local_addr()?);
        for seed in 0..LongPath::HOPS {
            let link = UdpLink::start(near.local_addr()?.ip(), conditions, seed.into()).await?;
            link.connect(behind);
            behind = link.address();
            links.push(link);
        }
        Ok(Self { links, near, far })
    }

    /// Milliseconds that a datagram takes over all of them and back: links are as exact as timers.
    async fn round_trip(&self) -> Result<f64> {
        let first = self.links.last().context("no link")?;
        let started = Instant::now();
        self.near.send_to(&[1], first.address()).await?;
        let (_, from) = self.far.recv_from(&mut [0]).await?;
        self.far.send_to(&[1], from).await?;
        self.near.recv(&mut [0]).await?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    }
}

/// Milliseconds until the entrance says that the flow is there.
async fn time_of_flow(path: &LongPath, target: SocketAddr) -> Result<f64> {
    let entrance = path.client.entrance("socks5")?;
    let started = Instant::now();
    let flow = socks5_connect(entrance, &target.ip().to_string(), target.port()).await;
    flow.context("a flow over eight hops")?;
    Ok(started.elapsed().as_secs_f64() * 1e3)
}

async fn wait_until_built(path: &LongPath, count: f64) -> Result<()> {
    until("a circuit to be built ahead", async || {
        let metrics = Metrics::read(&path.client).await.ok()?;
        let built = metrics.get("wormholes_onion_circuits_total{outcome=\"built\"}");
        (built >= count).then_some(())
    })
    .await
}
