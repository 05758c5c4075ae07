//! A plugin's code, and one instance of it in WebAssembly.
//!
//! An instance runs one event at a time, over the transaction that it is handed. After a trap, a
//! time-out or an error it is dropped, never used again: its memory was not undone with the event.

mod abi;
mod budget;
mod cache;
mod engine;
mod exports;
mod imports;
mod limiter;
mod stacks;
mod wasi;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, mem,
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use wasmtime::{
    Store,
    component::{Component, InstancePre},
};
use wormholes_proto::NodeId;

/// The words of the ABI, and the functions that a component imports, as a [`State`] has them.
pub use self::abi::wormholes::plugin as words;
use self::{
    abi::handlers,
    budget::within,
    exports::{Exports, Handlers},
    imports::{check_import, own_interface},
    limiter::Limiter,
    stacks::Stack,
};
pub(crate) use self::{abi::http_answer, cache::Cache, engine::Engine};
use crate::{
    blobs::Blobs,
    event::{ErrorCode, Event, Query, Refusal, Reply, Request, Wish},
    lines::PluginLines,
    network::Network,
    source::Source,
    transaction::{Limit, MAX_ANSWER_BYTES, Transaction},
};
use wormholes_proto::manifest::{Capabilities, Limits};

/// Of standard error, until the end of a line.
const MAX_STDERR_BYTES: usize = 4096;
const MAX_TABLE_ELEMENTS: usize = 100_000;
/// What one call of a plugin hands to the host: a row of the greatest length, and room to spare.
const MAX_CALL_BYTES: usize = 4 << 20;

/// What the instances of a plugin share.
#[derive(Debug)]
pub(crate) struct Plugin {
    pub(crate) name: Arc<str>,
    pub(crate) around: Around,
    /// Values as JSON.
    pub(crate) config: BTreeMap<String, String>,
    /// What both its manifest and config.toml say.
    pub(crate) granted: Arc<Capabilities>,
    pub(crate) limits: Arc<Limits>,
    /// Whether it takes messages of whoever calls.
    pub(crate) strangers: bool,
    /// What its instances said last.
    pub(crate) lines: Arc<PluginLines>,
}

/// The node around a plugin.
#[derive(Debug, Clone)]
pub(crate) struct Around {
    pub(crate) node: NodeId,
    /// `None`: it is only looked at, and never run.
    pub(crate) network: Option<Arc<dyn Network>>,
    /// The same.
    pub(crate) blobs: Option<Blobs>,
}

impl Around {
    /// For a plugin that is not run.
    pub(crate) fn nobody() -> Self {
        Self {
            node: NodeId::from_bytes([0; 32]),
            network: None,
            blobs: None,
        }
    }
}

/// A plugin's compiled code, with its imports and grants checked.
pub(crate) struct Code {
    engine: Arc<Engine>,
    plugin: Arc<Plugin>,
    ready: InstancePre<State>,
    exports: Exports,
    sha256: [u8; 32],
}

/// A component that is not run.
#[derive(Debug, Error)]
pub enum CodeError {
    /// It is not a component that this engine can compile.
    #[error("this is no WebAssembly component: {0}")]
    NotAComponent(String),
    /// It imports what its manifest does not ask for, or config.toml does not grant.
    #[error(
        "the plugin imports `{interface}`; ask for `{capability}` in [capabilities] of its \
         plugin.toml and grant it in config.toml, in both as `true` or as the same list"
    )]
    NotGranted {
        /// The interface.
        interface: String,
        /// What must be asked for and granted.
        capability: &'static str,
    },
    /// It imports what this build does not have.
    #[error("the plugin imports `{0}`, which plugins of this daemon do not get")]
    Unknown(String),
    /// An interface that it shares with the host has another shape.
    #[error("the plugin was built for another ABI: {0}")]
    OtherAbi(String),
}

/// What a handler made of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is done.
    Done,
    /// A migration has more to do.
    Again,
    /// A request is answered, or will be.
    Replied(Reply),
}

