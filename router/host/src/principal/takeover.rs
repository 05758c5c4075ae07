//! How another version of the plugin takes a principal over: beside the one that runs, which goes on
//! if anything fails.
//!
//! ```text
//! all that it did is durable -> [its rows are copied to the other side -> migrate, in steps] -> init
//!   -> ready -> one commit for all principals of the plugin: heads, and what init did
//! ```
//! Until that commit the head names the side that the version before reads: whatever happens, and
//! whenever the node is killed, each version finds its own rows whole.

use std::{sync::Arc, time::Instant};

use tokio::sync::oneshot;

use super::{Actor, Order, ending::keep};
use crate::{
    edition::Edition,
    event::{ErrorCode, Event, Reason, Refusal},
    figures::Ending,
    guest::{Fault, Outcome},
    rows::{Side, own_key},
    store::{BatchId, Overlay, Snapshot, StoreError, View, Writes},
    transaction::Transaction,
};

/// Rows that are copied in one commit, and their bytes.
const COPIED_ROWS: usize = 4096;
const COPIED_BYTES: usize = 1 << 20;
/// A migration of more steps has no end.
const MAX_STEPS: u32 = 1_000_000;

/// Closed: nobody waits any more.
type Ready = oneshot::Sender<Result<usize, String>>;

/// Another version takes over.
#[derive(Debug)]
pub(crate) struct TakeOver {
    pub(crate) edition: Arc<Edition>,
    /// How many bytes the principal's part of the commit has, or what went wrong.
    pub(crate) ready: Ready,
    /// All are ready; dropped: the version before goes on.
    pub(crate) go: oneshot::Receiver<Go>,
}

/// The commit that makes it real.
#[derive(Debug)]
pub(crate) struct Go {
    /// The principal's part of it.
    pub(crate) part: oneshot::Sender<Writes>,
    /// It is durable; dropped: it is lost.
    pub(crate) done: oneshot::Receiver<BatchId>,
}

impl Actor {
    pub(super) async fn obey(&mut self, order: Order) {
        match order {
            Order::TakeOver(order) => self.take_over(order).await,
            Order::End(ended) => {
                self.is_over = true;
                let _ = ended.send(());
            }
            // It is not taken here: the actor ends.
            Order::Retire(done) => drop(done),
        }
    }

    async fn take_over(&mut self, order: TakeOver) {
        let TakeOver { edition, ready, go } = order;
        self.catch_up().await;
        let transaction = match Box::pin(self.prepare(&edition, 0, Some(&ready))).await {
            Ok(transaction) => transaction,
            Err(fault) => {
                let _ = ready.send(Err(fault.to_string()));
                return self.tidy();
            }
        };
        let _ = ready.send(Ok(transaction.bytes()));
        let Ok(go) = go.await else {
            self.memory = transaction.undo();
            return self.tidy();
        };
        let mut effects;
        (self.memory, effects) = transaction.take_effect();
        let writes = &mut effects.writes;
        self.memory
            .woken(self.home, &self.name, edition.version(), writes);
        let _ = go.part.send(std::mem::take(writes));
        let Ok(batch) = go.done.await else {
            keep(edition.plugin(), self.is_current(), &effects.blobs.pins);
            // What is remembered may be another thing than what is on disk: that is read again.
            self.epoch = 0;
            return;
        };
        self.keep_facts(&edition);
        self.keep_wires(&edition);
        self.edition = edition;
        (self.instance, self.track) = (None, None);
        self.first.retain(|(event, _)| !event.wakes());
        self.last_batch = batch;
        self.make_real(effects, None);
        self.tidy();
    }

    /// Clears the side that does not count, if it is known which one that is.
    fn tidy(&self) {
        if self.epoch == self.store.epoch() {
            // What cannot be read now is cleared at the next start.
            let _ = self.clear_other_side(&self.store.snapshot());
        }
    }

    /// Does all that a version has to do to take this principal over, but for making it real.
    pub(super) async fn prepare(
        &mut self,
        edition: &Arc<Edition>,
        attempt: u32,
        ready: Option<&Ready>,
    ) -> Result<Box<Transaction>, Fault> {
        // Behind all that it did.
        self.durable(Writes::default()).await?;
        let (by, version) = (self.memory.woken_by, edition.version());
        let reason = by.map_or(Reason::Created, |_| Reason::Updated);
        let from = by
            .map(|by| by.schema)
            .filter(|from| *from != version.schema);
        let mut side = self.memory.side;
        if from.is_some() {
            side = side.other();
            self.copy_rows(side, ready).await?;
        }
        let loaded = Arc::clone(&self.loaded);
        let turn = loaded.turns.acquire().await;
        let mut transaction = self.transaction(edition, side, attempt);
        if let Err(error) = transaction.consume(&Event::Init(reason)) {
            self.memory = transaction.undo();
            return Err(Fault::Host(error.to_string()));
        }
        if let Some(from) = from {
            transaction.run_steps(true);
            let by = (from, attempt);
            transaction = self.migrate(edition, by, transaction, ready).await?;
            transaction.run_steps(false);
        }
        let (_, transaction) = self
            .step(edition, &Event::Init(reason), transaction)
            .await?;
        // The disk is waited for beside others.
        drop(turn);
        self.carry_out(transaction).await
    }

