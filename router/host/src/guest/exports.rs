//! The handlers that a component exports.

use wasmtime::{
    Store,
    component::{Instance, InstancePre},
};

use super::{State, abi::handlers};

/// Where the component's handlers are; those that it has not, answer nothing.
pub(super) struct Exports {
    lifecycle: handlers::lifecycle::GuestIndices,
    pub(super) request: Option<handlers::on_request::GuestIndices>,
    query: Option<handlers::on_query::GuestIndices>,
    timer: Option<handlers::on_timer::GuestIndices>,
    pub(super) message: Option<handlers::on_message::GuestIndices>,
    pub(super) presence: Option<handlers::on_presence::GuestIndices>,
    pub(super) usage: Option<handlers::on_usage::GuestIndices>,
    pub(super) blob: Option<handlers::on_blob::GuestIndices>,
    pub(super) http: Option<handlers::on_http::GuestIndices>,
    http_query: Option<handlers::on_http_query::GuestIndices>,
    fetch: Option<handlers::on_fetch::GuestIndices>,
    socket: Option<handlers::on_socket::GuestIndices>,
}

/// Those of one instance.
pub(super) struct Handlers {
    pub(super) lifecycle: handlers::lifecycle::Guest,
    pub(super) request: Option<handlers::on_request::Guest>,
    pub(super) query: Option<handlers::on_query::Guest>,
    pub(super) timer: Option<handlers::on_timer::Guest>,
    pub(super) message: Option<handlers::on_message::Guest>,
    pub(super) presence: Option<handlers::on_presence::Guest>,
    pub(super) usage: Option<handlers::on_usage::Guest>,
    pub(super) blob: Option<handlers::on_blob::Guest>,
    pub(super) http: Option<handlers::on_http::Guest>,
    pub(super) http_query: Option<handlers::on_http_query::Guest>,
    pub(super) fetch: Option<handlers::on_fetch::Guest>,
    pub(super) socket: Option<handlers::on_socket::Guest>,
}

impl Exports {
    /// Finds those that `has` says are there.
    ///
    /// # Errors
    /// One has another shape than the ABI says.
    pub(super) fn find(
        ready: &InstancePre<State>,
        has: impl Fn(&str) -> bool,
    ) -> wasmtime::Result<Self> {
        macro_rules! find {
            ($interface:literal, $module:ident) => {
                has($interface)
                    .then(|| handlers::$module::GuestIndices::new(ready))
                    .transpose()?
            };
        }
        Ok(Self {
            lifecycle: handlers::lifecycle::GuestIndices::new(ready)?,
            request: find!("on-request", on_request),
            query: find!("on-query", on_query),
            timer: find!("on-timer", on_timer),
            message: find!("on-message", on_message),
            presence: find!("on-presence", on_presence),
            usage: find!("on-usage", on_usage),
            blob: find!("on-blob", on_blob),
            http: find!("on-http", on_http),
            http_query: find!("on-http-query", on_http_query),
            fetch: find!("on-fetch", on_fetch),
            socket: find!("on-socket", on_socket),
        })
    }

    /// Those of an instance.
    ///
    /// # Errors
    /// It lacks one that its component has.
    pub(super) fn of(
        &self,
        store: &mut Store<State>,
        instance: &Instance,
    ) -> wasmtime::Result<Handlers> {
        macro_rules! load {
            ($handler:ident) => {
                match &self.$handler {
                    Some(at) => Some(at.load(&mut *store, instance)?),
                    None => None,
                }
            };
        }
        Ok(Handlers {
            lifecycle: self.lifecycle.load(&mut *store, instance)?,
            request: load!(request),
            query: load!(query),
            timer: load!(timer),
            message: load!(message),
            presence: load!(presence),
            usage: load!(usage),
            blob: load!(blob),
            http: load!(http),
            http_query: load!(http_query),
            fetch: load!(fetch),
            socket: load!(socket),
        })
    }
}
