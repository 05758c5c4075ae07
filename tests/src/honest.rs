//! How long honest flows wait while something burdens the node, held against how long the same
//! flows wait without it, in turns, so that whatever else the machine does meets both alike.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{client::socks5_connect, size::is_soak};

/// A picture. Of some bytes only, a trip would be no longer than the handling of any other
/// flow, which may stand before one in a hundred on a machine of two cores.
const TRIP_BYTES: usize = 1 << 20;
/// What a burden may do to the 99th percentile.
const MAX_RATIO: f64 = 1.2;
/// The same where others use the machine too: they wait behind the honest flows, and are let in
/// when the burden makes those wait.
const MAX_RATIO_IN_CI: f64 = 2.0;
/// Turns before their median means something.
const MIN_TURNS: usize = 15;
/// Turns after which a node that seems slow is slow. One that is not passes long before.
const MAX_TURNS: usize = 150;

/// A flow through a SOCKS5 entrance to a server that sends back what it gets.
#[derive(Debug)]
pub struct HonestFlow {
    entrance: SocketAddr,
    server: SocketAddr,
    stream: TcpStream,
}

impl HonestFlow {
    /// Opens it.
    ///
    /// # Errors
    /// When the entrance refuses.
    pub async fn open(entrance: SocketAddr, server: SocketAddr) -> Result<Self> {
        let stream = socks5_connect(entrance, &server.ip().to_string(), server.port()).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            entrance,
            server,
            stream,
        })
    }

    /// Round trips of 1 MiB, one after the other.
    ///
    /// # Errors
    /// When the flow breaks.
    pub async fn trips(&mut self, count: usize) -> Result<Vec<Duration>> {
        let (sent, mut back) = (vec![7; TRIP_BYTES], vec![0; TRIP_BYTES]);
        let (mut reader, mut writer) = self.stream.split();
        let mut trips = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            tokio::try_join!(writer.write_all(&sent), reader.read_exact(&mut back))?;
            trips.push(start.elapsed());
        }
        Ok(trips)
    }

    /// Times to open further flows like this one, one after the other.
    ///
    /// # Errors
    /// When the entrance refuses one.
    pub async fn opens(&self, count: usize) -> Result<Vec<Duration>> {
        let mut opens = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            Self::open(self.entrance, self.server).await?;
            opens.push(start.elapsed());
        }
        Ok(opens)
    }
}

/// Turns without and with a burden, each with the 99th percentile of one kind of wait. What counts
/// is the median of the ratios: what else the machine does comes in bursts, which spoil a turn.
#[derive(Debug)]
pub struct Turns {
    max_ratio: f64,
    turns: Vec<Turn>,
}

/// The 99th percentile of waits without the burden, and with it.
#[derive(Debug)]
struct Turn {
    quiet: Duration,
    burdened: Duration,
}

impl Default for Turns {
    fn default() -> Self {
        Self::within(max_ratio())
    }
}

impl Turns {
    fn within(max_ratio: f64) -> Self {
        Self {
            max_ratio,
            turns: Vec::new(),
        }
    }

    /// Whether another turn shall be taken: until the burden is seen to be borne, or for good to
    /// be too much.
    pub fn go_on(&self) -> bool {
        let borne = self.turns.len() >= MIN_TURNS && self.is_borne();
        !borne && self.turns.len() < MAX_TURNS
    }

    /// Takes the waits of a turn, at least a hundred each.
    pub fn take(&mut self, quiet: &[Duration], burdened: &[Duration]) {
        self.turns.push(Turn {
            quiet: percentile(quiet, 99),
            burdened: percentile(burdened, 99),
        });
    }

    /// What the burden did, in words.
    ///
    /// # Errors
    /// When the 99th percentile grew by more than 20 %; in continuous integration, to the double.
    pub fn check(&self, what: &str) -> Result<String> {
        let quiet: Vec<_> = self.turns.iter().map(|turn| turn.quiet).collect();
        let burdened: Vec<_> = self.turns.iter().map(|turn| turn.burdened).collect();
        let said = format!(
            "{what}: p99 {:?} became {:?}, by {:.2} (medians of {} turns)",
            percentile(&quiet, 50),
            percentile(&burdened, 50),
            self.ratio(),
            self.turns.len(),
        );
        if !self.is_borne() {
            bail!("{said}");
        }
        Ok(said)
    }

    fn is_borne(&self) -> bool {
        self.ratio() <= self.max_ratio
    }

    fn ratio(&self) -> f64 {
        let ratio = |turn: &Turn| turn.burdened.as_secs_f64() / turn.quiet.as_secs_f64();
        let mut ratios: Vec<_> = self.turns.iter().map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied().unwrap_or(f64::MAX)
    }
}

/// What a burden may do here to the 99th percentile.
fn max_ratio() -> f64 {
    if is_soak() {
        MAX_RATIO
    } else {
        MAX_RATIO_IN_CI
    }
}

pub(crate) fn percentile(waits: &[Duration], percent: usize) -> Duration {
    let mut sorted = waits.to_vec();
    sorted.sort_unstable();
    let at = sorted.len() * percent / 100;
    sorted.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    /// Waits with a heavy tail, `slower` times as long.
    fn waits(rng: &mut StdRng, slower: f64) -> Vec<Duration> {
        let draw = |_| {
            let tail = (1.0 - rng.random::<f64>()).powf(-0.4);
            Duration::from_secs_f64(1e-3 * tail * slower)
        };
        (0..200).map(draw).collect()
    }

    fn borne(slower: f64, max_ratio: f64) -> usize {
        let bears = |seed: &u64| {
            let mut rng = StdRng::seed_from_u64(*seed);
            let mut turns = Turns::within(max_ratio);
            while turns.go_on() {
                turns.take(&waits(&mut rng, 1.0), &waits(&mut rng, slower));
            }
            turns.check("drawn").is_ok()
        };
        (0..20).filter(bears).count()
    }

    #[test]
    fn a_burden_that_is_borne_passes_and_one_that_is_not_fails() {
        assert_eq!(borne(1.0, MAX_RATIO), 20);
        assert_eq!(borne(2.0, MAX_RATIO), 0);
        assert_eq!(borne(1.5, MAX_RATIO_IN_CI), 20);
        assert_eq!(borne(3.0, MAX_RATIO_IN_CI), 0);
    }
}
