//! The host: the store, the engine, and the plugins that are loaded.

mod operations;
mod shared;
mod users;

use std::{
    collections::HashMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::AtomicU64},
    time::Duration,
};

use thiserror::Error;
use tokio::runtime::{self, Runtime};
use wormholes_proto::NodeId;

pub(crate) use self::shared::{Shared, WakeError};
pub use self::{
    operations::{Begun, News},
    shared::Pending,
};
use crate::{
    event::{Caller, ErrorCode, Principal, Query, Refusal},
    figures::Counts,
    guest::{Around, Cache, Code, CodeError, Engine, Plugin},
    health::Condition,
    letters::{self, DeadLetter},
    lines::PluginLines,
    loaded::{Loaded, Terms},
    mail::{self, Input, Mail},
    manifest::{Manifest, ManifestError, is_name},
    message::Place,
    network::{Network, Pipe},
    store::{Observer, Store, StoreError, StoreOptions},
};

/// Threads on which handlers run.
const THREADS: usize = 2;
/// How far they give way to those on which flows live: where both want all of a processor, they get a
/// quarter of it.
const GIVE_WAY: i32 = 5;
/// How long the end of a host waits for handlers: they have turns of 2 ms.
const END_PATIENCE: Duration = Duration::from_secs(1);
/// The store, below the data folder.
const STORE_FILE: &str = "plugins.redb";
/// Compiled components, below the data folder.
const CACHE_FOLDER: &str = "compiled";
/// Instances of one node.
const MAX_INSTANCES: usize = 256;

/// Runs plugins. Dropping it ends them: what is not durable is undone.
pub struct Host {
    shared: Arc<Shared>,
    /// `None` only while this is dropped.
    runtime: Option<Runtime>,
}

/// A host that does not start.
#[derive(Debug, Error)]
pub enum HostError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The machine cannot run what the compiler makes, or gives no threads.
    #[error("cannot run plugins: {0}")]
    Engine(#[from] io::Error),
}

/// A plugin that is not loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// An instance's name.
    #[error("`{0}` is no name: a small letter, then small letters, digits and `-`; at most 32")]
    Name(String),
    /// It is loaded.
    #[error("an instance named `{0}` is loaded already")]
    Twice(String),
    /// Too many instances.
    #[error("more than {MAX_INSTANCES} instances")]
    TooMany,
    /// The machine cannot run what the compiler makes, or gives no threads.
    #[error("cannot run plugins: {0}")]
    Engine(#[source] io::Error),
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The manifest is wrong.
    #[error("{}: {error}", path.display())]
    Manifest {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        #[source]
        error: ManifestError,
    },
    /// The component is wrong.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk failed while the instance was made.
    #[error("the disk failed; try again")]
    Lost,
}

/// A plugin's files, read.
#[derive(Debug, Clone)]
pub struct Source {
    /// `plugin.toml`, for messages.
    pub path: PathBuf,
    /// What it says.
    pub manifest: String,
    /// The component that it names.
    pub wasm: Vec<u8>,
}

