//! When a node's set is fetched: once for all who ask meanwhile, and not again before a pause.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    time::{Instant, sleep_until},
};

/// After a fetch, the next one waits ten times as long as it took, within these: asking a few records
/// again soon costs next to nothing, asking 4 MiB again does.
const MIN_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// Fetches over one connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fetches(Arc<Mutex<Option<Fetched>>>);

/// The last one.
#[derive(Debug)]
struct Fetched {
    ended: Instant,
    /// The next one begins no sooner.
    pause: Duration,
    news: bool,
}

/// The one who fetches; the others wait until it is dropped.
#[derive(Debug)]
pub(crate) struct FetchTurn(OwnedMutexGuard<Option<Fetched>>);

impl Fetches {
    /// Waits for the fetch that runs. Cancel-safe.
    ///
    /// # Errors
    /// What one that ended after `since` brought: whether anything was new.
    pub(crate) async fn enter(&self, since: Instant) -> Result<FetchTurn, bool> {
        let last = Arc::clone(&self.0).lock_owned().await;
        match &*last {
            Some(last) if last.ended > since => Err(last.news),
            _ => Ok(FetchTurn(last)),
        }
    }
}

impl FetchTurn {
    /// Does `fetch` after the pause; whether anything is new.
    pub(crate) async fn run(mut self, fetch: impl Future<Output = bool>) -> bool {
        if let Some(last) = &*self.0 {
            sleep_until(last.ended.checked_add(last.pause).unwrap_or(last.ended)).await;
        }
        let started = Instant::now();
        let news = fetch.await;
        *self.0 = Some(Fetched {
            ended: Instant::now(),
            pause: (started.elapsed() * 10).clamp(MIN_PAUSE, MAX_PAUSE),
            news,
        });
        news
    }
}
