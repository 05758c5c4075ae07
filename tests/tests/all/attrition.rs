//! Relays, hops and exits that are killed and come back, over and over, while flows pass over them.
//!
//! Each flow brings all its bytes back or ends with an error in time; one that fails is explained
//! by a kill, and those over nodes that live never fail. In the end nothing is left of any of them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::{task::JoinSet, time::timeout};
use wormholes_tests::{
    Broken, Daemon, Overlay, OverlayWay, Vitals, exchange, is_soak, soak_rounds, until,
    until_within,
};

/// Some ten thousand in a soak.
const FLOWS: usize = 350;
/// Flows at once in a soak.
const WORKERS: usize = 96;
/// Flows at once in continuous integration, where all of them begin on two slow cores: a tunnel
/// that does not open within 10 s there would be no fault.
const WORKERS_IN_CI: usize = 32;
/// A tunnel may take 10 s to open, a look for newer records as long, and then it is tried again.
const OPEN_TIME_OUT: Duration = Duration::from_secs(40);
/// A connection between nodes on which nothing comes is lost after this.
const SILENCE: Duration = Duration::from_secs(15);
/// For all else that a flow does, on a busy machine.
const GRACE: Duration = Duration::from_secs(3);
/// Who notices a death may die just before it tells the next one: three in a row are allowed for, and
/// the rest is for a busy machine.
const TRIP_TIME_OUT: Duration = Duration::from_secs(60);
/// A node that came back is found again within 10 s, and by its relay within 30 s.
const FOUND_AGAIN: Duration = Duration::from_secs(45);
/// Connections between nodes that wait for a flow are closed after a minute, circuits after 90 s.
const SETTLE: Duration = Duration::from_secs(200);
/// What the allocator keeps of a load, and does not of the next one.
const MAX_GROWTH_BYTES: u64 = 16 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn flows_over_nodes_that_die_end_in_time_and_nothing_is_left_of_them() {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut network = Overlay::start().await.unwrap();
    let warm = Load::start(&network, 2 * at_once(), seed).end().await;
    assert!(warm.iter().all(|flow| flow.error.is_none()), "{warm:#?}");
    let before = at_rest(&network).await;

    let load = Load::start(&network, soak_rounds(FLOWS), seed.wrapping_add(1));
    let kills = kill_and_restart(&mut network.mortal, &load, seed).await;
    let flows = load.end().await;
    report(&flows, &kills);
    for flow in flows.iter().filter(|flow| flow.error.is_some()) {
        let explained = kills.iter().any(|kill| kill.explains(flow));
        assert!(explained, "no kill explains {flow:?}");
    }
    let failed = flows.iter().filter(|flow| flow.error.is_some()).count();
    assert!(failed > 0 && failed < flows.len(), "{failed} failed");
    nothing_is_left(&network, &before).await;
}

fn at_once() -> usize {
    if is_soak() { WORKERS } else { WORKERS_IN_CI }
}

/// Flows, one after the other, at each of some workers.
struct Load {
    ended: Arc<AtomicUsize>,
    flows: usize,
    workers: JoinSet<Vec<Flow>>,
}

/// A flow that ended.
#[derive(Debug)]
struct Flow {
    way: OverlayWay,
    begun: Instant,
    ended: Instant,
    error: Option<String>,
}

/// A node that was away.
struct Kill {
    node: String,
    at: Instant,
    back: Instant,
}

impl Load {
    fn start(network: &Overlay, flows: usize, seed: u64) -> Self {
        let (entrance, echo) = (network.entrance().unwrap(), network.echo.address());
        let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut workers = JoinSet::new();
        for _ in 0..at_once() {
            let (begun, ended) = (Arc::clone(&begun), Arc::clone(&ended));
            workers.spawn(async move {
                let mut done = Vec::new();
                loop {
                    let number = begun.fetch_add(1, Relaxed);
                    if number >= flows {
                        return done;
                    }
                    done.push(Flow::run(entrance, echo, number, seed).await);
                    ended.fetch_add(1, Relaxed);
                }
            });
        }
        Self {
            ended,
            flows,
            workers,
        }
    }

    fn ended(&self) -> usize {
        self.ended.load(Relaxed)
    }

    /// Waits until so many more flows have ended, or all.
    async fn goes_on(&self, more: usize) {
        let enough = (self.ended() + more).min(self.flows);
        until_within(OPEN_TIME_OUT, "flows to end", async || {
            (self.ended() >= enough).then_some(())
        })
        .await
        .unwrap();
    }

    async fn end(self) -> Vec<Flow> {
        let flows = self.workers.join_all().await;
        flows.into_iter().flatten().collect()
    }
}

