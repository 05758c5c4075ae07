//! Watches the files of the rules, and loads them when they change.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::FutureExt;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher, event::ModifyKind};
use tokio::sync::{Notify, oneshot};
use wormholes_rules::cases_path;

use super::{LoadError, Scripts};
use crate::node::{NodeCore, ReloadError};

/// An editor writes a file in several steps, of which the first may be to empty it.
const SETTLE: Duration = Duration::from_millis(200);
/// Files that something writes without pause are loaded after this, if they stand still while they are
/// read.
const PATIENCE: Duration = Duration::from_secs(2);
/// Links on the way to one file; Linux follows no more either.
const MAX_LINKS: usize = 40;

/// Loads the rules whenever one of their files, or the config file, changes. Ends with the node.
pub(crate) async fn watch(core: Arc<NodeCore>) {
    let changed = Arc::new(Notify::new());
    let (mut watcher, mut before) = (None, None);
    let mut waits_since = None;
    loop {
        // Other files may be in force by now. The old watcher lives until the new one does.
        let started = core.stop.run_until_cancelled(start(files(&core), &changed));
        match started.await {
            Some(Ok((started, now))) => {
                drop(watcher.replace(started));
                // A change that the old one had not told of yet ended with it.
                if before.take().is_some_and(|before| before != now) {
                    changed.notify_one();
                }
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "rule files are not watched; load them by command");
                return;
            }
            None => return,
        }
        let next = async {
            tokio::select! {
                () = settled(&changed) => before = load(&core, &changed, &mut waits_since).await,
                () = core.policy.taken_over() => waits_since = None,
            }
        };
        if core.stop.run_until_cancelled(next).await.is_none() {
            return;
        }
    }
}

/// Loads the files as they stand still, or sees to it that they are looked at again; how they were.
/// `waits_since` is kept for this alone.
async fn load(
    core: &Arc<NodeCore>,
    changed: &Notify,
    waits_since: &mut Option<Instant>,
) -> Option<Stamps> {
    let files = files(core);
    let now = stamps(files.clone()).await.ok()?;
    let waited = waits_since.get_or_insert_with(Instant::now).elapsed();
    if changed_within(&now, SETTLE) && waited < PATIENCE {
        changed.notify_one();
        return Some(now);
    }
    let as_read = now.clone();
    let is_steady = move || stamps_here(&files) == as_read;
    let loaded = core.reload_if(Scripts::InForce, is_steady).await;
    if let Err(ReloadError::Rules(LoadError::Unsteady)) = loaded {
        changed.notify_one();
    } else {
        // Any other error was logged, counted and published where it happened.
        *waits_since = None;
    }
    Some(now)
}

/// Whether one of them changed in the last `time`. One of the future did not: somebody set the clock.
fn changed_within(stamps: &Stamps, time: Duration) -> bool {
    let last = stamps.iter().filter_map(|(_, stamp)| *stamp);
    let last = last.map(|(_, seconds, nanos)| (seconds, nanos)).max();
    last.is_some_and(|(seconds, nanos)| {
        let since_epoch = u64::try_from(seconds).ok().zip(u32::try_from(nanos).ok());
        let at = since_epoch.map(|(seconds, nanos)| UNIX_EPOCH + Duration::new(seconds, nanos));
        let age = at.and_then(|at| SystemTime::now().duration_since(at).ok());
        age.is_some_and(|age| age < time)
    })
}

/// What tells a file or a link from what was there before, by path: its inode, and its time of change in
/// seconds and nanoseconds; none where nothing is.
type Stamps = Vec<(PathBuf, Option<(u64, i64, i64)>)>;

/// Of all that decides about the content of `files`.
async fn stamps(files: BTreeSet<PathBuf>) -> io::Result<Stamps> {
    alone(move || stamps_here(&files)).await
}

fn stamps_here(files: &BTreeSet<PathBuf>) -> Stamps {
    let way: BTreeSet<_> = files.iter().flat_map(|file| way_to(file)).collect();
    let stamp = |path: PathBuf| {
        let about = fs::symlink_metadata(&path).ok();
        let stamp = about.map(|about| (about.ino(), about.ctime(), about.ctime_nsec()));
        (path, stamp)
    };
    way.into_iter().map(stamp).collect()
}

/// Starts a watcher, and says how the files were when it had begun. Whoever adds a folder to one waits
/// for the thread that reads its events, which a program that writes without pause keeps busy: so this is
/// done on a thread of its own.
async fn start(
    files: BTreeSet<PathBuf>,
    changed: &Arc<Notify>,
) -> notify::Result<(RecommendedWatcher, Stamps)> {
    let changed = Arc::clone(changed);
    alone(move || Ok((start_here(&files, &changed)?, stamps_here(&files)))).await?
}

