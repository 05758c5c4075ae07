//! `[i2p]`: the I2P router that this node uses, and how much of it.

use std::net::SocketAddr;

use wormholes_proto::sam::{MAX_TUNNEL_LENGTH, MAX_TUNNEL_QUANTITY, TunnelSettings};

use super::{ServiceConfig, read::Table, sections};

/// Destinations beyond this are more than a router bears: each has tunnels of its own.
const MAX_SESSIONS: u64 = 256;
/// Made ahead, they build tunnels for nobody.
const MAX_SPARES: u64 = 16;
/// Streams beyond this are typing errors.
const MAX_STREAMS: u64 = 100_000;

/// `[i2p]`
#[derive(Debug, Clone, PartialEq)]
pub struct I2pConfig {
    /// Where an I2P router takes clients that speak SAM; none: this node has no I2P.
    pub sam: Option<SocketAddr>,
    /// The tunnels of sessions for which a plan says nothing else.
    pub tunnels: TunnelSettings,
    /// Sessions that are made ahead, for each kind of tunnels that plans ask for.
    pub spares: usize,
    /// Sessions at once, in all.
    pub sessions: usize,
    /// Streams that others have with the published services at once.
    pub max_streams: usize,
}

impl Default for I2pConfig {
    fn default() -> Self {
        Self {
            sam: None,
            tunnels: TunnelSettings {
                length: 3,
                quantity: 3,
            },
            spares: 2,
            sessions: 32,
            max_streams: 256,
        }
    }
}

pub(super) fn i2p(table: &Table<'_>) -> I2pConfig {
    let default = I2pConfig::default();
    let small = |key, low, high| {
        let number = table.integer(key, low..=u64::from(high))?;
        u8::try_from(number).ok()
    };
    let count = |key, range, default| table.count(key, range).unwrap_or(default);
    let (length, quantity) = (default.tunnels.length, default.tunnels.quantity);
    let i2p = I2pConfig {
        sam: table.parsed("sam", sections::address),
        tunnels: TunnelSettings {
            length: small("length", 0, MAX_TUNNEL_LENGTH).unwrap_or(length),
            quantity: small("quantity", 1, MAX_TUNNEL_QUANTITY).unwrap_or(quantity),
        },
        spares: count("spares", 0..=MAX_SPARES, default.spares),
        sessions: count("sessions", 1..=MAX_SESSIONS, default.sessions),
        max_streams: count("max_streams", 1..=MAX_STREAMS, default.max_streams),
    };
    if i2p.spares >= i2p.sessions {
        let key = if table.has("spares") {
            "spares"
        } else {
            "sessions"
        };
        let (spares, sessions) = (i2p.spares, i2p.sessions);
        let message = format!(
            "{spares} spares among {sessions} sessions leave none for flows: make `spares` lower than \
             `sessions`"
        );
        table.problem(key, message);
    }
    i2p
}

/// Whether a service can be what its config says, as far as that has to do with I2P.
pub(super) fn check_service(table: &Table<'_>, service: &ServiceConfig, has_router: bool) {
    if !service.i2p {
        return;
    }
    if !has_router {
        table.problem("i2p", "no I2P router is known: set `sam` in [i2p]");
    }
    sections::check_published(table, service, ("i2p", "I2P"));
}
