//! A plugin that is loaded: its code, its manifest, and what all of its principals share.

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use rand::RngCore as _;
use tokio::sync::Semaphore;

use crate::{
    clock::now_ms,
    edition::Edition,
    event::{ErrorCode, Principal, Query, Refusal, Stamp},
    figures::{Ending, Figures},
    guest::Fault,
    health::{Condition, Health},
    host::InstanceReport,
    letters::Letters,
    memory::read_head,
    message::decode,
    news::News,
    operations::{Board, Change, OperationRow},
    pace::Pace,
    recording::Recorder,
    rows::{self, Home, Side, Space, principal_keys},
    store::{Snapshot, Store, StoreError},
    transaction::{Ground, Limit, Transaction},
    wires::MAX_FETCHES,
};

/// Principals of one plugin that run at once, and questions to it that are answered at once: others
/// have their turn beside them.
pub(crate) const TURNS: u32 = 2;
/// Questions that wait. Overflow: the newcomer is refused.
const MAX_QUERIES: usize = 256;
/// Of these, those of peers that want blobs. Who wants more waits, as long as he wants it.
const MAX_MAY_READS: usize = 8;

/// One instance of a plugin, as config.toml names it.
pub(crate) struct Loaded {
    pub(crate) name: Arc<str>,
    /// Of its rows in the store.
    pub(crate) number: u32,
    pub(crate) turns: Semaphore,
    pub(crate) queries: Semaphore,
    /// Questions whether somebody may have a blob: others find places beside them.
    pub(crate) may_reads: Semaphore,
    /// HTTP requests that it makes at once.
    pub(crate) fetches: Arc<Semaphore>,
    pub(crate) figures: Figures,
    /// What it wrote, and sent.
    pub(crate) pace: Pace,
    pub(crate) letters: Letters,
    pub(crate) news: News,
    /// One change of its version at a time.
    pub(crate) changing: Arc<tokio::sync::Mutex<()>>,
    edition: ArcSwap<Edition>,
    /// Its operations.
    pub(crate) board: Board,
    /// What its events do, for who wants to see it again.
    pub(crate) recorder: Recorder,
    healths: Mutex<Healths>,
    waiting_queries: AtomicUsize,
    /// Requests that came by HTTP and are not answered.
    http_open: AtomicUsize,
    is_gone: AtomicBool,
    /// Of their rows; what was given to one and never written to is given again after a start.
    numbers: Mutex<BTreeMap<Principal, u32>>,
}

/// How the principals are that are awake, and whether all of them are stopped, those that wake later
/// among them.
#[derive(Debug, Default)]
struct Healths {
    all: BTreeMap<Principal, Arc<Health>>,
    are_stopped: bool,
}

impl Loaded {
    pub(crate) fn new(
        number: u32,
        edition: Edition,
        store: &Store,
        recordings: &Path,
    ) -> Result<Self, StoreError> {
        let snapshot = store.snapshot();
        let loaded = Self {
            name: Arc::clone(&edition.plugin().name),
            number,
            turns: Semaphore::new(TURNS as usize),
            queries: Semaphore::new(TURNS as usize),
            may_reads: Semaphore::new(MAX_MAY_READS),
            fetches: Arc::new(Semaphore::new(MAX_FETCHES)),
            figures: Figures::default(),
            pace: Pace::default(),
            letters: Letters::read(number, &snapshot)?,
            news: News::new(edition.code.hears_of_peers(), edition.code.hears_of_usage()),
            changing: Arc::default(),
            board: Board::default(),
            recorder: Recorder::new(recordings.join(&*edition.plugin().name)),
            healths: Mutex::default(),
            edition: ArcSwap::from_pointee(edition),
            waiting_queries: AtomicUsize::new(0),
            http_open: AtomicUsize::new(0),
            is_gone: AtomicBool::new(false),
            numbers: Mutex::new(read_numbers(number, store)?),
        };
        for principal in loaded.principals() {
            let head = snapshot.get(&loaded.home(&principal).key(Space::Head, &[]))?;
            let head = head.as_deref().and_then(read_head);
            let (kept, held) = head.map_or((0, 0), |head| (head.kept_bytes, head.blob_bytes));
            loaded.figures.keeps(0, kept);
            loaded.figures.holds(0, held);
            loaded.read_operations(&principal, &snapshot)?;
        }
        Ok(loaded)
    }

    fn read_operations(
        &self,
        principal: &Principal,
        snapshot: &Snapshot,
    ) -> Result<(), StoreError> {
        let home = self.home(principal);
        for (id, row) in rows::all(snapshot, &home.key(Space::Operation, &[]))? {
            if let (Ok(id), Some(row)) = (id.try_into(), decode::<OperationRow>(&row)) {
                let id = u64::from_be_bytes(id);
                self.board
                    .apply((home, principal), id, Change::Is(Box::new(row)));
            }
        }
        Ok(())
    }

