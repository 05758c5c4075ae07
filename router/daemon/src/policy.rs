//! The rules in force: loads scripts and sets, swaps them as a whole, and asks them.
//!
//! A generation is what one load made. Loading compiles, checks, runs the scripts' own tests, and
//! only then swaps; whatever fails leaves the rules before in force. Flows keep the generation
//! that they began with.

mod ask;
mod deciders;
mod load;
mod ring;
mod watch;

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Instant, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc};
use wormholes_proto::control::{EventBody, ScriptDiagnostic};
use wormholes_rules::{Needs, Policy, RuleEvent, RuleState, World};

use crate::{
    config::{DefaultRule, PeerConfig, RulesConfig},
    events::Events,
    metrics::Metrics,
    network::Network,
};

pub(crate) use deciders::Deciders;
pub(crate) use load::{Granted, Lacking};
pub use load::{LoadError, Scripts, check};
pub(crate) use watch::watch;

use load::Sources;
use ring::{DecisionRing, KeptDecision};

/// Generations that a rollback can return to; the oldest goes.
const MAX_HISTORY: usize = 8;
/// Different errors of scripts that are shown; the one not seen for longest goes.
const MAX_ERRORS: usize = 64;
/// Events that wait for scripts; more are dropped and counted.
const MAX_EVENTS: usize = 256;

/// One set of rules.
#[derive(Debug)]
pub struct Generation {
    /// Counts loads from 1.
    pub number: u64,
    /// When it was loaded.
    pub loaded_at: SystemTime,
    /// The files that it came from.
    pub config: RulesConfig,
    /// The answer when no script answers.
    pub default: DefaultRule,
    /// Which costly fields its scripts read.
    pub needs: Needs,
    policy: Policy,
    /// What it was made of: a load of the same makes no new generation.
    sources: Sources,
    /// Until when its scripts count as slow, in milliseconds since `loaded`.
    slow_until_ms: AtomicU64,
    loaded: Instant,
}

/// An error of a script while it ran.
#[derive(Debug, Clone)]
pub struct ScriptError {
    /// When it last happened.
    pub at: SystemTime,
    /// `route`, `accept`, …
    pub hook: &'static str,
    /// Script, line and message.
    pub message: String,
    /// How often it happened.
    pub count: u64,
}

/// Holds the rules in force and asks them.
pub struct PolicyHost {
    current: ArcSwap<Generation>,
    history: Mutex<VecDeque<Arc<Generation>>>,
    last_number: AtomicU64,
    /// One load at a time.
    loading: Mutex<()>,
    taken_over: Notify,
    state: Arc<RuleState>,
    granted: Mutex<Granted>,
    lacking: Lacking,
    ring: DecisionRing,
    errors: Mutex<VecDeque<ScriptError>>,
    error_count: AtomicU64,
    network: OnceLock<Weak<Network>>,
    deciders: Deciders,
    rule_events: mpsc::Sender<RuleEvent>,
    metrics: Arc<Metrics>,
    events: Arc<Events>,
}

/// No generation to return to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are no earlier rules to return to")]
pub struct NothingBefore;

impl PolicyHost {
    /// Loads the first generation. Blocks while it reads files.
    ///
    /// # Errors
    /// [`LoadError`]: a node does not start with rules that are wrong.
    pub(crate) fn start(
        config: &RulesConfig,
        known_peers: Vec<String>,
        (granted, lacking): (Granted, Lacking),
        deciders: Deciders,
        metrics: Arc<Metrics>,
        events: Arc<Events>,
    ) -> Result<(Arc<Self>, mpsc::Receiver<RuleEvent>), LoadError> {
        let state = Arc::new(RuleState::default());
        let sources = Sources::read(config)?;
        let ring = DecisionRing::new(config.record_decisions);
        let env = (&granted, &lacking);
        let policy = load::compile(&sources, &state, known_peers, env, ring.keeps())?;
        let first = Generation::new(1, config.clone(), policy, sources);
        let (rule_events, receiver) = mpsc::channel(MAX_EVENTS);
        metrics.policy_generation.set(1);
        let host = Self {
            current: ArcSwap::from_pointee(first),
            history: Mutex::default(),
            last_number: AtomicU64::new(1),
            loading: Mutex::default(),
            taken_over: Notify::new(),
            state,
            granted: Mutex::new(granted),
            lacking,
            ring,
            errors: Mutex::default(),
            error_count: AtomicU64::new(0),
            network: OnceLock::new(),
            deciders,
            rule_events,
            metrics,
            events,
        };
        Ok((Arc::new(host), receiver))
    }

    /// Gives the scripts the world that they see, and calls their `init`.
    pub(crate) fn attach(&self, network: &Arc<Network>) {
        // Called once, by the node that owns both.
        let _ = self.network.set(Arc::downgrade(network));
        self.init(&self.current());
    }

    /// The rules in force.
    pub fn current(&self) -> Arc<Generation> {
        self.current.load_full()
    }

