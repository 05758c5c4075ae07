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

/// What all principals of a plugin wrote, and the pace has not caught up with.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    owed: Mutex<Option<Owed>>,
}

#[derive(Debug, Clone, Copy)]
struct Owed {
    bytes: u64,
    at: Instant,
}

impl Pace {
    /// An event wrote so much; `is_shared`: others write as well.
    pub(crate) fn wrote(&self, now: Instant, bytes: usize, bytes_per_s: u32, is_shared: bool) {
        let longest = if is_shared { LONGEST } else { ALONE };
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        let left = owed.map_or(0, |owed| owed.left(now, bytes_per_s));
        let bytes = left.saturating_add(bytes as u64);
        *owed = Some(Owed {
            bytes: bytes.min(BURST_BYTES + bytes_in(longest, bytes_per_s)),
            at: now,
        });
    }

    /// How long the next event waits, if others write as well.
    pub(crate) fn wait(&self, now: Instant, bytes_per_s: u32) -> Option<Duration> {
        let owed = *self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        let beyond = owed?.left(now, bytes_per_s).saturating_sub(BURST_BYTES);
        // A pace that was made slower has nobody pay longer for what was written before.
        let wait = (Duration::from_secs(beyond) / bytes_per_s.max(1)).min(LONGEST);
        (!wait.is_zero()).then_some(wait)
    }
}

impl Owed {
    fn left(self, now: Instant, bytes_per_s: u32) -> u64 {
        let paid = bytes_in(now.saturating_duration_since(self.at), bytes_per_s);
        self.bytes.saturating_sub(paid)
    }
}

fn bytes_in(time: Duration, bytes_per_s: u32) -> u64 {
    let micros = time.as_micros().saturating_mul(u128::from(bytes_per_s));
    u64::try_from(micros / 1_000_000).unwrap_or(u64::MAX)
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
        // Another pace holds for what is owed already.
        assert_eq!(pace.wait(later, 2 * RATE), Some(seconds(1) / 2));
        assert_eq!(pace.wait(later, RATE / 1024), Some(LONGEST));
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