/// How an instance is.
#[derive(Debug, Clone)]
pub struct InstanceReport {
    /// Its name.
    pub name: Arc<str>,
    /// What it is.
    pub manifest: Arc<Manifest>,
    /// Whether its events run.
    pub condition: Condition,
    /// What all its rows have, keys and values.
    pub kept_bytes: u64,
    /// Events that wait for its principals.
    pub waiting: usize,
    /// Dead letters that went since it was loaded because there were too many.
    pub dropped_letters: u64,
    /// What it did.
    pub counts: Counts,
}

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
        let options = StoreOptions {
            observer,
            ..StoreOptions::default()
        };
        let store = Store::open(folder.join(STORE_FILE), options)?;
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("plugin")
            .on_thread_start(give_way)
            .enable_time()
            .build()?;
        // The ids of operations stay what they are: those of each start are beyond all before.
        let first_request = u64::from(store.boot()) << 32;
        let users = users::read(&store)?;
        let (mail, inputs) = Mail::new();
        let shared = Shared {
            node,
            threads: runtime.handle().clone(),
            network: Arc::clone(&network),
            mail: mail.clone(),
            engine: Arc::new(Engine::new()?),
            cache: Cache::new(folder.join(CACHE_FOLDER)),
            store,
            users,
            loaded: RwLock::default(),
            actors: Mutex::default(),
            next_request: AtomicU64::new(first_request),
        };
        let shared = Arc::new(shared);
        runtime.spawn(mail::run(Arc::clone(&shared), network, mail, inputs));
        Ok(Self {
            shared,
            runtime: Some(runtime),
        })
    }

    /// Whether a plugin could be loaded: its manifest, its imports and its grants are right.
    ///
    /// # Errors
    /// [`LoadError`] names what to mend.
    pub fn check(name: &str, source: &Source, terms: Terms) -> Result<(), LoadError> {
        let engine = Arc::new(Engine::new().map_err(LoadError::Engine)?);
        compile(engine, None, Around::nobody(), name, source, terms).map(drop)
    }

    /// Compiles a plugin, checks what it asks for, and wakes its principals.
    ///
    /// # Errors
    /// [`LoadError`] names what to mend; nothing is loaded then.
    pub async fn load(&self, name: &str, source: Source, terms: Terms) -> Result<(), LoadError> {
        let engine = Arc::clone(&self.shared.engine);
        let around = Around {
            node: self.shared.node,
            network: Some(Arc::clone(&self.shared.network)),
        };
        let (instance, cache) = (name.to_owned(), self.shared.cache.clone());
        let compile = move || compile(engine, Some(&cache), around, &instance, &source, terms);
        let compiled = self.shared.threads.spawn_blocking(compile).await;
        let (manifest, code) = compiled.map_err(|_| LoadError::Lost)??;
        let number = self.shared.number(name).await?;
        let loaded = Arc::new(Loaded::new(number, manifest, code, &self.shared.store)?);
        self.shared.insert(Arc::clone(&loaded))?;
        // Whoever has timers must be awake; the node itself always is.
        for principal in self.shared.present(&loaded) {
            match self
                .shared
                .wake(loaded.home(&principal), principal, &loaded)
            {
                // Removed meanwhile.
                Ok(_) | Err(WakeError::NoUser(_)) => {}
                Err(WakeError::Store(error)) => return Err(error.into()),
            }
        }
        self.shared.mail.tell(Input::Loaded(loaded));
        Ok(())
    }

    /// Ends all plugins and closes the store, so that another host may open it. What they answered is
    /// durable; what they were at is undone.
    pub async fn close(mut self) {
        if let Some(runtime) = self.runtime.take() {
            let end = move || runtime.shutdown_timeout(END_PATIENCE);
            // Its last task cannot panic.
            let _ = tokio::task::spawn_blocking(end).await;
        }
        // The store's end waits for its last commit.
        let shared = Arc::clone(&self.shared);
        drop(self);
        let _ = tokio::task::spawn_blocking(move || drop(shared)).await;
    }

    /// The instances that are loaded, by name.
    pub fn instances(&self) -> Vec<InstanceReport> {
        let waiting = self.waiting();
        let loaded = self.shared.loaded.read();
        let loaded = loaded.unwrap_or_else(PoisonError::into_inner);
        let report = |loaded: &Arc<Loaded>| {
            let waiting = waiting.get(&loaded.number).copied();
            loaded.report(waiting.unwrap_or_default())
        };
        loaded.values().map(report).collect()
    }

    /// What an instance is.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn manifest(&self, instance: &str) -> Result<Arc<Manifest>, Refusal> {
        Ok(Arc::clone(&self.shared.find(instance)?.manifest))
    }

    /// The events of an instance that were given up, the oldest first; and how many went since it was
    /// loaded because there were too many.
    ///
    /// # Errors
    /// There is none of that name, or the store cannot be read.
    pub fn dead_letters(&self, instance: &str) -> Result<(Vec<DeadLetter>, u64), Refusal> {
        let loaded = self.shared.find(instance)?;
        let letters = letters::all(loaded.number, &self.shared.store.snapshot());
        Ok((letters.map_err(unreadable)?, loaded.letters.dropped()))
    }

    /// Deletes the dead letters of an instance.
    ///
    /// # Errors
    /// There is none of that name, or the disk failed.
    pub async fn clear_dead_letters(&self, instance: &str) -> Result<(), Refusal> {
        let writes = self.shared.find(instance)?.letters.clear();
        let is_durable = self.shared.make_durable(writes).await;
        is_durable.then_some(()).ok_or_else(Refusal::lost)
    }

    /// Events that wait, by instance.
    fn waiting(&self) -> HashMap<u32, usize> {
        let mut waiting = HashMap::new();
        for (home, post) in &*self.shared.actors() {
            *waiting.entry(home.instance).or_default() += post.waiting();
        }
        waiting
    }

    /// No event of an instance begins until it is started again, here or with the node: what waits is
    /// refused, timers fire late.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn stop(&self, instance: &str) -> Result<(), Refusal> {
        self.shared.find(instance)?.stop();
        Ok(())
    }

    /// What an instance said last.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn lines(&self, instance: &str) -> Result<Arc<PluginLines>, Refusal> {
        Ok(Arc::clone(&self.shared.find(instance)?.plugin.lines))
    }

    /// Has an instance that was parked or stopped go on.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn restart(&self, instance: &str) -> Result<(), Refusal> {
        self.shared.find(instance)?.start();
        Ok(())
    }

    /// Hands a request to a principal. Dropping what is returned cancels it.
    ///
    /// # Errors
    /// [`Refusal`]: there is no such instance, or too many events wait for the principal.
    pub fn request(
        &self,
        instance: &str,
        principal: Principal,
        caller: Caller,
        name: &str,
        body: &[u8],
        patience: Duration,
    ) -> Result<Pending, Refusal> {
        let owner = self.shared.owner(instance, principal)?;
        self.shared.request(&owner, caller, name, body, patience)
    }

    /// Takes a flow that another node opened to the plugins here. `peer` is who is known to be at its
    /// other end.
    pub fn answer_call(&self, pipe: Box<dyn Pipe>, peer: Option<NodeId>) {
        self.shared.mail.tell(Input::Accepted(pipe, peer));
    }

    /// A node can be reached again: what waits for it is sent at once.
    pub fn peer_is_up(&self, node: NodeId) {
        self.shared.mail.tell(Input::Reached(Place::Node(node)));
    }

    /// Asks a principal a question that changes nothing, on what is durable; questions and events
    /// run beside each other.
    ///
    /// # Errors
    /// What the plugin refused, or why it could not be asked.
    pub async fn query(
        &self,
        instance: &str,
        principal: Principal,
        caller: Caller,
        name: &str,
        body: &[u8],
    ) -> Result<Vec<u8>, Refusal> {
        let query = Query::Command {
            caller,
            name: name.to_owned(),
            body: body.to_vec(),
        };
        self.answer(instance, principal, query).await
    }

    /// Asks a plugin whether all is well: its own words, in one line.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn health(&self, instance: &str) -> Result<String, Refusal> {
        let answer = self
            .answer(instance, Principal::Node, Query::Health)
            .await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    async fn answer(
        &self,
        instance: &str,
        principal: Principal,
        query: Query,
    ) -> Result<Vec<u8>, Refusal> {
        let loaded = self.shared.find(instance)?;
        self.shared.check_principal(&loaded, &principal)?;
        let store = self.shared.store.clone();
        let answer = async move { loaded.query(principal, &query, &store).await };
        let answered = self.shared.threads.spawn(answer).await;
        answered.unwrap_or_else(|_| Err(Refusal::new(ErrorCode::Unavailable, "the plugins stop")))
    }
}