/// An event that did not succeed.
#[derive(Debug, Error)]
pub(crate) enum Fault {
    /// The handler said no: final.
    #[error("{0}")]
    Refused(Refusal),
    /// It broke.
    #[error("{0}")]
    Trapped(String),
    /// It ran longer than an event may.
    #[error("it ran longer than limits.event_ms, {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// Not the plugin's fault: the store cannot be read.
    #[error("the store cannot be read: {0}")]
    Host(String),
    /// Not the plugin's fault: a migration makes way for what an operator wants by now.
    #[error("given up, for another change")]
    GivenUp,
}

/// One instance.
pub(crate) struct Instance {
    engine: Arc<Engine>,
    store: Store<State>,
    handlers: Handlers,
    stack: Option<Stack>,
    /// Whether its stack was used since it rested.
    is_awake: bool,
}

/// What the host keeps for an instance; the functions that components import are its own.
pub struct State {
    plugin: Arc<Plugin>,
    transaction: Option<Box<Transaction>>,
    limiter: Limiter,
    stderr: Vec<u8>,
}

impl Code {
    /// Compiles a component, and checks that it may import what it imports. Takes seconds for
    /// components of many megabytes that are not in the cache.
    pub(crate) fn compile(
        engine: Arc<Engine>,
        cache: Option<&Cache>,
        plugin: Arc<Plugin>,
        source: &Source,
    ) -> Result<Self, CodeError> {
        let component = match cache {
            Some(cache) => cache.component(engine.wasmtime(), source),
            None => Component::from_binary(engine.wasmtime(), &source.wasm),
        };
        let component =
            component.map_err(|error| CodeError::NotAComponent(format!("{error:#}")))?;
        Self::new(engine, plugin, &component, source.sha256())
    }

    fn new(
        engine: Arc<Engine>,
        plugin: Arc<Plugin>,
        component: &Component,
        sha256: [u8; 32],
    ) -> Result<Self, CodeError> {
        let other_abi = |error: wasmtime::Error| CodeError::OtherAbi(format!("{error:#}"));
        let kind = component.component_type();
        for (name, import) in kind.imports(engine.wasmtime()) {
            check_import(engine.wasmtime(), name, &import.ty, &plugin.granted)?;
        }
        let imports = kind
            .imports(engine.wasmtime())
            .map(|(name, item)| (name, item.ty));
        let inert = imports.filter(|(name, _)| wasi::is_inert(name));
        let mut linker = engine.linker();
        wasi::add_to(engine.wasmtime(), &mut linker, inert).map_err(other_abi)?;
        let ready = linker.instantiate_pre(component).map_err(other_abi)?;
        let exports = |interface: &str| {
            let mut exports = kind.exports(engine.wasmtime());
            exports.any(|(name, _)| own_interface(name) == Some(interface))
        };
        let exports = Exports::find(&ready, exports).map_err(other_abi)?;
        Ok(Self {
            engine,
            plugin,
            ready,
            exports,
            sha256,
        })
    }

    /// The component's SHA-256.
    pub(crate) fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// Whether messages and questions of others reach it, or wishes for its blobs: it was granted them, and
    /// has a handler.
    pub(crate) fn takes_messages(&self) -> bool {
        let takes_questions = self.plugin.granted.messages && self.exports.request.is_some();
        takes_questions || self.takes_channels() || self.gives_blobs()
    }

    /// Whether others may have blobs of it.
    pub(crate) fn gives_blobs(&self) -> bool {
        self.plugin.granted.blobs && self.exports.blob.is_some()
    }

    /// Whether messages of others do.
    pub(crate) fn takes_channels(&self) -> bool {
        self.plugin.granted.messages && self.exports.message.is_some()
    }

    /// Whether it is told of peers.
    pub(crate) fn hears_of_peers(&self) -> bool {
        self.plugin.granted.presence && self.exports.presence.is_some()
    }

