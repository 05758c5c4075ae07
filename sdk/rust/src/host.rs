//! What the host does for a plugin: one function for each that the ABI imports.
//!
//! In a component these are the node's own. A native test installs a [`Host`] of its own with
//! [`enter`]. Plugins use [`Context`](crate::Context) and the typed [`Map`](crate::Map) instead.

use std::net::SocketAddr;

use crate::{
    Address, Algorithm, BlobFetch, Connect, Fetch, Held, HttpResponse, Identity, KeyPair, Letter,
    Level, Result, Ruling,
};

/// A key and its value.
pub type Row = (Vec<u8>, Vec<u8>);

/// Which rows a scan lists: those whose keys begin with `prefix`, in the order of their bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Range {
    /// What all keys begin with.
    pub prefix: Vec<u8>,
    /// Only keys beyond this one, in the direction of the scan.
    pub after: Option<Vec<u8>>,
    /// From the last to the first.
    pub backwards: bool,
    /// At most so many rows; the host gives at most 4,096 rows and 1 MiB at once.
    pub limit: u32,
}

/// Which rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    /// On disk.
    State,
    /// In memory, for as long as the node runs.
    Scratch,
    /// On disk, sealed.
    Secret,
}

/// What a signature is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form<'a> {
    /// The message for this domain, in this instance of a plugin.
    Domain(&'a str),
    /// Its bytes as they are.
    Raw,
}

/// The functions that the ABI imports.
#[expect(missing_docs, reason = "sdk/wit says what each does")]
pub trait Host {
    fn get(&mut self, space: Space, key: &[u8]) -> Option<Vec<u8>>;
    fn set(&mut self, space: Space, key: &[u8], value: &[u8]) -> Result<()>;
    fn delete(&mut self, space: Space, key: &[u8]) -> Result<()>;
    fn scan(&mut self, space: Space, range: &Range) -> Vec<Row>;
    fn set_timer(&mut self, name: &str, at_ms: u64, payload: &[u8], durable: bool) -> Result<()>;
    fn cancel_timer(&mut self, name: &str) -> Result<()>;
    fn timer_due(&mut self, name: &str) -> Option<u64>;
    fn finish(&mut self, request: u64, answer: Result<Vec<u8>>) -> Result<()>;
    fn progress(&mut self, request: u64, percent: Option<u8>, text: &str) -> Result<()>;
    fn send(&mut self, letter: Letter) -> Result<u64>;
    fn post(&mut self, letter: Letter) -> Result<()>;
    fn ask(&mut self, letter: Letter, deadline_ms: u64) -> Result<u64>;
    fn waiting(&mut self, to: &Address, protocol: &str, sender: &Identity) -> u64;
    fn reopen(&mut self, peer: &Address, protocol: &str, sender: &Identity) -> Result<()>;
    fn alias_key(&mut self, name: &str) -> [u8; 32];
    fn set_fact(&mut self, kind: &str, peer: &[u8; 32], value: i64, ttl_ms: u64) -> Result<()>;
    fn clear_fact(&mut self, kind: &str, peer: &[u8; 32]) -> Result<()>;
    fn ask_rules(&mut self, hook: &str, question: &str) -> Result<Ruling>;
    fn create_key(&mut self, name: &str, algorithm: Algorithm) -> Result<Vec<u8>>;
    fn forget_key(&mut self, name: &str) -> Result<()>;
    fn public_key(&mut self, key: &KeyPair, algorithm: Algorithm) -> Result<Vec<u8>>;
    fn sign(&mut self, key: &KeyPair, form: Form<'_>, message: &[u8]) -> Result<[u8; 64]>;
    fn agree(&mut self, key: &KeyPair, theirs: &[u8; 32]) -> Result<[u8; 32]>;
    fn decapsulate(&mut self, key: &KeyPair, ciphertext: &[u8]) -> Result<[u8; 32]>;
    fn verify(
        &mut self,
        by: &[u8; 32],
        form: Form<'_>,
        message: &[u8],
        signature: &[u8; 64],
    ) -> bool;
    fn put_blob(&mut self, bytes: &[u8]) -> Result<[u8; 32]>;
    fn append_draft(&mut self, name: &str, bytes: &[u8]) -> Result<u64>;
    fn seal_draft(&mut self, name: &str) -> Result<[u8; 32]>;
    fn discard_draft(&mut self, name: &str) -> Result<()>;
    fn blob_length(&mut self, blob: &[u8; 32]) -> Option<u64>;
    fn read_blob(&mut self, blob: &[u8; 32], offset: u64, length: u32) -> Result<Vec<u8>>;
    fn hold_blob(&mut self, blob: &[u8; 32]) -> Result<()>;
    fn release_blob(&mut self, blob: &[u8; 32]) -> Result<()>;
    fn blobs(&mut self, after: Option<&[u8; 32]>, limit: u32) -> Vec<Held>;
    fn fetch_blob(&mut self, fetch: BlobFetch) -> Result<u64>;
    fn cancel_fetch(&mut self, id: u64) -> Result<()>;
    fn respond(&mut self, request: u64, response: HttpResponse) -> Result<()>;
    fn fetch(&mut self, wanted: Fetch, deadline_ms: u64) -> Result<u64>;
    fn connect(&mut self, wanted: Connect) -> Result<u64>;
    fn socket_credit(&mut self, socket: u64, bytes: u32) -> Result<()>;
    fn socket_write(&mut self, socket: u64, data: &[u8]) -> Result<()>;
    fn socket_room(&mut self, socket: u64) -> u32;
    fn socket_close(&mut self, socket: u64) -> Result<()>;
    fn send_to(&mut self, port: u16, to: SocketAddr, data: &[u8]) -> Result<()>;
    fn log(&mut self, level: Level, message: &str);
    fn random(&mut self, length: u32) -> Vec<u8>;
    fn config(&mut self, key: &str) -> Option<String>;
    fn node_id(&mut self) -> [u8; 32];
    fn instance(&mut self) -> String;
}

#[cfg(not(target_family = "wasm"))]
mod native {
    use std::cell::RefCell;

