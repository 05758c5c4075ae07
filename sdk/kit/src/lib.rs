//! Tests plugins natively, in milliseconds: nodes with a plugin, virtual time, faults, and a seed.
//!
//! A [`World`] runs the handlers as the node does: each event is a transaction, undone by an error
//! and by a panic, under the limits of the manifest. A [`Drive`] is what a scenario asks for, so that
//! the same scenario can run elsewhere. [`every_fault`] runs one again for each fault that can meet
//! it, [`check`] runs steps that a seed draws and shows the fewest that fail.
//!
//! What it is not: it contains nothing. A handler that loops for ever loops, static variables outlive
//! their instance, and neither `limits.memory_mib` nor `limits.event_ms` nor the pauses of plugins
//! that break often are there. Those are tested with the component, in a node.

mod check;
mod drive;
mod event;
mod faults;
mod manifest;
mod memory;
mod node;
mod principal;
mod random;
mod transaction;
mod world;

pub use check::check;
pub use drive::Drive;
pub use faults::every_fault;
pub use random::Random;
pub use transaction::Progress;
pub use world::{At, Ticket, World};

/// The examples of the SDK's README are tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
