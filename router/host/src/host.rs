//! The host: the store, the engine, and the plugins that are loaded.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use thiserror::Error;
use tokio::{
    runtime::{self, Runtime},
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
};
use wormholes_proto::NodeId;

use crate::{
    clock::now_ms,
    event::{Caller, ErrorCode, Principal, Query, Refusal, Request},
    figures::Counts,
    guest::{Cache, Code, CodeError, Engine, Plugin},
    health::Condition,
    letters::{self, DeadLetter},
    lines::PluginLines,
    loaded::{Loaded, Terms},
    manifest::{Manifest, ManifestError, is_name},
    principal::{Actor, Asker, Task},
    rows::{self, Home, instance_key},
    store::{Lost, Observer, Store, StoreError, StoreOptions, Writes},
    transaction::{Limit, Progress},
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
    threads: runtime::Handle,
    /// `None` only while this is dropped.
    runtime: Option<Runtime>,
}

struct Shared {
    node: NodeId,
    engine: Arc<Engine>,
    cache: Cache,
    store: Store,
    loaded: RwLock<BTreeMap<Arc<str>, Arc<Loaded>>>,
    actors: Mutex<HashMap<Home, mpsc::Sender<Task>>>,
    next_request: AtomicU64,
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

/// A request that was handed over.
#[derive(Debug)]
pub struct Pending {
    answer: oneshot::Receiver<Result<Vec<u8>, Refusal>>,
    /// How far it is; ends with the answer.
    pub progress: mpsc::Receiver<Progress>,
    /// Of the asker: whatever the plugin does, it is told then.
    patience: Duration,
    left: Option<(mpsc::Sender<Task>, u64)>,
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
        let first_request = u64::from(store.boot()) << 32;
        let shared = Shared {
            node,
            engine: Arc::new(Engine::new()?),
            cache: Cache::new(folder.join(CACHE_FOLDER)),
            store,
            loaded: RwLock::default(),
            actors: Mutex::default(),
            next_request: AtomicU64::new(first_request),
        };
        Ok(Self {
            shared: Arc::new(shared),
            threads: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }

    /// Whether a plugin could be loaded: its manifest, its imports and its grants are right.
    ///
    /// # Errors
    /// [`LoadError`] names what to mend.
    pub fn check(name: &str, source: &Source, terms: Terms) -> Result<(), LoadError> {
        let engine = Arc::new(Engine::new().map_err(LoadError::Engine)?);
        let node = NodeId::from_bytes([0; 32]);
        compile(engine, None, node, name, source, terms).map(drop)
    }

    /// Compiles a plugin, checks what it asks for, and wakes its principals.
    ///
    /// # Errors
    /// [`LoadError`] names what to mend; nothing is loaded then.
    pub async fn load(&self, name: &str, source: Source, terms: Terms) -> Result<(), LoadError> {
        let (engine, node) = (Arc::clone(&self.shared.engine), self.shared.node);
        let (instance, cache) = (name.to_owned(), self.shared.cache.clone());
        let compile = move || compile(engine, Some(&cache), node, &instance, &source, terms);
        let compiled = self.threads.spawn_blocking(compile).await;
        let (manifest, code) = compiled.map_err(|_| LoadError::Lost)??;
        let number = self.shared.number(name).await?;
        let loaded = Arc::new(Loaded::new(number, manifest, code, &self.shared.store)?);
        self.shared.insert(Arc::clone(&loaded))?;
        // Whoever has timers must be awake; the node itself always is.
        for principal in loaded.principals() {
            self.wake(loaded.home(&principal), principal, &loaded)?;
        }
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
        let actors = self.shared.actors.lock();
        let actors = actors.unwrap_or_else(PoisonError::into_inner);
        let mut waiting = HashMap::new();
        for (home, tasks) in &*actors {
            *waiting.entry(home.instance).or_default() += tasks.max_capacity() - tasks.capacity();
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
        let loaded = self.shared.find(instance)?;
        if let Some(refusal) = loaded.health(&principal).closed() {
            return Err(refusal);
        }
        let id = self.shared.next_request.fetch_add(1, Ordering::Relaxed);
        let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let request = Request {
            id,
            caller,
            name: name.into(),
            body: body.into(),
            deadline_ms: now_ms().saturating_add(patience_ms),
        };
        let (answer, answered) = oneshot::channel();
        let (progress, progressed) = mpsc::channel(16);
        let asker = Asker {
            answer,
            progress: Some(progress),
        };
        let tasks = self.actor(principal, &loaded)?;
        tasks
            .try_send(Task::Request(request, asker))
            .map_err(|error| {
                let why = match error {
                    TrySendError::Full(_) => {
                        loaded.figures.hits(&[Limit::Waiting]);
                        Limit::Waiting.mend()
                    }
                    TrySendError::Closed(_) => {
                        "the plugin ended by a fault of the daemon; restart it"
                    }
                };
                Refusal::new(ErrorCode::Unavailable, why)
            })?;
        Ok(Pending {
            answer: answered,
            progress: progressed,
            patience,
            left: Some((tasks, id)),
        })
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
        let store = self.shared.store.clone();
        let answer = async move { loaded.query(principal, &query, &store).await };
        let answered = self.threads.spawn(answer).await;
        answered.unwrap_or_else(|_| Err(Refusal::new(ErrorCode::Unavailable, "the plugins stop")))
    }

    /// The principal's actor; it is started if there is none.
    fn actor(
        &self,
        principal: Principal,
        loaded: &Arc<Loaded>,
    ) -> Result<mpsc::Sender<Task>, Refusal> {
        let home = loaded.home(&principal);
        self.wake(home, principal, loaded).map_err(unreadable)
    }

    fn wake(
        &self,
        home: Home,
        principal: Principal,
        loaded: &Arc<Loaded>,
    ) -> Result<mpsc::Sender<Task>, StoreError> {
        let actors = self.shared.actors.lock();
        let mut actors = actors.unwrap_or_else(PoisonError::into_inner);
        if let Some(tasks) = actors.get(&home) {
            return Ok(tasks.clone());
        }
        let (tasks, received) = mpsc::channel(loaded.manifest.limits.waiting as usize);
        let store = self.shared.store.clone();
        let actor = Actor::new(home, principal, Arc::clone(loaded), store, received)?;
        self.threads.spawn(actor.run());
        actors.insert(home, tasks.clone());
        Ok(tasks)
    }
}

/// Reads a plugin's manifest, compiles its component and checks what it imports.
fn compile(
    engine: Arc<Engine>,
    cache: Option<&Cache>,
    node: NodeId,
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
    let plugin = Arc::new(Plugin {
        name: name.into(),
        node,
        config: terms.config,
        limits: Arc::new(manifest.limits.clone()),
        lines: Arc::new(PluginLines::new()),
    });
    let granted = manifest.capabilities.both(&terms.grants);
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

impl Pending {
    /// The answer, when what it says is durable.
    ///
    /// # Errors
    /// What the plugin refused, or why it could not be asked.
    pub async fn answer(mut self) -> Result<Vec<u8>, Refusal> {
        let answer = tokio::time::timeout(self.patience, &mut self.answer).await;
        let answer = answer.map_err(|_| Refusal::late())?;
        self.left = None;
        answer.unwrap_or_else(|_| {
            let stopped = "the plugin was stopped before it answered";
            Err(Refusal::new(ErrorCode::Unavailable, stopped))
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some((tasks, request)) = self.left.take() {
            // Where there is no room for it, the request's deadline does the same later.
            let _ = tasks.try_send(Task::Left(request));
        }
    }
}

impl Shared {
    fn find(&self, instance: &str) -> Result<Arc<Loaded>, Refusal> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        loaded.get(instance).cloned().ok_or_else(|| {
            let missing = format!("no plugin is loaded as `{instance}`; `wormholes plugin list`");
            Refusal::new(ErrorCode::NotFound, missing)
        })
    }

    fn insert(&self, instance: Arc<Loaded>) -> Result<(), LoadError> {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        if loaded.contains_key(&instance.name) {
            return Err(LoadError::Twice(instance.name.to_string()));
        }
        if loaded.len() >= MAX_INSTANCES {
            return Err(LoadError::TooMany);
        }
        loaded.insert(Arc::clone(&instance.name), instance);
        Ok(())
    }

    /// Under which number the instance's rows lie; a new one is durable before it is used.
    async fn number(&self, name: &str) -> Result<u32, LoadError> {
        let snapshot = self.store.snapshot();
        let key = instance_key(name);
        if let Some(row) = snapshot.get(&key)? {
            return Ok(row.try_into().map_or(0, u32::from_be_bytes));
        }
        let taken = rows::all(&snapshot, &instance_key(""))?;
        let numbers = taken.into_iter().filter_map(|(_, row)| row.try_into().ok());
        let number = numbers.map(u32::from_be_bytes).max().unwrap_or(0) + 1;
        let mut writes = Writes::default();
        writes.put(key, Some(number.to_be_bytes().to_vec()));
        let is_durable = self.make_durable(writes).await;
        is_durable.then_some(number).ok_or(LoadError::Lost)
    }

    /// Whether it is, in the end.
    async fn make_durable(&self, writes: Writes) -> bool {
        let (done, durable) = oneshot::channel();
        let release = move |outcome: Result<(), Lost>| {
            let _ = done.send(outcome.is_ok());
        };
        self.store.append(self.store.epoch(), writes, release);
        durable.await.unwrap_or(false)
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}
