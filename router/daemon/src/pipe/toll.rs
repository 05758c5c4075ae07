//! What a role counts and holds back of a stream that ends at this node, whatever travels inside.

use std::sync::Arc;

use super::{CopyLimits, FlowBytes, PipeError};

/// Stands at both directions of the stream.
#[derive(Debug, Clone)]
pub(crate) struct Toll {
    limits: CopyLimits,
    bytes: Arc<FlowBytes>,
}

impl Toll {
    /// Counts in `bytes`, and keeps the limits that go by them.
    pub(crate) fn new(limits: CopyLimits, bytes: Arc<FlowBytes>) -> Self {
        Self { limits, bytes }
    }

    /// Lets `bytes` that came in pass, when they may.
    ///
    /// # Errors
    /// [`PipeError::Limit`].
    pub(super) async fn pass_in(&self, bytes: u64) -> Result<(), PipeError> {
        self.admit(bytes).await?;
        self.bytes.moved_up(bytes);
        Ok(())
    }

    /// Lets `bytes` that go out pass, when they may.
    ///
    /// # Errors
    /// [`PipeError::Limit`].
    pub(super) async fn pass_out(&self, bytes: u64) -> Result<(), PipeError> {
        self.admit(bytes).await?;
        self.bytes.moved_down(bytes);
        Ok(())
    }

    async fn admit(&self, bytes: u64) -> Result<(), PipeError> {
        if bytes > self.limits.left_after(&self.bytes) {
            return Err(PipeError::Limit);
        }
        self.limits.pace(bytes).await;
        Ok(())
    }
}
