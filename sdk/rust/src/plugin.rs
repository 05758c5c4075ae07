//! What a plugin implements.

use std::sync::Arc;

use crate::{Context, Error, Reply, Request, Result, request::Caller};

/// Whom an event, its state, its timers and its keys are for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Principal {
    /// The node itself.
    Node,
    /// One of its users, by name.
    User(Arc<str>),
}

/// Why a principal is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// For the first time.
    Created,
    /// The node started, or forgot what was not durable after a disk error.
    Started,
    /// Another version of the plugin took over.
    Updated,
}

/// Makes a component of a type that implements [`Plugin`](crate::Plugin): one line, once.
#[macro_export]
macro_rules! plugin {
    ($plugin:ty) => {
        #[cfg(not(target_family = "wasm"))]
        const _: fn() -> $plugin = ::std::default::Default::default;

        #[cfg(target_family = "wasm")]
        const _: () = {
            ::std::thread_local! {
                static PLUGIN: ::std::cell::RefCell<$plugin> = ::std::cell::RefCell::default();
            }

            impl $crate::wasm::Held for $plugin {
                fn with<T>(handler: impl FnOnce(&mut Self) -> T) -> T {
                    PLUGIN.with_borrow_mut(handler)
                }
            }

            type Component = $crate::wasm::Exports<$plugin>;
    $crate::wasm::bindings::export!(Component with_types_in $crate::wasm::bindings);
        };
    };
}

/// A plugin: what it makes of each event. The value lasts from event to event only as a cache: what
/// must not be lost is written to the state.
pub trait Plugin: Default + 'static {
    /// The first event of each principal since the node started, or the plugin was updated.
    ///
    /// # Errors
    /// The plugin's own; the principal is parked then.
    fn init(&mut self, cx: &mut Context, reason: Reason) -> Result<()> {
        let _ = (cx, reason);
        Ok(())
    }

    /// Turns the state of an older schema into today's, before [`init`](Self::init).
    ///
    /// # Errors
    /// The plugin's own; the principal is parked then, and its rows stay as they are.
    fn migrate(&mut self, cx: &mut Context, from_schema: u32) -> Result<()> {
        let _ = cx;
        Err(Error::failed(format!(
            "this plugin cannot read the state of schema {from_schema}"
        )))
    }

    /// Whether all is well, in one line. Writes nothing.
    ///
    /// # Errors
    /// What is wrong.
    fn health(&self, cx: &Context) -> Result<String> {
        let _ = cx;
        Ok("well".to_owned())
    }

    /// Somebody waits for an answer.
    ///
    /// # Errors
    /// The answer: no.
    fn request(&mut self, cx: &mut Context, request: Request) -> Result<Reply> {
        let _ = cx;
        Err(unknown(&request.name))
    }

    /// Nobody waits for this request any more.
    ///
    /// # Errors
    /// The plugin's own.
    fn canceled(&mut self, cx: &mut Context, request: u64) -> Result<()> {
        let _ = (cx, request);
        Ok(())
    }

    /// A question that changes nothing: it runs beside events, on what is durable.
    ///
    /// # Errors
    /// The answer: no.
    fn query(&self, cx: &Context, caller: &Caller, name: &str, body: &[u8]) -> Result<Vec<u8>> {
        let _ = (cx, caller, body);
        Err(unknown(name))
    }

    /// A timer is due.
    ///
    /// # Errors
    /// The plugin's own; the timer is gone then, too.
    fn timer(&mut self, cx: &mut Context, name: &str, payload: &[u8]) -> Result<()> {
        let _ = (cx, payload);
        Err(unknown(name))
    }
}

fn unknown(name: &str) -> Error {
    Error::not_found(format!("the plugin has nothing named `{name}`"))
}
