//! The glue of a component: the ABI's imports and exports on one side, [`Host`] and
//! [`Plugin`](crate::Plugin) on the other.

use crate::{
    Context, Error, ErrorCode, Level, Principal, Reason,
    host::{Host, Range, Row, Space},
    request::{Caller, Reply, Request},
};

#[expect(missing_docs, reason = "generated; sdk/wit says it")]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../wit/0.1.0",
        world: "plugin",
        pub_export_macro: true,
        default_bindings_module: "wormholes_plugin::wasm::bindings",
    });
}

use bindings::{
    exports::wormholes::plugin::{lifecycle, on_query, on_request, on_timer},
    wormholes::plugin::{requests, scratch, state, system, timers, types},
};

/// The node, through the imports of the ABI.
#[derive(Debug)]
pub struct Node;

/// A plugin whose value the component holds; [`plugin!`](crate::plugin) implements it.
pub trait Held: crate::Plugin {
    /// Runs `handler` on it.
    fn with<T>(handler: impl FnOnce(&mut Self) -> T) -> T;
}

/// The exports of the ABI, for a plugin.
#[derive(Debug)]
pub struct Exports<P>(std::marker::PhantomData<P>);

impl Host for Node {
    fn get(&mut self, space: Space, key: &[u8]) -> Option<Vec<u8>> {
        match space {
            Space::State => state::get(key),
            Space::Scratch => scratch::get(key),
        }
    }

    fn set(&mut self, space: Space, key: &[u8], value: &[u8]) -> crate::Result<()> {
        let told = match space {
            Space::State => state::set(key, value),
            Space::Scratch => scratch::set(key, value),
        };
        told.map_err(Error::from)
    }

    fn delete(&mut self, space: Space, key: &[u8]) -> crate::Result<()> {
        let told = match space {
            Space::State => state::delete(key),
            Space::Scratch => scratch::delete(key),
        };
        told.map_err(Error::from)
    }

    fn scan(&mut self, space: Space, range: &Range) -> Vec<Row> {
        let range = state::Range {
            prefix: range.prefix.clone(),
            after: range.after.clone(),
            backwards: range.backwards,
            limit: range.limit,
        };
        match space {
            Space::State => state::scan(&range),
            Space::Scratch => scratch::scan(&range),
        }
    }

    fn set_timer(
        &mut self,
        name: &str,
        at_ms: u64,
        payload: &[u8],
        durable: bool,
    ) -> crate::Result<()> {
        timers::set(name, at_ms, payload, durable).map_err(Error::from)
    }

    fn cancel_timer(&mut self, name: &str) -> crate::Result<()> {
        timers::cancel(name).map_err(Error::from)
    }

    fn timer_due(&mut self, name: &str) -> Option<u64> {
        timers::due(name)
    }

    fn finish(&mut self, request: u64, answer: crate::Result<Vec<u8>>) -> crate::Result<()> {
        let answer = answer.map_err(types::Error::from);
        requests::finish(request, answer.as_deref()).map_err(Error::from)
    }

    fn progress(&mut self, request: u64, percent: Option<u8>, text: &str) -> crate::Result<()> {
        requests::progress(request, percent, text).map_err(Error::from)
    }

    fn log(&mut self, level: Level, message: &str) {
        let level = match level {
            Level::Trace => system::Level::Trace,
            Level::Debug => system::Level::Debug,
            Level::Info => system::Level::Info,
            Level::Warn => system::Level::Warn,
            Level::Error => system::Level::Error,
        };
        system::log(level, message);
    }

    fn random(&mut self, length: u32) -> Vec<u8> {
        system::random(length)
    }

    fn config(&mut self, key: &str) -> Option<String> {
        system::config(key)
    }

    fn node_id(&mut self) -> [u8; 32] {
        system::node_id().try_into().unwrap_or_default()
    }

    fn instance(&mut self) -> String {
        system::instance()
    }
}

impl<P: Held> lifecycle::Guest for Exports<P> {
    fn init(event: types::Event, reason: lifecycle::Reason) -> Result<(), types::Error> {
        let reason = match reason {
            lifecycle::Reason::Created => Reason::Created,
            lifecycle::Reason::Started => Reason::Started,
            lifecycle::Reason::Updated => Reason::Updated,
        };
        told(P::with(|plugin| plugin.init(&mut event.into(), reason)))
    }

    fn migrate(event: types::Event, from_schema: u32) -> Result<(), types::Error> {
        told(P::with(|plugin| {
            plugin.migrate(&mut event.into(), from_schema)
        }))
    }

    fn health(event: types::Event) -> Result<String, types::Error> {
        told(P::with(|plugin| plugin.health(&event.into())))
    }
}

impl<P: Held> on_request::Guest for Exports<P> {
    fn handle(
        event: types::Event,
        request: on_request::Request,
    ) -> Result<on_request::Reply, types::Error> {
        let request = Request {
            id: request.id,
            caller: request.caller.into(),
            name: request.name,
            body: request.body,
            deadline_ms: request.deadline_ms,
        };
        let reply = told(P::with(|plugin| plugin.request(&mut event.into(), request)))?;
        Ok(match reply {
            Reply::Done(body) => on_request::Reply::Done(body),
            Reply::Later => on_request::Reply::Later,
        })
    }

    fn canceled(event: types::Event, id: u64) -> Result<(), types::Error> {
        told(P::with(|plugin| plugin.canceled(&mut event.into(), id)))
    }
}

impl<P: Held> on_query::Guest for Exports<P> {
    fn query(
        event: types::Event,
        caller: on_request::Caller,
        name: String,
        body: Vec<u8>,
    ) -> Result<Vec<u8>, types::Error> {
        let caller = caller.into();
        told(P::with(|plugin| {
            plugin.query(&event.into(), &caller, &name, &body)
        }))
    }
}

impl<P: Held> on_timer::Guest for Exports<P> {
    fn timer(event: types::Event, name: String, payload: Vec<u8>) -> Result<(), types::Error> {
        told(P::with(|plugin| {
            plugin.timer(&mut event.into(), &name, &payload)
        }))
    }
}

fn told<T>(answer: crate::Result<T>) -> Result<T, types::Error> {
    answer.map_err(types::Error::from)
}

impl From<types::Event> for Context {
    fn from(event: types::Event) -> Self {
        let principal = match event.principal {
            types::Principal::Node => Principal::Node,
            types::Principal::User(name) => Principal::User(name.into()),
        };
        Self::new(event.id, event.attempt, event.now_ms, principal)
    }
}

impl From<on_request::Caller> for Caller {
    fn from(caller: on_request::Caller) -> Self {
        match caller {
            on_request::Caller::Operator => Self::Operator,
            on_request::Caller::User(name) => Self::User(name.into()),
        }
    }
}

impl From<types::Error> for Error {
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

impl From<Error> for types::Error {
    fn from(error: Error) -> Self {
        let code = match error.code {
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
            message: error.message,
        }
    }
}
