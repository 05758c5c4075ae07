//! Whether the other end of a link still shows signs of life. A path that dies tells nobody: what
//! is sent on it is only never answered.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::KEEP_ALIVE;

/// Signs of life come within so many round trips: lost packets are sent again meanwhile.
const PATIENCE_ROUND_TRIPS: u32 = 3;
/// Bounds of the same: a busy node is not gone, and the next step of a plan shall have its turn
/// within two seconds; unless the path is too long for that.
const MIN_PATIENCE: Duration = Duration::from_secs(1);
const MAX_USUAL_PATIENCE: Duration = Duration::from_millis(1500);
/// What a sign of life takes at least on a long path: so many of the shortest round trip that it
/// ever took, since an outage inflates those that are measured during it.
const LEAST_ROUND_TRIPS: u32 = 2;
const MAX_PATIENCE: Duration = Duration::from_secs(5);
/// The least through Tor: all connections of a link share a circuit of six relays, where a sign of life
/// comes behind whatever bulk is on its way.
const TOR_PATIENCE: Duration = Duration::from_secs(15);
/// Stands for a link that is not silent.
const NEVER: u64 = u64::MAX;

/// What is known of the other end's life.
#[derive(Debug)]
pub(super) struct Pulse {
    /// What a sign of life may take, whatever the round trips.
    least: Duration,
    /// How much had arrived when the other end fell silent: as soon as it is more, it is back.
    silent_at: AtomicU64,
    fell_silent: Notify,
    /// The shortest round trip that was seen, in microseconds.
    shortest_us: AtomicU64,
    /// How much had arrived, and since when it is no more.
    quiet: Mutex<(u64, Instant)>,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self::with_least(MIN_PATIENCE)
    }

    /// Of a link through Tor.
    pub(super) fn through_tor() -> Self {
        Self::with_least(TOR_PATIENCE)
    }

    fn with_least(least: Duration) -> Self {
        Self {
            least,
            silent_at: AtomicU64::new(NEVER),
            fell_silent: Notify::new(),
            shortest_us: AtomicU64::new(u64::MAX),
            quiet: Mutex::new((0, Instant::now())),
        }
    }

    /// Nothing is to be expected of the other end; `arrived` is how much it ever said.
    pub(super) fn fall_silent(&self, arrived: u64) {
        self.silent_at.store(arrived, Relaxed);
        self.fell_silent.notify_waiters();
    }

    /// Whether nothing is to be expected of it.
    pub(super) fn is_silent(&self, arrived: impl FnOnce() -> u64) -> bool {
        let silent_at = self.silent_at.load(Relaxed);
        silent_at != NEVER && silent_at == arrived()
    }

    /// Ends when it falls silent.
    pub(super) async fn silenced(&self, arrived: impl Fn() -> u64) {
        loop {
            let mut fell_silent = std::pin::pin!(self.fell_silent.notified());
            fell_silent.as_mut().enable();
            if self.is_silent(&arrived) {
                return;
            }
            fell_silent.await;
        }
    }

    /// Whether even what keeps a link alive has not come for too long.
    pub(super) fn is_quiet(&self, now: Instant, arrived: u64, round_trip: Duration) -> bool {
        let mut quiet = self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        if quiet.0 != arrived {
            *quiet = (arrived, now);
        }
        now.duration_since(quiet.1) > KEEP_ALIVE + MIN_PATIENCE + self.patience(round_trip)
    }

    /// Waits as long as a sign of life may take. What is waited for may be done long before, so
    /// that nothing is spent on it at first; then `ask` may ask for one.
    pub(super) async fn wait(&self, round_trip: Duration, ask: impl FnOnce()) {
        let patience = self.patience(round_trip);
        tokio::time::sleep(patience / 8).await;
        ask();
        tokio::time::sleep(patience * 7 / 8).await;
    }

    fn patience(&self, round_trip: Duration) -> Duration {
        let usual = (round_trip * PATIENCE_ROUND_TRIPS).clamp(MIN_PATIENCE, MAX_USUAL_PATIENCE);
        let least = self.shortest(round_trip) * LEAST_ROUND_TRIPS;
        usual.max(least.min(MAX_PATIENCE)).max(self.least)
    }

    /// The shortest round trip so far, this one included; zero is none that was measured.
    fn shortest(&self, round_trip: Duration) -> Duration {
        let us = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
        if us == 0 {
            return Duration::ZERO;
        }
        Duration::from_micros(self.shortest_us.fetch_min(us, Relaxed).min(us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_fell_silent_is_back_with_the_first_word() {
        let pulse = Pulse::new();
        assert!(!pulse.is_silent(|| 7));
        pulse.fall_silent(7);
        assert!(pulse.is_silent(|| 7));
        pulse.silenced(|| 7).await;
        assert!(!pulse.is_silent(|| 8));
    }

    #[tokio::test]
    async fn whoever_waits_hears_of_the_silence() {
        let pulse = Pulse::new();
        tokio::join!(pulse.silenced(|| 7), async { pulse.fall_silent(7) });
    }

    #[test]
    fn what_keeps_a_link_alive_is_missed_after_a_while() {
        let pulse = Pulse::new();
        let (start, round_trip) = (Instant::now(), Duration::from_millis(20));
        let quiet = |arrived, s| {
            let now = start + Duration::from_secs(s);
            pulse.is_quiet(now, arrived, round_trip)
        };
        assert!(!quiet(1, 0) && !quiet(1, 6));
        assert!(quiet(1, 8));
        assert!(!quiet(2, 8), "a word came");
    }

    #[test]
    fn patience_follows_the_round_trip_within_bounds() {
        let expected = [
            (1, 1000),
            (400, 1200),
            (700, 1500),
            (2000, 4000),
            (9000, 5000),
        ];
        for (round_trip, expected) in expected {
            let expected = Duration::from_millis(expected);
            let pulse = Pulse::new();
            assert_eq!(pulse.patience(Duration::from_millis(round_trip)), expected);
        }
    }

    #[test]
    fn through_tor_a_sign_of_life_may_come_behind_bulk() {
        for round_trip in [0, 300, 9000] {
            let round_trip = Duration::from_millis(round_trip);
            assert_eq!(Pulse::through_tor().patience(round_trip), TOR_PATIENCE);
        }
    }

    #[test]
    fn an_outage_makes_nobody_more_patient() {
        let pulse = Pulse::new();
        for round_trip in [0, 20, 3700] {
            let patience = pulse.patience(Duration::from_millis(round_trip));
            assert!(patience <= MAX_USUAL_PATIENCE, "{patience:?}");
        }
    }
}
