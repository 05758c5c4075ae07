//! Which path a flow takes: kept ones first, then a new one from the records that are known. The
//! guards live on disk.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use wormholes_proto::{
    NodeId, SignedRecord,
    onion::{Candidate, Guards, PathCache, PathError, PathHop, PathKey, choose_path},
};

use super::{OpenError, refresh};
use crate::{
    network::{Network, Wanted},
    private_file,
};

const GUARDS_FILE: &str = "guards.json";
const EXIT_GUARDS_FILE: &str = "exit-guards.json";

/// Draws of a path that is not in use. Where half of all paths are, one flow in some 60,000 takes
/// one of them all the same.
const MAX_DRAWS: usize = 16;

/// The same path drawn again so often in a row: there is hardly another one.
const MAX_SAME_DRAWS: usize = 3;

/// Paths in use, and the guards.
#[derive(Debug)]
pub(super) struct Paths {
    guards: KeptGuards,
    /// For paths of one hop, which learns who asks and for what: few shall, as of first hops, and
    /// the other guards need not exit.
    exit_guards: KeptGuards,
    cache: Mutex<PathCache>,
}

/// Guards and their file.
#[derive(Debug)]
struct KeptGuards {
    file: PathBuf,
    guards: Mutex<Guards>,
}

impl Paths {
    pub(super) fn new(data_dir: &Path) -> Self {
        Self {
            guards: KeptGuards::read(data_dir.join(GUARDS_FILE)),
            exit_guards: KeptGuards::read(data_dir.join(EXIT_GUARDS_FILE)),
            cache: Mutex::new(PathCache::new()),
        }
    }

    /// The kept path for `key`, and that it was kept, or a new one; without enough records they
    /// are fetched first, for no longer than a dial may run.
    pub(super) async fn choose(
        &self,
        network: &Arc<Network>,
        key: &PathKey,
        first: Wanted,
    ) -> Result<(Vec<PathHop>, bool), OpenError> {
        if let Some(path) = self.cache().get(key, Instant::now()) {
            return Ok((path.to_vec(), true));
        }
        let mut chosen = self.choose_new(network, key);
        if chosen.is_err() {
            refresh(network, first).await;
            chosen = self.choose_new(network, key);
        }
        let path = chosen.map_err(|error| OpenError::NoPath(words(network, &error)))?;
        Ok((path, false))
    }

    /// The path is of no use.
    pub(super) fn forget(&self, key: &PathKey, path: &[PathHop]) {
        self.cache().remove(key, path);
    }

    /// A first hop could not be connected to.
    pub(super) fn unreachable(&self, id: &NodeId) {
        for kept in [&self.guards, &self.exit_guards] {
            kept.lock().handle_unreachable(id, SystemTime::now());
        }
    }

    /// A first hop said itself that it does not serve.
    pub(super) fn refused(&self, id: &NodeId) {
        for kept in [&self.guards, &self.exit_guards] {
            kept.lock().handle_refused(id, SystemTime::now());
        }
    }

    /// A first hop was connected to.
    pub(super) fn reached(&self, id: &NodeId) {
        for kept in [&self.guards, &self.exit_guards] {
            kept.lock().handle_reached(id);
        }
    }

    /// Guards of paths with more than one hop.
    pub(super) fn guards(&self) -> Vec<NodeId> {
        let guards = self.guards.lock();
        guards
            .guards()
            .iter()
            .map(wormholes_proto::onion::Guard::id)
            .collect()
    }

    /// Guards in the order in which paths begin with them.
    #[cfg(test)]
    pub(super) fn first_hops(&self) -> Vec<NodeId> {
        self.guards.lock().first_hops(SystemTime::now())
    }

    /// A path that no key has or had of late, where one is found.
    fn choose_new(&self, network: &Network, key: &PathKey) -> Result<Vec<PathHop>, PathError> {
        let records: Vec<SignedRecord> = network.records().book().iter().cloned().collect();
        let known = network.peers().known();
        let candidates: Vec<Candidate<'_>> = records
            .iter()
            .map(|record| Candidate {
                record: record.record(),
                trust: known.get(&record.id()).map_or(0, |peer| peer.trust),
            })
            .collect();
        let now = SystemTime::now();
        let mut rng = rand::rng();
        let exits;
        let (kept, may_guard) = if key.request.hops == 1 {
            let exit = candidates.iter().filter(|node| node.record.roles.exit);
            exits = exit.copied().collect::<Vec<_>>();
            (&self.exit_guards, &exits)
        } else {
            (&self.guards, &candidates)
        };
        let mut guards = kept.lock();
        if guards.handle_candidates(may_guard, network.id(), now, &mut rng) {
            kept.save(network, &guards);
        }
        let mut path = choose_path(&candidates, &key.request, &guards, now, &mut rng)?;
        let mut n_same = 0;
        for _ in 1..MAX_DRAWS {
            if !self.cache().holds(&path) {
                break;
            }
            let other = choose_path(&candidates, &key.request, &guards, now, &mut rng)?;
            n_same = if other == path { n_same + 1 } else { 0 };
            if n_same == MAX_SAME_DRAWS {
                break;
            }
            path = other;
        }
        self.cache()
            .insert(key.clone(), path.clone(), Instant::now());
        Ok(path)
    }

    fn cache(&self) -> MutexGuard<'_, PathCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeptGuards {
    fn read(file: PathBuf) -> Self {
        Self {
            guards: Mutex::new(read_guards(&file)),
            file,
        }
    }

    /// Writes off the path of flows: a disk may be slow.
    fn save(&self, network: &Network, guards: &Guards) {
        let file = self.file.clone();
        let Ok(text) = serde_json::to_vec_pretty(guards) else {
            return;
        };
        network.spawn(async move {
            let write = move || private_file::write(&file, &text);
            if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
                tracing::warn!(%error, "cannot keep the guards");
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Guards> {
        self.guards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error with names of nodes.
fn words(network: &Network, error: &PathError) -> String {
    match error {
        PathError::NotAHop(id) => format!("{} is not known as a hop", network.named(*id)),
        PathError::NotAnExit(id) => format!("{} does not exit to that port", network.named(*id)),
        PathError::Hops(_) | PathError::NoExit | PathError::NoGuard | PathError::TooFewHops(_) => {
            error.to_string()
        }
    }
}

/// A file that cannot be read is said aloud: new guards are a risk.
fn read_guards(file: &Path) -> Guards {
    match std::fs::read(file) {
        Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(%error, file = %file.display(), "the guards cannot be read; choosing new ones");
            Guards::new()
        }),
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(%error, file = %file.display(), "the guards cannot be read; choosing new ones");
            }
            Guards::new()
        }
    }
}