    /// Whether it is told what was billed.
    pub(crate) fn hears_of_usage(&self) -> bool {
        self.plugin.granted.usage && self.exports.usage.is_some()
    }

    pub(crate) fn plugin(&self) -> &Arc<Plugin> {
        &self.plugin
    }

    /// A new instance, with fresh memory.
    pub(crate) async fn instantiate(&self) -> Result<Instance, Fault> {
        let mut store = Store::new(self.engine.wasmtime(), State::new(Arc::clone(&self.plugin)));
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(MAX_CALL_BYTES);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        let budget = self.plugin.limits.event_time();
        let (instance, stack) = {
            let _running = self.engine.running();
            let made = within(budget, self.ready.instantiate_async(&mut store));
            stacks::caught(made).await
        };
        let instance = instance?;
        let broken = |error: wasmtime::Error| Fault::Trapped(format!("{error:#}"));
        let handlers = self.exports.of(&mut store, &instance).map_err(broken)?;
        Ok(Instance {
            engine: Arc::clone(&self.engine),
            handlers,
            store,
            stack,
            is_awake: true,
        })
    }
}

impl Instance {
    /// Runs one event. The transaction comes back whatever happens; after a [`Fault`] this instance
    /// must be dropped. Not cancel-safe.
    pub(crate) async fn run(
        &mut self,
        event: &Event,
        transaction: Box<Transaction>,
    ) -> (Result<Outcome, Fault>, Option<Box<Transaction>>) {
        let stamp = abi::words::Event::from(transaction.stamp());
        let budget = self.store.data().plugin.limits.event_time();
        self.store.data_mut().transaction = Some(transaction);
        self.store.set_epoch_deadline(1);
        self.is_awake = true;
        let (outcome, stack) = {
            let engine = Arc::clone(&self.engine);
            let _running = engine.running();
            stacks::caught(within(budget, self.call(event, stamp))).await
        };
        self.stack = self.stack.take().or(stack);
        let state = self.store.data_mut();
        state.flush_stderr();
        let hits = mem::take(&mut state.limiter.hits);
        let mut transaction = state.transaction.take();
        if let Some(transaction) = &mut transaction {
            transaction.ran_into(hits);
            if let Err(Fault::TimedOut(_)) = &outcome {
                transaction.ran_into([Limit::Time]);
            }
        }
        (
            outcome.and_then(|told| told.map_err(Fault::Refused)),
            transaction,
        )
    }

    /// Whether it takes more memory than it needs between events.
    pub(crate) fn is_awake(&self) -> bool {
        self.is_awake
    }

    /// Gives back what the next event can have anew.
    pub(crate) fn rest(&mut self) {
        self.is_awake = false;
        if let Some(stack) = &self.stack {
            stack.rest(&mut self.store);
        }
    }

    /// Answers a question over a transaction that cannot write. This instance must be dropped after
    /// it: what it remembers may be of no other use.
    pub(crate) async fn answer(
        mut self,
        query: &Query,
        transaction: Box<Transaction>,
    ) -> Result<Vec<u8>, Fault> {
        let stamp = abi::words::Event::from(transaction.stamp());
        let budget = self.store.data().plugin.limits.event_time();
        self.store.data_mut().transaction = Some(transaction);
        self.store.set_epoch_deadline(1);
        let engine = Arc::clone(&self.engine);
        let _running = engine.running();
        let store = &mut self.store;
        let told = match query {
            Query::Health => {
                let health = self.handlers.lifecycle.call_health(store, &stamp);
                let told = within(budget, health).await?;
                told.map(String::into_bytes)
            }
            Query::MayRead { from, own, blob } => {
                // Whoever has no handler gives nothing.
                let Some(handler) = self.handlers.blob.as_ref() else {
                    return Ok(vec![0]);
                };
                let told = abi::call_may_read(handler, store, &stamp, (from, own), *blob);
                let told = within(budget, told).await?;
                told.map(|may| vec![u8::from(may)])
            }
            Query::Command { caller, name, body } => {
                let handler = self.handlers.query.as_ref();
                let handler =
                    handler.ok_or_else(|| Fault::Refused(Refusal::no_handler("on-query")))?;
                let caller = caller.into();
                let answer = handler.call_query(store, &stamp, &caller, name, body);
                within(budget, answer).await?
            }
            Query::Http(request) => {
                let handler = self.handlers.http_query.as_ref();
                let handler =
                    handler.ok_or_else(|| Fault::Refused(Refusal::no_handler("on-http-query")))?;
                let answer = abi::call_http_query(handler, store, request, &stamp);
                let answer = within(budget, answer).await?;
                self.store.data_mut().flush_stderr();
                return answer.map_err(Fault::Refused);
            }
        };
        self.store.data_mut().flush_stderr();
        let told = told.map_err(Refusal::from).and_then(checked);
        told.map_err(Fault::Refused)
    }

