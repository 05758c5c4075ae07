//! What must hold whatever comes in, one function for each parser: it takes any bytes and panics
//! when the parser breaks its word.
//!
//! libFuzzer looks for such bytes (`cargo xtask soak fuzz`; its programs are in `tests/fuzz`), and
//! the bytes that it kept run through the same functions in `cargo xtask test`. Beside not to panic
//! the word is: what is read is written as it was, or was never the one way to write it; pieces say
//! what the whole says; nothing passes its bound. What is under a key is sealed here with the right
//! one, so that what is behind it is reached.

#![expect(
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a finding is a panic"
)]

mod blob;
mod config;
mod control;
mod datagram;
mod http;
mod input;
mod invite;
mod manifest;
mod onion;
mod plugin_calls;
mod plugin_recording;
mod record;
mod rules;
mod sam;
mod sealed;
mod socks;
mod stream;
mod target;
mod tcp;
mod trunk;

pub use blob::blob_frames;
pub use config::config;
pub use control::{control_answer, control_request};
pub use datagram::datagram;
pub use http::http_request;
pub use invite::invite;
pub use manifest::manifest;
pub use onion::{cells, create, created};
pub use plugin_calls::plugin_calls;
pub use plugin_recording::plugin_recording;
pub use record::{record, record_set};
pub use rules::{recording, script};
pub use sam::sam_client;
pub use sealed::{sealed_frames, sealed_hello};
pub use socks::{socks_client, socks_datagram, socks_server};
pub use stream::{answer, open};
pub use target::target;
pub use tcp::{tcp_frames, tcp_preface};
pub use trunk::trunk_frames;

/// Checks what must hold for these bytes.
pub type Check = fn(&[u8]);

/// Every function by its name, which its program and its folder in `tests/fuzz/corpus` have too.
pub const TARGETS: [(&str, Check); 29] = [
    ("answer", answer),
    ("blob_frames", blob_frames),
    ("cells", cells),
    ("config", config),
    ("control_answer", control_answer),
    ("control_request", control_request),
    ("create", create),
    ("created", created),
    ("datagram", datagram),
    ("http_request", http_request),
    ("invite", invite),
    ("manifest", manifest),
    ("open", open),
    ("plugin_calls", plugin_calls),
    ("plugin_recording", plugin_recording),
    ("record", record),
    ("record_set", record_set),
    ("recording", recording),
    ("sam_client", sam_client),
    ("script", script),
    ("sealed_frames", sealed_frames),
    ("sealed_hello", sealed_hello),
    ("socks_client", socks_client),
    ("socks_datagram", socks_datagram),
    ("socks_server", socks_server),
    ("target", target),
    ("tcp_frames", tcp_frames),
    ("tcp_preface", tcp_preface),
    ("trunk_frames", trunk_frames),
];
