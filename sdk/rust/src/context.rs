//! What a handler has at hand.

use std::{net::SocketAddr, time::Duration};

use serde::de::DeserializeOwned;

use crate::{Address, Error, Identity, Principal, Result, host};

/// The event that runs, and the node around it.
#[derive(Debug)]
pub struct Context {
    event: u64,
    attempt: u32,
    now_ms: u64,
    principal: Principal,
}

/// How important a line of the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Each step.
    Trace,
    /// What helps to find a mistake.
    Debug,
    /// What an operator may wish to know.
    Info,
    /// What an operator should look at.
    Warn,
    /// What an operator must mend.
    Error,
}

impl Context {
    /// For the glue of a component and of test kits: what an event brings.
    pub fn new(event: u64, attempt: u32, now_ms: u64, principal: Principal) -> Self {
        Self {
            event,
            attempt,
            now_ms,
            principal,
        }
    }

    /// Rises with every event of this principal.
    pub fn event(&self) -> u64 {
        self.event
    }

    /// How often this event was tried before: a panic or a limit ended it then.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The only clock, the same for the whole event: milliseconds since 1970 in UTC.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Whom the event is for.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// Sets or moves a timer that survives the node.
    ///
    /// # Errors
    /// [`Quota`](crate::ErrorCode::Quota): `limits.timers`.
    pub fn set_timer(&mut self, name: &str, after: Duration, payload: &[u8]) -> Result<()> {
        let at = self.later(after);
        host::with(|host| host.set_timer(name, at, payload, true))
    }

    /// Sets or moves a timer that is forgotten when the node stops, and costs no disk.
    ///
    /// # Errors
    /// [`Quota`](crate::ErrorCode::Quota): `limits.timers`.
    pub fn set_volatile_timer(
        &mut self,
        name: &str,
        after: Duration,
        payload: &[u8],
    ) -> Result<()> {
        let at = self.later(after);
        host::with(|host| host.set_timer(name, at, payload, false))
    }

    pub(crate) fn later(&self, after: Duration) -> u64 {
        let after = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        self.now_ms.saturating_add(after)
    }

    /// Cancels a timer; none of that name is no error.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorCode::Invalid): no timer can have that name.
    pub fn cancel_timer(&mut self, name: &str) -> Result<()> {
        host::with(|host| host.cancel_timer(name))
    }

    /// When a timer is due, in milliseconds since 1970.
    pub fn timer_due(&self, name: &str) -> Option<u64> {
        host::with(|host| host.timer_due(name))
    }

    /// Answers a request that was answered [`Later`](crate::Reply::Later).
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorCode::NotFound): nobody waits for it any more.
    pub fn finish(&mut self, request: u64, answer: Result<Vec<u8>>) -> Result<()> {
        host::with(|host| host.finish(request, answer))
    }

    /// Tells whoever waits for a request how far it is.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorCode::Invalid): more than 100 percent.
    pub fn progress(&mut self, request: u64, percent: Option<u8>, text: &str) -> Result<()> {
        host::with(|host| host.progress(request, percent, text))
    }

    /// Durable messages to a receiver that it has not confirmed.
    pub fn waiting(&self, to: &Address, protocol: &str, sender: &Identity) -> u64 {
        host::with(|host| host.waiting(to, protocol, sender))
    }

    /// Begins the channels with a peer anew, to it and from it, that were halted, and in which this
    /// principal is known as `own`; what waits here is sent again. Both ends must. No halted channel is
    /// no error.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorCode::Invalid): the plugin does not speak the protocol.
    pub fn reopen(&mut self, peer: &Address, protocol: &str, own: &Identity) -> Result<()> {
        host::with(|host| host.reopen(peer, protocol, own))
    }

    /// The key by which receivers know an alias of this principal.
    pub fn alias_key(&self, name: &str) -> [u8; 32] {
        host::with(|host| host.alias_key(name))
    }

    /// Sends one datagram from a port of the plugin's own, granted as `udp:PORT`, when the event is real:
    /// at most once. Scripts see each receiver as a flow, and only `direct()` lets it go.
    ///
    /// # Errors
    /// [`Denied`](crate::ErrorCode::Denied): the port is not granted, or the principal is a user's;
    /// [`Invalid`](crate::ErrorCode::Invalid): more than 1,400 bytes;
    /// [`Quota`](crate::ErrorCode::Quota): `limits.messages`.
    pub fn send_to(&mut self, port: u16, to: SocketAddr, data: &[u8]) -> Result<()> {
        host::with(|host| host.send_to(port, to, data))
    }

    /// A line in the node's log. It stays when the event is undone.
    pub fn log(&self, level: Level, message: &str) {
        host::with(|host| host.log(level, message));
    }

    /// Bytes that nobody can guess; the same again when a recorded event is replayed.
    pub fn random<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        for part in bytes.chunks_mut(4096) {
            let length = u32::try_from(part.len()).unwrap_or(4096);
            part.copy_from_slice(&host::with(|host| host.random(length)));
        }
        bytes
    }

    /// A value of `[plugin.NAME] config`; `None` where config.toml has none.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorCode::Invalid): it is of another type.
    pub fn config<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let Some(value) = host::with(|host| host.config(key)) else {
            return Ok(None);
        };
        let value = serde_json::from_str(&value);
        value.map_err(|error| Error::invalid(format!("config.{key}: {error}")))
    }

    /// This node's id: an Ed25519 public key.
    pub fn node_id(&self) -> [u8; 32] {
        host::with(|host| host.node_id())
    }

    /// The name under which other nodes know this instance.
    pub fn instance(&self) -> String {
        host::with(|host| host.instance())
    }
}
