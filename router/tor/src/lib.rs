//! Tor for the router: arti behind a small API without generics, since whoever names arti's types
//! compiles them anew with every edit. It knows no tunnel, no plan and no config; it dials and hosts
//! through the Tor network, says how far it is, and which circuits carry what.
//!
//! ```text
//! Settings -> Client::create -> bootstrap    connect(host, port, group) -> Stream
//!                            -> watch        host(HostSettings) -> Hosted -> Request -> Stream
//! ```
//!
//! Without the feature `arti` the types are the same and nobody can make a [`Client`].

#![recursion_limit = "256"]

#[cfg(not(feature = "arti"))]
mod absent;
#[cfg(feature = "arti")]
mod circuits;
#[cfg(feature = "arti")]
mod client;
#[cfg(feature = "arti")]
mod config;
mod error;
#[cfg(feature = "arti")]
mod hosting;
mod report;
mod settings;
#[cfg(feature = "arti")]
mod stream;

#[cfg(not(feature = "arti"))]
pub use absent::{Client, Hosted, Request, Stream, StreamReader, StreamWriter, check_bridge};
#[cfg(feature = "arti")]
pub use client::Client;
#[cfg(feature = "arti")]
pub use config::check_bridge;
pub use error::TorError;
#[cfg(feature = "arti")]
pub use hosting::{Hosted, Request};
pub use report::{Circuit, HostState, HostStatus, Progress};
pub use settings::{
    Authority, Authorization, Fallback, HostSettings, PrivateNetwork, Settings, SettingsError,
    check_client_key,
};
#[cfg(feature = "arti")]
pub use stream::{Stream, StreamReader, StreamWriter};

/// Whether this build has Tor in it.
pub const IS_HERE: bool = cfg!(feature = "arti");
