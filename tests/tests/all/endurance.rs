//! Flows at a steady rate over every kind of tunnel and both carriers, for an hour in a soak: none
//! fails, and no node grows.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    net::{TcpStream, UdpSocket},
    task::{JoinHandle, JoinSet},
    time::{interval, timeout},
};
use wormholes_proto::Target;
use wormholes_tests::{Association, Overlay, OverlayWay, Vitals, exchange, soak_time, until};

/// In continuous integration.
const SHORT: Duration = Duration::from_secs(10);
const SHORT_RATE_PER_S: u32 = 50;
/// In a soak, which lasts as long as it was told.
const RATE_PER_S: u32 = 200;
/// Looks at the nodes; the first third is for pools and rings to fill.
const LOOKS: u32 = 60;
const WARM_UP_LOOKS: usize = LOOKS as usize / 3;
/// A machine that was held up makes up for it, but not all at once.
const MAX_AT_ONCE: usize = 150;
/// What of the rate a soak must have reached in the end.
const MIN_RATE: f64 = 0.95;
/// Without a fault, nothing takes as long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Datagrams may be lost.
const NEXT_TRY: Duration = Duration::from_secs(2);

/// What the line through a node's memory may rise by behind the warm-up: in an hour that is 16 bytes
/// for each flow. The allocator wanders by a few MiB.
const MAX_RISE_BYTES: f64 = 8e6;
/// What the least of a node's files, and tasks, in a third of the looks may be above that of the
/// third before: one in 10,000 flows that leaves one behind would make 24 in an hour. Beside that,
/// as many connections as flows were open at once may wait for a minute for more of them.
const MAX_RISE: u64 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn flows_at_a_steady_rate_never_fail_and_no_node_grows() {
    let time = soak_time(SHORT);
    let rate_per_s = if time == SHORT {
        SHORT_RATE_PER_S
    } else {
        RATE_PER_S
    };
    let network = Overlay::start().await.unwrap();
    let targets = Targets::start(&network).await;
    let total = rate_per_s * u32::try_from(time.as_secs()).unwrap();
    let mut ticks = interval(Duration::from_secs(1) / rate_per_s);
    let (mut flows, mut looks) = (JoinSet::<Result<()>>::new(), Looks::new(&network));
    for number in 0..total {
        ticks.tick().await;
        if flows.len() == MAX_AT_ONCE {
            flows.join_next().await.unwrap().unwrap().unwrap();
        }
        flows.spawn(targets.flow(number));
        while let Some(ended) = flows.try_join_next() {
            ended.unwrap().unwrap();
        }
        looks.peak = looks.peak.max(flows.len());
        if number % (total / LOOKS) == 0 {
            looks.take(number).await;
        }
    }
    for ended in flows.join_all().await {
        ended.unwrap();
    }
    let took = looks.begun.elapsed();
    looks.print();
    looks.check_rise();
    let rate = f64::from(total) / took.as_secs_f64();
    eprintln!("{rate:.1} flows a second");
    let is_soak = time > SHORT;
    assert!(
        !is_soak || rate > MIN_RATE * f64::from(rate_per_s),
        "the nodes do not keep up"
    );
    until("all flows to be gone", async || {
        let vitals = Vitals::of_all(&network.nodes()).await.ok()?;
        vitals.iter().all(|vitals| vitals.flows == 0).then_some(())
    })
    .await
    .unwrap();
}

/// Where flows go.
struct Targets {
    entrance: SocketAddr,
    streams: SocketAddr,
    datagrams: SocketAddr,
    echoing: JoinHandle<()>,
}

impl Targets {
    async fn start(network: &Overlay) -> Self {
        let streams = network.echo.address();
        let socket = UdpSocket::bind((streams.ip(), 0)).await.unwrap();
        let datagrams = socket.local_addr().unwrap();
        let echoing = tokio::spawn(async move {
            let mut datagram = [0; 2048];
            while let Ok((len, from)) = socket.recv_from(&mut datagram).await {
                // Who asked may be gone.
                let _ = socket.send_to(&datagram[..len], from).await;
            }
        });
        Self {
            entrance: network.entrance().unwrap(),
            streams,
            datagrams,
            echoing,
        }
    }

    /// The flow of this number: every way in turn, and every seventh time datagrams.
    fn flow(&self, number: u32) -> impl Future<Output = Result<()>> + Send + 'static {
        let ways = OverlayWay::all();
        let turn = number as usize;
        let way = ways[turn % ways.len()];
        let (entrance, streams, datagrams) = (self.entrance, self.streams, self.datagrams);
        async move {
            let is_datagrams = turn.is_multiple_of(7) && way.kind != "relay";
            let flow = async {
                if is_datagrams {
                    return trip(entrance, way, datagrams).await;
                }
                let stream = Overlay::open(entrance, way, streams).await?;
                Ok(exchange(stream, number.into(), 1 + turn % 16, PATIENCE).await?)
            };
            let ended = timeout(PATIENCE, flow).await;
            let ended = ended.unwrap_or_else(|_| bail!("takes too long"));
            ended.with_context(|| format!("flow {number}, {way:?}, datagrams: {is_datagrams}"))
        }
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        self.echoing.abort();
    }
}

