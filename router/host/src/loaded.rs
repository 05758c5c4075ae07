//! A plugin that is loaded: its code, its manifest, and what all of its principals share.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use rand::RngCore as _;
use tokio::sync::Semaphore;

use crate::{
    clock::now_ms,
    event::{ErrorCode, Principal, Query, Refusal, Stamp},
    figures::Figures,
    guest::{Code, Fault, Plugin},
    health::Health,
    host::InstanceReport,
    manifest::{Capabilities, Manifest},
    memory::Version,
    rows::{self, Home, principal_keys},
    store::{Snapshot, Store, StoreError},
    transaction::{Ground, Transaction},
};

/// Principals of one plugin that run at once, and questions to it that are answered at once: others
/// have their turn beside them.
const TURNS: usize = 2;

/// One instance of a plugin, as config.toml names it.
pub(crate) struct Loaded {
    pub(crate) name: Arc<str>,
    /// Of its rows in the store.
    pub(crate) number: u32,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) plugin: Arc<Plugin>,
    pub(crate) turns: Semaphore,
    pub(crate) queries: Semaphore,
    pub(crate) health: Health,
    pub(crate) figures: Figures,
    code: ArcSwap<Code>,
    /// Of their rows; what was given to one and never written to is given again after a start.
    numbers: Mutex<BTreeMap<Principal, u32>>,
}

impl Loaded {
    pub(crate) fn new(
        number: u32,
        manifest: Manifest,
        code: Code,
        store: &Store,
    ) -> Result<Self, StoreError> {
        let plugin = Arc::clone(code.plugin());
        Ok(Self {
            name: Arc::clone(&plugin.name),
            number,
            manifest: Arc::new(manifest),
            plugin,
            turns: Semaphore::new(TURNS),
            queries: Semaphore::new(TURNS),
            health: Health::new(),
            figures: Figures::default(),
            code: ArcSwap::from_pointee(code),
            numbers: Mutex::new(read_numbers(number, store)?),
        })
    }

    pub(crate) fn code(&self) -> Arc<Code> {
        self.code.load_full()
    }

    /// What its rows remember of it.
    pub(crate) fn version(&self) -> Version {
        Version {
            schema: self.manifest.state.schema,
            code: self.code.load().digest(),
        }
    }

    /// Where a principal's rows lie.
    pub(crate) fn home(&self, principal: &Principal) -> Home {
        let mut numbers = self.numbers();
        let next = numbers.values().max().map_or(1, |last| last + 1);
        let number = match principal {
            Principal::Node => 0,
            Principal::User(_) => *numbers.entry(principal.clone()).or_insert(next),
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

    /// Answers a question about what is durable.
    pub(crate) async fn answer(
        &self,
        principal: Principal,
        query: &Query,
        snapshot: Arc<Snapshot>,
    ) -> Result<Vec<u8>, Refusal> {
        let mut seed = [0; 32];
        rand::rng().fill_bytes(&mut seed);
        let ground = Ground {
            home: self.home(&principal),
            limits: Arc::clone(&self.plugin.limits),
            others_keep: 0,
        };
        let stamp = Stamp {
            id: 0,
            attempt: 0,
            now_ms: now_ms(),
            principal,
            seed,
        };
        let transaction = Transaction::reading(stamp, ground, snapshot);
        let answer = match self.code().instantiate().await {
            Ok(instance) => instance.answer(query, transaction).await,
            Err(fault) => Err(fault),
        };
        answer.map_err(|fault| match fault {
            Fault::Refused(refusal) => refusal,
            Fault::Trapped(_) | Fault::TimedOut(_) | Fault::Host(_) => {
                let plugin = &self.name;
                tracing::warn!(%plugin, %fault, "a plugin broke over a question");
                Refusal::new(ErrorCode::Failed, "the plugin failed; see its log")
            }
        })
    }

    pub(crate) fn report(&self) -> InstanceReport {
        InstanceReport {
            name: Arc::clone(&self.name),
            manifest: Arc::clone(&self.manifest),
            condition: self.health.condition(),
            kept_bytes: self.figures.kept_bytes(),
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

/// What config.toml says of an instance.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// What it may do, if its manifest asks for the same.
    pub grants: Capabilities,
    /// What it reads by `system.config`: values as JSON.
    pub config: BTreeMap<String, String>,
}