/// Does `work` on a thread that nobody waits for when this is dropped or the runtime ends.
async fn alone<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (sender, done) = oneshot::channel();
    let thread = thread::Builder::new().name("watch-rules".to_owned());
    thread.spawn(move || sender.send(work()))?;
    done.await
        .map_err(|_| io::Error::other("the thread broke off"))
}

/// Waits for a change, and for those that belong to it: all of them are read at once.
async fn settled(changed: &Notify) {
    changed.notified().await;
    tokio::time::sleep(SETTLE).await;
    let _came_meanwhile = changed.notified().now_or_never();
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

/// Folders are watched, since editors replace files, and others replace links to them.
fn start_here(
    files: &BTreeSet<PathBuf>,
    changed: &Arc<Notify>,
) -> notify::Result<RecommendedWatcher> {
    let wanted: BTreeSet<_> = files.iter().flat_map(|file| way_to(file)).collect();
    let folders: BTreeSet<_> = wanted
        .iter()
        .filter_map(|path| path.parent().map(Path::to_owned))
        .collect();
    let changed = Arc::clone(changed);
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
    for folder in folders {
        watcher.watch(&folder, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

/// What decides about the content of `file`: the links that lead to it, and where they end, or the
/// first part of the way that is missing. The parent of each is a folder that is there.
fn way_to(file: &Path) -> Vec<PathBuf> {
    let mut way = Vec::new();
    let mut rest = file.to_owned();
    let mut folder = PathBuf::new();
    while way.len() < MAX_LINKS {
        let mut parts = rest.components();
        let Some(part) = parts.next() else {
            way.push(folder);
            break;
        };
        let after = parts.as_path().to_owned();
        if part == Component::ParentDir {
            folder.pop();
            rest = after;
            continue;
        }
        let next = folder.join(part);
        match fs::symlink_metadata(&next) {
            Ok(found) if found.is_symlink() => {
                // It was there, and what replaced it since is an event of its own.
                rest = fs::read_link(&next).unwrap_or_default().join(after);
                way.push(next);
            }
            Ok(_) => {
                folder = next;
                rest = after;
            }
            Err(_) => {
                way.push(next);
                break;
            }
        }
    }
    way
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_way_to_a_file_names_links_and_their_end() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("v1/deep")).unwrap();
        fs::write(root.join("v1/deep/a.rhai"), "").unwrap();
        symlink("v1", root.join("current")).unwrap();
        symlink("../v1/missing/b.rhai", root.join("v1/b.rhai")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let check = |file: &str, expected: &[&str]| {
            let expected: Vec<_> = expected.iter().map(|path| root.join(path)).collect();
            assert_eq!(way_to(&root.join(file)), expected, "{file}");
        };
        check("v1/deep/a.rhai", &["v1/deep/a.rhai"]);
        check("current/deep/a.rhai", &["current", "v1/deep/a.rhai"]);
        check("current/../v1/deep/a.rhai", &["current", "v1/deep/a.rhai"]);
        check("v1/b.rhai", &["v1/b.rhai", "v1/missing"]);
        check("absent/a.rhai", &["absent"]);
        assert_eq!(way_to(&root.join("loop")).len(), MAX_LINKS);
    }

    #[test]
    fn a_file_changed_lately_until_it_did_not_for_a_while() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stamps = stamps_here(&BTreeSet::from([file.path().canonicalize().unwrap()]));
        assert!(changed_within(&stamps, Duration::from_secs(60)));
        assert!(!changed_within(&stamps, Duration::ZERO));
        let path = file.path().to_owned();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = i64::try_from(now.as_secs()).unwrap();
        for (at, is_new) in [(now - 3600, false), (now + 3600, false), (now - 1, true)] {
            let stamps = vec![(path.clone(), Some((1, at, 0))), (path.clone(), None)];
            assert_eq!(changed_within(&stamps, Duration::from_secs(60)), is_new);
        }
        assert!(!changed_within(&vec![], Duration::from_secs(60)));
    }

    #[test]
    fn a_stop_waits_for_no_thread_that_waits() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (busy, reader) = std::sync::mpsc::channel::<()>();
        let waiting = alone(move || reader.recv());
        let stopped = async { tokio::task::yield_now().await };
        runtime.block_on(async {
            tokio::select! {
                biased;
                _ = waiting => panic!("nothing was sent"),
                () = stopped => {}
            }
        });
        drop(runtime);
        drop(busy);
    }

    #[tokio::test]
    async fn the_steps_of_one_write_are_one_change() {
        let changed = Notify::new();
        changed.notify_one();
        tokio::join!(settled(&changed), async { changed.notify_one() });
        assert!(changed.notified().now_or_never().is_none());
        changed.notify_one();
        assert!(changed.notified().now_or_never().is_some());
    }
}
