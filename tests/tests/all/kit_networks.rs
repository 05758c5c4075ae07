//! Networks of many nodes in the kit: the same by the same seed, and fast enough for simulations.

use std::time::{Duration, Instant};

use serde_json::json;
use wormholes_plugin::{
    Address, Caller, Cell, Context, Error, InMemory, Letter, Map, Plugin, Principal, Reply,
    Request, Result, json,
};
use wormholes_plugin_kit::{Counts, Drive, Random, World};
use wormholes_tests::{is_soak, soak_rounds};

const MANIFEST: &str = "
    [plugin]
    name = 'asker'
    [messages]
    protocols = ['echo']
";
const NODE: Principal = Principal::Node;
/// Whom each node knows.
const PEERS: Map<u64, [u8; 32], InMemory> = Map::scratch("peers");
const N_PEERS: u8 = 8;
const ANSWERED: Cell<u64, InMemory> = Cell::scratch("answered");
const UNANSWERED: Cell<u64, InMemory> = Cell::scratch("unanswered");
const PATIENCE: Duration = Duration::from_secs(1);
const BODY: [u8; 16] = [7; 16];

/// Asks one of its peers again and again, and answers who asks.
#[derive(Default)]
struct Asker;

fn rest(cx: &mut Context) -> Result<()> {
    let [more] = cx.random::<1>();
    let time = Duration::from_millis(500 + 4 * u64::from(more));
    cx.set_volatile_timer("ask", time, &[])
}

impl Plugin for Asker {
    fn request(&mut self, cx: &mut Context, request: Request) -> Result<Reply> {
        if let Caller::Plugin { .. } = request.caller {
            return Ok(Reply::Done(request.body));
        }
        if request.name == "count" {
            let count = |cell: Cell<u64, InMemory>| cell.get().map(Option::unwrap_or_default);
            return json(&[count(ANSWERED)?, count(UNANSWERED)?]).map(Reply::Done);
        }
        let peers: Vec<[u8; 32]> = request.argument("peers")?;
        for (number, peer) in (0..).zip(&peers) {
            PEERS.set(&number, peer)?;
        }
        rest(cx)?;
        Reply::done(&())
    }

    fn timer(&mut self, cx: &mut Context, _: &str, _: &[u8]) -> Result<()> {
        let [number] = cx.random::<1>();
        let peer = PEERS.get(&u64::from(number % N_PEERS))?;
        let peer = peer.ok_or_else(|| Error::failed("nobody is known"))?;
        let to = Address::node(cx, peer);
        Letter::new(to, "echo", BODY).ask(cx, PATIENCE)?;
        rest(cx)
    }

    fn answer(&mut self, _: &mut Context, _: u64, answer: Result<Vec<u8>>) -> Result<()> {
        let cell = match answer {
            Ok(_) => ANSWERED,
            Err(_) => UNANSWERED,
        };
        cell.set(&(cell.get()?.unwrap_or_default() + 1))
    }
}

/// Nodes that know each other, as a seed decides.
fn network(seed: u64, nodes: usize) -> World<Asker> {
    let mut world = World::new(seed, MANIFEST);
    world.latency(Duration::from_millis(20), Duration::from_millis(140));
    for _ in 1..nodes {
        world.add_node();
    }
    let ids: Vec<[u8; 32]> = (0..nodes).map(|number| world.at(number).id()).collect();
    let mut random = Random::new(seed);
    for number in 0..nodes {
        let peers = (0..N_PEERS).map(|_| *random.pick(&ids).unwrap());
        let peers: Vec<[u8; 32]> = peers.collect();
        let mut at = world.at(number);
        at.request(&NODE, "meet", json!({ "peers": peers }))
            .unwrap();
    }
    world
}

/// Lets so many events happen, and some more; what was done.
fn run(world: &mut World<Asker>, events: usize) -> Counts {
    let begun = world.counts();
    loop {
        world.pass(Duration::from_secs(1));
        let done = world.counts().since(begun);
        if done.events >= events as u64 {
            return done;
        }
    }
}

/// How many questions of a node were answered, and how many were not.
fn counted(world: &mut World<Asker>, number: usize) -> [u64; 2] {
    let counted = world.at(number).request(&NODE, "count", json!({}));
    serde_json::from_value(counted.unwrap()).unwrap()
}

#[test]
fn a_seed_decides_all_of_a_network() {
    let done = |seed: u64| {
        let mut world = network(seed, 500);
        world.lossy(5);
        let before = run(&mut world, 5000);
        let gone = world.stop_percent(50);
        let after = run(&mut world, 5000);
        for number in &gone[..gone.len() / 2] {
            world.at(*number).start_again();
        }
        (before, gone, after, run(&mut world, 1000), world.trace())
    };
    let first = done(1);
    assert_eq!(first, done(1));
    assert_ne!(first.4, done(2).4);
}

/// What is in memory alone stays there.
#[test]
fn questions_of_a_network_commit_nothing() {
    let mut world = network(3, 100);
    let done = run(&mut world, 3000);
    assert_eq!((done.commits, done.posts, done.messages), (0, 0, 0));
    assert_eq!(done.ask_bytes, BODY.len() as u64 * done.asks);
    assert_eq!(done.answer_bytes, BODY.len() as u64 * done.answers);
    // A timer, a request and an answer each; some are on their way.
    assert!(done.asks * 3 <= done.events + 100 && done.events <= done.asks * 3 + 100);
    let gone = world.stop_percent(50);
    let asks = |world: &mut World<Asker>| -> Vec<u64> {
        (0..100).map(|at| world.at(at).counts().asks).collect()
    };
    let before = asks(&mut world);
    world.pass(Duration::from_secs(20));
    let after = asks(&mut world);
    for (number, (before, after)) in before.iter().zip(&after).enumerate() {
        assert_eq!(before == after, gone.contains(&number), "node {number}");
    }
    let left = (0..100).filter(|number| !gone.contains(number));
    let left: Vec<usize> = left.collect();
    let told: Vec<_> = left.iter().map(|at| counted(&mut world, *at)).collect();
    let unanswered: u64 = told.iter().map(|[_, unanswered]| unanswered).sum();
    assert!(unanswered > 100, "{unanswered} of half of the questions");
}

#[test]
fn a_large_network_goes_by_fast() {
    let nodes = if is_soak() { 10_000 } else { 500 };
    let start = Instant::now();
    let mut world = network(7, nodes);
    let built = start.elapsed();
    let start = Instant::now();
    let done = run(&mut world, soak_rounds(35_000));
    let time = start.elapsed();
    let rate = done.events as f64 / time.as_secs_f64();
    eprintln!("{nodes} nodes in {built:.1?}; {done:?} in {time:.1?}: {rate:.0} events a second");
    // Simulations of ten minutes have millions of events.
    let least = if is_soak() { 5000.0 } else { 500.0 };
    assert!(rate > least, "{rate:.0} events a second");
}
