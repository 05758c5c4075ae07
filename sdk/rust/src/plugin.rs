//! What a plugin implements.

use std::{net::SocketAddr, sync::Arc};

use crate::{
    Address, Blob, BlobFetched, Closing, Context, Error, Halt, HttpReply, HttpRequest,
    HttpResponse, Identity, Incoming, Outcome, Reply, Request, Result, Socket, Usage,
    request::Caller,
};

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

/// How far a migration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Migration {
    /// All rows are those of today's schema.
    Done,
    /// There is more to do: [`Plugin::migrate`] is called again, with new limits and new memory. It
    /// must have written something: what says how far it is, if nothing else.
    Again,
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
    /// The plugin's own; the principal is parked then, or after an update the version before runs on.
    fn init(&mut self, cx: &mut Context, reason: Reason) -> Result<()> {
        let _ = (cx, reason);
        Ok(())
    }

    /// Turns the state of another schema into today's, before [`init`](Self::init): at once, or in
    /// steps that have the limits of an event each. It works on a copy of the rows, which takes their
    /// place when all principals are ready, or never.
    ///
    /// # Errors
    /// The plugin's own: the version before runs on. Where there is none, the principal is parked.
    fn migrate(&mut self, cx: &mut Context, from_schema: u32) -> Result<Migration> {
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

    /// Somebody sent a message.
    ///
    /// # Errors
    /// Final: the message is consumed, and its sender is told if it asked.
    fn message(&mut self, cx: &mut Context, message: Incoming) -> Result<()> {
        let _ = cx;
        Err(unknown(&message.protocol))
    }

    /// So many durable messages from there, to this principal as `own`, expired before they arrived.
    ///
    /// # Errors
    /// The plugin's own; the gap is passed all the same.
    fn gap(
        &mut self,
        cx: &mut Context,
        from: &Address,
        own: &Identity,
        protocol: &str,
        messages: u64,
    ) -> Result<()> {
        let _ = (cx, from, own, protocol, messages);
        Ok(())
    }

    /// What became of a durable message that was sent with [`Letter::report`](crate::Letter::report).
    ///
    /// # Errors
    /// The plugin's own; it is not told again.
    fn report(&mut self, cx: &mut Context, id: u64, outcome: Outcome) -> Result<()> {
        let _ = (cx, id, outcome);
        Ok(())
    }

    /// The one answer to a question: what the receiver said, or why nothing came.
    ///
    /// # Errors
    /// The plugin's own; it is not told again.
    fn answer(&mut self, cx: &mut Context, id: u64, answer: Result<Vec<u8>>) -> Result<()> {
        let _ = (cx, id, answer);
        Ok(())
    }

    /// Nothing more moves on a channel with this peer, which knows this principal as `own`, until both
    /// ends reopen it. A plugin that counts
    /// on its past must refuse to go on.
    ///
    /// # Errors
    /// The plugin's own; it is not told again.
    fn halted(
        &mut self,
        cx: &mut Context,
        peer: &Address,
        own: &Identity,
        protocol: &str,
        reason: Halt,
    ) -> Result<()> {
        let _ = (cx, peer, own, protocol, reason);
        Ok(())
    }

    /// A connection to a peer stands, or none does any more; for the node's principal. When it wakes,
    /// each peer that is up is told of. Only the last state of each waits: one that came and went
    /// meanwhile may not be told of, or again as it was.
    ///
    /// # Errors
    /// The plugin's own; it is not told again.
    fn presence(
        &mut self,
        cx: &mut Context,
        peer: [u8; 32],
        online: bool,
        trust: u8,
    ) -> Result<()> {
        let _ = (cx, peer, online, trust);
        Ok(())
    }

    /// What scripts billed since the last time, for the node's principal: at most once a second, at most
    /// 1,024 at once.
    ///
    /// # Errors
    /// The plugin's own; it is not told again.
    fn usage(&mut self, cx: &mut Context, usage: Vec<Usage>) -> Result<()> {
        let _ = (cx, usage);
        Ok(())
    }

    /// A query: whether somebody may have a blob that this principal holds, and whom he knows as `own`.
    /// By default nobody may.
    ///
    /// # Errors
    /// No.
    fn may_read(&self, cx: &Context, asker: &Address, own: &Identity, blob: &Blob) -> Result<bool> {
        let _ = (cx, asker, own, blob);
        Ok(false)
    }

    /// The one event that tells what came of a [`BlobFetch`](crate::BlobFetch): a blob that is held once more, or
    /// why none comes.
    ///
    /// # Errors
    /// The plugin's own; the blob is not held then, and it is not told again.
    fn blob_fetched(&mut self, cx: &mut Context, fetched: BlobFetched) -> Result<()> {
        let _ = (cx, fetched);
        Ok(())
    }

    /// Somebody asks by HTTP, below a path that is granted. Nobody waits any more after `deadline_ms`.
    ///
    /// # Errors
    /// The answer, by its code: 403, 404, 503 and the like, with its text.
    fn http(
        &mut self,
        cx: &mut Context,
        id: u64,
        request: HttpRequest,
        deadline_ms: u64,
    ) -> Result<HttpReply> {
        let _ = (cx, id, deadline_ms);
        Err(unknown(&request.path))
    }

    /// Nobody waits any more for the answer to a request by HTTP.
    ///
    /// # Errors
    /// The plugin's own.
    fn http_canceled(&mut self, cx: &mut Context, id: u64) -> Result<()> {
        let _ = (cx, id);
        Ok(())
    }

    /// `GET` or `HEAD` below a path of `[http] queries`: it runs beside events, on what is durable, and
    /// changes nothing.
    ///
    /// # Errors
    /// As of [`http`](Self::http).
    fn http_query(&self, cx: &Context, request: &HttpRequest) -> Result<HttpResponse> {
        let _ = cx;
        Err(unknown(&request.path))
    }

    /// The one answer to a [`Fetch`](crate::Fetch), or why there is none.
    ///
    /// # Errors
    /// The plugin's own; it is not told again.
    fn fetched(&mut self, cx: &mut Context, id: u64, answer: Result<HttpResponse>) -> Result<()> {
        let _ = (cx, id, answer);
        Ok(())
    }

    /// A connection stands. Nothing comes before it has [credit](Socket::credit).
    ///
    /// # Errors
    /// The plugin's own; it is not told again.
    fn connected(&mut self, cx: &mut Context, socket: Socket) -> Result<()> {
        let _ = (cx, socket);
        Ok(())
    }

    /// Somebody connected to this port, which is granted as `tcp-listen` or `tls-listen`, from the address
    /// `remote`; for the node's principal. Nothing comes before it has [credit](Socket::credit).
    ///
    /// # Errors
    /// The plugin's own; the connection is closed, and nothing more is told of it.
    fn opened(&mut self, cx: &mut Context, socket: Socket, port: u16, remote: &str) -> Result<()> {
        let _ = (cx, socket, port, remote);
        Err(Error::not_found("nobody is here"))
    }

    /// What came on a connection: in order, at most 16 KiB of what there is credit for.
    ///
    /// # Errors
    /// The plugin's own; the connection is closed, as [`Lost`](Closing::Lost).
    fn data(&mut self, cx: &mut Context, socket: Socket, data: &[u8]) -> Result<()> {
        let _ = (cx, socket, data);
        Ok(())
    }

    /// There is room again, after a write that found too little.
    ///
    /// # Errors
    /// The plugin's own; it is not told again.
    fn writable(&mut self, cx: &mut Context, socket: Socket, room: u32) -> Result<()> {
        let _ = (cx, socket, room);
        Ok(())
    }

    /// A datagram came to a port of the plugin's own; for the node's principal.
    ///
    /// # Errors
    /// The plugin's own; it is not told again.
    fn datagram(
        &mut self,
        cx: &mut Context,
        port: u16,
        from: SocketAddr,
        data: &[u8],
    ) -> Result<()> {
        let _ = (cx, port, from, data);
        Ok(())
    }

    /// A connection is none any more.
    ///
    /// # Errors
    /// The plugin's own; it is not told again.
    fn closed(&mut self, cx: &mut Context, socket: Socket, why: Closing) -> Result<()> {
        let _ = (cx, socket, why);
        Ok(())
    }
}

fn unknown(name: &str) -> Error {
    Error::not_found(format!("the plugin has nothing named `{name}`"))
}
