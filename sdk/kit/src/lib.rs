//! Tests plugins natively, in milliseconds: nodes with a plugin, virtual time, faults, and a seed.
//!
//! A [`World`] runs the handlers as the node does: each event is a transaction, undone by an error
//! and by a panic, under the limits of the manifest. A [`Drive`] is what a scenario asks for, so that
//! the same scenario can run elsewhere. [`every_fault`] runs one again for each fault that can meet
//! it, [`check`] runs steps that a seed draws and shows the fewest that fail.
//!
//! Between nodes, messages go as channels, posts and questions do, without the wire: of a channel one
//! message at a time is on its way. The seed decides delays and orders; [`World::unsteady`] has trunks
//! break, [`World::cut`] parts two nodes, and [`At::restore`] starts one on an older copy. Every node
//! takes aliases, as one does that `strangers` is granted to. A message for a plugin of another name
//! waits for ever: a world has one plugin. A question is `unavailable` at once where nobody can be
//! reached; where a node is gone ([`At::stop`]), after 15 s, as a node notices it. Users are there from [`Drive::add_user`] on; what operations came to, until it is taken.
//!
//! A world may have ten thousands of nodes: a step costs what it touches. [`World::latency`] and
//! [`World::links`] say how far nodes are from each other, [`World::lossy`] what is lost without a word,
//! and [`World::stop_percent`] has many be gone at once. [`World::counts`] and [`At::counts`] say what was
//! sent and committed, [`World::trace`] whether two worlds did the same.
//!
//! Blobs come as a whole, after the time of one message, over whatever trunk holds; [`At::bring`] hands one
//! to the next request.
//!
//! Beyond the nodes is the test: [`At::http`] asks as a browser does, [`At::serve`] answers what plugins
//! fetch, and [`At::accept`], [`At::send`] and [`At::written`] are the other ends of their connections.
//!
//! What it is not: it contains nothing. A handler that loops for ever loops, static variables outlive
//! their instance, and neither `limits.memory_mib` nor `limits.event_ms` nor the pauses of plugins
//! that break often are there. Those are tested with the component, in a node.

mod blobs;
mod check;
mod counts;
mod drive;
mod due;
mod event;
mod faults;
mod fetches;
mod http;
mod keys;
mod mail;
mod manifest;
mod memory;
mod net;
mod node;
mod office;
mod principal;
mod random;
mod rows;
mod table;
#[cfg(test)]
mod tests;
mod transaction;
mod world;

pub use check::check;
pub use counts::Counts;
pub use drive::Drive;
pub use faults::every_fault;
pub use random::Random;
pub use transaction::Progress;
pub use world::{At, Snapshot, Ticket, World};

/// The examples of the SDK's README are tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
