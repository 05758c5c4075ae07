//! What an instance may take of the machine's memory.

use std::collections::BTreeSet;

use wasmtime::ResourceLimiter;

use crate::transaction::Limit;

/// Tables and memories of one instance, and instances in a component: those of Python need most.
const MAX_TABLES: usize = 64;
const MAX_MEMORIES: usize = 16;
const MAX_INSTANCES: usize = 64;

/// What an instance may still take, all of its memories and all of its tables together.
pub(super) struct Limiter {
    pub(super) memory_bytes: usize,
    pub(super) table_elements: usize,
    /// What it asked for in vain in this event.
    pub(super) hits: BTreeSet<Limit>,
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let wanted = desired.saturating_sub(current);
        Ok(take(&mut self.memory_bytes, wanted) || self.hit(Limit::Memory))
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let wanted = desired.saturating_sub(current);
        Ok(take(&mut self.table_elements, wanted) || self.hit(Limit::Tables))
    }

    fn instances(&self) -> usize {
        MAX_INSTANCES
    }

    fn tables(&self) -> usize {
        MAX_TABLES
    }

    fn memories(&self) -> usize {
        MAX_MEMORIES
    }
}

impl Limiter {
    /// It gets no more.
    fn hit(&mut self, limit: Limit) -> bool {
        self.hits.insert(limit);
        false
    }
}

/// Takes so much of what is left, if it is there.
fn take(left: &mut usize, wanted: usize) -> bool {
    let Some(rest) = left.checked_sub(wanted) else {
        return false;
    };
    *left = rest;
    true
}
