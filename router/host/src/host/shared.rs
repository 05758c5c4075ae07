//! What the parts of a host share: the store, the engine, the plugins that are loaded, and the
//! principals that are awake.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use thiserror::Error;
use tokio::{
    runtime,
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
};
use wormholes_proto::NodeId;

use super::{LoadError, MAX_INSTANCES, Upload};
use crate::{
    blobs::Blobs,
    clock::now_ms,
    event::{Caller, Command, ErrorCode, Principal, Refusal, Reply, Request, Wish},
    guest::{Cache, Engine},
    loaded::Loaded,
    mail::{Mail, Owner},
    message::{Address, Identity},
    network::Network,
    news::Heard,
    principal::{Actor, Asker, Post, Task},
    rows::{self, Home, instance_key},
    store::{Lost, Store, StoreError, Writes},
    transaction::{Limit, Progress},
    users::{self, Users},
    versions::Kept,
};

pub(crate) struct Shared {
    pub(crate) node: NodeId,
    pub(super) threads: runtime::Handle,
    pub(super) network: Arc<dyn Network>,
    pub(crate) mail: Mail,
    pub(super) engine: Arc<Engine>,
    pub(super) cache: Cache,
    /// Files of versions.
    pub(super) kept: Kept,
    /// Folders of recordings, by instance.
    pub(super) recordings: PathBuf,
    pub(crate) store: Store,
    pub(crate) blobs: Blobs,
    pub(crate) users: Users,
    pub(super) loaded: RwLock<BTreeMap<Arc<str>, Arc<Loaded>>>,
    pub(super) actors: Mutex<HashMap<Home, Post>>,
    /// Held by whoever gives an instance its number, or takes it away.
    pub(super) numbers: tokio::sync::Mutex<()>,
    pub(super) next_request: AtomicU64,
}

/// A principal that cannot be woken.
#[derive(Debug, Error)]
pub(crate) enum WakeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    NoUser(Refusal),
}

/// A request that was handed over.
#[derive(Debug)]
pub struct Pending {
    answer: oneshot::Receiver<Result<Reply, Refusal>>,
    /// How far it is; ends with the answer.
    pub progress: mpsc::Receiver<Progress>,
    /// Of the asker: whatever the plugin does, it is told then.
    patience: Duration,
    left: Option<(mpsc::Sender<Box<Task>>, u64)>,
}

impl Shared {
    /// Hands a request to a principal.
    pub(crate) fn request(
        &self,
        owner: &Owner,
        command: Command,
        patience: Duration,
    ) -> Result<Pending, Refusal> {
        self.wish(owner, Wish::Command(command), patience)
    }

    /// Hands anything over that is to be answered.
    pub(super) fn wish(
        &self,
        owner: &Owner,
        wish: Wish,
        patience: Duration,
    ) -> Result<Pending, Refusal> {
        let request = Request {
            id: self.next_request(),
            wish,
            deadline_ms: Some(after(patience)),
        };
        self.hand_over(owner, request, patience)
    }