/// A datagram there and back; one that is lost is sent again.
async fn trip(entrance: SocketAddr, way: OverlayWay, echo: SocketAddr) -> Result<()> {
    let control = TcpStream::connect(entrance).await?;
    let socket = UdpSocket::bind((entrance.ip(), 0)).await?;
    let association = Association::open(control, socket, Some(&way.user())).await?;
    let target = Target::from(echo);
    loop {
        let answer = association.ask(&target, b"to and fro");
        if let Ok(answer) = timeout(NEXT_TRY, answer).await {
            ensure!(answer? == b"to and fro", "another datagram came back");
            return Ok(());
        }
    }
}

/// What the nodes held, look after look.
struct Looks<'n> {
    network: &'n Overlay,
    begun: Instant,
    looks: Vec<Look>,
    /// The most flows at once.
    peak: usize,
}

struct Look {
    at: Duration,
    flows: u32,
    /// In the order of the network's nodes.
    vitals: Vec<Vitals>,
}

impl<'n> Looks<'n> {
    fn new(network: &'n Overlay) -> Self {
        Self {
            network,
            begun: Instant::now(),
            looks: Vec::new(),
            peak: 0,
        }
    }

    async fn take(&mut self, flows: u32) {
        self.looks.push(Look {
            at: self.begun.elapsed(),
            flows,
            vitals: Vitals::of_all(&self.network.nodes()).await.unwrap(),
        });
    }

    /// Every sixth look, and what each node's line rises by.
    fn print(&self) {
        let nodes = self.network.nodes();
        let names: Vec<_> = nodes.iter().map(|node| node.name()).collect();
        eprintln!("resident MiB of {}", names.join(" "));
        let last = self.looks.last().into_iter();
        for look in self.looks.iter().step_by(6).chain(last) {
            let mib = look.vitals.iter().map(|vitals| vitals.resident_bytes >> 20);
            let mib: Vec<_> = mib.map(|mib| format!("{mib:4}")).collect();
            eprintln!(
                "{:5.0} s {:7} flows {}",
                look.at.as_secs_f64(),
                look.flows,
                mib.join("")
            );
        }
        eprintln!("at most {} flows at once", self.peak);
        for (index, name) in names.iter().enumerate() {
            let Rise {
                bytes,
                files,
                tasks,
            } = self.rise(index);
            let last = self.looks.last().map(|look| look.vitals[index]).unwrap();
            eprintln!("{name}: {last}; rise {bytes:.0} bytes, {files} files, {tasks} tasks");
        }
    }

    fn check_rise(&self) {
        let most = MAX_RISE + self.peak as u64;
        for (index, node) in self.network.nodes().iter().enumerate() {
            let rise = self.rise(index);
            assert!(rise.bytes < MAX_RISE_BYTES, "memory of {}", node.name());
            assert!(rise.files < most, "files of {}", node.name());
            assert!(rise.tasks < most, "tasks of {}", node.name());
        }
    }

    fn rise(&self, index: usize) -> Rise {
        let later = self.looks.get(WARM_UP_LOOKS..).unwrap_or_default();
        let points = later.iter().map(|look| {
            let bytes = look.vitals[index].resident_bytes as f64;
            (look.at.as_secs_f64(), bytes)
        });
        let (middle, end) = later.split_at(later.len() / 2);
        let above = |held: fn(&Vitals) -> u64| {
            let least = |looks: &[Look]| looks.iter().map(|look| held(&look.vitals[index])).min();
            least(end)
                .unwrap_or(0)
                .saturating_sub(least(middle).unwrap_or(0))
        };
        Rise {
            bytes: rise(&points.collect::<Vec<_>>()),
            files: above(|vitals| vitals.files),
            tasks: above(|vitals| vitals.tasks),
        }
    }
}

/// By what a node grew behind the warm-up.
struct Rise {
    bytes: f64,
    files: u64,
    tasks: u64,
}

/// What the line of least squares through the points rises by from the first to the last.
fn rise(points: &[(f64, f64)]) -> f64 {
    let mean =
        |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let covariance: f64 = points
        .iter()
        .map(|point| (point.0 - x) * (point.1 - y))
        .sum();
    let variance: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let span =
        points.last().map_or(0.0, |last| last.0) - points.first().map_or(0.0, |first| first.0);
    covariance / variance * span
}

#[test]
fn a_rise_is_that_of_the_line() {
    let line: Vec<_> = (0..10)
        .map(|x| (f64::from(x), f64::from(2 * x + 7)))
        .collect();
    assert!((rise(&line) - 18.0).abs() < 1e-9);
    let flat: Vec<_> = (0..10).map(|x| (f64::from(x), f64::from(x % 2))).collect();
    assert!(rise(&flat).abs() < 0.5);
}
