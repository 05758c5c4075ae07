//! The host: the store, the engine, and the plugins that are loaded.

mod blobs;
mod change;
mod doors;
mod http;
mod opening;
mod operations;
mod recordings;
mod shared;
mod time;
mod users;

use std::{
    collections::HashMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::Duration,
};

use data_encoding::HEXLOWER;
use thiserror::Error;
use tokio::runtime::Runtime;
use wormholes_proto::NodeId;

pub use self::{
    blobs::Upload,
    http::{HttpPage, HttpPlace},
    operations::{Begun, News},
    shared::Pending,
};
pub(crate) use self::{
    blobs::held,
    shared::{Shared, WakeError},
};
use crate::{
    edition::{Edition, Terms, Workshop},
    event::{Caller, Command, ErrorCode, Principal, Query, Refusal},
    figures::Counts,
    guest::{Around, Cache, CodeError, Engine},
    health::Condition,
    letters::{self, DeadLetter},
    lines::PluginLines,
    loaded::Loaded,
    mail::Input,
    message::Place,
    network::Pipe,
    rules::Usage,
    source::Source,
    store::StoreError,
    versions::Kept,
};
use wormholes_proto::manifest::{Manifest, ManifestError, is_name};

/// How long the end of a host waits for handlers: they have turns of 2 ms.
const END_PATIENCE: Duration = Duration::from_secs(1);
/// Files of the versions that run and that ran before, below the data folder.
const VERSIONS_FOLDER: &str = "versions";
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
    /// The files of blobs.
    #[error("cannot open the folder of plugins' blobs: {0}")]
    Blobs(#[source] io::Error),
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
    /// The disk failed while the instance was made or changed.
    #[error("the disk failed; try again")]
    Lost,
    /// The component is another than was meant.
    #[error(
        "the component beside {} has the SHA-256 {found}, and config.toml pins {meant}; set \
         `sha256` to the former if that is what you want",
        path.display()
    )]
    Hash {
        /// Whose component it is: the manifest beside it.
        path: PathBuf,
        /// What it has.
        found: String,
        /// What it should have.
        meant: String,
    },
    /// Its files cannot be kept.
    #[error("the plugin's files cannot be kept in the data folder: {0}")]
    Keep(#[source] io::Error),
    /// The files of the version before are not there, or are damaged.
    #[error("the files of the version before cannot be read: {0}")]
    Kept(#[source] io::Error),
    /// There is none of that name.
    #[error("no plugin is loaded as `{0}`; `wormholes plugin list`")]
    Missing(String),
    /// It is being changed.
    #[error("`{0}` is being changed; wait until that has ended")]
    Busy(String),
    /// No version ran before.
    #[error("no version of `{0}` ran before this one")]
    NoneBefore(String),
    /// Rows of the version that runs are not those that the version before reads.
    #[error(
        "the rows are of schema {now}, and the version before reads schema {then}: put the version \
         that you want into the plugin's folder, with a `migrate` from schema {now}, and update"
    )]
    OtherSchema {
        /// Of the rows.
        now: u32,
        /// What the version before reads.
        then: u32,
    },
    /// A principal does not go on with the new version.
    #[error("the new version does not take over, the old one runs on: {principal}: {why}")]
    Refused {
        /// Whose `migrate` or `init` it was.
        principal: String,
        /// What it said, or what broke it.
        why: String,
    },
    /// `init` writes too much for one commit.
    #[error(
        "the new version does not take over, the old one runs on: its `init` writes more than \
         64 MiB in all; raise `state.schema` and do it in `migrate`, which has steps"
    )]
    TooMuch,
    /// It took too long.
    #[error("the new version does not take over, the old one runs on: it took longer than 600 s")]
    Late,
}

impl LoadError {
    fn hash(source: &Source, meant: &[u8; 32]) -> Self {
        Self::Hash {
            path: source.path.clone(),
            found: HEXLOWER.encode(&source.sha256()),
            meant: HEXLOWER.encode(meant),
        }
    }
}

/// How an instance is.
#[derive(Debug, Clone)]
pub struct InstanceReport {
    /// Its name.
    pub name: Arc<str>,
    /// What it is.
    pub manifest: Arc<Manifest>,
    /// Of its component.
    pub sha256: [u8; 32],
    /// Whether its events run.
    pub condition: Condition,
    /// What all its rows have, keys and values.
    pub kept_bytes: u64,
    /// What its blobs count for, with those that it fetches and writes.
    pub blob_bytes: u64,
    /// Events that wait for its principals.
    pub waiting: usize,
    /// Durable messages on their way to others that are not confirmed; not those of users who are
    /// removed, which do not move.
    pub waiting_messages: u64,
    /// Operations that go on.
    pub open_operations: usize,
    /// Dead letters that went since it was loaded because there were too many.
    pub dropped_letters: u64,
    /// What it did.
    pub counts: Counts,
}

