//! Write plugins for Wormholes in Rust.
//!
//! A plugin is a type that implements [`Plugin`], and one line, [`plugin!`]. Every event that the
//! node hands to it is one transaction: what a handler writes, sends and answers becomes real
//! together when it returns `Ok`, and not at all when it returns an error or panics.
//!
//! ```
//! use wormholes_plugin::{Context, Plugin, Reply, Request, Result, plugin};
//!
//! #[derive(Default)]
//! struct Hello;
//!
//! impl Plugin for Hello {
//!     fn request(&mut self, _: &mut Context, request: Request) -> Result<Reply> {
//!         let name: String = request.argument("name")?;
//!         Reply::done(&format!("hello, {name}"))
//!     }
//! }
//!
//! plugin!(Hello);
//! ```
//!
//! The same code runs natively under the test kit.

mod blob;
mod context;
mod error;
pub mod host;
mod http;
mod keys;
mod message;
mod plugin;
mod request;
mod rules;
mod socket;
mod state;
#[cfg(target_family = "wasm")]
#[doc(hidden)]
pub mod wasm;
mod way;

pub use blob::{Blob, BlobFetch, BlobFetched, Draft, Held};
pub use context::{Context, Level};
pub use error::{Error, ErrorCode, Result};
pub use host::{InMemory, OnDisk, Sealed};
pub use http::{Fetch, HttpReply, HttpRequest, HttpResponse, escape, form};
pub use keys::{Algorithm, KeyPair};
pub use message::{Address, Halt, Identity, Incoming, Letter, Outcome, Place};
pub use plugin::{Migration, Plugin, Principal, Reason};
pub use request::{Caller, Reply, Request, json};
pub use rules::{Allowance, Ruling, Service, Usage, node_name};
pub use socket::{Closing, Connect, Socket};
pub use state::{Cell, Key, Map};
pub use way::Way;
