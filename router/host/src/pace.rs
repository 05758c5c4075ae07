//! How fast a plugin goes on: much at once, and after that so much a second. Who did more than that
//! waits before its next event, and not with one that was begun, so that nothing is lost.
//!
//! What it writes counts beside others. A commit of a mebibyte keeps the disk for some ten milliseconds,
//! in which no other plugin's event becomes durable. At half a mebibyte a second that is less than one in
//! a hundred of them. What it sends and logs counts always, since each of it is work for others, here and
//! at other nodes.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use wormholes_proto::manifest::Limits;

/// What a plugin writes at once, however slow its pace is: a start, an import, a busy minute.
const BURST_BYTES: u64 = 16 << 20;
/// What it sends or logs at once is what goes in this time otherwise: a start, an answer to everybody.
const BURST_SECONDS: u64 = 4;
/// Who wrote beside nobody owes no more than this, however much that was, once others write as well.
const ALONE: Duration = Duration::from_secs(1);
/// No debt keeps anybody longer, from when it is looked at. All principals share it: what others add
/// meanwhile counts.
const LONGEST: Duration = Duration::from_secs(60);
/// Debts are counted in billionths: what is added every microsecond loses nothing by rounding.
const BILLION: u128 = 1_000_000_000;

/// What all principals of a plugin wrote and sent, and its rates have not caught up with.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    debts: Mutex<Debts>,
}

#[derive(Debug, Default)]
struct Debts {
    writes: Debt,
    messages: Debt,
    message_bytes: Debt,
}

/// How long the next event waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waits {
    /// If others write as well.
    pub(crate) writes: Option<Duration>,
    pub(crate) messages: Option<Duration>,
}

/// So much at once, and after that so much a second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    burst: u64,
    per_s: u32,
}

/// What was done, and its rate has not caught up with.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Debt(Option<Owed>);

#[derive(Debug, Clone, Copy)]
struct Owed {
    billionths: u128,
    at: Instant,
}

impl Pace {
    /// An event wrote so much; `is_shared`: others write as well.
    pub(crate) fn wrote(&self, now: Instant, bytes: usize, limits: &Limits, is_shared: bool) {
        let longest = if is_shared { LONGEST } else { ALONE };
        let mut debts = self.debts();
        debts
            .writes
            .add_within(longest, now, bytes as u64, Rate::of_writes(limits));
    }

    /// An event has so many messages leave the node, with so many bytes.
    pub(crate) fn sent(&self, now: Instant, (messages, bytes): (u64, u64), limits: &Limits) {
        let mut debts = self.debts();
        debts.messages.add(now, messages, Rate::of_messages(limits));
        let rate = Rate::of_message_bytes(limits);
        debts.message_bytes.add(now, bytes, rate);
    }

    /// How long the next event waits.
    pub(crate) fn waits(&self, now: Instant, limits: &Limits) -> Waits {
        let debts = self.debts();
        let messages = debts.messages.wait(now, Rate::of_messages(limits));
        let bytes = debts
            .message_bytes
            .wait(now, Rate::of_message_bytes(limits));
        Waits {
            writes: debts.writes.wait(now, Rate::of_writes(limits)),
            messages: messages.max(bytes),
        }
    }

    fn debts(&self) -> MutexGuard<'_, Debts> {
        self.debts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rate {
    fn of_writes(limits: &Limits) -> Self {
        Self {
            burst: BURST_BYTES,
            per_s: limits.pace_bytes_per_s(),
        }
    }

    fn of_messages(limits: &Limits) -> Self {
        Self::new(limits.messages_per_second)
    }

    fn of_message_bytes(limits: &Limits) -> Self {
        Self::new(limits.message_bytes_per_s())
    }

    /// Bytes of lines.
    pub(crate) fn of_log(limits: &Limits) -> Self {
        Self::new(limits.log_bytes_per_s())
    }

    fn new(per_s: u32) -> Self {
        Self {
            burst: u64::from(per_s) * BURST_SECONDS,
            per_s,
        }
    }

    fn at_once(self) -> u128 {
        u128::from(self.burst) * BILLION
    }

    fn within(self, time: Duration) -> u128 {
        time.as_nanos().saturating_mul(u128::from(self.per_s))
    }
}

impl Debt {
    /// So much more was done.
    pub(crate) fn add(&mut self, now: Instant, count: u64, rate: Rate) {
        self.add_within(LONGEST, now, count, rate);
    }

    /// The same, for which nobody waits longer than `longest`.
    fn add_within(&mut self, longest: Duration, now: Instant, count: u64, rate: Rate) {
        let left = self.0.map_or(0, |owed| owed.left(now, rate));
        let billionths = left.saturating_add(u128::from(count) * BILLION);
        self.0 = Some(Owed {
            billionths: billionths.min(rate.at_once() + rate.within(longest)),
            at: now,
        });
    }

