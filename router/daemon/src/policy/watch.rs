//! Watches the files of the rules, and loads them when they change.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher, event::ModifyKind};
use tokio::sync::Notify;
use wormholes_rules::cases_path;

use super::Scripts;
use crate::node::NodeCore;

/// An editor writes a file in several steps.
const SETTLE: Duration = Duration::from_millis(200);

/// Loads the rules whenever one of their files, or the config file, changes. Ends with the node.
pub(crate) async fn watch(core: Arc<NodeCore>) {
    let changed = Arc::new(Notify::new());
    let mut watcher = start(&files(&core), &changed);
    loop {
        if let Err(error) = &watcher {
            tracing::warn!(%error, "rule files are not watched; load them by command");
            return;
        }
        let next = async {
            tokio::select! {
                () = changed.notified() => {
                    tokio::time::sleep(SETTLE).await;
                    // An error was logged, counted and published where it happened.
                    let _ = core.reload(Scripts::InForce).await;
                }
                () = core.policy.taken_over() => {}
            }
        };
        if core.stop.run_until_cancelled(next).await.is_none() {
            return;
        }
        // Other files may be in force by now. The old watcher lives until the new one does.
        watcher = start(&files(&core), &changed);
    }
}

fn files(core: &NodeCore) -> BTreeSet<PathBuf> {
    let rules = core.policy.current();
    let config = rules.config.clone();
    // Scripts that a command gave are no files here.
    let scripts = config
        .scripts
        .into_iter()
        .filter(|_| !rules.is_by_command());
    let scripts = scripts.flat_map(|script| [cases_path(&script), script]);
    let sets = config.sets.into_values();
    scripts
        .chain(sets)
        .chain(core.config.file.clone())
        .collect()
}

/// Folders are watched, since editors replace files.
fn start(files: &BTreeSet<PathBuf>, changed: &Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let (wanted, changed) = (files.clone(), Arc::clone(changed));
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // An error may be a queue that overflowed: look again.
        let concerns = event.map_or(true, |event| {
            let is_change = match event.kind {
                EventKind::Create(_) | EventKind::Remove(_) => true,
                EventKind::Modify(kind) => !matches!(kind, ModifyKind::Metadata(_)),
                EventKind::Any | EventKind::Access(_) | EventKind::Other => false,
            };
            is_change && event.paths.iter().any(|path| wanted.contains(path))
        });
        if concerns {
            changed.notify_one();
        }
    })?;
    let folders: BTreeSet<_> = files.iter().filter_map(|file| file.parent()).collect();
    for folder in folders {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}