    use super::Host;

    thread_local! {
        static HOST: RefCell<Vec<Box<dyn Host>>> = const { RefCell::new(Vec::new()) };
    }

    /// Runs `handler` with `host` as what the plugin's imports reach, and gives the host back.
    pub fn enter<T>(host: Box<dyn Host>, handler: impl FnOnce() -> T) -> (T, Box<dyn Host>) {
        HOST.with_borrow_mut(|hosts| hosts.push(host));
        /// Takes the host away even when the handler panics.
        struct Leave;
        impl Drop for Leave {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    HOST.with_borrow_mut(Vec::pop);
                }
            }
        }
        let leave = Leave;
        let told = handler();
        drop(leave);
        #[expect(clippy::expect_used, reason = "it was pushed above")]
        let host = HOST.with_borrow_mut(Vec::pop).expect("a host was entered");
        (told, host)
    }

    pub(crate) fn with<T>(call: impl FnOnce(&mut dyn Host) -> T) -> T {
        HOST.with_borrow_mut(|hosts| {
            #[expect(
                clippy::expect_used,
                reason = "a mistake in a test, which must be told"
            )]
            let host = hosts.last_mut().expect("plugins run inside `host::enter`");
            call(host.as_mut())
        })
    }
}

#[cfg(not(target_family = "wasm"))]
pub use native::enter;
#[cfg(not(target_family = "wasm"))]
pub(crate) use native::with;
/// The node itself, by its own type: a component imports only what it calls.
#[cfg(target_family = "wasm")]
pub(crate) fn with<T>(call: impl FnOnce(&mut crate::wasm::Node) -> T) -> T {
    call(&mut crate::wasm::Node)
}

/// Where rows lie: a type for each, so that a component imports only those that it uses.
#[expect(missing_docs, reason = "as of [`Host`]")]
pub trait Shelf {
    fn get(key: &[u8]) -> Option<Vec<u8>>;
    fn set(key: &[u8], value: &[u8]) -> Result<()>;
    fn delete(key: &[u8]) -> Result<()>;
    fn scan(range: &Range) -> Vec<Row>;
}

/// Rows of the state.
#[derive(Debug)]
pub struct OnDisk;

/// Rows of `scratch`.
#[derive(Debug)]
pub struct InMemory;

/// Rows of `secret`.
#[derive(Debug)]
pub struct Sealed;

macro_rules! shelf {
    ($shelf:ty, $space:ident, $module:ident) => {
        #[cfg(not(target_family = "wasm"))]
        impl Shelf for $shelf {
            fn get(key: &[u8]) -> Option<Vec<u8>> {
                with(|host| host.get(Space::$space, key))
            }

            fn set(key: &[u8], value: &[u8]) -> Result<()> {
                with(|host| host.set(Space::$space, key, value))
            }

            fn delete(key: &[u8]) -> Result<()> {
                with(|host| host.delete(Space::$space, key))
            }

            fn scan(range: &Range) -> Vec<Row> {
                with(|host| host.scan(Space::$space, range))
            }
        }

        #[cfg(target_family = "wasm")]
        impl Shelf for $shelf {
            fn get(key: &[u8]) -> Option<Vec<u8>> {
                crate::wasm::$module::get(key)
            }

            fn set(key: &[u8], value: &[u8]) -> Result<()> {
                crate::wasm::$module::set(key, value).map_err(crate::Error::from)
            }

            fn delete(key: &[u8]) -> Result<()> {
                crate::wasm::$module::delete(key).map_err(crate::Error::from)
            }

            fn scan(range: &Range) -> Vec<Row> {
                crate::wasm::$module::scan(&range.into())
            }
        }
    };
}

shelf!(OnDisk, State, state);
shelf!(InMemory, Scratch, scratch);
shelf!(Sealed, Secret, secret);
