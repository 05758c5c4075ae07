//! The ABI of today: what the host does for each function that a plugin imports.
//!
//! Thin: each turns types of the ABI into the host's and asks the event's [`Transaction`].

#![expect(
    missing_docs,
    reason = "what is made of the WIT has only the words that stand there"
)]

mod blobs;
mod http;
mod keys;
mod messages;
mod rules;
mod wires;

use super::{Outcome, State};
use crate::{
    event::{Caller, ErrorCode, Principal, Reason, Refusal, Stamp},
    transaction::{Own, Rows, Scan, Transaction},
};

pub(crate) use self::http::encoded as http_answer;
pub(super) use self::{
    blobs::{call_blob_fetched, call_may_read},
    http::{call_canceled, call_http_query},
    messages::call_message,
    rules::call_usage,
    wires::{call_datagram, call_fetched, call_socket},
};

wasmtime::component::bindgen!({
    path: "../../sdk/wit/0.1.0",
    world: "plugin",
    imports: { default: trappable },
    exports: { default: async },
});

pub(super) use self::exports::wormholes::plugin as handlers;
pub(super) use self::wormholes::plugin::types as words;
use self::wormholes::plugin::{requests, scratch, secret, state, system, timers, types};

/// A call's answer: an error for the plugin, or a fault of the host, which undoes the event.
type Answer<T> = wasmtime::Result<Result<T, types::Error>>;

impl State {
    /// The event that runs.
    fn event(&mut self) -> wasmtime::Result<&mut Transaction> {
        let running = self.transaction.as_mut();
        running.ok_or_else(|| wasmtime::Error::msg("imports are for handlers, not for start-up"))
    }

    /// The same, for a call that no recording holds.
    fn unrecorded_event(&mut self) -> wasmtime::Result<&mut Transaction> {
        let event = self.event()?;
        if event.leaves_recording() {
            Ok(event)
        } else {
            let why = "a replay has no blobs, HTTP and connections";
            Err(wasmtime::Error::msg(why))
        }
    }
}

impl types::Host for State {}

impl state::Host for State {
    fn get(&mut self, key: Vec<u8>) -> wasmtime::Result<Option<Vec<u8>>> {
        Ok(self.event()?.row_get(Own::State, &key)?)
    }

    fn set(&mut self, key: Vec<u8>, value: Vec<u8>) -> Answer<()> {
        Ok(told(self.event()?.row_set(Own::State, &key, value)?))
    }

    fn delete(&mut self, key: Vec<u8>) -> Answer<()> {
        Ok(told(self.event()?.row_delete(Own::State, &key)?))
    }

    fn scan(&mut self, range: state::Range) -> wasmtime::Result<Rows> {
        Ok(self.event()?.row_scan(Own::State, &range.into())?)
    }
}

impl secret::Host for State {
    fn get(&mut self, key: Vec<u8>) -> wasmtime::Result<Option<Vec<u8>>> {
        Ok(self.event()?.secret_get(&key)?)
    }

    fn set(&mut self, key: Vec<u8>, value: Vec<u8>) -> Answer<()> {
        Ok(told(self.event()?.secret_set(&key, value)?))
    }

    fn delete(&mut self, key: Vec<u8>) -> Answer<()> {
        Ok(told(self.event()?.secret_delete(&key)?))
    }

    fn scan(&mut self, range: state::Range) -> wasmtime::Result<Rows> {
        Ok(self.event()?.secret_scan(&range.into())?)
    }
}

impl scratch::Host for State {
    fn get(&mut self, key: Vec<u8>) -> wasmtime::Result<Option<Vec<u8>>> {
        Ok(self.event()?.scratch_get(&key))
    }

    fn set(&mut self, key: Vec<u8>, value: Vec<u8>) -> Answer<()> {
        Ok(told(self.event()?.scratch_set(&key, value)))
    }

    fn delete(&mut self, key: Vec<u8>) -> Answer<()> {
        Ok(told(self.event()?.scratch_delete(&key)))
    }

    fn scan(&mut self, range: state::Range) -> wasmtime::Result<Rows> {
        Ok(self.event()?.scratch_scan(&range.into()))
    }
}

impl timers::Host for State {
    fn set(&mut self, name: String, at_ms: u64, payload: Vec<u8>, durable: bool) -> Answer<()> {
        Ok(told(
            self.event()?.timer_set(&name, at_ms, payload, durable),
        ))
    }

    fn cancel(&mut self, name: String) -> Answer<()> {
        Ok(told(self.event()?.timer_cancel(&name)))
    }

