//! Onion tunnels: layers of Noise over 1 to 8 hops, built in one round trip.
//!
//! ```text
//! client                hop 0                 hop 1                 hop 2 (last)
//!   | CREATE              |                     |                     |
//!   | key id, 8 slots --->| opens slot 0        |                     |
//!   |                     | key id, 8 slots --->| opens slot 0        |
//!   |                     |                     | key id, 8 slots --->| opens slot 0: last
//!   |                     |                     |<--- CREATED 8 slots | fills slot 0
//!   |                     |<--- CREATED 8 slots | fills slot 0        |
//!   |<--- CREATED 8 slots | fills slot 0        |                     |
//!   | cells  <------------------------------------------------------> | OPEN, data, END
//! ```
//! Formats: CREATE and CREATED in `onion/build.rs`, a hop's route in `onion/route.rs`, cells in
//! `onion/cell.rs`, keys in `onion/schedule.rs`.
//!
//! Every message has one size whatever the number of hops and the position among them. What a hop
//! appends where it takes something off is key stream that the client knows too, and each layer's
//! tag commits to all that its hop received: one changed bit ends the build or the circuit at any
//! place in the message. If only what is read were covered, a hop could flip a spare slot and
//! learn from the circuit's survival how many hops follow.
//!
//! Not hidden: the last hop knows that it is last; the first may see that its caller is no hop;
//! how long a build takes hints at the distance. Killing a circuit is a mark of one bit. X25519
//! protects the layers, so that only the links are safe from a quantum computer.
//!
//! No I/O here: the caller moves CREATE as the body of an OPEN, CREATED as that of its answer, and
//! then cells, each after one byte with its size class, and closes all at the first error.

mod build;
mod cache;
mod cell;
mod client;
mod guards;
mod hop;
mod keys;
mod path;
mod peel;
mod route;
mod schedule;
mod seen;
mod slots;
mod wrap;

pub use build::{CREATE_BYTES, CREATED_BYTES, Create, MAX_HOPS};
pub use cache::{MAX_CACHED_PATHS, PATH_LIFETIME, PathCache, PathKey};
pub use cell::{CellError, CellSize, DATA_OFFSET, Delivered, LARGE_CELL, MessageKind, SMALL_CELL};
pub use client::{BuildError, ClientBuild, PathHop, StartError};
pub use guards::{Guard, Guards};
pub use hop::{CreateOutcome, Forward, HopPending};
pub use keys::{OnionKeys, SEEN_PER_KEY};
pub use path::{Candidate, LastHop, PathError, PathRequest, choose_path};
pub use peel::{HopCircuit, HopDown, HopUp, LastCircuit, LastDown, LastUp};
pub use wrap::{ClientCircuit, ClientOpener, ClientSealer};