impl Host {
    /// Whether a plugin could be loaded by a host in `folder`: its manifest, its imports and its
    /// grants are right.
    ///
    /// # Errors
    /// [`LoadError`] names what to mend.
    pub fn check(folder: &Path, name: &str, source: Source, terms: Terms) -> Result<(), LoadError> {
        check_name(name)?;
        let mut source = source;
        if let Some(meant) = terms.sha256.filter(|meant| source.sha256() != *meant) {
            let kept = Kept::new(folder.join(VERSIONS_FOLDER)).pinned(name, &meant);
            source = kept.ok_or_else(|| LoadError::hash(&source, &meant))?;
        }
        let workshop = Workshop {
            engine: Arc::new(Engine::new().map_err(LoadError::Engine)?),
            cache: Some(&Cache::looking(folder.join(opening::CACHE_FOLDER))),
            around: Around::nobody(),
            lines: Arc::new(PluginLines::new()),
            patience: 1,
        };
        Edition::compile(workshop, name, &source, terms).map(drop)
    }

    /// Compiles a plugin, checks what it asks for, and wakes its principals. Where another version of
    /// the instance ran last, it takes over as by [`Host::update`]; if it cannot, that one runs on,
    /// and the log says why. What [`Host::roll_back`] left does not come back by this.
    ///
    /// # Errors
    /// [`LoadError`] names what to mend; nothing is loaded then.
    pub async fn load(&self, name: &str, source: Source, terms: Terms) -> Result<(), LoadError> {
        check_name(name)?;
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        self.change(async move { shared.load(&name, source, terms).await })
            .await
    }

    /// Has another version of an instance take over: it is compiled beside the one that runs, its
    /// imports and grants are checked, each principal pauses, its rows are migrated if the schema
    /// differs, and `init` runs; all of that becomes real in one commit, and what waits goes on in
    /// the new version. It goes on to its end when the future is dropped.
    ///
    /// # Errors
    /// [`LoadError`] says what stands in the way; the version that ran, runs on.
    pub async fn update(&self, name: &str, source: Source, terms: Terms) -> Result<(), LoadError> {
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        self.change(async move { shared.update(&name, source, terms).await })
            .await
    }

    /// Has the version take over that ran before the last update, if it has the same schema. The next
    /// rollback returns.
    ///
    /// # Errors
    /// [`LoadError`] says what stands in the way; the version that ran, runs on.
    pub async fn roll_back(&self, name: &str, terms: Terms) -> Result<(), LoadError> {
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        self.change(async move { shared.roll_back(&name, terms).await })
            .await
    }

    /// Ends an instance: who waits for an answer is refused, messages to it wait where they are. Its
    /// rows stay for the next instance of the name, or go with `purge`, which needs none that runs.
    ///
    /// # Errors
    /// There is none of that name, it is being changed, or the disk failed.
    pub async fn remove(&self, name: &str, purge: bool) -> Result<(), LoadError> {
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        self.change(async move { shared.remove(&name, purge).await })
            .await
    }

    /// Whoever asked may leave: what was begun is ended.
    async fn change(
        &self,
        change: impl Future<Output = Result<(), LoadError>> + Send + 'static,
    ) -> Result<(), LoadError> {
        let changed = self.shared.threads.spawn(change).await;
        changed.unwrap_or(Err(LoadError::Lost))
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
        Ok(Arc::clone(&self.shared.find(instance)?.edition().manifest))
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
        let edition = self.shared.find(instance)?.edition();
        Ok(Arc::clone(&edition.plugin().lines))
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
        command: Command,
        patience: Duration,
    ) -> Result<Pending, Refusal> {
        let owner = self.shared.owner(instance, principal)?;
        self.shared.request(&owner, command, patience)
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

    /// A peer came or went: `is_online` says what is so, and is asked once for each plugin that is told
    /// of peers, while that one hears of nothing else. Must not block.
    pub fn presence(&self, peer: NodeId, trust: u8, is_online: &dyn Fn() -> bool) {
        for loaded in self.shared.all() {
            let heard = loaded.news.presence(peer, trust, is_online);
            self.shared.tell_news(&loaded, heard);
        }
    }

    /// Rule scripts billed this. Each call has one event told to each plugin that hears of it, of what
    /// waits: call it at most once a second, and also when there is nothing new.
    pub fn usage(&self, used: &[Usage]) {
        for loaded in self.shared.all() {
            let heard = loaded.news.usage(used);
            self.shared.tell_news(&loaded, heard);
        }
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

fn check_name(name: &str) -> Result<(), LoadError> {
    let error = || LoadError::Name(name.to_owned());
    is_name(name).then_some(()).ok_or_else(error)
}

fn unreadable(error: StoreError) -> Refusal {
    let why = format!("the store cannot be read: {error}");
    Refusal::new(ErrorCode::Unavailable, why)
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
