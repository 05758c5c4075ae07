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
    /// Its keys; a role has those of all roles, and its own.
    parts: &'static [&'static [Key]],
}

/// A key's name, and when a changed value takes effect.
type Key = (&'static str, Effect);

/// What the parser knows, in the order of config.toml.
pub(super) const SECTIONS: [Section; 18] = [
    section(
        "node",
        &[&[
            ("name", Restart),
            ("data_dir", Restart),
            ("listen", Restart),
            ("carriers", Restart),
            ("advertise", Restart),
            ("networks", Restart),
            ("family", Restart),
            ("punch", Restart),
            ("punch_trust", Restart),
        ]],
    ),
    section(
        "peer",
        &[&[
            ("name", Reloadable),
            ("id", Reloadable),
            ("addresses", Reloadable),
            ("trust", Reloadable),
            ("via", Reloadable),
            ("register", Reloadable),
        ]],
    ),
    section(
        "entrance",
        &[&[
            ("kind", Restart),
            ("listen", Restart),
            ("target", Restart),
            ("users", Restart),
            ("label", Restart),
        ]],
    ),
    section(
        "service",
        &[&[
            ("name", Restart),
            ("target", Restart),
            ("network", Restart),
            ("min_trust", Restart),
            ("onion", Restart),
            ("onion_port", Restart),
            ("onion_clients", Restart),
            ("i2p", Restart),
        ]],
    ),
    section(
        "rules",
        &[&[
            ("scripts", Reloadable),
            ("default", Reloadable),
            ("sets", Reloadable),
            ("record_decisions", Restart),
        ]],
    ),
    section("relay", &[ROLE]),
    section("hop", &[ROLE, &[("allow_private", Restart)]]),
    section(
        "exit",
        &[ROLE, &[("allow", Restart), ("allow_private", Restart)]],
    ),
    section(
        "plugin",
        &[&[
            ("wasm", Restart),
            ("sha256", Restart),
            ("grants", Restart),
            ("config", Restart),
            ("strangers", Restart),
            ("listen", Restart),
        ]],
    ),
    section("state", &[&[("backend", Restart)]]),
    section(
        "tor",
        &[&[
            ("enabled", Restart),
            ("state_dir", Restart),
            ("peers", Restart),
            ("peers_port", Restart),
            ("bridges", Restart),
            ("transports", Restart),
            ("authorizations", Restart),
        ]],
    ),
    section(
        "tor.network",
        &[&[
            ("authorities", Restart),
            ("fallbacks", Restart),
            ("allow_private", Restart),
        ]],
    ),
    section(
        "i2p",
        &[&[
            ("sam", Restart),
            ("length", Restart),
            ("quantity", Restart),
            ("spares", Restart),
            ("sessions", Restart),
            ("max_streams", Restart),
        ]],
    ),
    section(
        "limits",
        &[&[
            ("flows", Restart),
            ("bytes_per_second", Restart),
            ("opening_per_target", Restart),
            ("pending_connections", Restart),
            ("handshake_seconds", Restart),
            ("udp_idle_seconds", Restart),
            ("peers", Restart),
            ("drain_seconds", Restart),
        ]],
    ),
    section(
        "http",
        &[&[
            ("listen", Restart),
            ("domain", Restart),
            ("certificate", Restart),
            ("key", Restart),
            ("roots", Restart),
        ]],
    ),
    section(
        "control",
        &[&[
            ("socket", Restart),
            ("mode", Restart),
            ("operators", Restart),
        ]],
    ),
    section("metrics", &[&[("listen", Restart)]]),
    section(
        "log",
        &[&[("level", Restart), ("format", Restart), ("mask", Restart)]],
    ),
];

/// Keys, with their sections, that a build with more in it has.
pub(super) const ABSENT_KEYS: [(&str, &str); 1] = [("limits", "memory_mib")];

/// What every role has.
const ROLE: &[Key] = &[
    ("enabled", Restart),
    ("max_circuits", Restart),
    ("max_circuits_per_peer", Restart),
    ("bytes_per_second_per_peer", Restart),
    ("max_bytes_per_circuit", Restart),
    ("idle_seconds", Restart),
];

const fn section(name: &'static str, parts: &'static [&'static [Key]]) -> Section {
    Section { name, parts }
}

impl Section {
    /// Its keys.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> + Clone {
        self.parts.iter().copied().flatten().copied()
    }
}