    /// How long nothing more is done.
    pub(crate) fn wait(self, now: Instant, rate: Rate) -> Option<Duration> {
        let beyond = self.0?.left(now, rate).saturating_sub(rate.at_once());
        let nanos = u64::try_from(beyond / u128::from(rate.per_s.max(1)));
        // A rate that was made slower has nobody pay longer for what was done before.
        let wait = Duration::from_nanos(nanos.unwrap_or(u64::MAX)).min(LONGEST);
        (!wait.is_zero()).then_some(wait)
    }
}

impl Owed {
    fn left(self, now: Instant, rate: Rate) -> u128 {
        let paid = rate.within(now.saturating_duration_since(self.at));
        self.billionths.saturating_sub(paid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Writes of so many mebibytes a second.
    fn writes(mib: u32) -> Limits {
        Limits {
            pace_kib: mib << 10,
            ..Limits::default()
        }
    }

    /// A message a millisecond, and a mebibyte of them a second.
    fn messages() -> Limits {
        Limits {
            messages_per_second: 1000,
            message_kib_per_second: 1024,
            ..Limits::default()
        }
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn much_is_written_at_once_and_then_so_much_a_second() {
        let (pace, start, rate) = (Pace::default(), Instant::now(), &writes(1));
        let wait = |at, rate: &Limits| pace.waits(at, rate).writes;
        for _ in 0..16 {
            assert_eq!(wait(start, rate), None);
            pace.wrote(start, MIB, rate, true);
        }
        assert_eq!(wait(start, rate), None);
        pace.wrote(start, 2 * MIB, rate, true);
        assert_eq!(wait(start, rate), Some(seconds(2)));
        assert_eq!(wait(start + seconds(1), rate), Some(seconds(1)));
        assert_eq!(wait(start + seconds(2), rate), None);
        // What is not written in a second is written later.
        let later = start + seconds(1002);
        for _ in 0..17 {
            assert_eq!(wait(later, rate), None);
            pace.wrote(later, MIB, rate, true);
        }
        assert_eq!(wait(later, rate), Some(seconds(1)));
        // Another pace holds for what is owed already.
        assert_eq!(wait(later, &writes(2)), Some(seconds(1) / 2));
        let slow = Limits {
            pace_kib: 1,
            ..Limits::default()
        };
        assert_eq!(wait(later, &slow), Some(LONGEST));
    }

    #[test]
    fn who_wrote_alone_owes_little() {
        let (pace, start, rate) = (Pace::default(), Instant::now(), &writes(1));
        let wait = || pace.waits(start, rate).writes;
        for _ in 0..1000 {
            pace.wrote(start, MIB, rate, false);
        }
        assert_eq!(wait(), Some(seconds(1)));
        pace.wrote(start, MIB, rate, true);
        assert_eq!(wait(), Some(seconds(2)));
        for _ in 0..1000 {
            pace.wrote(start, MIB, rate, true);
        }
        assert_eq!(wait(), Some(LONGEST));
        pace.wrote(start, MIB, rate, false);
        assert_eq!(wait(), Some(ALONE));
    }

    #[test]
    fn messages_count_by_number_and_by_size_and_not_as_writes() {
        let (pace, start, limits) = (Pace::default(), Instant::now(), &messages());
        let wait = |at| pace.waits(at, limits).messages;
        pace.sent(start, (4000, 0), limits);
        assert_eq!(wait(start), None);
        pace.sent(start, (1, 0), limits);
        assert_eq!(wait(start), Some(Duration::from_millis(1)));
        let later = start + seconds(100);
        assert_eq!(wait(later), None);
        pace.sent(later, (6, 6 << 20), limits);
        assert_eq!(wait(later), Some(seconds(2)));
        assert_eq!(pace.waits(later, limits).writes, None);
        pace.sent(later, (1_000_000, 0), limits);
        assert_eq!(wait(later), Some(LONGEST));
    }

    #[test]
    fn a_debt_that_grows_all_the_time_is_paid_as_well() {
        let rate = Rate::new(1000);
        let (mut debt, start) = (Debt::default(), Instant::now());
        debt.add(start, 5000, rate);
        // A microsecond pays for a thousandth of what is counted.
        for micros in 1..=500_000 {
            debt.add(start + Duration::from_micros(micros), 0, rate);
        }
        let wait = debt.wait(start + Duration::from_micros(500_000), rate);
        assert_eq!(wait, Some(seconds(1) / 2));
    }
}