    /// Has the rows migrated, a step at a time. Each has the limits of an event, and new memory.
    async fn migrate(
        &mut self,
        edition: &Edition,
        (from, attempt): (u32, u32),
        mut transaction: Box<Transaction>,
        ready: Option<&Ready>,
    ) -> Result<Box<Transaction>, Fault> {
        for _ in 0..MAX_STEPS {
            if self.is_given_up(ready) {
                self.memory = transaction.undo();
                return Err(Fault::GivenUp);
            }
            let outcome;
            (outcome, transaction) = self
                .step(edition, &Event::Migrate { from }, transaction)
                .await?;
            let rows = transaction.end_step();
            if outcome == Outcome::Again && rows.is_empty() {
                return self.refused(transaction, "`migrate` wants to go on, and wrote nothing");
            }
            if let Err(fault) = self.durable(rows).await {
                self.memory = transaction.undo();
                return Err(fault);
            }
            transaction.begin_step(self.stamp(attempt), self.store.snapshot());
            if outcome != Outcome::Again {
                return Ok(transaction);
            }
        }
        self.refused(transaction, "`migrate` had a million steps, and wants more")
    }

    /// Whether nobody waits for a migration any more; of one that nobody ordered, whether an operator wants
    /// something else by now.
    fn is_given_up(&self, ready: Option<&Ready>) -> bool {
        ready.map_or_else(|| !self.inbox.has_no_order(), Ready::is_closed)
    }

    fn refused(
        &mut self,
        transaction: Box<Transaction>,
        why: &str,
    ) -> Result<Box<Transaction>, Fault> {
        self.memory = transaction.undo();
        Err(Fault::Refused(Refusal::new(ErrorCode::Failed, why)))
    }

    /// Runs one handler in a new instance.
    async fn step(
        &mut self,
        edition: &Edition,
        event: &Event,
        transaction: Box<Transaction>,
    ) -> Result<(Outcome, Box<Transaction>), Fault> {
        let started = Instant::now();
        let (outcome, transaction) = match edition.code.instantiate().await {
            Ok(mut instance) => instance.run(event, transaction).await,
            Err(fault) => (Err(fault), Some(transaction)),
        };
        let (figures, ending) = (&self.loaded.figures, Ending::of(&outcome));
        figures.handled(event.kind(), ending, started.elapsed());
        let Some(transaction) = transaction else {
            // With what the principal remembers: that is read again.
            self.epoch = 0;
            return Err(Fault::Trapped("the event was lost".to_owned()));
        };
        figures.hits(transaction.hits());
        match outcome {
            Ok(outcome) => Ok((outcome, transaction)),
            Err(fault) => {
                self.memory = transaction.undo();
                Err(fault)
            }
        }
    }

    /// Copies the principal's own rows to a side that does not count.
    async fn copy_rows(&self, to: Side, ready: Option<&Ready>) -> Result<(), Fault> {
        let mut writes = Writes::default();
        writes.remove_range(self.home.all(to.space()));
        self.durable(writes).await?;
        let prefix = self.home.key(self.memory.side.space(), &[]);
        let (snapshot, none, empty) =
            (self.store.snapshot(), Writes::default(), Overlay::default());
        let mut last: Option<Vec<u8>> = None;
        loop {
            if self.is_given_up(ready) {
                return Err(Fault::GivenUp);
            }
            let view = View::new(&none, &empty, &snapshot);
            let rows = view.scan(&prefix, last.as_deref(), false, COPIED_ROWS, COPIED_BYTES);
            let rows = rows.map_err(|error| Fault::Host(error.to_string()))?;
            let Some((key, _)) = rows.last() else {
                return Ok(());
            };
            last = Some(key.clone());
            let mut writes = Writes::default();
            for (key, value) in rows {
                writes.put(self.home.key(to.space(), own_key(&key)), Some(value));
            }
            self.durable(writes).await?;
        }
    }

    /// Deletes what a migration left on the side that does not count.
    pub(super) fn clear_other_side(&self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let space = self.memory.side.other().space();
        let (none, empty) = (Writes::default(), Overlay::default());
        let view = View::new(&none, &empty, snapshot);
        let rows = view.scan(&self.home.key(space, &[]), None, false, 1, usize::MAX)?;
        if !rows.is_empty() {
            let mut writes = Writes::default();
            writes.remove_range(self.home.all(space));
            let epoch = self.store.epoch();
            let by = self.home.writer();
            self.store.append_patiently(by, epoch, writes, |_| {});
        }
        Ok(())
    }

    async fn durable(&self, writes: Writes) -> Result<(), Fault> {
        let (done, durable) = oneshot::channel();
        let release = move |outcome: Result<_, _>| {
            let _ = done.send(outcome.is_ok());
        };
        self.store
            .append(self.home.writer(), self.epoch, writes, release);
        let is_durable = durable.await.unwrap_or(false);
        let lost = || Fault::Host("the disk failed".to_owned());
        is_durable.then_some(()).ok_or_else(lost)
    }
}
