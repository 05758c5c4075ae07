//! A peer that lies: valid keys, a QUIC that is in order, and messages in which nothing need be.
//!
//! ```text
//! formats      every message as a list of fields
//! message      the lies that follow from what a field means
//! endpoint     a node's keys and its connections, and what becomes of what it says
//! server       what it reacts to when it is asked
//! noise onion  layers that are sealed rightly around what is wrong
//! ```

mod endpoint;
pub mod formats;
mod message;
pub mod noise;
pub mod onion;
mod server;

pub use endpoint::{Liar, Told, ask, sign_record, tell};
pub use message::{Cast, Lie, Meaning, Message};
pub use server::{Asked, LiarServer};
