//! What scripts can name: objects, plans, verdicts, and questions to the host.

pub(crate) mod collections;
pub(crate) mod lookups;
pub(crate) mod objects;
pub(crate) mod plans;
pub(crate) mod verdicts;