    /// Loads `config` with `scripts` and puts it in force; `peers` are those that scripts may name.
    /// `is_steady` says, after all files were read, whether they stood still meanwhile. Blocks while it
    /// reads files and runs tests.
    ///
    /// # Errors
    /// [`LoadError`]; the rules before stay in force.
    pub fn load(
        &self,
        config: &RulesConfig,
        scripts: Scripts,
        peers: &[PeerConfig],
        is_steady: &dyn Fn() -> bool,
    ) -> Result<Arc<Generation>, LoadError> {
        let _one_at_a_time = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let known_peers = self.known_peers(peers);
        let current = self.current();
        let before = (&current.config, &current.sources);
        let gathered = load::gather(config, scripts, before);
        if !is_steady() {
            return Err(LoadError::Unsteady);
        }
        let loaded = gathered.and_then(|(config, sources)| {
            if current.sources == sources && current.config == config {
                tracing::info!(generation = current.number, "rules are unchanged");
                return Ok(None);
            }
            let policy = self.compile(&sources, known_peers)?;
            Ok(Some((config, sources, policy)))
        });
        match loaded {
            Ok(None) => Ok(self.current()),
            Ok(Some((config, sources, policy))) => {
                let number = 1 + self.last_number.fetch_add(1, Relaxed);
                let next = Arc::new(Generation::new(number, config, policy, sources));
                let before = self.current.swap(Arc::clone(&next));
                let mut history = lock(&self.history);
                history.truncate(MAX_HISTORY - 1);
                history.push_front(before);
                drop(history);
                self.took_over(&next);
                Ok(next)
            }
            Err(error) => {
                self.metrics.policy_load_failures.inc();
                tracing::warn!(%error, "rules were not loaded; those before stay in force");
                let diagnostics = error.diagnostics();
                self.events.publish(EventBody::ScriptFailed { diagnostics });
                Err(error)
            }
        }
    }

    /// Takes what plugins are granted by now, and compiles the rules in force again: they may name other
    /// facts and hooks. Blocks as [`Self::load`] does.
    pub(crate) fn grant(&self, granted: Granted, peers: &[PeerConfig]) {
        let _one_at_a_time = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *lock(&self.granted), granted.clone());
        let current = self.current();
        if before == granted || current.script_names().is_empty() {
            return;
        }
        let compiled = current.sources.again(&current.config).and_then(|sources| {
            let policy = self.compile(&sources, self.known_peers(peers))?;
            Ok((sources, policy))
        });
        match compiled {
            Ok((sources, policy)) => {
                let number = 1 + self.last_number.fetch_add(1, Relaxed);
                let next = Generation::new(number, current.config.clone(), policy, sources);
                let next = Arc::new(next);
                // A rollback returns to other scripts, not to other grants.
                self.current.store(Arc::clone(&next));
                self.took_over(&next);
            }
            Err(error) => tracing::warn!(
                %error,
                "the rules in force cannot do with what plugins are granted: they stay as they are, \
                 and a node would not start with them"
            ),
        }
    }

    fn compile(&self, sources: &Sources, known_peers: Vec<String>) -> Result<Policy, LoadError> {
        let granted = lock(&self.granted).clone();
        load::compile(
            sources,
            &self.state,
            known_peers,
            (&granted, &self.lacking),
            self.ring.keeps(),
        )
    }

    /// Returns to the rules before. The files are not touched: the next load reads them again.
    ///
    /// # Errors
    /// [`NothingBefore`].
    pub fn rollback(&self) -> Result<Arc<Generation>, NothingBefore> {
        let _one_at_a_time = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let before = lock(&self.history).pop_front().ok_or(NothingBefore)?;
        self.current.store(Arc::clone(&before));
        self.took_over(&before);
        Ok(before)
    }

    /// Whether there are rules to return to.
    pub fn can_roll_back(&self) -> bool {
        !lock(&self.history).is_empty()
    }

    /// Waits until rules took over since the last wait.
    pub(crate) async fn taken_over(&self) {
        self.taken_over.notified().await;
    }

    /// The last errors of scripts, each once and the newest first, and how many there were in all.
    pub fn errors(&self) -> (Vec<ScriptError>, u64) {
        let errors = lock(&self.errors).iter().cloned().collect();
        (errors, self.error_count.load(Relaxed))
    }

    /// The decisions that are kept with lower numbers than `before`, the newest first.
    pub(crate) fn decisions_before(&self, before: u64) -> Vec<Arc<KeptDecision>> {
        self.ring.before(before)
    }

    fn took_over(&self, generation: &Generation) {
        self.metrics
            .policy_generation
            .set(i64::try_from(generation.number).unwrap_or(i64::MAX));
        tracing::info!(generation = generation.number, "rules in force");
        self.events.publish(EventBody::ScriptLoaded {
            generation: generation.number,
            scripts: generation.script_names(),
        });
        self.taken_over.notify_one();
        self.init(generation);
    }

    fn world(&self) -> Arc<World> {
        let network = self.network.get().and_then(Weak::upgrade);
        network.map_or_else(Arc::default, |network| network.world())
    }

    fn known_peers(&self, peers: &[PeerConfig]) -> Vec<String> {
        let world = self.world();
        let learned = world.nodes().iter().map(|node| node.id.to_string());
        let peers = peers.iter();
        let peers = peers.flat_map(|peer| [peer.name.clone(), peer.id.to_string()]);
        learned.chain(peers).collect()
    }
}

impl Generation {
    fn new(number: u64, config: RulesConfig, policy: Policy, sources: Sources) -> Self {
        for warning in policy.warnings() {
            tracing::warn!(%warning, "rule script");
        }
        Self {
            number,
            loaded_at: SystemTime::now(),
            default: config.default,
            config,
            needs: policy.needs(),
            policy,
            sources,
            slow_until_ms: AtomicU64::new(0),
            loaded: Instant::now(),
        }
    }

    /// Whether a command gave its scripts: the next load of the config's, or a start, takes others.
    pub fn is_by_command(&self) -> bool {
        self.sources.by_command
    }

    /// What is odd in its scripts and no error.
    pub fn warnings(&self) -> impl Iterator<Item = ScriptDiagnostic> {
        self.policy.warnings().iter().map(ScriptDiagnostic::from)
    }

    /// The scripts' names, in the order in which they are asked.
    pub fn script_names(&self) -> Vec<String> {
        self.sources.script_names()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for PolicyHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyHost")
            .field("generation", &self.current().number)
            .finish_non_exhaustive()
    }
}
