//! What a burden does to waits, in rounds whose number is fixed before the first. In each the burden is
//! away and then there, so that whatever else the machine does, and however it drifts, meets both alike.

use std::{fmt, time::Duration};

use crate::{honest::percentile, size::is_soak};

/// How far waits may grow.
const MAX_RATIO: f64 = 1.2;
/// In continuous integration, where the percentile is the longest of few waits, on two processors that
/// others use as well: for processors, and for a disk that the burden writes to.
const MAX_RATIO_IN_CI: f64 = 3.0;
const MAX_RATIO_OF_COMMITS_IN_CI: f64 = 6.0;

/// Waits of one kind. The 99th percentile of all waits of a round beside the burden is held against that
/// of all its waits without it, and what counts is the median of these ratios over all rounds: what else
/// the machine does comes in bursts, which spoil some rounds and would rule the tail of all waits
/// together. Where a round has no hundred waits, its percentile is the longest of them.
#[derive(Debug)]
pub struct Rounds {
    max_ratio: f64,
    rounds: Vec<Round>,
}

#[derive(Debug)]
struct Round {
    quiet: Vec<Duration>,
    burdened: Vec<Duration>,
}

impl Rounds {
    /// Of waits for nothing but processors.
    pub fn of_flows() -> Self {
        Self::sized(MAX_RATIO_IN_CI)
    }

    /// Of waits for a disk that the burden writes to, too.
    pub fn of_commits() -> Self {
        Self::sized(MAX_RATIO_OF_COMMITS_IN_CI)
    }

    fn sized(in_ci: f64) -> Self {
        Self::within(if is_soak() { MAX_RATIO } else { in_ci })
    }

    fn within(max_ratio: f64) -> Self {
        Self {
            max_ratio,
            rounds: Vec::new(),
        }
    }

    /// Takes what was waited in a round, without the burden and with it.
    pub fn take(&mut self, quiet: Vec<Duration>, burdened: Vec<Duration>) {
        self.rounds.push(Round { quiet, burdened });
    }

    /// Whether the waits grew by no more than they may.
    pub fn are_borne(&self) -> bool {
        self.median() <= self.max_ratio
    }

    fn median(&self) -> f64 {
        let mut ratios = self.ratios();
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied().unwrap_or(f64::MAX)
    }

    fn ratios(&self) -> Vec<f64> {
        self.rounds.iter().map(Round::ratio).collect()
    }

    /// The 99th percentile of all rounds together.
    fn p99(&self, waits: impl Fn(&Round) -> &[Duration]) -> Duration {
        let all: Vec<_> = self.rounds.iter().flat_map(&waits).copied().collect();
        percentile(&all, 99)
    }
}

impl Round {
    fn ratio(&self) -> f64 {
        let [quiet, burdened] = [&self.quiet, &self.burdened].map(|waits| percentile(waits, 99));
        burdened.as_secs_f64() / quiet.as_secs_f64()
    }
}

impl fmt::Display for Rounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quiet = self.p99(|round| &round.quiet);
        let burdened = self.p99(|round| &round.burdened);
        write!(
            f,
            "by {:.2} of at most {:.1}: ",
            self.median(),
            self.max_ratio
        )?;
        for ratio in self.ratios() {
            write!(f, "{ratio:.2} ")?;
        }
        write!(f, "in rounds; p99 of all {quiet:?} became {burdened:?}")
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn what_most_rounds_show_counts_however_the_machine_drifts() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut waits = |slower: f64| {
            let draw = |_| Duration::from_secs_f64(rng.random_range(1e-3_f64..1.1e-3) * slower);
            (0..100).map(draw).collect::<Vec<_>>()
        };
        let mut borne = |slower: f64, rounds_of_that: u32| {
            let mut rounds = Rounds::within(1.2);
            for round in 0..11 {
                let drift = f64::from(1 + round);
                let burden = if round < rounds_of_that { slower } else { 1.0 };
                rounds.take(waits(drift), waits(drift * burden));
            }
            rounds.are_borne()
        };
        assert!(borne(1.0, 11) && borne(50.0, 5));
        assert!(!borne(50.0, 6) && !borne(1.4, 11));
        assert!(!Rounds::within(1.2).are_borne(), "nothing was measured");
    }
}
