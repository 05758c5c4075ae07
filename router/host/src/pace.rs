//! How fast a plugin writes beside others: much at once, and after that so much a second. Who wrote
//! more than that waits before its next event, and not with one that was begun.
//!
//! A commit of a mebibyte keeps the disk for some ten milliseconds, in which no other plugin's event
//! becomes durable. At half a mebibyte a second that is less than one in a hundred of them.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// What a plugin writes at once, however slow its pace is: a start, an import, a busy minute.
const BURST_BYTES: u64 = 16 << 20;
/// Who wrote beside nobody owes no more than this, however much that was, once others write as well.
const ALONE: Duration = Duration::from_secs(1);
/// Nobody waits longer for one event.
const LONGEST: Duration = Duration::from_secs(60);

/// What all principals of a plugin wrote, as the time that it is worth.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When the pace has caught up with all of it.
    even: Mutex<Option<Instant>>,
}

impl Pace {
    /// An event wrote so much; `is_shared`: others write as well.
    pub(crate) fn wrote(&self, now: Instant, bytes: usize, bytes_per_s: u32, is_shared: bool) {
        let most = burst(bytes_per_s) + if is_shared { LONGEST } else { ALONE };
        let mut even = self.even.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = even.map_or(now, |even| even.max(now));
        *even = Some((begins + time_of(bytes as u64, bytes_per_s)).min(now + most));
    }

    /// How long the next event waits, if others write as well.
    pub(crate) fn wait(&self, now: Instant, bytes_per_s: u32) -> Option<Duration> {
        let even = *self.even.lock().unwrap_or_else(PoisonError::into_inner);
        let owed = even?.saturating_duration_since(now);
        let wait = owed.checked_sub(burst(bytes_per_s));
        wait.filter(|wait| !wait.is_zero())
    }
}

fn burst(bytes_per_s: u32) -> Duration {
    time_of(BURST_BYTES, bytes_per_s)
}

fn time_of(bytes: u64, bytes_per_s: u32) -> Duration {
    Duration::from_secs(bytes) / bytes_per_s.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;
    /// A mebibyte a second.
    const RATE: u32 = 1 << 20;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn much_is_written_at_once_and_then_so_much_a_second() {
        let (pace, start) = (Pace::default(), Instant::now());
        for _ in 0..16 {
            assert_eq!(pace.wait(start, RATE), None);
            pace.wrote(start, MIB, RATE, true);
        }
        assert_eq!(pace.wait(start, RATE), None);
        pace.wrote(start, 2 * MIB, RATE, true);
        assert_eq!(pace.wait(start, RATE), Some(seconds(2)));
        assert_eq!(pace.wait(start + seconds(1), RATE), Some(seconds(1)));
        assert_eq!(pace.wait(start + seconds(2), RATE), None);
        // What is not written in a second is written later.
        let later = start + seconds(1002);
        for _ in 0..17 {
            assert_eq!(pace.wait(later, RATE), None);
            pace.wrote(later, MIB, RATE, true);
        }
        assert_eq!(pace.wait(later, RATE), Some(seconds(1)));
        assert_eq!(pace.wait(later, 2 * RATE), Some(seconds(9)));
    }

    #[test]
    fn who_wrote_alone_owes_little() {
        let (pace, start) = (Pace::default(), Instant::now());
        for _ in 0..1000 {
            pace.wrote(start, MIB, RATE, false);
        }
        assert_eq!(pace.wait(start, RATE), Some(seconds(1)));
        pace.wrote(start, MIB, RATE, true);
        assert_eq!(pace.wait(start, RATE), Some(seconds(2)));
        for _ in 0..1000 {
            pace.wrote(start, MIB, RATE, true);
        }
        assert_eq!(pace.wait(start, RATE), Some(LONGEST));
        pace.wrote(start, MIB, RATE, false);
        assert_eq!(pace.wait(start, RATE), Some(ALONE));
    }
}
