//! Every key of config.toml, and whether a reload takes it.

use Effect::{Reloadable, Restart};

/// When a changed value takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// At the next reload; living flows keep what they have.
    Reloadable,
    /// At the next start.
    Restart,
}

/// A section and its keys.
#[derive(Debug)]
pub(super) struct Section {
    /// As in `[name]` or `[[name]]`.
    pub(super) name: &'static str,
    /// Its keys.
    pub(super) keys: &'static [(&'static str, Effect)],
}

/// What the parser knows, in the order of config.toml.
pub(super) const SECTIONS: [Section; 12] = [
    section(
        "node",
        &[
            ("name", Restart),
            ("data_dir", Restart),
            ("listen", Restart),
            ("advertise", Restart),
            ("networks", Restart),
            ("family", Restart),
        ],
    ),
    section(
        "peer",
        &[
            ("name", Restart),
            ("id", Restart),
            ("addresses", Restart),
            ("trust", Restart),
            ("via", Restart),
            ("register", Restart),
        ],
    ),
    section(
        "entrance",
        &[
            ("kind", Restart),
            ("listen", Restart),
            ("target", Restart),
            ("users", Restart),
            ("label", Restart),
        ],
    ),
    section(
        "service",
        &[
            ("name", Restart),
            ("target", Restart),
            ("network", Restart),
            ("min_trust", Restart),
        ],
    ),
    section(
        "rules",
        &[
            ("scripts", Reloadable),
            ("default", Reloadable),
            ("sets", Reloadable),
            ("record_decisions", Restart),
        ],
    ),
    section("relay", &ROLE),
    section(
        "hop",
        &[
            ROLE[0],
            ROLE[1],
            ROLE[2],
            ROLE[3],
            ROLE[4],
            ROLE[5],
            ("allow_private", Restart),
        ],
    ),
    section(
        "exit",
        &[
            ROLE[0],
            ROLE[1],
            ROLE[2],
            ROLE[3],
            ROLE[4],
            ROLE[5],
            ("allow", Restart),
            ("allow_private", Restart),
        ],
    ),
    section(
        "limits",
        &[
            ("flows", Restart),
            ("opening_per_target", Restart),
            ("pending_connections", Restart),
            ("handshake_seconds", Restart),
            ("peers", Restart),
            ("drain_seconds", Restart),
        ],
    ),
    section(
        "control",
        &[
            ("socket", Restart),
            ("mode", Restart),
            ("operators", Restart),
        ],
    ),
    section("metrics", &[("listen", Restart)]),
    section(
        "log",
        &[("level", Restart), ("format", Restart), ("mask", Restart)],
    ),
];

/// Sections that a build with more in it has.
pub(super) const ABSENT: [&str; 5] = ["tor", "i2p", "plugin", "state", "http"];

const ROLE: [(&str, Effect); 6] = [
    ("enabled", Restart),
    ("max_circuits", Restart),
    ("max_circuits_per_peer", Restart),
    ("bytes_per_second_per_peer", Restart),
    ("max_bytes_per_circuit", Restart),
    ("idle_seconds", Restart),
];

const fn section(name: &'static str, keys: &'static [(&'static str, Effect)]) -> Section {
    Section { name, keys }
}