    async fn call(
        &mut self,
        event: &Event,
        stamp: abi::words::Event,
    ) -> wasmtime::Result<Result<Outcome, Refusal>> {
        let store = &mut self.store;
        let told = match event {
            Event::Migrate { from } => {
                let told = &self.handlers.lifecycle;
                let told = told.call_migrate(store, &stamp, *from).await?;
                return Ok(told.map(Outcome::from).map_err(Refusal::from));
            }
            Event::Init(reason) => {
                let told = &self.handlers.lifecycle;
                told.call_init(store, &stamp, (*reason).into()).await?
            }
            Event::Timer { name, payload } => match &self.handlers.timer {
                Some(handler) => handler.call_timer(store, &stamp, name, payload).await?,
                None => return Ok(Err(Refusal::no_handler("on-timer"))),
            },
            Event::Message(_) | Event::Note { .. } | Event::Answer { .. } => {
                let Some(handler) = &self.handlers.message else {
                    return Ok(Err(Refusal::no_handler("on-message")));
                };
                abi::call_message(handler, store, event, &stamp).await?
            }
            Event::Fetched { id, answer } => {
                let answer = (*id, answer.as_ref().map(|answer| &**answer));
                abi::call_fetched(&self.handlers, store, answer, &stamp).await?
            }
            Event::Socket { id, news } => {
                abi::call_socket(&self.handlers, store, (*id, news), &stamp).await?
            }
            Event::Datagram(datagram) => {
                abi::call_datagram(&self.handlers, store, datagram, &stamp).await?
            }
            Event::Presence {
                peer,
                online,
                trust,
            } => match &self.handlers.presence {
                Some(handler) => {
                    let peer = peer.as_bytes().to_vec();
                    let told = handler.call_presence(store, &stamp, &peer, *online, *trust);
                    told.await?
                }
                None => return Ok(Err(Refusal::no_handler("on-presence"))),
            },
            Event::Usage(used) => match &self.handlers.usage {
                Some(handler) => abi::call_usage(handler, store, used, &stamp).await?,
                None => return Ok(Err(Refusal::no_handler("on-usage"))),
            },
            Event::BlobFetched { id, outcome } => {
                let fetched = (*id, outcome.as_ref());
                abi::call_blob_fetched(&self.handlers, store, fetched, &stamp).await?
            }
            Event::Canceled { request, kind } => {
                let handlers = &self.handlers;
                abi::call_canceled(handlers, store, (*request, *kind), &stamp).await?
            }
            Event::Request(request) => return self.handle(request, &stamp).await,
        };
        Ok(told.map(|()| Outcome::Done).map_err(Refusal::from))
    }

