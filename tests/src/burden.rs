//! Something that is done to a node over and over beside what a test measures, in a thread of its
//! own, and that can be told to rest.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Error, Result};
use tokio::{
    runtime,
    sync::watch,
    task::{JoinSet, LocalSet},
};

use crate::wait::until;

/// A burden; dropped, it ends.
#[derive(Debug)]
pub struct Burden {
    /// Whether it shall work; `None` ends it.
    works: watch::Sender<Option<bool>>,
    workers: usize,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    busy: usize,
    done: usize,
    failed: Option<Error>,
}

impl Burden {
    /// Starts `workers` that each do `work`, which is told the number of the worker and of the
    /// turn, again and again; they begin with a rest.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start<F>(
        workers: usize,
        work: impl Fn(usize, usize) -> F + Clone + Send + 'static,
    ) -> Result<Self>
    where
        F: Future<Output = Result<()>> + 'static,
    {
        let (works, signal) = watch::channel(Some(false));
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let run = move || {
            // It stands for programs elsewhere: their need of this machine is no fault of the node.
            let _only_slower = rustix::process::setpriority_process(None, 5);
            LocalSet::new().block_on(&runtime, async {
                let mut all = JoinSet::new();
                for worker in 0..workers {
                    let work = work.clone();
                    let toil = toil(signal.clone(), Arc::clone(&shared), move |turn| {
                        work(worker, turn)
                    });
                    all.spawn_local(toil);
                }
                all.join_all().await;
            });
        };
        let thread = thread::Builder::new().name("burden".to_owned());
        Ok(Self {
            works,
            workers,
            state,
            thread: Some(thread.spawn(run).context("no thread for a burden")?),
        })
    }

    /// Lets it work, and waits until it goes on steadily: until as much is done as is done at once.
    ///
    /// # Errors
    /// What failed, or that nothing is done.
    pub async fn work(&self) -> Result<()> {
        let steady = self.done() + self.workers;
        self.works.send_replace(Some(true));
        self.wait("a burden to work", |state| state.done >= steady)
            .await
    }

    /// Lets it work, and waits until all workers are at it, whose work may be held back for long.
    ///
    /// # Errors
    /// What failed, or that some do not begin.
    pub async fn begin(&self) -> Result<()> {
        self.works.send_replace(Some(true));
        self.wait("a burden to begin", |state| state.busy == self.workers)
            .await
    }

    /// Lets it rest: what is under way goes on to its end, and nothing else begins.
    pub fn pause(&self) {
        self.works.send_replace(Some(false));
    }

    /// Lets it rest, and waits until nothing is under way.
    ///
    /// # Errors
    /// What failed, or that something does not end.
    pub async fn rest(&self) -> Result<()> {
        self.rest_but(0).await
    }

    /// Lets it rest, and waits until no more than `most` is under way.
    ///
    /// # Errors
    /// What failed, or that something does not end.
    pub async fn rest_but(&self, most: usize) -> Result<()> {
        self.pause();
        self.wait("a burden to rest", |state| state.busy <= most)
            .await
    }

    /// How often the work was done.
    pub fn done(&self) -> usize {
        lock(&self.state).done
    }

    async fn wait(&self, what: &str, is_so: impl Fn(&State) -> bool) -> Result<()> {
        until(what, async || {
            let mut state = lock(&self.state);
            match state.failed.take() {
                Some(error) => Some(Err(error)),
                None => is_so(&state).then_some(Ok(())),
            }
        })
        .await?
    }
}

impl Drop for Burden {
    fn drop(&mut self) {
        self.works.send_replace(None);
        let ended = self.thread.take().map(JoinHandle::join);
        if let Some(Err(panic)) = ended
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

async fn toil<F: Future<Output = Result<()>>>(
    mut signal: watch::Receiver<Option<bool>>,
    state: Arc<Mutex<State>>,
    work: impl Fn(usize) -> F,
) {
    for turn in 0.. {
        match signal.wait_for(|works| *works != Some(false)).await {
            Ok(works) if works.is_some() => lock(&state).busy += 1,
            Ok(_) | Err(_) => return,
        }
        let result = work(turn).await;
        let mut state = lock(&state);
        state.busy -= 1;
        state.done += 1;
        if let Err(error) = result {
            state.failed.get_or_insert(error);
        }
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
