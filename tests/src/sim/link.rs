//! What a link does to messages.

use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha20Rng;

/// What a link does to each message, in one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conditions {
    /// The least time on the way.
    pub delay: Duration,
    /// Up to so much more, drawn for each message: later ones overtake earlier ones.
    pub jitter: Duration,
    /// Messages of a thousand that are lost.
    pub loss_per_mille: u32,
    /// Messages of a thousand that arrive twice.
    pub duplicate_per_mille: u32,
    /// Keeps the order of sending, as a stream does.
    pub is_ordered: bool,
}

impl Conditions {
    /// Nothing lost, nothing out of order: what a stream is to those who use it.
    pub fn stream(delay: Duration) -> Self {
        Self {
            delay,
            jitter: Duration::ZERO,
            loss_per_mille: 0,
            duplicate_per_mille: 0,
            is_ordered: true,
        }
    }

    /// Loses, doubles and reorders a good part of what it is given.
    pub fn rough() -> Self {
        Self {
            delay: Duration::from_millis(20),
            jitter: Duration::from_millis(400),
            loss_per_mille: 300,
            duplicate_per_mille: 200,
            is_ordered: false,
        }
    }

    /// How late each copy of one message arrives: none when it is lost.
    pub(super) fn delays(&self, rng: &mut ChaCha20Rng) -> Vec<Duration> {
        let per_mille = |rng: &mut ChaCha20Rng, part| rng.random_range(0..1000) < part;
        if per_mille(rng, self.loss_per_mille) {
            return Vec::new();
        }
        let n_copies = if per_mille(rng, self.duplicate_per_mille) {
            2
        } else {
            1
        };
        (0..n_copies)
            .map(|_| self.delay + rng.random_range(Duration::ZERO..=self.jitter))
            .collect()
    }
}
