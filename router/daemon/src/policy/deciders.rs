//! Where rules decide that were slow once: beside the runtime, on threads that give way to those
//! on which flows live. A decision that takes all of its time there holds up neither flows nor,
//! while a thread is free, other decisions.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    runtime::{self, Runtime},
    sync::Semaphore,
};
use tokio_util::task::AbortOnDropHandle;

/// Decisions under way at once. A hostile script fills up to 10 MiB: four leave room below 64 MiB.
const THREADS: usize = 4;
/// Decisions that run or wait for a thread: what the slowest rules decide in some seconds.
/// Overflow: the newcomer is not decided, which is block.
const MAX_DECISIONS: usize = 256;
/// Threads without work end after this.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// What a thread of the runtime has; the deepest script was tried on it.
const STACK_BYTES: usize = 2 << 20;
/// How far the threads give way: each of them gets a thirtieth of what a thread with flows does.
const GIVE_WAY: i32 = 15;

/// The threads; none runs before it is needed. Dropping this ends them, each after what it does.
pub(crate) struct Deciders {
    /// Nothing but its threads for blocking work is used. `None` only while this is dropped.
    runtime: Option<Runtime>,
    places: Arc<Semaphore>,
}

/// More decisions than have a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many decisions at once")]
pub(super) struct TooMany;

impl Deciders {
    /// # Errors
    /// What the system says when it has no descriptors for them.
    pub(crate) fn new() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .thread_name("decider")
            .max_blocking_threads(THREADS)
            .thread_keep_alive(IDLE_TIMEOUT)
            .thread_stack_size(STACK_BYTES)
            .on_thread_start(give_way)
            .build()?;
        Ok(Self {
            runtime: Some(runtime),
            places: Arc::new(Semaphore::new(MAX_DECISIONS)),
        })
    }

    /// Runs `decide` on one of the threads. Dropped before that begins, it does not begin.
    ///
    /// # Errors
    /// [`TooMany`].
    pub(super) async fn run<T: Send + 'static>(
        &self,
        decide: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, TooMany> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| TooMany)?;
        let runtime = self.runtime.as_ref().ok_or(TooMany)?;
        let decision = runtime.spawn_blocking(move || {
            let _place = place;
            decide()
        });
        // Only a host that is dropped lets go of one.
        AbortOnDropHandle::new(decision).await.map_err(|_| TooMany)
    }
}

impl Drop for Deciders {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Lets other threads go first; what the system refuses only makes them slower.
fn give_way() {
    // Elsewhere it would be the whole process that gives way.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(GIVE_WAY) {
        tracing::debug!(%error, "slow decisions do not give way");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::{FutureExt, future::join_all};

    use super::*;

    #[tokio::test]
    async fn too_many_decisions_at_once_are_not_made() {
        let deciders = Deciders::new().unwrap();
        let (free, hold) = mpsc::channel::<()>();
        let hold = Arc::new(std::sync::Mutex::new(hold));
        let decide = || {
            let hold = Arc::clone(&hold);
            deciders
                .run(move || hold.lock().unwrap().recv().is_ok())
                .boxed()
        };
        let mut under_way = join_all((0..MAX_DECISIONS).map(|_| decide())).boxed();
        assert!((&mut under_way).now_or_never().is_none());
        assert_eq!(decide().await, Err(TooMany));
        drop(free);
        let made = under_way.await;
        assert!(made.iter().all(Result::is_ok));
        assert_eq!(deciders.run(|| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn a_decision_that_nobody_waits_for_is_not_begun() {
        let deciders = Deciders::new().unwrap();
        let (free, hold) = mpsc::channel::<()>();
        let hold = Arc::new(std::sync::Mutex::new(hold));
        let holders = (0..THREADS).map(|_| {
            let hold = Arc::clone(&hold);
            deciders.run(move || hold.lock().unwrap().recv().is_ok())
        });
        let mut holders = join_all(holders).boxed();
        assert!((&mut holders).now_or_never().is_none());
        let (begun, is_begun) = mpsc::channel();
        assert!(
            deciders
                .run(move || begun.send(()))
                .now_or_never()
                .is_none()
        );
        drop(free);
        holders.await;
        // Its end of the channel is dropped, and nothing was sent.
        assert!(
            deciders
                .run(move || is_begun.recv())
                .await
                .unwrap()
                .is_err()
        );
    }
}