    /// An id that no request had before.
    pub(super) fn next_request(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn hand_over(
        &self,
        owner: &Owner,
        request: Request,
        patience: Duration,
    ) -> Result<Pending, Refusal> {
        if let Some(refusal) = owner.loaded.health(&owner.principal).closed() {
            return Err(refusal);
        }
        let id = request.id;
        let (answer, answered) = oneshot::channel();
        let (progress, progressed) = mpsc::channel(16);
        let asker = Asker {
            answer,
            progress: Some(progress),
        };
        let post = self.post(owner)?;
        let most = owner.loaded.edition().manifest.limits.waiting;
        post.offer(Task::Request(request, asker), most)
            .map_err(|error| {
                let why = match error {
                    TrySendError::Full(_) => {
                        owner.loaded.figures.hits(&[Limit::Waiting]);
                        Limit::Waiting.mend()
                    }
                    TrySendError::Closed(_) => {
                        "the plugin, or its user, is being removed; else restart the daemon"
                    }
                };
                Refusal::new(ErrorCode::Unavailable, why)
            })?;
        Ok(Pending {
            answer: answered,
            progress: progressed,
            patience,
            left: Some((post.tasks().clone(), id)),
        })
    }

    /// Hands the question of another principal to one.
    pub(crate) fn ask(
        &self,
        owner: &Owner,
        (from, own): (Address, Identity),
        protocol: &str,
        body: &[u8],
        patience: Duration,
    ) -> Result<Pending, Refusal> {
        let command = Command::new(Caller::Plugin { from, own }, protocol, body);
        self.request(owner, command, patience)
    }

    pub(super) fn post(&self, owner: &Owner) -> Result<Post, Refusal> {
        let post = self.wake(owner.home, owner.principal.clone(), &owner.loaded);
        post.map_err(|error| match error {
            WakeError::NoUser(refusal) => refusal,
            WakeError::Store(error) => {
                let why = format!("the store cannot be read: {error}");
                Refusal::new(ErrorCode::Unavailable, why)
            }
        })
    }

    /// Whether an instance has this principal: the node, or a user who is there, where it has users.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check_principal(
        &self,
        loaded: &Loaded,
        principal: &Principal,
    ) -> Result<(), Refusal> {
        match principal {
            Principal::Node => Ok(()),
            Principal::User(_) if !loaded.has_users() => {
                let none = "the plugin is for the node alone; `users = true` must stand in its \
                            manifest and in its grants";
                Err(Refusal::new(ErrorCode::Denied, none))
            }
            Principal::User(name) if !self.users.is_active(name) => Err(users::unknown(name)),
            Principal::User(_) => Ok(()),
        }
    }

    /// The principals of an instance that were woken once, and are there.
    pub(crate) fn present(&self, loaded: &Loaded) -> Vec<Principal> {
        let mut principals = loaded.principals();
        principals.retain(|principal| self.check_principal(loaded, principal).is_ok());
        principals
    }

    /// Whose a principal of an instance is.
    ///
    /// # Errors
    /// There is no such instance, or it has no such principal.
    pub(crate) fn owner(&self, instance: &str, principal: Principal) -> Result<Owner, Refusal> {
        let loaded = self.find(instance)?;
        self.check_principal(&loaded, &principal)?;
        Ok(Owner::new(loaded, principal))
    }

    /// The post of a principal that may be removed meanwhile.
    pub(super) fn wake_if_there(
        &self,
        principal: Principal,
        loaded: &Arc<Loaded>,
    ) -> Result<Option<Post>, StoreError> {
        match self.wake(loaded.home(&principal), principal, loaded) {
            Ok(post) => Ok(Some(post)),
            Err(WakeError::NoUser(_)) => Ok(None),
            Err(WakeError::Store(error)) => Err(error),
        }
    }

    /// The principal's post; its actor is started if there is none.
    pub(crate) fn wake(
        &self,
        home: Home,
        principal: Principal,
        loaded: &Arc<Loaded>,
    ) -> Result<Post, WakeError> {
        let mut actors = self.actors();
        // Whoever removes a user takes his post away after that.
        self.check_principal(loaded, &principal)
            .map_err(WakeError::NoUser)?;
        if let Some(post) = actors.get(&home) {
            return Ok(post.clone());
        }
        let (post, inbox) = Post::new();
        if loaded.is_gone() {
            // Whatever is put there comes back: nobody takes it.
            return Ok(post);
        }
        let (store, mail) = (self.store.clone(), self.mail.clone());
        let actor = Actor::new(home, principal, Arc::clone(loaded), store, mail, inbox)?;
        self.threads.spawn(actor.run());
        actors.insert(home, post.clone());
        Ok(post)
    }

    /// Has the node's principal of an instance take what it is to be told.
    pub(super) fn tell_news(&self, loaded: &Arc<Loaded>, heard: Heard) {
        if !heard.fits {
            loaded.figures.hits(&[Limit::Peers]);
        }
        // Where the store cannot be read, nothing runs.
        if heard.calls
            && let Ok(post) = self.wake(loaded.home(&Principal::Node), Principal::Node, loaded)
        {
            post.deliver(Task::News);
        }
    }

    /// The post of a principal that is awake.
    pub(crate) fn awake(&self, home: Home) -> Option<Post> {
        self.actors().get(&home).cloned()
    }

