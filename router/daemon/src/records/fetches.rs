//! When a node's set is fetched: once for all who ask meanwhile, and not again before a pause.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, Notify, OwnedMutexGuard},
    time::{Instant, sleep_until},
};

/// After a fetch, the next one waits ten times as long as it took, within these: asking a few records
/// again soon costs next to nothing, asking 4 MiB again does. Who is in a hurry waits for the shortest.
const MIN_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// Fetches over one connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fetches {
    last: Arc<Mutex<Option<Fetched>>>,
    hurried: Arc<Notify>,
}

#[derive(Debug)]
struct Fetched {
    started: Instant,
    ended: Instant,
    /// The next one begins no sooner.
    pause: Duration,
    news: bool,
}

/// The one who fetches; the others wait until it is dropped.
#[derive(Debug)]
pub(crate) struct FetchTurn {
    last: OwnedMutexGuard<Option<Fetched>>,
    hurried: Arc<Notify>,
}

impl Fetches {
    /// Waits for the fetch that runs. Cancel-safe.
    ///
    /// # Errors
    /// What one that began after `since` brought: whether anything was new.
    pub(crate) async fn enter(&self, since: Instant) -> Result<FetchTurn, bool> {
        let last = Arc::clone(&self.last).lock_owned().await;
        match &*last {
            Some(last) if last.started >= since => Err(last.news),
            _ => Ok(FetchTurn {
                last,
                hurried: Arc::clone(&self.hurried),
            }),
        }
    }

    /// The pause before the next fetch, whoever waits for it, is the shortest.
    pub(crate) fn hurry(&self) {
        self.hurried.notify_one();
    }
}

impl FetchTurn {
    /// Does `fetch` after the pause; whether anything is new.
    pub(crate) async fn run(mut self, fetch: impl Future<Output = bool>) -> bool {
        if let Some(last) = &*self.last {
            let paused = |pause| last.ended.checked_add(pause).unwrap_or(last.ended);
            sleep_until(paused(MIN_PAUSE)).await;
            tokio::select! {
                () = sleep_until(paused(last.pause)) => {}
                () = self.hurried.notified() => {}
            }
        }
        let started = Instant::now();
        let news = fetch.await;
        *self.last = Some(Fetched {
            started,
            ended: Instant::now(),
            pause: (started.elapsed() * 10).clamp(MIN_PAUSE, MAX_PAUSE),
            news,
        });
        news
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_fetch_that_began_before_is_not_what_was_asked_for() {
        let fetches = Fetches::default();
        let before = Instant::now();
        let mut meanwhile = before;
        let turn = fetches.enter(before).await.expect("the first");
        let fetch = async {
            // Clocks tick coarsely.
            while meanwhile <= before {
                tokio::task::yield_now().await;
                meanwhile = Instant::now();
            }
            true
        };
        assert!(turn.run(fetch).await);
        assert!(matches!(fetches.enter(before).await, Err(true)), "shared");
        assert!(fetches.enter(meanwhile).await.is_ok());
    }

    #[tokio::test]
    async fn who_is_in_a_hurry_waits_for_the_shortest_pause_only() {
        let fetches = Fetches::default();
        let ended = Instant::now();
        *fetches.last.lock().await = Some(Fetched {
            started: ended,
            ended,
            pause: Duration::from_secs(3600),
            news: false,
        });
        let turn = fetches.enter(Instant::now()).await.expect("a new one");
        let mut fetch = Box::pin(turn.run(async { true }));
        assert!((&mut fetch).now_or_never().is_none());
        fetches.hurry();
        assert!(fetch.await);
        assert!(ended.elapsed() >= MIN_PAUSE);
    }
}