    /// A user is gone for as long as nobody adds him again; `purged`: with all his rows, which had so
    /// many bytes, and his blobs, which counted for so many.
    pub(crate) fn retire(&self, principal: &Principal, purged: Option<(u64, u64)>) {
        self.healths().all.remove(principal);
        if let Some((kept, held)) = purged {
            self.board.forget(self.home(principal));
            self.figures.keeps(kept, 0);
            self.figures.holds(held, 0);
        }
    }

    /// How this principal is.
    pub(crate) fn health(&self, principal: &Principal) -> Arc<Health> {
        let mut healths = self.healths();
        let is_stopped = healths.are_stopped;
        let health = healths.all.entry(principal.clone()).or_insert_with(|| {
            let health = Health::new();
            if is_stopped {
                health.stop();
            }
            Arc::new(health)
        });
        Arc::clone(health)
    }

    /// No event begins until it is started again.
    pub(crate) fn stop(&self) {
        let mut healths = self.healths();
        healths.are_stopped = true;
        healths.all.values().for_each(|health| health.stop());
    }

    /// An operator says that all is well again.
    pub(crate) fn start(&self) {
        let mut healths = self.healths();
        healths.are_stopped = false;
        healths.all.values().for_each(|health| health.start());
    }

    /// The worst of its principals.
    fn condition(&self) -> Condition {
        let healths = self.healths();
        if healths.are_stopped {
            return Condition::Stopped;
        }
        let conditions = healths
            .all
            .iter()
            .map(|(principal, health)| match health.condition() {
                Condition::Parked(why) => Condition::Parked(format!("{principal}: {why}")),
                condition @ (Condition::Running | Condition::Paused | Condition::Stopped) => {
                    condition
                }
            });
        let rank = |condition: &Condition| match condition {
            Condition::Running => 0,
            Condition::Paused => 1,
            Condition::Parked(_) => 2,
            Condition::Stopped => 3,
        };
        conditions.max_by_key(rank).unwrap_or(Condition::Running)
    }

    fn healths(&self) -> MutexGuard<'_, Healths> {
        self.healths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An operator had a version that may mend them put in: who is parked tries again.
    pub(crate) fn unpark(&self) {
        let healths = self.healths();
        let parked = healths.all.values();
        let parked = parked.filter(|health| matches!(health.condition(), Condition::Parked(_)));
        parked.for_each(|health| health.start());
    }

    /// The version that runs.
    pub(crate) fn edition(&self) -> Arc<Edition> {
        self.edition.load_full()
    }

    /// Whether users of the node have principals of it.
    pub(crate) fn has_users(&self) -> bool {
        self.edition.load().plugin().granted.users
    }

    /// Whether it is this one.
    pub(crate) fn runs(&self, edition: &Arc<Edition>) -> bool {
        Arc::ptr_eq(&self.edition.load(), edition)
    }

    /// Another version runs from now on.
    pub(crate) fn run(&self, edition: Arc<Edition>) {
        let code = &edition.code;
        self.news.want(code.hears_of_peers(), code.hears_of_usage());
        self.edition.store(edition);
    }

