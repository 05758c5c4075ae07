//! How long what travels between two nodes takes.

use std::{fmt, rc::Rc, time::Duration};

use super::OUTSIDE;
use crate::random::Random;

/// What travels between two nodes takes up to this; draws decide.
const MAX_DELAY_MS: u64 = 100;

#[derive(Default)]
pub(crate) enum Links {
    /// Each journey takes another time.
    #[default]
    Drawn,
    /// Each pair of nodes has a round trip of its own.
    Between { min_ms: u64, max_ms: u64, seed: u64 },
    /// The round trip between two nodes, of which the smaller number comes first.
    By(Rc<dyn Fn(usize, usize) -> Duration>),
}

impl Links {
    /// What a journey takes.
    pub(crate) fn delay_ms(&self, (from, to): (usize, usize), random: &mut Random) -> u64 {
        if from == to {
            return 0;
        }
        let (one, other) = (from.min(to), from.max(to));
        let round_trip_ms = match self {
            Self::Between {
                min_ms,
                max_ms,
                seed,
            } => {
                let pair = ((one as u64) << 32) ^ other as u64;
                let mut random = Random::new(seed.wrapping_add(pair));
                random.of(*min_ms..max_ms.saturating_add(1))
            }
            Self::By(round_trip) if other != OUTSIDE => millis(round_trip(one, other)),
            Self::By(_) | Self::Drawn => return random.of(0..MAX_DELAY_MS + 1),
        };
        // The way back takes what the way there has left.
        let half = round_trip_ms / 2;
        if from == one {
            half
        } else {
            round_trip_ms - half
        }
    }
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drawn => "Drawn",
            Self::Between { .. } => "Between",
            Self::By(_) => "By",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pair_has_a_round_trip_of_its_own() {
        let links = Links::Between {
            min_ms: 21,
            max_ms: 140,
            seed: 7,
        };
        let mut random = Random::new(1);
        let mut round_trip = |a: usize, b: usize| {
            links.delay_ms((a, b), &mut random) + links.delay_ms((b, a), &mut random)
        };
        let pairs = (0..40).flat_map(|a| (0..40).map(move |b| (a, b)));
        let pairs: Vec<_> = pairs.filter(|(a, b)| a < b).collect();
        let mut sum = 0;
        for (a, b) in &pairs {
            let time = round_trip(*a, *b);
            assert_eq!(time, round_trip(*b, *a));
            assert!((21..=140).contains(&time), "{time}");
            sum += time;
        }
        let mean = sum / pairs.len() as u64;
        assert!((75..87).contains(&mean), "{mean}");
        assert_eq!(round_trip(3, 3), 0);
    }

    #[test]
    fn a_function_says_how_far_two_nodes_are() {
        let far = |a: usize, b: usize| Duration::from_millis(10 * a as u64 + b as u64);
        let links = Links::By(Rc::new(far));
        let mut random = Random::new(1);
        assert_eq!(links.delay_ms((1, 3), &mut random), 6);
        assert_eq!(links.delay_ms((3, 1), &mut random), 7);
        assert!(links.delay_ms((3, OUTSIDE), &mut random) <= MAX_DELAY_MS);
    }
}
