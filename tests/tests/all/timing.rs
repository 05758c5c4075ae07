//! Who watches both ends of onions, and tells flows apart by when what their programs send passes.
//! What comes back is as the target sends it: no jitter here could hide that on the way.
//!
//! The watcher has the times at which each program wrote and at which bytes came to each target, and
//! says of each target's flow which program's it is: the one whose times go together best.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{join_all, try_join_all};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Mutex,
    time::{interval, timeout},
};
use wormholes_tests::{LIMIT, TestNetwork, socks5_connect_as};

const FLOWS: usize = 12;
/// What each program writes, at times of its own.
const PIECES: usize = 60;
const MAX_GAP_MS: u64 = 100;
/// The watcher counts bytes in spans of time, and allows for the way that they take.
const SPAN: Duration = Duration::from_millis(20);
const MAX_LAG: usize = 30;

/// When so many bytes passed.
type Seen = Vec<(Instant, usize)>;

#[tokio::test(flavor = "multi_thread")]
async fn jitter_hides_by_time_which_program_sends_what() {
    let script = r#"fn route(c) {
        if c.user == "plain" { onion(3) } else { onion(3).jitter("exp 300ms") }
    }"#;
    let network = TestNetwork::start(script).await.unwrap();
    let (plain, hidden) = tokio::join!(
        told_apart(&network, "plain"),
        told_apart(&network, "hidden")
    );
    eprintln!("of {FLOWS} flows, {plain} were told apart without jitter, {hidden} with it");
    assert!(plain >= FLOWS - 1, "the watcher tells {plain} of {FLOWS}");
    // Who guesses is right once or twice; half of them takes some thousand runs.
    assert!(hidden < FLOWS / 2, "the watcher tells {hidden} of {FLOWS}");
}

/// How many flows of `user` the watcher gives to the right program.
async fn told_apart(network: &TestNetwork, user: &str) -> usize {
    let entrance = network.client.entrance("socks5").unwrap();
    let target = TcpListener::bind(("127.50.0.1", 0)).await.unwrap();
    let port = target.local_addr().unwrap().port();
    let opening = (0..FLOWS).map(|_| socks5_connect_as(user, entrance, "127.50.0.1", port));
    let programs = try_join_all(opening).await.unwrap();
    let arrived = Arc::new(Mutex::new(vec![Seen::new(); FLOWS]));
    let sending = programs.into_iter().enumerate().map(send);
    let receiving = (0..FLOWS).map(|_| receive(&target, &arrived));
    let (sent, _) = tokio::join!(join_all(sending), join_all(receiving));
    let arrived = arrived.lock().await;
    let start = sent.iter().flatten().map(|(at, _)| *at).min().unwrap();
    let sent: Vec<_> = sent.iter().map(|seen| spans(start, seen)).collect();
    let guessed = arrived.iter().enumerate().filter(|(flow, seen)| {
        let seen = spans(start, seen);
        let alike = sent.iter().map(|sent| best_correlation(sent, &seen));
        let best = alike.enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
        best.unwrap().0 == *flow
    });
    guessed.count()
}

/// Tells the target which flow it is, then writes at random times.
async fn send((flow, mut program): (usize, TcpStream)) -> Seen {
    program.set_nodelay(true).unwrap();
    program.write_all(&[flow as u8]).await.unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(flow as u64);
    let mut at = tokio::time::Instant::now();
    let mut clock = interval(LIMIT);
    let mut seen = Seen::new();
    for _ in 0..PIECES {
        at += Duration::from_millis(rng.random_range(0..MAX_GAP_MS));
        clock.reset_at(at);
        clock.tick().await;
        let piece = vec![7; rng.random_range(1..400)];
        program.write_all(&piece).await.unwrap();
        seen.push((Instant::now(), piece.len()));
    }
    program.shutdown().await.unwrap();
    seen
}

async fn receive(target: &TcpListener, arrived: &Mutex<Vec<Seen>>) {
    let (mut stream, _) = timeout(LIMIT, target.accept()).await.unwrap().unwrap();
    let flow = usize::from(stream.read_u8().await.unwrap());
    let mut buffer = vec![0; 1 << 16];
    let mut seen = Seen::new();
    loop {
        match stream.read(&mut buffer).await.unwrap() {
            0 => break,
            read => seen.push((Instant::now(), read)),
        }
    }
    arrived.lock().await[flow] = seen;
}

/// Bytes in each span since `start`.
fn spans(start: Instant, seen: &Seen) -> Vec<f64> {
    let span = |at: Instant| (at - start).as_millis() / SPAN.as_millis();
    let last = seen.iter().map(|(at, _)| span(*at)).max().unwrap_or(0);
    let mut spans = vec![0.0; usize::try_from(last).unwrap() + 1];
    for (at, bytes) in seen {
        spans[usize::try_from(span(*at)).unwrap()] += *bytes as f64;
    }
    spans
}

/// Pearson's, at the lag that suits best.
fn best_correlation(sent: &[f64], seen: &[f64]) -> f64 {
    let at = |lag: usize| {
        let n_spans = sent.len().max(seen.len());
        let of = |spans: &[f64], at: usize| spans.get(at).copied().unwrap_or(0.0);
        let pairs: Vec<_> = (0..n_spans)
            .map(|span| (of(sent, span), of(seen, span + lag)))
            .collect();
        correlation(&pairs)
    };
    (0..MAX_LAG).map(at).fold(f64::MIN, f64::max)
}

fn correlation(pairs: &[(f64, f64)]) -> f64 {
    let n = pairs.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>() / n;
    let (mean_a, mean_b) = (mean(|pair| pair.0), mean(|pair| pair.1));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in pairs {
        ab += (a - mean_a) * (b - mean_b);
        aa += (a - mean_a).powi(2);
        bb += (b - mean_b).powi(2);
    }
    ab / (aa * bb).sqrt().max(f64::MIN_POSITIVE)
}