    async fn handle(
        &mut self,
        request: &Request,
        stamp: &abi::words::Event,
    ) -> wasmtime::Result<Result<Outcome, Refusal>> {
        let command = match &request.wish {
            Wish::Command(command) => command,
            Wish::Http(http) => return self.handle_http(request, http, stamp).await,
        };
        let request = handlers::on_request::Request {
            id: request.id,
            caller: (&command.caller).into(),
            name: command.name.to_string(),
            body: command.body.to_vec(),
            deadline_ms: request.deadline_ms,
        };
        let Some(handler) = &self.handlers.request else {
            return Ok(Err(Refusal::no_handler("on-request")));
        };
        let reply = handler
            .call_handle(&mut self.store, stamp, &request)
            .await?;
        Ok(match reply {
            Ok(handlers::on_request::Reply::Done(body)) => {
                checked(body).map(|body| Outcome::Replied(Reply::Done(body)))
            }
            Ok(handlers::on_request::Reply::Later) => Ok(Outcome::Replied(Reply::Later)),
            Err(error) => Err(error.into()),
        })
    }
}

impl State {
    /// With an event, for calls that no component makes.
    pub(crate) fn with(plugin: Arc<Plugin>, event: Box<Transaction>) -> Self {
        Self {
            transaction: Some(event),
            ..Self::new(plugin)
        }
    }

    /// The event that runs; the calls that follow have none.
    pub(crate) fn take_event(&mut self) -> Option<Box<Transaction>> {
        self.flush_stderr();
        self.transaction.take()
    }

    /// The calls that follow are this event's.
    pub(crate) fn put_event(&mut self, event: Box<Transaction>) {
        self.transaction = Some(event);
    }

    fn new(plugin: Arc<Plugin>) -> Self {
        let limiter = Limiter {
            memory_bytes: plugin.limits.memory_bytes(),
            table_elements: MAX_TABLE_ELEMENTS,
            hits: BTreeSet::new(),
        };
        Self {
            plugin,
            transaction: None,
            limiter,
            stderr: Vec::new(),
        }
    }

    /// A line of the plugin's, as long as the event may log.
    fn log(&mut self, level: tracing::Level, text: &str) {
        let Some(event) = &mut self.transaction else {
            return;
        };
        if event.charge_log(text.len()).is_err() {
            return;
        }
        let principal = event.stamp().principal.to_string();
        let lines = &self.plugin.lines;
        lines.push(level, principal.clone(), text, &self.plugin.limits);
        let plugin = &*self.plugin.name;
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(plugin, principal, text, "plugin says")
            };
        }
        match level {
            tracing::Level::ERROR => line!(error),
            tracing::Level::WARN => line!(warn),
            tracing::Level::INFO => line!(info),
            tracing::Level::DEBUG => line!(debug),
            tracing::Level::TRACE => line!(trace),
        }
    }

    /// Standard error, a line at a time.
    pub(crate) fn write_stderr(&mut self, bytes: &[u8]) {
        // What the event may not log need not be looked at.
        let bytes = bytes.get(..self.plugin.limits.log_bytes()).unwrap_or(bytes);
        for byte in bytes {
            if *byte == b'\n' || self.stderr.len() >= MAX_STDERR_BYTES {
                self.flush_stderr();
            }
            if *byte != b'\n' {
                self.stderr.push(*byte);
            }
        }
    }

    fn flush_stderr(&mut self) {
        if !self.stderr.is_empty() {
            let text = String::from_utf8_lossy(&self.stderr).into_owned();
            self.stderr.clear();
            self.log(tracing::Level::WARN, &text);
        }
    }

    /// Random bytes for the standard library; before the first event, the same for everybody.
    pub(crate) fn wasi_random(&mut self, length: u64) -> wasmtime::Result<Vec<u8>> {
        let length = usize::try_from(length)?;
        Ok(match &mut self.transaction {
            Some(event) => event.random(length),
            None => vec![0; length.min(16)],
        })
    }
}

/// An answer, if it is not too long.
pub(crate) fn checked(answer: Vec<u8>) -> Result<Vec<u8>, Refusal> {
    if answer.len() > MAX_ANSWER_BYTES {
        let long = "the plugin's answer is longer than 1 MiB";
        return Err(Refusal::new(ErrorCode::Quota, long));
    }
    Ok(answer)
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("State").field(&self.plugin.name).finish()
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").finish_non_exhaustive()
    }
}
