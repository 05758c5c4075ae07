//! The thread that commits: one batch after the other, and the way back after a failure.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Backend, BatchId, Commit, Head, Lost, Observer, StoreError, Writes,
    queue::{Event, Queue, Release, Work},
};

/// How long it waits before the backend is opened again: short, since most failures pass at once.
const FIRST_DELAY: Duration = Duration::from_millis(10);
/// The delay doubles up to this, so that a full disk is not asked all the time, and its owner who
/// made room does not wait long. It begins anew with the first commit that works.
const LAST_DELAY: Duration = Duration::from_secs(5);

pub(super) struct Committer {
    pub(super) backend: Box<dyn Backend>,
    pub(super) queue: Arc<Queue>,
    pub(super) head: Head,
    pub(super) observer: Option<Observer>,
    delay: Duration,
}

impl Committer {
    pub(super) fn new(
        backend: Box<dyn Backend>,
        queue: Arc<Queue>,
        head: Head,
        observer: Option<Observer>,
    ) -> Self {
        Self {
            backend,
            queue,
            head,
            observer,
            delay: FIRST_DELAY,
        }
    }

    /// Runs until the store ends and nothing is left to commit.
    pub(super) fn run(mut self) {
        loop {
            match self.queue.next() {
                Work::Commit(batch, events) => self.commit(batch, events),
                Work::Reopen(events) => {
                    release_events(events, Err(Lost));
                    self.reopen();
                }
                Work::End(events) => return release_events(events, Err(Lost)),
            }
        }
    }

    fn commit(&mut self, batch: BatchId, events: Vec<Event>) {
        let mut releases = Vec::with_capacity(events.len());
        let mut writes = Writes::default();
        for event in events {
            writes.extend(event.writes);
            releases.push(event.release);
        }
        let outcome = if writes.is_empty() {
            Ok(())
        } else {
            self.write(&writes, releases.len())
        };
        if let Err(error) = &outcome {
            self.queue.fail(batch.epoch);
            tracing::error!(
                error = error as &dyn std::error::Error,
                "the plugins' store failed"
            );
        } else {
            self.show(batch);
        }
        let outcome = outcome.map_err(|_| Lost);
        release_all(releases, outcome);
        while let Some(behind) = self.queue.behind(batch, outcome) {
            release_all(behind, outcome);
        }
    }

    fn write(&mut self, writes: &Writes, events: usize) -> Result<(), StoreError> {
        let began = Instant::now();
        // A backend that panics would leave all who wait without an answer.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.backend.commit(writes)))
            .unwrap_or_else(|_| Err(StoreError::Failed("the backend panicked".into())));
        if let Some(observe) = &self.observer {
            observe(&Commit {
                events,
                rows: writes.rows().count(),
                bytes: writes.bytes(),
                took: began.elapsed(),
                is_durable: outcome.is_ok(),
            });
        }
        outcome
    }

    /// Publishes what is durable.
    fn show(&mut self, batch: BatchId) {
        self.delay = FIRST_DELAY;
        match self.backend.snapshot() {
            Ok(rows) => self.queue.publish(batch, rows),
            Err(error) => self.queue.doubt(batch.epoch, &error),
        }
    }

    /// Opens the backend anew until it works.
    fn reopen(&mut self) {
        while self.queue.pause(self.delay) {
            self.delay = LAST_DELAY.min(self.delay * 2);
            let opened = catch_unwind(AssertUnwindSafe(|| self.backend.reopen()))
                .unwrap_or_else(|_| Err(StoreError::Failed("the backend panicked".into())));
            let rows = opened.and_then(|()| {
                let rows = self.backend.snapshot()?;
                let head = Head::read(&*rows)?;
                (head == Some(self.head))
                    .then_some(rows)
                    .ok_or(StoreError::Replaced)
            });
            match rows {
                Ok(rows) => {
                    tracing::info!("the plugins' store works again");
                    return self.queue.begin_epoch(rows);
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(error, "the plugins' store cannot be opened anew");
                }
            }
        }
    }
}

fn release_events(events: Vec<Event>, outcome: Result<(), Lost>) {
    let releases = events.into_iter().map(|event| event.release);
    release_all(releases, outcome);
}

fn release_all(releases: impl IntoIterator<Item = Release>, outcome: Result<(), Lost>) {
    for release in releases {
        // One that panics must not hold up those of others.
        if catch_unwind(AssertUnwindSafe(|| release(outcome))).is_err() {
            tracing::error!("a release of the plugins' store panicked");
        }
    }
}
