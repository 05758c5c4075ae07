//! The glue of a component: the ABI's imports and exports on one side, [`Host`] and
//! [`Plugin`](crate::Plugin) on the other.

mod blobs;
mod keys;
mod messages;
mod rules;
mod wires;

use std::net::SocketAddr;

use crate::{
    Algorithm, Connect, Context, Error, ErrorCode, Fetch, HttpResponse, KeyPair, Level, Migration,
    Principal, Reason,
    host::{Form, Range},
    message::{Address, Identity, Letter},
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

pub(crate) use bindings::wormholes::plugin::{scratch, secret, state};
use bindings::{
    exports::wormholes::plugin::{lifecycle, on_query, on_request, on_timer},
    wormholes::plugin::{facts, requests, system, timers, types},
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

impl Node {
    pub(crate) fn set_timer(
        &mut self,
        name: &str,
        at_ms: u64,
        payload: &[u8],
        durable: bool,
    ) -> crate::Result<()> {
        timers::set(name, at_ms, payload, durable).map_err(Error::from)
    }

    pub(crate) fn cancel_timer(&mut self, name: &str) -> crate::Result<()> {
        timers::cancel(name).map_err(Error::from)
    }

    pub(crate) fn timer_due(&mut self, name: &str) -> Option<u64> {
        timers::due(name)
    }

    pub(crate) fn finish(
        &mut self,
        request: u64,
        answer: crate::Result<Vec<u8>>,
    ) -> crate::Result<()> {
        let answer = answer.map_err(types::Error::from);
        requests::finish(request, answer.as_deref()).map_err(Error::from)
    }

    pub(crate) fn progress(
        &mut self,
        request: u64,
        percent: Option<u8>,
        text: &str,
    ) -> crate::Result<()> {
        requests::progress(request, percent, text).map_err(Error::from)
    }

    pub(crate) fn send(&mut self, letter: Letter) -> crate::Result<u64> {
        messages::send(letter)
    }

    pub(crate) fn post(&mut self, letter: Letter) -> crate::Result<()> {
        messages::post(letter)
    }

    pub(crate) fn ask(&mut self, letter: Letter, deadline_ms: u64) -> crate::Result<u64> {
        messages::ask(letter, deadline_ms)
    }

    pub(crate) fn waiting(&mut self, to: &Address, protocol: &str, sender: &Identity) -> u64 {
        messages::waiting(to, protocol, sender)
    }

    pub(crate) fn reopen(
        &mut self,
        peer: &Address,
        protocol: &str,
        sender: &Identity,
    ) -> crate::Result<()> {
        messages::reopen(peer, protocol, sender)
    }

    pub(crate) fn alias_key(&mut self, name: &str) -> [u8; 32] {
        messages::alias_key(name)
    }

    pub(crate) fn set_fact(
        &mut self,
        kind: &str,
        peer: &[u8; 32],
        value: i64,
        ttl_ms: u64,
    ) -> crate::Result<()> {
        facts::set(kind, peer, value, ttl_ms).map_err(Error::from)
    }

    pub(crate) fn clear_fact(&mut self, kind: &str, peer: &[u8; 32]) -> crate::Result<()> {
        facts::clear(kind, peer).map_err(Error::from)
    }

    pub(crate) fn ask_rules(&mut self, hook: &str, question: &str) -> crate::Result<crate::Ruling> {
        rules::ask(hook, question)
    }

    pub(crate) fn create_key(
        &mut self,
        name: &str,
        algorithm: Algorithm,
    ) -> crate::Result<Vec<u8>> {
        keys::create(name, algorithm)
    }

    pub(crate) fn forget_key(&mut self, name: &str) -> crate::Result<()> {
        keys::forget(name)
    }

    pub(crate) fn public_key(
        &mut self,
        key: &KeyPair,
        algorithm: Algorithm,
    ) -> crate::Result<Vec<u8>> {
        keys::public(key, algorithm)
    }

    pub(crate) fn sign(
        &mut self,
        key: &KeyPair,
        form: Form<'_>,
        message: &[u8],
    ) -> crate::Result<[u8; 64]> {
        keys::sign(key, form, message)
    }

    pub(crate) fn agree(&mut self, key: &KeyPair, theirs: &[u8; 32]) -> crate::Result<[u8; 32]> {
        keys::agree(key, theirs)
    }

    pub(crate) fn decapsulate(
        &mut self,
        key: &KeyPair,
        ciphertext: &[u8],
    ) -> crate::Result<[u8; 32]> {
        keys::decapsulate(key, ciphertext)
    }

    pub(crate) fn verify(
        &mut self,
        by: &[u8; 32],
        form: Form<'_>,
        message: &[u8],
        signature: &[u8; 64],
    ) -> bool {
        keys::verify(by, form, message, signature)
    }

    pub(crate) fn put_blob(&mut self, bytes: &[u8]) -> crate::Result<[u8; 32]> {
        blobs::put(bytes)
    }

    pub(crate) fn append_draft(&mut self, name: &str, bytes: &[u8]) -> crate::Result<u64> {
        blobs::append(name, bytes)
    }

    pub(crate) fn seal_draft(&mut self, name: &str) -> crate::Result<[u8; 32]> {
        blobs::seal(name)
    }

    pub(crate) fn discard_draft(&mut self, name: &str) -> crate::Result<()> {
        blobs::discard(name)
    }

    pub(crate) fn blob_length(&mut self, blob: &[u8; 32]) -> Option<u64> {
        blobs::length(blob)
    }

    pub(crate) fn read_blob(
        &mut self,
        blob: &[u8; 32],
        offset: u64,
        length: u32,
    ) -> crate::Result<Vec<u8>> {
        blobs::read(blob, offset, length)
    }

    pub(crate) fn hold_blob(&mut self, blob: &[u8; 32]) -> crate::Result<()> {
        blobs::hold(blob)
    }

    pub(crate) fn release_blob(&mut self, blob: &[u8; 32]) -> crate::Result<()> {
        blobs::release(blob)
    }

    pub(crate) fn blobs(&mut self, after: Option<&[u8; 32]>, limit: u32) -> Vec<crate::Held> {
        blobs::page(after, limit)
    }

    pub(crate) fn fetch_blob(&mut self, fetch: crate::BlobFetch) -> crate::Result<u64> {
        blobs::fetch(fetch)
    }

    pub(crate) fn cancel_fetch(&mut self, id: u64) -> crate::Result<()> {
        blobs::cancel(id)
    }

    pub(crate) fn respond(&mut self, request: u64, response: HttpResponse) -> crate::Result<()> {
        wires::respond(request, response)
    }

    pub(crate) fn fetch(&mut self, wanted: Fetch, deadline_ms: u64) -> crate::Result<u64> {
        wires::send(wanted, deadline_ms)
    }

    pub(crate) fn connect(&mut self, wanted: Connect) -> crate::Result<u64> {
        wires::connect(wanted)
    }

    pub(crate) fn socket_credit(&mut self, socket: u64, bytes: u32) -> crate::Result<()> {
        wires::credit(socket, bytes)
    }

    pub(crate) fn socket_write(&mut self, socket: u64, data: &[u8]) -> crate::Result<()> {
        wires::write(socket, data)
    }

    pub(crate) fn socket_room(&mut self, socket: u64) -> u32 {
        wires::room(socket)
    }

    pub(crate) fn socket_close(&mut self, socket: u64) -> crate::Result<()> {
        wires::close(socket)
    }

    pub(crate) fn send_to(&mut self, port: u16, to: SocketAddr, data: &[u8]) -> crate::Result<()> {
        wires::send_to(port, to, data)
    }

    pub(crate) fn log(&mut self, level: Level, message: &str) {
        let level = match level {
            Level::Trace => system::Level::Trace,
            Level::Debug => system::Level::Debug,
            Level::Info => system::Level::Info,
            Level::Warn => system::Level::Warn,
            Level::Error => system::Level::Error,
        };
        system::log(level, message);
    }

    pub(crate) fn random(&mut self, length: u32) -> Vec<u8> {
        system::random(length)
    }

    pub(crate) fn config(&mut self, key: &str) -> Option<String> {
        system::config(key)
    }

    pub(crate) fn node_id(&mut self) -> [u8; 32] {
        system::node_id().try_into().unwrap_or_default()
    }

    pub(crate) fn instance(&mut self) -> String {
        system::instance()
    }
}

impl From<&Range> for state::Range {
    fn from(range: &Range) -> Self {
        Self {
            prefix: range.prefix.clone(),
            after: range.after.clone(),
            backwards: range.backwards,
            limit: range.limit,
        }
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

    fn migrate(
        event: types::Event,
        from_schema: u32,
    ) -> Result<lifecycle::Migration, types::Error> {
        let told = told(P::with(|plugin| {
            plugin.migrate(&mut event.into(), from_schema)
        }));
        told.map(|how_far| match how_far {
            Migration::Done => lifecycle::Migration::Done,
            Migration::Again => lifecycle::Migration::Again,
        })
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
        Self::new(
            event.id,
            event.attempt,
            event.now_ms,
            event.principal.into(),
        )
    }
}

impl From<types::Principal> for Principal {
    fn from(principal: types::Principal) -> Self {
        match principal {
            types::Principal::Node => Self::Node,
            types::Principal::User(name) => Self::User(name.into()),
        }
    }
}

impl From<on_request::Caller> for Caller {
    fn from(caller: on_request::Caller) -> Self {
        match caller {
            on_request::Caller::Operator => Self::Operator,
            on_request::Caller::User(name) => Self::User(name.into()),
            on_request::Caller::Plugin(asker) => Self::Plugin {
                from: asker.from.into(),
                own: asker.own.into(),
            },
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