/// Reads a plugin's manifest, compiles its component and checks what it imports.
fn compile(
    engine: Arc<Engine>,
    cache: Option<&Cache>,
    around: Around,
    name: &str,
    source: &Source,
    terms: Terms,
) -> Result<(Manifest, Code), LoadError> {
    if !is_name(name) {
        return Err(LoadError::Name(name.to_owned()));
    }
    let manifest = Manifest::parse(&source.manifest).map_err(|error| LoadError::Manifest {
        path: source.path.clone(),
        error,
    })?;
    let granted = manifest.capabilities.both(&terms.grants);
    let plugin = Arc::new(Plugin {
        name: name.into(),
        around,
        config: terms.config,
        strangers: terms.strangers,
        users: granted.users,
        limits: Arc::new(manifest.limits.clone()),
        lines: Arc::new(PluginLines::new()),
    });
    let code = Code::compile(engine, cache, plugin, &source.wasm, &granted)?;
    Ok((manifest, code))
}

fn unreadable(error: StoreError) -> Refusal {
    let why = format!("the store cannot be read: {error}");
    Refusal::new(ErrorCode::Unavailable, why)
}

/// Lets other threads go first; what the system refuses only makes them slower.
fn give_way() {
    // Elsewhere it would be the whole process that gives way.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(GIVE_WAY) {
        tracing::debug!(%error, "plugins do not give way");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}
