//! Several nodes in one process: what travels between them, and what they refuse.

#[cfg(test)]
#[path = "network/askers.rs"]
mod askers;
#[cfg(test)]
#[path = "network/direct.rs"]
mod direct;
#[cfg(test)]
#[path = "network/leaving.rs"]
mod leaving;
#[cfg(test)]
#[path = "network/limits.rs"]
mod limits;
#[cfg(test)]
#[path = "network/lookups.rs"]
mod lookups;
#[cfg(test)]
#[path = "both/name_server.rs"]
mod name_server;
#[cfg(test)]
#[path = "network/onion.rs"]
mod onion;
#[cfg(test)]
#[path = "network/records.rs"]
mod records;
#[cfg(test)]
#[path = "network/relay.rs"]
mod relay;
#[cfg(test)]
#[path = "network/relays.rs"]
mod relays;
#[cfg(test)]
#[path = "network/silent_hops.rs"]
mod silent_hops;
#[cfg(test)]
#[path = "network/stopping.rs"]
mod stopping;
#[cfg(test)]
#[path = "network/strangers.rs"]
mod strangers;
#[cfg(test)]
#[path = "network/support.rs"]
mod support;
#[cfg(test)]
#[path = "network/trunks.rs"]
mod trunks;
#[cfg(test)]
#[path = "network/unread.rs"]
mod unread;
#[cfg(test)]
#[path = "network/upstream.rs"]
mod upstream;
#[cfg(test)]
#[path = "network/wire.rs"]
mod wire;
