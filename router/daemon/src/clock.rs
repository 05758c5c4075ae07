//! Times and spans as whole numbers, the way records, accounts and reports carry them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970; 0 for what was before.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    ms(since_1970(time))
}

/// Seconds since 1970; 0 for what was before.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    since_1970(time).as_secs()
}

/// Whole milliseconds of a span.
pub(crate) fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Time since the machine was started, its sleep included.
pub(crate) fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(time).unwrap_or_default()
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}