    pub(super) fn actors(&self) -> MutexGuard<'_, HashMap<Home, Post>> {
        self.actors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All instances.
    pub(crate) fn all(&self) -> Vec<Arc<Loaded>> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        loaded.values().cloned().collect()
    }

    pub(crate) fn find(&self, instance: &str) -> Result<Arc<Loaded>, Refusal> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        loaded.get(instance).cloned().ok_or_else(|| {
            let missing = format!("no plugin is loaded as `{instance}`; `wormholes plugin list`");
            Refusal::new(ErrorCode::NotFound, missing)
        })
    }

    pub(super) fn insert(&self, instance: Arc<Loaded>) -> Result<(), LoadError> {
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
    pub(super) async fn number(&self, name: &str) -> Result<u32, LoadError> {
        let _one = self.numbers.lock().await;
        if let Some(number) = self.known_number(name)? {
            return Ok(number);
        }
        let (snapshot, key) = (self.store.snapshot(), instance_key(name));
        let taken = rows::all(&snapshot, &instance_key(""))?;
        let numbers = taken.into_iter().filter_map(|(_, row)| row.try_into().ok());
        let number = numbers.map(u32::from_be_bytes).max().unwrap_or(0) + 1;
        let mut writes = Writes::default();
        writes.put(key, Some(number.to_be_bytes().to_vec()));
        let is_durable = self.make_durable(writes).await;
        is_durable.then_some(number).ok_or(LoadError::Lost)
    }

    /// The number of an instance that was loaded once.
    pub(super) fn known_number(&self, name: &str) -> Result<Option<u32>, LoadError> {
        let row = self.store.snapshot().get(&instance_key(name))?;
        Ok(row.map(|row| row.try_into().map_or(0, u32::from_be_bytes)))
    }

    /// Nobody finds it any more.
    pub(super) fn leave(&self, name: &str) {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        loaded.remove(name);
    }

    /// The posts of an instance's principals, which nobody else gets any more.
    pub(super) fn take_posts(&self, number: u32) -> Vec<Post> {
        let mut actors = self.actors();
        let its = actors.extract_if(|home, _| home.instance == number);
        its.map(|(_, post)| post).collect()
    }

    /// Whether it is, in the end.
    pub(super) async fn make_durable(&self, writes: Writes) -> bool {
        let (done, durable) = oneshot::channel();
        let release = move |outcome: Result<(), Lost>| {
            let _ = done.send(outcome.is_ok());
        };
        self.store
            .append_between(self.store.epoch(), writes, release);
        durable.await.unwrap_or(false)
    }
}

impl Command {
    /// Has the handler find these blobs, and hold those that it wants.
    #[must_use]
    pub fn with_blobs<'a>(mut self, blobs: impl IntoIterator<Item = &'a Upload>) -> Self {
        self.blobs = blobs.into_iter().filter_map(Upload::offered).collect();
        self
    }
}

impl Pending {
    /// The answer, when what it says is durable.
    ///
    /// # Errors
    /// What the plugin refused, or why it could not be asked.
    pub async fn answer(self) -> Result<Vec<u8>, Refusal> {
        match self.reply().await? {
            Reply::Done(answer) => Ok(answer),
            // Nobody asked for an operation.
            Reply::Later => Err(Refusal::late()),
        }
    }

    /// The same; or that an operation began.
    pub(super) async fn reply(mut self) -> Result<Reply, Refusal> {
        let answer = tokio::time::timeout(self.patience, &mut self.answer).await;
        let answer = answer.map_err(|_| Refusal::late())?;
        self.left = None;
        answer.unwrap_or_else(|_| {
            let stopped = "the plugin was stopped before it answered";
            Err(Refusal::new(ErrorCode::Unavailable, stopped))
        })
    }
}

/// Milliseconds since 1970, so much later than now.
pub(super) fn after(time: Duration) -> u64 {
    let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    now_ms().saturating_add(time_ms)
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some((tasks, request)) = self.left.take() {
            // Where there is no room for it, the request's deadline does the same later.
            let _ = tasks.try_send(Box::new(Task::Left(request)));
        }
    }
}