    fn due(&mut self, name: String) -> wasmtime::Result<Option<u64>> {
        Ok(self.event()?.timer_due(&name))
    }
}

impl requests::Host for State {
    fn finish(&mut self, id: u64, answer: Result<Vec<u8>, types::Error>) -> Answer<()> {
        Ok(told(
            self.event()?.finish(id, answer.map_err(Refusal::from)),
        ))
    }

    fn progress(&mut self, id: u64, percent: Option<u8>, text: String) -> Answer<()> {
        Ok(told(self.event()?.progress(id, percent, text)))
    }
}

impl system::Host for State {
    fn log(&mut self, level: system::Level, message: String) -> wasmtime::Result<()> {
        let level = match level {
            system::Level::Trace => tracing::Level::TRACE,
            system::Level::Debug => tracing::Level::DEBUG,
            system::Level::Info => tracing::Level::INFO,
            system::Level::Warn => tracing::Level::WARN,
            system::Level::Error => tracing::Level::ERROR,
        };
        self.log(level, &message);
        Ok(())
    }

    fn random(&mut self, length: u32) -> wasmtime::Result<Vec<u8>> {
        Ok(self.event()?.random(length as usize))
    }

    fn config(&mut self, key: String) -> wasmtime::Result<Option<String>> {
        Ok(self.plugin.config.get(&key).cloned())
    }

    fn node_id(&mut self) -> wasmtime::Result<Vec<u8>> {
        Ok(self.plugin.around.node.as_bytes().to_vec())
    }

    fn instance(&mut self) -> wasmtime::Result<String> {
        Ok(self.plugin.name.to_string())
    }
}

impl From<state::Range> for Scan {
    fn from(range: state::Range) -> Self {
        Self {
            prefix: range.prefix,
            after: range.after,
            backwards: range.backwards,
            limit: range.limit,
        }
    }
}

impl From<types::Error> for Refusal {
    fn from(error: types::Error) -> Self {
        let code = match error.code {
            types::ErrorCode::Denied => ErrorCode::Denied,
            types::ErrorCode::Quota => ErrorCode::Quota,
            types::ErrorCode::Invalid => ErrorCode::Invalid,
            types::ErrorCode::NotFound => ErrorCode::NotFound,
            types::ErrorCode::Unavailable => ErrorCode::Unavailable,
            types::ErrorCode::Expired => ErrorCode::Expired,
            types::ErrorCode::Failed => ErrorCode::Failed,
        };
        Self::new(code, error.message)
    }
}

impl From<Refusal> for types::Error {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal.code {
            ErrorCode::Denied => types::ErrorCode::Denied,
            ErrorCode::Quota => types::ErrorCode::Quota,
            ErrorCode::Invalid => types::ErrorCode::Invalid,
            ErrorCode::NotFound => types::ErrorCode::NotFound,
            ErrorCode::Unavailable => types::ErrorCode::Unavailable,
            ErrorCode::Expired => types::ErrorCode::Expired,
            ErrorCode::Failed => types::ErrorCode::Failed,
        };
        Self {
            code,
            message: refusal.message,
        }
    }
}

impl From<&Stamp> for types::Event {
    fn from(stamp: &Stamp) -> Self {
        Self {
            id: stamp.id,
            attempt: stamp.attempt,
            now_ms: stamp.now_ms,
            principal: (&stamp.principal).into(),
        }
    }
}

impl From<&Principal> for types::Principal {
    fn from(principal: &Principal) -> Self {
        match principal {
            Principal::Node => Self::Node,
            Principal::User(name) => Self::User(name.to_string()),
        }
    }
}

impl From<Reason> for handlers::lifecycle::Reason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Created => Self::Created,
            Reason::Started => Self::Started,
            Reason::Updated => Self::Updated,
        }
    }
}

impl From<handlers::lifecycle::Migration> for Outcome {
    fn from(how_far: handlers::lifecycle::Migration) -> Self {
        match how_far {
            handlers::lifecycle::Migration::Done => Self::Done,
            handlers::lifecycle::Migration::Again => Self::Again,
        }
    }
}

impl From<&Caller> for handlers::on_request::Caller {
    fn from(caller: &Caller) -> Self {
        match caller {
            Caller::Operator => Self::Operator,
            Caller::User(name) => Self::User(name.to_string()),
            Caller::Plugin { from, own } => Self::Plugin(handlers::on_request::Asker {
                from: from.into(),
                own: own.into(),
            }),
        }
    }
}

fn told<T>(answer: Result<T, Refusal>) -> Result<T, types::Error> {
    answer.map_err(types::Error::from)
}
