//! The one place where the host reads the clock.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// How far the host's time is ahead of the clock.
static AHEAD_MS: AtomicU64 = AtomicU64::new(0);
static MAY_MOVE: AtomicBool = AtomicBool::new(false);

/// Milliseconds since 1970; 0 before.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_ms = since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    });
    now_ms.saturating_add(AHEAD_MS.load(Ordering::Relaxed))
}

/// Lets the time of all hosts of this process be moved forward: for a node that is thrown away, whose
/// plugin somebody tries.
pub fn let_time_move() {
    MAY_MOVE.store(true, Ordering::Relaxed);
}

/// Moves it; false: it may not be.
pub(crate) fn advance(ms: u64) -> bool {
    let may = MAY_MOVE.load(Ordering::Relaxed);
    if may {
        AHEAD_MS.fetch_add(ms, Ordering::Relaxed);
    }
    may
}
