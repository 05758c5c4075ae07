//! The Wormholes router as a library: a node that opens flows by script.

mod config;

pub use config::Config;
