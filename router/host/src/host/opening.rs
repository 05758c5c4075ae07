//! A host begins: on a store in a file, or on another backend.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, RwLock, atomic::AtomicU64},
};

use tokio::runtime::{self, Runtime};
use wormholes_proto::NodeId;

use super::{Host, HostError, Shared, VERSIONS_FOLDER, blobs, users};
use crate::{
    blobs::Blobs,
    guest::{Cache, Engine},
    mail::{self, Mail},
    network::Network,
    store::{Backend, Observer, Store, StoreOptions},
    versions::Kept,
};

/// Threads on which handlers run.
const THREADS: usize = 2;
/// How far they give way to those on which flows live: where both want all of a processor, they get a
/// tenth of it.
const GIVE_WAY: i32 = 10;
/// The store, below the data folder.
const STORE_FILE: &str = "plugins.redb";
/// What seals the secrets of plugins.
const SECRETS: &[u8] = b"wormholes-plugin-secrets-v1";
/// Compiled components, below the data folder.
pub(super) const CACHE_FOLDER: &str = "compiled";
/// Files of blobs, below the data folder.
const BLOBS_FOLDER: &str = "blobs";
/// What events did, where somebody wants that, below the data folder.
const RECORDINGS_FOLDER: &str = "recordings";

impl Host {
    /// Opens the store in `folder`, which is made, and starts the engine; `observer` sees every
    /// commit.
    ///
    /// # Errors
    /// [`HostError`] says what stands in the way.
    pub fn open(
        folder: &Path,
        node: NodeId,
        network: Arc<dyn Network>,
        observer: Option<Observer>,
    ) -> Result<Self, HostError> {
        std::fs::create_dir_all(folder)?;
        let options = options(&*network, observer);
        let store = Store::open(folder.join(STORE_FILE), options)?;
        Self::on_store(store, folder, node, network)
    }

    /// The same with the rows of all plugins on another backend; all else is in `folder`.
    ///
    /// # Errors
    /// [`HostError`] says what stands in the way.
    pub fn open_on(
        backend: Box<dyn Backend>,
        folder: &Path,
        node: NodeId,
        network: Arc<dyn Network>,
        observer: Option<Observer>,
    ) -> Result<Self, HostError> {
        std::fs::create_dir_all(folder)?;
        let options = options(&*network, observer);
        let store = Store::open_on(backend, &folder.join(STORE_FILE), options)?;
        Self::on_store(store, folder, node, network)
    }

    fn on_store(
        store: Store,
        folder: &Path,
        node: NodeId,
        network: Arc<dyn Network>,
    ) -> Result<Self, HostError> {
        let runtime = runtime()?;
        // The ids of operations stay what they are: those of each start are beyond all before.
        let first_request = u64::from(store.boot()) << 32;
        let users = users::read(&store)?;
        let named = blobs::named(&store.snapshot())?;
        let blobs = Blobs::open(folder.join(BLOBS_FOLDER), named).map_err(HostError::Blobs)?;
        blobs::count_when_reopened(&store, blobs.clone());
        let (mail, inputs) = Mail::new();
        let shared = Shared {
            node,
            threads: runtime.handle().clone(),
            network: Arc::clone(&network),
            mail: mail.clone(),
            engine: Arc::new(Engine::new()?),
            cache: Cache::new(folder.join(CACHE_FOLDER)),
            kept: Kept::new(folder.join(VERSIONS_FOLDER)),
            recordings: folder.join(RECORDINGS_FOLDER),
            store,
            blobs,
            users,
            loaded: RwLock::default(),
            actors: Mutex::default(),
            numbers: tokio::sync::Mutex::default(),
            next_request: AtomicU64::new(first_request),
        };
        let shared = Arc::new(shared);
        runtime.spawn(mail::run(Arc::clone(&shared), network, mail, inputs));
        Ok(Self {
            shared,
            runtime: Some(runtime),
        })
    }
}

fn options(network: &dyn Network, observer: Option<Observer>) -> StoreOptions {
    StoreOptions {
        secret: Some(network.derive(SECRETS)),
        observer,
        ..StoreOptions::default()
    }
}

fn runtime() -> io::Result<Runtime> {
    runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("plugin")
        .on_thread_start(give_way)
        .enable_time()
        .build()
}

/// Lets other threads go first; what the system refuses only makes them slower.
fn give_way() {
    // Elsewhere it would be the whole process that gives way.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(GIVE_WAY) {
        tracing::debug!(%error, "plugins do not give way");
    }
}