impl Flow {
    /// Moves 40 KiB to 2 MiB; fails the test when it neither does nor ends with an error in time.
    async fn run(entrance: SocketAddr, echo: SocketAddr, number: usize, seed: u64) -> Self {
        let ways = OverlayWay::all();
        let way = ways[number % ways.len()];
        let seed = seed.wrapping_add(number as u64);
        let n_pieces = ChaCha8Rng::seed_from_u64(seed).random_range(10..500);
        let begun = Instant::now();
        let opened = timeout(OPEN_TIME_OUT, Overlay::open(entrance, way, echo)).await;
        let opened = opened.unwrap_or_else(|_| panic!("{way:?} hangs while it opens"));
        let error = match opened {
            Err(error) => Some(error.to_string()),
            Ok(stream) => match exchange(stream, seed, n_pieces, TRIP_TIME_OUT).await {
                Ok(()) => None,
                Err(Broken::Cut(error)) => Some(error.to_string()),
                Err(broken) => panic!("{way:?} {broken}"),
            },
        };
        Self {
            way,
            begun,
            ended: Instant::now(),
            error,
        }
    }

    fn took(&self) -> Duration {
        self.ended.duration_since(self.begun)
    }
}

impl Kill {
    fn explains(&self, flow: &Flow) -> bool {
        let in_its_time = self.at <= flow.ended && flow.begun <= self.back + FOUND_AGAIN;
        in_its_time && flow.way.may_pass(&self.node)
    }
}

/// One node after the other is killed, stays away while some flows end, and comes back.
async fn kill_and_restart(mortal: &mut [Daemon], load: &Load, seed: u64) -> Vec<Kill> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut kills = Vec::new();
    while load.ended() < load.flows {
        load.goes_on(random.random_range(1..15)).await;
        let node = &mut mortal[random.random_range(0..mortal.len())];
        let at = Instant::now();
        node.kill().unwrap();
        load.goes_on(random.random_range(0..10)).await;
        node.restart().await.unwrap();
        kills.push(Kill {
            node: node.name().to_owned(),
            at,
            back: Instant::now(),
        });
    }
    kills
}

fn report(flows: &[Flow], kills: &[Kill]) {
    let mut killed: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for kill in kills {
        killed.entry(&kill.node).or_default().0 += 1;
    }
    let failed: Vec<_> = flows.iter().filter(|flow| flow.error.is_some()).collect();
    for flow in &failed {
        let last = kills.iter().rfind(|kill| kill.explains(flow));
        if let Some(last) = last {
            killed.entry(&last.node).or_default().1 += 1;
        }
    }
    eprintln!("{} flows, {} failed", flows.len(), failed.len());
    let longer = |silences: u32| {
        let limit = silences * SILENCE + GRACE;
        flows.iter().filter(|flow| flow.took() > limit).count()
    };
    let longest = flows.iter().map(Flow::took).max().unwrap_or_default();
    eprintln!(
        "{} flows lasted longer than one silence, {} than two, {} than three; the longest {longest:?}",
        longer(1),
        longer(2),
        longer(3)
    );
    for (node, (kills, failed)) in killed {
        eprintln!(
            "{node}: killed {kills} times, the last kill before the end of {failed} that failed"
        );
    }
}

/// What the nodes that live hold when no flow is open.
async fn at_rest(network: &Overlay) -> Vec<Vitals> {
    until("all flows to be gone", async || {
        let vitals = Vitals::of_all(&network.living()).await.ok()?;
        vitals
            .iter()
            .all(|vitals| vitals.flows == 0)
            .then_some(vitals)
    })
    .await
    .unwrap()
}

async fn nothing_is_left(network: &Overlay, before: &[Vitals]) {
    let living = network.living();
    let begun = Instant::now();
    let is_gone = |(now, before): (&Vitals, &Vitals)| {
        now.flows == 0
            && now.circuits <= before.circuits
            && now.files <= before.files
            && now.tasks <= before.tasks
            && now.resident_bytes <= before.resident_bytes + MAX_GROWTH_BYTES
    };
    let mut now = Vec::new();
    let gone = until_within(
        SETTLE,
        "files, tasks and memory to be given back",
        async || {
            now = Vitals::of_all(&living).await.ok()?;
            now.iter().zip(before).all(is_gone).then_some(())
        },
    )
    .await;
    for ((node, before), now) in living.iter().zip(before).zip(&now) {
        eprintln!("{}: before {before}; after {now}", node.name());
    }
    eprintln!("given back after {:?}", begun.elapsed());
    gone.unwrap();
}
