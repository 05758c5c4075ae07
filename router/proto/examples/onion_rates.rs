//! Prints how fast cells are made, peeled and opened: GB of cells a second on one core.
//! `cargo run -p wormholes-proto --example onion_rates [HOPS]`

#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "an example measures and prints"
)]

use std::{
    error::Error,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use wormholes_proto::{
    NodeId, Suite,
    onion::{
        CellSize, ClientBuild, ClientOpener, ClientSealer, CreateOutcome, HopDown, HopUp, LastDown,
        LastUp, MAX_HOPS, MessageKind, OnionKeys, PathHop,
    },
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Bytes of cells in each measurement.
const BYTES: usize = 200_000_000;

struct Circuit {
    sealer: ClientSealer,
    opener: ClientOpener,
    hops: Vec<(HopDown, HopUp)>,
    last_down: LastDown,
    last_up: LastUp,
}

#[derive(Default)]
struct Times {
    sealing: Duration,
    peeling: Duration,
    wrapping: Duration,
    opening: Duration,
}

fn main() -> Result<()> {
    let hops = std::env::args().nth(1).map_or(Ok(3), |text| text.parse())?;
    println!("suite               cell   hops  client: seal  open   hop: down  up   (GB/s)");
    for suite in Suite::ALL {
        for size in [CellSize::Small, CellSize::Large] {
            measure(suite, size, hops)?;
        }
    }
    let start = Instant::now();
    let n_builds = 100;
    for seed in 0..n_builds {
        build(Suite::fastest_here(), hops, seed)?;
    }
    let each = start.elapsed().as_secs_f64() * 1e6 / n_builds as f64;
    println!("a build over {hops} hops, all parties and new keys: {each:.0} us");
    Ok(())
}

fn measure(suite: Suite, size: CellSize, n_hops: usize) -> Result<()> {
    let mut circuit = build(suite, n_hops, 1)?;
    let mut cell = vec![0; size.bytes()];
    greet(&mut circuit, &mut cell)?;
    let n_cells = BYTES / n_hops / size.bytes();
    let mut times = Times::default();
    let data = size.max_data_bytes();
    for _ in 0..n_cells {
        let start = Instant::now();
        circuit.sealer.seal(MessageKind::Data, data, &mut cell)?;
        times.sealing += start.elapsed();
        let start = Instant::now();
        for (down, _) in &mut circuit.hops {
            down.peel(&mut cell)?;
        }
        circuit.last_down.open(&mut cell)?;
        times.peeling += start.elapsed();
        let start = Instant::now();
        circuit.last_up.seal(MessageKind::Data, data, &mut cell)?;
        for (_, up) in circuit.hops.iter_mut().rev() {
            up.wrap(&mut cell)?;
        }
        times.wrapping += start.elapsed();
        let start = Instant::now();
        circuit.opener.open(&mut cell)?;
        times.opening += start.elapsed();
    }
    let gb = n_cells as f64 * size.bytes() as f64 / 1e9;
    let client = |time: Duration| gb / time.as_secs_f64();
    let hop = |time: Duration| gb * n_hops as f64 / time.as_secs_f64();
    println!(
        "{suite:<18} {:>6}   {n_hops}             {:5.2} {:5.2}        {:5.2} {:5.2}",
        size.bytes(),
        client(times.sealing),
        client(times.opening),
        hop(times.peeling),
        hop(times.wrapping),
    );
    Ok(())
}

/// The first message of each direction.
fn greet(circuit: &mut Circuit, cell: &mut [u8]) -> Result<()> {
    circuit.sealer.seal(MessageKind::Open, 0, cell)?;
    for (down, _) in &mut circuit.hops {
        down.peel(cell)?;
    }
    circuit.last_down.open(cell)?;
    circuit.last_up.seal(MessageKind::Answer, 0, cell)?;
    for (_, up) in circuit.hops.iter_mut().rev() {
        up.wrap(cell)?;
    }
    circuit.opener.open(cell)?;
    Ok(())
}

fn build(suite: Suite, n_hops: usize, seed: u64) -> Result<Circuit> {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let now = SystemTime::UNIX_EPOCH;
    let mut nodes = Vec::new();
    let mut path = Vec::new();
    for number in 0..n_hops.min(MAX_HOPS) {
        let number = u8::try_from(number)?;
        let id = NodeId::from_bytes([number; 32]);
        let keys = OnionKeys::new(id, &[suite], now, &mut rng)?;
        let key = *keys.published().first().ok_or("no key")?;
        let address = SocketAddr::from(([127, number, 0, 1], 4433));
        path.push(PathHop { id, address, key });
        nodes.push(keys);
    }
    let (client, mut create) = ClientBuild::new(&path, &mut rng)?;
    let mut pending = Vec::new();
    for node in &mut nodes {
        match node.handle_create(now, &create.key_id, &create.slots, &mut rng) {
            CreateOutcome::Forward(forward) => {
                create = forward.create;
                pending.push(forward.pending);
            }
            CreateOutcome::Last { created, circuit } => {
                let mut created = *created;
                let mut hops = Vec::new();
                for pending in pending.into_iter().rev() {
                    let (answer, hop) = pending.handle_created(&created)?;
                    created = answer;
                    hops.push(hop.split());
                }
                hops.reverse();
                let (sealer, opener) = client.handle_created(&created)?.split();
                let (last_down, last_up) = circuit.split();
                return Ok(Circuit {
                    sealer,
                    opener,
                    hops,
                    last_down,
                    last_up,
                });
            }
            CreateOutcome::Stale | CreateOutcome::Drop => return Err("a hop refused".into()),
        }
    }
    Err("no hop was the last".into())
}