    /// It was removed: no principal of it wakes any more.
    pub(crate) fn go(&self) {
        self.is_gone.store(true, Ordering::Release);
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Acquire)
    }

    /// Whether messages and questions of others reach it.
    pub(crate) fn takes_messages(&self) -> bool {
        self.edition.load().code.takes_messages()
    }

    /// Whether it takes those of whoever calls, and not of peers alone.
    pub(crate) fn takes_strangers(&self) -> bool {
        self.edition.load().plugin().strangers
    }

    /// Whether somebody may send to it in this protocol; what comes then is not refused for want of
    /// a handler.
    pub(crate) fn takes_channel(&self, protocol: &str) -> bool {
        self.edition.load().code.takes_channels() && self.speaks(protocol)
    }

    /// Whether it sends and takes messages in this protocol.
    pub(crate) fn speaks(&self, protocol: &str) -> bool {
        let edition = self.edition.load();
        let is_granted = edition.plugin().granted.messages;
        is_granted && edition.manifest.messages.protocols.contains(protocol)
    }

    /// Where a principal's rows lie.
    pub(crate) fn home(&self, principal: &Principal) -> Home {
        let number = match principal {
            Principal::Node => 0,
            Principal::User(_) => {
                let mut numbers = self.numbers();
                match numbers.get(principal) {
                    Some(number) => *number,
                    None => {
                        let last = numbers.values().max();
                        let next = last.map_or(1, |last| last.saturating_add(1));
                        numbers.insert(principal.clone(), next);
                        next
                    }
                }
            }
        };
        Home {
            instance: self.number,
            principal: number,
        }
    }

    /// The node, and the users that were woken once.
    pub(crate) fn principals(&self) -> Vec<Principal> {
        let users = self.numbers().keys().cloned().collect::<Vec<_>>();
        [vec![Principal::Node], users].concat()
    }

    /// Answers a question about what is durable, when its turn comes.
    pub(crate) async fn query(
        &self,
        principal: Principal,
        query: &Query,
        store: &Store,
    ) -> Result<Vec<u8>, Refusal> {
        let _place = Place::take(&self.waiting_queries)?;
        let _turn = self.queries.acquire().await;
        self.answer(principal, query, store.snapshot()).await
    }

    /// Answers a question about what is durable.
    async fn answer(
        &self,
        principal: Principal,
        query: &Query,
        snapshot: Arc<Snapshot>,
    ) -> Result<Vec<u8>, Refusal> {
        let unavailable = |why: String| Refusal::new(ErrorCode::Unavailable, why);
        let health = self.health(&principal);
        if let Some(refusal) = health.closed() {
            return Err(refusal);
        }
        let edition = self.edition();
        let head = snapshot.get(&self.home(&principal).key(Space::Head, &[]));
        let head = head.map_err(|error| unavailable(error.to_string()))?;
        let head = head.as_deref().and_then(read_head);
        let schema = head.as_ref().map(|head| head.woken_by.schema);
        if schema.is_some_and(|schema| schema != edition.version().schema) {
            return Err(unavailable(
                "its rows are of another version yet".to_owned(),
            ));
        }
        let mut seed = [0; 32];
        rand::rng().fill_bytes(&mut seed);
        let ground = Ground {
            home: self.home(&principal),
            side: head.map_or(Side::default(), |head| head.side),
            limits: Arc::clone(&edition.plugin().limits),
            others_keep: 0,
            others_hold: 0,
            protocols: Arc::clone(&edition.protocols),
            granted: Arc::clone(&edition.plugin().granted),
            plugin: Arc::clone(&self.name),
            node: edition.plugin().around.node,
            closing: 0,
        };
        let stamp = Stamp {
            id: 0,
            attempt: 0,
            now_ms: now_ms(),
            principal,
            seed,
        };
        let mut transaction = Transaction::reading(stamp, ground, snapshot);
        // Others wait for the answer, and nobody for the lines.
        let (lines, limits) = (&edition.plugin().lines, &edition.manifest.limits);
        if lines.wait(limits).is_some() {
            self.figures.hits(&[Limit::LogRate]);
            transaction.mute();
        }
        let answer = match edition.code.instantiate().await {
            Ok(instance) => instance.answer(query, transaction).await,
            Err(fault) => Err(fault),
        };
        self.figures.answered(Ending::of(&answer));
        answer.map_err(|fault| match fault {
            Fault::Refused(refusal) => refusal,
            Fault::Trapped(_) | Fault::TimedOut(_) | Fault::Host(_) | Fault::GivenUp => {
                let plugin = &self.name;
                tracing::warn!(%plugin, %fault, "a plugin broke over a question");
                health.broke(&fault);
                Refusal::new(ErrorCode::Failed, "the plugin failed; see its log")
            }
        })
    }

    pub(crate) fn report(&self, waiting: usize) -> InstanceReport {
        InstanceReport {
            name: Arc::clone(&self.name),
            manifest: Arc::clone(&self.edition().manifest),
            sha256: self.edition().code.sha256(),
            condition: self.condition(),
            kept_bytes: self.figures.kept_bytes(),
            blob_bytes: self.figures.held_bytes(),
            waiting,
            waiting_messages: self.figures.waiting_messages(),
            open_operations: self.board.open_count(),
            dropped_letters: self.letters.dropped(),
            counts: self.figures.counts(),
        }
    }

    fn numbers(&self) -> MutexGuard<'_, BTreeMap<Principal, u32>> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_numbers(instance: u32, store: &Store) -> Result<BTreeMap<Principal, u32>, StoreError> {
    let prefix = principal_keys(instance);
    let rows = rows::all(&store.snapshot(), &prefix)?;
    let numbers = rows.into_iter().filter_map(|(key, row)| {
        let name = std::str::from_utf8(&key).ok()?;
        let number = u32::from_be_bytes(row.try_into().ok()?);
        Some((Principal::User(name.into()), number))
    });
    Ok(numbers.collect())
}

/// A place for a request that came by HTTP; dropping it frees it.
pub(crate) struct HttpTurn(Arc<Loaded>);

impl HttpTurn {
    /// `None`: as many as `most` are taken.
    pub(crate) fn take(loaded: &Arc<Loaded>, most: u32) -> Option<Self> {
        let open = loaded.http_open.fetch_add(1, Ordering::Relaxed);
        let turn = Self(Arc::clone(loaded));
        (open < most as usize).then_some(turn)
    }
}

impl Drop for HttpTurn {
    fn drop(&mut self) {
        self.0.http_open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for HttpTurn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HttpTurn").field(&self.0.name).finish()
    }
}

/// A question that waits or is answered.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize) -> Result<Self, Refusal> {
        let place = Self(waiting);
        if waiting.fetch_add(1, Ordering::Relaxed) >= MAX_QUERIES {
            let full = "too many questions wait for this plugin; ask again later";
            return Err(Refusal::new(ErrorCode::Unavailable, full));
        }
        Ok(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
