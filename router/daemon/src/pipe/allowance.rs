//! How many bytes of a flow may still move.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::copy::{CopyLimits, FlowBytes};

/// Bytes that may still move; taken before they do, so that both directions keep to it together.
#[derive(Debug)]
pub(super) struct Allowance(AtomicU64);

impl Allowance {
    pub(super) fn new(limits: &CopyLimits, moved: &FlowBytes) -> Self {
        Self(limits.left_after(moved).into())
    }

    /// How many of `bytes` may move.
    pub(super) fn take(&self, bytes: u64) -> u64 {
        let take = |left: u64| Some(left.saturating_sub(bytes));
        match self.0.fetch_update(Relaxed, Relaxed, take) {
            Ok(left) | Err(left) => left.min(bytes),
        }
    }
}
